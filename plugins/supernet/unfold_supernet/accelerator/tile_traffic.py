"""Tiles of a layer with maps off chip, and the bytes that cross the interface because parts are read again.

A tile of weights fits the dynamic buffer; a tile of the input and one of the output fit the streaming buffer together.
The loops over kernels, channels and map tiles have an order. A tile is transferred again whenever a loop that it
depends on, or one around such a loop, advances. Neighbouring input tiles overlap by the window (halo), which is read
twice. This is the reuse analysis of Timeloop (Parashar et al., ISPASS 2019) for one level of buffers.

:func:`plan_tiles` takes the largest block of kernels that fits beside each tile of the map.
:func:`search_tiles_exhaustively` tries every block and is its reference.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from unfold_supernet._types import BoolArray, FloatArray, IntArray
from unfold_supernet.accelerator.layers import (
    COLUMNS,
    DEPTH,
    DILATION_COLUMNS,
    DILATION_ROWS,
    GROUPS,
    KERNELS,
    MAP_COLUMNS,
    MAP_ROWS,
    OUT_COLUMNS,
    OUT_ROWS,
    PADDING_COLUMNS,
    PADDING_ROWS,
    ROWS,
    STRIDE_COLUMNS,
    STRIDE_ROWS,
)

SUM_BYTES = 4
"""Bytes of a partial sum: 32 bits."""
KERNEL, CHANNEL, MAP = "kernel", "channel", "map"
DEPENDENCIES = {"weights": (KERNEL, CHANNEL), "inputs": (CHANNEL, MAP), "outputs": (KERNEL, MAP)}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """One group of channels of a layer.

    Attributes:
        kernels: Output channels.
        channels: Input channels.
        window: Rows and columns of the kernel.
        out: Rows and columns of the output map.
        stride: Step between outputs along rows and columns.
        dilation: Step between the input rows and columns that an output reads.
        padding: Rows above and columns left of the map that the first windows reach; they never cross.
        map_size: Rows and columns of the input map; 0 stands for all that windows reach.
    """

    kernels: int
    channels: int
    window: tuple[int, int]
    out: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    map_size: tuple[int, int] = (0, 0)

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns of the input from the first to the last that an output reads."""
        rows, columns = ((size - 1) * step + 1 for size, step in zip(self.window, self.dilation, strict=True))
        return rows, columns


@dataclass(frozen=True, slots=True)
class BufferSizes:
    """Bytes of the buffers for weights and maps, and of one weight and one value of a map."""

    weights: int
    maps: int
    weight_bytes: int = 1
    value_bytes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TilePlan:
    """What a tiling transfers.

    Attributes:
        weight_loads: How often every weight crosses.
        input_bytes: Bytes of the input, with what is read again.
        output_bytes: Bytes of the output, with partial sums that are written and read again.
        weights: Bytes of the weights.
        input_reads: How often the input crosses, overlaps included; 1 if nothing is read again.
    """

    weight_loads: int
    input_bytes: int
    output_bytes: int
    input_reads: float
    weights: int

    @property
    def bytes(self) -> int:
        """All bytes that cross the interface for one group."""
        return self.weights * self.weight_loads + self.input_bytes + self.output_bytes


@dataclass(frozen=True, slots=True)
class _Traffic:
    """Bytes of weights, inputs and outputs, by tiling."""

    weights: FloatArray
    inputs: FloatArray
    outputs: FloatArray


def describe_shape(row: IntArray) -> LayerShape:
    """Describe one group of a layer from its row of a subnet's table."""
    return LayerShape(
        kernels=int(row[KERNELS] // row[GROUPS]),
        channels=int(row[DEPTH]),
        window=(int(row[ROWS]), int(row[COLUMNS])),
        out=(int(row[OUT_ROWS]), int(row[OUT_COLUMNS])),
        stride=(int(row[STRIDE_ROWS]), int(row[STRIDE_COLUMNS])),
        dilation=(int(row[DILATION_ROWS]), int(row[DILATION_COLUMNS])),
        padding=(int(row[PADDING_ROWS]), int(row[PADDING_COLUMNS])),
        map_size=(int(row[MAP_ROWS]), int(row[MAP_COLUMNS])),
    )


@lru_cache(maxsize=4096)
def plan_tiles(shape: LayerShape, buffers: BufferSizes, *, weights_stay: bool = False) -> TilePlan:
    """Choose tiles and loop order with the fewest bytes for a layer with maps off chip.

    If not even the smallest tiles fit, they are used anyway.

    Args:
        shape: One group of the layer.
        buffers: The buffers.
        weights_stay: Whether every weight has to cross once only.
    """
    edges = [np.array(list_tile_edges(size)) for size in (shape.channels, *shape.out)]
    channels, rows, columns = (grid.ravel() for grid in np.meshgrid(*edges, indexing="ij"))
    kernels = np.minimum(_fit_kernels(shape, buffers, channels, rows, columns), shape.kernels)
    fits = kernels >= 1
    if not fits.any():
        kernels, channels, rows, columns = (np.ones(1, np.int64) for _ in range(4))
        fits = np.ones(1, bool)
    trips, map_tiles = _count_trips(shape, kernels[fits], channels[fits], rows[fits], columns[fits])
    plans = [_choose_tiles(shape, buffers, order, trips, map_tiles, weights_stay) for order in _list_orders()]
    return min(plans, key=lambda plan: (plan.weight_loads > 1 and weights_stay, plan.bytes))


def _fit_kernels(
    shape: LayerShape, buffers: BufferSizes, channels: IntArray, rows: IntArray, columns: IntArray
) -> IntArray:
    """Compute the largest block of kernels that fits beside each tile; below 1 if none does."""
    window = shape.window[0] * shape.window[1]
    by_weights = buffers.weights // (channels * window * buffers.weight_bytes)
    inputs = channels * _span(rows, shape, 0) * _span(columns, shape, 1) * buffers.value_bytes
    outputs = rows * columns * np.where(channels < shape.channels, SUM_BYTES, buffers.value_bytes)
    kernels: IntArray = np.minimum(by_weights, (buffers.maps - inputs) // outputs)
    return kernels


def _choose_tiles(
    shape: LayerShape,
    buffers: BufferSizes,
    order: Sequence[str],
    trips: Mapping[str, IntArray],
    map_tiles: tuple[IntArray, IntArray],
    weights_stay: bool,
) -> TilePlan:
    """Choose the tiles with the fewest bytes under one loop order."""
    traffic = _count_order(shape, buffers, order, trips, map_tiles)
    total = traffic.weights + traffic.inputs + traffic.outputs
    if weights_stay:
        # where no tiling keeps them, the fewest loads come first
        total = total + (traffic.weights - traffic.weights.min()) * 1e6
    best = int(total.argmin())
    weights = count_group_weights(shape) * buffers.weight_bytes
    return TilePlan(
        weight_loads=round(float(traffic.weights[best]) / weights),
        input_bytes=round(float(traffic.inputs[best])),
        output_bytes=round(float(traffic.outputs[best])),
        input_reads=float(traffic.inputs[best]) / _count_map_bytes(shape, buffers),
        weights=weights,
    )


def _count_map_bytes(shape: LayerShape, buffers: BufferSizes) -> int:
    """Count the bytes of one read of the input, without what lies between windows."""
    return _count_needed(shape, 0) * _count_needed(shape, 1) * shape.channels * buffers.value_bytes


def _count_needed(shape: LayerShape, axis: int) -> int:
    """Count the input rows or columns that a window reaches."""
    is_apart = shape.reach[axis] < shape.stride[axis]
    return int(_sum_spans(np.array([1 if is_apart else shape.out[axis]]), shape, axis)[0])


def measure_read_share(shape: LayerShape) -> float:
    """Measure the share of the input that outputs need: below 1 where a window is smaller than the stride."""
    if all(shape.map_size):
        return _count_needed(shape, 0) * _count_needed(shape, 1) / math.prod(shape.map_size)
    return math.prod(min(1.0, size / step) for step, size in zip(shape.stride, shape.reach, strict=True))


def count_group_weights(shape: LayerShape) -> int:
    """Count the weights of one group of a convolution: kernels, channels and window of the group."""
    return shape.kernels * shape.channels * shape.window[0] * shape.window[1]


def _count_trips(
    shape: LayerShape, kernels: IntArray, channels: IntArray, rows: IntArray, columns: IntArray
) -> tuple[dict[str, IntArray], tuple[IntArray, IntArray]]:
    """Count the trips of each loop; returns them with the tiles of the map."""
    trips = {
        KERNEL: -(-shape.kernels // kernels),
        CHANNEL: -(-shape.channels // channels),
        MAP: -(-shape.out[0] // rows) * -(-shape.out[1] // columns),
    }
    return trips, (rows, columns)


def _list_orders() -> list[tuple[str, ...]]:
    return list(itertools.permutations((KERNEL, CHANNEL, MAP)))


def list_tile_edges(edge: int) -> list[int]:
    """List the smallest tile for each number of tiles that an edge can be cut into, largest first."""
    return sorted({-(-edge // count) for count in range(1, edge + 1)}, reverse=True)


def _span(tile: IntArray, shape: LayerShape, axis: int) -> IntArray:
    """Compute the input rows or columns that the largest of the tiles of outputs needs."""
    return _measure_tiles(tile, shape, axis, np.max)


def _sum_spans(tile: IntArray, shape: LayerShape, axis: int) -> IntArray:
    """Sum the input rows or columns of all tiles, overlaps included; what no output needs is not read."""
    return _measure_tiles(tile, shape, axis, np.sum)


def _measure_tiles(tile: IntArray, shape: LayerShape, axis: int, combine: Callable[[IntArray], np.int64]) -> IntArray:
    """Combine the numbers of input rows or columns of all tiles, for each edge of a tile; padding is none of them."""
    edges, places = np.unique(tile, return_inverse=True)
    out, step, before = shape.out[axis], shape.stride[axis], shape.padding[axis]
    size = shape.map_size[axis] or (out - 1) * step + shape.reach[axis]
    combined = []
    for edge in edges:
        first = np.arange(0, out, edge)
        last = np.minimum(first + edge, out) - 1
        start, end = (
            np.clip(value, 0, size) for value in (first * step - before, last * step - before + shape.reach[axis])
        )
        combined.append(combine(end - start))
    return np.array(combined, np.int64)[places]


# The reference.


def search_tiles_exhaustively(shape: LayerShape, buffers: BufferSizes) -> int:
    """Find the fewest bytes that cross the interface: every tile of kernels, channels, rows and columns, every order.

    Args:
        shape: One group of the layer.
        buffers: The buffers.

    Raises:
        ValueError: Not even the smallest tiles fit.
    """
    edges = [list_tile_edges(size) for size in (shape.kernels, shape.channels, *shape.out)]
    kernels, channels, rows, columns = (grid.ravel() for grid in np.meshgrid(*map(np.array, edges), indexing="ij"))
    fits = _find_fitting(shape, buffers, (kernels, channels, rows, columns))
    if not fits.any():
        raise ValueError("the smallest tiles do not fit the buffers")
    trips, map_tiles = _count_trips(shape, kernels[fits], channels[fits], rows[fits], columns[fits])
    best = np.inf
    for order in _list_orders():
        traffic = _count_order(shape, buffers, order, trips, map_tiles)
        best = min(best, float((traffic.weights + traffic.inputs + traffic.outputs).min()))
    return round(best)


def _find_fitting(shape: LayerShape, buffers: BufferSizes, tiles: Sequence[IntArray]) -> BoolArray:
    kernels, channels, rows, columns = tiles
    weights = kernels * channels * shape.window[0] * shape.window[1] * buffers.weight_bytes
    inputs = channels * _span(rows, shape, 0) * _span(columns, shape, 1) * buffers.value_bytes
    outputs = kernels * rows * columns * np.where(channels < shape.channels, SUM_BYTES, buffers.value_bytes)
    fits: BoolArray = (weights <= buffers.weights) & (inputs + outputs <= buffers.maps)
    return fits


def _count_order(
    shape: LayerShape,
    buffers: BufferSizes,
    order: Sequence[str],
    trips: Mapping[str, IntArray],
    map_tiles: tuple[IntArray, IntArray],
) -> _Traffic:
    """Count the bytes of one loop order, outermost loop first."""
    visits = {name: _count_visits(order, trips, used) for name, used in DEPENDENCIES.items()}
    spans = _sum_spans(map_tiles[0], shape, 0) * _sum_spans(map_tiles[1], shape, 1)
    values = shape.kernels * shape.out[0] * shape.out[1]
    return _Traffic(
        count_group_weights(shape) * buffers.weight_bytes * visits["weights"],
        spans * shape.channels * buffers.value_bytes * visits["inputs"],
        # partial sums that leave the chip are written and read again
        values * buffers.value_bytes + 2.0 * (visits["outputs"] - 1) * values * SUM_BYTES,
    )


def _count_visits(order: Sequence[str], trips: Mapping[str, IntArray], used: Sequence[str]) -> FloatArray:
    """Count how often each tile is transferred: the trips of unrelated loops around the innermost related one."""
    visits = np.ones(len(trips[KERNEL]))
    is_inside = np.zeros(len(visits), bool)
    for name in reversed(order):
        if name in used:
            # a loop that runs once changes nothing
            is_inside |= trips[name] > 1
        else:
            visits = np.where(is_inside, visits * trips[name], visits)
    return visits
