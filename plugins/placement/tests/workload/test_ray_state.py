"""Nodes and tasks as Ray's commands list them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unfold_placement.schema.placement import PlacementSpec
from unfold_placement.verbs.plan import plan
from unfold_placement.workload.ray_state import ray_nodes, ray_tasks
from unfoldkit.api import Run, RunDir, UnfoldError, Verdict
from unfoldkit.engines.local import LocalEngine

Body = dict[str, Any]
GROUP = "a7" * 14 + "01000000"
NIL = "f" * 36


def node(name: str, state: str = "ALIVE", key: str = "") -> Body:
    """Return a node of four cores and two GPUs."""
    resources = {
        "CPU": 4.0, "GPU": 2.0, "memory": "8.500 GiB", "object_store_memory": "2.000 GiB", f"node:{name}": 1.0,
        "accelerator_type:A10G": 1.0, "licence": 3.0, "bundle_group_" + GROUP: 1000.0, "CPU_group_" + GROUP: 1.0,
    }  # fmt: skip
    labels = {"ray.io/node-id": key or name, "rack": "r1"}
    return {"node_id": key or name, "node_name": name, "state": state, "resources_total": resources, "labels": labels}


def task(key: str, came: Any, start: Any = None, end: Any = None, **more: Any) -> Body:
    """Return a task of one core, with times as they are written."""
    found = {
        "task_id": key, "attempt_number": 0, "name": "step", "func_or_class_name": "step", "type": "NORMAL_TASK",
        "job_id": "01000000", "placement_group_id": None, "required_resources": {"CPU": 1.0},
        "creation_time_ms": came, "start_time_ms": start, "end_time_ms": end,
    }  # fmt: skip
    return {**found, **more}


def write(folder: Path, name: str, items: object) -> Path:
    """Write a list."""
    path = folder / name
    path.write_text(json.dumps(items))
    return path


def test_alive_nodes_are_read(tmp_path: Path) -> None:
    """Of nodes that are alive is read what tasks ask for; names that several have give way to their ids."""
    path = write(tmp_path, "n.json", [node("a"), node("b", "DEAD"), node("c", key="c1"), node("c", key="c2")])
    found = ray_nodes(path)
    assert [item.name for item in found] == ["a", "c1", "c2"]
    assert dict(found[0].capacity) == {"cpu": 4000, "gpu": 2000, "memory": 8_704_000, "licence": 3000}
    assert (found[0].labels["type"], found[0].labels["rack"]) == ("A10G", "r1")


def test_started_tasks_are_read(tmp_path: Path) -> None:
    """A task runs from start to end after its submission, and asks for what it asked Ray for, in a group or not."""
    notes: list[str] = []
    grouped = {"CPU_group_" + GROUP: 2.0, "CPU_group_0_" + GROUP: 2.0, "bundle_group_" + GROUP: 0.001}
    half = {"GPU": 0.5, "memory": 104857600.0, "licence": 1.0}
    items = [
        task("aa", 10_000, 12_500, 20_000, required_resources=half, placement_group_id=NIL),
        task("bb", 11_000, 11_000, 13_000, required_resources=grouped, placement_group_id=GROUP),
        task("bb", 13_000, 13_500, None, required_resources=grouped, placement_group_id=GROUP, attempt_number=1),
        task("cc", 12_000),
        task("dd", 9000, 9000, 9500, type="ACTOR_TASK"),
    ]
    found = ray_tasks(write(tmp_path, "t.json", {"data": {"result": {"total": 5, "result": items}}}), warn=notes.append)
    assert [(item.name, item.arrival, item.run) for item in found] == [
        ("step/aa", 0.0, 7.5), ("step/bb", 1.0, 2.0), ("step/bb-1", 3.0, 6.5)
    ]  # fmt: skip
    assert [dict(item.demand) for item in found[:2]] == [
        {"gpu": 500, "memory": 100_000, "licence": 1000},
        {"cpu": 2000},
    ]
    assert [(item.job, item.size, item.user, item.role) for item in found[:2]] == [
        ("step/aa", 1, "01000000", "step"), (GROUP, 2, "01000000", "step")
    ]  # fmt: skip
    assert notes == [
        "t.json: left out 1 tasks of actors and drivers and 1 that never started",
        "t.json: 1 tasks still run; they are taken to end with the last time of the file",
    ]


def test_local_times_of_the_command_are_read(tmp_path: Path) -> None:
    """Dates and times, with a fraction or without, are what milliseconds are."""
    times = ("2026-03-01 10:00:00.250000", "2026-03-01 10:00:01", "2026-03-01 10:01:00")
    (found,) = ray_tasks(write(tmp_path, "t.json", [task("aa", *times)]))
    assert (found.arrival, found.run) == (0.0, 59.0)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"kind": "Pod"}], r"no entry has a task_id \(ray list tasks --detail --format json --limit 10000\)"),
        ([], "no entry has a task_id"),
        ([{"task_id": "aa", "type": "NORMAL_TASK"}], "item 0 is not what ray list tasks --detail"),
        ([task("aa", "soon", 1, 2)], "'soon' is not a time"),
        ([task("aa", 1000, 2000, 3000, required_resources={"CPU": "many"})], "could not convert"),
    ],
)
def test_other_json_files_are_reported(tmp_path: Path, items: object, message: str) -> None:
    """A file of another format, or without details, is rejected with the command that writes the right one."""
    with pytest.raises(UnfoldError, match=message):
        ray_tasks(write(tmp_path, "t.json", items))


def test_a_recorded_cluster_is_replayed(tmp_path: Path) -> None:
    """What Ray listed is replayed under a policy like any other workload."""
    nodes = write(tmp_path, "n.json", [node("a")])
    tasks = [task(f"a{at}", 1000, 2000, 12_000, job_id=f"0{at % 2}") for at in range(8)]
    spec = PlacementSpec.model_validate({
        "version": 1, "kind": "placement", "name": "ray", "cluster": {"trace": "ray", "path": str(nodes)},
        "workload": {"replay": {"trace": "ray", "path": str(write(tmp_path, "t.json", tasks))}}, "policy": {"drf": {}},
    })  # fmt: skip
    report = plan(spec, Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(1)))
    assert (report.verdict, report.metrics["makespan_s"].value) == (Verdict.YES, 20.0)


@pytest.mark.parametrize(
    ("fields", "message"), [({"job_id": [None]}, "user is '\\[None\\]', not a text"), ({"type": []}, "")]
)
def test_fields_of_another_type_are_named_or_ignored(tmp_path: Path, fields: Body, message: str) -> None:
    """A list where Ray writes a text is not an internal error."""
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([task("t", 1000, 1000, 2000, **fields)]), "utf-8")
    if not message:
        assert len(ray_tasks(path)) == 1
        return
    with pytest.raises(UnfoldError, match=message):
        ray_tasks(path)
