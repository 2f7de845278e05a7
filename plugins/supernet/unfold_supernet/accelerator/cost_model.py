"""Latency, traffic and energy of a subnet while a subgraph is cached: the closed form.

Each layer takes the longer of its computation and its transfers. The load of the first missing tile is exposed as far
as no computation precedes it. Weights cross the interface once, because entire maps stay in the streaming buffer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfold_supernet._types import FloatArray, IntArray
from unfold_supernet.accelerator.batching import choose_joint_layers, count_crossing_bytes
from unfold_supernet.accelerator.hardware import Accelerator, count_cycles
from unfold_supernet.accelerator.layers import INPUT, KERNELS, SubnetLayers, count_hits


@dataclass(frozen=True, slots=True, kw_only=True)
class SubnetWork:
    """What a subnet demands of an accelerator, layer by layer.

    Attributes:
        subnet: The subnet.
        compute_s: Seconds of computation.
        weights: Bytes of weights.
        activations: Bytes of maps that cross the memory interface: input, result, and maps that do not fit on chip.
        weight_bytes: Bytes of one weight.
        loads: How often the missing weights are transferred.
    """

    subnet: SubnetLayers
    compute_s: FloatArray
    weights: IntArray
    activations: IntArray
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
    read = count_crossing_bytes(input_maps, joint_reads, batch, machine.streaming_bytes)
    written = count_crossing_bytes(output_maps, joint_writes, batch, machine.streaming_bytes)
    # input and result cross in any case
    read[0], written[-1] = input_maps[0] * batch, output_maps[-1] * batch
    activations[active] = read + written
    return SubnetWork(
        subnet=subnet,
        compute_s=count_cycles(subnet, machine) / machine.clock_hz * batch,
        weights=weights,
        activations=activations,
        weight_bytes=machine.weight_bytes,
        loads=loads,
    )


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
    """Estimate the energy in joules: traffic, arithmetic, and one on-chip read of weights and maps in each layer."""
    maps = int(work.subnet.table[:, INPUT].sum() + work.subnet.outputs.sum()) * machine.value_bytes * batch
    on_chip = (int((work.weights * work.loads).sum()) + maps) * machine.energy.on_chip
    arithmetic = int(work.subnet.macs.sum()) * batch * machine.energy.mac
    return estimate_traffic_energy(work, cached, machine) + (on_chip + arithmetic) * 1e-12
