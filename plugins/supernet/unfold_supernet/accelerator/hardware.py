"""Accelerators: arrays of multipliers with buffers, and how many cycles a layer takes on each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from unfold_supernet.accelerator.layers import COLUMNS, DEPTH, GROUPS, KERNELS, OUT_COLUMNS, OUT_ROWS, ROWS, Net
from unfold_supernet.arrays import Ints

KIB = 1024
WINDOW = 9
"""Multipliers of a dot-product engine: one 3 x 3 window a cycle."""


@dataclass(frozen=True, slots=True)
class Energy:
    """Picojoules of a multiply-accumulate (by default of INT8), and of a byte from on-chip and off-chip memory.

    In the manner of Horowitz's table for 45 nm; parameters, not a board's figures.
    """

    mac: float = 0.23
    on_chip: float = 12.5
    off_chip: float = 160.0


@dataclass(frozen=True, slots=True)
class Machine:
    """An accelerator. ``rows`` x ``columns`` is the array; buffers in bytes; ``clock`` in Hz, ``bandwidth`` in B/s.

    ``weight`` and ``value`` are the bytes of a weight and of a map's value; the array does as much a cycle at any.
    ``dynamic`` holds weights on their way, ``persistent`` those that stay, ``streaming`` a whole activation map; the
    output buffer holds partial sums only, so it moves nothing. ``overlapped`` lets the folds of a systolic array
    follow each other without a gap; ``depthwise`` maps channels of a depthwise layer onto the columns too.
    """

    name: str
    dataflow: str
    rows: int
    columns: int
    clock: float
    bandwidth: float
    dynamic: int = 576 * KIB
    persistent: int = 1728 * KIB
    streaming: int = KIB * KIB
    tile: int = 16 * KIB
    weight: int = 1
    value: int = 1
    overlapped: bool = False
    depthwise: bool = True
    energy: Energy = field(default_factory=Energy)
    about: str = ""


def presets() -> Mapping[str, Machine]:
    """Return the accelerators that come with the plugin.

    The split of the engines into rows and columns is not published: 72 x 10 and 64 x 8 are ours. Bandwidths are
    nominal; what a layer sees is less.
    """
    found = (
        Machine("zcu104", "dot-product", 72, 10, 100e6, 19.2e9, about="720 engines of 9 multipliers"),
        Machine("alveo-u50", "dot-product", 64, 8, 100e6, 14.4e9, about="512 engines of 9 multipliers"),
        Machine("weight-stationary", "weight-stationary", 32, 32, 100e6, 19.2e9, about="systolic, as in SCALE-Sim"),
        Machine("output-stationary", "output-stationary", 32, 32, 100e6, 19.2e9, about="systolic, as in SCALE-Sim"),
        Machine(
            "row-stationary",
            "row-stationary",
            12,
            14,
            200e6,
            19.2e9,
            8 * KIB,
            0,
            100 * KIB,
            4 * KIB,
            weight=2,
            value=2,
            about="after Eyeriss: 16 bit, a buffer of 108 KiB for maps and weights",
        ),
        Machine("dpu-zcu104", "pixel-channel", 16, 16, 300e6, 19.2e9, about="one core of a DPUCZDX8G B4096"),
    )
    return {machine.name: machine for machine in found}


def cycles(net: Net, machine: Machine) -> Ints:
    """Return the cycles of every layer of a net on a machine, whatever memory does."""
    count = dataflows()[machine.dataflow]
    return np.array([count(row, machine) if row[KERNELS] else 0 for row in net.table], np.int64)


def dataflows() -> Mapping[str, Callable[[Ints, Machine], int]]:
    """Return, by dataflow, the function from a layer's row of the table to its cycles."""
    return {
        "dot-product": _dot_product,
        "weight-stationary": _weight_stationary,
        "output-stationary": _output_stationary,
        "row-stationary": _row_stationary,
        "pixel-channel": _pixel_channel,
    }


def ceil_div(value: int, by: int) -> int:
    """Return ``value / by``, rounded up."""
    return -(-value // by)


def _dot_product(row: Ints, machine: Machine) -> int:
    kernels, depth, groups = int(row[KERNELS]), int(row[DEPTH]), int(row[GROUPS])
    window, pixels = int(row[ROWS] * row[COLUMNS]), int(row[OUT_ROWS] * row[OUT_COLUMNS])
    if window == 1:
        tiles, passes = groups * ceil_div(kernels // groups, machine.rows), ceil_div(depth, WINDOW * machine.columns)
    elif depth == 1 and groups == kernels:
        tiles = ceil_div(kernels, machine.rows * (machine.columns if machine.depthwise else 1))
        passes = ceil_div(window, WINDOW)
    else:
        tiles = groups * ceil_div(kernels // groups, machine.rows)
        passes = ceil_div(depth, machine.columns) * ceil_div(window, WINDOW)
    return tiles * (passes * pixels + _depth(machine))


def _depth(machine: Machine) -> int:
    # adder tree of the engine, adder tree over the columns, multiplier and output register
    return math.ceil(math.log2(WINDOW)) + math.ceil(math.log2(max(2, machine.columns))) + 2


def _weight_stationary(row: Ints, machine: Machine) -> int:
    """Return SCALE-Sim's compute cycles: F (2 rows + columns + T - 2) - 1, one group after the other."""
    groups, pixels = int(row[GROUPS]), int(row[OUT_ROWS] * row[OUT_COLUMNS])
    folds = ceil_div(_span(row), machine.rows) * ceil_div(int(row[KERNELS]) // groups, machine.columns)
    fill = 2 * machine.rows + machine.columns - 2
    one = folds * pixels + fill if machine.overlapped else folds * (fill + pixels)
    return groups * (one - 1)


def _output_stationary(row: Ints, machine: Machine) -> int:
    """Return SCALE-Sim's compute cycles: F (rows + columns + R S C - 2) - 1, one group after the other."""
    groups, pixels = int(row[GROUPS]), int(row[OUT_ROWS] * row[OUT_COLUMNS])
    folds = ceil_div(pixels, machine.rows) * ceil_div(int(row[KERNELS]) // groups, machine.columns)
    fill = machine.rows + machine.columns - 2
    one = folds * _span(row) + fill if machine.overlapped else folds * (fill + _span(row))
    return groups * (one - 1)


def _span(row: Ints) -> int:
    return int(row[ROWS] * row[COLUMNS] * row[DEPTH])


def _row_stationary(row: Ints, machine: Machine) -> int:
    """Return our own count: a set of R x P engines slides one row of the kernel along one row of the map."""
    high, out = int(row[ROWS]), int(row[OUT_ROWS])
    sets = max(1, machine.rows // high) * max(1, machine.columns // out)
    strips = ceil_div(high, machine.rows) * ceil_div(out, machine.columns)
    planes = int(row[KERNELS] * row[DEPTH])
    return ceil_div(planes, sets) * strips * int(row[OUT_COLUMNS] * row[COLUMNS])


def _pixel_channel(row: Ints, machine: Machine) -> int:
    """Return our own count for 8 pixels x 16 input x 16 output channels at a time."""
    pixels, window = int(row[OUT_ROWS] * row[OUT_COLUMNS]), int(row[ROWS] * row[COLUMNS])
    groups, depth = int(row[GROUPS]), int(row[DEPTH])
    kernels = int(row[KERNELS]) // groups
    if depth == 1 and kernels == 1:
        return ceil_div(pixels, 8) * ceil_div(groups, machine.rows) * window
    return groups * ceil_div(pixels, 8) * ceil_div(depth, machine.rows) * ceil_div(kernels, machine.columns) * window
