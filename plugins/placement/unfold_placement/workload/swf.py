"""Jobs and machine of a log in the Standard Workload Format of the Parallel Workloads Archive.

A line has eighteen numbers, -1 for unknown ones; lines that begin with a semicolon are the header (Chapin et al.,
Benchmarks and Standards for the Evaluation of Parallel Job Schedulers, 1999).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice
from pathlib import Path

from unfold_placement.core.types import MILLI, Node, Task
from unfold_placement.workload.json_stream import Warn
from unfold_placement.workload.missing_values import MAX_SPAN_S
from unfold_placement.workload.tables import MAX_TASKS
from unfoldkit.api import CsvRow, user_error
from unfoldkit.io.tables import UNREADABLE, open_text

FIELDS = (
    "job", "submit", "wait", "run", "processors", "cpu time", "memory", "requested processors", "requested time",
    "requested memory", "status", "user", "group", "program", "queue", "partition", "preceding job", "think time",
)  # fmt: skip
COMPLETED = 1
PARTIAL_STATUS = frozenset({2, 3, 4})
"""Status of lines about a part of a job, which also has a line for the complete job."""
_HEADER = re.compile(r";\s*(MaxNodes|MaxProcs)\s*[:=]\s*(\d{1,3}(?:,\d{3})+|\d+)", re.IGNORECASE)


def swf_nodes(path: Path) -> list[Node]:
    """Return ``MaxNodes`` nodes with ``MaxProcs`` processors in total; a missing number equals the other.

    Raises:
        UnfoldError: The file cannot be read, or its header has neither.
    """
    nodes, processors = _read_machine(path)
    if not nodes:
        hint = "write the nodes: [{count: 64, cpu: 8}]"
        raise user_error("no MaxNodes or MaxProcs in the header", file=str(path), hint=hint)
    base, extra = divmod(processors, nodes)
    return [Node(f"node-{index}", {"cpu": (base + (index < extra)) * MILLI}) for index in range(nodes)]


def swf_tasks(path: Path, speedup: float = 1.0, max_jobs: int | None = None, warn: Warn = str) -> list[Task]:
    """Return the jobs that ran: one task for each node that a job's processors fill.

    The nodes are those of the header, or of one processor without a header. Time counts from the earliest submission.
    The user is the number of the user, the role that of the queue. A job comes ``after`` its preceding job of the log.
    Jobs that never ran, jobs of unknown size, and lines about a part of a job are left out.

    Args:
        path: The file.
        speedup: Factor that accelerates arrivals.
        max_jobs: Use only so many jobs.
        warn: Receives how many lines are left out.

    Raises:
        UnfoldError: The file cannot be read, a line does not have eighteen numbers, a job runs implausibly long, or
            the jobs have too many tasks.
    """
    nodes, processors = _read_machine(path)
    node_size = math.ceil(processors / nodes) if nodes else 1
    rows = list(_iter_jobs(path))
    usable = list(islice((row for row in rows if _has_run(row)), max_jobs))
    if len(usable) < len(rows) and (max_jobs is None or len(usable) < max_jobs):
        left_out = len(rows) - len(usable)
        warn(f"{path.name}: left out {left_out} of {len(rows)} lines, which never ran or are parts of jobs")
    _check_bounds(usable, node_size)
    origin_s = min((row.number("submit") for row in usable), default=0.0)
    jobs = {row["job"] for row in usable}
    return [
        task
        for row in usable
        for task in _build_tasks(row, node_size, (row.number("submit") - origin_s) / speedup, jobs)
    ]


def _check_bounds(rows: Sequence[CsvRow], node_size: int) -> None:
    total = 0
    for row in rows:
        if row.number("run") > MAX_SPAN_S:
            raise row.wrong(f"{row['run']} s are longer than 31 years", "run")
        total += math.ceil(_job_size(row) / node_size)
        if total > MAX_TASKS:
            raise row.wrong(f"the jobs so far fill more than {MAX_TASKS:,} nodes", "requested processors")


def _build_tasks(row: CsvRow, node_size: int, arrival_s: float, jobs: AbstractSet[str]) -> Iterator[Task]:
    full_nodes, remainder = divmod(_job_size(row), node_size)
    processors = [node_size] * full_nodes + [remainder] * (remainder > 0)
    job, preceding = row["job"], row["preceding job"]
    for index, count in enumerate(processors):
        yield Task(
            name=job if len(processors) == 1 else f"{job}-{index}",
            demand={"cpu": count * MILLI},
            run=row.number("run"),
            arrival=arrival_s,
            job=job,
            user=_known_text(row["user"]),
            role=_known_text(row["queue"]),
            size=len(processors),
            after=(preceding,) if preceding in jobs and preceding != job else (),
        )


def _known_text(cell: str) -> str:
    return "" if cell.startswith("-") else cell


def _job_size(row: CsvRow) -> int:
    requested = round(row.number("requested processors"))
    return requested if requested > 0 else round(row.number("processors"))


def _has_run(row: CsvRow) -> bool:
    # a job that was cancelled while it waited has no run time, or an unknown one
    has_started = row.number("run") > 0 or (row.number("run") == 0 and row.number("status") == COMPLETED)
    return has_started and _job_size(row) > 0 and round(row.number("status")) not in PARTIAL_STATUS


def _read_machine(path: Path) -> tuple[int, int]:
    """Return nodes and processors of the header, (0, 0) where it has neither."""
    matches = [match for _, text in _iter_lines(path) if (match := _HEADER.match(text))]
    header = {match[1].lower(): int(match[2].replace(",", "")) for match in matches}
    nodes, processors = header.get("maxnodes", 0), header.get("maxprocs", 0)
    # some headers count nodes that accept no jobs
    return min(nodes or processors, processors or nodes), processors or nodes


def _iter_jobs(path: Path) -> Iterator[CsvRow]:
    for line, text in _iter_lines(path):
        if not text or text.startswith(";"):
            continue
        cells = text.split()
        if len(cells) != len(FIELDS):
            hint = "is it a file in the Standard Workload Format?"
            raise CsvRow({}, path, line).wrong(f"{len(cells)} fields where a job has {len(FIELDS)}", "job", hint)
        yield CsvRow(dict(zip(FIELDS, cells, strict=True)), path, line)


def _iter_lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with open_text(path, errors="replace") as stream:
            yield from ((number, text.strip()) for number, text in enumerate(stream, 1))
    except UNREADABLE as error:
        raise user_error(f"it cannot be read: {error}", file=str(path)) from error
