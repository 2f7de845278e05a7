"""Accelerators: arrays of multipliers with buffers, memory, energy and clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

KIB = 1024


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
