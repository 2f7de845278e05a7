"""The plan as data: what is written to ``plan.yaml``, read back, and checked against new traffic."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.estimator.slo import SloChecker
from unfold_pipeline.problem.pipeline import Pipeline, Plan, StageConfig
from unfold_pipeline.problem.problem import TunerSettings
from unfold_pipeline.report import sentences
from unfold_pipeline.tuner.replica_table import ReplicaTable
from unfoldkit.api import Metric, Report, Verdict, user_error
from unfoldkit.arrivals.envelope import compute_envelope, find_first_excess, window_lengths


@dataclass(frozen=True, slots=True)
class PlannedEnvelope:
    """Window lengths in seconds, and the maximum queries in any window of each length; shape (windows,)."""

    windows_s: FloatArray
    queries: CountArray


def format_decision(
    checker: SloChecker, plan: Plan, hourly_cost: float, tail_s: float, activation_s: Mapping[str, float]
) -> dict[str, Any]:
    """Return a plan as plain data, with the envelope of the traffic that it was made for.

    ``activation_s`` are measured seconds from ordering a replica until it serves, by stage.
    """
    stages = {
        stage.name: {
            "hardware": stage.options[config.option].hardware,
            "batch": config.batch,
            "replicas": config.replicas,
        }
        for stage, config in zip(checker.pipeline.stages, plan, strict=True)
    }
    planned = compute_planned_envelope(checker, plan)
    return {
        "cost_per_hour": round(hourly_cost, 9),
        "p99_ms": round(tail_s * 1e3, 6),
        "stages": stages,
        "envelope": {
            "windows_s": [round(float(length), 9) for length in planned.windows_s],
            "queries": [int(count) for count in planned.queries],
        },
        **({"activation_s": dict(activation_s)} if activation_s else {}),
        "sample_sha256": hash_samples(checker),
    }


def format_scaling(
    checker: SloChecker, table: ReplicaTable, stay_s: Sequence[float], settings: TunerSettings
) -> dict[str, Any]:
    """Return what other autoscalers need of a rate-to-replica table, as plain data.

    Args:
        checker: Pipeline and samples.
        table: Replicas by rate.
        stay_s: Mean seconds of a query at each stage.
        settings: For how long demand must be lower, and the maximum of replicas.
    """
    rate = max(sample.rate for sample in checker.samples)
    return {
        "queries_per_second": [round(factor * rate, 6) for factor in table.factors],
        "hold_s": settings.hold_s,
        "max_replicas": settings.max_replicas,
        "stages": {
            stage.name: {
                "replicas": [row[index] for row in table.replicas],
                "items_per_query": round(max(sample.share(index) for sample in checker.samples), 9),
                "mean_ms": round(stay_s[index] * 1e3, 6),
            }
            for index, stage in enumerate(checker.pipeline.stages)
        },
    }


def parse_decision(decision: Mapping[str, Any], pipeline: Pipeline) -> Plan:
    """Return the plan that :func:`format_decision` wrote.

    Raises:
        UnfoldError: The plan has other stages, hardware or batch sizes than the pipeline.
    """
    stages = decision.get("stages")
    names = [stage.name for stage in pipeline.stages]
    if not isinstance(stages, Mapping) or sorted(stages) != sorted(names):
        raise user_error("the plan has other stages than the spec", hint="plan again")
    return tuple(_parse_config(pipeline, index, stages[name]) for index, name in enumerate(names))


def parse_saved_plan(saved: Mapping[str, Any] | None, pipeline: Pipeline) -> Plan | None:
    """Return the plan of the file that the command named, or ``None`` if it named a spec."""
    decision = (saved or {}).get("decision")
    return parse_decision(decision, pipeline) if decision else None


def compute_planned_envelope(checker: SloChecker, plan: Plan) -> PlannedEnvelope:
    """Return the envelope over the samples that a plan was made for."""
    windows_s = window_lengths(checker.single_query_latency(plan))
    counts = [compute_envelope(sample.arrivals, windows_s) for sample in checker.samples]
    return PlannedEnvelope(windows_s, np.max(counts, axis=0))


def hash_samples(checker: SloChecker) -> str:
    """Return a hash of the arrivals and routes that a plan was made for."""
    digest = hashlib.sha256()
    for sample in checker.observed_samples:
        digest.update(sample.arrivals.tobytes())
        for visits in sample.visits:
            digest.update(visits.query.tobytes())
    return digest.hexdigest()


def recheck_plan(name: str, checker: SloChecker, committed: Mapping[str, Any] | None) -> Report | None:
    """Return whether a committed plan still meets the SLO on new traffic; ``None`` if the traffic is its own."""
    decision = (committed or {}).get("decision", {})
    if not decision or decision.get("sample_sha256") == hash_samples(checker):
        return None
    plan = parse_decision(decision, checker.pipeline)
    tail_s, cost = checker.tail_latency(plan), checker.pipeline.cost(plan)
    violations = sentences.describe_quota_violations(
        [(item.hardware, item.used, item.quota) for item in checker.pipeline.find_quota_violations(plan)]
    )
    excess = _find_excess(checker, decision.get("envelope", {}))
    misses_slo = tail_s > checker.slo_s
    failed_loss = _find_failed_loss(checker, plan)
    target = f"≤ {sentences.format_latency(checker.slo_s)}"
    return Report(
        kind="pipeline",
        verb="plan",
        name=name,
        verdict=Verdict.NO if misses_slo or violations or failed_loss or excess else Verdict.YES,
        headline=sentences.describe_recheck(
            checker.slo_s, tail_s, misses_slo=misses_slo, violations=violations, excess=excess, failed_loss=failed_loss
        ),
        metrics={
            "p99_ms": Metric(tail_s * 1e3, "ms", target=target, ok=not misses_slo),
            "cost_per_hour": Metric(cost, "$/h"),
        },
        lines=(
            *((("quota", violations),) if violations else ()),
            *((("after losing a replica", failed_loss),) if failed_loss else ()),
            ("envelope", excess or sentences.NO_WINDOW_EXCEEDED),
            *_list_price_change(cost, decision.get("cost_per_hour")),
        ),
        next="unfold plan SPEC",
        decision=decision,
    )


def _find_failed_loss(checker: SloChecker, plan: Plan) -> str:
    """Return the first loss of a replica that a plan must survive and does not; empty if there is none."""
    for stage, loss in zip(checker.pipeline.stages, checker.list_losses(plan), strict=False):
        tail_s = math.inf if loss is None else checker.tail_latency(loss)
        if tail_s > checker.slo_s:
            return sentences.describe_failed_survival(stage.name, tail_s, checker.slo_s)
    return ""


def _list_price_change(cost: float, committed_cost: object) -> tuple[tuple[str, str], ...]:
    """Return the line on the cost at other prices than the plan was made for; none if prices are the same."""
    if not isinstance(committed_cost, (int, float)):
        return ()
    if math.isclose(cost, committed_cost, rel_tol=1e-6, abs_tol=1e-9):
        return ()
    return (("prices", sentences.describe_price_change(cost, committed_cost)),)


def _find_excess(checker: SloChecker, saved: Mapping[str, Any]) -> str:
    windows_s = np.array(saved.get("windows_s", []))
    planned = np.array(saved.get("queries", []), dtype=np.int64)
    for sample in checker.samples:
        excess = find_first_excess(sample.arrivals, windows_s, planned)
        if excess is not None:
            start_s, window_s, queries = excess
            limit = int(planned[windows_s == window_s][0])
            return sentences.describe_excess(start_s, queries, window_s, limit)
    return ""


def _parse_config(pipeline: Pipeline, index: int, saved: Mapping[str, Any]) -> StageConfig:
    stage = pipeline.stages[index]
    names = [option.hardware for option in stage.options]
    try:
        config = StageConfig(names.index(saved["hardware"]), int(saved["batch"]), int(saved["replicas"]))
    except (KeyError, ValueError, TypeError) as error:
        raise user_error("the plan does not fit the spec", key=f"stages.{stage.name}", hint="plan again") from error
    if not 1 <= config.batch <= stage.options[config.option].max_batch or config.replicas < 1:
        raise user_error("the plan does not fit the spec", key=f"stages.{stage.name}", hint="plan again")
    return config
