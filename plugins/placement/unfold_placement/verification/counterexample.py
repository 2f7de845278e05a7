"""From a finding to a workload with times: the loop repeated, replayed in the simulator, and confirmed there."""

from __future__ import annotations

import math
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from unfold_placement.core import kernel
from unfold_placement.core.controller import Controller
from unfold_placement.core.policy import Policy, describe_failure
from unfold_placement.core.types import QUEUE, NodeChange, Task
from unfold_placement.policies.registry import PolicyRule
from unfold_placement.simulation.audit import find_broken_rule, find_violations
from unfold_placement.simulation.simulator import SimulationResult, prepare_simulation, run_simulation, simulate
from unfold_placement.verification.model import SLOT_MARK
from unfold_placement.verification.scenario import (
    ARRIVE,
    END,
    INTERLEAVE,
    NODE_CHANGES,
    Action,
    Jobs,
    Scenario,
    apply_action,
    build_initial,
    job_rows,
    move_arrival,
    running_jobs,
)
from unfold_placement.verification.search import (
    BROKEN_RULE,
    HEAD_OF_LINE,
    LIVELOCK,
    LOST_WORK,
    PREEMPTION_LOOP,
    STARVATION,
    STUCK,
    TORN,
    Finding,
)
from unfoldkit.api import UnfoldError

STEP_S = 60.0
"""Time between two actions of a counterexample in seconds."""
GAP_S = 1.0
"""Time between the arrivals of the tasks of a job, where two jobs arrive task by task, in seconds."""
Workload = tuple[Sequence[Task], Sequence[NodeChange]]
"""Tasks, and the nodes that change meanwhile."""
ROUNDS = 20
"""How often a loop is repeated."""
VICTIM_STEPS = 10
"""Run time of the victim in steps: it cannot end in a gap of the loop."""


@dataclass(slots=True)
class Instance:
    """One job of the unfolded stream.

    Attributes:
        kind: Its kind.
        number: Its number among the jobs of its kind.
        arrival_s: Its arrival.
        started_s: Its last start, NaN before.
        ended_s: Its end, infinity if it never ends.
        order: Its place among jobs that arrive together.
        gap_s: Time between the arrivals of its tasks, of jobs that arrive task by task.
        tick_s: The search's own time of its last start, NaN before.
        is_torn: A part of its tasks runs.
    """

    kind: str
    number: int
    arrival_s: float
    started_s: float = math.nan
    ended_s: float = math.inf
    order: int = 0
    gap_s: float = 0.0
    tick_s: float = math.nan
    is_torn: bool = False


@dataclass(frozen=True, slots=True)
class Counterexample:
    """A finding with the workload that shows it.

    Attributes:
        finding: The finding.
        tasks: The tasks, with arrival and run times.
        node_changes: The nodes that are lost and return.
        scenario: Cluster and kinds.
        evidence: What the replay shows, as a sentence.
    """

    finding: Finding
    tasks: tuple[Task, ...]
    scenario: Scenario
    evidence: str
    node_changes: tuple[NodeChange, ...] = ()


def confirm(
    finding: Finding, scenario: Scenario, new_policies: Callable[[], Sequence[Policy]], rules: Sequence[PolicyRule]
) -> Counterexample | None:
    """Replay a finding in the simulator; None if the replay does not show it."""
    try:
        tasks = unfold_tasks(finding, scenario, new_policies())
    except UnfoldError:
        return None
    changes = list_node_changes(finding)
    evidence = _find_evidence(finding, scenario, (tasks, changes), new_policies, rules)
    return Counterexample(finding, tuple(tasks), scenario, evidence, changes) if evidence else None


def list_node_changes(finding: Finding) -> tuple[NodeChange, ...]:
    """Return the changes of nodes among the actions before the loop, at the times of ``unfold_tasks``."""
    return tuple(
        NodeChange(step * STEP_S, action.target, NODE_CHANGES[action.code])
        for step, action in enumerate(finding.prefix)
        if action.code in NODE_CHANGES
    )


def unfold_tasks(finding: Finding, scenario: Scenario, policies: Sequence[Policy]) -> list[Task]:
    """Return the tasks of a finding's actions, the loop repeated: action ``i`` happens at ``i`` steps.

    Raises:
        UnfoldError: A policy raised, other than at the end of a livelock.
    """
    controller, jobs = build_initial(scenario, policies), Jobs()
    actions = [*finding.prefix, *finding.loop * _count_rounds(finding, scenario)]
    alive: dict[str, Instance] = {}
    instances: list[Instance] = []
    counts = Counter[str]()
    for step, action in enumerate(actions):
        now_s = step * STEP_S
        if action.code == END:
            able = running_jobs(controller.view.running(), only_whole=scenario.has_gangs)
            if action.index >= len(able):
                break
            resolved = Action(END, able[action.index], action.index)
            alive[resolved.target].ended_s = now_s
        else:
            resolved = action
        before, has_failed = set(jobs.arrived), False
        try:
            jobs = apply_action(scenario, controller, jobs, resolved)
        except UnfoldError:
            if finding.property_name != LIVELOCK:
                raise
            has_failed = True
        for order, kind in enumerate(action.target.split(",") if action.code in {ARRIVE, INTERLEAVE} else ()):
            gap_s = GAP_S if action.code == INTERLEAVE else 0.0
            instance = Instance(kind, counts[kind], now_s, order=order, gap_s=gap_s)
            instances.append(instance)
            # one that is rejected at once is not among them
            new_jobs = [job for job in jobs.arrived if job not in before and job.split(SLOT_MARK)[0] == kind]
            alive |= dict.fromkeys(new_jobs, instance)
            counts[kind] += 1
        if has_failed:
            break
        _record_starts(controller, jobs, alive, now_s)
    horizon_s = (len(actions) + 1) * STEP_S
    if not finding.loop:
        for instance in instances:
            instance.is_torn = False
    return build_tasks(instances, scenario, horizon_s)


def _count_rounds(finding: Finding, scenario: Scenario) -> int:
    """Return how often the loop is repeated: a victim with a deadline must still wait long after it."""
    slacks_s = [task.deadline - task.arrival for task in scenario.kind(finding.victim).tasks]
    longest_s = max([slack_s for slack_s in slacks_s if math.isfinite(slack_s)], default=0.0)
    return max(ROUNDS, math.ceil(2 * longest_s / (STEP_S * max(1, len(finding.loop)))))


def _record_starts(controller: Controller, jobs: Jobs, alive: dict[str, Instance], now_s: float) -> None:
    state = controller.table.state
    for job in jobs.arrived:
        instance, rows = alive[job], job_rows(controller, job)
        running = [row for row in rows if state.status[row] == kernel.RUNNING]
        tick_s = min((float(state.start_s[row]) for row in running), default=math.nan)
        if math.isnan(tick_s):
            instance.started_s = math.nan
        elif tick_s != instance.tick_s:
            # a job that is stopped and started again within one step starts over
            instance.started_s = now_s
        instance.tick_s, instance.is_torn = tick_s, 0 < len(running) < len(rows)


def build_tasks(instances: Sequence[Instance], scenario: Scenario, horizon_s: float) -> list[Task]:
    """Return the tasks of jobs in order of arrival; those that never end run for ``horizon_s`` seconds."""
    tasks: list[tuple[tuple[float, int, int], Task]] = []
    for instance in instances:
        run_s = instance.ended_s - instance.started_s
        if instance.kind == scenario.victim:
            # the rest of a torn gang runs without end
            endless_s = max(horizon_s, 2 * VICTIM_STEPS * STEP_S) if instance.is_torn else VICTIM_STEPS * STEP_S
            run_s = run_s if math.isfinite(run_s) else endless_s
        if not math.isfinite(run_s):
            run_s = horizon_s
        job = f"{instance.kind}{instance.number}"
        for index, task in enumerate(scenario.kind(instance.kind).tasks):
            # a job that arrives between the tasks of another sees each of them in an instant of its own
            arrival_s = instance.arrival_s + instance.gap_s * (index + instance.order / 2)
            named = replace(
                move_arrival(task, arrival_s), name=f"{job}-{index}", job=job, run=run_s,
                size=len(scenario.kind(instance.kind).tasks),
            )  # fmt: skip
            tasks.append(((arrival_s, instance.order, index), named))
    return [task for _, task in sorted(tasks, key=lambda pair: pair[0])]


def _find_evidence(
    finding: Finding,
    scenario: Scenario,
    workload: Workload,
    new_policies: Callable[[], Sequence[Policy]],
    rules: Sequence[PolicyRule],
) -> str:
    """Return what the simulator shows of a finding; empty if nothing."""
    name = finding.property_name
    if name == HEAD_OF_LINE:
        return _idle_evidence(finding, scenario, workload, new_policies)
    tasks, changes = workload
    try:
        result = simulate(scenario.nodes, tasks, new_policies(), changes)
    except UnfoldError as error:
        return describe_failure(error) if name == LIVELOCK else ""
    violations = find_violations(result, rules)
    evidence = {
        STARVATION: lambda: endless_evidence(finding.victim, result),
        PREEMPTION_LOOP: lambda: endless_evidence(finding.victim, result),
        STUCK: lambda: stuck_evidence(finding.victim, result),
        TORN: lambda: next(violations, "") or _torn_evidence(tasks, result.start_s.tolist()),
        LOST_WORK: lambda: _lost_work_evidence(result),
        BROKEN_RULE: lambda: find_broken_rule(result, rules, new_policies()),
    }
    return evidence[name]() if name in evidence else ""


def stuck_evidence(victim: str, result: SimulationResult) -> str:
    """Return which job of the victim's kind waits for ever; empty for none."""
    # a job beside it that no node can hold waits forever too, and shows nothing
    stuck = [task.job for task in result.stuck if _kind_of(task) == victim]
    return f"{min(stuck)} waits forever" if stuck else ""


def _kind_of(task: Task) -> str:
    return task.job.rstrip(string.digits)


def endless_evidence(victim: str, result: SimulationResult) -> str:
    """Return how long the victim has waited when the last other job arrives; empty if it has ended by then."""
    last_arrival_s = max(task.arrival for task in result.tasks)
    for task, start, end in zip(result.tasks, result.start_s.tolist(), result.end_s.tolist(), strict=True):
        if task.name in result.rejections:
            continue
        # a torn gang runs on without end, so that one of its tasks must still wait
        late_s = start if task.run > VICTIM_STEPS * STEP_S else end
        if task.job == f"{victim}0" and late_s > last_arrival_s:
            waited_s = last_arrival_s - task.arrival
            return f"{task.job} has not ended {waited_s:,.0f} s after its arrival, when the last other job arrives"
    return ""


def _lost_work_evidence(result: SimulationResult) -> str:
    log = result.log
    events: dict[float, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for time, kind, row in zip(log.times.tolist(), log.kinds.tolist(), log.tasks.tolist(), strict=True):
        events[time][kind].add(result.tasks[row].job)
    for change in result.node_changes:
        events.pop(change.at, None)
    for time, jobs in events.items():
        stopped = jobs[kernel.LOG_PREEMPTED]
        if stopped and not jobs[kernel.LOG_STARTED] - stopped:
            return f"{min(stopped)} is stopped at {time:g} s, and no other job starts"
    return ""


def _torn_evidence(tasks: Sequence[Task], start_s: Sequence[float]) -> str:
    starts: dict[str, set[float]] = {}
    for task, start in zip(tasks, start_s, strict=True):
        starts.setdefault(task.job, set()).add(start)
    torn = [job for job, times in starts.items() if len(times) > 1]
    if not torn:
        return ""
    if math.inf in starts[torn[0]]:
        return f"a part of {torn[0]} runs, and the rest waits forever"
    return f"the tasks of {torn[0]} start at {len(starts[torn[0]])} different times"


def _idle_evidence(
    finding: Finding, scenario: Scenario, workload: Workload, new_policies: Callable[[], Sequence[Policy]]
) -> str:
    at_s, (tasks, changes) = (len(finding.prefix) - 1) * STEP_S, workload
    prepared = prepare_simulation(scenario.nodes, tasks, new_policies(), changes)
    controller = run_simulation(prepared, until=at_s + STEP_S / 2)
    view = controller.view
    for task in view.waiting():
        unit = view.unit(task)
        if _kind_of(task) == finding.victim and unit is not None and view.room(unit, QUEUE) is not None:
            return f"{task.job} waits at {at_s:g} s although it would fit"
    return ""
