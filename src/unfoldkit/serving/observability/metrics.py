"""The metrics of a server, named by the rules of Prometheus: base units, ``_total`` for counters."""

from __future__ import annotations

import itertools
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
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

REQUESTS, DURATION, QUEUE = "unfold_requests", "unfold_request_duration_seconds", "unfold_queue_rows"
LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(slots=True)
class Tally:
    """Requests of one model by status, and their response times, as plain numbers.

    The counters of prometheus_client take a lock at every step, which costs throughput at tens of thousands of
    requests per second. Only the event loop touches these.
    """

    model: str
    codes: dict[int, int] = field(default_factory=lambda: {200: 0, 429: 0})
    buckets: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BUCKETS_S) + 1))
    seconds: float = 0.0
    last_s: float = 0.0

    def count(self, code: int, seconds: float) -> None:
        """Count a request that ended with an HTTP status after so many seconds."""
        self.codes[code] = self.codes.get(code, 0) + 1
        self.buckets[bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        self.seconds += seconds
        self.last_s = time.time()

    def refuse(self, count: int = 1) -> None:
        """Count requests that were rejected at once; their response time would only distort the histogram."""
        self.codes[429] += count

    def cumulative(self) -> list[tuple[str, float]]:
        """Return the cumulative buckets of Prometheus: requests that took no longer than each bound."""
        bounds = [*map(str, LATENCY_BUCKETS_S), "+Inf"]
        return list(zip(bounds, itertools.accumulate(map(float, self.buckets)), strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class RequestCollector:
    """Exports all tallies to a registry. A ``Collector`` of prometheus_client by shape."""

    tallies: list[Tally] = field(default_factory=list)

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics, so that they can be selected by name."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all requests."""
        count = CounterMetricFamily(REQUESTS, "Requests by HTTP status", labels=("model", "code"))
        text = "Time from the body of the request to the response"
        duration = HistogramMetricFamily(DURATION, text, labels=("model",))
        for tally in self.tallies:
            for code, number in sorted(tally.codes.items()):
                count.add_metric((tally.model, str(code)), number)
            duration.add_metric((tally.model,), tally.cumulative(), tally.seconds)
        yield count
        yield duration


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The metrics of one server, in a registry of their own."""

    registry: CollectorRegistry
    requests: RequestCollector
    rows: Counter
    batch: Histogram
    predict: Histogram
    queue: Gauge

    def text(self) -> bytes:
        """Return all metrics in the exposition format of Prometheus."""
        return bytes(generate_latest(self.registry))


@dataclass(slots=True)
class CachedExposition:
    """The text of all metrics, which takes a millisecond to write: a flood of scrapes gets the same text again.

    It is written again after ``max_age_s``, or as soon as a request was counted.

    Args:
        write: Writes the text.
        requests: The tallies of all models.
        now: A monotonic clock in s.
    """

    write: Callable[[], bytes]
    requests: RequestCollector
    now: Callable[[], float] = time.monotonic
    max_age_s: float = 0.1
    text: bytes = b""
    written_s: float = -math.inf
    count: int = -1

    def read(self) -> bytes:
        """Return the exposition text; write it again if a request was counted or ``max_age_s`` have passed."""
        count = sum(sum(tally.codes.values()) for tally in self.requests.tallies)
        if count != self.count or self.now() - self.written_s > self.max_age_s:
            self.text, self.count, self.written_s = self.write(), count, self.now()
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetrics:
    """The metrics of one model, with labels resolved once."""

    requests: Tally
    rows: Counter
    batch: Histogram
    predict: Histogram
    queue: Gauge


def create_metrics(registry: CollectorRegistry | None = None) -> Metrics:
    """Create the metrics of a server and of its process, in ``registry`` or in a new one."""
    registry = registry or CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    requests = RequestCollector()
    registry.register(requests)
    label = ("model",)
    predict_text = "Time of one batch in the model"
    return Metrics(
        registry=registry,
        requests=requests,
        rows=Counter("unfold_rows", "Answered rows", label, registry=registry),
        batch=Histogram("unfold_batch_rows", "Rows per batch", label, buckets=ROW_BUCKETS, registry=registry),
        predict=Histogram(
            "unfold_predict_duration_seconds", predict_text, label, buckets=LATENCY_BUCKETS_S, registry=registry
        ),
        queue=Gauge(QUEUE, "Rows that wait for their batch", label, registry=registry),
    )


def model_metrics(metrics: Metrics, model: str) -> ModelMetrics:
    """Create the time series of one model, labelled with its name, and add its requests to the server's tallies."""
    tally = Tally(model)
    metrics.requests.tallies.append(tally)
    return ModelMetrics(
        requests=tally,
        rows=metrics.rows.labels(model),
        batch=metrics.batch.labels(model),
        predict=metrics.predict.labels(model),
        queue=metrics.queue.labels(model),
    )
