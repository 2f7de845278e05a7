"""The verbs of the kind, for specs whose cases are seen over time."""

from __future__ import annotations

from unfold_cascade.drift.temporal import check, new_data
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.temporal import handoff
from unfold_cascade.temporal.models.study import study
from unfold_cascade.temporal.report import tell
from unfold_cascade.temporal.search.planner import decide
from unfold_cascade.temporal.serving.service import serve as build_service
from unfoldkit.api import Column, Metric, Report, Run, Service, Table, Verdict


def answer(spec: CascadeSpec, run: Run, verb: str) -> Report:
    """Return the report of ``train`` or ``plan``; models that the run does not hold yet are fitted first.

    A plan that is checked on other data than its own is not made again: its cascade is asked about the new hours.
    """
    planned = new_data(spec, run) if verb == "plan" else None
    if planned is not None:
        return check(spec, planned, run)
    found = decide(spec, run)
    handoff.keep(found, run)
    return tell(found, run, verb)


def profile(spec: CascadeSpec, run: Run) -> Report:
    """Fit the models that are not fitted yet and report what one call of each costs."""
    whole = study(spec, run)
    rates = whole.rates
    columns = (
        Column("stage"),
        Column("model"),
        Column("operations", "FLOPs", 0),
        Column("stored", "bytes", 0),
        Column("time", "µs", 2, timed=True),
    )
    costs = [(None if v != v else float(v)) for v in rates.flops]  # noqa: PLR0124 - NaN: not known
    names = [model.split("/", 1) for model in whole.models]
    rows = tuple(
        (stage, model, flops, int(size), float(time))
        for (stage, model), flops, size, time in zip(names, costs, rates.bytes, rates.latency, strict=True)
    )
    return Report(
        kind="cascade",
        verb="profile",
        name=spec.name,
        verdict=Verdict.YES,
        headline=f"{len(rows)} models measured, {spec.cost.batch} rows a call",
        metrics={"models": Metric(len(rows)), "slowest": Metric(float(max(rates.latency)), "µs", timed=True)},
        tables=(Table("models", columns, rows),),
        next=f"unfold train {run.directory.word}",
        provenance={"inputs": {"data": whole.digest}},
    )


def train(spec: CascadeSpec, run: Run) -> Report:
    """Fit, tune and certify the cascade, and save everything in the run."""
    return answer(spec, run, "train")


def plan(spec: CascadeSpec, run: Run) -> Report:
    """Tune the gates for the goal, or check the plan of the run on new hours."""
    return answer(spec, run, "plan")


def serve(spec: CascadeSpec, run: Run) -> Service:
    """Build the stateful service of the plan that the run stores."""
    return build_service(spec, run)
