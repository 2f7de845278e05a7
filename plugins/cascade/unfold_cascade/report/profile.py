"""The report of ``profile``: what one call of each model costs on this machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unfold_cascade.models.zoo import PredictedSlot
from unfold_cascade.planner.problem import Problem
from unfold_cascade.report import sentences
from unfold_cascade.report.plan import list_notes
from unfoldkit.api import Column, Metric, Report, RunDir, Table, Verdict


def build_profile_report(problem: Problem, models: Sequence[PredictedSlot], directory: RunDir) -> Report:
    """Build the report of operations, stored bytes and measured time of one row."""
    dataset = problem.dataset
    columns = (
        Column("stage"),
        Column("group"),
        Column("model"),
        Column("operations", "FLOPs", 0),
        Column("stored", "bytes", 0),
        Column("time", "µs", 2, timed=True),
    )
    rows = tuple(
        (
            slot.stage,
            slot.group,
            slot.model,
            None if np.isnan(predictions.flops) else predictions.flops,
            int(predictions.bytes),
            predictions.latency_us,
        )
        for slot, predictions in models
    )
    slowest = max(predictions.latency_us for _, predictions in models)
    return Report(
        kind="cascade",
        verb="profile",
        name=problem.name,
        verdict=Verdict.YES,
        headline=sentences.models_measured(len(rows), problem.cost.batch),
        subtitle=(f"{len(dataset.labels):,} cases",),
        metrics={"models": Metric(len(rows)), "slowest": Metric(slowest, "µs", timed=True)},
        tables=(Table("models", columns, rows),),
        notes=list_notes(dataset.unlabelled, dataset.source),
        next=f"unfold train {directory.word}",
        provenance={"inputs": {"data": dataset.digest}},
    )
