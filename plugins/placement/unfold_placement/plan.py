"""The verb ``plan``: replay the workload under its policy, beside the same workload without one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unfold_placement import screen
from unfold_placement.check import Counterexample, counterexample
from unfold_placement.explain import Reason, explain, watched
from unfold_placement.facts import Node, Policy, Task
from unfold_placement.laws import audit
from unfold_placement.measure import Figures, figures
from unfold_placement.options import build
from unfold_placement.simulate import Outcome, outcome, play, prepare
from unfold_placement.spec import PlacementSpec
from unfold_placement.workload import nodes_of, seated, tasks_of
from unfoldkit.api import Report, Run, UnfoldError, did_you_mean, fail

LOG = "placement.csv"
Make = Callable[[], Sequence[Policy]]


@dataclass(frozen=True, slots=True)
class Replay:
    """A replay with its figures, what is wrong with it, and the seconds that it took by the clock."""

    found: Outcome
    figures: Figures
    wrong: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Explained:
    """A task that waits, the time (s) at which it was looked at, and what it needs."""

    task: Task
    at: float
    reasons: tuple[Reason, ...]


def plan(spec: PlacementSpec, run: Run) -> Report:
    """Return the report of the workload under its policy.

    Raises:
        UnfoldError: the policies can never let some task start, or can block each other; with the counterexample.
    """
    nodes, tasks = nodes_of(spec.cluster, run), tasks_of(spec.workload, run)
    if not nodes and spec.cluster.kubernetes is not None:
        from unfold_placement.kubernetes.served import nodes as live_nodes

        nodes = live_nodes(spec.name, spec.cluster.kubernetes)
    if spec.cluster.kubernetes is not None:
        tasks = seated(nodes, tasks)
    if not nodes:
        raise fail("a plan needs to know the nodes", key="cluster", hint="write nodes beside ray, or unfold serve")

    def make() -> Sequence[Policy]:
        return build(spec.policy, allow_code=run.allow_code)

    blocked = counterexample(nodes, tasks, make)
    if blocked is not None:
        raise refused(blocked)
    mine = replay(spec, nodes, tasks, make, run)
    plain = replay(spec, nodes, tasks, list, run)
    run.directory.write(LOG, screen.log(mine.found).encode())
    return screen.report(spec, mine, plain, why(spec, nodes, tasks, make, mine.found))


def replay(spec: PlacementSpec, nodes: Sequence[Node], tasks: Sequence[Task], make: Make, run: Run) -> Replay:
    """Replay a workload and audit it."""
    loop = prepare(nodes, tasks, make())
    began = run.clock()
    found = outcome(play(loop, on_step=lambda placed: run.progress("replay", placed, len(tasks))))
    seconds = run.clock() - began
    return Replay(found, figures(found), tuple(audit(found, spec.policy)), seconds)


def why(
    spec: PlacementSpec, nodes: Sequence[Node], tasks: Sequence[Task], make: Make, found: Outcome
) -> Explained | None:
    """Explain the task that the spec names, or the one that waited longest, in the middle of its wait."""
    picked = _picked(spec, tasks, found)
    if picked is None:
        return None
    task, at = picked
    loop = prepare(nodes, tasks, make())
    history = watched(loop)
    play(loop, until=at)
    return Explained(task, at, tuple(explain(loop, task, history)))


def _picked(spec: PlacementSpec, tasks: Sequence[Task], found: Outcome) -> tuple[Task, float] | None:
    rows = {task.name: row for row, task in enumerate(tasks)}
    if spec.explain is not None and spec.explain.task not in rows:
        hint = did_you_mean(spec.explain.task, rows)
        raise fail(f"no such task: {spec.explain.task}", key="explain.task", hint=hint)
    ends = [start if math.isfinite(start) else float(found.book.now) for start in found.start.tolist()]
    waits = [end - task.arrival for task, end in zip(tasks, ends, strict=True)]
    row = rows[spec.explain.task] if spec.explain is not None else max(range(len(tasks)), key=waits.__getitem__)
    if spec.explain is not None and spec.explain.at is not None:
        return tasks[row], spec.explain.at
    return (tasks[row], tasks[row].arrival + waits[row] / 2) if waits[row] > 0 else None


def refused(blocked: Counterexample) -> UnfoldError:
    """Return the error that tells a counterexample."""
    need = next((reason for reason in blocked.reasons if not reason.where), None)
    rows = [f"{reason.need} ({reason.by}): " + (reason.where or "nowhere") for reason in blocked.reasons]
    each = need.need if need is not None else "everything at one place"
    count = "1 task waits" if len(blocked.stuck) == 1 else f"{len(blocked.stuck)} tasks wait"
    jobs = " and ".join(blocked.jobs)
    message = f"never satisfied: with {jobs} alone on the empty cluster, {count} for ever, {blocked.ran} ran"
    hint = f"{blocked.stuck[0]} lacks {each}; it needs " + ", ".join(rows)
    return fail(message, key="policy", hint=hint)
