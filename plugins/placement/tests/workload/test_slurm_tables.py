"""Tables that ``sacct`` and ``sinfo`` print, and others with tasks that never ran."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from plugins.placement.tests.cases import write_csv
from unfold_placement.schema.columns import Columns, read_slurm_amount
from unfold_placement.workload.tables import csv_nodes, csv_tasks
from unfoldkit.api import UnfoldError

HEAD = "JobID|User|Submit|Start|End|Elapsed|State|NNodes|AllocTRES\n"
TRES = "billing=64,cpu=64,gres/gpu:a100=8,gres/gpu=8,mem=1T,node=2"
ROWS = f"""\
1_4|ann|2026-01-01T00:00:00|2026-01-01T00:01:00|2026-01-03T03:05:05|2-03:04:05|COMPLETED|2|{TRES}
2+1|bob|2026-01-01T00:10:00|2026-01-01T00:10:00|Unknown|00:50:00|RUNNING|1|billing=4,cpu=4,mem=512M,node=1
3_[5-9%2]|bob|2026-01-01T00:20:00|Unknown|Unknown|00:00:00|PENDING|1|
4|ann|2026-01-01T00:30:00|None|2026-01-01T00:40:00|00:00:00|CANCELLED by 1000|1|
"""
NAMES = {
    "task": ("JobID",), "user": ("User",), "arrival": ("Submit",), "parts": ("NNodes",), "cpu": ("AllocTRES",),
    "gpu": ("AllocTRES",), "memory": ("AllocTRES",),
}  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "kind", "amount"),
    [
        (TRES, "gpu", 8), (TRES, "cpu", 64), (TRES, "memory", 1 << 20), (TRES, "shard", 0),
        ("cpu=2,gres/gpu:a100=1,gres/gpu:t4=2,mem=512", "gpu", 3), ("cpu=2,mem=1.5G", "memory", 1536),
        ("gpu:a100:8(S:0-1)", "gpu", 8), ("gpu:a100:2(IDX:0,1),gpu:t4:1(IDX:2)", "gpu", 3), ("gres/gpu:4", "gpu", 4),
        ("gres:gpu:1g.5gb:7,shard:2K", "gpu", 7), ("gres:gpu:1g.5gb:7,shard:2K", "shard", 2048),
        ("4", "gpu", None), ("4Gi", "memory", None), ("10:30", "gpu", None), ("cpu=", "cpu", None), ("x=y", "x", None),
        ("select=2:ncpus=8:ngpus=4", "gpu", None), ("nvidia.com/gpu=2", "gpu", None), ("a100:2", "gpu", None),
        ("gpu:2", "cpu", None), ("gres:nic:1", "gpu", 0), ("billing=4,cpu=4,license/ansys=2", "gpu", 0),
    ],
)  # fmt: skip
def test_resources_of_slurm(cell: str, kind: str, amount: float | None) -> None:
    """TRES and GRES give the total of a kind; anything else is read as before."""
    assert read_slurm_amount(cell, kind) == amount


def test_a_table_of_sacct_by_its_elapsed_times(tmp_path: Path) -> None:
    """Arrays, heterogeneous jobs, days and TRES are read; jobs that never ran are counted, and left out on demand."""
    path, warnings = write_csv(tmp_path, HEAD + ROWS), list[str]()
    found = list(csv_tasks(path, columns=Columns({**NAMES, "run": ("Elapsed",)}), warn=warnings.append))
    arrays = [f"3_{index}" for index in range(5, 10)]
    assert [task.name for task in found] == ["1_4-0", "1_4-1", "2+1", *arrays, "4"]
    assert found[0].demand == {"cpu": 32_000, "gpu": 4000, "memory": (1 << 19) * 1000}
    assert (found[0].run, found[2].demand) == (183_845.0, {"cpu": 4000, "memory": 512_000})
    assert warnings[:2] == [
        "pods.csv: 5 tasks of 1 job array, each read as a row; 1 limit of tasks at a time (%) not read",
        "pods.csv: 6 of 8 rows run for 0 s (unknown: {run: [0]} with missing: {run: skip} leaves them out)",
    ]
    ran = Columns({**NAMES, "run": ("Elapsed",)}, missing={"run": "skip"}, unknown={"run": frozenset({"00:00:00"})})
    assert [task.job for task in csv_tasks(path, columns=ran)] == ["1_4", "1_4", "2"]


def test_a_table_of_sacct_by_its_starts_and_ends(tmp_path: Path) -> None:
    """A job that was cancelled while it waited has an end and no start: the report says that it runs all the same."""
    path, warnings = write_csv(tmp_path, HEAD + ROWS), list[str]()
    names = {**NAMES, "start": ("Start",), "end": ("End",)}
    assert len(list(csv_tasks(path, columns=Columns(names), warn=warnings.append))) == 9
    assert warnings[1] == (
        "pods.csv: 6 of 8 rows have no start; they run from their arrival (missing: {start: skip} leaves them out)"
    )
    started = csv_tasks(path, columns=Columns(names, missing={"start": "skip"}))
    assert [task.job for task in started] == ["1_4", "1_4", "2"]


@pytest.mark.parametrize("name", ["batch", "extern", "interactive", "0"])
def test_steps_of_jobs_are_no_tasks(tmp_path: Path, name: str) -> None:
    """Without -X, sacct prints steps in rows of their own: they would count what their job holds twice."""
    step = f"1_4.{name}||2026-01-01T00:00:00|||2-03:04:05|COMPLETED|1|cpu=32,mem=512G,node=1\n"
    path = write_csv(tmp_path, HEAD + ROWS + step)
    with pytest.raises(UnfoldError, match=rf":6:1: task: 1_4.{name} is a step of the job of line 2.*sacct -X"):
        list(csv_tasks(path, columns=Columns({**NAMES, "run": ("Elapsed",)})))


def test_steps_before_their_job_are_no_tasks(tmp_path: Path) -> None:
    """In a table that was sorted, a step stands before its job, and both counted."""
    head, *rows = (HEAD + ROWS).splitlines(keepends=True)
    step = "1_4.extern||2026-01-01T00:00:00|||2-03:04:05|COMPLETED|1|cpu=32,mem=512G,node=1\n"
    columns = Columns({**NAMES, "run": ("Elapsed",)})
    alone = csv_tasks(write_csv(tmp_path, head + step + step.replace("extern", "0")), columns=columns)
    assert [task.name for task in alone] == ["1_4.extern", "1_4.0"]
    path = write_csv(tmp_path, head + step + "".join(rows))
    with pytest.raises(UnfoldError, match=r":2:1: task: 1_4.extern is a step of the job of line 3.*sacct -X"):
        list(csv_tasks(path, columns=columns))


@pytest.mark.parametrize(
    "columns",
    [{"task": ("JobID", "Submit")}, {"task": ("User", "JobID")}, {"task": ("Start",)}],
    ids=["requeued", "user", "other"],
)
def test_steps_are_found_under_any_name(tmp_path: Path, columns: dict[str, tuple[str, ...]]) -> None:
    """A task is named by several columns where jobs were requeued, or by none of the job's: its steps are steps."""
    step = "1_4.batch||2026-01-01T00:00:00|2026-01-01T00:01:01||2-03:04:05|COMPLETED|1|cpu=32,mem=512G,node=1\n"
    path = write_csv(tmp_path, HEAD + ROWS.splitlines(keepends=True)[0] + step)
    with pytest.raises(UnfoldError, match=r":3:1: JobID: 1_4.batch is a step of the job of line 2.*sacct -X"):
        list(csv_tasks(path, columns=Columns({**NAMES, "run": ("Elapsed",), **columns})))


def test_requested_memory_counts_in_powers_of_1024(tmp_path: Path) -> None:
    """Slurm writes 16G for 16 GiB; elsewhere it is the 16 GB of Kubernetes."""
    path = write_csv(tmp_path, "task,arrival,run,ReqMem\na,0,5,16G\nb,0,5,512K\nc,0,5,4000M\n")
    tasks = csv_tasks(path, columns=Columns({"memory": ("ReqMem",)}))
    assert [task.demand["memory"] for task in tasks] == [16_384_000, 500, 4_000_000]
    path = write_csv(tmp_path, "task,arrival,run,memory\na,0,5,16G\n")
    assert [task.demand["memory"] for task in csv_tasks(path)] == [15_258_789]


def test_amounts_per_node_are_not_spread(tmp_path: Path) -> None:
    """CPUs of squeue are those of the job, its memory and GRES those of each node."""
    path = write_csv(tmp_path, "task|arrival|run|NODES|CPUS|MIN_MEMORY|TRES_PER_NODE\na|0|5|2|64|16G|gres:gpu:a100:3\n")
    names = {"parts": ("NODES",), "cpu": ("CPUS",), "memory": ("MIN_MEMORY",), "gpu": ("TRES_PER_NODE",)}
    demand = {"cpu": 32_000, "gpu": 3000, "memory": 16_384_000}
    assert [task.demand for task in csv_tasks(path, columns=Columns(names))] == [demand, demand]


def test_a_table_of_sacct_without_a_head(tmp_path: Path) -> None:
    """With -n the first line has the commas of TRES: the number of columns decides what separates the cells."""
    columns = Columns({**NAMES, "run": ("Elapsed",)}, header=HEAD.strip().split("|"))
    assert len(list(csv_tasks(write_csv(tmp_path, ROWS), columns=columns))) == 9


def test_nodes_of_sinfo(tmp_path: Path) -> None:
    """GRES are GPUs of nodes, and a node without any has (null)."""
    text = "NODELIST|CPUS|MEMORY|GRES\ngpu1|64|515000|gpu:a100:8(S:0-1)\ncpu1|64|257000|(null)\n"
    names = {"name": ("NODELIST",), "cpu": ("CPUS",), "memory": ("MEMORY",), "gpu": ("GRES",)}
    found = list(csv_nodes(write_csv(tmp_path, text), Columns(names)))
    assert [node.capacity.get("gpu", 0) for node in found] == [8000, 0]
    assert found[0].capacity["memory"] == 515_000_000


def test_a_list_of_hosts_is_no_node(tmp_path: Path) -> None:
    """Without -N sinfo prints a row for all nodes that are alike: a cluster would be one node of each sort."""
    for name in ("gpu[01-04]", "gpu[1,3]", "rack[2-3]n[7]"):
        with pytest.raises(UnfoldError, match=r"names several nodes \(sinfo -N prints one row for each node"):
            list(csv_nodes(write_csv(tmp_path, f"name|cpu\n{name}|64\n")))
    assert [node.name for node in csv_nodes(write_csv(tmp_path, "name,cpu\nn1[0],64\nn1[1],64\n"))] == [
        "n1[0]",
        "n1[1]",
    ]


def test_tasks_that_never_ran_are_counted(tmp_path: Path) -> None:
    """A row with neither arrival nor end would run as long as the file: the report says so."""
    path, warnings = write_csv(tmp_path, "task,arrival,end\na,10,20\nb,,\nc,12,\n"), list[str]()
    found = list(csv_tasks(path, columns=Columns({"end": ("end",)}), warn=warnings.append))
    assert [task.run for task in found] == [10.0, 10.0, 8.0]
    assert warnings[0].startswith("pods.csv: 1 of 3 rows have neither arrival nor end; they run as long as the file")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,0,-5,1", r"run: -5 is out of range \(table: {unknown: {run: \[negative\]}} treats such cells as missing"),
        ("a,0,UNLIMITED,1", r"'UNLIMITED' is not a number \(table: {unknown: {run: \['UNLIMITED'\]}}"),
        ("a,0,5,>24", r"cpu: '>24' is not a number \(table: {unknown: {cpu: \['>24'\]}}"),
        ("a,0,05:30,1", r"'05:30' is not a number \(write hours, minutes and seconds, such as 0:05:30\)"),
        ("a,0,5,4Gn", r"'4Gn' is not a number \(Slurm's ReqMem is per node or core: read AllocTRES"),
        (
            "a,Mon 10:00,5,1",
            r"arrival: 'Mon 10:00' is not a number \(write seconds, Unix times, or dates such as 2026-",
        ),
        ("a,0,PT2H,1", r"run: 'PT2H' is not a number \(write seconds, or days, hours, minutes and seconds: 1-02:03:04"),
        ("a,0,5,16g", r"'16g' is not a number \(write 16Gi for powers of 1024, or 16G for powers of 1000\)"),
        ("a,0,5,64gb", r"'64gb' is not a number \(write 64Gi for powers of 1024, or 64G for powers of 1000\)"),
    ],
)
def test_a_hint_says_how_to_read_what_is_no_number(tmp_path: Path, row: str, message: str) -> None:
    """It may have no value, or another spelling."""
    with pytest.raises(UnfoldError, match=message):
        list(csv_tasks(write_csv(tmp_path, f"task,arrival,run,cpu\n{row}\n")))


def test_tasks_that_end_at_zero_are_counted(tmp_path: Path) -> None:
    """Alibaba's waiting tasks of 2018 have zeros as start and end; a task of less than a second is none of them."""
    path, warnings = write_csv(tmp_path, "task,arrival,end\na,10,20\nb,0,0\nc,12,12\n"), list[str]()
    assert len(list(csv_tasks(path, columns=Columns({"end": ("end",)}), warn=warnings.append))) == 3
    assert warnings == [
        "pods.csv: 1 of 3 rows run for 0 s (unknown: {end: [0]} with missing: {end: skip} leaves them out)"
    ]
    columns = Columns({"end": ("end",)}, missing={"end": "skip"}, unknown={"end": frozenset({"0"})})
    assert [task.name for task in csv_tasks(path, columns=columns)] == ["a", "c"]


def test_a_log_of_grid_engine_has_colons(tmp_path: Path) -> None:
    """Its columns have names once the spec gives them: their number shows what separates the cells."""
    path = write_csv(tmp_path, "all.q:n1:ann:7:1768471200:1768474800:-l gpu=1\nall.q:n2:bob:8:1768471260:1768471300:\n")
    columns = Columns({"end": ("end",)}, header=("queue", "host", "user", "task", "arrival", "end", "category"))
    assert [(task.name, task.arrival, task.run) for task in csv_tasks(path, columns=columns)] == [
        ("7", 0.0, 3600.0), ("8", 60.0, 40.0)
    ]  # fmt: skip


def test_dates_with_points_have_the_day_first(tmp_path: Path) -> None:
    """As spreadsheets of half of Europe write them."""
    text = "task;arrival;run\na;31.01.2026 23:00;10\nb;01.02.2026 01:30:00;10\n"
    assert [task.arrival for task in csv_tasks(write_csv(tmp_path, text))] == [0.0, 9000.0]


@pytest.mark.parametrize(
    "date",
    [
        "2026/01/05 04:05", "2026-01-05 04:05:00 UTC", "Mon Jan  5 04:05:00 2026", "Jan 5 04:05:00 2026 L",
        "Mon Jan 5 04:05:00 UTC 2026", "Jan 5, 2026 4:05", "5 Jan 2026 04:05:00", "Mon, 05 Jan 2026 05:05:00 +0100",
    ],
)  # fmt: skip
def test_written_dates_of_databases_schedulers_and_mails_are_read(date: str, tmp_path: Path) -> None:
    """They have one reading; the name of another zone has several, and is an error."""
    text = f"task|arrival|run\na|2026-01-05T03:05:00Z|10\nb|{date}|10\n"
    assert [task.arrival for task in csv_tasks(write_csv(tmp_path, text))] == [0.0, 3600.0]
    with pytest.raises(UnfoldError, match="'Mon Jan 5 04:05:00 CST 2026' is not a"):
        list(csv_tasks(write_csv(tmp_path, text.replace(date, "Mon Jan 5 04:05:00 CST 2026"))))


def test_numbers_of_days_are_no_seconds_until_a_scale_says_so(tmp_path: Path) -> None:
    """Spreadsheets write a date as 46000.5, which would be half a second; the error names the column."""
    path = write_csv(tmp_path, "task,arrival,start,end\na,46000,46000.5,46000.75\nb,46001,46001.25,46001.5\n")
    names = {"start": ("start",), "end": ("end",)}
    scale = "{arrival: 86400, start: 86400, end: 86400} reads days, 1 seconds"
    with pytest.raises(UnfoldError, match=rf"arrival: 46000 may be .* 2025-12-09 00:00 \(scale: {scale}"):
        list(csv_tasks(path, columns=Columns(names)))
    with pytest.raises(UnfoldError, match=r"scale: {arrival: 86400} reads days"):
        list(csv_tasks(path, columns=Columns(names, scales={"start": 86400.0, "end": 86400.0})))
    days = Columns(names, scales=dict.fromkeys(("arrival", "start", "end"), 86400.0))
    assert [(task.arrival, task.run) for task in csv_tasks(path, columns=days)] == [(0.0, 21600.0), (86400.0, 21600.0)]
    seconds = Columns(names, scales=dict.fromkeys(("arrival", "start", "end"), 1.0))
    assert [task.run for task in csv_tasks(path, columns=seconds)] == [0.25, 0.25]


def test_tables_of_lsf_have_gpus_for_each_host_and_run_times_in_words(tmp_path: Path) -> None:
    """What ``bsub -gpu`` asks for, or the effective requirements; alternatives have no one number."""
    text = (
        "task|arrival|run|parts|gpu\na|0|7200 second(s)|2|num=2:mode=shared:j_exclusive=yes\n"
        "b|0|5 second(s)|1|select[ngpus>0 && type == any] rusage[mem=4.00,ngpus_physical=1.00] span[ptile=4]\n"
        "c|0|5 second(s)|1|select[type == any] order[r15s:pg]\n"
    )
    tasks = list(csv_tasks(write_csv(tmp_path, text)))
    assert [task.run for task in tasks] == [7200.0, 7200.0, 5.0, 5.0]
    assert [dict(task.demand) for task in tasks] == [{"gpu": 2000}, {"gpu": 2000}, {"gpu": 1000}, {}]
    for cell in ("num=1/task", "1*{rusage[ngpus_physical=1]} + 2*{rusage[ngpus_physical=2]}"):
        with pytest.raises(UnfoldError, match="GPU_NUM has the total"):
            list(csv_tasks(write_csv(tmp_path, text.replace("num=2:mode=shared:j_exclusive=yes", cell))))


def test_columns_may_count_from_1970_in_different_units(tmp_path: Path) -> None:
    """A service writes submissions in seconds, and its monitoring starts and ends in ms; waiting tasks end at 0."""
    text = "task,arrival,start,end\na,1768471200,1768471260000,1768471320000\nb,1768471201,1768471261000,0\n"
    columns = Columns({"start": ("start",), "end": ("end",)}, unknown={"end": frozenset({"0"})})
    assert [task.run for task in csv_tasks(write_csv(tmp_path, text), columns=columns)] == [60.0, 59.0]


def test_dates_may_be_digits(tmp_path: Path) -> None:
    """To the second, minute or hour, as they sort as texts."""
    text = "task,arrival,run\na,20260115100000,5\nb,202601151001,5\nc,2026011511,5\n"
    assert [task.arrival for task in csv_tasks(write_csv(tmp_path, text))] == [0.0, 60.0, 3600.0]


@pytest.mark.parametrize(
    ("cell", "indices"),
    [
        ("102_[3-10%2]", range(3, 11)),
        ("102_[1,4-6]", (1, 4, 5, 6)),
        ("102_[0-9:4]", (0, 4, 8)),
        ("102_[7]", (7,)),
    ],
    ids=["limited", "list", "step", "one"],
)
def test_an_array_is_as_many_jobs_as_its_indices(tmp_path: Path, cell: str, indices: Iterable[int]) -> None:
    """The waiting tasks of an array share a row, which counted as one task; they are independent, and no gang."""
    path = write_csv(tmp_path, f"JobID|Submit|run|cpu\n102_2|2026-01-01T00:00:00|5|1\n{cell}|2026-01-01T00:00:00|5|1\n")
    names = ["102_2", *(f"102_{index}" for index in indices)]
    tasks = list(csv_tasks(path, columns=Columns({"task": ("JobID",), "arrival": ("Submit",)})))
    assert [(task.name, task.job, task.size) for task in tasks] == [(name, name, 1) for name in names]
    joined = csv_tasks(path, columns=Columns({"task": ("JobID", "Submit"), "arrival": ("Submit",)}))
    assert [task.name for task in joined] == [f"{name}-2026-01-01T00:00:00" for name in names]


@pytest.mark.parametrize("indices", ["1-3,7...", "0-4000001", "1-"], ids=["shortened", "long", "open"])
def test_an_array_without_all_indices_is_an_error(tmp_path: Path, indices: str) -> None:
    """Squeue ends a long list with points: it would have lost tasks."""
    with pytest.raises(UnfoldError, match=r":2:1: task: the array \["):
        list(csv_tasks(write_csv(tmp_path, f"task|arrival|run\n102_[{indices}]|0|5\n")))


def test_components_of_a_heterogeneous_job_are_one_job(tmp_path: Path) -> None:
    """Slurm starts them together; as jobs of their own they formed no gang."""
    path = write_csv(tmp_path, "task,arrival,run,cpu,gpu\n103+0,0,5,4,\n103+1,0,5,,8\n104,0,5,1,\n")
    assert [(task.name, task.job, task.size) for task in csv_tasks(path)] == [
        ("103+0", "103", 2), ("103+1", "103", 2), ("104", "104", 1)
    ]  # fmt: skip


def test_times_of_sacct_that_are_no_seconds_of_a_job(tmp_path: Path) -> None:
    """A limit in minutes, and the time of all CPUs, read as the seconds of a run."""
    path = write_csv(tmp_path, "task,arrival,TimelimitRaw,CPUTimeRAW\na,0,60,480\n")
    with pytest.raises(UnfoldError, match=r"TimelimitRaw seems to be in minutes.*scale: {run: 60}"):
        list(csv_tasks(path, columns=Columns({"run": ("TimelimitRaw",)})))
    minutes = Columns({"run": ("TimelimitRaw",)}, scales={"run": 60.0})
    assert [task.run for task in csv_tasks(path, columns=minutes)] == [3600.0]
    with pytest.raises(UnfoldError, match=r"run: CPUTimeRAW is the time of all CPUs together \(Elapsed"):
        list(csv_tasks(path, columns=Columns({"run": ("CPUTimeRAW",)})))
