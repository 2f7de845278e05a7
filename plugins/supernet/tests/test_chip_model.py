"""Laws of the accelerator: closed form, event simulator, cycles."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.supernet.tests.helpers import graphs, machines, nets, part
from unfold_supernet._types import IntArray
from unfold_supernet.accelerator import cost_model, tile_simulator
from unfold_supernet.accelerator.batching import choose_joint_layers
from unfold_supernet.accelerator.hardware import Accelerator, count_cycles, get_presets
from unfold_supernet.accelerator.layers import Layer, SubnetLayers, count_hits, tabulate_subnet
from unfold_supernet.accelerator.reference_families import build_reference_family

CLOSE = 1 + 1e-9


@st.composite
def cases(draw: Any) -> tuple[SubnetLayers, Accelerator, IntArray]:
    """Draw a net, a machine and a cached sub-graph."""
    found = draw(nets())
    return found, draw(machines()), draw(graphs(found))


@settings(max_examples=40, deadline=None)
@given(cases())
def test_hits_and_misses_are_the_weights(case: tuple[SubnetLayers, Accelerator, IntArray]) -> None:
    """In every layer hits and misses sum to the weights, and neither is negative."""
    found, machine, cached = case
    item = cost_model.build_work(found, machine)
    hit, miss = count_hits(found.graph, cached) * machine.weight_bytes, cost_model.count_missing_bytes(item, cached)
    assert (hit + miss == item.weights).all()
    assert (hit >= 0).all()
    assert (miss >= 0).all()


@settings(max_examples=40, deadline=None)
@given(cases(), st.floats(1, 10))
def test_more_is_never_slower(case: tuple[SubnetLayers, Accelerator, IntArray], factor: float) -> None:
    """Time does not increase when bandwidth, clock or the cached sub-graph grow."""
    found, machine, cached = case
    base = cost_model.estimate_latency(cost_model.build_work(found, machine), cached, machine)
    wide, quick = (
        replace(machine, bandwidth=machine.bandwidth * factor),
        replace(machine, clock_hz=machine.clock_hz * factor),
    )
    assert cost_model.estimate_latency(cost_model.build_work(found, wide), cached, wide) <= base * CLOSE
    assert cost_model.estimate_latency(cost_model.build_work(found, quick), cached, quick) <= base * CLOSE
    for share in (0.3, 0.7, 1.0):
        larger = np.maximum(cached, part(found, np.full((len(cached), 2), share)))
        assert cost_model.estimate_latency(cost_model.build_work(found, machine), larger, machine) <= base * CLOSE


@settings(max_examples=40, deadline=None)
@given(cases())
def test_bounds_hold(case: tuple[SubnetLayers, Accelerator, IntArray]) -> None:
    """Time is at least the computation, and at least the traffic over the bandwidth; all weights kept, none travel."""
    found, machine, cached = case
    item = cost_model.build_work(found, machine)
    time = cost_model.estimate_latency(item, cached, machine)
    assert time * CLOSE >= item.compute_s.sum()
    assert time * CLOSE >= cost_model.count_traffic(item, cached) / machine.bandwidth
    assert cost_model.count_traffic(item, found.graph) == item.activations.sum()


@settings(max_examples=40, deadline=None)
@given(cases())
def test_event_simulator_is_within_one_tile_a_layer(case: tuple[SubnetLayers, Accelerator, IntArray]) -> None:
    """Events that run ahead to the next layer's first tile at most are within a tile a layer of the closed form."""
    found, machine, cached = case
    item = cost_model.build_work(found, machine)
    played = tile_simulator.simulate_latency(item, cached, machine, deep=False)
    allowed = tile_simulator.sum_tile_times(item, cached, machine)
    assert abs(played - cost_model.estimate_latency(item, cached, machine)) <= allowed * CLOSE + 1e-12


@settings(max_examples=40, deadline=None)
@given(cases())
def test_running_ahead_is_never_slower(case: tuple[SubnetLayers, Accelerator, IntArray]) -> None:
    """Transfers that may run ahead through the layers are never later, and less so with more room."""
    found, machine, cached = case
    item = cost_model.build_work(found, machine)
    deep, near = (tile_simulator.simulate_latency(item, cached, machine, deep=way) for way in (True, False))
    assert deep <= near * CLOSE
    assert (
        tile_simulator.simulate_latency(item, cached, machine, deep=True, dynamic_bytes=2 * machine.dynamic_bytes)
        <= deep * CLOSE
    )
    assert deep * CLOSE >= max(item.compute_s.sum(), cost_model.count_traffic(item, cached) / machine.bandwidth)


@settings(max_examples=40, deadline=None)
@given(cases(), st.booleans())
def test_events_are_those_of_simpy(case: tuple[SubnetLayers, Accelerator, IntArray], deep: bool) -> None:
    """Compiled code, plain Python and two SimPy processes give the same time."""
    found, machine, cached = case
    item = cost_model.build_work(found, machine)
    load = (cost_model.count_missing_bytes(item, cached) + item.activations).astype(float)
    whole = (item.weights + item.activations).astype(float)
    given_ = (
        item.compute_s,
        load,
        whole,
        float(machine.tile_bytes),
        machine.bandwidth,
        float(machine.dynamic_bytes),
        deep,
    )
    expected = with_simpy(*given_)
    assert tile_simulator.simulate_tiles(*given_) == pytest.approx(expected, rel=1e-9)
    assert tile_simulator.simulate_tiles_reference(*given_) == pytest.approx(expected, rel=1e-9)


def with_simpy(compute: Any, load: Any, whole: Any, tile: float, bandwidth: float, room: float, deep: bool) -> float:
    """Return the end of the last layer from a transfer process and a compute process."""
    world = simpy.Environment()
    # whole bytes, as SimPy's container rounds
    space = simpy.Container(world, capacity=room, init=room)
    arrived = [simpy.Store(world) for _ in load]
    began = [world.event() for _ in range(len(load) + 1)]
    tiles = [_tiles(float(bytes_), tile) for bytes_ in load]

    def transfer() -> Any:
        for layer, sizes in enumerate(tiles):
            for index, size in enumerate(sizes):
                if not deep:
                    # the first tile may come while the layer before computes, the others when their own does
                    gate = layer - 1 if index == 0 else layer
                    if gate >= 0 and not began[gate].processed:
                        yield began[gate]
                yield space.get(size)
                yield world.timeout(size / bandwidth)
                arrived[layer].put(size)

    def engine() -> Any:
        for layer, sizes in enumerate(tiles):
            began[layer].succeed()
            share = load[layer] / whole[layer] if load[layer] else 0.0
            yield world.timeout(compute[layer] * (1 - share))
            for _ in sizes:
                size = yield arrived[layer].get()
                yield world.timeout(compute[layer] * share * size / load[layer])
                yield space.put(size)

    world.process(transfer())
    done = world.process(engine())
    world.run(done)
    return float(world.now)


def _tiles(bytes_: float, tile: float) -> list[float]:
    whole, rest = divmod(bytes_, tile)
    return [tile] * int(whole) + ([rest] if rest else [])


def layer_cycles(preset: str, kernels: int, depth: int, size: int, out: int) -> int:
    """Return the cycles of one dense layer."""
    layer = Layer(kernels, depth, (size, size), (out, out), 1)
    return int(count_cycles(tabulate_subnet("one", ["a"], {"a": layer}, 0.0), get_presets()[preset])[0])


def test_a_window_takes_one_cycle() -> None:
    """On the dot-product array a 3 x 3 window is one pass, 5 x 5 three, 7 x 7 six, and 1 x 1 folds nine channels."""
    one = layer_cycles("zcu104", 72, 10, 3, 8)
    fill = one - 64
    assert 0 < fill < 20
    assert layer_cycles("zcu104", 72, 10, 5, 8) == 3 * 64 + fill
    assert layer_cycles("zcu104", 72, 10, 7, 8) == 6 * 64 + fill
    assert layer_cycles("zcu104", 72, 90, 1, 8) == 64 + fill
    assert layer_cycles("zcu104", 144, 20, 3, 8) == 2 * (2 * 64 + fill)


def test_equal_silicon_is_the_baseline() -> None:
    """A buffer that keeps nothing is the machine without one."""
    layer = Layer(64, 64, (3, 3), (14, 14), 64 * 196)
    found = tabulate_subnet("one", ["a"], {"a": layer}, 0.0)
    machine = get_presets()["zcu104"]
    item = cost_model.build_work(found, machine)
    nothing = np.zeros_like(found.graph)
    assert cost_model.estimate_latency(item, nothing, machine) == cost_model.estimate_latency(
        item, nothing, replace(machine, persistent_bytes=0)
    )


@settings(max_examples=40, deadline=None)
@given(cases(), st.sampled_from([2, 4]))
def test_wider_numbers_are_more_bytes_and_nothing_else(
    case: tuple[SubnetLayers, Accelerator, IntArray], times: int
) -> None:
    """Numbers of twice the bytes move twice the bytes, and take as long where buffers and bandwidth are too."""
    found, drawn, cached = case
    machine = replace(drawn, weight_bytes=1, value_bytes=1)
    sizes = {
        name: getattr(machine, name) * times for name in ("bandwidth", "dynamic_bytes", "streaming_bytes", "tile_bytes")
    }
    wide = replace(machine, weight_bytes=times, value_bytes=times, **sizes)
    one, other = cost_model.build_work(found, machine), cost_model.build_work(found, wide)
    assert cost_model.count_traffic(other, cached) == times * cost_model.count_traffic(one, cached)
    assert cost_model.estimate_latency(other, cached, wide) == pytest.approx(
        cost_model.estimate_latency(one, cached, machine)
    )
    deep = [
        tile_simulator.simulate_latency(item, cached, on, deep=True) for item, on in ((one, machine), (other, wide))
    ]
    assert deep[0] == pytest.approx(deep[1])
    moved = cost_model.estimate_traffic_energy(other, cached, wide)
    assert moved == pytest.approx(times * cost_model.estimate_traffic_energy(one, cached, machine))


def test_weights_and_maps_have_bits_of_their_own() -> None:
    """Wider weights move more of weights, wider maps more of image and result, and neither changes the operations."""
    layer = Layer(64, 64, (3, 3), (14, 14), 64 * 196)
    found = tabulate_subnet("one", ["a"], {"a": layer}, 0.0)
    machine, nothing = get_presets()["zcu104"], np.zeros((1, 4), np.int64)
    maps, weights = 2 * 64 * 196, 64 * 64 * 9
    for weight, value in ((1, 1), (4, 1), (1, 2), (2, 4)):
        item = cost_model.build_work(found, replace(machine, weight_bytes=weight, value_bytes=value))
        assert cost_model.count_traffic(item, nothing) == weights * weight + maps * value
        assert item.compute_s.sum() == cost_model.build_work(found, machine).compute_s.sum()


def test_a_batch_loads_its_weights_once() -> None:
    """Eight inputs together take eight times the computation and one load of the weights."""
    layer = Layer(64, 64, (3, 3), (14, 14), 64 * 196)
    found = tabulate_subnet("one", ["a"], {"a": layer}, 0.0)
    machine = get_presets()["zcu104"]
    one, eight = cost_model.build_work(found, machine), cost_model.build_work(found, machine, 8)
    assert eight.compute_s.sum() == pytest.approx(8 * one.compute_s.sum())
    assert eight.weights.sum() == one.weights.sum()


Shapes = tuple[list[int], list[int], list[int]]


@st.composite
def chains(draw: st.DrawFn) -> Shapes:
    """Draw weights, input and output maps of a few layers in a row, in bytes."""
    count = draw(st.integers(1, 6))
    weights, edges = (draw(st.lists(st.integers(1, 500), min_size=n, max_size=n)) for n in (count, count + 1))
    return weights, edges[:-1], edges[1:]


def bytes_of(chain: Shapes, together: tuple[bool, ...], batch: int, room: int) -> int:
    """Return what crosses, counted map by map: those that are there at a time, one after the other."""
    weights, inputs, outputs = chain
    total = sum(weight * (1 if joint else batch) for weight, joint in zip(weights, together, strict=True))
    for at in range(len(weights) - 1):
        # maps that are there at a time: all of the batch, or the one of the input at work
        at_a_time = batch if together[at] or together[at + 1] else 1
        for size in (outputs[at], inputs[at + 1]):
            left = sum(1 for place in range(at_a_time) if (place + 1) * size > room)
            total += size * left * (batch // at_a_time)
    return total


@settings(max_examples=60, deadline=None)
@given(chains(), st.integers(1, 9), st.integers(0, 1500))
def test_a_batch_goes_through_layers_as_moves_least(chain: Shapes, batch: int, room: int) -> None:
    """Of all ways to take layers together or one input after the other, the one found moves least bytes."""
    found = choose_joint_layers(*(np.array(part) for part in chain), batch, room)
    ways = itertools.product((False, True), repeat=len(chain[0]))
    assert bytes_of(chain, tuple(found.tolist()), batch, room) == min(bytes_of(chain, way, batch, room) for way in ways)


@pytest.mark.parametrize("name", ["ofa-mobilenetv3", "ofa-resnet50"])
def test_maps_of_a_batch_need_room(name: str) -> None:
    """A batch never moves more than its inputs one by one, nor less than one load of weights, image and result."""
    small, large = get_presets()["zcu104"], replace(get_presets()["zcu104"], streaming_bytes=1 << 40)
    one = build_reference_family(name).subnets[-1]
    nothing, single = one.graph * 0, cost_model.count_traffic(cost_model.build_work(one, small), one.graph * 0)
    ends = cost_model.build_work(one, large).activations.sum()
    for batch in (2, 8, 64):
        moved, least = (
            cost_model.count_traffic(cost_model.build_work(one, chip, batch), nothing) for chip in (small, large)
        )
        assert least == one.weights.sum() + batch * ends
        assert least <= moved < batch * single
    assert moved > 4 * least
