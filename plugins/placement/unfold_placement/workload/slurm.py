"""Jobs of Slurm in the rows of a table: arrays, heterogeneous jobs and steps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from unfold_placement.report.sentences import array_line
from unfold_placement.workload.json_stream import Warn
from unfoldkit.api import CsvRow

SLURM_JOB_COLUMNS = ("JobID", "JobIDRaw", "JOBID")
"""Columns of ``sacct`` and ``squeue`` with the number of a job or a step."""
_SLURM_STEP = re.compile(r"(.*)\.(?:batch|extern|interactive)|(\d+(?:[_+]\d+)?)\.\d+")
"""A step of a Slurm job, which has a row of its own unless ``sacct`` has ``-X``; those of ``srun`` have numbers."""
_ARRAY = re.compile(r"(?<!\d)(\d+_)\[([^\[\]]+)\]")
"""The waiting tasks of an array, such as ``102_[3-10%2]``, in the name of a row."""
_INDICES = re.compile(r"(\d+)(?:-(\d+)(?::([1-9]\d*))?)?")
"""One index of an array, or several with a step."""
_COMPONENT = re.compile(r"^(\d+)\+\d+")
"""A component of a heterogeneous job; all of its components start together."""
MAX_ARRAY = 4_000_001
"""Tasks of an array: Slurm allows no larger ``MaxArraySize``."""


def expand_arrays(rows: Iterable[CsvRow], file: str, warn: Warn) -> Iterator[CsvRow]:
    """Yield a row for each task of an array, and the components of a heterogeneous job as one job.

    Args:
        rows: The rows of a table.
        file: Name of the file.
        warn: Receives how many rows were arrays.

    Raises:
        UnfoldError: The indices of an array are not listed in full.
    """
    arrays = tasks = limited = 0
    for row in rows:
        names = ("task", *SLURM_JOB_COLUMNS)
        match = next((match for name in names if (match := _ARRAY.search(row.get(name)))), None)
        if match is None:
            yield _join_components(row)
            continue
        indices, _, limit = match[2].partition("%")
        numbers = _read_indices(row, indices)
        arrays, tasks, limited = arrays + 1, tasks + len(numbers), limited + bool(limit)
        cells = {name: cell for name in (*names, "job") if match[0] in (cell := row.get(name))}
        for number in numbers:
            own = {name: cell.replace(match[0], f"{match[1]}{number}") for name, cell in cells.items()}
            yield replace(row, cells={**row.cells, **own})
    if arrays:
        warn(array_line(file, tasks, arrays, limited))


def _read_indices(row: CsvRow, text: str) -> list[int]:
    numbers = list[int]()
    for item in text.split(","):
        match = _INDICES.fullmatch(item)
        if match is None:
            hint = "squeue shortens long lists: with SLURM_BITSTR_LEN=0 in its environment it prints all"
            raise row.wrong(f"the array [{text[:40]}] does not list its tasks", "task", hint)
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first >= MAX_ARRAY:
            raise row.wrong(f"the array [{text[:40]}] is out of range", "task", f"at most {MAX_ARRAY:,} tasks")
        numbers += range(first, last + 1, int(match[3] or 1))
    return numbers


def _join_components(row: CsvRow) -> CsvRow:
    """Return the row of a component with the name of its job, unless a column has that."""
    job, count = _COMPONENT.subn(r"\1", row.get("task"))
    return replace(row, cells={**row.cells, "job": job}) if count and not row.get("job") else row


@dataclass(frozen=True, slots=True)
class SlurmRows:
    """The jobs and steps of Slurm in a file with rows in any order.

    Attributes:
        jobs: Line of each job, by its name and its numbers of Slurm, of which the name may be only a part.
        steps: Column and row of a step of each job.
    """

    jobs: dict[str, int] = field(default_factory=dict)
    steps: dict[str, tuple[str, CsvRow]] = field(default_factory=dict)

    def check(self, row: CsvRow, column: str) -> None:
        """Remember a row, by the column of its name.

        Raises:
            UnfoldError: The row is a step of a job of another row, or the reverse.
        """
        for source in (column, *SLURM_JOB_COLUMNS):
            cell = row.get(source)
            step = _SLURM_STEP.fullmatch(cell)
            job = (step[1] or step[2]) if step else cell
            if step:
                self.steps.setdefault(job, (source, row))
            if cell:
                self.jobs.setdefault(cell, row.line)
            if job not in self.steps or job not in self.jobs:
                continue
            named, found = self.steps[job]
            if self.jobs[job] != found.line:
                message = f"{found[named]} is a step of the job of line {self.jobs[job]}, which would count twice"
                raise found.wrong(message, named, "sacct -X prints jobs without steps")
