"""Counters of a gateway for Prometheus; labels are names of models and keys, never texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unfold_cascade.language_models.gateway.router import Trace

BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0)
PREFIX = "unfold_gateway_"


@dataclass(frozen=True, slots=True)
class GatewayMetrics:
    """The counters, in one registry."""

    registry: Any
    requests: Any
    cost: Any
    calls: Any
    unpriced: Any
    confidence_cost: Any
    unjudged: Any
    seconds: Any

    def count(self, trace: Trace, status: int, seconds: float) -> None:
        """Count a finished request."""
        model = trace.model or "none"
        self.requests.labels(model, str(status), trace.promise).inc()
        self.cost.labels(model).inc(max(trace.attempts.cost_usd, 0.0))
        self.calls.inc(trace.attempts.calls)
        self.confidence_cost.inc(max(trace.attempts.confidence_usd, 0.0))
        self.unpriced.inc(trace.attempts.unpriced)
        for name in trace.unjudged:
            self.unjudged.labels(name).inc()
        self.seconds.observe(seconds)


def build_metrics() -> GatewayMetrics:
    """Build the counters in a registry of their own."""
    from prometheus_client import CollectorRegistry, Counter, Histogram

    registry = CollectorRegistry()
    return GatewayMetrics(
        registry=registry,
        requests=Counter(f"{PREFIX}requests", "requests", ["model", "status", "promise"], registry=registry),
        cost=Counter(f"{PREFIX}cost_usd", "dollars, by the model that answered", ["model"], registry=registry),
        calls=Counter(f"{PREFIX}upstream_calls", "calls of upstreams", registry=registry),
        unpriced=Counter(f"{PREFIX}unpriced_calls", "calls without usage, so of unknown cost", registry=registry),
        confidence_cost=Counter(
            f"{PREFIX}confidence_cost_usd",
            "dollars for votes, checks and judgements, part of the cost",
            registry=registry,
        ),
        unjudged=Counter(
            f"{PREFIX}missing_confidences", "gated answers without a confidence", ["model"], registry=registry
        ),
        seconds=Histogram(f"{PREFIX}seconds", "duration of requests", registry=registry, buckets=BUCKETS_S),
    )
