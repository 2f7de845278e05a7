"""`plan --check` on other data: the cascade of a plan goes through hours that it was not tuned on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from unfold_cascade import pack
from unfold_cascade.arrays import Float32, IntArray
from unfold_cascade.spec import CascadeSpec
from unfold_cascade.time.drift import Change, Counts, Seen, changes, counted
from unfold_cascade.time.long import Long, rows_of, starts_of
from unfold_cascade.time.monolith import latched
from unfold_cascade.time.moves import Clock, Zoo, walk
from unfold_cascade.time.panel import panel
from unfold_cascade.time.policy import ladder
from unfold_cascade.time.served import Loaded, load
from unfold_cascade.time.study import FILE, current, stored, table_of
from unfoldkit.api import Cell, Column, Metric, Report, Run, Table, Verdict, dump, fail


def new_data(spec: CascadeSpec, run: Run) -> CascadeSpec | None:
    """Return the spec of the plan to check, if the run holds its models and ``spec`` names other hours; else nothing.

    Raises:
        UnfoldError: beside the data, something else in the spec changed too, so there is no one thing to check.
    """
    baseline: Mapping[str, Any] = run.options.get("baseline_plan") or {}
    if not baseline or not run.directory.has(FILE) or "spec" not in baseline:
        return None
    # read as JSON: only there may a list stand for a tuple
    planned = CascadeSpec.model_validate_json(json.dumps(baseline["spec"]))
    same = dump(planned.data) == dump(spec.data)
    if same and (dump(planned) != dump(spec) or current(spec, run)):
        return None
    if dump(planned.model_copy(update={"data": spec.data})) != dump(spec):
        hint = "check the new data with the spec of the plan: unfold plan --check PLAN --set data.path=..."
        raise fail("the data and other keys of the spec changed together", key="data", hint=hint)
    return planned


def check(spec: CascadeSpec, planned: CascadeSpec, run: Run) -> Report:
    """Return whether the hours of ``spec`` are like those that no model of the plan was fitted or tuned on."""
    baseline: Mapping[str, Any] = run.options["baseline_plan"]
    loaded = load(planned, run, baseline)
    table = table_of(spec, run)
    run.log.info("asking the models of the plan about %d hours", len(table))
    told = [_counted(loaded, seen) for seen in (_before(loaded, run, baseline), _now(loaded, table))]
    found = changes(told[0], told[1], loaded.drift, run.seed)
    return _report(spec, table, found, run, loaded)


def _counted(loaded: Loaded, seen: Seen) -> list[Counts]:
    names = [stage.name for stage in loaded.spec.stages]
    return list(counted(seen, loaded.policy, names, [slot.place for slot in loaded.places]))


def _before(loaded: Loaded, run: Run, baseline: Mapping[str, Any]) -> Seen:
    """Return what the cascade did on the certifying and the test entities of its own data."""
    held = stored(loaded.spec, replace(run, seed=int(baseline["seed"])))
    clock, entities = held.hours.clock, np.concatenate([held.rows.calibrate, held.rows.test])
    rows = rows_of(clock.starts, entities)
    p = np.array([log.p[rows, -1] for log in loaded.logs])
    own = Clock(starts_of(np.diff(clock.starts)[entities]), clock.hour[rows])
    return _seen(loaded, own, p, loaded.logs[-1].p[rows])


def _now(loaded: Loaded, table: Long) -> Seen:
    x = panel(table, loaded.spec.features)
    p = np.zeros((len(loaded.places), len(table)), dtype=np.float32)
    for model in loaded.asked:
        p[model] = _said(loaded, model, x)[:, -1]
    base = _said(loaded, len(loaded.places) - 1, x)
    p[-1] = base[:, -1]
    return _seen(loaded, Clock(table.starts, table.hour), p, base)


def _said(loaded: Loaded, model: int, x: Float32) -> Float32:
    slot = loaded.places[model]
    engine = pack.drawn(pack.unconverted(loaded.run, slot, "a whole table", dtype=np.float32))
    return engine.predict(np.ascontiguousarray(x[:, slot.columns])).astype(np.float32)


def _seen(loaded: Loaded, clock: Clock, p: Float32, base: Float32) -> Seen:
    zoo = Zoo(p, loaded.needs, loaded.purchase)
    went = walk(clock, zoo, ladder(loaded.policy, loaded.parallel), loaded.moves)
    return Seen(clock, zoo, went, _decoded(loaded, clock, zoo, base))


def _decoded(loaded: Loaded, clock: Clock, zoo: Zoo, base: Float32) -> IntArray:
    rule = loaded.monolith
    alarm = walk(clock, zoo, ladder(rule.policy, np.array([True])), loaded.moves).answer == 1
    stage = latched(base, clock.starts, rule.cuts or ())
    last = len(loaded.spec.stages)
    return np.where(alarm, last, np.minimum(stage, last - 1)).astype(np.int64)


def _report(spec: CascadeSpec, table: Long, found: Sequence[Change], run: Run, loaded: Loaded) -> Report:
    drifted = [change for change in found if change.drifted]
    worst = max(found, key=lambda change: change.distance)
    return Report(
        kind="cascade",
        verb="plan",
        name=spec.name,
        verdict=Verdict.NO if drifted else Verdict.YES,
        headline=_headline(table, drifted, worst),
        subtitle=(f"{len(table.ids):,} new cases", f"{len(table):,} new hours"),
        metrics={
            "drift_points": Metric(100 * worst.distance, "points"),
            "audit_differs": Metric(float(found[-1].now[1]), ""),
            "audit_differs_before": Metric(float(found[-1].before[1]), ""),
        },
        tables=(_summary(found), *(_shares(change) for change in found if change.drifted)),
        lines=_lines(loaded, drifted),
        next=f"unfold train {run.directory.path} --set data.path={getattr(spec.data, 'path', '')}" if drifted else "",
        decision=run.options["baseline_plan"]["decision"],
        provenance={"inputs": {"data": table.digest}},
    )


def _headline(table: Long, drifted: Sequence[Change], worst: Change) -> str:
    if not drifted:
        changed = f"{worst.name} changed most, by {100 * worst.distance:.1f} points"
        return f"{len(table):,} new hours are like those of the plan; {changed}"
    first, *rest = sorted(drifted, key=lambda change: -change.distance)
    text = f"the new hours drifted: {first.name} changed by {100 * first.distance:.1f} points"
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


def _lines(loaded: Loaded, drifted: Sequence[Change]) -> tuple[tuple[str, str], ...]:
    rule = loaded.drift
    how = f"drift: more than {100 * rule.margin:g} points, and p ≤ {100 * rule.level:g}% shared among all comparisons"
    lines = [("rule", how), ("before", "cases that no model of the plan was fitted or tuned on; no label is read")]
    if drifted:
        what = "what was certified speaks of hours like those before; it need not hold of these"
        lines.append(("certificate", what))
    return tuple(lines)
