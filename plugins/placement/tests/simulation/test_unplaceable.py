"""Tasks of a recorded workload that can never run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plugins.placement.tests.cases import cluster, job, policy
from unfold_placement.core.types import Node, Task
from unfold_placement.schema.placement import PlacementSpec
from unfold_placement.simulation.problem import Problem
from unfold_placement.simulation.unplaceable import find_unplaceable
from unfold_placement.verbs.plan import PLACEMENTS_FILE, plan
from unfoldkit.api import Report, Run, RunDir, UnfoldError, Verdict
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

HEAD = "task,arrival,run,gpu,cpu,job\n"


def found(tasks: list[Task], nodes: list[Node] | None = None, **parts: Any) -> dict[str, str]:
    """Return the tasks that can never run on four nodes of four GPUs and 16 cores, and why."""
    nodes = cluster() if nodes is None else nodes
    problem = Problem(name="p", nodes=tuple(nodes), tasks=tuple(tasks), rules=policy(**parts), is_recorded=True)
    return find_unplaceable(problem)


def answer(folder: Path, rows: str, extra: str = "", policies: str = "{}") -> Report:
    """Return the plan of a recorded workload on two nodes of four GPUs."""
    (folder / "w.csv").write_text(HEAD + rows, "utf-8")
    text = f"""version: 1
kind: placement
name: p
cluster: {{nodes: [{{count: 2, cpu: 8, gpu: 4}}]}}
workload: {{replay: {{trace: csv, path: {folder / "w.csv"}}}}}
policy: {policies}
{extra}"""
    spec = validate(PlacementSpec, parse(text, "p.yaml"))
    return plan(spec, Run(directory=RunDir(folder), engine=LocalEngine(1)))


def test_a_trace_is_replayed_without_tasks_that_fit_nowhere(tmp_path: Path) -> None:
    """A task that no node can hold is counted, named and left without a node; the others are as without it; no."""
    rows = "a,0,5,4,1,\nbig,1,5,9,1,\nb,1,5,4,1,\n"
    report = answer(tmp_path, rows)
    assert report.verdict is Verdict.NO
    assert report.metrics["unplaceable"].value == 1
    assert report.headline == "1 task can never run, the first is big; the other 2 are done in 6 s"
    assert ("never runs", "no node has 9 gpu: big") in report.lines
    assert (tmp_path / PLACEMENTS_FILE).read_text().splitlines()[-1] == "big,,1.000000,,"
    alone = answer(tmp_path, rows.replace("big,1,5,9,1,\n", ""))
    assert alone.verdict is Verdict.YES
    assert report.metrics["makespan_s"] == alone.metrics["makespan_s"]


def test_a_trace_without_runnable_tasks_is_an_error(tmp_path: Path) -> None:
    """Where no task fits there is nothing to replay; and a task that is left out has no wait to explain."""
    with pytest.raises(UnfoldError, match=r"no task can ever run .*no node has 9 gpu: x, y"):
        answer(tmp_path, "x,0,5,9,1,\ny,0,5,9,1,\n")
    with pytest.raises(UnfoldError, match="x can never run: no node has 9 gpu"):
        answer(tmp_path, "x,0,5,9,1,\ny,0,5,1,1,\n", "explain: {task: x}")


def test_reasons_name_what_no_node_has() -> None:
    """Too large a demand, a resource that there is not, a sum that no one node has, a type of which there is none."""
    odd = [
        Task("wide", {"gpu": 5000}, 1.0, job="wide"),
        Task("typo", {"gpus": 1000}, 1.0, job="typo"),
        Task("both", {"gpu": 3000, "cpu": 15_000}, 1.0, job="both"),
        Task("far", {"gpu": 1000}, 1.0, job="far", types=("A10",)),
    ]
    nodes = [Node("g", {"gpu": 4000, "cpu": 8000}), Node("c", {"gpu": 2000, "cpu": 16_000})]
    assert found([*odd, *job("ok", 3)], nodes, types={}) == {
        "wide": "no node has 5 gpu",
        "typo": 'no node has any gpus (did you mean "gpu"?)',
        "both": "no node has 3 gpu + 15 cpu",
        "far": "no node is a A10",
    }
    assert "far" not in found(odd, nodes)


def test_dependents_of_unplaceable_tasks_are_unplaceable() -> None:
    """A gang goes with its member, who comes after or runs beside with the other job; each only under its policy."""
    broken = job("gang", 3)
    broken[1] = replace(broken[1], demand={"gpu": 9000})
    later = [*job("next", 1, after=("gang",)), *job("last", 1, after=("next",)), *job("with", 1, follows="next")]
    assert set(found([*broken, *later])) == {"gang-1"}
    assert set(found([*broken, *later], gang={})) == {"gang-0", "gang-1", "gang-2"}
    assert set(found([*broken, *later], barrier={})) == {"gang-1", "next-0", "last-0"}
    every = {task.name for task in [*broken, *later]}
    assert set(found([*broken, *later], gang={}, barrier={}, affinity={})) == every


def test_jobs_blocked_by_their_policies_are_left_out_with_all_alike() -> None:
    """Gangs of six that keep apart on four nodes never start, in however many jobs; gangs of four do."""
    tasks = [task for name in ("a", "b", "c") for task in job(name, 4 if name == "b" else 6)]
    unplaceable = found(tasks, **{"gang": {}, "anti-affinity": {}})
    assert {name.split("-")[0] for name in unplaceable} == {"a", "c"}
    assert len(unplaceable) == 12
    assert unplaceable["a-0"] == "alone on the empty cluster it waits for Gang to create gang-a-"


def test_gangs_larger_than_the_cluster_state_both_sizes() -> None:
    """A gang of five tasks of four GPUs needs 20 of 16: the reason is that sum, whichever policy lacks it first."""
    needs = "the 5 tasks of its gang start together and need 20 gpu; all nodes together have 16"
    large = [replace(task, demand={"gpu": 4000}) for task in job("large", 5)]
    for more in ({}, {"quota": {"quotas": {"u": 4.0}}}):
        unplaceable = found([*large, *job("ok", 4)], gang={}, **more)
        assert unplaceable == {f"large-{index}": needs for index in range(5)}
