"""The plan as data: what is written to ``plan.yaml``, read back, and checked against new traffic."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline.estimator.slo import Judge
from unfold_pipeline.problem.pipeline import Choice, Pipeline, Plan
from unfold_pipeline.report.plan import milliseconds
from unfold_pipeline.schema.models import PipelineSpec
from unfoldkit.api import Metric, Report, Verdict, fail
from unfoldkit.arrivals.envelope import envelope, first_excess, windows


def decision_of(judge: Judge, plan: Plan, cost: float, tail: float) -> dict[str, Any]:
    """Return a plan with the envelope of the traffic that it was made for."""
    stages = {
        stage.name: {"hardware": stage.options[c.option].hardware, "batch": c.batch, "replicas": c.replicas}
        for stage, c in zip(judge.pipeline.stages, plan, strict=True)
    }
    lengths, counts = planned_envelope(judge, plan)
    return {
        "cost_per_hour": round(cost, 9),
        "p99_ms": round(tail * 1e3, 6),
        "stages": stages,
        "envelope": {"windows_s": [round(float(item), 9) for item in lengths], "queries": [int(c) for c in counts]},
        "sample_sha256": sample_hash(judge),
    }


def planned_envelope(judge: Judge, plan: Plan) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return windows in s, and the most queries in any of each length, over the samples that a plan was made for."""
    lengths = windows(judge.single(plan))
    return lengths, np.max([envelope(item.sample.arrivals, lengths) for item in judge.estimators], axis=0)


def plan_of(decision: Mapping[str, Any], pipeline: Pipeline) -> Plan:
    """Return the plan that ``decision_of`` wrote.

    Raises:
        UnfoldError: the plan is of other stages, hardware or batches.
    """
    stages = decision.get("stages")
    names = [stage.name for stage in pipeline.stages]
    if not isinstance(stages, Mapping) or sorted(stages) != sorted(names):
        raise fail("the plan is of other stages than the spec", hint="plan again")
    return tuple(_choice(pipeline, index, stages[name]) for index, name in enumerate(names))


def sample_hash(judge: Judge) -> str:
    """Return a hash of the arrivals and routes that a plan was made for."""
    digest = hashlib.sha256()
    for estimator in judge.estimators:
        digest.update(estimator.sample.arrivals.tobytes())
        for visits in estimator.sample.visits:
            digest.update(visits.owner.tobytes())
    return digest.hexdigest()


def recheck(spec: PipelineSpec, judge: Judge, committed: Mapping[str, Any] | None) -> Report | None:
    """Return whether a committed plan still does for other traffic than its own; ``None`` if the traffic is its own."""
    decision = (committed or {}).get("decision", {})
    if not decision or decision.get("sample_sha256") == sample_hash(judge):
        return None
    chosen = plan_of(decision, judge.pipeline)
    tail = judge.tail(chosen)
    over, excess = _over(judge.pipeline, chosen), _excess(judge, decision.get("envelope", {}))
    limit, late = milliseconds(judge.limit), tail > judge.limit
    quotas = (("quota", over),) if over else ()
    return Report(
        "pipeline",
        "plan",
        spec.name,
        Verdict.NO if late or over or excess else Verdict.YES,
        _answer(f"p99 ≤ {limit}: {milliseconds(tail)}", over, excess, late=late),
        metrics={
            "p99_ms": Metric(tail * 1e3, "ms", target=f"≤ {limit}", ok=not late),
            "cost_per_hour": Metric(judge.pipeline.cost(chosen), "$/h"),
        },
        lines=(
            *quotas,
            ("envelope", excess or "no window of the new traffic is above that of the plan"),
            *_repriced(judge.pipeline.cost(chosen), decision.get("cost_per_hour")),
        ),
        next="unfold plan SPEC",
        decision=decision,
    )


def _answer(target: str, over: str, excess: str, *, late: bool) -> str:
    """Return the headline: the first reason for a no, or that the target is met."""
    if late:
        return f"on the new traffic the committed plan misses {target}"
    if over:
        return f"the committed plan is above a quota: {over}"
    if excess:
        return f"the envelope of the committed plan is {excess}"
    return f"on the new traffic the committed plan meets {target}"


def _repriced(cost: float, before: object) -> tuple[tuple[str, str], ...]:
    """Return the line on what the plan costs at other prices than it was made for; none if they are the same."""
    if not isinstance(before, (int, float)) or math.isclose(cost, before, rel_tol=1e-6, abs_tol=1e-9):
        return ()
    told = f"${cost:,.2f}/h at the prices of now, ${before:,.2f}/h when it was made: another plan may be cheaper now"
    return (("prices", told),)


def _over(pipeline: Pipeline, plan: Plan) -> str:
    """Return the hardware of which the plan uses more than its quota, or nothing."""
    found = pipeline.over_quotas(plan)
    return " · ".join(f"{used} {name} used, the quota is {most}" for name, used, most in found)


def _excess(judge: Judge, saved: Mapping[str, Any]) -> str:
    lengths, counts = np.array(saved.get("windows_s", [])), np.array(saved.get("queries", []), dtype=np.int64)
    for estimator in judge.estimators:
        found = first_excess(estimator.sample.arrivals, lengths, counts)
        if found is not None:
            start, length, count = found
            most = int(counts[lengths == length][0])
            return f"first exceeded at {start:.3f} s: {count} queries in {milliseconds(length)}, planned for {most}"
    return ""


def _choice(pipeline: Pipeline, index: int, saved: Mapping[str, Any]) -> Choice:
    stage = pipeline.stages[index]
    names = [option.hardware for option in stage.options]
    try:
        choice = Choice(names.index(saved["hardware"]), int(saved["batch"]), int(saved["replicas"]))
    except (KeyError, ValueError, TypeError) as error:
        raise fail("the plan does not fit the spec", key=f"stages.{stage.name}", hint="plan again") from error
    if not 1 <= choice.batch < stage.options[choice.option].latency.size or choice.replicas < 1:
        raise fail("the plan does not fit the spec", key=f"stages.{stage.name}", hint="plan again")
    return choice
