"""The report of `plan --check` on other data: what changed, by how much, and whether that is drift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unfold_cascade.drift.statistics import Change
from unfold_cascade.schema.temporal import Drift
from unfoldkit.api import Cell, Column, Metric, Report, Run, Table, Verdict


@dataclass(frozen=True, slots=True)
class Looked:
    """What was looked at: the name of the spec, how many of what, and where it came from."""

    name: str
    count: int
    noun: str
    subtitle: tuple[str, ...]
    path: str
    digest: str


def tell(looked: Looked, found: Sequence[Change], rule: Drift, run: Run) -> Report:
    """Return the report; the last of ``found`` is the audit."""
    drifted = [change for change in found if change.drifted]
    worst = max(found, key=lambda change: change.distance)
    return Report(
        kind="cascade",
        verb="plan",
        name=looked.name,
        verdict=Verdict.NO if drifted else Verdict.YES,
        headline=_headline(looked, drifted, worst),
        subtitle=looked.subtitle,
        metrics={
            "drift_points": Metric(100 * worst.distance, "points"),
            "audit_differs": Metric(float(found[-1].now[1]), ""),
            "audit_differs_before": Metric(float(found[-1].before[1]), ""),
        },
        tables=(_summary(found), *(_shares(change) for change in found if change.drifted)),
        lines=_lines(looked, rule, drifted),
        next=f"unfold train {run.directory.word} --set data.path={looked.path}" if drifted else "",
        decision=run.options["baseline_plan"]["decision"],
        provenance={"inputs": {"data": looked.digest}},
    )


def _headline(looked: Looked, drifted: Sequence[Change], worst: Change) -> str:
    if not drifted:
        changed = f"{worst.name} changed most, by {100 * worst.distance:.1f} points"
        return f"{looked.count:,} new {looked.noun} are like those of the plan; {changed}"
    first, *rest = sorted(drifted, key=lambda change: -change.distance)
    text = f"the new {looked.noun} drifted: {first.name} changed by {100 * first.distance:.1f} points"
    return text + "".join(f", {change.name} by {100 * change.distance:.1f}" for change in rest)


def _summary(found: Sequence[Change]) -> Table:
    columns = (Column("compared"), Column("changed", "points", 2), Column("p-value", "", 4), Column("drift"))
    rows = tuple((one.name, 100 * one.distance, one.p_value, "yes" if one.drifted else "no") for one in found)
    return Table("changes", columns, rows)


def _shares(change: Change) -> Table:
    columns = (Column(change.name), Column("before", "%", 1), Column("now", "%", 1))
    triples = zip(change.categories, change.before, change.now, strict=True)
    rows: tuple[tuple[Cell, ...], ...] = tuple((name, 100 * float(a), 100 * float(b)) for name, a, b in triples)
    return Table(f"shares, {change.name}", columns, rows)


def _lines(looked: Looked, rule: Drift, drifted: Sequence[Change]) -> tuple[tuple[str, str], ...]:
    how = f"drift: more than {100 * rule.margin:g} points, and p ≤ {100 * rule.level:g}% shared among all comparisons"
    lines = [("rule", how), ("before", "cases that no model of the plan was fitted or tuned on; no label is read")]
    if drifted:
        what = f"what was certified speaks of {looked.noun} like those before; it need not hold of these"
        lines.append(("certificate", what))
    return tuple(lines)
