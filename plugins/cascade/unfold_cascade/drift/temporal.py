"""`plan --check` on other data: the cascade of a plan goes through hours that it was not tuned on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from unfold_cascade._types import Float32, IntArray
from unfold_cascade.drift.report import CheckedData, build_drift_report
from unfold_cascade.drift.statistics import Counts, Seen, changes, counted
from unfold_cascade.models import onnx_runtime
from unfold_cascade.planner.problem import DriftRule
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.schema.plan_check import find_checked_spec
from unfold_cascade.temporal.data.features import panel
from unfold_cascade.temporal.data.table import Long, rows_of, starts_of
from unfold_cascade.temporal.evaluation.monolith import latched
from unfold_cascade.temporal.models.study import FILE, current, stored, table_of
from unfold_cascade.temporal.serving.plan_loader import Loaded, load
from unfold_cascade.temporal.simulation.policy import ladder
from unfold_cascade.temporal.simulation.trajectories import Clock, Zoo, walk
from unfoldkit.api import Report, Run


def new_data(spec: CascadeSpec, run: Run) -> CascadeSpec | None:
    """Return the spec of the plan to check, if the run holds its models and ``spec`` names other hours; else nothing.

    Raises:
        UnfoldError: beside the data, something else in the spec changed too, so there is no one thing to check.
    """
    return find_checked_spec(spec, run, FILE, lambda: current(spec, run))


def check(spec: CascadeSpec, planned: CascadeSpec, run: Run) -> Report:
    """Return whether the hours of ``spec`` are like those that no model of the plan was fitted or tuned on."""
    baseline: Mapping[str, Any] = run.options["baseline_plan"]
    loaded = load(planned, run, baseline)
    table = table_of(spec, run)
    run.log.info("asking the models of the plan about %d hours", len(table))
    told = [_counted(loaded, seen) for seen in (_before(loaded, run, baseline), _now(loaded, table))]
    rule = DriftRule(level=loaded.drift.level, margin=loaded.drift.margin)
    found = changes(told[0], told[1], rule, run.seed)
    subtitle = f"{len(table.ids):,} new cases", f"{len(table):,} new hours"
    path = str(getattr(spec.data, "path", ""))
    return build_drift_report(
        CheckedData(spec.name, len(table), "hours", subtitle, path, table.digest), found, rule, run
    )


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
    x = panel(table, loaded.features)
    p = np.zeros((len(loaded.places), len(table)), dtype=np.float32)
    for model in loaded.asked:
        p[model] = _said(loaded, model, x)[:, -1]
    base = _said(loaded, len(loaded.places) - 1, x)
    p[-1] = base[:, -1]
    return _seen(loaded, Clock(table.starts, table.hour), p, base)


def _said(loaded: Loaded, model: int, x: Float32) -> Float32:
    slot = loaded.places[model]
    engine = onnx_runtime.shrink_engine(
        onnx_runtime.build_native_engine(loaded.run, slot, "a whole table", dtype=np.float32)
    )
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
