"""Nodes and tasks from CSV files: the openb trace, and the user's own tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from unfold_placement.core.devices import is_device
from unfold_placement.core.types import MILLI, Node, Task
from unfold_placement.report.sentences import mixed_zones_line, unread_amounts_line
from unfold_placement.schema.columns import AMOUNT_COLUMNS, MAX_PLAIN_NODE_MEMORY, NODE_COLUMNS, Columns
from unfold_placement.workload.json_stream import Warn
from unfold_placement.workload.missing_values import MAX_SPAN_S, MissingValues, split_list
from unfold_placement.workload.slurm import SlurmRows, expand_arrays
from unfold_placement.workload.timestamps import detect_time_format, find_zones, normalize_dates
from unfoldkit.api import CsvRow, csv_rows
from unfoldkit.arrivals.readers.timestamps import check_clock

NODES_PER_RACK = 32
"""Nodes of a rack, for traces without racks."""
OPENB_TIMES = ("creation_time", "deletion_time", "scheduled_time")
OPENB_NODE_COLUMNS = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
OPENB_POD_COLUMNS = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli", *OPENB_TIMES)
MIN_RUN_S = 1.0
MAX_TASKS = 5_000_000
"""Tasks that the rows of a table may describe together."""
MAX_COUNT = 100_000
"""Tasks of one row."""
MAX_PRIORITY = 1_000_000_000
MAX_NUMBER = 1e9
"""Largest amount of an openb file."""
_AMOUNT = re.compile(r"0*[1-9.][\d.]*\s*(?:m|[kKMGT]i?)?B?")
"""A positive number, with or without a unit, of a column that looks like an amount."""
_HOST_LIST = re.compile(r"\[\d+[-,][\d,-]*\]")
"""Part of a list of nodes, such as ``gpu[01-04,7]``; a virtual node of PBS has one number in its brackets."""
STANDARD_COLUMNS = Columns()


def openb_nodes(path: Path) -> Iterator[Node]:
    """Yield the nodes of an openb file (sn, cpu_milli, memory_mib, gpu, model), with racks of 32 consecutive nodes."""
    for index, row in enumerate(_iter_unique(csv_rows(path, OPENB_NODE_COLUMNS), "sn")):
        labels = {"type": row["model"], "rack": f"rack-{index // NODES_PER_RACK}"}
        yield Node(row["sn"], _openb_amounts(row, _openb_number(row, "gpu")), labels)


def openb_tasks(path: Path, user: str = "qos", speedup: float = 1.0) -> Iterator[Task]:
    """Yield the pods of an openb file as tasks.

    A pod that was never scheduled runs from creation to deletion, and one that was never deleted until the last time of
    the file. A fraction of a GPU is a share of one device. The column ``gpu_spec`` becomes the task's types.

    Args:
        path: The file.
        user: Column that names the user.
        speedup: Factor that accelerates arrivals; run times do not change.
    """
    rows = list(_iter_unique(csv_rows(path, (*OPENB_POD_COLUMNS, user)), "name"))
    file_end_s = max((row.number(name) for row in rows for name in OPENB_TIMES if row[name]), default=0.0)
    for row in rows:
        arrival_s = row.number("creation_time", least=0)
        if arrival_s > MAX_SPAN_S:
            raise row.wrong(
                f"{arrival_s:g} s are longer than 31 years", "creation_time", "time counts from the first pod"
            )
        run_s = _openb_time(row, "deletion_time", file_end_s) - _openb_time(row, "scheduled_time", arrival_s)
        if run_s < 0:
            raise row.wrong(f"it ends {-run_s:g} s before its start", "deletion_time")
        yield Task(
            name=row["name"],
            demand=_openb_amounts(row, _openb_gpus(row)),
            run=max(run_s, MIN_RUN_S),
            arrival=arrival_s / speedup,
            job=row["name"],
            user=row[user],
            types=_split_bars(row.get("gpu_spec")),
        )


def csv_nodes(path: Path, columns: Columns = STANDARD_COLUMNS) -> Iterator[Node]:
    """Yield the nodes of a CSV file with the columns name, cpu, gpu, memory (MiB) and data; any other is a label.

    All but ``name`` may be missing.

    Raises:
        UnfoldError: A cell is malformed, a node has no resource, or a row describes several nodes.
    """
    for row in _iter_unique(columns.read_rows(path, ("name",)), "name"):
        if _HOST_LIST.search(row["name"]):
            raise row.wrong(f"{row['name'][:60]} names several nodes", "name", "sinfo -N prints one row for each node")
        amounts = columns.read_amounts(row, max_memory=MAX_PLAIN_NODE_MEMORY)
        if not amounts:
            raise row.wrong("the node has no resources", "name", "write an amount under cpu, gpu or memory")
        no_labels = (*NODE_COLUMNS, *columns.resources)
        labels = {key: cell for key, cell in row.cells.items() if key not in no_labels and cell}
        yield Node(row["name"], amounts, labels, frozenset(split_list(row.get("data"))))


def csv_tasks(
    path: Path,
    speedup: float = 1.0,
    max_rows: int | None = None,
    columns: Columns = STANDARD_COLUMNS,
    warn: Warn = str,
) -> Iterator[Task]:
    """Yield the tasks of a CSV file.

    Columns: task, arrival and run (s); cpu, gpu, memory (MiB); count, parts; job, user, role, priority, deadline (s
    after arrival), follows, avoids, types, after and data (several separated by ``|``). All but the first three may be
    missing, ``run`` too where ``columns`` names the end (and start). Times may be dates, or Unix times in s, ms, us or
    ns: time then counts from the earliest arrival. Rows without a value use the defaults of ``columns.missing``.

    Args:
        path: The file.
        speedup: Factor that accelerates arrivals.
        max_rows: Read only so many rows; a truncated job keeps the tasks that were read.
        columns: How the columns of the file map to the standard columns.
        warn: Receives how many rows used which default, and how many are left out.

    Raises:
        UnfoldError: A cell is malformed or out of range, or the rows describe too many tasks.
    """
    missing = MissingValues(columns, path)
    selected = expand_arrays(islice(columns.read_rows(path, missing.required), max_rows), path.name, warn)
    rows = list(_iter_unique(missing.select_rows(selected), "task"))
    zones = find_zones(rows)
    if len(zones) > 1:
        warn(mixed_zones_line(path.name))
    rows = normalize_dates(rows)
    times = detect_time_format(rows, columns)
    arrivals_s = [missing.arrival_s(row, times) for row in rows]
    missing.check_arrivals(rows, arrivals_s, times)
    if times.has_dates and zones == {False}:
        check_clock(np.asarray(arrivals_s), str(path))
    runs_s = missing.run_times_s(rows, arrivals_s, times)
    sizes, total = Counter[str](), 0
    for row in rows:
        missing.count_amounts(row)
        count = _read_count(row, "count") * _read_count(row, "parts")
        sizes[_job_name(row)] += count
        total += count
        if total > MAX_TASKS:
            raise row.wrong(f"the rows so far describe more than {MAX_TASKS:,} tasks", "count")
    rows = [missing.drop_unlisted(row, sizes) for row in rows]
    missing.report(warn)
    if unread := _find_unread_amounts(rows, columns):
        warn(unread_amounts_line(path.name, unread))
    for row, arrival_s, run_s in zip(rows, arrivals_s, runs_s, strict=True):
        slack_s = times.read_slack_s(row, arrival_s)
        span = Span((arrival_s - times.origin_s) / speedup, run_s, slack_s)
        yield from _build_tasks(row, span, columns, sizes[_job_name(row)])


@dataclass(frozen=True, slots=True)
class Span:
    """Arrival, run time and time to the deadline of a task, in seconds."""

    arrival_s: float
    run_s: float
    slack_s: float


def _openb_amounts(row: CsvRow, gpus: float) -> dict[str, int]:
    amounts = {"cpu": _openb_number(row, "cpu_milli"), "memory": _openb_number(row, "memory_mib") * MILLI}
    return {kind: round(amount) for kind, amount in amounts.items()} | ({"gpu": round(gpus * MILLI)} if gpus else {})


def _openb_number(row: CsvRow, column: str) -> float:
    value = row.number(column, least=0)
    if value > MAX_NUMBER:
        raise row.wrong(f"{value:g} is out of range", column, f"at most {MAX_NUMBER:g}")
    return value


def _openb_time(row: CsvRow, column: str, default: float) -> float:
    return row.number(column) if row[column] else default


def _openb_gpus(row: CsvRow) -> float:
    count, share = _openb_number(row, "num_gpu"), _openb_number(row, "gpu_milli")
    if count and not share:
        raise row.wrong(f"no part of its {count:g} GPUs", "gpu_milli", "1000 is a whole GPU")
    return count * share / MILLI


def _build_tasks(row: CsvRow, span: Span, columns: Columns, size: int) -> Iterator[Task]:
    parts = _read_count(row, "parts")
    demands = _read_demands(row, columns, parts)
    task = Task(
        name=row["task"],
        demand=demands[0],
        run=span.run_s,
        arrival=span.arrival_s,
        job=_job_name(row),
        user=row.get("user"),
        role=row.get("role"),
        size=size,
        priority=_read_priority(row),
        deadline=span.arrival_s + span.slack_s,
        follows=row.get("follows"),
        avoids=row.get("avoids"),
        after=split_list(row.get("after")),
        data=split_list(row.get("data")),
        types=_split_bars(row.get("types")),
    )
    count = parts * _read_count(row, "count")
    if count == 1:
        yield task
    else:
        for index in range(count):
            yield replace(task, name=f"{task.name}-{index}", demand=demands[index % parts])


def _read_demands(row: CsvRow, columns: Columns, parts: int) -> list[dict[str, int]]:
    """Return the demand of each part: the same, except that of a whole number of devices none is shared."""
    even = columns.read_amounts(row, parts)
    split = {kind: columns.read_whole(row, kind) for kind in even if is_device(kind) and even[kind] % MILLI}
    split = {kind: count for kind, count in split.items() if count}
    if not split:
        return [even] * parts
    demands = []
    for index in range(parts):
        devices = {kind: (count // parts + (index < count % parts)) * MILLI for kind, count in split.items()}
        demands.append({kind: amount for kind, amount in (even | devices).items() if amount})
    return demands


def _find_unread_amounts(rows: Sequence[CsvRow], columns: Columns) -> dict[str, str]:
    """Return the columns with numbers that look like amounts, by the kind that no column of the file has.

    None if the spec says where amounts are, or what missing ones are.
    """
    if (
        not rows
        or columns.resources
        or any(kind in columns.names or kind in columns.missing for kind in AMOUNT_COLUMNS)
    ):
        return {}
    used = {source for sources in columns.names.values() for source in sources}
    unused = [name for name in rows[0].cells if name not in {*AMOUNT_COLUMNS, *used}]
    unread = {}
    for kind in AMOUNT_COLUMNS:
        alike = [name for name in unused if kind[:3] in name.lower()] if kind not in rows[0].cells else []
        unread[kind] = next((name for name in alike if any(_AMOUNT.fullmatch(row[name]) for row in rows)), "")
    return {kind: name for kind, name in unread.items() if name}


def _read_count(row: CsvRow, column: str) -> int:
    count = row.number(column, least=1) if row.get(column) else 1.0
    if not count.is_integer():
        raise row.wrong(f"{count:g} is not a whole number", column)
    if count > MAX_COUNT:
        raise row.wrong(f"{count:g} is out of range", column, f"at most {MAX_COUNT:,}")
    return round(count)


def _read_priority(row: CsvRow) -> int:
    priority = row.number("priority") if row.get("priority") else 0.0
    if abs(priority) > MAX_PRIORITY:
        raise row.wrong(f"{priority:g} is out of range", "priority", f"at most {MAX_PRIORITY:,}")
    return round(priority)


def _iter_unique(rows: Iterable[CsvRow], column: str) -> Iterator[CsvRow]:
    """Yield rows while their names are unique, and none is a step of another.

    Raises:
        UnfoldError: A name occurs twice, or a row is a step of a Slurm job.
    """
    lines: dict[str, int] = {}
    slurm = SlurmRows()
    for row in rows:
        name = row[column]
        slurm.check(row, column)
        if name in lines:
            hint = f"line {lines[name]} has it too; names must be unique: join columns, or write one row per {column}"
            raise row.wrong(f"{name or 'an empty name'} already exists", column, hint)
        lines[name] = row.line
        yield row


def _job_name(row: CsvRow) -> str:
    return row.get("job") or row["task"]


def _split_bars(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("|") if part.strip())
