"""Query streams: an accuracy and a latency target for each query (SUSHI's q = (A_t, L_t)), drawn or from a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unfold_supernet._types import BoolArray, FloatArray
from unfold_supernet.accelerator.latency_table import LatencyTable
from unfold_supernet.accelerator.query_scheduler_kernel import ACCURACY
from unfold_supernet.accelerator.scheduler import POLICIES
from unfold_supernet.scheduling.requests import ACCURACY_COLUMN, parse_min_accuracy
from unfoldkit.api import CsvRow, csv_rows, user_error
from unfoldkit.arrivals.readers.timestamps import split_unit
from unfoldkit.errors import list_columns

LATENCY_COLUMNS = ("latency", "deadline", "slo")
KEY = "queries.path"


@dataclass(frozen=True, slots=True)
class QueryTargets:
    """Targets by query: the one that the policy enforces, and the other one; in percent and seconds, or vice versa."""

    enforced: FloatArray
    other: FloatArray


@dataclass(frozen=True, slots=True)
class DrawnQueries:
    """Random levels in [0, 1] by query, for the enforced target and for the other one."""

    levels: FloatArray
    other_levels: FloatArray

    def scale_targets(self, table: LatencyTable, policy: str) -> QueryTargets:
        """Scale the levels to the range that the subnets of ``table`` cover with an empty cache."""
        other_policy = next(name for name in POLICIES if name != policy)
        return QueryTargets(
            scale_levels(self.levels, table, policy), scale_levels(self.other_levels, table, other_policy)
        )


@dataclass(frozen=True, slots=True)
class RecordedQueries:
    """Targets as read from a table, by query: percent, and seconds."""

    accuracies: FloatArray
    deadlines_s: FloatArray

    def scale_targets(self, table: LatencyTable, policy: str) -> QueryTargets:  # noqa: ARG002 - as for drawn queries
        """Order the targets by what ``policy`` enforces; they are absolute, so ``table`` does not matter."""
        if POLICIES[policy] == ACCURACY:
            return QueryTargets(self.accuracies, self.deadlines_s)
        return QueryTargets(self.deadlines_s, self.accuracies)


QueryStream = DrawnQueries | RecordedQueries


def scale_levels(levels: FloatArray, table: LatencyTable, policy: str) -> FloatArray:
    """Scale levels in [0, 1] to accuracies or deadlines; deadlines span the latencies with an empty cache."""
    values = table.accuracy if POLICIES[policy] == ACCURACY else table.seconds[:, 0]
    low, high = float(values.min()), float(values.max())
    # rounding must not exceed the best subnet
    return np.minimum(low + levels * (high - low), high)


def draw_queries(count: int, pattern: str, seed: int, hold: float = 20.0) -> DrawnQueries:
    """Draw a stream with two independent targets a query.

    Args:
        count: Queries.
        pattern: ``random`` draws new targets for each query, ``bursty`` repeats them for a burst.
        seed: Of both targets.
        hold: Mean length of a burst, in queries.
    """
    levels = draw_levels(count, pattern, seed, hold)
    others = np.random.default_rng([seed, 0xFA58]).random(count)
    return DrawnQueries(levels, others if pattern == "random" else _repeat_in_bursts(others, levels))


def draw_levels(count: int, pattern: str, seed: int, hold: float = 20.0) -> FloatArray:
    """Draw the levels of a stream: new for each query, or repeated for ``hold`` queries on average."""
    rng = np.random.default_rng([seed, 0xFA57])
    levels = rng.random(count)
    if pattern == "random":
        return levels
    starts = rng.random(count) < 1.0 / hold
    starts[0] = True
    return _repeat(levels, starts)


def _repeat_in_bursts(values: FloatArray, levels: FloatArray) -> FloatArray:
    """Repeat the first value of each burst of ``levels``."""
    return _repeat(values, np.diff(levels, prepend=-1.0) != 0)


def _repeat(values: FloatArray, starts: BoolArray) -> FloatArray:
    repeated: FloatArray = values[starts][np.cumsum(starts) - 1]
    return repeated


def read_queries(path: Path, policy: str) -> RecordedQueries:
    """Read the targets of a table: ``accuracy`` in percent, and ``latency_ms`` (or ``deadline``, ``slo``; s, ms, us).

    A trace for ``--replay`` is such a table too; its ``least_accuracy`` is a fraction. An empty cell is no requirement.

    Args:
        path: The table.
        policy: A key of ``POLICIES``; the target that it enforces must be a column.

    Raises:
        UnfoldError: The column is missing, there is no row, or a cell is no valid target.
    """
    rows = list(csv_rows(path))
    if not rows:
        raise user_error("the table contains no query", file=str(path), key=KEY)
    header = list(rows[0].cells)
    accuracy_column = _find_accuracy_column(header, path, required=POLICIES[policy] == ACCURACY)
    latency_column, seconds = _find_latency_column(header, path, required=POLICIES[policy] != ACCURACY)
    is_fraction = accuracy_column.lower() == ACCURACY_COLUMN
    if is_fraction:
        # rounded: 0.28 means 28 %, not a rounding error above it
        accuracies = np.round([parse_min_accuracy(row, accuracy_column) * 100 for row in rows], 9)
    else:
        accuracies = np.array([_parse_percent(row, accuracy_column) for row in rows])
    deadlines_s = np.array([_parse_target(row, latency_column, math.inf) * seconds for row in rows])
    if 0 < accuracies.max() <= 1 and not is_fraction:
        message = f"no accuracy exceeds {accuracies.max():g} %: accuracies are in percent"
        raise user_error(message, file=str(path), key=accuracy_column, hint="write 77.5 or 77.5%, not 0.775")
    return RecordedQueries(accuracies, deadlines_s)


def _find_accuracy_column(header: list[str], path: Path, *, required: bool) -> str:
    column = next((name for name in header if name.lower().startswith(("accuracy", ACCURACY_COLUMN))), "")
    if required and not column:
        message, hint = "strict-accuracy needs a column accuracy", _list_columns(header)
        raise user_error(message, file=str(path), key=KEY, hint=hint)
    return column


def _find_latency_column(header: list[str], path: Path, *, required: bool) -> tuple[str, float]:
    """Find the latency column (empty if absent) and its unit in seconds."""
    column = next((name for name in header if split_unit(name)[0] in LATENCY_COLUMNS), "")
    if required and not column:
        message, hint = "strict-latency needs a column latency_ms", _list_columns(header)
        raise user_error(message, file=str(path), key=KEY, hint=hint)
    seconds = split_unit(column)[1] if column else 1.0
    if seconds is None:
        hint = f"name it {column}_ms or {column}_s"
        raise user_error(f"column {column} has no unit", file=str(path), key=column, hint=hint)
    return column, seconds


def _list_columns(header: list[str]) -> str:
    return f"columns: {list_columns(header)}"


def _parse_percent(row: CsvRow, column: str) -> float:
    text = row.get(column)
    if text.endswith("%"):
        row.cells[column] = text[:-1].strip()
    percent = _parse_target(row, column, 0.0)
    if percent > 100:
        raise row.wrong(f"an accuracy cannot be {percent:g} %", column, "at most 100")
    return percent


def _parse_target(row: CsvRow, column: str, default: float) -> float:
    return row.number(column, least=0.0) if row.get(column) else default
