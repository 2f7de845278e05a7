"""How a new controller takes over a running cluster: its policies receive the recorded history again."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from unfold_placement.core import kernel
from unfold_placement.core.controller import Controller, collect_requests
from unfold_placement.core.types import Node, Task
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Record, Snapshot
from unfoldkit.api import UnfoldError

PastEvent = tuple[float, int, Record]
"""Time (s), one of the codes below, and the record."""
SUBMISSION, START, END = range(3)
DEPARTED = Node("(departed nodes)", {})
"""Stands, closed, for the nodes that have left and on which recorded tasks ended: an adoption replays them there."""
MAX_REPLAYED_WAKES = 10_000
"""Timers that an adoption replays one by one: of a policy that wakes for ever, those of months would take hours."""


@dataclass(slots=True)
class WakeBudget:
    """How many timers may still be replayed one by one."""

    left: int


def adopt_cluster(controller: Controller, records: Sequence[Record], now: float) -> dict[str, str]:
    """Bring a new controller to the state of a cluster without starting anything.

    Policies receive the submission, start and end of every recorded task at its time. Hence their state (admissions,
    shares, stages) is restored. Running tasks stay where they are, even if a policy would now decide differently.
    Waiting tasks are submitted last, at ``now``, when the free capacity is known: only then is anything decided.

    Returns:
        Why tasks could not be added, by name.
    """
    controller.starts_tasks = False
    failures: dict[str, str] = {}
    wakes = WakeBudget(MAX_REPLAYED_WAKES)
    # what was withdrawn or rejected before it ran left no trace, and may be what a policy cannot bear
    past = [record for record in records if record.state in {kinds.RUNNING, kinds.DONE} or _has_started(record)]
    events = sorted(_past_events(past), key=lambda event: event[:2])
    controller.table.state.clock[0] = min(now, events[0][0]) if events else now
    controller.begin()
    for time, batch in groupby(events, key=lambda event: event[0]):
        _advance_clock(controller, time, wakes)
        for _, code, record in batch:
            if record.task.name not in failures:
                failures.update(_replay_event(controller, code, record))
        controller.process_events()
    alive = [record.task for record in records if record.state in {kinds.WAITING, kinds.RUNNING}]
    controller.view.forget_gangs({task.key(controller.view.gang_key) for task in alive})
    _resume_running(controller, [record for record in records if record.state == kinds.RUNNING])
    _advance_clock(controller, now, wakes)
    controller.starts_tasks = True
    for record in records:
        if record.state == kinds.WAITING:
            failures.update(_replay_event(controller, SUBMISSION, record))
    return failures


def lost_nodes(snapshot: Snapshot) -> list[Node]:
    """Return the nodes on which tasks are recorded as running although they have left.

    A controller that adopts a cluster needs them for a moment. What ran there is replayed as running, and stopped
    with the rest of its gang when the nodes are taken down: otherwise the others of the gang would run on as a part.
    """
    present = {node.name for node in snapshot.nodes}
    amounts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in snapshot.records:
        if record.state == kinds.RUNNING and record.node not in present:
            amounts[record.node].update(record.task.demand)
    return [Node(name, dict(demand)) for name, demand in amounts.items()]


def has_departed_runs(snapshot: Snapshot) -> bool:
    """Return whether recorded tasks ended on nodes that have left."""
    present = {node.name for node in snapshot.nodes}
    return any(record.node not in present for record in snapshot.records if _has_run(record))


def list_torn(gang_key: str, records: Sequence[Record], nodes: Container[str]) -> list[Task]:
    """Return the running tasks of gangs if other tasks of the gang wait, or run on nodes that have left.

    A gang starts as a whole, so these others have lost their node, or could not start.

    Args:
        gang_key: Task field that names the gang; empty without gangs.
        records: The records of the cluster.
        nodes: Names of its nodes.
    """
    if not gang_key:
        return []
    torn = {
        record.task.key(gang_key)
        for record in records
        if record.state == kinds.WAITING or (record.state == kinds.RUNNING and record.node not in nodes)
    }
    running = [record.task for record in records if record.state == kinds.RUNNING]
    return [task for task in running if task.size > 1 and task.key(gang_key) in torn]


def submit_task(controller: Controller, task: Task) -> None:
    """Enqueue a task in a controller.

    Raises:
        UnfoldError: It demands what no node has, or has too many requests.
    """
    controller.table.add_tasks([task], [collect_requests(controller.policies, task)])
    controller.reserve_log()
    row = controller.table.task_rows[task.name]
    kernel.call_submit_task(controller.table.state, row)


def resume_task(controller: Controller, task: str, node: str) -> None:
    """Record that a waiting task runs on a node, whether or not it fits; unknown nodes are ignored."""
    if node not in controller.table.node_rows:
        return
    controller.reserve_log()
    table = controller.table
    kernel.start_task(table.state, table.task_rows[task], table.node_rows[node], False)
    controller.read_log()


def end_task(controller: Controller, task: str, *, has_finished: bool = True) -> None:
    """End a task: a running one releases what it holds, a waiting one leaves the queue.

    Args:
        controller: The controller.
        task: Name of the task.
        has_finished: False where the task was withdrawn.
    """
    controller.reserve_log()
    state, row = controller.table.state, controller.table.task_rows[task]
    member = controller.table.tasks[row]
    if state.status[row] == kernel.RUNNING:
        if not has_finished and controller.view.running_mates(member) == [member]:
            # beside others it counts as finished, since they would restart without it
            controller.view.remove_member(member, has_finished=False)
        kernel.call_finish_task(state, row, kernel.LOG_ENDED)
    elif state.status[row] == kernel.WAITING:
        controller.remove_waiting(row)
        controller.view.remove_member(member, has_finished=has_finished)


def _has_started(record: Record) -> bool:
    return record.state != kinds.WAITING and math.isfinite(record.started)


def _has_run(record: Record) -> bool:
    return record.state != kinds.RUNNING and _has_started(record)


def _past_events(records: Iterable[Record]) -> Iterator[PastEvent]:
    """Yield what happened to tasks, in order for each: clocks of several machines recorded the times."""
    for record in records:
        last_s = record.task.arrival
        yield last_s, SUBMISSION, record
        for time, code in ((record.started, START), (record.ended, END)):
            if math.isfinite(time):
                last_s = max(last_s, time)
                yield last_s, code, record


def _replay_event(controller: Controller, code: int, record: Record) -> dict[str, str]:
    name = record.task.name
    if code == SUBMISSION:
        try:
            submit_task(controller, record.task)
        except UnfoldError as error:
            return {name: error.diagnostics[0].message}
        return {}
    controller.process_events()
    if code == END:
        end_task(controller, name, has_finished=record.state == kinds.DONE)
    elif controller.view.is_waiting(record.task):
        is_known = record.node in controller.table.node_rows
        resume_task(controller, name, record.node if is_known else DEPARTED.name)
    return {}


def _advance_clock(controller: Controller, time: float, wakes: WakeBudget) -> None:
    """Fire the timers up to a time (s); once the budget is spent, those that are due fire once, at that time."""
    clock = controller.table.state.clock
    while controller.next_wakeup_s <= time and wakes.left:
        wakes.left -= 1
        clock[0] = max(controller.table.now, controller.next_wakeup_s)
        controller.fire_timers()
    clock[0] = max(controller.table.now, time)
    if controller.next_wakeup_s <= time:
        controller.fire_timers()


def _resume_running(controller: Controller, running: Sequence[Record]) -> None:
    for record in running:
        row = controller.table.task_rows.get(record.task.name)
        if row is not None and controller.table.state.status[row] != kernel.RUNNING:
            resume_task(controller, record.task.name, record.node)
    controller.process_events()
