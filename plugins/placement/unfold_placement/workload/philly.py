"""Jobs and machines of the Philly trace (Microsoft, 2017; Jeon et al., USENIX ATC 2019), as published."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from unfold_placement.core.types import MILLI, Node, Task
from unfold_placement.schema.columns import Columns
from unfold_placement.workload.json_stream import (
    Body,
    ItemFormat,
    Span,
    Timeline,
    Warn,
    build_tasks,
    parse_items,
    read_items,
)
from unfold_placement.workload.tables import csv_nodes
from unfold_placement.workload.timestamps import parse_datetime

JOBS_FILE = "cluster_job_log"
NODE_NAMES = {"name": ("machineId",), "gpu": ("number of GPUs",), "type": ("single GPU mem",)}
Attempt = tuple[float, float | None, list[int]]
"""Start and end (s) of an attempt, and its number of GPUs by machine."""


def philly_nodes(path: Path) -> Iterator[Node]:
    """Yield the machines of ``cluster_machine_list``; their type is the memory of a GPU, such as 24GB.

    Raises:
        UnfoldError: The file does not have this form.
    """
    for node in csv_nodes(path, Columns(NODE_NAMES)):
        yield replace(node, labels={"type": node.labels["type"].strip()})


def philly_tasks(path: Path, speedup: float = 1.0, max_tasks: int | None = None, warn: Warn = str) -> list[Task]:
    """Return the jobs of ``cluster_job_log``: a task for each machine of the last attempt, with its GPUs there.

    A job runs as long as its attempts together, from its submission, or its start without one, on. Running jobs end
    with the last time of the file. A record that occurs twice counts once; another record under the same id is a job of
    its own, named such as ``id#2``. The user is the path of virtual cluster and user, the role the virtual cluster.
    Jobs without an attempt that has a start and GPUs are left out.

    Args:
        path: The file.
        speedup: Factor that accelerates arrivals.
        max_tasks: Use only so many jobs.
        warn: Receives how many jobs and records are left out.

    Raises:
        UnfoldError: The file does not have this form.
    """
    records = parse_items(read_items(path, JOBS_FILE), path, JOBS_FILE, _read_job)
    jobs = _separate_jobs(records)
    if len(jobs) < len(records):
        warn(f"{path.name}: left out {len(records) - len(jobs)} records that repeat another")
    form = ItemFormat(JOBS_FILE, "jobs", "others", _read_span, _build_task)
    tasks = build_tasks(jobs, path, form, max_tasks=max_tasks, speedup=speedup, warn=warn)
    gpus_by_job = {str(job["jobid"]): job["gpus"] for job in jobs}
    job_sizes = {task.job: len(gpus_by_job[task.job]) for task in tasks}
    return [
        machine_task for task in tasks for machine_task in _split_task(task, gpus_by_job[task.job], job_sizes[task.job])
    ]


def _separate_jobs(records: Sequence[Body]) -> list[Body]:
    """Return each record once, with an id that no other has: the second under an id is ``id#2``."""
    records_by_id: dict[str, list[Body]] = {}
    jobs = []
    for record in records:
        job_id = str(record["jobid"])
        known = records_by_id.setdefault(job_id, [])
        if record not in known:
            known.append(record)
            jobs.append(record if len(known) == 1 else {**record, "jobid": f"{job_id}#{len(known)}"})
    return jobs


def _split_task(task: Task, gpus: Sequence[int], size: int) -> Iterator[Task]:
    for index, count in enumerate(gpus):
        name = task.name if size == 1 else f"{task.name}-{index}"
        yield replace(task, name=name, demand={"gpu": count * MILLI}, size=size)


def _read_job(job: Body) -> Body:
    """Return a job with its submission (s), its attempts, and the GPUs of the last attempt by machine."""
    submitted_s, attempts = _parse_time(job["submitted_time"]), _read_attempts(job)
    gpus = next((gpus for _, _, gpus in reversed(attempts) if gpus), [])
    return {**job, "submitted_s": submitted_s, "attempts": attempts if gpus else [], "gpus": gpus}


def _read_attempts(job: Body) -> list[Attempt]:
    """Return the attempts that have a start; all but the last need an end."""
    attempts: list[Attempt] = []
    for attempt in job["attempts"]:
        start_s = _parse_time(attempt["start_time"])
        end_s = _parse_time(attempt["end_time"])
        machines = attempt["detail"]
        if start_s:
            attempts.append((start_s, end_s, [len(machine["gpus"]) for machine in machines if machine["gpus"]]))
    return [attempt for index, attempt in enumerate(attempts) if attempt[1] is not None or index + 1 == len(attempts)]


def _read_span(job: Body) -> Span:
    attempts, submitted_s = job["attempts"], job["submitted_s"]
    if not attempts:
        # without a submission, too, it has no time that could be the last of the file
        return Span(-math.inf if submitted_s is None else submitted_s, None, None)
    start_s, end_s = attempts[0][0], attempts[-1][1]
    return Span(start_s if submitted_s is None else submitted_s, start_s, end_s)


def _build_task(job: Body, span: Span, timeline: Timeline) -> Task:
    run_s = sum(max((timeline.end_s if end is None else end) - start, 0.0) for start, end, _ in job["attempts"])
    name, virtual_cluster = str(job["jobid"]), str(job["vc"])
    return Task(
        name=name,
        demand={},
        run=run_s,
        arrival=timeline.arrival_s(span),
        job=name,
        user=f"{virtual_cluster}/{job['user']}",
        role=virtual_cluster,
    )


def _parse_time(cell: object) -> float | None:
    """Return a time in seconds; None for what the trace writes where there is none.

    Raises:
        ValueError: It is not a time.
    """
    if str(cell) in {"None", ""}:
        return None
    time_s = parse_datetime(str(cell))
    if time_s is None:
        raise ValueError(f"{cell!r} is not a time")
    return time_s
