"""Prometheus metrics of a running pipeline, in addition to those of every server: stages, outcomes and cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from unfold_pipeline.runtime.local import BatchListener, PipelineRuntime
from unfold_pipeline.runtime.stage import CompletedBatch
from unfold_pipeline.serving.dashboard import ServiceRecord
from unfoldkit.serving.observability.metrics import Metrics

REPLICA_STATES = {"paid": "replicas", "serving": "ready"}
"""Values of the label ``state``, and the keys of a stage's status behind them."""


@dataclass(frozen=True, slots=True, eq=False)
class PipelineCollector:
    """Reports the state of a pipeline at each scrape: a ``Collector`` of prometheus_client by structure."""

    name: str
    runtime: PipelineRuntime
    record: ServiceRecord

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all stages and queries."""
        yield from self._collect_stages()
        queries = CounterMetricFamily("unfold_pipeline_queries", "Queries by outcome", labels=("model", "outcome"))
        for outcome, count in self.record.outcomes.items():
            queries.add_metric((self.name, outcome), count)
        yield queries
        if (attainment := self.record.attainment) is not None:
            yield GaugeMetricFamily("unfold_pipeline_attainment", "Fraction of queries answered in time", attainment)
        yield CounterMetricFamily("unfold_pipeline_spent_dollars", "Cost of the replicas", self.record.spent_usd)
        replaced = self.runtime.count_replaced()
        yield CounterMetricFamily("unfold_pipeline_replaced", "Replicas that died and were replaced", replaced)

    def _collect_stages(self) -> Iterator[Metric]:
        replicas = GaugeMetricFamily("unfold_pipeline_replicas", "Replicas of a stage", labels=("stage", "state"))
        queue = GaugeMetricFamily("unfold_pipeline_queue_rows", "Rows queued at a stage", labels=("stage",))
        served = CounterMetricFamily("unfold_pipeline_rows", "Rows that a stage answered", labels=("stage",))
        failed = CounterMetricFamily("unfold_pipeline_failed_rows", "Rows on which a model failed", labels=("stage",))
        for stage in self.runtime.list_status():
            for state, key in REPLICA_STATES.items():
                replicas.add_metric((stage["name"], state), stage[key])
            queue.add_metric((stage["name"],), stage["queue"])
            served.add_metric((stage["name"],), stage["served"])
            failed.add_metric((stage["name"],), stage["failed"])
        yield from (replicas, queue, served, failed)


def build_batch_listener(server_metrics: Metrics, name: str) -> BatchListener:
    """Return a listener that counts the batches of the stages, each as a model ``NAME/STAGE``."""
    # a pipeline as a whole has no batches, and series that stay at 0 mislead
    server_metrics.batch.remove(name)
    server_metrics.predict.remove(name)

    def count_batch(batch: CompletedBatch) -> None:
        server_metrics.batch.labels(f"{name}/{batch.stage}").observe(batch.rows)
        server_metrics.predict.labels(f"{name}/{batch.stage}").observe(batch.model_s)

    return count_batch
