"""The verb ``plan``: replay the workload under its policy, beside the same workload without one."""

from __future__ import annotations

from collections.abc import Sequence

from unfold_placement import report
from unfold_placement.core.policy import Policy
from unfold_placement.core.types import Node
from unfold_placement.schema.models import PlacementSpec
from unfold_placement.schema.policies import PackOptions, PolicySpec, build_policies
from unfold_placement.simulation.deadlock_check import Counterexample, find_blocking_pair, find_counterexample
from unfold_placement.simulation.replay import replay, why
from unfold_placement.simulation.unplaceable import find_unplaceable
from unfold_placement.workload.build import add_pod_slots, build_nodes, build_tasks
from unfoldkit.api import Report, Run, UnfoldError, did_you_mean, fail

LOG = "placement.csv"


def plan(spec: PlacementSpec, run: Run) -> Report:
    """Return the report of the workload under its policy.

    Raises:
        UnfoldError: jobs can block each other, or a task that the spec writes can never start; with the counterexample.
            Of a workload that is recorded or made, such tasks are left out and told.
    """
    nodes, tasks = build_nodes(spec.cluster, run), build_tasks(spec.workload, run)
    if not nodes and spec.cluster.kubernetes is not None:
        from unfold_placement.kubernetes.from_spec import nodes as live_nodes

        nodes = live_nodes(spec.name, spec.cluster.kubernetes)
    if spec.cluster.kubernetes is not None or spec.cluster.trace == "kubectl":
        tasks = add_pod_slots(nodes, tasks)
    if not nodes:
        raise fail("a plan needs to know the nodes", key="cluster", hint="write nodes beside ray, or unfold serve")
    labelled(spec.policy, nodes)

    def make() -> Sequence[Policy]:
        return build_policies(spec.policy, allow_code=run.allow_code)

    # a spec of one's own is mended; a recorded workload is what it is
    never = {} if spec.workload.tasks else find_unplaceable(nodes, tasks, spec.policy, make)
    left = [task for task in tasks if task.name in never]
    kept = [task for task in tasks if task.name not in never]
    if not kept:
        raise fail("no task can ever run", key="workload", hint="; ".join(report.told(never)))
    blocked = (find_counterexample if spec.workload.tasks else find_blocking_pair)(nodes, kept, make)
    if blocked is not None:
        raise refused(blocked)
    mine = replay(spec, nodes, kept, make, run)
    plain = replay(spec, nodes, kept, list, run)
    run.directory.write(LOG, report.log(mine.result, left).encode())
    told = why(spec, nodes, kept, make, mine.result, run, never)
    return report.report(spec, mine, plain, told, never)


def labelled(policy: PolicySpec, nodes: Sequence[Node]) -> None:
    """Raise where tasks are to be packed by a label that no node has: any placement would do."""
    known = {"node", "any"}.union(*(node.labels for node in nodes))
    for _, options, path in policy.parts():
        levels = (options.level, *(level for level, _ in options.fallback)) if isinstance(options, PackOptions) else ()
        for level in levels:
            if level not in known:
                key = ".".join(str(part) for part in path)
                raise fail(f"no node has the label {level!r}", key=key, hint=did_you_mean(level, known))


def refused(blocked: Counterexample) -> UnfoldError:
    """Return the error that tells a counterexample."""
    need = next((reason for reason in blocked.reasons if not reason.available_on), None)
    rows = [
        f"{reason.requirement} ({reason.set_by}): " + (reason.available_on or "nowhere") for reason in blocked.reasons
    ]
    each = need.requirement if need is not None else "everything at one place"
    count = "1 task waits" if len(blocked.stuck) == 1 else f"{len(blocked.stuck)} tasks wait"
    jobs = " and ".join(blocked.jobs)
    message = f"never satisfied: with {jobs} alone on the empty cluster, {count} for ever, {blocked.finished} ran"
    hint = f"{blocked.stuck[0]} lacks {each}; it needs " + ", ".join(rows)
    return fail(message, key="policy", hint=hint)
