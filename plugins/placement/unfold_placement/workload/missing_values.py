"""Cells of a table of tasks without a value: what they stand for, and how many rows used which default.

A row without an arrival came before the file began, so it arrives with its start or the file's earliest time. A row
without an end still ran when the file ended. A row without a run time takes the median of the positive ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median

from unfold_placement.report.sentences import (
    default_line,
    skipped_line,
    unlisted_line,
    unstarted_line,
    whole_trace_line,
    zero_run_line,
)
from unfold_placement.schema.columns import AMOUNT_COLUMNS, COUNT_COLUMNS, LINE, SKIP, UNLISTED, Columns, format_cell
from unfold_placement.workload.json_stream import Warn
from unfold_placement.workload.timestamps import TimeFormat
from unfoldkit.api import CsvRow, did_you_mean, user_error

REQUIRED = ("task", "arrival", "run")
"""Columns that a file must have, unless a default is configured."""
REFERENCES = ("follows", "avoids", "after")
"""Columns that name other jobs."""
MIN_LATE_RUN_S = 1.0
"""Least run time (s) of a task that still ran when the file ended."""
MAX_SPAN_S = 1e9
"""Longest plausible trace and run time in seconds, 31 years: beyond, numbers have another unit or mean no time."""


@dataclass(slots=True)
class MissingValues:
    """Replaces missing cells of one file, and counts the rows that use each default.

    Attributes:
        columns: The columns of the file, with the configured defaults.
        path: The file.
        total: Number of rows that were read.
        uses: Rows by column and description of the default.
        skipped: Rows left out, by column, with the line of the first.
        unlisted: Rows that name a job which no row has, by column; it counts as none.
        unstarted: Rows without a start although the file has starts and ends.
        whole: Rows with neither arrival nor end, although the file has ends.
        zero: Rows with a run time of zero.
    """

    columns: Columns
    path: Path
    total: int = 0
    uses: dict[tuple[str, str], int] = field(default_factory=dict)
    skipped: dict[str, tuple[int, int]] = field(default_factory=dict)
    unlisted: dict[str, int] = field(default_factory=dict)
    unstarted: int = 0
    whole: int = 0
    zero: int = 0

    @property
    def required(self) -> tuple[str, ...]:
        """The columns that the file must have: no default is configured for them."""
        names = (("end" if name == "run" and "end" in self.columns.names else name) for name in REQUIRED)
        return tuple(name for name in names if name not in self.columns.missing)

    def select_rows(self, rows: Iterable[CsvRow]) -> Iterator[CsvRow]:
        """Yield the rows to use: without those that lack a value for which ``skip`` is configured."""
        skipping = [name for name, default in self.columns.missing.items() if default == SKIP]
        for row in rows:
            self.total += 1
            missing = next((name for name in skipping if self._lacks(row, name)), "")
            if missing:
                count, line = self.skipped.get(missing, (0, row.line))
                self.skipped[missing] = (count + 1, line)
                continue
            yield self._fill_counts(self._name_row(row))

    def arrival_s(self, row: CsvRow, times: TimeFormat) -> float:
        """Return the arrival of a row in seconds, not counted from the origin."""
        if row.get("arrival"):
            return times.read_time_s(row, "arrival")
        default = self.columns.missing.get("arrival")
        if isinstance(default, float):
            self._count("arrival", f"{default:g} s")
            return times.origin_s + default
        if "start" in self.columns.names and row.get("start"):
            self._count("arrival", "their start")
            return times.read_time_s(row, "start")
        self._count("arrival", "the earliest time of the file")
        return times.first_s

    def run_times_s(self, rows: Sequence[CsvRow], arrivals_s: Sequence[float], times: TimeFormat) -> list[float]:
        """Return the run time (s) of every row.

        Raises:
            UnfoldError: A run time is unknown and none in the file is known, or one is implausibly long.
        """
        runs_s = [times.read_run_s(row, arrival_s) for row, arrival_s in zip(rows, arrivals_s, strict=True)]
        positive_s = [run_s for run_s in runs_s if run_s]
        median_s = median(positive_s) if positive_s else None
        filled = []
        for row, arrival_s, run_s in zip(rows, arrivals_s, runs_s, strict=True):
            filled.append(self._default_run_s(row, arrival_s, times, median_s) if run_s is None else run_s)
            self._count_doubtful(row, filled[-1])
            self._check_span(row, "run", filled[-1])
        return filled

    def check_arrivals(self, rows: Sequence[CsvRow], arrivals_s: Sequence[float], times: TimeFormat) -> None:
        """Check that arrivals lie within a plausible time.

        Raises:
            UnfoldError: One is implausibly late.
        """
        for row, arrival_s in zip(rows, arrivals_s, strict=True):
            self._check_span(row, "arrival", arrival_s - times.origin_s)

    def count_amounts(self, row: CsvRow) -> None:
        """Count the amounts that a row lacks although its file has their column."""
        for kind in (*AMOUNT_COLUMNS, *self.columns.resources):
            default = self.columns.missing.get(kind, 0.0)
            if not row.get(kind) and (kind in row.cells or kind in self.columns.missing):
                self._count(kind, f"{default:g}" if isinstance(default, float) else str(default))

    def drop_unlisted(self, row: CsvRow, jobs: Collection[str]) -> CsvRow:
        """Return a row without the jobs that no row has, in the columns where these count as none.

        Raises:
            UnfoldError: Such a job is in another column.
        """
        kept = {}
        for column in REFERENCES:
            names = split_list(row.get(column)) if column == "after" else (row.get(column),)
            unlisted = next((name for name in names if name and name not in jobs), "")
            if not unlisted:
                continue
            if UNLISTED not in self.columns.unknown.get(column, ()):
                guess = did_you_mean(unlisted, jobs)
                hint = f"{guess}; " if guess.startswith("did") else ""
                hint += f"table: {{unknown: {{{column}: [{UNLISTED}]}}}} drops jobs that no row has"
                raise row.wrong(f"no such job: {unlisted}", column, hint)
            self.unlisted[column] = self.unlisted.get(column, 0) + 1
            kept[column] = "|".join(name for name in names if name in jobs)
        return replace(row, cells={**row.cells, **kept}) if kept else row

    def report(self, warn: Warn) -> None:
        """Report how many rows used which default, and how many were left out."""
        name = self.path.name
        for column, (count, line) in self.skipped.items():
            warn(skipped_line(name, column, (count, self.total), line))
        for column, count in self.unlisted.items():
            warn(unlisted_line(name, column, (count, self.total)))
        doubtful = (
            (self.unstarted, unstarted_line),
            (self.whole, whole_trace_line),
            (self.zero, partial(zero_run_line, column="end" if "end" in self.columns.names else "run")),
        )
        for count, describe in doubtful:
            if count:
                warn(describe(name, (count, self.total)))
        for (column, default), count in self.uses.items():
            warn(default_line(name, column, default, (count, self.total)))

    def _count_doubtful(self, row: CsvRow, run_s: float) -> None:
        """Count rows of tasks that may never have run."""
        has_end = "end" in self.columns.names
        self.unstarted += has_end and "start" in self.columns.names and not row.get("start")
        self.whole += has_end and not (row.get("start") or row.get("arrival") or row.get("end"))
        self.zero += run_s == 0 and (not has_end or format_cell(row.get("end")) == "0")

    def _lacks(self, row: CsvRow, column: str) -> bool:
        if column in {"run", "end"}:
            return not (row.get("run") or ("end" in self.columns.names and row.get("end")))
        return not row.get(column)

    def _name_row(self, row: CsvRow) -> CsvRow:
        if row.get("task"):
            return row
        self._count("task", "the number of their line")
        return replace(row, cells={**row.cells, "task": f"{LINE}-{row.line}"})

    def _fill_counts(self, row: CsvRow) -> CsvRow:
        filled = {}
        for name in COUNT_COLUMNS:
            default = self.columns.missing.get(name, 0.0 if name == "priority" else 1.0)
            if not row.get(name) and (name in row.cells or name in self.columns.missing):
                self._count(name, f"{default:g}" if isinstance(default, float) else str(default))
                filled[name] = str(default)
        return replace(row, cells={**row.cells, **filled}) if filled else row

    def _default_run_s(self, row: CsvRow, arrival_s: float, times: TimeFormat, median_s: float | None) -> float:
        default = self.columns.missing.get("run")
        if isinstance(default, float):
            self._count("run", f"{default:g} s")
            return default
        if "end" in self.columns.names and not row.get("end") and default is None:
            self._count("end", "the latest time of the file")
            start_s = times.read_time_s(row, "start") if row.get("start") else arrival_s
            return max(times.last_s - start_s, MIN_LATE_RUN_S)
        if median_s is None:
            hint = "give them one: table: {missing: {run: 10 min}}"
            raise user_error("no row has a run time", file=str(self.path), key="run", hint=hint)
        self._count("run", f"{median_s:g} s, the median of the file's positive ones")
        return median_s

    def _check_span(self, row: CsvRow, column: str, seconds: float) -> None:
        if seconds > MAX_SPAN_S:
            source = "end" if column == "run" and row.get("end") else column
            hint = f"scale: {{{source}: 1e-6}} reads microseconds, unknown: {{{source}: [{row.get(source)}]}} no value"
            raise row.wrong(f"{seconds:g} s are longer than 31 years", source, hint)

    def _count(self, column: str, default: str) -> None:
        self.uses[column, default] = self.uses.get((column, default), 0) + 1


def split_list(text: str) -> tuple[str, ...]:
    """Split a cell of several names, separated by ``|`` or by spaces."""
    parts = text.split("|") if "|" in text else text.split()
    return tuple(part.strip() for part in parts if part.strip())
