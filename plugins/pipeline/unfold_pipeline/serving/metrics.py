"""What Prometheus is told of a running pipeline, beside what every server tells: stages, replicas, outcomes, money."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from unfold_pipeline.runtime.local import Heard, Running
from unfold_pipeline.runtime.stage import Batch
from unfold_pipeline.serving.dashboard import Diary
from unfoldkit.serving.observability.metrics import Metrics

STATES = {"paid": "replicas", "serving": "ready"}


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """Tells a registry what happens when it is asked. A ``Collector`` by shape."""

    runtime: Running
    diary: Diary

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all stages and queries."""
        yield from self._stages()
        queries = CounterMetricFamily("unfold_pipeline_queries", "Queries by how they ended", labels=("outcome",))
        for outcome, number in self.diary.outcomes.items():
            queries.add_metric((outcome,), number)
        yield queries
        if (share := self.diary.attainment) is not None:
            yield GaugeMetricFamily("unfold_pipeline_attainment", "Share of queries answered in time", share)
        yield CounterMetricFamily("unfold_pipeline_spent_dollars", "Price of the replicas so far", self.diary.spent)
        dead = self.runtime.replaced()
        yield CounterMetricFamily("unfold_pipeline_replaced", "Replicas that died and were replaced", dead)

    def _stages(self) -> Iterator[Metric]:
        replicas = GaugeMetricFamily("unfold_pipeline_replicas", "Replicas of a stage", labels=("stage", "state"))
        queue = GaugeMetricFamily("unfold_pipeline_queue_rows", "Rows that wait for a stage", labels=("stage",))
        served = CounterMetricFamily("unfold_pipeline_rows", "Rows that a stage answered", labels=("stage",))
        failed = CounterMetricFamily("unfold_pipeline_failed_rows", "Rows that its model failed on", labels=("stage",))
        for stage in self.runtime.status():
            for state, key in STATES.items():
                replicas.add_metric((stage["name"], state), stage[key])
            queue.add_metric((stage["name"],), stage["queue"])
            served.add_metric((stage["name"],), stage["served"])
            failed.add_metric((stage["name"],), stage["failed"])
        yield from (replicas, queue, served, failed)


def batches(found: Metrics, name: str) -> Heard:
    """Return what counts the batches of the stages of a pipeline, each as a model ``NAME/STAGE``."""
    # a pipeline as a whole has no batches, and series that stay at 0 mislead
    found.batch.remove(name)
    found.predict.remove(name)

    def heard(batch: Batch) -> None:
        found.batch.labels(f"{name}/{batch.stage}").observe(batch.rows)
        found.predict.labels(f"{name}/{batch.stage}").observe(batch.model)

    return heard
