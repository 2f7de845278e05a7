"""How a fresh loop takes over a running cluster: what happened is told to its policies again, at its times."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from unfold_placement.core import kernel
from unfold_placement.core.controller import Controller, requests
from unfold_placement.core.types import Task
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Record
from unfoldkit.api import UnfoldError

Happening = tuple[float, int, Record]
COMES, STARTS, ENDS = range(3)


def adopt(loop: Controller, records: Sequence[Record], now: float) -> dict[str, str]:
    """Bring a loop to where the cluster is without starting anything; return the tasks that it cannot take, and why.

    Policies see every task that is remembered come, start where it did, and end; so what they keep in mind (turns,
    shares, stages) is there again. What they would decide otherwise by now never moves a task that runs. Those that
    wait come last, now, when it is known what is free: only then is anything decided.
    """
    loop.matching = False
    loop.book.arena.clock[0] = 0.0
    loop.begin()
    refused: dict[str, str] = {}
    past = [record for record in records if record.state != kinds.WAITING]
    for time, batch in groupby(sorted(_happenings(past), key=lambda item: item[:2]), key=lambda item: item[0]):
        _forward(loop, time)
        for _, what, record in batch:
            if record.task.name not in refused:
                refused.update(_tell(loop, what, record))
        loop.pump()
    _hold(loop, [record for record in records if record.state == kinds.RUNNING])
    _forward(loop, now)
    loop.matching = True
    for record in records:
        if record.state == kinds.WAITING:
            refused.update(_tell(loop, COMES, record))
    return refused


def take(loop: Controller, task: Task) -> None:
    """Put a task into a loop's queue.

    Raises:
        UnfoldError: it asks for what no node has, or for too many names.
    """
    loop.book.add([task], [requests(loop.policies, task)])
    loop.room()
    row = loop.book.index[task.name]
    kernel.enqueue(loop.book.arena, row)
    kernel.note(loop.book.arena, kernel.K_SUBMITTED, row, -1)


def run(loop: Controller, task: str, node: str) -> None:
    """Let a waiting task run on a node, whatever is there."""
    if node not in loop.book.place:
        return
    loop.room()
    kernel.begin(loop.book.arena, loop.book.index[task], loop.book.place[node], False)
    loop.collect()


def end(loop: Controller, task: str, *, done: bool = True) -> None:
    """Let a task end: one that runs frees what it holds, one that waits leaves the queue, ``done`` or taken back."""
    loop.room()
    a, row = loop.book.arena, loop.book.index[task]
    if a.state[row] == kernel.RUNNING:
        kernel.finish(a, row, kernel.K_ENDED)
    elif a.state[row] == kernel.WAITING:
        loop.drop(row)
        loop.view.leave(loop.book.tasks[row], done=done)


def _happenings(records: Iterable[Record]) -> Iterator[Happening]:
    for record in records:
        yield record.task.arrival, COMES, record
        if math.isfinite(record.started):
            yield record.started, STARTS, record
        if math.isfinite(record.ended):
            yield record.ended, ENDS, record


def _tell(loop: Controller, what: int, record: Record) -> dict[str, str]:
    name = record.task.name
    if what == COMES:
        try:
            take(loop, record.task)
        except UnfoldError as error:
            return {name: error.diagnostics[0].message}
        return {}
    loop.pump()
    if what == ENDS:
        end(loop, name, done=record.state == kinds.DONE)
    elif loop.view.waits(record.task):
        run(loop, name, record.node)
    return {}


def _forward(loop: Controller, time: float) -> None:
    while loop.due <= time:
        loop.book.arena.clock[0] = max(loop.book.now, loop.due)
        loop.tick()
    loop.book.arena.clock[0] = max(loop.book.now, time)


def _hold(loop: Controller, running: Sequence[Record]) -> None:
    for record in running:
        row = loop.book.index.get(record.task.name)
        if row is not None and loop.book.arena.state[row] != kernel.RUNNING:
            run(loop, record.task.name, record.node)
    loop.pump()
