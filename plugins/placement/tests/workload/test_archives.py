"""Logs that schedulers are compared on: the Standard Workload Format, and the Philly trace."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from plugins.placement.tests.cases import write_csv
from unfold_placement.schema.placement import PlacementSpec, WorkloadSpec
from unfold_placement.verbs.plan import plan
from unfold_placement.workload.build import build_tasks
from unfold_placement.workload.philly import philly_nodes, philly_tasks
from unfold_placement.workload.swf import swf_nodes, swf_tasks
from unfoldkit.api import Run, RunDir, UnfoldError, Verdict
from unfoldkit.engines.local import LocalEngine

HEADER = "; Computer: SP2\n; MaxNodes: 4\n; MaxProcs: 16\n"
LOG = (
    HEADER
    + """\
  1 100  5 60  6 -1 -1  6 100 -1  1  3 1 -1  2 -1 -1 -1
  2 110  0 30 16 -1 -1 -1 100 -1  0 12 1 -1 -1 -1  1 10
  3 120 -1 -1 -1 -1 -1  4 100 -1  5 -1 1 -1 -1 -1 -1 -1
  4 130  0  0  1 -1 -1  1 100 -1  1  3 1 -1  1 -1  9 -1
  4 130  0 10  1 -1 -1  1 100 -1  2  3 1 -1  1 -1 -1 -1
"""
)
MACHINES = "machineId,number of GPUs, single GPU mem\nm1,2, 12GB\nm2,8, 24GB\n"


def test_swf_jobs_are_split_over_nodes(tmp_path: Path) -> None:
    """A job is a task for each node that its processors fill; what never ran and parts of jobs are left out."""
    messages: list[str] = []
    found = swf_tasks(write_csv(tmp_path, LOG), speedup=2.0, warn=messages.append)
    assert [(task.name, task.demand["cpu"], task.size) for task in found] == [
        ("1-0", 4000, 2), ("1-1", 2000, 2), *((f"2-{at}", 4000, 4) for at in range(4)), ("4", 1000, 1)
    ]  # fmt: skip
    assert [(t.job, t.arrival, t.run, t.user, t.role, t.after) for t in (found[0], found[2], found[6])] == [
        ("1", 0.0, 60.0, "3", "2", ()), ("2", 5.0, 30.0, "12", "", ("1",)), ("4", 15.0, 0.0, "3", "1", ())
    ]  # fmt: skip
    assert messages == ["pods.csv: left out 2 of 5 lines, which never ran or are parts of jobs"]
    assert [task.job for task in swf_tasks(write_csv(tmp_path, LOG), max_jobs=1)] == ["1", "1"]


@pytest.mark.parametrize(
    ("header", "cores"),
    [("MaxNodes: 3\n; MaxProcs: 8", [3, 3, 2]), ("MaxProcs: 2", [1, 1]), ("MaxNodes: 2", [1, 1]),
     ("MaxNodes: 5\n;MaxProcs:2", [1, 1]), ("maxnodes = 2\n;MAXPROCS : 1,024 (batch)", [512, 512])],
)  # fmt: skip
def test_swf_nodes_come_from_the_header(tmp_path: Path, header: str, cores: list[int]) -> None:
    """The machine has the processors of the header on its nodes, and no more nodes than processors."""
    assert [node.capacity["cpu"] // 1000 for node in swf_nodes(write_csv(tmp_path, f"; {header}\n"))] == cores


def test_malformed_swf_files_are_reported(tmp_path: Path) -> None:
    """A line of other fields, a word instead of a number, and a header without a machine are errors."""
    with pytest.raises(UnfoldError, match=r":1:1: job: 3 fields where a job has 18"):
        swf_tasks(write_csv(tmp_path, "1 2 3\n"))
    with pytest.raises(UnfoldError, match=r":1:1: run: 'x' is not a number"):
        swf_tasks(write_csv(tmp_path, "1 2 3 x" + " 1" * 14))
    job = LOG.splitlines()[3]
    with pytest.raises(UnfoldError, match=r":1:1: run: 1e300 s are longer than 31 years"):
        swf_tasks(write_csv(tmp_path, job.replace(" 60 ", " 1e300 ")))
    with pytest.raises(
        UnfoldError, match=r":1:1: requested processors: the jobs so far fill more than 5,000,000 nodes"
    ):
        swf_tasks(write_csv(tmp_path, job.replace(" 6 100 ", " 100000000 100 ")))
    with pytest.raises(UnfoldError, match="no MaxNodes or MaxProcs in the header"):
        swf_nodes(write_csv(tmp_path, "; Computer: SP2\n"))


def attempt(start: str | None, end: str | None, **gpus: int) -> dict[str, Any]:
    """Return an attempt, with as many GPUs on each machine."""
    where = [{"ip": ip, "gpus": [f"gpu{at}" for at in range(count)]} for ip, count in gpus.items()]
    return {"start_time": start and f"2017-10-07 {start}", "end_time": end and f"2017-10-07 {end}", "detail": where}


def log_of(folder: Path, *jobs: list[dict[str, Any]]) -> Path:
    """Write a log of jobs by their attempts, submitted a minute apart from noon on."""
    path = folder / "cluster_job_log"
    made = [
        {"status": "Pass", "vc": f"v{at % 2}", "jobid": f"j{at}", "user": f"u{at}", "attempts": attempts,
         "submitted_time": f"2017-10-07 12:0{at}:00"}
        for at, attempts in enumerate(jobs)
    ]  # fmt: skip
    path.write_text(json.dumps(made))
    return path


def test_philly_jobs_have_a_task_per_machine(tmp_path: Path) -> None:
    """A job runs as long as its attempts together, on the machines and GPUs of the last; without any it is left out."""
    messages: list[str] = []
    jobs = [
        [attempt("12:01:00", "12:01:30", m1=1), attempt(None, None, m1=1), attempt("12:03:00", "12:04:00", m1=2, m2=8)],
        [],
        [attempt("12:10:00", None, m2=4)],
        [attempt("12:05:00", "12:20:00", m2=1)],
    ]
    found = philly_tasks(log_of(tmp_path, *jobs), warn=messages.append)
    assert [(task.name, task.demand["gpu"], task.size, task.arrival, task.run) for task in found] == [
        ("j0-0", 2000, 2, 0.0, 90.0), ("j0-1", 8000, 2, 0.0, 90.0), ("j2", 4000, 1, 120.0, 600.0),
        ("j3", 1000, 1, 180.0, 900.0),
    ]  # fmt: skip
    assert [(task.user, task.role) for task in found[1:3]] == [("v0/u0", "v0"), ("v0/u2", "v0")]
    assert [line.split(": ", 1)[1] for line in messages] == [
        "left out 0 others and 1 that never started",
        "1 jobs still run; they are taken to end with the last time of the file",
    ]
    assert [(n.name, n.capacity["gpu"], n.labels["type"]) for n in philly_nodes(write_csv(tmp_path, MACHINES))] == [
        ("m1", 2000, "12GB"), ("m2", 8000, "24GB")
    ]  # fmt: skip


def test_a_philly_attempt_that_ends_before_it_starts_takes_no_time(tmp_path: Path) -> None:
    """It takes none from the other attempts of its job either."""
    attempts = [attempt("12:01:00", "12:02:00", m1=1), attempt("12:05:00", "12:04:30", m1=1)]
    assert [task.run for task in philly_tasks(log_of(tmp_path, attempts))] == [60.0]


def test_philly_records_with_one_id_are_jobs_of_their_own(tmp_path: Path) -> None:
    """A second record under an id keeps its own GPUs, time and size; an equal record does not count again."""
    warnings: list[str] = []
    path = log_of(tmp_path, [attempt("12:01:00", "12:02:00", m1=1, m2=1)], [attempt("12:01:00", "12:03:00", m1=4)], [])
    first, second, _ = json.loads(path.read_text())
    path.write_text(json.dumps([first, {**second, "jobid": first["jobid"]}, first]))
    found = philly_tasks(path, warn=warnings.append)
    assert [(task.name, task.job, task.demand["gpu"], task.size, task.run) for task in found] == [
        ("j0-0", "j0", 1000, 2, 60.0), ("j0-1", "j0", 1000, 2, 60.0), ("j0#2", "j0#2", 4000, 1, 120.0),
    ]  # fmt: skip
    assert warnings == [f"{path.name}: left out 1 records that repeat another"]


def test_malformed_philly_files_are_reported(tmp_path: Path) -> None:
    """A file of another format, and a job without a time, are reported by their place."""
    with pytest.raises(UnfoldError, match="item 0 is not what cluster_job_log"):
        philly_tasks(write_csv(tmp_path, '[{"kind": "Pod"}]'))
    with pytest.raises(UnfoldError, match="not JSON"):
        philly_tasks(write_csv(tmp_path, "jobid,vc\n"))


@pytest.mark.parametrize("name", ["swf", "philly"])
def test_workload_logs_are_replayed(tmp_path: Path, name: str) -> None:
    """Both are replayed under policies like any other workload, gangs whole, and a job that took no time is fair."""
    log = {"swf": write_csv(tmp_path, LOG), "philly": log_of(tmp_path, [attempt("12:01:00", "12:02:00", m1=2, m2=8)])}[
        name
    ]
    nodes = tmp_path / "nodes"
    nodes.write_text({"swf": HEADER, "philly": MACHINES}[name])
    spec = PlacementSpec.model_validate({
        "version": 1, "kind": "placement", "name": "log", "cluster": {"trace": name, "path": str(nodes)},
        "workload": {"replay": {"trace": name, "path": str(log)}}, "policy": {"gang": {}, "barrier": {}},
    })  # fmt: skip
    report = plan(spec, Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(1)))
    assert report.verdict == Verdict.YES
    assert report.metrics["fairness"].value > 0.8


PBS = "01/15/2026 10:00:00;E;101.srv;user=ann queue=batch qtime=1768471200 end=1768474860\n"
GRID_ENGINE = ":".join(["all.q", "n1", *"0" * 43]) + "\n"
SACCT = "JobID      Submit\n---------- -------------------\n1          2026-01-15T10:00:00\n"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (PBS, "it is an accounting log of PBS"),
        ('"JOB_FINISH" "10.1" 1768474860 1234 1001 33554438 16\n', "it is a log of LSF"),
        (GRID_ENGINE, "it is an accounting log of Grid Engine"),
        ("# Version: 6.2\n#\n" + GRID_ENGINE, "it is an accounting log of Grid Engine"),
        (LOG, "trace: swf"),
        (SACCT, "sacct -P prints columns that are separated by bars"),
        ('{"meta": {}, "jobs": []}', "sacct -P prints a table"),
        ('[{"vc": "a", "jobid": "1", "attempts": []}]', "trace: philly"),
        ('{"apiVersion": "v1", "kind": "PodList", "items": []}', "trace: kubectl"),
        ('[{"task_id": "1", "attempt_number": 0}]', "trace: ray"),
        ('{"jobs": [{"t_submit": 1700000000.1, "t_run": 1700000010.2}]}', "it is output of flux jobs"),
        ('{"timestamp": 1, "pbs_version": "22", "Jobs": {}}', "it is output of PBS's qstat"),
        ("JobId=123 JobName=a\n   UserId=ann(1)\n", "it is output of scontrol show job"),
        ('ClusterId = 101\nProcId = 0\nOwner = "ann"\n', "it is output of HTCondor"),
        ('[\n{\n  "ClusterId": 101\n}\n]\n', "it is output of HTCondor"),
        ("======\nqname        all.q\n", "it is output of qacct"),
        ("Job <1234>, Job Name <train>, User <ann>\n", "it is output of bhist"),
        ("Summary of time in seconds spent in various states:\nJOBID   USER\n", "it is output of bhist"),
        ("\nAccounting information about jobs that are: \n  - submitted by all users.\n", "it is output of bhist"),
        (" ID     OWNER          SUBMITTED   RUN_TIME     ST COMPLETED   CMD\n", "it is output of HTCondor"),
        ("apiVersion: batch.volcano.sh/v1alpha1\nkind: Job\n", "trace: kubectl"),
        ("name,cpu_milli,memory_mib\np,1000,1024\n", "trace: openb"),
        ('{"time": "0", "type": "0", "collection_id": "1"}\n', "it has events of Google's trace"),
        (
            "when,who\n1,2\n",
            "it has when, who; table: {columns: ...} maps others, see docs/reference/placement-files.md",
        ),
    ],
)
def test_a_log_that_is_no_table_is_recognized(tmp_path: Path, text: str, hint: str) -> None:
    """The error of a missing column says what the file is, and how to read it."""
    replay = {"trace": "csv", "path": str(write_csv(tmp_path, text))}
    run = Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(1))
    with pytest.raises(UnfoldError) as caught:
        build_tasks(WorkloadSpec.model_validate({"replay": replay}), run)
    assert hint in caught.value.diagnostics[0].hint


def test_times_of_philly_are_times_or_absent(tmp_path: Path) -> None:
    """Without a submission a job arrives as it starts; a time of another form is an error, and no job is lost by it."""
    attempt: dict[str, Any] = {
        "start_time": "2017-10-08 03:00:00", "end_time": "2017-10-08 04:00:00", "detail": [{"ip": "m", "gpus": ["0"]}]
    }  # fmt: skip
    jobs = [
        {"jobid": "a", "vc": "v", "user": "u", "submitted_time": "None", "attempts": [attempt]},
        {"jobid": "b", "vc": "v", "user": "u", "submitted_time": None, "attempts": []},
    ]
    path, warnings = tmp_path / "cluster_job_log", list[str]()
    path.write_text(json.dumps(jobs), "utf-8")
    assert [(t.name, t.arrival, t.run) for t in philly_tasks(path, warn=warnings.append)] == [("a", 0.0, 3600.0)]
    assert warnings == ["cluster_job_log: left out 0 others and 1 that never started"]
    attempt["start_time"] = "03:00 PDT"
    path.write_text(json.dumps(jobs), "utf-8")
    with pytest.raises(UnfoldError, match="'03:00 PDT' is not a time"):
        philly_tasks(path)


PBS_ENDS = """\
01/15/2026 10:10:00;Q;1.srv;queue=batch
01/15/2026 10:10:00;E;1.srv;user=ann queue=gpu qtime=100 start=160 Resource_List.ncpus=32 Resource_List.ngpus=8 \
Resource_List.nodect=2 Resource_List.select=2:ncpus=16:ngpus=4 end=760
01/15/2026 10:10:00;E;2[3].srv;user=bob queue=batch qtime=100 start=160 Resource_List.nodect=4 \
Resource_List.nodes=1:ppn=1:gpus=1:exclusive+2:ppn=2:gpus=3+n7:ppn=4 total_execution_slots=9 end=760
01/15/2026 10:10:00;E;3.srv;user=cat queue=batch qtime=100 start=160 Resource_List.nodect=1 \
Resource_List.nodes=1:ppn=4 total_execution_slots=4 end=760
01/15/2026 10:10:00;E;4.srv;user=cat queue=batch qtime=100 start=160 exec_host=n1/1+n1/0+n7/0 Resource_List.nodect=3 \
Resource_List.nodes=2:ppn=4+n7:gpus=1 end=760
"""


@pytest.mark.skipif(shutil.which("awk") is None, reason="needs awk")
def test_the_command_for_logs_of_pbs_reads_those_of_torque(tmp_path: Path) -> None:
    """PBS Pro has totals; Torque has GPUs among its nodes, and before version 5 cores, too: they were none."""
    page = (Path(__file__).parents[4] / "docs/reference/placement-files.md").read_text("utf-8")
    command = page[page.index("awk -F ';'") : page.index("> tasks.csv\nawk 'BEGIN")]
    (tmp_path / "20260115").write_text(PBS_ENDS, "utf-8")
    shell = shutil.which("sh") or "/bin/sh"
    text = subprocess.run([shell, "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert text.splitlines()[1:] == [
        "1.srv-2,ann,gpu,100,160,760,32,8,2",
        "2[3].srv-3,bob,batch,100,160,760,9,7,4",
        "3.srv-4,cat,batch,100,160,760,4,,1",
        "4.srv-5,cat,batch,100,160,760,9,1,3",
    ]


LSF_ENDS = """\
"JOB_FINISH" "10.1" 1768474860 1234 1001 33554438 4 1768467000 0 0 1768467660 "ann lee" "gpu" "select[a>0]" "" \
"" "login" "work" "" "out" "" "1768467000.1234" 0 4 "h1" "h1" "h2" "h2" 64 200.0 "a ""b"" c" "train x" 12.0 \
"select[type == local] rusage[mem=4.00,ngpus_physical=2.00] "
"JOB_FINISH" "10.1" 1768474900 1235 1001 33554438 4 1768467100 0 0 1768467660 "bob" "cpu" "" \
"" "" "login" "work" "" "out" "" "1768467000.1235" 1 "h1" 1 "4*h1" 64 200.0 "b" "x" 12.0
"""


@pytest.mark.skipif(shutil.which("awk") is None, reason="needs awk")
def test_the_command_for_logs_of_lsf_reads_gpus_and_hosts(tmp_path: Path) -> None:
    """GPUs are those of each host; jobs had none, and ran on one node each."""
    page = (Path(__file__).parents[4] / "docs/reference/placement-files.md").read_text("utf-8")
    command = page[page.index("awk 'BEGIN {print") :].partition(" > tasks.csv")[0]
    (tmp_path / "lsb.acct").write_text(LSF_ENDS, "utf-8")
    shell = shutil.which("sh") or "/bin/sh"
    text = subprocess.run([shell, "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert text.splitlines()[1:] == [
        '1234-1,"ann lee","gpu",1768467000,1768467660,1768474860,4,4,2',
        '1235-2,"bob","cpu",1768467100,1768467660,1768474900,4,,1',
    ]
