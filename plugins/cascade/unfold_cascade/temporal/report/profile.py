"""The report of ``profile`` over time: operations, size and latency of one call of each model."""

from __future__ import annotations

from unfold_cascade.temporal.models.study import Study
from unfold_cascade.temporal.report import sentences
from unfold_cascade.temporal.report.tables import finite_or_none
from unfoldkit.api import Column, Metric, Report, RunDir, Table, Verdict


def build_profile_report(study: Study, directory: RunDir) -> Report:
    """Report what one call of each model costs on this machine."""
    costs, problem = study.call_costs, study.problem
    columns = (
        Column("stage"),
        Column("model"),
        Column("operations", "FLOPs", 0),
        Column("stored", "bytes", 0),
        Column("time", "µs", 2, timed=True),
    )
    names = [model.split("/", 1) for model in study.models]
    rows = tuple(
        (stage, model, finite_or_none(float(flops)), int(size), float(latency_us))
        for (stage, model), flops, size, latency_us in zip(names, costs.flops, costs.bytes, costs.latency, strict=True)
    )
    return Report(
        kind="cascade",
        verb="profile",
        name=problem.name,
        verdict=Verdict.YES,
        headline=sentences.summarise_profile(len(rows), problem.cost.batch_rows),
        metrics={"models": Metric(len(rows)), "slowest": Metric(float(max(costs.latency)), "µs", timed=True)},
        tables=(Table("models", columns, rows),),
        next=f"unfold train {directory.word}",
        provenance={"inputs": {"data": study.digest}},
    )
