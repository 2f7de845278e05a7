"""Jobs and machines of the Philly trace (Microsoft, 2017; Jeon et al., USENIX ATC 2019), as it is published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from unfold_placement.core.types import MILLI, Node, Task
from unfold_placement.schema.columns import Columns
from unfold_placement.workload.json_stream import Body, ItemFormat, Span, Warn, build_tasks, parse_items, read_items
from unfold_placement.workload.tables import csv_nodes
from unfold_placement.workload.timestamps import parse_datetime

JOBS, MACHINES = "cluster_job_log", "cluster_machine_list"
NAMES = {"name": ("machineId",), "gpu": ("number of GPUs",), "type": ("single GPU mem",)}


def philly_nodes(path: Path) -> Iterator[Node]:
    """Yield the machines of ``cluster_machine_list``; their type is the memory of a GPU, such as 24GB.

    Raises:
        UnfoldError: it is no such file.
    """
    for node in csv_nodes(path, Columns(NAMES)):
        yield replace(node, labels={"type": node.labels["type"].strip()})


def philly_tasks(path: Path, faster: float = 1.0, first: int | None = None, tell: Warn = str) -> list[Task]:
    """Return the jobs of ``cluster_job_log``: a task for each machine that the last attempt had, with its GPUs there.

    A job runs as long as its attempts did together, from its submission on, 0 s the earliest; what still runs ends with
    the last time of the file. The user is a path, virtual cluster and user, the role the virtual cluster. Jobs without
    an attempt that tells its start and GPUs are left out, and ``tell`` is told. Only the ``first`` so many are read.

    Raises:
        UnfoldError: it is no such file.
    """
    jobs = parse_items(read_items(path, JOBS), path, JOBS, _read)
    form = ItemFormat(JOBS, "jobs", "others", _span, partial(_task, faster=faster))
    found = build_tasks(jobs, jobs, path, form, first, tell)
    details = {str(job["jobid"]): job["places"] for job in jobs}
    sizes = Counter({task.job: len(details[task.job]) for task in found})
    return [part for task in found for part in _parts(task, details[task.job], sizes[task.job])]


def _parts(task: Task, gpus: Sequence[int], size: int) -> Iterator[Task]:
    for at, count in enumerate(gpus):
        yield replace(
            task, name=task.name if size == 1 else f"{task.name}-{at}", demand={"gpu": count * MILLI}, size=size
        )


def _read(job: Body) -> Body:
    """Return a job with its times in s: when it came, its attempts, and the GPUs that the last had by machine."""
    came = _time(job["submitted_time"])
    if came is None:
        raise ValueError(f"{job['submitted_time']!r} is no time")
    attempts = _attempts(job)
    places = next((gpus for _, _, gpus in reversed(attempts) if gpus), [])
    return {**job, "came": came, "attempts": attempts if places else [], "places": places}


def _attempts(job: Body) -> list[tuple[float, float | None, list[int]]]:
    """Return start, end and GPUs by machine of each attempt that tells its start; all but the last have an end."""
    told = [(_time(each["start_time"]), _time(each["end_time"]), each["detail"]) for each in job["attempts"]]
    found = [(start, end, [len(one["gpus"]) for one in where if one["gpus"]]) for start, end, where in told if start]
    return [item for at, item in enumerate(found) if item[1] is not None or at + 1 == len(found)]


def _span(job: Body) -> Span:
    attempts = job["attempts"]
    return job["came"], attempts[0][0] if attempts else None, attempts[-1][1] if attempts else None


def _task(job: Body, span: Span, origin: float, last: float, faster: float) -> Task:
    run = sum((last if end is None else end) - start for start, end, _ in job["attempts"])
    name, team = str(job["jobid"]), str(job["vc"])
    return Task(name, {}, max(run, 0.0), (span[0] - origin) / faster, name, f"{team}/{job['user']}", team)


def _time(cell: object) -> float | None:
    return None if cell is None else parse_datetime(str(cell))
