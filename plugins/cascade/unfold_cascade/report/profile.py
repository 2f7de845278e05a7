"""The report of ``profile``: what one call of each model costs on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_cascade.models.zoo import PredictedSlot
from unfold_cascade.planner.problem import Problem
from unfold_cascade.report import sentences
from unfold_cascade.report.plan import list_notes
from unfoldkit.api import Cell, Column, Metric, Report, RunDir, Table, Verdict, format_count


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCost:
    """The cost of one call of a model.

    Attributes:
        labels: Stage and model, with the group between them where models have groups.
        flops: Operations; NaN where they cannot be counted.
        bytes: Stored size.
        latency_us: Measured time in µs.
    """

    labels: tuple[str, ...]
    flops: float
    bytes: int
    latency_us: float


def build_profile_report(problem: Problem, models: Sequence[PredictedSlot], directory: RunDir) -> Report:
    """Build the report of operations, stored bytes and measured time of one row."""
    dataset = problem.dataset
    costs = [
        CallCost(
            labels=(slot.stage, slot.group, slot.model),
            flops=predictions.flops,
            bytes=int(predictions.bytes),
            latency_us=predictions.latency_us,
        )
        for slot, predictions in models
    ]
    return build_cost_report(
        problem.name,
        costs,
        batch_rows=problem.cost.batch,
        directory=directory,
        digest=dataset.digest,
        subtitle=(format_count(len(dataset.labels), "case"),),
        notes=list_notes(dataset.unlabelled, dataset.source),
    )


def build_cost_report(
    name: str,
    costs: Sequence[CallCost],
    *,
    batch_rows: int,
    directory: RunDir,
    digest: str,
    subtitle: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Report:
    """Build the report of the models' costs.

    Args:
        name: Name of the spec.
        costs: One entry per model, at least one.
        batch_rows: Rows of a measured call.
        directory: The run, which ``train`` continues.
        digest: Hash of the data.
        subtitle: The size of the data.
        notes: Notes on rows that were skipped.
    """
    columns = (
        *_label_columns(costs),
        Column("operations", "FLOPs", 0),
        Column("stored", "bytes", 0),
        Column("time", "µs", 2, timed=True),
    )
    slowest = max(cost.latency_us for cost in costs)
    return Report(
        kind="cascade",
        verb="profile",
        name=name,
        verdict=Verdict.YES,
        headline=sentences.models_measured(len(costs), batch_rows),
        subtitle=subtitle,
        metrics={"models": Metric(len(costs)), "slowest": Metric(slowest, "µs", timed=True)},
        tables=(Table("models", columns, tuple(_build_rows(costs))),),
        notes=notes,
        next=f"unfold train {directory.word}",
        provenance={"inputs": {"data": digest}},
    )


def _label_columns(costs: Sequence[CallCost]) -> tuple[Column, ...]:
    names = ("stage", "group", "model") if len(costs[0].labels) == 3 else ("stage", "model")
    return tuple(map(Column, names))


def _build_rows(costs: Iterable[CallCost]) -> Iterable[tuple[Cell, ...]]:
    for cost in costs:
        yield (*cost.labels, cost.flops if np.isfinite(cost.flops) else None, cost.bytes, cost.latency_us)
