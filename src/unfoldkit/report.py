"""The value that every verb returns: a report as pure data, which any renderer can show."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal, get_args

from unfoldkit.figure_data import AnyFigure, figure_data, find_figure_problems, parse_figure

SCHEMA = "unfoldkit.report/1"
MAX_DIGITS = 17
"""Decimals of a column at most: a float has no more."""
Cell = str | int | float | bool | None
Status = Literal["finished", "running", "stopped"]


class Verdict(StrEnum):
    """Whether the goal of the spec is met."""

    YES = "yes"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of the result.

    ``ok`` is whether it meets ``target``, and ``timed`` marks a measured value. ``label`` says what it is, where the
    words of its name are not enough.
    """

    value: float | None
    unit: str = ""
    target: str | None = None
    ok: bool | None = None
    timed: bool = False
    label: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """The head of a table's column, with the unit of its cells; ``timed`` marks measured values."""

    name: str
    unit: str = ""
    digits: int | None = None
    timed: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the report, with rows as long as ``columns``; ``accent`` is the index of the selected row."""

    name: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    accent: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a verb.

    Args:
        kind: The kind of the spec.
        verb: The verb.
        name: The name of the spec.
        verdict: Whether the goal is met.
        headline: The answer in one sentence.
        subtitle: Facts beside the title.
        metrics: Figures by name.
        tables: Tables.
        figures: Plots, graphs, timelines, flows, step areas and interval plots.
        lines: Labels and sentences below the tables.
        notes: Further sentences.
        next: The next command, in which ``SPEC`` stands for the spec of the call.
        decision: The plan itself, if there is one.
        provenance: What the result was made from.
        status: Whether the verb has finished, still runs, or was stopped; figures of the latter two are those so far.
        question: What the headline answers, as one short sentence; empty where the headline says it.
    """

    kind: str
    verb: str
    name: str
    verdict: Verdict
    headline: str
    subtitle: tuple[str, ...] = ()
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    figures: tuple[AnyFigure, ...] = ()
    lines: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    next: str = ""
    decision: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    status: Status = "finished"
    question: str = ""

    @property
    def answer(self) -> str:
        """The word before the headline: the verdict, or the status of a verb that has not finished."""
        return str(self.verdict) if self.status == "finished" else self.status


def time_axis(longest: float) -> tuple[str, float]:
    """Select the unit of a time axis, and return it with its length in s, by the longest time in s."""
    return next(
        ((unit, unit_s) for unit, unit_s in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)) if longest > 4 * unit_s),
        ("s", 1.0),
    )


def to_data(report: Report) -> dict[str, Any]:
    """Convert a report to plain data (schema ``unfoldkit.report/1``) with keys in a stable order."""
    data = {
        "schema": SCHEMA,
        "kind": report.kind,
        "verb": report.verb,
        "name": report.name,
        "verdict": str(report.verdict),
        "headline": report.headline,
        "subtitle": list(report.subtitle),
        "metrics": {name: _metric_data(metric) for name, metric in report.metrics.items()},
        "tables": [_table_data(table) for table in report.tables],
        "figures": [to_plain(figure_data(figure)) for figure in report.figures],
        "lines": [list(line) for line in report.lines],
        "notes": list(report.notes),
        "next": report.next,
        "decision": to_plain(report.decision),
        "provenance": to_plain(report.provenance),
    }
    data |= {"question": report.question} if report.question else {}
    return data if report.status == "finished" else data | {"status": report.status}


def from_data(data: Mapping[str, Any]) -> Report:
    """Convert the data of ``to_data`` back to a report; fields that a report of an earlier version lacks are empty.

    Raises:
        KeyError, TypeError, ValueError: The data is not such a report.
    """
    if data["schema"] != SCHEMA:
        raise ValueError(f"schema is {data['schema']!r}, not {SCHEMA!r}")
    _check_types(data)
    return Report(
        kind=data["kind"],
        verb=data["verb"],
        name=data["name"],
        verdict=Verdict(data["verdict"]),
        headline=data["headline"],
        subtitle=tuple(data.get("subtitle", ())),
        metrics={name: Metric(**metric) for name, metric in data.get("metrics", {}).items()},
        tables=tuple(_parse_table(table) for table in data.get("tables", ())),
        figures=tuple(parse_figure(figure) for figure in data.get("figures", ())),
        lines=tuple((label, text) for label, text in data.get("lines", ())),
        notes=tuple(data.get("notes", ())),
        next=data.get("next", ""),
        decision=data.get("decision"),
        provenance=data.get("provenance", {}),
        status=data.get("status", "finished"),
        question=data.get("question", ""),
    )


def _check_types(data: Mapping[str, Any]) -> None:
    """Reject values of other types than those of a report, on which the renderers rely.

    Raises:
        ValueError: The message has the field.
    """
    import msgspec

    texts = tuple[str, ...]
    types = dict.fromkeys(("kind", "verb", "name", "headline", "next", "question"), str) | {
        "subtitle": texts,
        "metrics": dict[str, Metric],
        "tables": tuple[Table, ...],
        "lines": tuple[tuple[str, str], ...],
        "notes": texts,
        "decision": dict[str, Any] | None,
        "provenance": dict[str, Any],
        "status": Status,
    }
    for name in types.keys() & data.keys():
        try:
            msgspec.convert(data[name], types[name])
        except msgspec.ValidationError as error:
            raise ValueError(f"{name}: {error}") from error


def without_measurements(report: Report) -> Report:
    """Return a report without values that were measured by a clock: equal for equal spec and seed."""
    return replace(
        report,
        metrics={name: metric for name, metric in report.metrics.items() if not metric.timed},
        tables=tuple(_drop_measured(table) for table in report.tables),
        figures=tuple(figure for figure in report.figures if not figure.timed),
        provenance={key: value for key, value in report.provenance.items() if key != "timed"},
    )


def label_metrics(metrics: Mapping[str, Metric], labels: Mapping[str, str]) -> dict[str, Metric]:
    """Return metrics, with a label for each name that does not explain itself."""
    return {name: replace(metric, label=labels.get(name, metric.label)) for name, metric in metrics.items()}


def validate_report(result: Any, kind: str, verb: str) -> Iterator[str]:
    """Yield, for a plugin's author, every reason why a value is no valid report of this verb of this kind."""
    if not isinstance(result, Report):
        yield f"it is of type {type(result).__name__}, not Report"
        return
    if (result.kind, result.verb) != (kind, verb):
        yield f"it is that of {result.kind} {result.verb}, not of {kind} {verb}"
    if not isinstance(result.verdict, Verdict):
        yield f"its verdict is {result.verdict!r}, not Verdict.YES or Verdict.NO"
    if result.status not in get_args(Status):
        yield f"its status is {result.status!r}, not one of {', '.join(get_args(Status))}"
    for table in result.tables:
        yield from (f"table {table.name}: {problem}" for problem in _find_table_problems(table))
    for figure in result.figures:
        yield from find_figure_problems(figure)
    names = [getattr(figure, "name", None) for figure in result.figures]
    yield from (f"two figures have the name {name}" for name in sorted({str(n) for n in names if names.count(n) > 1}))
    try:
        json.dumps(to_data(result))
    except (TypeError, ValueError) as error:
        yield f"it is not serializable to JSON: {error}"


def _find_table_problems(table: Table) -> Iterator[str]:
    if widths := {len(row) for row in table.rows} - {len(table.columns)}:
        yield f"a row of {min(widths)} cells for {len(table.columns)} columns"
    if any(column.digits is not None and not 0 <= column.digits <= MAX_DIGITS for column in table.columns):
        yield f"a column has fewer than 0 or more than {MAX_DIGITS} digits"
    if table.accent is not None and not 0 <= table.accent < len(table.rows):
        yield f"accent is {table.accent}, but it has {len(table.rows)} rows"


def to_plain(value: Any) -> Any:
    """Convert a value to dicts, lists and scalars; non-finite numbers become ``None``."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(child) for child in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return to_plain(value.tolist()) if hasattr(value, "tolist") else value


def _metric_data(metric: Metric) -> dict[str, Any]:
    data = {"value": to_plain(metric.value), "unit": metric.unit, "target": metric.target, "ok": to_plain(metric.ok)}
    data |= {"timed": True} if metric.timed else {}
    return data | {"label": metric.label} if metric.label else data


def _table_data(table: Table) -> dict[str, Any]:
    columns = [{"name": c.name, "unit": c.unit, "digits": c.digits, "timed": c.timed} for c in table.columns]
    return {"name": table.name, "columns": columns, "rows": to_plain(table.rows), "accent": table.accent}


def _parse_table(data: Mapping[str, Any]) -> Table:
    columns = tuple(Column(**column) for column in data["columns"])
    return Table(data["name"], columns, tuple(tuple(row) for row in data["rows"]), data["accent"])


def _drop_measured(table: Table) -> Table:
    kept_columns = [index for index, column in enumerate(table.columns) if not column.timed]
    columns = tuple(table.columns[index] for index in kept_columns)
    return replace(
        table, columns=columns, rows=tuple(tuple(row[index] for index in kept_columns) for row in table.rows)
    )
