"""Recorded workloads are read as clusters write them, and mistakes are reported by line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path

import pytest

from plugins.placement.tests.cases import cluster, places, run, starts, write_csv
from unfold_placement.core.types import Node
from unfold_placement.schema.columns import Columns
from unfold_placement.schema.placement import ClusterSpec
from unfold_placement.workload.build import build_nodes
from unfold_placement.workload.tables import csv_nodes, csv_tasks, openb_nodes, openb_tasks
from unfoldkit.api import Run, RunDir, UnfoldError
from unfoldkit.engines.local import LocalEngine

PODS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,creation_time,deletion_time,scheduled_time\n"


def test_openb_pods(tmp_path: Path) -> None:
    """A pod runs from its start, or its creation, to its end, or the last time in the file; a part of a GPU is one."""
    rows = "a,4000,512,1,460,,LS,0,100,20\nb,1000,0,0,0,,BE,10,,\nc,500,1,2,1000,,BE,30,60,\nd,1,1,1,1000,,BE,5,5,5\n"
    found = list(openb_tasks(write_csv(tmp_path, "\ufeff" + PODS + rows), speedup=10.0))
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
    """A node has the resources of its row, a type, and a rack of 32 in a row."""
    rows = "".join(f"n{index},32000,262144,{index % 2},T4\n" for index in range(33))
    found = list(openb_nodes(write_csv(tmp_path, "sn,cpu_milli,memory_mib,gpu,model\n" + rows)))
    assert dict(found[1].capacity) == {"cpu": 32000, "memory": 262_144_000, "gpu": 1000}
    assert "gpu" not in found[0].capacity
    assert [found[index].labels["rack"] for index in (0, 31, 32)] == ["rack-0", "rack-0", "rack-1"]


def test_amounts_of_openb_beyond_any_machine_are_errors(tmp_path: Path) -> None:
    """A cell that no integer can hold is reported with its line."""
    path = write_csv(tmp_path, f"sn,cpu_milli,memory_mib,gpu,model\nn0,{'9' * 30},1,0,T4\n")
    with pytest.raises(UnfoldError, match=r"2:1: cpu_milli: 1e\+30 is out of range"):
        list(openb_nodes(path))


@pytest.mark.parametrize(
    ("submitted", "ended", "is_mixed"),
    [
        ("2026-03-01 10:00:00+01:00", "2026-03-01 11:00:00", True),
        ("2026-03-01T10:00:00Z", "2026-03-01T11:00:00.5", True),
        ("Sun Mar  1 10:00:00 UTC 2026", "Sun Mar  1 11:00:00 2026", True),
        ("2026-03-01 10:00:00+01", "2026-03-01T11:00:00Z", False),
        ("2026-03-01 10:00:00", "01.03.2026 11:00", False),
        ("Sun Mar  1 10:00:00 2026", "Sun Mar  1 11:00:00 2026 E", False),
        ("3/1/2026 10:00 AM", "3/1/2026 11:00 AM", False),
    ],
)
def test_dates_with_and_without_a_zone_in_one_file_are_reported(
    tmp_path: Path, submitted: str, ended: str, is_mixed: bool
) -> None:
    """Local times beside times with a zone would change every run time by the difference, without a word."""
    warnings: list[str] = []
    path = write_csv(tmp_path, f"task,arrival,end,gpu\na,{submitted},{ended},1\n")
    (task,) = csv_tasks(path, columns=Columns({"end": ("end",)}), warn=warnings.append)
    assert task.run > 0
    assert any("time zone" in line for line in warnings) == is_mixed


@pytest.mark.parametrize(
    ("cell", "parts", "columns", "mebibytes"),
    [
        ("536870912", 1, Columns(scales={"memory": 2**-20}), 512),
        ("100000000", 1, Columns(scales={"memory": 1.0}), 100_000_000),
        ("80Ti", 1, Columns(), 80 << 20),
        ("2097152", 2, Columns(), 1 << 20),
    ],
    ids=["bytes", "stated", "suffix", "spread"],
)
def test_memory_beyond_any_machine_has_a_unit_or_a_scale(
    tmp_path: Path, cell: str, parts: int, columns: Columns, mebibytes: int
) -> None:
    """Plain bytes were read as MiB: a job of 512 MiB waited for 512 TiB; whoever states the unit is believed."""
    path = write_csv(tmp_path, f"task,arrival,run,memory,parts\na,0,5,{cell},{parts}\n")
    assert [task.demand["memory"] for task in csv_tasks(path, columns=columns)] == [mebibytes * 1000] * parts


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("memory", "4194304", r"4194304 MiB are more than 1 TiB: is it in MiB\? \(scale: .* 0\.0009765625 KiB, 1 MiB"),
        (
            "memory_kib",
            "65536",
            r"memory_kib seems to be in kib, and memory is in MiB \(scale: {memory: 0\.0009765625}",
        ),
        ("mem_gb", "16", r"mem_gb seems to be in gb, and memory is in MiB \(scale: {memory: 1024}, or 1"),
    ],
)
def test_memory_that_may_be_in_another_unit_is_asked_about(
    tmp_path: Path, column: str, cell: str, message: str
) -> None:
    """Tasks of 4 GiB in KiB were read as 4 TiB, and set aside as larger than every node."""
    path = write_csv(tmp_path, f"task,arrival,run,{column}\na,0,5,{cell}\n")
    names = {} if column == "memory" else {"memory": [column]}
    with pytest.raises(UnfoldError, match=message):
        list(csv_tasks(path, columns=Columns(names)))
    assert len(list(csv_tasks(path, columns=Columns(names, {"memory": 1.0})))) == 1


def test_csv_tasks(tmp_path: Path) -> None:
    """Tasks of a job know how many they are; what a row leaves out is nothing, or never."""
    text = "task,arrival,run,cpu,job,deadline,types\na,0,5,1.5,j,60,\nb,2,5,,j,,t4 | a10\n"
    found = list(csv_tasks(write_csv(tmp_path, text)))
    assert [(task.size, dict(task.demand), task.deadline, task.types) for task in found] == [
        (2, {"cpu": 1500}, 60.0, ()),
        (2, {}, math.inf, ("t4", "a10")),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task,arrival,run\na,0,soon\n", r"pods\.csv:2:1: run: 'soon' is not a number"),
        (
            "task,arrival,run,memory\na,0,1,512\nb,0,1,536870912\n",
            r"3:1: memory: 536870912 MiB are more than 1 TiB: is it in MiB",
        ),
        ("task,arrival,run,memory\na,0,1,17179869184\n", r"scale: {memory: 9\.5367431640625e-7} reads bytes"),
        (
            "task,arrival,run\na,0,1:99:30\n",
            r"2:1: run: '1:99:30' is not a number \(minutes and seconds of a clock end with 59",
        ),
        (
            "task,arrival,run\na,0,1:59:60.5\n",
            r"2:1: run: '1:59:60\.5' is not a number \(minutes and seconds of a clock",
        ),
        ("task,arrival,run\na,0,1-02:03\n", r"2:1: run: '1-02:03' is not a number \(write seconds, or days, hours"),
        ("task,arrival,run,cpu\na,0,1,-2\n", r"pods\.csv:2:1: cpu: -2 is out of range"),
        ("task,arrival,run\na,inf,1\n", r"pods\.csv:2:1: arrival: inf is out of range"),
        ("task,arrival,run,gpu\na,0,1,1e300\n", r"2:1: gpu: 1e\+300 is out of range"),
        ("task,arrival,run,count\na,0,1,1e9\n", r"2:1: count: 1e\+09 is out of range"),
        ("task,arrival,run,count\na,0,1,1.5\n", r"2:1: count: 1\.5 is not a whole number"),
        ("task,arrival,run,priority\na,0,1,1e99\n", r"2:1: priority: 1e\+99 is out of range"),
        ("task,arrival,run\na,0,1\nb,2600000000000,1\n", r"3:1: arrival: 2.6e\+12 s are longer than 31 years"),
        ("task,arrival,run\na,0,1e300\n", r"2:1: run: 1e\+300 s are longer than 31 years"),
        ("task,arrival\na,0\n", r"no column run \(it has task, arrival\)"),
    ],
)
def test_faulty_tasks_are_reported(tmp_path: Path, text: str, message: str) -> None:
    """A cell without an amount, and a missing column, are reported with their place."""
    with pytest.raises(UnfoldError, match=message):
        list(csv_tasks(write_csv(tmp_path, text)))


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (csv_tasks, "task;arrival;run;gpu\na;0;10;1\na;5;10;1\n", r"3:1: task: a already exists \(line 2 has it"),
        (openb_tasks, PODS + 2 * "a,1,1,0,0,,LS,0,9,1\n", r"3:1: name: a already exists"),
        (openb_tasks, PODS + "a,1,1,0,0,,LS,0,9,12\n", r"2:1: deletion_time: it ends 3 s before its start"),
        (openb_tasks, PODS + "a,1,1,0,0,,LS,1700000000,,\n", r"2:1: creation_time: 1.7e\+09 s are longer than 31"),
        (openb_tasks, PODS + "a,1,1,2,0,,LS,0,9,1\n", r"2:1: gpu_milli: no part of its 2 GPUs"),
        (openb_nodes, "sn,cpu_milli,memory_mib,gpu,model\n" + 2 * "n,1,1,0,\n", r"3:1: sn: n already exists"),
        (csv_nodes, "name,cpu\nn,1\nn,2\n", r"3:1: name: n already exists"),
        (csv_nodes, "name,cpu,gpu\nn,0,\n", r"2:1: name: the node has no resources"),
        (csv_nodes, "name,memory\nn,2097152\nm,33554432\n", r"3:1: memory: 33554432 MiB are more than 16 TiB"),
        (csv_tasks, "task,arrival,run,after\na,0,1,\nb,0,1,a|aa\n", r'3:1: after: no such job: aa \(did you mean "a"'),
        (csv_tasks, "task,arrival,run\na,2026-01-01 10:00,1\nb,5,1\n", r"3:1: arrival: '5' is not a date and time"),
    ],
)
def test_contradictory_rows_are_reported_with_their_line(
    tmp_path: Path, read: Callable[[Path], Iterable[object]], text: str, message: str
) -> None:
    """A duplicate name, an empty node, and an unknown job are reported with file, line and column."""
    with pytest.raises(UnfoldError, match=message):
        list(read(write_csv(tmp_path, text)))


def test_csv_columns_become_task_fields(tmp_path: Path) -> None:
    """Tasks to follow, to avoid and to come after, and data, are columns; several are separated by ``|`` or spaces."""
    head = "task,arrival,run,job,role,follows,avoids,after,data\n"
    text = head + "a,0,5,j,server,,,,d1 d2\nb,0,5,k,,j,,,d1|d2\nc,0,5,l,,,k,j | k,\n"
    a, b, c = csv_tasks(write_csv(tmp_path, text))
    assert (a.role, a.data, b.follows, b.data) == ("server", ("d1", "d2"), "j", ("d1", "d2"))
    assert (c.avoids, c.after, c.data) == ("k", ("j", "k"), ())


def test_dates_count_from_the_earliest(tmp_path: Path) -> None:
    """Arrivals may be dates: the earliest is 0 s, ``faster`` squeezes them, not what is left to a deadline."""
    text = "task,arrival,run,deadline\na,2026-01-31T10:01:00Z,5,2026-01-31 10:03:00\nb,2026-01-31 10:00:00,5,30\n"
    a, b = csv_tasks(write_csv(tmp_path, text), speedup=2.0)
    assert (a.arrival, a.deadline, b.arrival, b.deadline) == (30.0, 150.0, 0.0, 30.0)


def test_a_truncated_job_keeps_the_rows_that_were_read(tmp_path: Path) -> None:
    """Of the first rows only, a gang is as large as what was read of it, and starts."""
    path = write_csv(tmp_path, "task,arrival,run,gpu,job\n" + "".join(f"t{i},0,5,1,j\n" for i in range(4)))
    tasks = list(csv_tasks(path, max_rows=3))
    assert [task.size for task in tasks] == [3, 3, 3]
    assert len(starts(run(cluster(), tasks, gang={}))) == 3


def test_csv_nodes(tmp_path: Path) -> None:
    """A node has the amounts and blocks of its row; every further column is a label."""
    (node,) = csv_nodes(write_csv(tmp_path, "name,cpu,memory,gpu,type,rack,zone,data\nn,8,1024,,a10,r1,,d1 d2\n"))
    assert (node.capacity, node.labels) == ({"cpu": 8000, "memory": 1_024_000}, {"type": "a10", "rack": "r1"})
    assert node.data == {"d1", "d2"}


@pytest.mark.parametrize(("part", "picked"), [(0.75, 75), (0.6, 60), (0.4, 40), (0.3, 30), (0.001, 1), (1.0, 100)])
def test_a_fraction_of_the_nodes_is_evenly_spaced(tmp_path: Path, part: float, picked: int) -> None:
    """A part takes the stated number of nodes, each once and evenly spread."""
    rows = "".join(f"{row},1\n" for row in range(100))
    spec = ClusterSpec(trace="csv", path=str(write_csv(tmp_path, "name,cpu\n" + rows)), part=part)
    found = [int(node.name) for node in build_nodes(spec, Run(directory=RunDir(tmp_path), engine=LocalEngine(1)))]
    assert len(found) == picked
    assert all(abs(row - place / part) <= 1 for place, row in enumerate(found))
    assert len(set(found)) == picked


def test_a_fraction_of_one_in_n_takes_every_nth_node(tmp_path: Path) -> None:
    """A quarter or a tenth are every fourth and every tenth node, as in the results that are stored."""
    path = str(write_csv(tmp_path, "name,cpu\n" + "".join(f"{row},1\n" for row in range(100))))
    run_ = Run(directory=RunDir(tmp_path), engine=LocalEngine(1))
    for step in (3, 4, 7, 10, 20):
        found = [int(node.name) for node in build_nodes(ClusterSpec(trace="csv", path=path, part=1 / step), run_)]
        assert found == list(range(0, 100, step))[: len(found)]


def test_gpu_types_restrict_tasks(tmp_path: Path) -> None:
    """Pods of a trace that ask for types of GPU wait for a node of such a type under the policy for it."""
    path = write_csv(tmp_path, PODS + "a,1000,1,1,1000,V100M16|T4,LS,0,10,0\nb,1000,1,1,1000,T4,LS,1,9,1\n")
    nodes = [Node(kind, {"gpu": 1000, "cpu": 8000, "memory": 8000}, {"type": kind}) for kind in ("A10", "T4")]
    found = run(nodes, list(openb_tasks(path)), types={})
    assert places(found) == {"a": "T4", "b": "T4"}
    assert starts(found) == {"a": 0.0, "b": 10.0}


def test_jobs_outside_a_part_of_a_trace_count_as_none_where_the_spec_says_so(tmp_path: Path) -> None:
    """The others stay, and the report counts the rows; without the setting the first is an error."""
    path = write_csv(tmp_path, "task,arrival,run,after,follows\na,0,1,x|y,z\nb,1,1,a|x,a\nc,2,1,a,\n")
    with pytest.raises(UnfoldError, match=r"2:1: follows: no such job: z.*unknown: \{follows: \[unlisted\]\}"):
        list(csv_tasks(path))
    unlisted = frozenset({"unlisted"})
    warnings: list[str] = []
    columns = Columns(unknown={"after": unlisted, "follows": unlisted})
    found = list(csv_tasks(path, columns=columns, warn=warnings.append))
    assert [(task.after, task.follows) for task in found] == [((), ""), (("a",), "a"), (("a",), "")]
    assert warnings == [
        "pods.csv: 1 of 3 rows refer in follows to jobs without a row; these references are ignored",
        "pods.csv: 2 of 3 rows refer in after to jobs without a row; these references are ignored",
    ]


@pytest.mark.parametrize(
    ("head", "columns"),
    [
        ("CPU,num_gpus,note", "{cpu: CPU, gpu: num_gpus}"),
        ("cpu,num_gpus,note", "{gpu: num_gpus}"),
        ("cpu,note,gpu_type", ""),
        ("rank,node,note", ""),
    ],
)
def test_amounts_under_other_names_are_reported(tmp_path: Path, head: str, columns: str) -> None:
    """Without its GPUs a task starts at once, and the plan would say yes; the type of a GPU is no amount."""
    warnings = list[str]()
    path = write_csv(tmp_path, f"task,arrival,run,{head}\na,0,5,4,2,V100\n")
    assert len(list(csv_tasks(path, warn=warnings.append))) == 1
    assert [line.rpartition("(columns: ")[2] for line in warnings] == ([f"{columns} maps them)"] if columns else [])


NIGHT = ["2026-10-25 02:50:00", "2026-10-25 02:58:00", "2026-10-25 02:01:00", "2026-10-25 02:10:00"]
"""Arrivals of the local times of Europe as daylight saving time ends."""


@pytest.mark.parametrize(
    ("cells", "fault"),
    [
        (NIGHT, r"the clock of arrival 3 is an hour behind the one above it \(an hour back, as daylight"),
        ([f"{cell}Z" for cell in NIGHT], ""),
        ([cell.replace("10-25", "10-24") for cell in NIGHT], ""),
        (sorted(NIGHT), ""),
    ],
    ids=["local", "utc", "another day", "sorted"],
)
def test_an_hour_that_the_clock_repeats_is_no_earlier_hour(tmp_path: Path, cells: list[str], fault: str) -> None:
    """Jobs of the second hour were replayed before those of the first, and nothing said so."""
    path = write_csv(tmp_path, "task,arrival,run\n" + "".join(f"t{i},{cell},5\n" for i, cell in enumerate(cells)))
    with pytest.raises(UnfoldError, match=fault) if fault else nullcontext():
        assert len(list(csv_tasks(path))) == 4


@pytest.mark.parametrize(
    ("end", "is_named"),
    [("2026-10-25 02:10:00", True), ("2026-10-25 01:40:00", False), ("2026-10-25 02:10:00Z", False)],
)
def test_a_run_into_an_hour_that_the_clock_repeats_is_named(tmp_path: Path, end: str, is_named: bool) -> None:
    """A job of 20 minutes ends 40 minutes before its start: to leave it out is not the only way."""
    columns = Columns({"end": ("end",)})
    zone = "Z" if end.endswith("Z") else ""
    path = write_csv(tmp_path, f"task,arrival,end\na,2026-10-25 02:50:00{zone},{end}\n")
    with pytest.raises(UnfoldError, match="before its arrival") as caught:
        list(csv_tasks(path, columns=columns))
    assert ("daylight saving time" in str(caught.value)) is is_named
