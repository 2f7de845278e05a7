"""Node selection: a task with ``types`` runs only on nodes of these types, such as a kind of GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.types import JOINED, MANY, STATIC, SUBMITTED, Ask, Event, Node, Put, Task, Transactions
from unfold_placement.core.view import View


@dataclass(slots=True)
class Types:
    """Marks the nodes of each requested set of types.

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
