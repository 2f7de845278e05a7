"""Time, traffic and energy of one net while a sub-graph is kept on chip: the closed form.

Each layer takes the longer of its computation and its transfers; the load of the first missing tile is exposed as far
as nothing is computed before it. Weights cross the interface once, as whole maps stay in the streaming buffer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfold_supernet.accelerator.batching import crossing, joined
from unfold_supernet.accelerator.hardware import Machine, cycles
from unfold_supernet.accelerator.layers import INPUT, KERNELS, Net, hits
from unfold_supernet.arrays import Floats, Ints


@dataclass(frozen=True, slots=True)
class Work:
    """What a net asks of a machine, layer by layer: seconds of computation, bytes of weights and of activations.

    ``activations`` are those bytes of maps that cross the memory interface: image, result, and maps that do not fit;
    ``weight`` the bytes of one weight; ``loads`` how many times what is missing of the weights is brought.
    """

    net: Net
    compute: Floats
    weights: Ints
    activations: Ints
    weight: int
    loads: Ints

    @property
    def whole(self) -> Ints:
        """Bytes that cross while nothing is kept."""
        return self.weights * self.loads + self.activations


def work(net: Net, machine: Machine, batch: int = 1) -> Work:
    """Return the work of ``batch`` inputs of a net that are sent together.

    They go through a layer together, its weights being loaded once, where that saves more than their maps cost.
    """
    there, weights = np.flatnonzero(net.table[:, KERNELS]), net.weights * machine.weight
    inputs, outputs = net.table[:, INPUT] * machine.value, net.outputs * machine.value
    loads, activations = np.ones_like(weights), np.zeros_like(weights)
    rows = weights[there], inputs[there], outputs[there]
    together = joined(*rows, batch, machine.streaming)
    loads[there] = np.where(together, 1, batch)
    before, after = (together | np.roll(together, by) for by in (1, -1))
    read, written = (
        crossing(maps, way, batch, machine.streaming) for maps, way in ((rows[1], before), (rows[2], after))
    )
    # image and result cross in any case
    read[0], written[-1] = rows[1][0] * batch, rows[2][-1] * batch
    activations[there] = read + written
    seconds = cycles(net, machine) / machine.clock * batch
    return Work(net, seconds, weights, activations, machine.weight, loads)


def missing(item: Work, cached: Ints) -> Ints:
    """Return the bytes of weights of each layer that are brought as they are not in ``cached``."""
    return (item.weights - hits(item.net.graph, cached) * item.weight) * item.loads


def seconds(item: Work, cached: Ints, machine: Machine) -> float:
    """Return the time of a net in seconds, with prefetch within the layer only.

    What is on chip is computed first, meanwhile no more is brought than the dynamic buffer holds.
    """
    bytes_ = missing(item, cached) + item.activations
    held = item.compute * (1.0 - bytes_ / np.maximum(1, item.whole))
    crowded = held + np.maximum(0, bytes_ - machine.dynamic) / machine.bandwidth
    each = np.maximum(np.maximum(item.compute, bytes_ / machine.bandwidth), crowded)
    return float(each.sum()) + exposed(item, cached, machine)


def exposed(item: Work, cached: Ints, machine: Machine) -> float:
    """Return the seconds for which the first missing tile is waited for with nothing to compute."""
    bytes_ = missing(item, cached) + item.activations
    first = int(np.argmax(bytes_ > 0))
    tile = min(int(bytes_[first]), machine.tile)
    return max(0.0, tile / machine.bandwidth - float(item.compute[:first].sum()))


def traffic(item: Work, cached: Ints) -> int:
    """Return the bytes that cross the memory interface."""
    return int(missing(item, cached).sum() + item.activations.sum())


def off_chip_joules(item: Work, cached: Ints, machine: Machine) -> float:
    """Return the energy of the traffic."""
    return traffic(item, cached) * machine.energy.off_chip * 1e-12


def joules(item: Work, cached: Ints, machine: Machine, batch: int = 1) -> float:
    """Return the energy of traffic, of arithmetic, and of reading weights and maps on chip once a layer."""
    maps = int(item.net.table[:, INPUT].sum() + item.net.outputs.sum()) * machine.value * batch
    inside = (int((item.weights * item.loads).sum()) + maps) * machine.energy.on_chip
    arithmetic = int(item.net.macs.sum()) * batch * machine.energy.mac
    return off_chip_joules(item, cached, machine) + (inside + arithmetic) * 1e-12
