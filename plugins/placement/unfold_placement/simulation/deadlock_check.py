"""A bounded check of compositions, before anything is replayed: can each job run, and can two block each other?

Every distinct job is played alone on the empty cluster, with the jobs that it follows or comes after; then pairs of
jobs that come together, in both orders, one after the other and task by task. Tasks end, so whoever still waits at the
end waits for ever: the counterexample.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from unfold_placement.core.explain import Reason, explain_wait, record_history
from unfold_placement.core.policy import Policy
from unfold_placement.core.types import Node, Task
from unfold_placement.simulation.simulator import collect_result, prepare_simulation, run_simulation

ALONE, PAIRS = 200, 60
PolicyFactory = Callable[[], Sequence[Policy]]


@dataclass(frozen=True, slots=True)
class Counterexample:
    """Jobs that come together on the empty cluster, the tasks of theirs that never run, and why the first does not."""

    jobs: tuple[str, ...]
    stuck: tuple[str, ...]
    finished: int
    reasons: tuple[Reason, ...]


def find_counterexample(nodes: Sequence[Node], tasks: Sequence[Task], make: PolicyFactory) -> Counterexample | None:
    """Return the smallest case that is found to block, or nothing."""
    jobs = _by_job(tasks)
    kinds = [same[0] for same in _kinds(jobs)]
    if not make():
        kinds = [job for job in kinds if any(_too_big(nodes, task) for task in jobs[job])]
    for job in kinds[:ALONE]:
        if found := _play(nodes, jobs, (job,), make):
            return found
    return find_blocking_pair(nodes, tasks, make)


def find_blocking_pair(nodes: Sequence[Node], tasks: Sequence[Task], make: PolicyFactory) -> Counterexample | None:
    """Return a pair of jobs of which one or both wait for ever if they come together, or nothing."""
    jobs = _by_job(tasks)
    kinds = [same[0] for same in _kinds(jobs)] if make() else []
    pairs = itertools.islice(itertools.permutations(kinds, 2), PAIRS)
    plays = (_play(nodes, jobs, pair, make, mixed=mixed) for pair in pairs for mixed in (False, True))
    return next((found for found in plays if found), None)


def find_jobs_blocked_alone(
    nodes: Sequence[Node], tasks: Sequence[Task], make: PolicyFactory
) -> Iterator[tuple[Counterexample, tuple[str, ...]]]:
    """Yield what blocks a job alone on the empty cluster, with the tasks that wait for ever in all jobs like it."""
    jobs = _by_job(tasks)
    for same in itertools.islice(_kinds(jobs) if make() else (), ALONE):
        if found := _play(nodes, jobs, same[:1], make):
            stuck = [at for at, task in enumerate(jobs[same[0]]) if task.name in set(found.stuck)]
            yield found, tuple(jobs[job][at].name for job in same for at in stuck)


def _by_job(tasks: Sequence[Task]) -> dict[str, list[Task]]:
    jobs: dict[str, list[Task]] = {}
    for task in tasks:
        jobs.setdefault(task.job, []).append(task)
    return jobs


def _kinds(jobs: Mapping[str, Sequence[Task]]) -> list[list[str]]:
    """Return the jobs that are alike, in the order of the first of each kind."""
    found: dict[tuple[object, ...], list[str]] = {}
    for job, members in jobs.items():
        found.setdefault(_shape(members), []).append(job)
    return list(found.values())


def _too_big(nodes: Sequence[Node], task: Task) -> bool:
    return not any(all(node.capacity.get(kind, 0) >= need for kind, need in task.demand.items()) for node in nodes)


def _play(
    nodes: Sequence[Node],
    jobs: dict[str, list[Task]],
    names: Sequence[str],
    make: PolicyFactory,
    *,
    mixed: bool = False,
) -> Counterexample | None:
    wanted = _with_needed(jobs, names)
    ranked = [(rank if mixed else 0, task) for job in wanted for rank, task in enumerate(jobs[job])]
    ranked.sort(key=lambda pair: pair[0])
    tasks = [replace(task, arrival=0.0, deadline=float("inf")) for _, task in ranked]
    loop = prepare_simulation(nodes, tasks, make())
    history = record_history(loop)
    found = collect_result(run_simulation(loop))
    if not found.stuck:
        return None
    # of several that wait, one that waits for nothing else's end says most
    shown = min(found.stuck, key=lambda task: (bool(task.after or task.follows), found.stuck.index(task)))
    stuck = tuple(task.name for task in found.stuck)
    return Counterexample(tuple(wanted), stuck, len(tasks) - len(stuck), tuple(explain_wait(loop, shown, history)))


def _with_needed(jobs: dict[str, list[Task]], names: Sequence[str]) -> list[str]:
    found = list(names)
    for job in found:
        needed = [name for task in jobs[job] for name in (task.follows, *task.after) if name in jobs]
        found += [name for name in dict.fromkeys(needed) if name not in found]
    return found


def _shape(members: Sequence[Task]) -> tuple[object, ...]:
    return tuple(
        (tuple(sorted(t.demand.items())), t.user, t.role, t.priority, t.follows, t.avoids, t.after, t.data, t.types)
        for t in members
    )
