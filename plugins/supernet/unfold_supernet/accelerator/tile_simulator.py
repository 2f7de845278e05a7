"""The accelerator tile by tile: a transfer engine that prefetches as far as its buffer allows, and a compute engine.

With ``deep`` prefetch, transfers run ahead through as many layers as fit the dynamic buffer. Without it, they run ahead
to the first tile of the next layer, which is what the closed form in ``cost_model`` describes.
"""

from __future__ import annotations

import math

import numpy as np

from unfold_supernet._types import FloatArray, IntArray
from unfold_supernet.accelerator.cost_model import SubnetWork, count_missing_bytes
from unfold_supernet.accelerator.hardware import Accelerator
from unfoldkit.jit import compiled


def simulate_latency(
    work: SubnetWork, cached: IntArray, machine: Accelerator, *, deep: bool, dynamic_bytes: int | None = None
) -> float:
    """Simulate the latency of a subnet in seconds; ``dynamic_bytes`` replaces the machine's dynamic buffer."""
    capacity = machine.dynamic_bytes if dynamic_bytes is None else dynamic_bytes
    load = (count_missing_bytes(work, cached) + work.activations).astype(np.float64)
    total = work.uncached_bytes.astype(np.float64)
    tile = float(machine.tile_bytes)
    return float(simulate_tiles(work.compute_s, load, total, tile, machine.bandwidth, float(capacity), deep))


def sum_tile_times(work: SubnetWork, cached: IntArray, machine: Accelerator) -> float:
    """Sum over layers the time to transfer and compute one tile: the allowed difference to the closed form.

    When the buffer is full, the next transfer waits for a computation as well.
    """
    load = count_missing_bytes(work, cached) + work.activations
    tile = np.minimum(load, machine.tile_bytes)
    tile_compute = work.compute_s * tile / np.maximum(1, load)
    return float((tile / machine.bandwidth + tile_compute).sum())


def simulate_tiles_reference(
    compute: FloatArray, load: FloatArray, total: FloatArray, tile: float, bandwidth: float, capacity: float, deep: bool
) -> float:
    """Compute when the final layer ends; the reference implementation of :func:`simulate_tiles`.

    Args:
        compute: Seconds of computation, by layer.
        load: Bytes to transfer, by layer.
        total: Bytes of the layer in all; the cached remainder is computed first.
        tile: Bytes of one transfer.
        bandwidth: Bytes per second.
        capacity: Bytes that fit on chip; a tile's bytes are released when its computation ends.
        deep: Whether transfers run ahead through layers.
    """
    count = 0
    for layer in range(load.size):
        count += math.ceil(load[layer] / tile)
    ends, sizes = np.empty(count), np.empty(count)
    oldest = newest = 0
    engine = clock = previous_start = in_buffer = 0.0
    for layer in range(load.size):
        start_layer, remaining = clock, load[layer]
        missing_fraction = remaining / total[layer] if remaining > 0 else 0.0
        clock += compute[layer] * (1.0 - missing_fraction)
        is_first_tile = True
        while remaining > 0:
            size = min(tile, remaining)
            start = engine
            while in_buffer + size > capacity:
                start = max(start, ends[oldest])
                in_buffer -= sizes[oldest]
                oldest += 1
            if not deep:
                start = max(start, previous_start if is_first_tile else start_layer)
            engine = start + size / bandwidth
            clock = max(clock, engine) + compute[layer] * missing_fraction * (size / load[layer])
            ends[newest], sizes[newest] = clock, size
            newest += 1
            in_buffer += size
            remaining -= size
            is_first_tile = False
        previous_start = start_layer
    return clock


simulate_tiles = compiled(simulate_tiles_reference)
"""Compiled :func:`simulate_tiles_reference`."""
