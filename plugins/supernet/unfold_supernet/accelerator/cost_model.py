"""Cycles under each dataflow, latency, traffic and energy of a subnet while a subgraph is cached: the closed form.

Each layer takes the longer of its computation and its transfers. The load of the first missing tile is exposed as far
as no computation precedes it. Where the input map stays in the streaming buffer, weights cross the interface once.
Where it does not, the layer is tiled, and parts of its weights or its input cross again (:mod:`.tiling`).

Energy counts every access of the on-chip buffers: the dataflow decides how often a weight, an input value and a partial
sum are read (after the taxonomy of Eyeriss, Chen et al., ISCA 2016). Static power is drawn for the entire latency.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from unfold_supernet._types import FloatArray, IntArray
from unfold_supernet.accelerator.batching import choose_joint_layers, count_crossing_bytes
from unfold_supernet.accelerator.hardware import Accelerator
from unfold_supernet.accelerator.layers import (
    COLUMNS,
    DEPTH,
    GROUPS,
    INPUT,
    KERNELS,
    OUT_COLUMNS,
    OUT_ROWS,
    ROWS,
    SubnetLayers,
    count_hits,
)
from unfold_supernet.accelerator.tile_traffic import (
    SUM_BYTES,
    BufferSizes,
    TilePlan,
    describe_shape,
    measure_read_share,
    plan_tiles,
)

WINDOW = 9
"""Multipliers of a dot-product engine: one 3 x 3 window a cycle."""
PIXELS = 8
"""Pixels that a DPU computes at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubnetWork:
    """What a subnet demands of an accelerator, layer by layer.

    Attributes:
        subnet: The subnet.
        compute_s: Seconds of computation.
        weights: Bytes of weights.
        activations: Bytes of maps that cross the memory interface: input, result, maps that do not fit on chip, and
            what tiles read again.
        buffer_bytes: Bytes read from and written to on-chip buffers by the array.
        weight_bytes: Bytes of one weight.
        loads: How often the missing weights are transferred.
    """

    subnet: SubnetLayers
    compute_s: FloatArray
    weights: IntArray
    activations: IntArray
    buffer_bytes: IntArray
    weight_bytes: int
    loads: IntArray

    @property
    def uncached_bytes(self) -> IntArray:
        """Bytes that cross the interface with an empty cache."""
        return self.weights * self.loads + self.activations


def build_work(subnet: SubnetLayers, machine: Accelerator, batch: int = 1) -> SubnetWork:
    """Compute the work of a subnet for ``batch`` inputs that are sent together.

    Layers process the batch together, loading their weights once, where that saves more than their maps cost.
    """
    active, weights = np.flatnonzero(subnet.table[:, KERNELS]), subnet.weights * machine.weight_bytes
    inputs, outputs = subnet.table[:, INPUT] * machine.value_bytes, subnet.outputs * machine.value_bytes
    loads, activations = np.ones_like(weights), np.zeros_like(weights)
    input_maps, output_maps = inputs[active], outputs[active]
    joint = choose_joint_layers(weights[active], input_maps, output_maps, batch, machine.streaming_bytes)
    loads[active] = np.where(joint, 1, batch)
    # a map is shared by two layers: it counts for the batch if either is joint
    joint_reads, joint_writes = (joint | np.roll(joint, shift) for shift in (1, -1))
    read_shares = np.array([measure_read_share(describe_shape(row)) for row in subnet.table[active]])
    read = count_crossing_bytes(input_maps, joint_reads, batch, machine.streaming_bytes)
    written = count_crossing_bytes(output_maps, joint_writes, batch, machine.streaming_bytes)
    # input and result cross in any case
    read[0], written[-1] = input_maps[0] * batch, output_maps[-1] * batch
    activations[active] = np.rint(read * read_shares) + written
    for layer in active[input_maps > machine.streaming_bytes]:
        _tile_layer(subnet.table[layer], machine, batch, int(layer), loads, activations)
    return SubnetWork(
        subnet=subnet,
        compute_s=count_cycles(subnet, machine) / machine.clock_hz * batch,
        weights=weights,
        activations=activations,
        buffer_bytes=count_buffer_bytes(subnet, machine) * batch,
        weight_bytes=machine.weight_bytes,
        loads=loads,
    )


def _tile_layer(
    row: IntArray, machine: Accelerator, batch: int, layer: int, loads: IntArray, activations: IntArray
) -> None:
    """Add what crosses again in a layer if its input does not stay on chip; updates ``loads`` and ``activations``."""
    buffers = BufferSizes(machine.dynamic_bytes, machine.streaming_bytes, machine.weight_bytes, machine.value_bytes)
    shape, groups = describe_shape(row), int(row[GROUPS])
    input_bytes = int(row[INPUT]) * machine.value_bytes * measure_read_share(shape)
    sums_bytes = shape.kernels * shape.out[0] * shape.out[1] * machine.value_bytes

    def count_again(plan: TilePlan) -> int:
        return round((plan.input_reads - 1) * input_bytes) + (plan.output_bytes - sums_bytes) * groups

    single, joint = plan_tiles(shape, buffers), plan_tiles(shape, buffers, weights_stay=True)
    weights = single.weights * groups
    costs = {
        plan: (weights * count + count_again(plan) * batch, count)
        for plan, count in ((single, single.weight_loads * batch), (joint, joint.weight_loads))
    }
    # together only where the batch was to be processed together anyway
    plan = joint if loads[layer] < batch and costs[joint][0] < costs[single][0] else single
    loads[layer] = costs[plan][1]
    activations[layer] += count_again(plan) * batch


def count_missing_bytes(work: SubnetWork, cached: IntArray) -> IntArray:
    """Count the weight bytes of each layer that are transferred because they are not ``cached``."""
    return (work.weights - count_hits(work.subnet.graph, cached) * work.weight_bytes) * work.loads


def estimate_latency(work: SubnetWork, cached: IntArray, machine: Accelerator) -> float:
    """Estimate the latency of a subnet in seconds, with prefetch within a layer only.

    Cached weights are computed first; meanwhile, transfers are limited by the dynamic buffer.
    """
    transfer = count_missing_bytes(work, cached) + work.activations
    cached_s = work.compute_s * (1.0 - transfer / np.maximum(1, work.uncached_bytes))
    limited_s = cached_s + np.maximum(0, transfer - machine.dynamic_bytes) / machine.bandwidth
    layer_s = np.maximum(np.maximum(work.compute_s, transfer / machine.bandwidth), limited_s)
    return float(layer_s.sum()) + estimate_exposed_load(work, cached, machine)


def estimate_exposed_load(work: SubnetWork, cached: IntArray, machine: Accelerator) -> float:
    """Estimate the seconds in which the array waits for the first missing tile with nothing to compute."""
    transfer = count_missing_bytes(work, cached) + work.activations
    layer = int(np.argmax(transfer > 0))
    tile = min(int(transfer[layer]), machine.tile_bytes)
    return max(0.0, tile / machine.bandwidth - float(work.compute_s[:layer].sum()))


def count_traffic(work: SubnetWork, cached: IntArray) -> int:
    """Count the bytes that cross the memory interface."""
    return int(count_missing_bytes(work, cached).sum() + work.activations.sum())


def estimate_traffic_energy(work: SubnetWork, cached: IntArray, machine: Accelerator) -> float:
    """Estimate the energy of off-chip traffic, in joules."""
    return count_traffic(work, cached) * machine.energy.off_chip * 1e-12


def estimate_energy(work: SubnetWork, cached: IntArray, machine: Accelerator, batch: int = 1) -> float:
    """Estimate the energy in joules: traffic, arithmetic, on-chip accesses, and static power for the latency.

    What crosses the interface is written on chip once more.
    """
    on_chip = (int(work.buffer_bytes.sum()) + count_traffic(work, cached)) * machine.energy.on_chip
    arithmetic = int(work.subnet.macs.sum()) * batch * machine.energy.mac
    static = machine.energy.static_w * estimate_latency(work, cached, machine)
    return estimate_traffic_energy(work, cached, machine) + (on_chip + arithmetic) * 1e-12 + static


def count_buffer_bytes(subnet: SubnetLayers, machine: Accelerator) -> IntArray:
    """Count the bytes that the array reads from and writes to on-chip buffers in each layer, for one input."""
    rows = [_count_accesses(row, machine) if row[KERNELS] else (0, 0, 0) for row in subnet.table]
    weights, values, sums = np.array(rows, np.int64).reshape(-1, 3).T
    accesses: IntArray = weights * machine.weight_bytes + values * machine.value_bytes + sums * SUM_BYTES
    return accesses


def _count_accesses(row: IntArray, machine: Accelerator) -> tuple[int, int, int]:
    """Count accesses to weights, input values and partial sums in a layer.

    A sum that is continued in a later pass is read and written once more. The order of the passes is ours: no source
    states it for these engines.
    """
    kernels, depth, groups = int(row[KERNELS]), int(row[DEPTH]), int(row[GROUPS])
    window, pixels = int(row[ROWS] * row[COLUMNS]), int(row[OUT_ROWS] * row[OUT_COLUMNS])
    in_group, weights = kernels // groups, kernels * depth * window
    outputs, unrolled = kernels * pixels, pixels * window * depth * groups
    if machine.dataflow == "dot-product":
        # line buffers form the windows: a value is read once for each block of kernels
        lanes = machine.columns * (WINDOW if window == 1 else 1)
        passes = divide_up(depth, lanes) * (1 if window == 1 else divide_up(window, WINDOW))
        blocks = divide_up(in_group, machine.rows)
        return weights, int(row[INPUT]) * blocks, outputs * (2 * passes - 1)
    if machine.dataflow == "weight-stationary":
        passes = divide_up(window * depth, machine.rows)
        return weights, unrolled * divide_up(in_group, machine.columns), outputs * (2 * passes - 1)
    if machine.dataflow == "row-stationary":
        strips = divide_up(int(row[OUT_ROWS]), machine.columns)
        sets = max(1, machine.rows // int(row[ROWS])) * max(1, machine.columns // int(row[OUT_ROWS]))
        return weights * strips, int(row[INPUT]) * divide_up(in_group, sets), outputs * (2 * depth - 1)
    # output-stationary, and a DPU's pixels x channels: sums stay in the array
    rows = machine.rows if machine.dataflow == "output-stationary" else PIXELS
    return weights * divide_up(pixels, rows), unrolled * divide_up(in_group, machine.columns), outputs


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


def count_multipliers(machine: Accelerator) -> int:
    """Count the products that the array computes in a cycle at most."""
    width = {"dot-product": WINDOW, "pixel-channel": PIXELS}.get(machine.dataflow, 1)
    return machine.rows * machine.columns * width


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
