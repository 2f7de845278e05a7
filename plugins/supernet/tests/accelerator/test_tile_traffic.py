"""Tiles of layers with off-chip maps, against an exhaustive search and against loops that are walked."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfold_supernet.accelerator import cost_model
from unfold_supernet.accelerator.hardware import get_presets
from unfold_supernet.accelerator.layers import Layer, tabulate_subnet
from unfold_supernet.accelerator.tile_traffic import (
    SUM_BYTES,
    BufferSizes,
    LayerShape,
    describe_shape,
    list_tile_edges,
    plan_tiles,
    search_tiles_exhaustively,
)

MAX_ERROR = 0.10


def draw_layers(count: int, seed: int) -> list[tuple[LayerShape, BufferSizes]]:
    """Draw layers of common networks with buffers that hold neither weights nor maps as a rule."""
    rng = np.random.default_rng(seed)
    drawn = []
    while len(drawn) < count:
        window, stride, edge = (int(rng.choice(values)) for values in ([1, 3, 5, 7], [1, 2], [7, 14, 28, 35, 56]))
        shape = LayerShape(
            kernels=int(rng.choice([1, 16, 24, 64, 96, 128, 200, 256, 512])),
            channels=int(rng.choice([1, 3, 16, 32, 64, 96, 192, 256])),
            window=(window, window),
            out=(edge, edge),
            stride=(stride, stride),
        )
        buffers = BufferSizes(int(2 ** rng.uniform(11, 20)), int(2 ** rng.uniform(11, 20)), 1, int(rng.choice([1, 2])))
        try:
            search_tiles_exhaustively(shape, buffers)
        except ValueError:
            continue
        drawn.append((shape, buffers))
    return drawn


@pytest.mark.slow
def test_plans_are_within_ten_percent_of_exhaustive_tilings() -> None:
    """On 200 random layers no plan moves less than the best tiling, nor 10 % more."""
    for shape, buffers in draw_layers(200, 26):
        best = search_tiles_exhaustively(shape, buffers)
        assert best <= plan_tiles(shape, buffers).bytes <= best * (1 + MAX_ERROR), (shape, buffers)


@pytest.mark.parametrize("seed", range(12))
def test_exhaustive_search_agrees_with_walked_loops(seed: int) -> None:
    """The best of every integer tile and order, found by walking the loops tile by tile, moves as many bytes."""
    rng = np.random.default_rng(seed)
    kernels, channels, edge, window, stride = (int(rng.integers(1, top)) for top in (7, 7, 6, 4, 3))
    shape = LayerShape(
        kernels=kernels, channels=channels, window=(window, window), out=(edge, 1 + edge // 2), stride=(stride, stride)
    )
    if seed % 2:
        # most rows that windows reach are padding
        shape = replace(shape, dilation=(3, 2), padding=(2, 1), map_size=(edge, edge))
    # from just enough for one value of each kind to enough for everything
    smallest = window * window + 1 + SUM_BYTES
    buffers = BufferSizes(int(window**2 * rng.integers(1, kernels * channels + 1)), int(smallest * rng.integers(1, 12)))
    best = min(
        walk_loops(shape, tiles, order)
        for tiles in itertools.product(*(range(1, size + 1) for size in (kernels, channels, *shape.out)))
        if fits_buffers(shape, buffers, tiles)
        for order in itertools.permutations("kcm")
    )
    assert search_tiles_exhaustively(shape, buffers) == best


def fits_buffers(shape: LayerShape, buffers: BufferSizes, tiles: tuple[int, ...]) -> bool:
    kernels, channels, rows, columns = tiles
    spans = [
        max(count_reached(shape, axis, start, min(start + tile, out)) for start in range(0, out, tile))
        for axis, (tile, out) in enumerate(zip(tiles[2:], shape.out, strict=True))
    ]
    sums = SUM_BYTES if channels < shape.channels else buffers.value_bytes
    weights = kernels * channels * shape.window[0] * shape.window[1]
    return (
        weights <= buffers.weights and channels * spans[0] * spans[1] + kernels * rows * columns * sums <= buffers.maps
    )


def count_reached(shape: LayerShape, axis: int, start: int, stop: int) -> int:
    """Count the rows or columns of the map from the first to the last that some outputs read."""
    first = start * shape.stride[axis] - shape.padding[axis]
    last = (stop - 1) * shape.stride[axis] - shape.padding[axis] + shape.reach[axis]
    present = range(shape.map_size[axis]) if shape.map_size[axis] else range(first, last)
    return sum(first <= place < last for place in present)


def walk_loops(shape: LayerShape, tiles: tuple[int, ...], order: tuple[str, ...]) -> int:
    """Count bytes by running the loops: a tile is transferred when it is not the one in the buffer."""

    def cut(size: int, tile: int) -> list[tuple[int, int]]:
        return [(start, min(size, start + tile)) for start in range(0, size, tile)]

    ranges = {
        "k": cut(shape.kernels, tiles[0]),
        "c": cut(shape.channels, tiles[1]),
        "m": list(itertools.product(cut(shape.out[0], tiles[2]), cut(shape.out[1], tiles[3]))),
    }
    held: dict[str, object] = {}
    total, partial = 0, set[object]()
    for steps in itertools.product(*(ranges[name] for name in order)):
        step = dict(zip(order, steps, strict=True))
        (k, c, m) = (step[name] for name in "kcm")
        depth, (rows, columns) = c[1] - c[0], m
        if held.get("w") != (k, c):
            total += (k[1] - k[0]) * depth * shape.window[0] * shape.window[1]
        if held.get("i") != (c, m):
            spans = [count_reached(shape, axis, *part) for axis, part in enumerate(m)]
            total += depth * spans[0] * spans[1]
        values = (k[1] - k[0]) * (rows[1] - rows[0]) * (columns[1] - columns[0])
        if held.get("o") != (k, m):
            # sums that return were written before, and are read now
            total += 2 * values * SUM_BYTES if (k, m) in partial else values
            partial.add((k, m))
        held = {"w": (k, c), "i": (c, m), "o": (k, m)}
    return total


def test_large_buffers_move_every_byte_once() -> None:
    """With room for all weights and maps, nothing crosses twice."""
    shape = LayerShape(kernels=64, channels=32, window=(3, 3), out=(28, 28), stride=(1, 1))
    plan = plan_tiles(shape, BufferSizes(1 << 30, 1 << 30))
    assert (plan.weight_loads, plan.input_reads) == (1, 1.0)
    assert plan.bytes == 64 * 32 * 9 + 32 * 30 * 30 + 64 * 28 * 28


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(draw_layers(40, 1)), st.integers(1, 8), st.integers(1, 8))
def test_larger_buffers_never_move_more(case: tuple[LayerShape, BufferSizes], weights: int, maps: int) -> None:
    """Traffic does not grow with either buffer."""
    shape, buffers = case
    larger = replace(buffers, weights=buffers.weights * weights, maps=buffers.maps * maps)
    assert plan_tiles(shape, larger).bytes <= plan_tiles(shape, buffers).bytes


def test_tiles_too_large_for_any_buffer_are_used_all_the_same() -> None:
    """Where not even single values fit, the traffic is that of single values, not zero."""
    shape = LayerShape(kernels=4, channels=4, window=(3, 3), out=(4, 4), stride=(1, 1))
    assert plan_tiles(shape, BufferSizes(1, 1)).bytes > 4 * 4 * 9 + 4 * 36 + 4 * 16


def test_padding_is_not_transferred() -> None:
    """A dilated layer with wide padding reads its map: once where it fits, and per tile as far as windows reach it."""
    layer = Layer(1, 1, (3, 3), (14, 14), 196, 1, (1, 1), (6, 6), (6, 6), (14, 14))
    shape = describe_shape(tabulate_subnet("one", ["a"], {"a": layer}, 0.0).table[0])
    # map and output, or two strips of 7 rows that read 13 each
    for maps, reads in ((196 + 196, 1), (13 * 14 + 7 * 14, 26 / 14)):
        plan = plan_tiles(shape, BufferSizes(9, maps))
        assert (plan.input_bytes, plan.input_reads) == (196 * reads, reads)


@pytest.mark.parametrize("maps", [900, 4000, 1 << 20])
def test_dilated_windows_reach_as_far_as_dense_ones(maps: int) -> None:
    """Tiles of a dilated layer overlap like those of the dense window that reaches as far; it has fewer weights."""
    dense = LayerShape(kernels=8, channels=8, window=(5, 9), out=(14, 20), stride=(1, 2))
    dilated = replace(dense, window=(3, 3), dilation=(2, 4))
    expected, plan = (plan_tiles(shape, BufferSizes(1 << 20, maps)) for shape in (dense, dilated))
    assert (plan.input_reads, plan.output_bytes) == (expected.input_reads, expected.output_bytes)
    assert plan.weights == 8 * 8 * 9


def test_tile_edges_cover_every_number_of_tiles() -> None:
    """Each possible number of tiles has its smallest tile."""
    for edge in (1, 7, 12, 56):
        expected = {-(-edge // tile) for tile in range(1, edge + 1)}
        assert {-(-edge // tile) for tile in list_tile_edges(edge)} == expected


def test_work_counts_what_is_read_again() -> None:
    """A layer of which neither weights nor maps fit moves more than each byte once; the shape follows from its row."""
    layer = Layer(512, 512, (3, 3), (56, 56), 512 * 56 * 56)
    subnet = tabulate_subnet("one", ["a"], {"a": layer}, 0.0)
    assert describe_shape(subnet.table[0]) == LayerShape(
        kernels=512, channels=512, window=(3, 3), out=(56, 56), stride=(1, 1)
    )
    machine = replace(get_presets()["zcu104"], dynamic_bytes=128 << 10, streaming_bytes=256 << 10)
    work, nothing = cost_model.build_work(subnet, machine), np.zeros_like(subnet.graph)
    once = 512 * 512 * 9 + 2 * 512 * 56 * 56
    assert cost_model.count_traffic(work, nothing) > 1.5 * once
    roomy = replace(machine, streaming_bytes=4 << 20)
    assert cost_model.count_traffic(cost_model.build_work(subnet, roomy), nothing) == once


@pytest.mark.parametrize(("window", "needed"), [(1, 1 / 16), (2, 1 / 4), (4, 1), (7, 1)])
def test_values_between_windows_are_not_read(window: int, needed: float) -> None:
    """An image in steps of four is read as far as windows reach, whether or not it fits the buffer."""
    layer = Layer(16, 3, (window, window), (56, 56), 3 * 224 * 224)
    subnet = tabulate_subnet("one", ["a"], {"a": layer}, 0.0)
    roomy, tight = (replace(get_presets()["zcu104"], streaming_bytes=size << 10) for size in (1024, 100))
    whole, tiled = (cost_model.build_work(subnet, machine).activations.sum() for machine in (roomy, tight))
    assert whole == 3 * 224 * 224 * needed + 16 * 56 * 56
    assert whole <= tiled < 1.1 * whole


def test_energy_has_static_power_and_reuse() -> None:
    """Static power counts for the latency; an array with more rows reads its inputs less often."""
    layer = Layer(256, 64, (3, 3), (14, 14), 64 * 196)
    subnet = tabulate_subnet("one", ["a"], {"a": layer}, 0.0)
    machine, nothing = get_presets()["zcu104"], np.zeros((1, 4), np.int64)
    work = cost_model.build_work(subnet, machine)
    hot = replace(machine, energy=replace(machine.energy, static_w=10.5))
    added = cost_model.estimate_energy(work, nothing, hot) - cost_model.estimate_energy(work, nothing, machine)
    assert added == pytest.approx(10.0 * cost_model.estimate_latency(work, nothing, machine))
    wide = replace(machine, rows=256)
    passes = -(-64 // machine.columns)
    sums = 256 * 196 * (2 * passes - 1) * SUM_BYTES
    for array, blocks in ((machine, 4), (wide, 1)):
        accesses = cost_model.count_buffer_bytes(subnet, array)
        assert accesses[0] == 256 * 64 * 9 + 64 * 196 * blocks + sums
