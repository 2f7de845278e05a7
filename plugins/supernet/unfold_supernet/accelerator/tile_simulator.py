"""The same machine, tile by tile: a transfer engine that runs ahead as far as its buffer allows, and a compute engine.

With ``deep`` the transfers run ahead through as many layers as fit the dynamic buffer; without, no further than the
first tile of the next layer, which is what the closed form describes.
"""

from __future__ import annotations

import math

import numpy as np

from unfold_supernet.accelerator.cost_model import Work, missing
from unfold_supernet.accelerator.hardware import Machine
from unfold_supernet.arrays import Floats, Ints
from unfoldkit.jit import compiled


def seconds(item: Work, cached: Ints, machine: Machine, *, deep: bool, dynamic: int | None = None) -> float:
    """Return the time of a net in seconds; ``dynamic`` replaces the bytes of the dynamic buffer."""
    absent = missing(item, cached)
    room = machine.dynamic if dynamic is None else dynamic
    load = (absent + item.activations).astype(np.float64)
    whole = item.whole.astype(np.float64)
    return float(play(item.compute, load, whole, float(machine.tile), machine.bandwidth, float(room), deep))


def tile_seconds(item: Work, cached: Ints, machine: Machine) -> float:
    """Return the sum over layers of one tile's time, to bring it and to compute it: the allowed difference.

    Where the buffer is full, the next transfer waits for a computation as well.
    """
    load = missing(item, cached) + item.activations
    first = np.minimum(load, machine.tile)
    part = item.compute * first / np.maximum(1, load)
    return float((first / machine.bandwidth + part).sum())


def play_python(
    compute: Floats, load: Floats, whole: Floats, tile: float, bandwidth: float, room: float, deep: bool
) -> float:
    """Return when the last layer ends.

    ``load`` are bytes to bring of the ``whole`` bytes of each layer; the part that is there already is computed first.
    A tile's bytes are free again when its computation ends; ``room`` bytes may be on chip at a time.
    """
    count = 0
    for layer in range(load.size):
        count += math.ceil(load[layer] / tile)
    ends, held = np.empty(count), np.empty(count)
    oldest = newest = 0
    engine = clock = before = inside = 0.0
    for layer in range(load.size):
        began, left = clock, load[layer]
        share = left / whole[layer] if left > 0 else 0.0
        clock += compute[layer] * (1.0 - share)
        first = True
        while left > 0:
            size = min(tile, left)
            start = engine
            while inside + size > room:
                start = max(start, ends[oldest])
                inside -= held[oldest]
                oldest += 1
            if not deep:
                start = max(start, before if first else began)
            engine = start + size / bandwidth
            clock = max(clock, engine) + compute[layer] * share * (size / load[layer])
            ends[newest], held[newest] = clock, size
            newest += 1
            inside += size
            left -= size
            first = False
        before = began
    return clock


play = compiled(play_python)
"""Compiled :func:`play_python`."""
