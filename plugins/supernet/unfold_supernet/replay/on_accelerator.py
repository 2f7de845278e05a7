"""The nets of a run as a simulated chip would answer: latency and energy by batch, and what its buffer keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_supernet.accelerator import cost_model
from unfold_supernet.accelerator.hardware import Machine
from unfold_supernet.accelerator.layers import Net
from unfold_supernet.arrays import Ints
from unfold_supernet.scheduling import escalation
from unfold_supernet.scheduling.policies import Served
from unfold_supernet.scheduling.simulator import Played
from unfold_supernet.schema.models import AcceleratorSpec, SupernetSpec
from unfold_supernet.study import sweep
from unfold_supernet.study.plan import decision, family_of, machine_of
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
    setting = sweep.setting(family, machine)
    graph = setting.kept.graph
    by_name = {one.name: one for one in family.nets}
    alone = {name: _served(one, graph, machine) for name, one in by_name.items()}
    joules = {(name, size): spent for name, (_, found) in alone.items() for size, spent in found.items()}
    made = []
    for net in nets:
        first, then = alone[escalation.first(net)], alone.get(net.then or "")
        if then is None:
            made.append(first[0])
            continue
        made.append(escalation.timed(net, first[0], then[0]))
        for size in BATCHES:
            joules[net.name, size] = first[1][size] + net.unsure * then[1][size]
    held = dict(decision(family, setting, spec.queries))
    largest = max(int(one.weights.sum()) for one in family.nets) * machine.weight
    about = f"{held['bytes']:,} bytes of {largest:,} kept by {machine.name}"
    return Chip(tuple(made), joules, largest / machine.bandwidth, held, about)


def _served(one: Net, graph: Ints, machine: Machine) -> tuple[Served, dict[int, float]]:
    """Return a net with its seconds by batch, and its joules by batch."""
    works = {size: cost_model.work(one, machine, size) for size in BATCHES}
    seconds = tuple((size, cost_model.seconds(item, graph, machine)) for size, item in works.items())
    joules = {size: cost_model.joules(item, graph, machine, size) for size, item in works.items()}
    return Served(one.name, one.accuracy, seconds), joules
