"""The one value that every verb returns: pure data, ready for any renderer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

SCHEMA = "unfoldkit.report/1"
Cell = str | int | float | bool | None
SeriesStyle = Literal["line", "steps", "points", "bars", "segments"]


class Verdict(StrEnum):
    """The answer to the question that the spec asks."""

    YES = "yes"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of the result. ``ok`` is whether it meets ``target``; ``timed`` marks a measured time."""

    value: float | None
    unit: str = ""
    target: str | None = None
    ok: bool | None = None
    timed: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """The head of a table's column; the unit stands here, not in the cells."""

    name: str
    unit: str = ""
    digits: int | None = None
    timed: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the report: rows are as long as ``columns``; ``accent`` marks the row that was chosen."""

    name: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    accent: int | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """One set of points of a figure; ``x`` and ``y`` have equal length.

    Of ``segments`` the points are pairs, each drawn by itself: level ones thick, as the bars of a time table.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    style: SeriesStyle = "line"


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture as data: what to draw, not how it looks. ``names`` stand on the axis of x at 1, 2, and so on."""

    name: str
    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False
    timed: bool = False
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What a verb found.

    ``subtitle`` are the facts beside the title, ``lines`` pairs of a label and a sentence under the tables,
    ``headline`` the answer in one sentence, ``next`` the next command, in which ``SPEC`` stands for the spec as it was
    called. ``decision`` is the plan itself, if any.
    """

    kind: str
    verb: str
    name: str
    verdict: Verdict
    headline: str
    subtitle: tuple[str, ...] = ()
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    lines: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    next: str = ""
    decision: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


def time_axis(longest: float) -> tuple[str, float]:
    """Return the unit of an axis of times, and its seconds, by the longest time in s."""
    return next(
        ((unit, each) for unit, each in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)) if longest > 4 * each),
        ("s", 1.0),
    )


def to_data(report: Report) -> dict[str, Any]:
    """Return the report as JSON-able data (schema ``unfoldkit.report/1``), keys in a stable order."""
    return {
        "schema": SCHEMA,
        "kind": report.kind,
        "verb": report.verb,
        "name": report.name,
        "verdict": str(report.verdict),
        "headline": report.headline,
        "subtitle": list(report.subtitle),
        "metrics": {name: _metric_data(metric) for name, metric in report.metrics.items()},
        "tables": [_table_data(table) for table in report.tables],
        "figures": [_figure_data(figure) for figure in report.figures],
        "lines": [list(line) for line in report.lines],
        "notes": list(report.notes),
        "next": report.next,
        "decision": plain(report.decision),
        "provenance": plain(report.provenance),
    }


def from_data(data: Mapping[str, Any]) -> Report:
    """Return the report that ``to_data`` wrote.

    Raises:
        KeyError, TypeError, ValueError: the data is not such a report.
    """
    if data["schema"] != SCHEMA:
        raise ValueError(f"schema is {data['schema']!r}, not {SCHEMA!r}")
    return Report(
        kind=data["kind"],
        verb=data["verb"],
        name=data["name"],
        verdict=Verdict(data["verdict"]),
        headline=data["headline"],
        subtitle=tuple(data["subtitle"]),
        metrics={name: Metric(**metric) for name, metric in data["metrics"].items()},
        tables=tuple(_table(table) for table in data["tables"]),
        figures=tuple(_figure(figure) for figure in data["figures"]),
        lines=tuple((label, text) for label, text in data["lines"]),
        notes=tuple(data["notes"]),
        next=data["next"],
        decision=data["decision"],
        provenance=data["provenance"],
    )


def without_times(report: Report) -> Report:
    """Return the report without what was measured by a clock: equal for equal spec and seed."""
    return replace(
        report,
        metrics={name: metric for name, metric in report.metrics.items() if not metric.timed},
        tables=tuple(_untimed(table) for table in report.tables),
        figures=tuple(figure for figure in report.figures if not figure.timed),
        provenance={key: value for key, value in report.provenance.items() if key != "timed"},
    )


def flaws(found: Any, kind: str, verb: str) -> Iterator[str]:
    """Yield, in words for a plugin's author, what keeps a value from being the report of this verb of this kind."""
    if not isinstance(found, Report):
        yield f"it is of type {type(found).__name__}, not Report"
        return
    if (found.kind, found.verb) != (kind, verb):
        yield f"it is that of {found.kind} {found.verb}, not of {kind} {verb}"
    if not isinstance(found.verdict, Verdict):
        yield f"its verdict is {found.verdict!r}, not Verdict.YES or Verdict.NO"
    for table in found.tables:
        if widths := {len(row) for row in table.rows} - {len(table.columns)}:
            yield f"table {table.name}: a row of {min(widths)} cells for {len(table.columns)} columns"
    for figure in found.figures:
        yield from (f"figure {figure.name}: {s.name} has {len(s.x)} x, {len(s.y)} y" for s in _uneven(figure))
    try:
        json.dumps(to_data(found))
    except (TypeError, ValueError) as error:
        yield f"JSON cannot hold it: {error}"


def _uneven(figure: Figure) -> list[Series]:
    return [series for series in figure.series if len(series.x) != len(series.y)]


def plain(value: Any) -> Any:
    """Return ``value`` with mappings as dicts, sequences and arrays as lists, non-finite numbers as ``None``."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return plain(value.tolist()) if hasattr(value, "tolist") else value


def _metric_data(metric: Metric) -> dict[str, Any]:
    data = {"value": plain(metric.value), "unit": metric.unit, "target": metric.target, "ok": plain(metric.ok)}
    return data | {"timed": True} if metric.timed else data


def _table_data(table: Table) -> dict[str, Any]:
    columns = [{"name": c.name, "unit": c.unit, "digits": c.digits, "timed": c.timed} for c in table.columns]
    return {"name": table.name, "columns": columns, "rows": plain(table.rows), "accent": table.accent}


def _figure_data(figure: Figure) -> dict[str, Any]:
    series = [{"name": s.name, "x": plain(s.x), "y": plain(s.y), "style": s.style} for s in figure.series]
    axes = {"x": figure.x, "y": figure.y, "log_x": figure.log_x, "log_y": figure.log_y}
    named = {"names": list(figure.names)} if figure.names else {}
    return {"name": figure.name, "title": figure.title, **axes, "series": series, "timed": figure.timed, **named}


def _table(data: Mapping[str, Any]) -> Table:
    columns = tuple(Column(**column) for column in data["columns"])
    return Table(data["name"], columns, tuple(tuple(row) for row in data["rows"]), data["accent"])


def _figure(data: Mapping[str, Any]) -> Figure:
    series = tuple(Series(s["name"], tuple(s["x"]), tuple(s["y"]), s["style"]) for s in data["series"])
    return Figure(**{**data, "series": series, "names": tuple(data.get("names", ()))})


def _untimed(table: Table) -> Table:
    keep = [index for index, column in enumerate(table.columns) if not column.timed]
    columns = tuple(table.columns[index] for index in keep)
    return replace(table, columns=columns, rows=tuple(tuple(row[index] for index in keep) for row in table.rows))
