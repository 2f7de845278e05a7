"""What a server counts, by the naming rules of Prometheus: base units, `_total` for counters."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterator
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
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TEXT = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(slots=True)
class Tally:
    """Requests of one model by status, and how long the answered ones took: plain numbers, read when asked for.

    prometheus_client's own counters lock at every step, which is felt at tens of thousands of requests a second; these
    are touched by the event loop alone.
    """

    model: str
    codes: dict[int, int] = field(default_factory=lambda: {200: 0, 429: 0})
    buckets: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    seconds: float = 0.0

    def count(self, code: int, seconds: float) -> None:
        """Count a request that ended with an HTTP status."""
        self.codes[code] = self.codes.get(code, 0) + 1
        self.buckets[bisect_left(SECONDS, seconds)] += 1
        self.seconds += seconds

    def refuse(self, count: int = 1) -> None:
        """Count requests that were refused as soon as they came; they took no time that says how quick answers are."""
        self.codes[429] += count

    def cumulative(self) -> list[tuple[str, float]]:
        """Return the buckets as Prometheus wants them: how many took no longer than each bound."""
        bounds = [*map(str, SECONDS), "+Inf"]
        return list(zip(bounds, itertools.accumulate(self.buckets, initial=0.0), strict=False))


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """Tells a registry of all tallies. A ``Collector`` by shape."""

    tallies: list[Tally] = field(default_factory=list)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all requests."""
        count = CounterMetricFamily("unfold_requests", "Requests by HTTP status", labels=("model", "code"))
        text = "From the body to the answer"
        duration = HistogramMetricFamily("unfold_request_duration_seconds", text, labels=("model",))
        for tally in self.tallies:
            for code, number in sorted(tally.codes.items()):
                count.add_metric((tally.model, str(code)), number)
            duration.add_metric((tally.model,), tally.cumulative(), tally.seconds)
        yield count
        yield duration


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metrics of one server; nothing is kept in the registry of the process."""

    registry: CollectorRegistry
    requests: Requests
    rows: Counter
    batch: Histogram
    predict: Histogram
    queue: Gauge

    def text(self) -> bytes:
        """Return all of them in the exposition format of Prometheus."""
        return bytes(generate_latest(self.registry))


@dataclass(frozen=True, slots=True)
class ModelMetrics:
    """The metrics of one model, labels resolved once."""

    requests: Tally
    rows: Counter
    batch: Histogram
    predict: Histogram
    queue: Gauge


def metrics(registry: CollectorRegistry | None = None) -> Metrics:
    """Return the metrics of a new server, with those of its process."""
    registry = registry or CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    requests = Requests()
    registry.register(requests)
    label = ("model",)
    text = "Time of one batch in the model"
    return Metrics(
        registry,
        requests,
        Counter("unfold_rows", "Rows that were answered", label, registry=registry),
        Histogram("unfold_batch_rows", "Rows that were predicted together", label, buckets=ROWS, registry=registry),
        Histogram("unfold_predict_duration_seconds", text, label, buckets=SECONDS, registry=registry),
        Gauge("unfold_queue_rows", "Rows that wait for their batch", label, registry=registry),
    )


def of_model(found: Metrics, model: str) -> ModelMetrics:
    """Return the metrics of one model."""
    tally = Tally(model)
    found.requests.tallies.append(tally)
    return ModelMetrics(
        tally,
        found.rows.labels(model),
        found.batch.labels(model),
        found.predict.labels(model),
        found.queue.labels(model),
    )
