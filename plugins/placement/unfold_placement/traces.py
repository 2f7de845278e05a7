"""Nodes and tasks of files: the openb trace, and tables of one's own as CSV."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from unfold_placement.facts import MILLI, Node, Task
from unfoldkit.api import CsvRow, csv_rows, did_you_mean

RACK = 32
"""Nodes of a rack, for traces that do not say."""
TIMES = ("creation_time", "deletion_time", "scheduled_time")
POD = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli", *TIMES)
AMOUNTS = ("cpu", "gpu", "memory")
NODE = ("name", *AMOUNTS, "data")


def openb_nodes(path: Path) -> Iterator[Node]:
    """Yield the nodes of an openb file (sn, cpu_milli, memory_mib, gpu, model); racks are made of 32 in a row."""
    for row, line in enumerate(_alone(csv_rows(path, ("sn", "cpu_milli", "memory_mib", "gpu", "model")), "sn")):
        labels = {"type": line["model"], "rack": f"rack-{row // RACK}"}
        yield Node(line["sn"], _openb(line, line.number("gpu", least=0)), labels)


def _openb(line: CsvRow, gpus: float) -> dict[str, int]:
    amounts = {"cpu": line.number("cpu_milli", least=0), "memory": line.number("memory_mib", least=0) * MILLI}
    return {kind: round(amount) for kind, amount in amounts.items()} | ({"gpu": round(gpus * MILLI)} if gpus else {})


def openb_tasks(path: Path, user: str = "qos", faster: float = 1.0) -> Iterator[Task]:
    """Yield the pods of an openb file as tasks; those never scheduled run from creation to deletion.

    A part of a GPU counts as such; the GPUs of one node are one pool. A pod that was never deleted runs until the last
    time in the file. Its ``gpu_spec`` are types, which the policy ``types`` holds to. ``faster`` squeezes arrivals, not
    run times.
    """
    lines = list(_alone(csv_rows(path, (*POD, user)), "name"))
    last = max((line.number(name) for line in lines for name in TIMES if line[name]), default=0.0)
    for line in lines:
        arrival, end = line.number("creation_time", least=0), _time(line, "deletion_time", last)
        run = max(end - _time(line, "scheduled_time", arrival), 1.0)
        types = _types(line.get("gpu_spec"))
        yield Task(
            line["name"], _openb(line, _gpus(line)), run, arrival / faster, line["name"], line[user], types=types
        )


def _time(line: CsvRow, column: str, otherwise: float) -> float:
    return line.number(column) if line[column] else otherwise


def _types(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split("|") if item.strip())


def _gpus(line: CsvRow) -> float:
    whole = line.number("num_gpu", least=0)
    return whole * line.number("gpu_milli", least=0) / MILLI if whole else 0.0


def csv_nodes(path: Path) -> Iterator[Node]:
    """Yield the nodes of a CSV file with the columns name, cpu, gpu, memory (MiB) and data; any other is a label.

    All but ``name`` may be missing. Of the labels, ``type`` and ``rack`` mean something.
    """
    for line in _alone(csv_rows(path, ("name",)), "name"):
        if not (amounts := _amounts(line)):
            raise line.wrong("a node without any resource", "name", "write an amount under cpu, gpu or memory")
        labels = {key: cell for key, cell in line.cells.items() if key not in NODE and cell}
        yield Node(line["name"], amounts, labels, frozenset(_listed(line.get("data"))))


def csv_tasks(path: Path, faster: float = 1.0, first: int | None = None) -> Iterator[Task]:
    """Yield the tasks of a CSV file, or its ``first`` ones; of a job that is cut through, what is left is the job.

    Columns: task, arrival and run (s); cpu, gpu, memory (MiB); job, user, role, priority, deadline (s after arrival),
    follows, avoids, types, after and data (several with ``|`` between them). All but the first three may be missing.
    Arrivals may be dates and times as in ISO 8601, from the earliest of which time then counts; deadlines too.
    """
    rows = list(islice(_alone(csv_rows(path, ("task", "arrival", "run")), "task"), first))
    dated = bool(rows) and not _is_number(rows[0]["arrival"]) and _date(rows[0]["arrival"]) is not None
    came = [_moment(line, "arrival") if dated else line.number("arrival", least=0) for line in rows]
    origin = min(came) if dated else 0.0
    sizes = Counter(_job(line) for line in rows)
    for line, moment in zip(rows, came, strict=True):
        _check_jobs(line, sizes)
        late = _slack(line, moment, dated=dated)
        yield _csv_task(line, (moment - origin) / faster, late, sizes[_job(line)])


def _csv_task(line: CsvRow, arrival: float, slack: float, size: int) -> Task:
    priority = round(line.number("priority")) if line.get("priority") else 0
    return Task(
        line["task"], _amounts(line), line.number("run", least=0), arrival, _job(line), line.get("user"),
        line.get("role"), size, priority, arrival + slack, line.get("follows"), line.get("avoids"),
        _listed(line.get("after")), _listed(line.get("data")), types=_types(line.get("types")),
    )  # fmt: skip


def _alone(rows: Iterable[CsvRow], column: str) -> Iterator[CsvRow]:
    """Yield rows as long as each has a name of its own."""
    seen: dict[str, int] = {}
    for line in rows:
        name = line[column]
        if name in seen:
            hint = f"line {seen[name]} has it; every row needs a name of its own"
            raise line.wrong(f"{name or 'an empty name'} is there already", column, hint)
        seen[name] = line.line
        yield line


def _job(line: CsvRow) -> str:
    return line.get("job") or line["task"]


def _check_jobs(line: CsvRow, known: Iterable[str]) -> None:
    for column in ("follows", "avoids", "after"):
        cell = line.get(column)
        for name in _listed(cell) if column == "after" else (cell,):
            if name and name not in known:
                raise line.wrong(f"no such job: {name}", column, did_you_mean(name, known))


def _amounts(line: CsvRow) -> dict[str, int]:
    found = {kind: round(line.number(kind, least=0) * MILLI) for kind in AMOUNTS if line.get(kind)}
    return {kind: amount for kind, amount in found.items() if amount}


def _listed(text: str) -> tuple[str, ...]:
    return _types(text) if "|" in text else tuple(text.split())


def _slack(line: CsvRow, came: float, *, dated: bool) -> float:
    cell = line.get("deadline")
    if dated and cell and not _is_number(cell):
        return _moment(line, "deadline") - came
    return line.number("deadline", least=0) if cell else math.inf


def _moment(line: CsvRow, column: str) -> float:
    found = _date(line[column])
    if found is None:
        hint = "others of this file are: 2026-01-31 12:00:00"
        raise line.wrong(f"{line[column][:40]!r} is not a date and time", column, hint)
    return found


def _date(text: str) -> float | None:
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
