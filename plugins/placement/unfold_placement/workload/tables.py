"""Nodes and tasks of files: the openb trace, and tables of one's own as CSV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from unfold_placement.core.types import MILLI, Node, Task
from unfold_placement.schema.columns import NODE_COLUMNS, UNKNOWN, Columns
from unfold_placement.workload.timestamps import TimeFormat, detect_time_format, normalize_dates
from unfoldkit.api import CsvRow, csv_rows, did_you_mean

RACK = 32
"""Nodes of a rack, for traces that do not say."""
TIMES = ("creation_time", "deletion_time", "scheduled_time")
POD = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli", *TIMES)
Tell = Callable[[str], object]
PLAIN = Columns()


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


def csv_nodes(path: Path, columns: Columns = PLAIN) -> Iterator[Node]:
    """Yield the nodes of a CSV file with the columns name, cpu, gpu, memory (MiB) and data; any other is a label.

    All but ``name`` may be missing. Of the labels, ``type`` and ``rack`` mean something.
    """
    for line in _alone(columns.read_rows(path, ("name",)), "name"):
        if not (amounts := columns.read_amounts(line)):
            raise line.wrong("a node without any resource", "name", "write an amount under cpu, gpu or memory")
        labels = {
            key: cell for key, cell in line.cells.items() if key not in (*NODE_COLUMNS, *columns.resources) and cell
        }
        yield Node(line["name"], amounts, labels, frozenset(_listed(line.get("data"))))


def csv_tasks(
    path: Path, faster: float = 1.0, first: int | None = None, columns: Columns = PLAIN, tell: Tell = str
) -> Iterator[Task]:
    """Yield the tasks of a CSV file, or of its ``first`` rows; of a job that is cut through, what is left is the job.

    Columns: task, arrival and run (s); cpu, gpu, memory (MiB); count, parts; job, user, role, priority, deadline (s
    after arrival), follows, avoids, types, after and data (several with ``|`` between them). All but the first three
    may be missing, ``run`` too where ``columns`` names the end (and start). Arrivals may be dates and times, or numbers
    since 1970 (s, ms, us, ns): time then counts from the earliest; ends and deadlines too. Rows without a time are left
    out, and ``tell`` is told.
    """
    wanted = ("arrival", "end" if "end" in columns.names else "run")
    rows = normalize_dates(
        _timed(islice(_alone(columns.read_rows(path, ("task", *wanted)), "task"), first), wanted, path, tell)
    )
    clock = detect_time_format(rows, columns)
    sizes = Counter[str]()
    for line in rows:
        sizes[_job(line)] += _many(line, "count") * _many(line, "parts")
    for line in rows:
        _check_jobs(line, sizes)
        yield from _csv_tasks(
            line, (clock.read_time_s(line, "arrival") - clock.origin) / faster, clock, sizes[_job(line)]
        )


def _timed(rows: Iterable[CsvRow], wanted: Sequence[str], path: Path, tell: Tell) -> list[CsvRow]:
    found: list[CsvRow] = []
    left: list[CsvRow] = []
    for line in rows:
        (left if any(line[name] in UNKNOWN for name in wanted) else found).append(line)
    if left:
        tell(f"{path.name}: {len(left)} of {len(left) + len(found)} rows have no {' or no '.join(wanted)} and are left "
             f"out, the first is line {left[0].line}")  # fmt: skip
    return found


def _csv_tasks(line: CsvRow, arrival: float, clock: TimeFormat, size: int) -> Iterator[Task]:
    parts = _many(line, "parts")
    task = Task(
        line["task"], clock.columns.read_amounts(line, parts), clock.read_run_s(line), arrival, _job(line),
        line.get("user"), line.get("role"), size, round(line.number("priority")) if line.get("priority") else 0,
        arrival + clock.read_slack_s(line, clock.read_time_s(line, "arrival")), line.get("follows"), line.get("avoids"),
        _listed(line.get("after")), _listed(line.get("data")), types=_types(line.get("types")),
    )  # fmt: skip
    many = parts * _many(line, "count")
    yield from (replace(task, name=f"{task.name}-{at}") for at in range(many)) if many > 1 else (task,)


def _many(line: CsvRow, column: str) -> int:
    return round(line.number(column, least=1)) if line.get(column) else 1


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


def _listed(text: str) -> tuple[str, ...]:
    return _types(text) if "|" in text else tuple(text.split())
