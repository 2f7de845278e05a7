"""How a fresh loop takes over a running cluster: what happened is told to its policies again, at its times."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from unfold_placement.core import kernel
from unfold_placement.core.controller import Controller, collect_requests
from unfold_placement.core.types import Task
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Record
from unfoldkit.api import UnfoldError

Happening = tuple[float, int, Record]
COMES, STARTS, ENDS = range(3)


def adopt_cluster(loop: Controller, records: Sequence[Record], now: float) -> dict[str, str]:
    """Bring a loop to where the cluster is without starting anything; return the tasks that it cannot take, and why.

    Policies see every task that is remembered come, start where it did, and end; so what they keep in mind (turns,
    shares, stages) is there again. What they would decide otherwise by now never moves a task that runs. Those that
    wait come last, now, when it is known what is free: only then is anything decided.
    """
    loop.starts_tasks = False
    loop.table.state.clock[0] = 0.0
    loop.begin()
    refused: dict[str, str] = {}
    past = [record for record in records if record.state != kinds.WAITING]
    for time, batch in groupby(sorted(_happenings(past), key=lambda item: item[:2]), key=lambda item: item[0]):
        _forward(loop, time)
        for _, what, record in batch:
            if record.task.name not in refused:
                refused.update(_tell(loop, what, record))
        loop.process_events()
    _hold(loop, [record for record in records if record.state == kinds.RUNNING])
    _forward(loop, now)
    loop.starts_tasks = True
    for record in records:
        if record.state == kinds.WAITING:
            refused.update(_tell(loop, COMES, record))
    return refused


def submit_task(loop: Controller, task: Task) -> None:
    """Put a task into a loop's queue.

    Raises:
        UnfoldError: it asks for what no node has, or for too many names.
    """
    loop.table.add_tasks([task], [collect_requests(loop.policies, task)])
    loop.reserve_log()
    row = loop.table.task_rows[task.name]
    kernel.enqueue(loop.table.state, row)
    kernel.log_event(loop.table.state, kernel.LOG_SUBMITTED, row, -1)


def resume_task(loop: Controller, task: str, node: str) -> None:
    """Let a waiting task run on a node, whatever is there."""
    if node not in loop.table.node_rows:
        return
    loop.reserve_log()
    kernel.start_task(loop.table.state, loop.table.task_rows[task], loop.table.node_rows[node], False)
    loop.read_log()


def end_task(loop: Controller, task: str, *, done: bool = True) -> None:
    """Let a task end: one that runs frees what it holds, one that waits leaves the queue, ``done`` or taken back."""
    loop.reserve_log()
    a, row = loop.table.state, loop.table.task_rows[task]
    if a.status[row] == kernel.RUNNING:
        kernel.finish_task(a, row, kernel.LOG_ENDED)
    elif a.status[row] == kernel.WAITING:
        loop.remove_waiting(row)
        loop.view.remove_member(loop.table.tasks[row], has_finished=done)


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
            submit_task(loop, record.task)
        except UnfoldError as error:
            return {name: error.diagnostics[0].message}
        return {}
    loop.process_events()
    if what == ENDS:
        end_task(loop, name, done=record.state == kinds.DONE)
    elif loop.view.is_waiting(record.task):
        resume_task(loop, name, record.node)
    return {}


def _forward(loop: Controller, time: float) -> None:
    while loop.next_wakeup_s <= time:
        loop.table.state.clock[0] = max(loop.table.now, loop.next_wakeup_s)
        loop.fire_timers()
    loop.table.state.clock[0] = max(loop.table.now, time)


def _hold(loop: Controller, running: Sequence[Record]) -> None:
    for record in running:
        row = loop.table.task_rows.get(record.task.name)
        if row is not None and loop.table.state.status[row] != kernel.RUNNING:
            resume_task(loop, record.task.name, record.node)
    loop.process_events()
