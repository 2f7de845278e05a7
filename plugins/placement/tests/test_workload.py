"""Recorded workloads are read as clusters write them, and what is wrong with one is told by line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from plugins.placement.tests.cases import places, run, starts
from unfold_placement.facts import Node
from unfold_placement.workload import csv_tasks, openb_nodes, openb_tasks
from unfoldkit.api import UnfoldError

PODS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,creation_time,deletion_time,scheduled_time\n"


def write(folder: Path, text: str) -> Path:
    """A file with that text."""
    (folder / "pods.csv").write_text(text, encoding="utf-8")
    return folder / "pods.csv"


def test_openb_pods(tmp_path: Path) -> None:
    """A pod runs from its start, or its creation, to its end, or the last time in the file; a part of a GPU is one."""
    rows = "a,4000,512,1,460,,LS,0,100,20\nb,1000,0,0,0,,BE,10,,\nc,500,1,2,1000,,BE,30,60,\nd,1,1,1,1000,,BE,5,5,5\n"
    found = list(openb_tasks(write(tmp_path, "\ufeff" + PODS + rows), faster=10.0))
    assert [task.name for task in found] == ["a", "b", "c", "d"]
    assert [task.run for task in found] == [80.0, 90.0, 30.0, 1.0]
    assert [task.arrival for task in found] == [0.0, 1.0, 3.0, 0.5]
    assert [dict(task.demand) for task in found[:3]] == [
        {"cpu": 4000, "memory": 512_000, "gpu": 460},
        {"cpu": 1000, "memory": 0},
        {"cpu": 500, "memory": 1000, "gpu": 2000},
    ]
    assert [task.user for task in found[:2]] == ["LS", "BE"]


def test_openb_nodes(tmp_path: Path) -> None:
    """A node has what its row says, a type, and a rack of 32 in a row."""
    rows = "".join(f"n{index},32000,262144,{index % 2},T4\n" for index in range(33))
    found = list(openb_nodes(write(tmp_path, "sn,cpu_milli,memory_mib,gpu,model\n" + rows)))
    assert dict(found[1].capacity) == {"cpu": 32000, "memory": 262_144_000, "gpu": 1000}
    assert "gpu" not in found[0].capacity
    assert [found[index].labels["rack"] for index in (0, 31, 32)] == ["rack-0", "rack-0", "rack-1"]


def test_csv_tasks(tmp_path: Path) -> None:
    """Tasks of a job know how many they are; what a row leaves out is nothing, or never."""
    text = "task,arrival,run,cpu,job,deadline,types\na,0,5,1.5,j,60,\nb,2,5,,j,,t4 | a10\n"
    found = list(csv_tasks(write(tmp_path, text)))
    assert [(task.size, dict(task.demand), task.deadline, task.types) for task in found] == [
        (2, {"cpu": 1500}, 60.0, ()),
        (2, {}, math.inf, ("t4", "a10")),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task,arrival,run\na,0,soon\n", r"pods\.csv:2:1: run: 'soon' is not a number"),
        ("task,arrival,run,cpu\na,0,1,-2\n", r"pods\.csv:2:1: cpu: -2 is not a number that can be meant"),
        ("task,arrival,run\na,nan,1\n", r"pods\.csv:2:1: arrival: nan is not"),
        ("task,arrival\na,0\n", r"no column run \(it has task, arrival\)"),
    ],
)
def test_bad_tasks_are_told(tmp_path: Path, text: str, message: str) -> None:
    """A cell that is no amount, and a column that is missing, are told with their place."""
    with pytest.raises(UnfoldError, match=message):
        list(csv_tasks(write(tmp_path, text)))


def test_types_of_gpu_are_held_to(tmp_path: Path) -> None:
    """Pods of a trace that ask for types of GPU wait for a node of such a type under the policy for it."""
    path = write(tmp_path, PODS + "a,1000,1,1,1000,V100M16|T4,LS,0,10,0\nb,1000,1,1,1000,T4,LS,1,9,1\n")
    nodes = [Node(kind, {"gpu": 1000, "cpu": 8000, "memory": 8000}, {"type": kind}) for kind in ("A10", "T4")]
    found = run(nodes, list(openb_tasks(path)), types={})
    assert places(found) == {"a": "T4", "b": "T4"}
    assert starts(found) == {"a": 0.0, "b": 10.0}
