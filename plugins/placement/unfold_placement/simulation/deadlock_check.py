"""A bounded check for deadlocks before the replay: can each job run, and can two jobs block each other?

Every distinct job is simulated alone on the empty cluster, with the jobs that it follows or comes after. Then pairs of
jobs are simulated together: in both orders, job after job and task by task. Tasks end, so a task that still waits at
the end waits forever. Such a case is a counterexample.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from unfold_placement.core.explain import Reason, describe_wait, explain_wait, format_wait, record_history
from unfold_placement.core.policy import Policy, is_shipped
from unfold_placement.core.types import Node, Task
from unfold_placement.policies.registry import PolicyFactory
from unfold_placement.simulation.simulator import collect_result, prepare_simulation, run_simulation

MAX_JOBS, MAX_PAIRS = 200, 60
"""Distinct jobs, and ordered pairs of them, that are simulated."""


@dataclass(frozen=True, slots=True)
class Counterexample:
    """Jobs that deadlock on the empty cluster.

    Attributes:
        jobs: The jobs.
        stuck: Their tasks that never run.
        finished: Number of tasks that ran.
        explained: The stuck task that shows the cause best.
        wait: The dominant reason for which it waits.
        reasons: What it requires, and where it could have it.
        culprit: The policy of a user's own that never creates what this task lacks; None if another is at fault.
        blocked: A job that runs alone, and waits forever beside these; empty if none was found.
    """

    jobs: tuple[str, ...]
    stuck: tuple[str, ...]
    finished: int
    explained: str
    wait: str
    reasons: tuple[Reason, ...]
    culprit: Policy | None = None
    blocked: str = ""


def find_counterexample(
    nodes: Sequence[Node], tasks: Sequence[Task], new_policies: PolicyFactory
) -> Counterexample | None:
    """Return the first job or pair of jobs found that deadlocks, or None."""
    jobs = _group_by_job(tasks)
    samples = [alike[0] for alike in _group_alike(jobs)]
    if not new_policies():
        samples = [job for job in samples if any(_exceeds_all_nodes(nodes, task) for task in jobs[job])]
    for job in samples[:MAX_JOBS]:
        if counterexample := _simulate_jobs(nodes, jobs, (job,), new_policies):
            others = [other for other in samples[: MAX_PAIRS + 1] if other not in counterexample.jobs]
            blocked = (other for other in others if _is_blocked(nodes, jobs, (job, other), new_policies))
            return replace(counterexample, blocked=next(blocked, ""))
    return find_blocking_pair(nodes, tasks, new_policies)


def _is_blocked(
    nodes: Sequence[Node], jobs: dict[str, list[Task]], pair: tuple[str, str], new_policies: PolicyFactory
) -> bool:
    """Return whether the second job, submitted together with the first, waits forever, but not alone."""
    together = _simulate_jobs(nodes, jobs, pair, new_policies)
    names = {task.name for task in jobs[pair[1]]}
    is_stuck = together is not None and not names.isdisjoint(together.stuck)
    return is_stuck and _simulate_jobs(nodes, jobs, pair[1:], new_policies) is None


def find_blocking_pair(
    nodes: Sequence[Node], tasks: Sequence[Task], new_policies: PolicyFactory
) -> Counterexample | None:
    """Return the first pair of jobs with tasks that wait forever if both are submitted together, or None."""
    jobs = _group_by_job(tasks)
    samples = [alike[0] for alike in _group_alike(jobs)] if new_policies() else []
    pairs = itertools.islice(itertools.permutations(samples, 2), MAX_PAIRS)
    runs = (
        _simulate_jobs(nodes, jobs, pair, new_policies, interleave=interleave)
        for pair in pairs
        for interleave in (False, True)
    )
    return next((counterexample for counterexample in runs if counterexample), None)


def find_jobs_blocked_alone(
    nodes: Sequence[Node], tasks: Sequence[Task], new_policies: PolicyFactory
) -> Iterator[tuple[Counterexample, tuple[str, ...]]]:
    """Yield what blocks a job alone on the empty cluster, with the stuck tasks of all jobs like it."""
    jobs = _group_by_job(tasks)
    for alike in itertools.islice(_group_alike(jobs) if new_policies() else (), MAX_JOBS):
        if counterexample := _simulate_jobs(nodes, jobs, alike[:1], new_policies):
            stuck = set(counterexample.stuck)
            indices = [index for index, task in enumerate(jobs[alike[0]]) if task.name in stuck]
            yield counterexample, tuple(jobs[job][index].name for job in alike for index in indices)


def _group_by_job(tasks: Sequence[Task]) -> dict[str, list[Task]]:
    jobs: dict[str, list[Task]] = {}
    for task in tasks:
        jobs.setdefault(task.job, []).append(task)
    return jobs


def _group_alike(jobs: Mapping[str, Sequence[Task]]) -> list[list[str]]:
    """Group jobs with equal tasks, apart from names and times, in order of appearance."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for job, members in jobs.items():
        groups.setdefault(job_signature(members), []).append(job)
    return list(groups.values())


def _exceeds_all_nodes(nodes: Sequence[Node], task: Task) -> bool:
    return not any(all(node.capacity.get(kind, 0) >= amount for kind, amount in task.demand.items()) for node in nodes)


def _simulate_jobs(
    nodes: Sequence[Node],
    jobs: dict[str, list[Task]],
    names: Sequence[str],
    new_policies: PolicyFactory,
    *,
    interleave: bool = False,
) -> Counterexample | None:
    submitted = _with_dependencies(jobs, names)
    ranked = [(rank if interleave else 0, task) for job in submitted for rank, task in enumerate(jobs[job])]
    ranked.sort(key=lambda pair: pair[0])
    tasks = [replace(task, arrival=0.0, deadline=float("inf")) for _, task in ranked]
    controller = prepare_simulation(nodes, tasks, new_policies())
    history = record_history(controller)
    stuck = collect_result(run_simulation(controller)).stuck
    if not stuck:
        return None
    # a stuck task that depends on no other job shows the cause best
    explained = min(stuck, key=lambda task: (bool(task.after or task.follows), stuck.index(task)))
    reasons = tuple(explain_wait(controller, explained, history))
    owner = next((reason.set_by for reason in reasons if not reason.available_on), "")
    own = (policy for policy in controller.policies if not is_shipped(type(policy)))
    culprit = next((policy for policy in own if type(policy).__name__ == owner), None)
    return Counterexample(
        jobs=tuple(submitted),
        stuck=tuple(task.name for task in stuck),
        finished=len(tasks) - len(stuck),
        explained=explained.name,
        wait=format_wait(describe_wait(controller, explained)),
        reasons=reasons,
        culprit=culprit,
    )


def _with_dependencies(jobs: dict[str, list[Task]], names: Sequence[str]) -> list[str]:
    closure = list(names)
    for job in closure:
        dependencies = [name for task in jobs[job] for name in (task.follows, *task.after) if name in jobs]
        closure += [name for name in dict.fromkeys(dependencies) if name not in closure]
    return closure


def job_signature(members: Sequence[Task]) -> tuple[object, ...]:
    """Return what makes jobs alike: everything of their tasks that policies use, apart from names and times."""
    return tuple(
        (tuple(sorted(t.demand.items())), t.user, t.role, t.priority, t.follows, t.avoids, t.after, t.data, t.types)
        for t in members
    )
