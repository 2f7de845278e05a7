"""Why a task waits: which name is missing, where, since when, and who would put it there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from unfold_placement.core import kernel
from unfold_placement.core.controller import Controller
from unfold_placement.core.types import ANYWHERE, Ask, Resource, Task

SHOWN = 4


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that a task needs: ``where`` it could have it, where it is ``missing``, ``since`` (s), put ``by``."""

    need: str
    where: str
    missing: str
    since: float | None
    by: str


@dataclass(slots=True)
class History:
    """The time of the last change of every name, kept by watching a book."""

    last: dict[str, float] = field(default_factory=dict)
    loops: list[Controller] = field(default_factory=list)

    def __call__(self, _change: str, item: Resource) -> None:
        """Note a change."""
        self.last[item.name] = self.loops[0].book.now


def watched(loop: Controller) -> History:
    """Return the history of a loop's names from now on."""
    history = History(loops=[loop])
    loop.book.watch(history)
    return history


def explain(loop: Controller, task: Task, history: History) -> list[Reason]:
    """Return a line for the task's own demand and one for each name that it asks for."""
    a, book = loop.book.arena, loop.book
    row = book.index[task.name]
    room = [n.name for place, n in enumerate(book.nodes) if kernel.roomy(a.need, a.free, row, place)]
    every = [node.name for node in book.nodes]
    own = " + ".join(f"{amount / 1000:g} {kind}" for kind, amount in task.demand.items()) or "nothing"
    lines = [
        Reason(own, some(room, len(every)), some([n for n in every if n not in set(room)], len(every)), None, "task")
    ]
    for policy in loop.policies:
        lines += [_ask(loop, ask, task, type(policy).__name__, history) for ask in policy.request(task)]
    return lines


def _ask(loop: Controller, ask: Ask, task: Task, by: str, history: History) -> Reason:
    book = loop.book
    places = book.entries.get(ask.name, {})
    since = history.last.get(ask.name, task.arrival)
    if ANYWHERE in places or not places:
        left = places[ANYWHERE].amount - book.held(ask.name) if ANYWHERE in places else 0
        enough = left >= ask.amount
        where, missing = ("everywhere", "") if enough else ("", f"everywhere ({left} left)" if places else "everywhere")
        return Reason(ask.name, where, missing, None if enough else since, by)
    there = [node for node, item in places.items() if item.amount - book.held(ask.name, node) >= ask.amount]
    rest = [node.name for node in book.nodes if node.name not in set(there)]
    count = len(book.nodes)
    return Reason(ask.name, some(there, count), some(rest, count), since if rest else None, by)


def some(names: Sequence[str], of: int) -> str:
    """Return a few of many names."""
    if len(names) == of:
        return f"all {of} nodes" if of > 1 else names[0]
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
