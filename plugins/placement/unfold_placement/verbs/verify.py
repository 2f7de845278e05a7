"""The check ``--verify``: search a spec's policies for violations, and write the smallest one as a spec."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from unfold_placement.core.types import MILLI, Task
from unfold_placement.core.watchdog import contain_policies
from unfold_placement.report.verification import verification_report
from unfold_placement.schema.placement import PlacementSpec
from unfold_placement.simulation.problem import Problem
from unfold_placement.verification.counterexample import Counterexample
from unfold_placement.verification.search import LIVELOCK
from unfold_placement.verification.verify import Bound, check_copies, check_replays, verify_policies
from unfold_placement.workload.build import (
    build_node_changes,
    build_nodes,
    build_tasks,
    policy_rules,
    protect_nodes,
    protect_tasks,
)
from unfoldkit.api import Report, Run

MIB = 1 << 20


def verify(spec: PlacementSpec, run: Run) -> Report:
    """Search the policies of a spec to a stated bound.

    The report's decision holds the smallest counterexample as a spec, which ``unfold plan`` replays.

    Raises:
        UnfoldError: A file is missing, a policy cannot be built, or it fails once time passes.
    """
    is_written = bool(spec.workload.tasks)
    # only a written workload has kinds of its own: a trace is not read
    nodes = tuple(build_nodes(spec.cluster, run)) if is_written else ()
    rules = policy_rules(spec.policy)
    problem = Problem(
        name=spec.name,
        nodes=tuple(protect_nodes(nodes, rules)),
        tasks=tuple(protect_tasks(build_tasks(spec.workload, run), rules)) if is_written else (),
        rules=rules,
        allow_code=run.allow_code,
        is_recorded=not is_written,
        node_changes=build_node_changes(spec.cluster, nodes, run) if is_written else (),
    )
    with contain_policies(run.log.warning):
        check_copies(problem.new_policies())
        failure = check_replays(problem, Bound())
        verification = verify_policies(problem, Bound(), run.progress)
    if failure is not None and not any(item.finding.property_name == LIVELOCK for item in verification.counterexamples):
        raise failure
    examples = (*verification.counterexamples, *verification.by_design)
    decision = {"counterexample": counterexample_spec(spec, examples[0])} if examples else {}
    return verification_report(problem, verification, decision)


def counterexample_spec(spec: PlacementSpec, example: Counterexample) -> dict[str, Any]:
    """Return the spec of a counterexample: its nodes and tasks under the policies of ``spec``."""
    policy = spec.policy.model_dump(mode="json", by_alias=True, exclude_unset=True)
    nodes = [
        {"name": node.name, **_amounts(node.capacity), **({"labels": dict(node.labels)} if node.labels else {})}
        for node in example.scenario.nodes
    ]
    events = [
        {"at": f"{change.at:g} s", "nodes": [change.node], "change": change.change} for change in example.node_changes
    ]
    return {
        "version": 1,
        "kind": "placement",
        "name": f"{spec.name}-{example.finding.property_name.replace(' ', '-')}",
        "cluster": {"nodes": nodes, **({"events": events} if events else {})},
        "workload": {"tasks": _merge_alike([_task_spec(task) for task in example.tasks])},
        "policy": policy,
    }


def _task_spec(task: Task) -> dict[str, Any]:
    values: dict[str, Any] = {
        "job": task.job,
        **_amounts(task.demand),
        "run": f"{task.run:g} s",
        "at": f"{task.arrival:g} s",
    }
    values |= {key: value for key in ("user", "role") if (value := getattr(task, key))}
    values |= {"priority": task.priority} if task.priority else {}
    if math.isfinite(task.deadline):
        # a deadline before the arrival cannot be written
        values["deadline"] = f"{max(0.0, task.deadline - task.arrival):g} s"
    values |= {"types": list(task.types)} if task.types else {}
    values |= {"data": list(task.data)} if task.data else {}
    return values


def _amounts(amounts: Mapping[str, int]) -> dict[str, Any]:
    """Return amounts as keys of a spec; memory in bytes, further kinds under ``resources``."""
    plain = {kind: amount / MILLI for kind, amount in amounts.items()}
    known: dict[str, float] = {kind: plain[kind] for kind in ("cpu", "gpu") if kind in plain}
    if "memory" in plain:
        known["memory"] = int(plain["memory"] * MIB)
    further = {kind: amount for kind, amount in plain.items() if kind not in {"cpu", "gpu", "memory"}}
    return {**known, **({"resources": further} if further else {})}


def _merge_alike(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write neighbouring tasks that are alike as one entry with a count."""
    merged: list[dict[str, Any]] = []
    for task in tasks:
        if merged and {**merged[-1], "count": 1} == {**task, "count": 1}:
            merged[-1]["count"] += 1
        else:
            merged.append({"job": task["job"], "count": 1, **task})
    return merged
