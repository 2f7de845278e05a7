"""The report of `plan --check` on new data: what changed, by how much, and whether that is drift."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unfold_cascade.drift.statistics import Change
from unfold_cascade.planner.problem import DriftRule
from unfoldkit.api import Cell, Column, Metric, Report, Run, Table, Verdict


@dataclass(frozen=True, slots=True)
class CheckedData:
    """The new data: name of the spec, their count, what is counted, and their origin."""

    name: str
    count: int
    noun: str
    subtitle: tuple[str, ...]
    path: str
    digest: str


def build_drift_report(data: CheckedData, changes: Sequence[Change], rule: DriftRule, run: Run) -> Report:
    """Build the report; the last of ``changes`` is the agreement with the baseline."""
    drifted = sorted((change for change in changes if change.drifted), key=lambda change: -change.distance)
    largest = max(changes, key=lambda change: change.distance)
    return Report(
        kind="cascade",
        verb="plan",
        name=data.name,
        verdict=Verdict.NO if drifted else Verdict.YES,
        headline=_headline(data, drifted, largest),
        subtitle=data.subtitle,
        metrics={
            "drift_points": Metric(100 * largest.distance, "points"),
            "audit_differs": Metric(float(changes[-1].now[1]), ""),
            "audit_differs_before": Metric(float(changes[-1].before[1]), ""),
        },
        tables=(_build_summary(changes), *(_build_shares(change) for change in changes if change.drifted)),
        lines=tuple(_list_lines(data, rule, has_drifted=bool(drifted))),
        next=f"unfold train {run.directory.word} --set data.path={data.path}" if drifted else "",
        decision=(run.options.get("baseline_plan") or run.options["plan"])["decision"],
        provenance={"inputs": {"data": data.digest}},
    )


def _headline(data: CheckedData, drifted: Sequence[Change], largest: Change) -> str:
    if not drifted:
        changed = f"largest change: {largest.name}, by {100 * largest.distance:.1f} points"
        return f"{data.count:,} new {data.noun} do not differ from those of the plan; {changed}"
    text = f"the new {data.noun} drifted: {drifted[0].name} changed by {100 * drifted[0].distance:.1f} points"
    return text + "".join(f", {change.name} by {100 * change.distance:.1f}" for change in drifted[1:])


def _build_summary(changes: Sequence[Change]) -> Table:
    columns = (Column("compared"), Column("changed", "points", 2), Column("p-value", "", 4), Column("drift"))
    rows = tuple(
        (change.name, 100 * change.distance, change.p_value, "yes" if change.drifted else "no") for change in changes
    )
    return Table("changes", columns, rows)


def _build_shares(change: Change) -> Table:
    columns = (Column(change.name), Column("before", "%", 1), Column("now", "%", 1))
    shares = zip(change.categories, change.before, change.now, strict=True)
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (name, 100 * float(before), 100 * float(now)) for name, before, now in shares
    )
    return Table(f"shares, {change.name}", columns, rows)


def _list_lines(data: CheckedData, rule: DriftRule, *, has_drifted: bool) -> Iterator[tuple[str, str]]:
    thresholds = f"more than {100 * rule.margin:g} points, and p ≤ {100 * rule.level:g} % shared among all comparisons"
    yield "rule", f"drift: {thresholds}"
    yield "before", "cases that no model of the plan was fitted or tuned on; no label is read"
    if has_drifted:
        text = f"the certificate covers {data.noun} like those before, not necessarily these"
        yield "certificate", text
