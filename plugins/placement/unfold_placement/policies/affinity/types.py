"""Node selection: a task runs only on nodes of the types that it names, such as a kind of GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.types import JOINED, MANY, STATIC, SUBMITTED, Ask, Event, Node, Put, Task, Transactions
from unfold_placement.core.view import View


@dataclass(slots=True)
class Types:
    """A task says on which it can run: ``types: [V100M16, T4]``; the node says what it is in its ``label``."""

    label: str = "type"
    known: dict[str, tuple[str, ...]] = field(default_factory=dict)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED, JOINED})

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for a node of one of the types."""
        return [Ask(self.name(task))] if task.types else []

    def react(self, event: Event, view: View) -> Transactions:
        """Put the name on every node of the types as its first task comes, and on every such node that comes later."""
        task = event.task
        if event.kind == JOINED:
            yield self.puts(self.known, [node for node in view.nodes if node.name == event.node])
        elif task is not None and task.types and self.name(task) not in self.known:
            self.known[self.name(task)] = task.types
            yield self.puts({self.name(task): task.types}, view.nodes)

    def puts(self, names: Mapping[str, tuple[str, ...]], nodes: Sequence[Node]) -> list[Put]:
        """Return each name on the nodes that are of one of its types."""
        of = {node.name: node.labels.get(self.label) for node in nodes}
        return [Put(name, node, MANY) for name, types in names.items() for node in of if of[node] in types]

    def name(self, task: Task) -> str:
        """Return the name that stands for the types of a task."""
        return f"{self.label}-{'-or-'.join(task.types)}"
