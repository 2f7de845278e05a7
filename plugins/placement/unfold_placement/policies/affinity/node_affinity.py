"""Placement by properties of nodes: node types, and data locality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.cluster_view import View
from unfold_placement.core.types import (
    JOINED,
    MANY,
    PREEMPTED,
    STATIC,
    SUBMITTED,
    TIMER,
    Ask,
    Event,
    Node,
    Put,
    Task,
    Transactions,
    Wake,
)


@dataclass(slots=True)
class Types:
    """A task with ``types`` runs only on nodes of these types, such as a kind of GPU.

    Attributes:
        label: Node label that holds the type.
        types_by_mark: Node types of each mark.
    """

    label: str = "type"
    types_by_mark: dict[str, tuple[str, ...]] = field(default_factory=dict)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED, JOINED})

    def request(self, task: Task) -> Iterable[Ask]:
        """Request a node of one of the task's types."""
        return [Ask(self._mark(task))] if task.types else []

    def react(self, event: Event, view: View) -> Transactions:
        """Mark the nodes of a set of types when its first task is submitted, and matching nodes that join."""
        task = event.task
        if event.kind == JOINED:
            yield self._mark_nodes(self.types_by_mark, [node for node in view.nodes if node.name == event.node])
        elif task is not None and task.types and self._mark(task) not in self.types_by_mark:
            self.types_by_mark[self._mark(task)] = task.types
            yield self._mark_nodes({self._mark(task): task.types}, view.nodes)

    def _mark_nodes(self, marks: Mapping[str, tuple[str, ...]], nodes: Sequence[Node]) -> list[Put]:
        node_types = {node.name: node.labels.get(self.label) for node in nodes}
        return [
            Put(mark, node, MANY)
            for mark, types in marks.items()
            for node, node_type in node_types.items()
            if node_type in types
        ]

    def _mark(self, task: Task) -> str:
        return f"{self.label}-{'-or-'.join(task.types)}"


@dataclass(slots=True)
class Locality:
    """A task runs where its data is, later in the same rack, later anywhere.

    This is delay scheduling (Zaharia et al., EuroSys 2010).

    Attributes:
        rack_after: Seconds after which a node of the same rack suffices; infinity means never.
        any_after: Seconds after which any node suffices; infinity means never.
        waiting_since: Waiting tasks by name, with the time (s) since which they wait.
        choices: Which delays have passed of each waiting task, as of its last marks.
    """

    rack_after: float = 10.0
    any_after: float = 30.0
    waiting_since: dict[str, tuple[Task, float]] = field(default_factory=dict)
    choices: dict[str, tuple[bool, bool]] = field(default_factory=dict)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED, PREEMPTED, TIMER, JOINED})

    def request(self, task: Task) -> Iterable[Ask]:
        """Request a node that is near enough to the task's data."""
        return [Ask(f"local-{task.name}", gated=True)] if task.data else []

    def react(self, event: Event, view: View) -> Transactions:
        """Mark the nodes with the task's data at first, and wider choices when timers fire or nodes join."""
        task = event.task
        if task is not None and task.data:
            self.waiting_since[task.name] = task, view.now
            delays_s = [delay for delay in (self.rack_after, self.any_after) if delay < float("inf")]
            yield [*self._mark_near(task, view.now, view), *(Wake(view.now + delay) for delay in delays_s)]
        for name, (waiting, since_s) in list(self.waiting_since.items()):
            if not view.is_waiting(waiting):
                del self.waiting_since[name], self.choices[name]
            elif event.kind == JOINED or (event.kind == TIMER and self.choices[name] != self._choose(since_s, view)):
                yield self._mark_near(waiting, since_s, view)

    def _choose(self, since_s: float, view: View) -> tuple[bool, bool]:
        """Return whether a node of the same rack suffices by now, and whether any node does."""
        waited_s = view.now - since_s
        return waited_s >= self.rack_after, waited_s >= self.any_after

    def _mark_near(self, task: Task, since_s: float, view: View) -> list[Put]:
        """Mark every node that is near enough for a task that has waited since a time (s)."""
        rack, anywhere = self.choices[task.name] = self._choose(since_s, view)
        holders = {node.name: node for node in view.nodes if node.data.intersection(task.data)}
        racks = {node.labels.get("rack") for node in holders.values()} if rack else set()
        nodes = [
            node.name for node in view.nodes if anywhere or node.name in holders or node.labels.get("rack") in racks
        ]
        return view.puts(f"local-{task.name}", 1, nodes, until=task.name)
