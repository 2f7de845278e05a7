"""What a search varies: a small cluster, kinds of jobs with slots, and the actions that change a state."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from unfold_placement.core import kernel
from unfold_placement.core.controller import Controller, build_controller, collect_requests
from unfold_placement.core.policy import InstantBudget, Policy
from unfold_placement.core.resources import build_resource_table
from unfold_placement.core.types import DOWN, UP, Node, NodeChange, Task
from unfold_placement.verification.model import IS_SHIPPED, SLOT_MARK, Renaming, Running

KIND_END = "."
"""Ends the name of a kind that was taken from a spec, so that a number can follow it."""
TICK_S = 1e-12
"""Time between two actions of a search in seconds."""
SLACK_DIGITS = 6
"""Digits of a time to a deadline: tasks arrive again and again, and rounding errors must not add up to a tick."""
ARRIVE, END, INTERLEAVE, LOSE, RETURN = "+", "-", "*", "!", "^"
"""Codes of actions."""
NODE_CHANGES = {LOSE: DOWN, RETURN: UP}
"""The change of a node that an action is."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Jobs that are alike.

    Attributes:
        name: Name of the kind, without a slot mark.
        tasks: The tasks of one job, in order.
    """

    name: str
    tasks: tuple[Task, ...]

    def slot_tasks(self, slot: int) -> list[Task]:
        """Return the tasks of this kind's job in a slot, named after kind and slot, as one gang that arrives at 0 s."""
        job = f"{self.name}{SLOT_MARK}{slot}"
        return [
            replace(move_arrival(task, 0.0), name=f"{job}-{index}", job=job, size=len(self.tasks))
            for index, task in enumerate(self.tasks)
        ]


def move_arrival(task: Task, arrival_s: float) -> Task:
    """Return a task that arrives at another time, with the same time to its deadline."""
    return replace(task, arrival=arrival_s, deadline=arrival_s + round(task.deadline - task.arrival, SLACK_DIGITS))


@dataclass(frozen=True, slots=True)
class Action:
    """One change: a job of a kind arrives, two arrive task by task, a running job ends, or a node is lost or returns.

    Attributes:
        code: One of the codes above.
        target: Kind, kinds, job or node.
        index: Index of the ending job among those that may end, in order of start.
    """

    code: str
    target: str
    index: int = 0

    def __str__(self) -> str:
        """Return a short form such as ``+small``; an ending job is shown by its kind."""
        if self.code in NODE_CHANGES:
            return f"{self.code}{self.target}"
        return f"{self.code}{self.target.split(SLOT_MARK)[0]}".replace(KIND_END, "")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A small cluster and the jobs that may come to it.

    Attributes:
        nodes: The nodes.
        kinds: The kinds of jobs.
        victim: The kind that arrives once and must end.
        jobs_in_flight: Jobs in the system at a time, the victim included.
        has_gangs: Several tasks of a job end together.
        unsteady: Nodes that may be lost, and return after a while.
        is_reversed: Jobs take their names from the last free slot instead of the first.
    """

    nodes: tuple[Node, ...]
    kinds: tuple[Kind, ...]
    victim: str
    jobs_in_flight: int = 3
    has_gangs: bool = True
    unsteady: tuple[str, ...] = ()
    is_reversed: bool = False

    def kind(self, name: str) -> Kind:
        """Return a kind by name."""
        return next(kind for kind in self.kinds if kind.name == name)

    def list_slots(self, kind: str) -> Sequence[int]:
        """List the slots for jobs of a kind, in the order in which they are taken."""
        slots = range(1 if kind == self.victim else self.jobs_in_flight)
        return slots[::-1] if self.is_reversed else slots


def build_initial(scenario: Scenario, policies: Sequence[Policy]) -> Controller:
    """Build the controller of an empty cluster, with the rows of all slots, as a live backend drives it."""
    controller = build_controller(build_resource_table(scenario.nodes), policies)
    controller.knows_end_times = False
    tasks = [
        task for kind in scenario.kinds for slot in scenario.list_slots(kind.name) for task in kind.slot_tasks(slot)
    ]
    controller.table.add_tasks(tasks, [collect_requests(controller.policies, task) for task in tasks])
    controller.begin()
    return controller


@dataclass(slots=True)
class Jobs:
    """The living jobs of a state in order of arrival, and which of them run.

    Attributes:
        arrived: Jobs in order of arrival.
        victim_came: The victim has arrived.
    """

    arrived: tuple[str, ...] = ()
    victim_came: bool = False

    def renaming(self, kinds: Sequence[Kind]) -> Renaming:
        """Return the names of the jobs by kind and rank."""
        counts = Counter[str]()
        names = {}
        for job in self.arrived:
            kind = job.split(SLOT_MARK)[0]
            names[job] = f"{kind}{SLOT_MARK}{counts[kind]}"
            counts[kind] += 1
        return Renaming(names, tuple(kind.name for kind in kinds))


def job_rows(controller: Controller, job: str) -> range:
    """Return the rows of a job's tasks, which were added one after the other."""
    table = controller.table
    first = table.task_rows[f"{job}-0"]
    return range(first, first + table.tasks[first].size)


def running_jobs(running: Running, *, only_whole: bool) -> list[str]:
    """Return the jobs of running tasks, in order of start; with ``only_whole`` those that run in full."""
    missing: dict[str, int] = {}
    for task, _, _ in running:
        missing[task.job] = missing.get(task.job, task.size) - 1
    return [job for job, count in missing.items() if not count] if only_whole else list(missing)


def list_actions(scenario: Scenario, controller: Controller, jobs: Jobs, running: Running) -> Iterator[Action]:
    """Yield the actions that are possible in a state with these running tasks."""
    for index, job in enumerate(running_jobs(running, only_whole=scenario.has_gangs)):
        yield Action(END, job, index)
    yield from _list_arrivals(scenario, jobs)
    for node in scenario.unsteady:
        is_up = controller.table.state.is_up[controller.table.node_rows[node]]
        yield Action(LOSE if is_up else RETURN, node)


def _list_arrivals(scenario: Scenario, jobs: Jobs) -> Iterator[Action]:
    room = scenario.jobs_in_flight - len(jobs.arrived)
    # a place is kept for the victim
    room_for_others = room - (not jobs.victim_came)
    for kind in scenario.kinds:
        is_victim = kind.name == scenario.victim
        if (not jobs.victim_came and room > 0) if is_victim else room_for_others > 0:
            yield Action(ARRIVE, kind.name)
    if not scenario.has_gangs or room < 2 or jobs.victim_came or len(scenario.kind(scenario.victim).tasks) < 2:
        return
    for kind in scenario.kinds:
        if kind.name != scenario.victim and len(kind.tasks) > 1:
            yield Action(INTERLEAVE, f"{kind.name},{scenario.victim}")
            yield Action(INTERLEAVE, f"{scenario.victim},{kind.name}")


def apply_action(scenario: Scenario, controller: Controller, jobs: Jobs, action: Action) -> Jobs:
    """Apply an action to a controller and return its living jobs.

    Raises:
        UnfoldError: A policy raised, or loops within the instant.
    """
    # the clock almost stands still: starts keep their order, and times round to equal values
    controller.table.state.clock[0] += TICK_S
    controller.budget = InstantBudget()
    if action.code == END:
        rows = job_rows(controller, action.target)
        controller.reserve_log()
        for row in rows:
            if controller.table.state.status[row] == kernel.RUNNING:
                kernel.call_finish_task(controller.table.state, row, kernel.LOG_ENDED)
        controller.process_events()
        return _living_jobs(controller, jobs)
    if action.code in NODE_CHANGES:
        controller.change_nodes([NodeChange(controller.table.now, action.target, NODE_CHANGES[action.code])])
        return _living_jobs(controller, jobs)
    kinds = action.target.split(",")
    names = [_find_free_slot(scenario, kind, jobs) for kind in kinds]
    if action.code == ARRIVE:
        _submit(controller, job_rows(controller, names[0]))
        controller.process_events()
    else:
        tasks = [job_rows(controller, name) for name in names]
        for index in range(max(len(job) for job in tasks)):
            for job in tasks:
                if index < len(job):
                    _submit(controller, [job[index]])
                    controller.process_events()
    return _living_jobs(controller, Jobs((*jobs.arrived, *names), jobs.victim_came or scenario.victim in kinds))


def _living_jobs(controller: Controller, jobs: Jobs) -> Jobs:
    """Return the jobs without those that have ended, or that a policy has rejected."""
    # items of a list are much quicker than those of an array
    status, gone = controller.table.state.status.tolist(), (kernel.DONE, kernel.REFUSED)
    arrived = [job for job in jobs.arrived if any(status[row] not in gone for row in job_rows(controller, job))]
    return Jobs(tuple(arrived), jobs.victim_came)


def _find_free_slot(scenario: Scenario, kind: str, jobs: Jobs) -> str:
    """Return the name of the next job of a kind."""
    names = (f"{kind}{SLOT_MARK}{slot}" for slot in scenario.list_slots(kind))
    return next(name for name in names if name not in jobs.arrived)


def _submit(controller: Controller, rows: Sequence[int]) -> None:
    controller.reserve_log()
    table = controller.table
    if not all(IS_SHIPPED[type(policy)] for policy in controller.policies) or table.tasks[rows[0]].deadline < math.inf:
        # a policy may order tasks by their arrivals
        tasks = list(table.tasks)
        for row in rows:
            tasks[row] = move_arrival(tasks[row], table.now)
        table.tasks = tuple(tasks)
    for row in rows:
        kernel.call_submit_task(controller.table.state, row)
