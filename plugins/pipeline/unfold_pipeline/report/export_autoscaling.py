"""Autoscaling of an exported plan by KEDA, Knative or Ray Serve, derived from the rate-to-replica table of the plan.

Each of them adds replicas in proportion to one measured value. The target of that value is the largest with which a
stage never has fewer replicas than the table states, at any rate in it:

    replicas = ceil(rate / target) ≥ table(rate), so target = min over rows of rate of the row before / (replicas - 1)

What such a rule cannot express stands in comments at the top of each file.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unfold_pipeline.control.prometheus import select_queries
from unfold_pipeline.problem.build import build_exported_plan
from unfold_pipeline.problem.exported_plan import ExportedStage, list_shared_gpus
from unfoldkit.api import Report, user_error
from unfoldkit.io.yaml12 import to_yaml

WINDOW_S = 60
POLL_S = 5
MIN_KNATIVE_TARGET = 0.01
KEDA_UNITS = 1000
"""KEDA keeps thousandths of a threshold: smaller targets count thousandths of a query."""
MAX_KNATIVE_CONCURRENCY = 1000
"""Knative's default of ``container-concurrency-max-limit``."""
ROUNDING = 1 - 1e-6
"""Keeps a printed target below the largest that suffices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageScaling:
    """A proportional rule for one stage.

    Attributes:
        min_replicas, max_replicas: Its limits.
        queries_per_replica: Queries per second of the pipeline for which one replica is added; infinite if the
            table has the same replicas at all rates.
        items_per_query: Requests of the stage per query.
        mean_s: Mean time of a query at the stage.
        hold_s: For how long demand must be lower before replicas are removed.
        excess: By which fraction the rule has more replicas than the table at most.
    """

    min_replicas: int
    max_replicas: int
    queries_per_replica: float
    items_per_query: float
    mean_s: float
    hold_s: float
    excess: float

    @property
    def requests_per_replica(self) -> float:
        """Requests per second of the stage for which one replica is added."""
        return self.queries_per_replica * self.items_per_query

    @property
    def ongoing_per_replica(self) -> float:
        """Requests in a replica at its target, by Little's law with the planned time at the stage."""
        return self.requests_per_replica * self.mean_s


def export_keda(report: Report) -> str:
    """Return a ScaledObject of KEDA for each stage, as the KServe export names its deployments.

    Raises:
        UnfoldError: The plan holds no table.
    """
    stages, rules = _parse_rules(report)
    documents = [_build_scaled_object(report.name, stage, rules[stage.name]) for stage in stages]
    notes = [
        "the trigger counts the queries of the pipeline: set serverAddress, and the query of your entrance",
        "KServe leaves the replicas to KEDA with serving.kserve.io/autoscalerClass: external, in RawDeployment mode",
        f"one window of {WINDOW_S} s stands for the envelope of the tuner: shorter bursts order no replicas",
        *_list_limits(report, rules),
    ]
    return _join_documents(notes, documents)


def export_knative(report: Report) -> str:
    """Return a Knative Service with autoscaling annotations for each stage.

    Raises:
        UnfoldError: The plan holds no table, or the model of a stage needs several GPUs.
    """
    stages, rules = _parse_rules(report)
    documents = [_build_knative_service(stage, rules[stage.name]) for stage in stages]
    has_instances = any(stage.instance for stage in stages)
    notes = [
        "set the images; the annotations fit an InferenceService of KServe in serverless mode too",
        f"the window of {WINDOW_S} s, and the panic window of a tenth of it, stand for the envelope of the tuner",
        "each stage reacts to its own requests, so one behind another follows a burst later than the tuner orders",
        *list_shared_gpus(stages),
        *(["nodeSelector needs kubernetes.podspec-nodeselector: enabled in config-features"] if has_instances else []),
        *_list_limits(report, rules),
    ]
    return _join_documents(notes, documents)


def build_ray_autoscaling(rule: StageScaling, planned: int) -> dict[str, Any]:
    """Return ``autoscaling_config`` of a Ray Serve deployment; Ray counts ongoing requests."""
    return {
        "min_replicas": rule.min_replicas,
        "initial_replicas": min(max(planned, rule.min_replicas), rule.max_replicas),
        "max_replicas": rule.max_replicas,
        "target_ongoing_requests": _round_down(rule.ongoing_per_replica),
        "metrics_interval_s": float(POLL_S),
        "look_back_period_s": float(2 * POLL_S),
        "upscale_delay_s": 0.0,
        "downscale_delay_s": rule.hold_s,
    }


def list_ray_limits(report: Report, rules: Mapping[str, StageScaling]) -> list[str]:
    """Return what the autoscaling of Ray Serve cannot express, for the top of a config."""
    return [
        "Ray Serve counts requests in its replicas and queues: a backlog reads as demand, and refused requests as none",
        "target_ongoing_requests is the rate of a replica times the planned mean time at the stage (Little's law)",
        *_list_limits(report, rules),
    ]


def parse_scaling(report: Report) -> dict[str, StageScaling]:
    """Return the rule of each stage; empty if the plan holds no table."""
    scaling = (report.decision or {}).get("scaling")
    if not scaling:
        return {}
    planned = {name: config["replicas"] for name, config in (report.decision or {})["stages"].items()}
    return {
        name: _derive_rule(scaling["queries_per_second"], stage, scaling, planned[name])
        for name, stage in scaling["stages"].items()
    }


def _parse_rules(report: Report) -> tuple[tuple[ExportedStage, ...], dict[str, StageScaling]]:
    stages, rules = build_exported_plan(report).stages, parse_scaling(report)
    if not rules:
        hint = "unfold plan SPEC --set tuner.table=true stores it"
        raise user_error("the plan holds no rate-to-replica table", key="tuner.table", hint=hint)
    return stages, rules


def _derive_rule(
    rates: Sequence[float], stage: Mapping[str, Any], scaling: Mapping[str, Any], planned: int
) -> StageScaling:
    counts = [int(count) for count in stage["replicas"]]
    target = min(
        (rate / (count - 1) for rate, count in zip(rates, counts[1:], strict=False) if count > counts[0]),
        default=math.inf,
    )
    limit = int(scaling["max_replicas"])
    by_rule = [min(limit, max(counts[0], math.ceil(rate / target))) for rate in rates]
    return StageScaling(
        min_replicas=counts[0],
        max_replicas=min(limit, max(*by_rule, planned)),
        queries_per_replica=target * ROUNDING,
        items_per_query=float(stage["items_per_query"]),
        mean_s=float(stage["mean_ms"]) / 1e3,
        hold_s=float(scaling["hold_s"]),
        excess=max(ordered / count - 1 for ordered, count in zip(by_rule, counts, strict=True)),
    )


def _list_limits(report: Report, rules: Mapping[str, StageScaling]) -> list[str]:
    """Return what no proportional rule expresses."""
    worst = max(rules, key=lambda name: rules[name].excess)
    excess = round(rules[worst].excess * 100)
    limits = [
        "batch sizes stay those of the plan, where the tuner changes them with the rate",
        "rising traffic is not extrapolated to the time when an order serves, and queues are not drained on purpose",
        _describe_maxima((report.decision or {})["scaling"]),
        "quotas of hardware that stages share are not known to it; each stage has its own maximum",
    ]
    if excess:
        stage = " ".join(worst.split())
        limits.append(f"replicas in proportion to the rate are up to {excess} % more than the table at {stage}")
    return limits


def _describe_maxima(scaling: Mapping[str, Any]) -> str:
    rates, limit = scaling["queries_per_second"], scaling["max_replicas"]
    for index, rate in enumerate(rates):
        if any(stage["replicas"][index] >= limit for stage in scaling["stages"].values()):
            return f"the maximum of {limit} replicas, tuner.most, is reached at {rate:.4g} queries/s"
    return f"the maxima are those of {rates[-1]:.4g} queries/s, four times the planned rate; beyond it replicas stay"


def _build_scaled_object(name: str, stage: ExportedStage, rule: StageScaling) -> dict[str, Any]:
    query, units = f"sum(rate({select_queries(name)}[{WINDOW_S}s]))", 1
    if rule.queries_per_replica < 1:
        query, units = f"{KEDA_UNITS} * {query}", KEDA_UNITS
    trigger = {
        "type": "prometheus",
        "metricType": "AverageValue",
        "metadata": {
            "serverAddress": "http://prometheus.monitoring:9090",
            "query": query,
            "threshold": _format_target(units * rule.queries_per_replica, rule),
        },
    }
    behavior = {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "policies": [{"type": "Percent", "value": 400, "periodSeconds": 15}],
        },
        "scaleDown": {"stabilizationWindowSeconds": min(3600, round(rule.hold_s))},
    }
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": stage.label},
        "spec": {
            "scaleTargetRef": {"name": f"{stage.label}-predictor"},
            "pollingInterval": POLL_S,
            "minReplicaCount": rule.min_replicas,
            "maxReplicaCount": rule.max_replicas,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": behavior}},
            "triggers": [trigger],
        },
    }


def _build_knative_service(stage: ExportedStage, rule: StageScaling) -> dict[str, Any]:
    if rule.max_replicas > rule.min_replicas and rule.requests_per_replica < MIN_KNATIVE_TARGET:
        message = (
            f"Knative has no target below {MIN_KNATIVE_TARGET} requests/s, and a replica of {stage.name} serves less"
        )
        raise user_error(message, key=f"stages.{stage.name}", hint="--format keda has no such limit")
    annotations = {
        "class": "kpa.autoscaling.knative.dev",
        "metric": "rps",
        "target": _format_target(rule.requests_per_replica, rule),
        "target-utilization-percentage": "100",
        "min-scale": str(rule.min_replicas),
        "max-scale": str(rule.max_replicas),
        "initial-scale": str(min(max(stage.replicas, rule.min_replicas), rule.max_replicas)),
        "window": f"{WINDOW_S}s",
        "scale-down-delay": f"{min(3600, round(rule.hold_s))}s",
    }
    container: dict[str, Any] = {"image": f"{stage.label}:latest"}
    if stage.gpus:
        container["resources"] = {"limits": {"nvidia.com/gpu": str(math.ceil(stage.gpus))}}
    # 0 is no limit
    concurrency = 2 * stage.batch if 2 * stage.batch <= MAX_KNATIVE_CONCURRENCY else 0
    spec: dict[str, Any] = {"containerConcurrency": concurrency, "containers": [container]}
    if stage.instance:
        spec["nodeSelector"] = {"node.kubernetes.io/instance-type": stage.instance}
    prefixed = {f"autoscaling.knative.dev/{key}": value for key, value in annotations.items()}
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": stage.label},
        "spec": {"template": {"metadata": {"annotations": prefixed}, "spec": spec}},
    }


def _format_target(target: float, rule: StageScaling) -> str:
    """Return a target; where the table has one row for all rates, any large one keeps the minimum."""
    return f"{_round_down(target):.6g}" if math.isfinite(target) else f"{1000 * max(1.0, rule.items_per_query):.6g}"


def _round_down(value: float) -> float:
    """Return the value with six digits, never above it."""
    if not math.isfinite(value) or value <= 0:
        return 1.0
    scale = 10.0 ** (5 - math.floor(math.log10(value)))
    return math.floor(value * scale) / scale


def _join_documents(notes: Sequence[str], documents: Sequence[Mapping[str, Any]]) -> str:
    comments = "".join(f"# {note}\n" for note in notes)
    return comments + "---\n".join(itertools.chain(str(to_yaml(dict(document))) for document in documents))
