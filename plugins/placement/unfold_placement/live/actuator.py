"""What carries a loop's decisions out on a backend: in their order, tasks of a unit together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from unfold_placement.core.controller import Controller, collect_requests
from unfold_placement.core.types import EphemeralResource, Task
from unfold_placement.live.backend import Backend, Start

Key = tuple[str, str]


@dataclass(slots=True)
class Actuator:
    """Writes down what a loop decides, and does it at ``flush``.

    A name that lives as long as one task is nobody else's: the task's gate, and its node, stand for it on the cluster.

    ``mine`` are the owner's names that are there by now; ``attempts`` how often each task was started; ``gated`` the
    tasks that the backend itself has stopped.
    """

    backend: Backend
    controller: Controller
    owner: str
    lease: float
    owned: dict[Key, EphemeralResource] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    actions: list[Callable[[], object]] = field(default_factory=list)
    starting: dict[str, list[Start]] = field(default_factory=dict)

    def put(self, name: str, node: str, amount: int) -> None:
        """Make a name be there with this amount."""
        if not self.controller.table.entries[name][node].until:
            self.actions.append(partial(self._put, name, node, amount))

    def drop(self, name: str, node: str) -> None:
        """Make a name be gone."""
        self.actions.append(partial(self._drop, (name, node)))

    def start(self, task: Task, node: str) -> None:
        """Start a task; those of a gang at once, with the last of them."""
        view = self.controller.view
        key = task.key(view.gang_key) or task.name
        unit = self.starting.setdefault(key, [])
        unit.append(Start(task.name, node, tuple(ask for ask, _ in collect_requests(self.controller.policies, task))))
        self.attempts[task.name] = self.attempts.get(task.name, 0) + 1
        if len(unit) >= len(view.members.get(key, unit)):
            self.actions.append(partial(self.backend.start, self.starting.pop(key)))

    def stop(self, task: Task) -> None:
        """Preempt a task."""
        if task.name in self.gated:
            self.gated.discard(task.name)
        else:
            self.actions.append(partial(self.backend.preempt, task.name))

    def refuse(self, task: Task, reason: str) -> None:
        """Tell that a task never runs."""
        self.actions.append(partial(self.backend.refuse, task.name, reason))

    def flush(self) -> None:
        """Do what was decided."""
        self.actions += [partial(self.backend.start, unit) for unit in self.starting.values()]
        todo, self.actions, self.starting = self.actions, [], {}
        for action in todo:
            action()

    def reconcile(self, there: Sequence[EphemeralResource]) -> None:
        """Make the owner's names on the cluster be what the loop wants: drift, leaks and gaps are mended."""
        self.owned = {(item.name, item.node): item for item in there if item.owner == self.owner}
        needed = {(item.name, item.node): item for item in self.controller.table.snapshot() if not item.until}
        for key in [key for key in self.owned if key not in needed]:
            self._drop(key)
        for key, item in needed.items():
            if key not in self.owned or self.owned[key].amount != item.amount:
                self._put(*key, item.amount)

    def _put(self, name: str, node: str, amount: int) -> None:
        there = self.owned.get((name, node))
        if there is not None:
            made = self.backend.resize(name, node, amount, epoch=there.epoch)
        else:
            made = self.backend.create(name, node, amount, owner=self.owner, ttl=self.lease)
        self.owned[name, node] = made

    def _drop(self, key: Key) -> None:
        there = self.owned.pop(key, None)
        if there is not None:
            self.backend.delete(*key, epoch=there.epoch)


def build_actuator(
    backend: Backend, loop: Controller, owner: str, lease: float, attempts: Iterable[tuple[str, int]]
) -> Actuator:
    """Return the hands of a loop that has just adopted tasks, each with the number of its starts."""
    return Actuator(backend, loop, owner, lease, attempts=dict(attempts))
