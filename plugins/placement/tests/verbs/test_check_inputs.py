"""`unfold check --data`: the files of nodes and tasks are read, and labels are looked for among the nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from unfold_placement.schema.placement import PlacementSpec
from unfold_placement.verbs.check_inputs import check_inputs
from unfoldkit.api import Run, RunDir
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

SPEC = """
version: 1
kind: placement
name: p
cluster: {nodes: [{count: 2, cpu: 16, labels: {rack: r1}}]}
workload: {replay: {trace: csv, path: tasks.csv}}
policy: {pack: {level: rack}}
"""
TASKS = "task,arrival,run,cpu\na,0,60,1\nb,5,60,1\n"


def list_mistakes(folder: Path, text: str = SPEC, tasks: str = TASKS) -> list[str]:
    """Return what is wrong with the files and labels of a spec."""
    (folder / "tasks.csv").write_text(tasks)
    spec = validate(PlacementSpec, parse(text, "p.yaml"))
    return [str(item) for item in check_inputs(spec, Run(RunDir(folder / "run"), LocalEngine(1), base=folder))]


def test_valid_inputs_are_not_reported(tmp_path: Path) -> None:
    """A spec with readable files has no mistake, nor has one without files, and nothing is written."""
    assert list_mistakes(tmp_path) == []
    assert list_mistakes(tmp_path, SPEC.replace("{replay: {trace: csv, path: tasks.csv}}", "{}")) == []
    assert not (tmp_path / "run").exists()


def test_faults_of_nodes_and_tasks_are_reported_together(tmp_path: Path) -> None:
    """A label that no node has and a time that is none are two mistakes, where a plan stops at the first."""
    label, time = list_mistakes(tmp_path, SPEC.replace("level: rack", "level: rak"), TASKS.replace("b,5", "b,soon"))
    assert "no node has the label 'rak'" in label
    assert "tasks.csv:3" in time
    assert "soon" in time


def test_events_of_nodes_that_do_not_exist_are_reported(tmp_path: Path) -> None:
    """A misspelt node of an event is a mistake at its key, with the name that was meant."""
    (found,) = list_mistakes(
        tmp_path, SPEC.replace("labels: {rack: r1}}]", "labels: {rack: r1}}], events: [{at: 1 s, nodes: [nod-1]}]")
    )
    assert "cluster.events.0.nodes: no such node: nod-1" in found
    assert "node-1" in found.partition("nod-1")[2]


@pytest.mark.parametrize("nodes", ["{name: a, cpu: 4}, {name: a, cpu: 8}", "{name: node-0, cpu: 4}, {cpu: 4}"])
def test_two_nodes_of_one_name_are_reported(tmp_path: Path, nodes: str) -> None:
    """Two nodes of one name would be one for the rules: the name is reported, before a replay counts on it."""
    label = SPEC.replace("policy: {pack: {level: rack}}", "")
    (found,) = list_mistakes(tmp_path, label.replace("{count: 2, cpu: 16, labels: {rack: r1}}", nodes))
    assert "cluster.nodes: 2 nodes have the name" in found


@pytest.mark.parametrize("key", ["nodes", "tasks"])
def test_a_missing_file_is_reported(tmp_path: Path, key: str) -> None:
    """A missing file of nodes or tasks is reported at its key."""
    text = SPEC.replace("path: tasks.csv", "path: gone.csv")
    if key == "nodes":
        text = SPEC.replace("{nodes: [{count: 2, cpu: 16, labels: {rack: r1}}]}", "{trace: csv, path: gone.csv}")
    (found,) = list_mistakes(tmp_path, text)
    assert "gone.csv" in found
