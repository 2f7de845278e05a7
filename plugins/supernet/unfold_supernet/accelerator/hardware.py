"""Accelerators: arrays of multipliers with buffers, and the cycles of a layer under each dataflow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from unfold_supernet._types import IntArray
from unfold_supernet.accelerator.layers import (
    COLUMNS,
    DEPTH,
    GROUPS,
    KERNELS,
    OUT_COLUMNS,
    OUT_ROWS,
    ROWS,
    SubnetLayers,
)

KIB = 1024
WINDOW = 9
"""Multipliers of a dot-product engine: one 3 x 3 window a cycle."""
PIXELS = 8
"""Pixels that a DPU computes at a time."""


@dataclass(frozen=True, slots=True)
class EnergyModel:
    """Picojoules of a multiply-accumulate (default: INT8), and of a byte from on-chip and off-chip memory.

    The defaults follow Horowitz's table for 45 nm (ISSCC 2014); they are parameters, not figures of a board. Static
    power, in watts, has no such source: its default is an assumption of ours for the logic of a mid-size FPGA.
    """

    mac: float = 0.23
    on_chip: float = 12.5
    off_chip: float = 160.0
    static_w: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """A simulated accelerator.

    Attributes:
        name: Name of the preset.
        dataflow: A key of :func:`get_dataflows`.
        rows: Rows of the array.
        columns: Columns of the array.
        clock_hz: Clock of the array.
        bandwidth: Off-chip bandwidth, in bytes per second.
        dynamic_bytes: Buffer for weights in transfer.
        persistent_bytes: Buffer for the cached subgraph.
        streaming_bytes: Buffer for an entire activation map; the output buffer holds partial sums, so it moves nothing.
        tile_bytes: Bytes of one weight transfer.
        weight_bytes: Bytes of a weight; operations per cycle do not depend on it.
        value_bytes: Bytes of a value of an activation map.
        overlapped: Whether the folds of a systolic array follow each other without a gap.
        depthwise: Whether channels of a depthwise layer are mapped onto the columns too.
        energy: Energy of operations and memory accesses.
        engine: The engine that the figures describe.
    """

    name: str
    dataflow: str
    rows: int
    columns: int
    clock_hz: float
    bandwidth: float
    dynamic_bytes: int = 576 * KIB
    persistent_bytes: int = 1728 * KIB
    streaming_bytes: int = KIB * KIB
    tile_bytes: int = 16 * KIB
    weight_bytes: int = 1
    value_bytes: int = 1
    overlapped: bool = False
    depthwise: bool = True
    energy: EnergyModel = field(default_factory=EnergyModel)
    engine: str = ""


def get_presets() -> Mapping[str, Accelerator]:
    """Get the accelerators that come with the plugin, by name.

    SUSHI does not publish the split of the engines into rows and columns: 72 x 10 and 64 x 8 are our choice.
    Bandwidths are nominal; a layer sees less.
    """
    systolic = "systolic array, {}, as in SCALE-Sim"
    presets = (
        Accelerator(
            name="zcu104",
            dataflow="dot-product",
            rows=72,
            columns=10,
            clock_hz=100e6,
            bandwidth=19.2e9,
            engine="SUSHI's 720 dot-product engines on a ZCU104",
        ),
        Accelerator(
            name="alveo-u50",
            dataflow="dot-product",
            rows=64,
            columns=8,
            clock_hz=100e6,
            bandwidth=14.4e9,
            engine="SUSHI's 512 dot-product engines on an Alveo U50",
        ),
        Accelerator(
            name="weight-stationary",
            dataflow="weight-stationary",
            rows=32,
            columns=32,
            clock_hz=100e6,
            bandwidth=19.2e9,
            engine=systolic.format("weight-stationary"),
        ),
        Accelerator(
            name="output-stationary",
            dataflow="output-stationary",
            rows=32,
            columns=32,
            clock_hz=100e6,
            bandwidth=19.2e9,
            engine=systolic.format("output-stationary"),
        ),
        Accelerator(
            name="row-stationary",
            dataflow="row-stationary",
            rows=12,
            columns=14,
            clock_hz=200e6,
            bandwidth=19.2e9,
            dynamic_bytes=8 * KIB,
            persistent_bytes=0,
            streaming_bytes=100 * KIB,
            tile_bytes=4 * KIB,
            weight_bytes=2,
            value_bytes=2,
            engine="row-stationary array after Eyeriss, 16 bit, 108 KiB",
        ),
        Accelerator(
            name="dpu-zcu104",
            dataflow="pixel-channel",
            rows=16,
            columns=16,
            clock_hz=300e6,
            bandwidth=19.2e9,
            engine="one core of a DPUCZDX8G B4096 on a ZCU104",
        ),
    )
    return {preset.name: preset for preset in presets}


def count_cycles(subnet: SubnetLayers, machine: Accelerator) -> IntArray:
    """Count the compute cycles of every layer of a subnet, memory stalls excluded."""
    count = get_dataflows()[machine.dataflow]
    return np.array([count(row, machine) if row[KERNELS] else 0 for row in subnet.table], np.int64)


def get_dataflows() -> Mapping[str, Callable[[IntArray, Accelerator], int]]:
    """Get, by dataflow, the function from a layer's table row to its cycles."""
    return {
        "dot-product": _count_dot_product,
        "weight-stationary": _count_weight_stationary,
        "output-stationary": _count_output_stationary,
        "row-stationary": _count_row_stationary,
        "pixel-channel": _count_pixel_channel,
    }


def divide_up(value: int, divisor: int) -> int:
    """Divide and round up."""
    return -(-value // divisor)


def _count_dot_product(row: IntArray, machine: Accelerator) -> int:
    kernels, depth, groups = int(row[KERNELS]), int(row[DEPTH]), int(row[GROUPS])
    window, pixels = int(row[ROWS] * row[COLUMNS]), int(row[OUT_ROWS] * row[OUT_COLUMNS])
    if window == 1:
        tiles = groups * divide_up(kernels // groups, machine.rows)
        passes = divide_up(depth, WINDOW * machine.columns)
    elif depth == 1 and groups == kernels:
        tiles = divide_up(kernels, machine.rows * (machine.columns if machine.depthwise else 1))
        passes = divide_up(window, WINDOW)
    else:
        tiles = groups * divide_up(kernels // groups, machine.rows)
        passes = divide_up(depth, machine.columns) * divide_up(window, WINDOW)
    return tiles * (passes * pixels + _count_pipeline_stages(machine))


def _count_pipeline_stages(machine: Accelerator) -> int:
    # adder tree of the engine, adder tree over the columns, multiplier and output register
    return math.ceil(math.log2(WINDOW)) + math.ceil(math.log2(max(2, machine.columns))) + 2


def _count_weight_stationary(row: IntArray, machine: Accelerator) -> int:
    """Count SCALE-Sim's compute cycles: F (2 rows + columns + T - 2) - 1, one group after the other."""
    groups, pixels = int(row[GROUPS]), int(row[OUT_ROWS] * row[OUT_COLUMNS])
    folds = divide_up(_count_kernel_weights(row), machine.rows) * divide_up(
        int(row[KERNELS]) // groups, machine.columns
    )
    fill = 2 * machine.rows + machine.columns - 2
    group_cycles = folds * pixels + fill if machine.overlapped else folds * (fill + pixels)
    return groups * (group_cycles - 1)


def _count_output_stationary(row: IntArray, machine: Accelerator) -> int:
    """Count SCALE-Sim's compute cycles: F (rows + columns + R S C - 2) - 1, one group after the other."""
    groups, pixels = int(row[GROUPS]), int(row[OUT_ROWS] * row[OUT_COLUMNS])
    folds = divide_up(pixels, machine.rows) * divide_up(int(row[KERNELS]) // groups, machine.columns)
    fill, span = machine.rows + machine.columns - 2, _count_kernel_weights(row)
    group_cycles = folds * span + fill if machine.overlapped else folds * (fill + span)
    return groups * (group_cycles - 1)


def _count_kernel_weights(row: IntArray) -> int:
    return int(row[ROWS] * row[COLUMNS] * row[DEPTH])


def _count_row_stationary(row: IntArray, machine: Accelerator) -> int:
    """Count cycles after Eyeriss: a set of R x P engines slides one row of the kernel along one row of the map."""
    high, out = int(row[ROWS]), int(row[OUT_ROWS])
    sets = max(1, machine.rows // high) * max(1, machine.columns // out)
    strips = divide_up(high, machine.rows) * divide_up(out, machine.columns)
    planes = int(row[KERNELS] * row[DEPTH])
    return divide_up(planes, sets) * strips * int(row[OUT_COLUMNS] * row[COLUMNS])


def _count_pixel_channel(row: IntArray, machine: Accelerator) -> int:
    """Count cycles for 8 pixels x 16 input x 16 output channels at a time, as a DPU computes them."""
    pixels, window = int(row[OUT_ROWS] * row[OUT_COLUMNS]), int(row[ROWS] * row[COLUMNS])
    groups, depth = int(row[GROUPS]), int(row[DEPTH])
    kernels = int(row[KERNELS]) // groups
    pixel_groups = divide_up(pixels, PIXELS)
    if depth == 1 and kernels == 1:
        return pixel_groups * divide_up(groups, machine.rows) * window
    return groups * pixel_groups * divide_up(depth, machine.rows) * divide_up(kernels, machine.columns) * window
