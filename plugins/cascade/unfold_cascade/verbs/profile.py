"""`profile`: what one call of each model costs, on this machine."""

from __future__ import annotations

import numpy as np

from unfold_cascade.data.dataset import cases, left_out
from unfold_cascade.models.zoo import logs
from unfold_cascade.planner.score_tables import zoo
from unfold_cascade.schema.models import CascadeSpec
from unfoldkit.api import Column, Metric, Report, Run, Table, Verdict, fail


def profile(spec: CascadeSpec, run: Run) -> Report:
    """Fit the models that are not fitted yet and report operations, bytes and measured time of one row."""
    if spec.over_time:
        from unfold_cascade.verbs.temporal import profile as over_time

        return over_time(spec, run)
    if spec.data.source == "recorded":
        raise fail("recorded models cannot be measured: their price stands in the spec", key="data.source")
    given = cases(spec, run)
    found = logs(spec, run, given)
    zoo(spec, run, given)
    columns = (
        Column("stage"),
        Column("group"),
        Column("model"),
        Column("operations", "FLOPs", 0),
        Column("stored", "bytes", 0),
        Column("time", "µs", 2, timed=True),
    )
    rows = tuple(
        (slot.stage, slot.group, slot.model, None if np.isnan(log.flops) else log.flops, int(log.bytes), log.latency_us)
        for slot, log in found
    )
    slowest = max(log.latency_us for _, log in found)
    return Report(
        kind="cascade",
        verb="profile",
        name=spec.name,
        verdict=Verdict.YES,
        headline=f"{len(rows)} models measured, {spec.cost.batch} rows a call",
        subtitle=(f"{len(given.labels):,} cases",),
        metrics={"models": Metric(len(rows)), "slowest": Metric(slowest, "µs", timed=True)},
        tables=(Table("models", columns, rows),),
        notes=left_out(given),
        next=f"unfold train {run.directory.word}",
        provenance={"inputs": {"data": given.digest}},
    )
