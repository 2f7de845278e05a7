"""Heterogeneity-aware placement with a look ahead (after TetriSched: Tumanov et al., EuroSys 2016), greedily."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from unfold_placement.facts import CREATED, PACK, QUIET, Ask, Event, Ops, Put, Task
from unfold_placement.view import View


@dataclass(slots=True)
class Value:
    """A task starts where it would end first; it waits for a faster node where that ends sooner, ``ahead`` at most."""

    ahead: float = 3600.0
    phase: ClassVar[int] = PACK
    watches: ClassVar[frozenset[str]] = frozenset({CREATED, QUIET})

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for the node that is chosen."""
        return [Ask(f"plan-{task.name}", gated=True)]

    def react(self, event: Event, view: View) -> Ops:
        """For each task in its turn, compare the ends of starting now and of waiting for a faster node."""
        del event
        promised: dict[str, float] = {}
        for task in list(view.waiting()):
            if not view.ready((task,), PACK):
                continue
            now = {name: view.now + task.seconds(view.node(name)) for name in view.fits(task, PACK)}
            later = {
                node.name: max(view.free_at(node.name, task), promised.get(node.name, 0.0)) + task.seconds(node)
                for node in view.nodes
                if node.name not in now
            }
            soon, late = min(now, key=now.__getitem__, default=""), min(later, key=later.__getitem__, default="")
            waits = later[late] - task.seconds(view.node(late)) - view.now <= self.ahead if late else False
            if soon and not (waits and later[late] < now[soon]):
                yield [Put(f"plan-{task.name}", soon, until=task.name)]
            elif late:
                promised[late] = later[late]
