"""The actuator: carries a controller's decisions out on a backend, in order and unit by unit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from unfold_placement.core.controller import Controller, collect_requests
from unfold_placement.core.types import ANYWHERE, CLUSTER_RULE, EphemeralResource, Task
from unfold_placement.live.backend import Backend, Start
from unfold_placement.live.state_store import ResourceKey
from unfoldkit.api import UnfoldError


@dataclass(slots=True)
class Actuator:
    """Collects decisions and carries them out at ``flush``.

    A resource bound to one task is not created on the cluster: the task's scheduling gate and node pin represent it.

    Attributes:
        backend: The cluster.
        controller: The controller that makes the decisions.
        owner: Owner of the resources on the cluster.
        lease_s: Lease of these resources in seconds.
        owned: The owner's resources on the cluster.
        attempts: Number of starts of each task.
        gated: Tasks that the backend itself has stopped.
        actions: Decisions that are not carried out yet.
        starting: Starts of incomplete units.
    """

    backend: Backend
    controller: Controller
    owner: str
    lease_s: float
    owned: dict[ResourceKey, EphemeralResource] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    actions: list[Callable[[], object]] = field(default_factory=list)
    starting: dict[str, list[Start]] = field(default_factory=dict)

    def put(self, name: str, node: str, amount: int) -> None:
        """Create a resource or set its amount."""
        if not self.controller.table.entries[name][node].until and not name.startswith(CLUSTER_RULE):
            self.actions.append(partial(self._write, name, node, amount))

    def drop(self, name: str, node: str) -> None:
        """Delete a resource."""
        if not name.startswith(CLUSTER_RULE):
            self.actions.append(partial(self._delete, (name, node)))

    def start(self, task: Task, node: str) -> None:
        """Start a task; the tasks of a gang start together with its last one."""
        view = self.controller.view
        key = task.key(view.gang_key) or task.name
        unit = self.starting.setdefault(key, [])
        asks = tuple(ask for ask, _ in collect_requests(self.controller.policies, task))
        unit.append(Start(task.name, node, asks))
        self.attempts[task.name] = self.attempts.get(task.name, 0) + 1
        if len(unit) >= len(view.members.get(key, unit)):
            self.actions.append(partial(self.backend.start, self.starting.pop(key)))

    def stop(self, task: Task) -> None:
        """Preempt a task, unless the backend has stopped it itself."""
        if task.name in self.gated:
            self.gated.discard(task.name)
        else:
            self.actions.append(partial(self.backend.preempt, task.name))

    def refuse(self, task: Task, reason: str) -> None:
        """Reject a task for good."""
        self.actions.append(partial(self.backend.refuse, task.name, reason))

    def flush(self) -> None:
        """Carry out the collected decisions."""
        self.actions += [partial(self.backend.start, unit) for unit in self.starting.values()]
        actions, self.actions, self.starting = self.actions, [], {}
        for action in actions:
            action()

    def reconcile(self, existing: Sequence[EphemeralResource], nodes: Iterable[str]) -> None:
        """Make the owner's resources on the cluster equal to those of the controller.

        Args:
            existing: All resources on the cluster.
            nodes: Names of its nodes.
        """
        self.owned = {(entry.name, entry.node): entry for entry in existing if entry.owner == self.owner}
        entries = [entry for entry in self.controller.table.snapshot() if not entry.name.startswith(CLUSTER_RULE)]
        # a node that has left holds nothing
        places = {ANYWHERE, *nodes}
        desired = {(entry.name, entry.node): entry for entry in entries if not entry.until and entry.node in places}
        for key in [key for key in self.owned if key not in desired]:
            self._delete(key)
        for key, entry in desired.items():
            if key not in self.owned or self.owned[key].amount != entry.amount:
                self._write(*key, entry.amount)

    def _write(self, name: str, node: str, amount: int) -> None:
        current = self.owned.get((name, node))
        try:
            if current is not None:
                written = self.backend.resize(name, node, amount, epoch=current.epoch)
            else:
                written = self.backend.create(name, node, amount, owner=self.owner, ttl=self.lease_s)
        except UnfoldError:
            if not self._has_left(node):
                raise
            self.owned.pop((name, node), None)
        else:
            self.owned[name, node] = written

    def _delete(self, key: ResourceKey) -> None:
        current = self.owned.pop(key, None)
        if current is None:
            return
        try:
            self.backend.delete(*key, epoch=current.epoch)
        except UnfoldError:
            if not self._has_left(key[1]):
                raise

    def _has_left(self, node: str) -> bool:
        """Return whether a node has left, with its resources, after the decision that is being carried out.

        The rest of that decision stands; the controller takes back its part for the node once it processes the change.
        """
        return node != ANYWHERE and not self.backend.has_node(node)
