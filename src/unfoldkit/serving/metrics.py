"""What a server counts, by the naming rules of Prometheus: base units, `_total` for counters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TEXT = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metrics of one server; nothing is kept in the registry of the process."""

    registry: CollectorRegistry
    requests: Counter
    duration: Histogram
    rows: Counter
    batch: Histogram
    predict: Histogram
    queue: Gauge

    def text(self) -> bytes:
        """Return all of them in the exposition format of Prometheus."""
        return bytes(generate_latest(self.registry))


@dataclass(slots=True)
class ModelMetrics:
    """The metrics of one model, labels resolved once."""

    all: Metrics
    model: str
    duration: Histogram
    rows: Counter
    batch: Histogram
    predict: Histogram
    queue: Gauge
    codes: dict[int, Counter] = field(default_factory=dict)

    def answered(self, code: int, count: int = 1) -> None:
        """Count requests that ended with an HTTP status."""
        if code not in self.codes:
            self.codes[code] = self.all.requests.labels(self.model, str(code))
        self.codes[code].inc(count)


def metrics(registry: CollectorRegistry | None = None) -> Metrics:
    """Return the metrics of a new server, with those of its process."""
    registry = registry or CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    label = ("model",)
    return Metrics(
        registry,
        Counter("unfold_requests", "Requests by HTTP status", ("model", "code"), registry=registry),
        _histogram("unfold_request_duration_seconds", "From the body to the answer", SECONDS, registry),
        Counter("unfold_rows", "Rows that were answered", label, registry=registry),
        _histogram("unfold_batch_rows", "Rows that were predicted together", ROWS, registry),
        _histogram("unfold_predict_duration_seconds", "Time of one batch in the model", SECONDS, registry),
        Gauge("unfold_queue_rows", "Rows that wait for their batch", label, registry=registry),
    )


def of_model(found: Metrics, model: str) -> ModelMetrics:
    """Return the metrics of one model."""
    parts = (found.duration, found.rows, found.batch, found.predict, found.queue)
    duration, rows, batch, predict, queue = (part.labels(model) for part in parts)
    result = ModelMetrics(found, model, duration, rows, batch, predict, queue)  # type: ignore[arg-type]
    result.answered(200, 0)
    result.answered(429, 0)
    return result


def _histogram(name: str, text: str, buckets: Sequence[float], registry: CollectorRegistry) -> Histogram:
    return Histogram(name, text, ("model",), buckets=buckets, registry=registry)
