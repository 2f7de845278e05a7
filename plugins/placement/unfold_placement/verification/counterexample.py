"""From a finding to a workload with times: the loop repeated, replayed in the simulator, and confirmed there."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from unfold_placement.core import kernel
from unfold_placement.core.controller import Controller
from unfold_placement.core.policy import Policy
from unfold_placement.core.types import QUEUE, Task
from unfold_placement.policies.registry import PolicyRule
from unfold_placement.simulation.audit import find_violations
from unfold_placement.simulation.simulator import SimulationResult, prepare_simulation, run_simulation, simulate
from unfold_placement.verification.model import SLOT_MARK
from unfold_placement.verification.scenario import (
    END,
    Action,
    Jobs,
    Scenario,
    apply_action,
    build_initial,
    job_rows,
    running_jobs,
)
from unfold_placement.verification.search import (
    HEAD_OF_LINE,
    LIVELOCK,
    PREEMPTION_LOOP,
    STARVATION,
    STUCK,
    TORN,
    Finding,
)
from unfoldkit.api import UnfoldError

STEP_S = 60.0
"""Time between two actions of a counterexample in seconds."""
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
        order: Order of the first tasks of jobs that arrive interleaved.
    """

    kind: str
    number: int
    arrival_s: float
    started_s: float = math.nan
    ended_s: float = math.inf
    order: int = 0


@dataclass(frozen=True, slots=True)
class Counterexample:
    """A finding with the workload that shows it.

    Attributes:
        finding: The finding.
        tasks: The tasks, with arrival and run times.
        scenario: Cluster and kinds.
        evidence: What the replay shows, as a sentence.
    """

    finding: Finding
    tasks: tuple[Task, ...]
    scenario: Scenario
    evidence: str


def confirm(
    finding: Finding, scenario: Scenario, new_policies: Callable[[], Sequence[Policy]], rules: Sequence[PolicyRule]
) -> Counterexample | None:
    """Replay a finding in the simulator; None if the replay does not show it."""
    try:
        tasks = unfold_tasks(finding, scenario, new_policies())
    except UnfoldError:
        return None
    evidence = _find_evidence(finding, scenario, tasks, new_policies, rules)
    return Counterexample(finding, tuple(tasks), scenario, evidence) if evidence else None


def unfold_tasks(finding: Finding, scenario: Scenario, policies: Sequence[Policy]) -> list[Task]:
    """Return the tasks of a finding's actions, the loop repeated: action ``i`` happens at ``i`` steps.

    Raises:
        UnfoldError: a policy raised, other than at the end of a livelock.
    """
    controller, jobs = build_initial(scenario, policies), Jobs()
    actions = [*finding.prefix, *finding.loop * (ROUNDS if finding.loop else 1)]
    alive: dict[str, Instance] = {}
    instances: list[Instance] = []
    counts = Counter[str]()
    for step, action in enumerate(actions):
        now_s = step * STEP_S
        if action.code == END:
            able = running_jobs(controller, only_whole=scenario.has_gangs)
            if action.index >= len(able):
                break
            resolved = Action(END, able[action.index], action.index)
            alive[resolved.target].ended_s = now_s
        else:
            resolved = action
        before = set(jobs.arrived)
        try:
            jobs = apply_action(scenario, controller, jobs, resolved)
        except UnfoldError:
            if finding.property_name != LIVELOCK:
                raise
            for order, kind in enumerate(action.target.split(",") if action.code in "+*" else ()):
                instances.append(Instance(kind, counts[kind], now_s, order=order))
            break
        for order, job in enumerate(job for job in jobs.arrived if job not in before):
            kind = job.split(SLOT_MARK)[0]
            alive[job] = Instance(kind, counts[kind], now_s, order=order)
            instances.append(alive[job])
            counts[kind] += 1
        _record_starts(controller, jobs, alive, now_s)
    horizon_s = (len(actions) + 1) * STEP_S
    return _build_tasks(instances, scenario, horizon_s, is_interleaved=any(action.code == "*" for action in actions))


def _record_starts(controller: Controller, jobs: Jobs, alive: dict[str, Instance], now_s: float) -> None:
    status = controller.table.state.status
    for job in jobs.arrived:
        is_running = any(status[row] == kernel.RUNNING for row in job_rows(controller, job))
        instance = alive[job]
        if not is_running:
            instance.started_s = math.nan
        elif math.isnan(instance.started_s):
            instance.started_s = now_s


def _build_tasks(
    instances: Sequence[Instance], scenario: Scenario, horizon_s: float, *, is_interleaved: bool
) -> list[Task]:
    tasks: list[tuple[tuple[float, int, int], Task]] = []
    for instance in instances:
        run_s = instance.ended_s - instance.started_s
        if instance.kind == scenario.victim:
            run_s = VICTIM_STEPS * STEP_S if not math.isfinite(run_s) or math.isinf(instance.ended_s) else run_s
        if not math.isfinite(run_s):
            run_s = horizon_s
        job = f"{instance.kind}{instance.number}"
        for index, task in enumerate(scenario.kind(instance.kind).tasks):
            named = replace(
                task, name=f"{job}-{index}", job=job, arrival=instance.arrival_s, run=run_s,
                size=len(scenario.kind(instance.kind).tasks),
            )  # fmt: skip
            rank = (index, instance.order) if is_interleaved else (instance.order, index)
            tasks.append(((instance.arrival_s, *rank), named))
    return [task for _, task in sorted(tasks, key=lambda pair: pair[0])]


def _find_evidence(
    finding: Finding,
    scenario: Scenario,
    tasks: Sequence[Task],
    new_policies: Callable[[], Sequence[Policy]],
    rules: Sequence[PolicyRule],
) -> str:
    """Return what the simulator shows of a finding; empty if nothing."""
    name, evidence = finding.property_name, ""
    if name == HEAD_OF_LINE:
        return _idle_evidence(finding, scenario, tasks, new_policies)
    try:
        result = simulate(scenario.nodes, tasks, new_policies())
    except UnfoldError as error:
        return error.diagnostics[0].message if name == LIVELOCK else ""
    stuck = {task.job for task in result.stuck}
    if name in {STARVATION, PREEMPTION_LOOP}:
        return _endless_evidence(finding.victim, result)
    if name == STUCK:
        return f"{min(stuck)} waits forever" if stuck else ""
    if name == TORN:
        violations = list(find_violations(result, rules))
        evidence = violations[0] if violations else _torn_evidence(tasks, result.start_s.tolist())
    return evidence


def _endless_evidence(victim: str, result: SimulationResult) -> str:
    last_arrival_s = max(task.arrival for task in result.tasks)
    for task, end in zip(result.tasks, result.end_s.tolist(), strict=True):
        if task.job == f"{victim}0" and end > last_arrival_s:
            waited_s = last_arrival_s - task.arrival
            return f"{task.job} has not ended {waited_s:,.0f} s after its arrival, when the last other job arrives"
    return ""


def _torn_evidence(tasks: Sequence[Task], start_s: Sequence[float]) -> str:
    starts: dict[str, set[float]] = {}
    for task, start in zip(tasks, start_s, strict=True):
        starts.setdefault(task.job, set()).add(start)
    torn = [job for job, times in starts.items() if len(times) > 1]
    return f"the tasks of {torn[0]} start at {len(starts[torn[0]])} different times" if torn else ""


def _idle_evidence(
    finding: Finding, scenario: Scenario, tasks: Sequence[Task], new_policies: Callable[[], Sequence[Policy]]
) -> str:
    at_s = (len(finding.prefix) - 1) * STEP_S
    controller = run_simulation(prepare_simulation(scenario.nodes, tasks, new_policies()), until=at_s + STEP_S / 2)
    view = controller.view
    for task in view.waiting():
        unit = view.unit(task)
        is_victim = task.job.rstrip("0123456789") == finding.victim
        if is_victim and unit is not None and view.room(unit, QUEUE) is not None:
            return f"{task.job} waits at {at_s:g} s although it would fit"
    return ""
