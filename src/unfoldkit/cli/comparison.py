"""Compare the reports of two runs, or two plans: what differs comes first, in metrics, plan, tables and figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from unfoldkit.cli.plan_check import find_differences, to_cell
from unfoldkit.errors import user_error
from unfoldkit.figure_data import AnyFigure, Figure, Series
from unfoldkit.format import format_count
from unfoldkit.report import Cell, Column, Metric, Report, Table, Verdict, to_plain

MAX_ROWS = 100
"""Differing cells of tables that are listed."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of two compared reports, with the name that it has in tables and figures."""

    label: str
    report: Report


def compare_reports(left: Side, right: Side) -> Report:
    """Return a report of the differences; the verdict is yes if nothing differs that no clock measured.

    Raises:
        UnfoldError: The reports are of different kinds.
    """
    old, new = left.report, right.report
    if old.kind != new.kind:
        message = f"{left.label} is of kind {old.kind}, {right.label} of kind {new.kind}"
        raise user_error(message, hint="compare two runs or plans of one kind")
    left, right = _name_sides(left, right)
    metrics, count = _compare_metrics(left, right)
    cells, cell_count = _compare_tables(left, right)
    plan = _compare_trees("plan", left, right, (old.decision, new.decision))
    spec = _compare_trees("spec", left, right, (old.provenance.get("spec"), new.provenance.get("spec")))
    parts = [
        *(["the verdict"] if old.headline and new.headline and old.verdict is not new.verdict else []),
        *([format_count(count, "metric")] if count else []),
        *([f"{format_count(len(plan.rows), 'place')} of the plan"] if plan.rows else []),
        *([f"{format_count(len(spec.rows), 'key')} of the spec"] if spec.rows else []),
        *([f"{format_count(cell_count, 'cell')} of tables"] if cell_count else []),
    ]
    answers = [(side.label, side.report) for side in (left, right) if side.report.headline]
    return Report(
        kind=old.kind,
        verb="report",
        name=f"{left.label} and {right.label}",
        verdict=Verdict.NO if parts else Verdict.YES,
        headline=f"they differ in {', '.join(parts)}" if parts else "they do not differ",
        tables=tuple(table for table in (metrics, plan, spec, cells) if table.rows),
        figures=tuple(_pair_figures(left, right)),
        lines=tuple((label, f"{report.verdict} · {report.headline}") for label, report in answers),
        notes=tuple(_list_limits(left, right, cell_count)),
    )


def _list_limits(left: Side, right: Side, cell_count: int) -> Iterator[str]:
    """List what the comparison leaves out, and why."""
    if left.report.verb != right.report.verb:
        yield f"{left.label} is of unfold {left.report.verb}, {right.label} of unfold {right.report.verb}"
    parts = {side.label: _list_parts(side.report) for side in (left, right)}
    for side, other in ((left, right), (right, left)):
        missing = [name for name in parts[other.label] if name not in parts[side.label]]
        if missing:
            yield f"not compared, as {side.label} has none: {', '.join(missing)}"
    if cell_count > MAX_ROWS:
        yield f"the first {MAX_ROWS} of {format_count(cell_count, 'differing cell')} of tables are listed"


def _list_parts(report: Report) -> list[str]:
    parts = {
        "metrics": report.metrics,
        "plan": report.decision,
        "spec": report.provenance.get("spec"),
        "tables": report.tables,
    }
    return [name for name, part in parts.items() if part]


def _name_sides(left: Side, right: Side) -> tuple[Side, Side]:
    if left.label != right.label:
        return left, right
    return replace(left, label=f"{left.label} (1)"), replace(right, label=f"{right.label} (2)")


def _compare_metrics(left: Side, right: Side) -> tuple[Table, int]:
    """Return the metrics, first those that differ and then those that a clock measured, and how many differ."""
    old, new = left.report.metrics, right.report.metrics
    if not old or not new:
        # a plan file has none
        old, new = {}, {}
    sides = (Column(left.label), Column(right.label))
    columns = (Column("metric"), *sides, Column("difference"), Column("change", "%", 1), Column("unit"))
    rows: list[tuple[int, tuple[Cell, ...]]] = []
    for name in dict.fromkeys([*old, *new]):
        values = [side.get(name, Metric(None)) for side in (old, new)]
        first, second = (item.value for item in values)
        rank = 2 if _is_close(first, second) else 1 if any(item.timed for item in values) else 0
        unit = " ".join(dict.fromkeys(item.unit for item in values if item.unit))
        rows.append((rank, (name, first, second, *_subtract(first, second), unit)))
    rows.sort(key=lambda row: row[0])
    kept = tuple(row for rank, row in rows if rank < 2) or tuple(row for _, row in rows)
    return Table("metrics", columns, kept), sum(rank == 0 for rank, _ in rows)


def _is_close(first: float | None, second: float | None) -> bool:
    if first is None or second is None:
        return first is second
    return math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(first) and math.isnan(second))


def _subtract(first: float | None, second: float | None) -> tuple[float | None, float | None]:
    if first is None or second is None:
        return None, None
    change = (second / first - 1) * 100 if first else None
    return second - first, change


def _compare_trees(name: str, left: Side, right: Side, values: tuple[Any, Any]) -> Table:
    columns = (Column("key"), Column(left.label), Column(right.label))
    old, new = values
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return Table(name, columns, ())
    differences = find_differences(to_plain(old), to_plain(new))
    return Table(name, columns, tuple((key, to_cell(a), to_cell(b)) for key, a, b in differences))


def _compare_tables(left: Side, right: Side) -> tuple[Table, int]:
    """Return the first cells that differ, and how many do; nothing if a side has no tables, such as a plan file."""
    columns = (Column("table"), Column("row"), Column("column"), Column(left.label), Column(right.label))
    old, new = ({table.name: table for table in side.report.tables} for side in (left, right))
    rows: list[tuple[Cell, ...]] = []
    for name in dict.fromkeys([*old, *new]) if old and new else ():
        if name in old and name in new:
            rows += _compare_cells(old[name], new[name])
        else:
            rows.append((name, "", "the table", *_mark_presence(name, old, new)))
    return Table("cells of tables", columns, tuple(rows[:MAX_ROWS])), len(rows)


def _mark_presence(name: Any, old: Mapping[Any, Any], new: Mapping[Any, Any]) -> tuple[str, str]:
    first, second = ("there" if name in side else "absent" for side in (old, new))
    return first, second


def _compare_cells(old: Table, new: Table) -> Iterator[tuple[Cell, ...]]:
    """Yield the cells that differ, by the first cell of their row and the name of their column; not measured ones."""
    indices = {column.name: index for index, column in enumerate(new.columns)}
    untimed = [(index, column) for index, column in enumerate(old.columns) if index and not column.timed]
    shared = [
        (index, indices[column.name], f"{column.name} {column.unit}".strip())
        for index, column in untimed
        if column.name in indices
    ]
    old_rows, new_rows = _index_rows(old), _index_rows(new)
    for name in dict.fromkeys([*old_rows, *new_rows]):
        if name not in old_rows or name not in new_rows:
            yield (old.name, name, "the row", *_mark_presence(name, old_rows, new_rows))
            continue
        for index, other, label in shared:
            first, second = old_rows[name][index], new_rows[name][other]
            if not _is_equal(first, second):
                yield (old.name, name, label, first, second)


def _index_rows(table: Table) -> dict[str, tuple[Cell, ...]]:
    """Return rows by their first cell; rows that share it are numbered from the second on."""
    counts: Counter[str] = Counter()
    rows: dict[str, tuple[Cell, ...]] = {}
    for row in table.rows:
        name = str(row[0]) if row else ""
        counts[name] += 1
        rows[name if counts[name] == 1 else f"{name} ({counts[name]})"] = row
    return rows


def _is_equal(first: Cell, second: Cell) -> bool:
    numbers = (int, float)
    if isinstance(first, numbers) and isinstance(second, numbers):
        return _is_close(first, second)
    return first == second


def _pair_figures(left: Side, right: Side) -> Iterator[AnyFigure]:
    """Yield figures that differ: plots over the same axes in one, all others one below the other."""
    others = {figure.name: figure for figure in right.report.figures}
    for figure in left.report.figures:
        other = others.pop(figure.name, None)
        if other is None:
            yield _label(figure, left, "a")
        elif isinstance(figure, Figure) and isinstance(other, Figure) and _have_same_axes(figure, other):
            if figure != other:
                yield replace(figure, series=(*_label_series(figure, left), *_label_series(other, right)))
        elif figure != other:
            yield from (_label(figure, left, "a"), _label(other, right, "b"))
    for other in others.values():
        yield _label(other, right, "b")


def _have_same_axes(first: Figure, second: Figure) -> bool:
    """Return whether the axes of two plots have equal labels, which include their units."""
    return (first.x, first.y, first.names) == (second.x, second.y, second.names)


def _label_series(figure: Figure, side: Side) -> list[Series]:
    return [replace(series, name=f"{side.label}: {series.name}") for series in figure.series]


def _label(figure: AnyFigure, side: Side, prefix: str) -> AnyFigure:
    return replace(figure, name=f"{prefix}-{figure.name}", title=f"{side.label} · {figure.title}")
