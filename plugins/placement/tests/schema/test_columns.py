"""Tables of others are read by what they call their columns, in their units."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from plugins.placement.tests.cases import write_csv
from unfold_placement.schema.columns import Columns, find_unit
from unfold_placement.schema.placement import PlacementSpec
from unfold_placement.workload.tables import csv_nodes, csv_tasks
from unfoldkit.api import UnfoldError


def test_columns_are_renamed(tmp_path: Path) -> None:
    """Column names of other tools are understood; several are combined; a missing one is reported by its own name."""
    names = {"task": ("job", "kind"), "job": ("job",), "arrival": ("sent",), "run": ("took",), "gpu": ("gpus",)}
    path = write_csv(tmp_path, "job|kind|sent|took|gpus\nx|ps|5|1-00:00:10|25\nx|worker|6|00:01:00|100\n")
    found = list(csv_tasks(path, columns=Columns(names, {"gpu": 0.01})))
    assert [(t.name, t.job, t.size, t.arrival, t.run, dict(t.demand)) for t in found] == [
        ("x-ps", "x", 2, 5.0, 86410.0, {"gpu": 250}),
        ("x-worker", "x", 2, 6.0, 60.0, {"gpu": 1000}),
    ]
    with pytest.raises(UnfoldError, match="no column start_time"):
        list(csv_tasks(path, columns=Columns({**names, "arrival": ("start_time",)})))


def test_a_file_without_header_uses_the_configured_columns(tmp_path: Path) -> None:
    """With ``head`` the first line is a row, reported as line 1; a row without names for all cells is an error."""
    head = ("task", "count", "job", "arrival", "run", "gpu")
    path = write_csv(tmp_path, "m1,2,j1,5,60,100\nm2,1,j1,6,30,50\n")
    found = list(csv_tasks(path, columns=Columns(header=head, scales={"gpu": 0.01})))
    assert [(t.name, t.size, t.arrival, t.demand["gpu"]) for t in found] == [
        ("m1-0", 3, 5.0, 1000), ("m1-1", 3, 5.0, 1000), ("m2", 3, 6.0, 500)
    ]  # fmt: skip
    with pytest.raises(UnfoldError, match=r"1:1: arrival: 'j1' is not a number"):
        list(csv_tasks(path, columns=Columns(header=("task", "gpu", "arrival", "run", "a", "b"))))
    with pytest.raises(UnfoldError, match="the row has 6 cells where the head has 2"):
        list(csv_tasks(path, columns=Columns(header=("task", "run"), names={"arrival": ("run",)})))


def test_additional_resource_columns_are_read(tmp_path: Path) -> None:
    """Amounts of any resource are read by the column that has them, of nodes (where it is no label) and of tasks."""
    columns = Columns({"name": ("sn",)}, {"rdma": 0.01}, resources={"rdma": "rdma_request"})
    (node,) = csv_nodes(write_csv(tmp_path, "sn,cpu,rdma_request,zone\na,8,400,z1\n"), columns)
    assert (dict(node.capacity), node.labels["zone"], "rdma" in node.labels) == (
        {"cpu": 8000, "rdma": 4000},
        "z1",
        False,
    )
    columns = Columns({}, {"rdma": 0.01}, resources={"rdma": "rdma_request"})
    found = list(csv_tasks(write_csv(tmp_path, "task,arrival,run,rdma_request\na,0,5,25\nb,0,5,\n"), columns=columns))
    assert [dict(task.demand) for task in found] == [{"rdma": 250}, {}]
    with pytest.raises(UnfoldError, match="no column rdma_request"):
        list(csv_tasks(write_csv(tmp_path, "task,arrival,run\na,0,5\n"), columns=columns))


def test_run_times_follow_from_start_and_end(tmp_path: Path) -> None:
    """A task runs from its start, or its arrival, to its end, dates or numbers; one that ends before is an error."""
    names = Columns({"end": ("over",), "start": ("begun",)})
    times = ("2026-01-01 10:00", "2026-01-01 10:30", "2026-01-01 11:00")
    text = f"task,arrival,begun,over\na,{','.join(times)}\nb,{times[0]},,{times[2]}\n"
    assert [task.run for task in csv_tasks(write_csv(tmp_path, text), columns=names)] == [1800.0, 3600.0]
    with pytest.raises(UnfoldError, match=r"2:1: end: it ends 2 s before its start"):
        list(csv_tasks(write_csv(tmp_path, "task,arrival,begun,over\na,0,5,3\n"), columns=names))


def test_rows_without_a_value_use_stated_defaults(tmp_path: Path) -> None:
    """A row without arrival, end, run or name stays, under defaults that are counted; ``skip`` leaves it out."""
    lines: list[str] = []
    text = "task,arrival,run,gpu,job\na,5,10,1,j\nb,7,,NaN,j\n,None,30,2,j\nc,9,20,,j\n"
    path = write_csv(tmp_path, text)
    tasks = list(csv_tasks(path, warn=lines.append))
    assert [(task.name, task.arrival, task.run, task.size) for task in tasks] == [
        ("a", 5.0, 10.0, 4), ("b", 7.0, 20.0, 4), ("line-4", 5.0, 30.0, 4), ("c", 9.0, 20.0, 4),
    ]  # fmt: skip
    assert lines == [
        "pods.csv: 1 of 4 rows have no task; they use the number of their line",
        "pods.csv: 1 of 4 rows have no arrival; they use the earliest time of the file",
        "pods.csv: 1 of 4 rows have no run; they use 20 s, the median of the file's positive ones",
        "pods.csv: 2 of 4 rows have no gpu; they use 0",
    ]
    lines.clear()
    skipping = Columns(missing={"run": "skip", "arrival": "skip", "gpu": 0.5})
    tasks = list(csv_tasks(path, columns=skipping, warn=lines.append))
    assert [(task.name, task.size, dict(task.demand)) for task in tasks] == [
        ("a", 2, {"gpu": 1000}), ("c", 2, {"gpu": 500})
    ]  # fmt: skip
    assert lines == [
        "pods.csv: left out 1 of 4 rows without run; the first is line 3",
        "pods.csv: left out 1 of 4 rows without arrival; the first is line 4",
        "pods.csv: 1 of 4 rows have no gpu; they use 0.5",
    ]


def test_rows_without_an_end_run_until_the_file_ends(tmp_path: Path) -> None:
    """A task that still ran ends with the last time of the file, one from before the file arrives with its start."""
    names = {"arrival": ("created",), "start": ("scheduled",), "end": ("deleted",)}
    text = "task,created,scheduled,deleted\na,,100,200\nb,150,160,\nc,,,180\nd,300,,\n"
    lines: list[str] = []
    tasks = list(csv_tasks(write_csv(tmp_path, text), columns=Columns(names), warn=lines.append))
    assert [(task.name, task.arrival, task.run) for task in tasks] == [
        ("a", 100.0, 100.0), ("b", 150.0, 140.0), ("c", 100.0, 80.0), ("d", 300.0, 1.0)
    ]  # fmt: skip
    assert lines == [
        "pods.csv: 2 of 4 rows have no start; they run from their arrival (missing: {start: skip} leaves them out)",
        "pods.csv: 1 of 4 rows have no arrival; they use their start",
        "pods.csv: 1 of 4 rows have no arrival; they use the earliest time of the file",
        "pods.csv: 2 of 4 rows have no end; they use the latest time of the file",
    ]


def test_columns_may_be_absent_where_a_default_is_configured(tmp_path: Path) -> None:
    """Without a configured default an absent column is an error that names the columns of the file."""
    path = write_csv(tmp_path, "gpu\n1\n2\n")
    defaults = Columns(missing={"task": "line", "arrival": "first", "run": 600.0})
    tasks = list(csv_tasks(path, columns=defaults))
    assert [(task.name, task.arrival, task.run) for task in tasks] == [("line-2", 0.0, 600.0), ("line-3", 0.0, 600.0)]
    with pytest.raises(UnfoldError, match=r"no column task, arrival, run \(it has gpu"):
        list(csv_tasks(path))
    with pytest.raises(UnfoldError, match=r"no row has a run time \(give them one"):
        list(csv_tasks(write_csv(tmp_path, "task,arrival,run\na,0,\n")))


def test_unknown_cells_are_configured(tmp_path: Path) -> None:
    """Numbers that mean no value in a file, however they are spelled, and negative ones, use the default."""
    names = {"end": ("over",)}
    text = "task,arrival,over\na,100,0\nb,100,200\nc,100,9223372036854775807\nd,150,0.0\ne,150,100\n"
    path = write_csv(tmp_path, text)
    unknown = {"end": frozenset({"0", "9.2233720368547758e+18"}), "run": frozenset({"negative"})}
    assert [task.run for task in csv_tasks(path, columns=Columns(names, unknown=unknown))] == [
        100.0, 100.0, 100.0, 50.0, 100.0
    ]  # fmt: skip
    with pytest.raises(UnfoldError, match=r"6:1: end: it ends 50 s before its arrival \(table: {unknown: {run"):
        list(csv_tasks(path, columns=Columns(names, unknown={"end": unknown["end"]})))


def test_a_row_can_describe_several_tasks(tmp_path: Path) -> None:
    """``count`` is so many tasks alike, ``parts`` so many among which what is needed is divided."""
    text = "task,arrival,run,gpu,count,parts\na,0,5,2,3,\nb,0,5,16,,2\nc,0,5,1,1.0,1\n"
    found = list(csv_tasks(write_csv(tmp_path, text)))
    assert [(task.name, task.size, task.demand["gpu"]) for task in found] == [
        ("a-0", 3, 2000), ("a-1", 3, 2000), ("a-2", 3, 2000), ("b-0", 2, 8000), ("b-1", 2, 8000), ("c", 1, 1000)
    ]  # fmt: skip


def test_whole_devices_are_not_shared_by_parts(tmp_path: Path) -> None:
    """Three GPUs on two nodes are two and one; cores, and what is a fraction anyway, are spread evenly."""
    text = "task,arrival,run,gpu,cpu,count,parts\na,0,5,3,3,2,2\nb,0,5,1,4,,2\nc,0,5,0.5,1,,2\n"
    found = list(csv_tasks(write_csv(tmp_path, text)))
    assert [task.demand.get("gpu", 0) for task in found] == [2000, 1000, 2000, 1000, 1000, 0, 250, 250]
    assert [task.demand["cpu"] for task in found] == [1500] * 4 + [2000, 2000, 500, 500]


def test_amounts_may_have_kubernetes_suffixes(tmp_path: Path) -> None:
    """Millicores and sizes with a suffix are amounts; a suffix that a column cannot have is an error."""
    text = "name,cpu,memory,gpu\na,11900m,83427060Ki,1\nb,2,4Gi,500m\nc,1e1,1G,\n"
    assert [dict(node.capacity) for node in csv_nodes(write_csv(tmp_path, text))] == [
        {"cpu": 11_900, "memory": 81_471_738, "gpu": 1000},
        {"cpu": 2000, "memory": 4_096_000, "gpu": 500},
        {"cpu": 10_000, "memory": 953_674},
    ]
    with pytest.raises(UnfoldError, match=r"2:1: memory: '5m' is not a number"):
        list(csv_nodes(write_csv(tmp_path, "name,memory\na,5m\n")))
    with pytest.raises(UnfoldError, match=r"2:1: cpu: -5 is out of range"):
        list(csv_nodes(write_csv(tmp_path, "name,cpu\na,-5m\n")))


def test_amounts_below_a_thousandth_are_an_error(tmp_path: Path) -> None:
    """An amount that thousandths would change by more than a twentieth is reported, and is read in a multiple."""
    path = write_csv(tmp_path, "task,arrival,run,cpu\na,0,5,0.5\nb,0,5,0.00042\n")
    with pytest.raises(UnfoldError, match=r"3:1: cpu: 0.00042 is too small: amounts are stored in thousandths"):
        list(csv_tasks(path))
    assert [t.demand["cpu"] for t in csv_tasks(path, columns=Columns(scales={"cpu": 1000}))] == [500_000, 420]


def test_a_table_is_checked_by_its_keys() -> None:
    """A column that tasks do not have, and a table for a trace that has its own columns, are mistakes at their keys."""
    replay = {"trace": "openb", "path": "p", "table": {"columns": {"tusk": "name"}}}
    nodes = {"trace": "csv", "path": "n", "table": {"columns": {"zone": "az"}, "scale": {"zone": 2}}}
    spec = PlacementSpec.model_validate(
        {"version": 1, "kind": "placement", "name": "n", "cluster": nodes, "workload": {"replay": replay}}, strict=False
    )
    assert [(problem.path[-1], problem.message) for problem in spec.problems()] == [
        ("zone", "no column zone"),
        ("table", "only a CSV file has a table"),
        ("tusk", "no column tusk"),
    ]


@pytest.mark.parametrize(
    "times",
    [
        ("1700000000", "1700000090"),
        ("1700000000000", "1700000090000"),
        ("1700000000000000", "1700000090000000"),
        ("2023-11-14T22:13:20Z", "2023-11-14 22:14:50.0000000 +0000"),
        ("11/14/2023 22:13:20", "11/14/2023 22:14:50"),
    ],
)
def test_unix_times_count_from_the_earliest(tmp_path: Path, times: tuple[str, str]) -> None:
    """Seconds, ms and us since 1970 and every spelling of a date agree: ninety seconds apart, from 0 s."""
    text = f"task,arrival,begun,over\nb,{times[1]},{times[1]},{times[1]}\na,{times[0]},{times[0]},{times[1]}\n"
    found = list(csv_tasks(write_csv(tmp_path, text), columns=Columns({"end": ("over",), "start": ("begun",)})))
    assert [(task.name, task.arrival, task.run) for task in found] == [("b", 90.0, 0.0), ("a", 0.0, 90.0)]


def test_a_date_without_a_time_is_midnight(tmp_path: Path) -> None:
    """Days alone are a day apart; small numbers, and those with a unit in their scale, stay as they are."""
    text = "task,arrival,run\na,2026-01-31,1\nb,2026-02-01,1\n"
    assert [task.arrival for task in csv_tasks(write_csv(tmp_path, text))] == [0.0, 86400.0]
    text = "task,arrival,run\na,00:10:00,1\nb,1-00:00:00,1\n"
    assert [task.arrival for task in csv_tasks(write_csv(tmp_path, text))] == [600.0, 86400.0]
    text = "task,arrival,run\na,600000000,1\nb,2600000000000,1\n"
    found = csv_tasks(write_csv(tmp_path, text), columns=Columns(scales={"arrival": 1e-6}))
    assert [task.arrival for task in found] == [600.0, 2.6e6]


@pytest.mark.parametrize(("gpu", "arrival"), [("," * 100_000, "1"), ("1", "a" * 100_000)])
@pytest.mark.timed
def test_a_long_cell_is_rejected_at_once(tmp_path: Path, gpu: str, arrival: str) -> None:
    """The time to reject a cell grows with its length, not with the square of it."""
    path = write_csv(tmp_path, f'task,arrival,run,gpu\na,{arrival},60,"{gpu}"\n')
    began_s = time.process_time()
    with pytest.raises(UnfoldError, match="is not a number"):
        list(csv_tasks(path))
    assert time.process_time() - began_s < 2


@pytest.mark.parametrize(
    ("column", "name", "factor"),
    [
        ("run", "duration_days", 86400), ("run", "runHours", 3600), ("run", "duration (h)", 3600),
        ("run", "wall_min", 60), ("arrival", "submit_hours", 3600), ("arrival", "offset_ms", 0.001),
        ("memory", "memGB", 1024),
        ("memory", "Memory[GiB]", 1024), ("memory", "mem_tb", 1 << 20), ("cpu", "cpu_milli", 0.001),
        ("gpu", "gpuPercent", 0.01),
    ],
)  # fmt: skip
def test_a_column_that_names_another_unit_needs_a_scale(tmp_path: Path, column: str, name: str, factor: float) -> None:
    """Days read as seconds and GB as MiB: a plan for tasks of a thousandth of the size, without a word."""
    other = {"arrival": "run", "run": "arrival"}.get(column, "arrival,run")
    path = write_csv(tmp_path, f"task,{other},{name}\na,{'1,1' if ',' in other else 1},2\n")
    with pytest.raises(
        UnfoldError, match=rf"{column}: .* seems to be in .* \(scale: {{{column}: {factor:.14g}}}, or 1"
    ):
        list(csv_tasks(path, columns=Columns({column: (name,)})))
    (task,) = csv_tasks(path, columns=Columns({column: (name,)}, scales={column: float(factor)}))
    found = getattr(task, column) if column in {"run", "arrival"} else task.demand[column] / 1000
    assert found == 2 * factor


@pytest.mark.parametrize("name", ["duration_sec", "admin", "weekday", "items", "start_time", "jams"])
def test_other_names_state_no_unit(name: str) -> None:
    """Words that end like a unit are none."""
    assert not find_unit("run", name)


def test_times_since_1970_in_another_unit_need_no_scale(tmp_path: Path) -> None:
    """Their unit is detected, whatever the name of their column says; a task that has not ended may have a zero."""
    path = write_csv(tmp_path, "task,start_ms,end_ms\na,1767225600000,1767225660000\nb,1767225601000,0\n")
    columns = Columns({"arrival": ("start_ms",), "end": ("end_ms",)}, unknown={"end": frozenset({"0"})})
    assert [(task.arrival, task.run) for task in csv_tasks(path, columns=columns)] == [(0.0, 60.0), (1.0, 59.0)]
