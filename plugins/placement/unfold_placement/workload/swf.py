"""Jobs in the Standard Workload Format, as the Parallel Workloads Archive has them, and the machine of their header.

Eighteen numbers a line, -1 where one is not known; lines that begin with a semicolon are the header (Chapin et al.,
Benchmarks and Standards for the Evaluation of Parallel Job Schedulers, 1999).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from unfold_placement.core.types import MILLI, Node, Task
from unfoldkit.api import CsvRow, fail
from unfoldkit.io.csv import UNREADABLE, open_text

FIELDS = (
    "job", "submit", "wait", "run", "processors", "cpu time", "memory", "requested processors", "requested time",
    "requested memory", "status", "user", "group", "program", "queue", "partition", "preceding job", "think time",
)  # fmt: skip
PARTS = frozenset({2, 3, 4})
"""The status of lines that tell of a part of a job, which has a line for the whole, too."""
_HEADER = re.compile(r";\s*(MaxNodes|MaxProcs)\s*:\s*(\d+)")
Tell = Callable[[str], object]


def swf_nodes(path: Path) -> list[Node]:
    """Return ``MaxNodes`` nodes which have ``MaxProcs`` processors together; one for each where a number is missing.

    Raises:
        UnfoldError: the file cannot be read, or its header has neither.
    """
    nodes, processors = _machine(path)
    if not nodes:
        raise fail(
            "no MaxNodes or MaxProcs in the header", file=str(path), hint="write the nodes: [{count: 64, cpu: 8}]"
        )
    each, more = divmod(processors, nodes)
    return [Node(f"node-{at}", {"cpu": (each + (at < more)) * MILLI}) for at in range(nodes)]


def swf_tasks(path: Path, faster: float = 1.0, first: int | None = None, tell: Tell = str) -> list[Task]:
    """Return the jobs, or the ``first`` so many that ran: one task for each node that a job's processors fill.

    Nodes are those of the header, of one processor where it does not say. 0 s is the earliest submission. The user is
    the number of the user, the role that of the queue; a job comes ``after`` the one that the log says it waited for.
    Jobs that never ran, those of unknown size, and lines of a part of a job are left out, and ``tell`` is told.

    Raises:
        UnfoldError: the file cannot be read, or a line has not eighteen numbers.
    """
    nodes, processors = _machine(path)
    most = math.ceil(processors / nodes) if nodes else 1
    rows = list(_rows(path))
    ran = list(islice((row for row in rows if _ran(row)), first))
    if len(ran) < len(rows) and (first is None or len(ran) < first):
        tell(f"{path.name}: {len(rows) - len(ran)} of {len(rows)} lines are left out: they never ran, or are parts")
    origin = min((row.number("submit") for row in ran), default=0.0)
    known = {row["job"] for row in ran}
    return [task for row in ran for task in _tasks(row, most, (row.number("submit") - origin) / faster, known)]


def _tasks(row: CsvRow, most: int, arrival: float, known: set[str]) -> Iterator[Task]:
    whole, rest = divmod(_size(row), most)
    shares = [most] * whole + [rest] * (rest > 0)
    before = row["preceding job"]
    for at, much in enumerate(shares):
        yield Task(
            row["job"] if len(shares) == 1 else f"{row['job']}-{at}", {"cpu": much * MILLI}, row.number("run"), arrival,
            row["job"], _named(row["user"]), _named(row["queue"]), len(shares),
            after=(before,) if before in known and before != row["job"] else (),
        )  # fmt: skip


def _named(cell: str) -> str:
    return "" if cell.startswith("-") else cell


def _size(row: CsvRow) -> int:
    asked = round(row.number("requested processors"))
    return asked if asked > 0 else round(row.number("processors"))


def _ran(row: CsvRow) -> bool:
    # what was cancelled as it waited took no time, or an unknown one
    began = row.number("run") > 0 or (row.number("run") == 0 and row.number("status") == 1)
    return began and _size(row) > 0 and round(row.number("status")) not in PARTS


def _machine(path: Path) -> tuple[int, int]:
    """Return the nodes and the processors of a header, (0, 0) where it tells neither."""
    found = {match[1]: int(match[2]) for _, text in _lines(path) if (match := _HEADER.match(text))}
    nodes, processors = found.get("MaxNodes", 0), found.get("MaxProcs", 0)
    # some headers count nodes that take no jobs
    return min(nodes or processors, processors or nodes), processors or nodes


def _rows(path: Path) -> Iterator[CsvRow]:
    for line, text in _lines(path):
        if not text or text.startswith(";"):
            continue
        cells = text.split()
        if len(cells) != len(FIELDS):
            hint = "is it a file in the Standard Workload Format?"
            raise CsvRow({}, path, line).wrong(f"{len(cells)} fields where a job has {len(FIELDS)}", "job", hint)
        yield CsvRow(dict(zip(FIELDS, cells, strict=True)), path, line)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with open_text(path, errors="replace") as stream:
            yield from ((at, text.strip()) for at, text in enumerate(stream, 1))
    except UNREADABLE as error:
        raise fail(f"it cannot be read: {error}", file=str(path)) from error
