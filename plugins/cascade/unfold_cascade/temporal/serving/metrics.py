"""Prometheus metrics of a served cascade over time: model calls, exits, purchases, alarms and audits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from unfold_cascade.temporal.serving.model import HourResult
from unfold_cascade.temporal.serving.plan_loader import LoadedPlan


@dataclass(slots=True, kw_only=True)
class CascadeMetrics:
    """The counters; nothing is counted before ``enable``, so that warming up the models leaves no trace."""

    models: tuple[tuple[str, str], ...]
    feature_sets: tuple[str, ...]
    stages: tuple[str, ...]
    calls: Any
    exits: Any
    purchases: Any
    price: Any
    alarms: Any
    audits: Any
    disagreements: Any
    hours: Any
    enabled: bool = False

    def enable(self) -> None:
        """Count from now on."""
        self.enabled = True

    def count(self, hours: Sequence[HourResult]) -> None:
        """Count some hours."""
        for hour in hours if self.enabled else ():
            self._count_hour(hour)

    def export_entity_count(self, registry: Any, count_entities: Callable[[], int]) -> None:
        """Export the number of stored entities as a gauge."""
        from prometheus_client import Gauge

        Gauge("unfold_cascade_cases", "Entities with a stored state", registry=registry).set_function(count_entities)

    def _count_hour(self, hour: HourResult) -> None:
        exits = {call.stage: call for call in hour.calls}
        for call in hour.calls:
            self.calls.labels(*self.models[call.model]).inc()
        for call in exits.values():
            self.exits.labels(*self.models[call.model], call.verdict).inc()
        for feature_set in hour.purchases:
            self.purchases.labels(self.feature_sets[feature_set]).inc()
        self.price.inc(sum(hour.prices))
        self.hours.labels(self.stages[hour.stage]).inc()
        if hour.stage == len(self.stages) - 1:
            self.alarms.inc()
        if hour.audited:
            self.audits.inc()
            self.disagreements.inc(hour.stage != hour.baseline_stage)


def build_metrics(plan: LoadedPlan, registry: Any) -> CascadeMetrics:
    """Register the counters; those of the served models start at zero."""
    from prometheus_client import Counter

    def counter(name: str, description: str, *labels: str) -> Any:
        return Counter(f"unfold_cascade_{name}", description, labels, registry=registry)

    models = tuple((slot.stage, slot.model) for slot in plan.slots)
    calls = counter("asked", "Hours in which a model was evaluated", "stage", "model")
    exits = counter("answered", "Hours in which a model decided for its stage", "stage", "model", "verdict")
    for model in [len(models) - 1] if plan.serves_baseline else plan.policy_models:
        calls.labels(*models[model])
        for verdict in ("ICK0", "ICK1"):
            exits.labels(*models[model], verdict)
    return CascadeMetrics(
        models=models,
        feature_sets=plan.purchase.names,
        stages=(*plan.problem.stage_names, "alarm"),
        calls=calls,
        exits=exits,
        purchases=counter("bought", "Purchases of a feature group", "group"),
        price=counter("price", "Price of calls and purchases"),
        alarms=counter("alarms", "Hours with an alarm of the last stage"),
        audits=counter("audited", "Hours also decided by the baseline model"),
        disagreements=counter("differs", "Audited hours in which cascade and baseline disagree"),
        hours=counter("hours", "Hours by the stage after the hour", "stage"),
    )
