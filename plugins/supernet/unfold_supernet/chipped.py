"""The nets of a run as a simulated chip would answer: latency and energy by batch, and what its buffer keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_supernet.arrays import Ints
from unfold_supernet.chip import model, study
from unfold_supernet.chip.layers import Net
from unfold_supernet.chip.machine import Machine
from unfold_supernet.serving import pairs
from unfold_supernet.serving.play import Played
from unfold_supernet.serving.policies import Served
from unfold_supernet.simulated import decision, family_of, machine_of
from unfold_supernet.spec import AcceleratorSpec, SupernetSpec
from unfoldkit.api import Run

BATCHES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Chip:
    """Nets with the chip's latencies, joules by net and batch, seconds to load the largest net, and what is kept."""

    nets: tuple[Served, ...]
    joules: Mapping[tuple[str, int], float]
    swap: float
    held: Mapping[str, Any]
    about: str

    def millijoules(self, played: Played) -> float:
        """Return the mean energy of an answered request, in mJ; between the batch sizes by a straight line."""
        total, sizes = 0.0, np.array(BATCHES, np.float64)
        for at, net in enumerate(self.nets):
            batches = played.size[played.net == at]
            spent = np.array([self.joules[net.name, size] for size in BATCHES])
            total += float((np.interp(batches, sizes, spent) / np.maximum(1, batches)).sum())
        return total / max(1, int((played.net >= 0).sum())) * 1e3


def on_chip(spec: SupernetSpec, run: Run, nets: Sequence[Served]) -> Chip:
    """Return the nets of a run on the simulated accelerator, with the core of the family kept in its buffer."""
    machine = machine_of(spec.accelerator or AcceleratorSpec())
    family = family_of(spec, run)
    setting = study.setting(family, machine)
    graph = setting.kept.graph
    by_name = {one.name: one for one in family.nets}
    alone = {name: _served(one, graph, machine) for name, one in by_name.items()}
    joules = {(name, size): spent for name, (_, found) in alone.items() for size, spent in found.items()}
    made = []
    for net in nets:
        first, then = alone[pairs.first(net)], alone.get(net.then or "")
        if then is None:
            made.append(first[0])
            continue
        made.append(pairs.timed(net, first[0], then[0]))
        for size in BATCHES:
            joules[net.name, size] = first[1][size] + net.unsure * then[1][size]
    held = dict(decision(family, setting, spec.queries))
    largest = max(int(one.weights.sum()) for one in family.nets) * machine.weight
    about = f"{held['bytes']:,} bytes of {largest:,} kept by {machine.name}"
    return Chip(tuple(made), joules, largest / machine.bandwidth, held, about)


def _served(one: Net, graph: Ints, machine: Machine) -> tuple[Served, dict[int, float]]:
    """Return a net with its seconds by batch, and its joules by batch."""
    works = {size: model.work(one, machine, size) for size in BATCHES}
    seconds = tuple((size, model.seconds(item, graph, machine)) for size, item in works.items())
    joules = {size: model.joules(item, graph, machine, size) for size, item in works.items()}
    return Served(one.name, one.accuracy, seconds), joules
