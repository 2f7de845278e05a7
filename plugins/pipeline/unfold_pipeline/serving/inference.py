"""Inference requests of a running pipeline: each row becomes a query; admission control rejects excess rows."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from unfold_pipeline.estimator.admission import CompletionRate
from unfold_pipeline.problem.pipeline import Pipeline
from unfold_pipeline.problem.routing import RouteDrawer
from unfold_pipeline.replay.load_generator import LiveTuner
from unfold_pipeline.runtime.local import PipelineRuntime
from unfold_pipeline.runtime.stage import Query, read_clock
from unfold_pipeline.serving.dashboard import PlannedService, ServiceRecord
from unfoldkit.serving.batching.batcher import Done, Limits, QueueFull, Result
from unfoldkit.serving.model import Array, Call, Rejection, encode_rows
from unfoldkit.serving.observability.metrics import ModelMetrics

Answer = dict[str, Any] | None
INPUT_NAME = "x"
SHED = Rejection(503, "shed: the deadline could not be met")
UNAVAILABLE = Rejection(503, "a stage cannot be served")


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """How a pipeline is served.

    Attributes:
        seed: seed of the routes.
        tuner: the scaling rule in charge, if any.
        planned: what the plan guarantees.
        sheds: whether queries are dropped when they can no longer meet the SLO.
    """

    seed: int
    tuner: LiveTuner | None = None
    planned: PlannedService | None = None
    sheds: bool = False

    @property
    def slo_s(self) -> float:
        """The target in seconds; infinite without a plan."""
        return self.planned.slo_s if self.planned else math.inf


@dataclass(slots=True, kw_only=True)
class InferenceGateway:
    """Admits requests to the pipeline, row by row.

    It stands where the server of a single model has its batcher.

    Attributes:
        pipeline, runtime: the stages and their replicas.
        settings: how the pipeline is served.
        record: receives arrivals and outcomes.
        limits: maximum rows in flight and maximum body size.
        metrics: metrics of the server.
        routes: draws a route for each query.
        completion_rate: predicts the queueing delay for admission control.
        in_flight: rows in the pipeline.
        hung: whether the pipeline does not answer any more; never, as hung replicas are replaced.
    """

    pipeline: Pipeline
    runtime: PipelineRuntime
    settings: ServiceSettings
    record: ServiceRecord
    limits: Limits
    metrics: ModelMetrics
    routes: RouteDrawer
    completion_rate: CompletionRate
    in_flight: int = 0
    hung: bool = False

    @property
    def capacity(self) -> int:
        """Rows that the replicas can serve at once."""
        return sum(map(operator.mul, self.runtime.serving_replicas(), self.runtime.batch_sizes()))

    def full(self, rows: int) -> int:
        """Return 0 if the rows can be admitted, otherwise the seconds after which to retry."""
        wait_s = self.completion_rate.predict_excess_wait(self.in_flight, self.capacity, read_clock())
        return max(math.ceil(wait_s), int(self.in_flight + rows > self.limits.queue_rows))

    def rest(self) -> None:
        """Do nothing: the event loop also serves the replicas, so it must not pause after a rejection."""

    def submit(self, inputs: Mapping[str, Array], call: Call, done: Done) -> None:
        """Admit the rows of a request; ``done`` is called with their answer or a refusal.

        Raises:
            Full: too many rows are in flight, or the queueing delay is too long.
        """
        if retry_s := self.full(call.rows):
            raise QueueFull(retry_s)
        PendingRequest(self, done, [None] * call.rows).submit_rows(inputs[INPUT_NAME], call.deadline)

    def close(self) -> None:
        """Do nothing: the server has drained its requests before."""

    def release_row(self) -> None:
        """Count a row that has left the pipeline."""
        self.in_flight -= 1
        self.completion_rate.record_completion(self.in_flight, self.capacity, read_clock())

    def build_query(self, row: Array, on_finished: Callable[[Answer], None], deadline_s: float | None) -> Query:
        """Return a query to submit now; a deadline of the request replaces that of the SLO."""
        routes, number = self.routes.draw_next()
        slo_s = self.settings.slo_s if self.settings.sheds else math.inf
        due_s = read_clock() + (slo_s if deadline_s is None else deadline_s)
        return Query(row, routes, number, on_finished, due_s=due_s)


@dataclass(slots=True)
class PendingRequest:
    """The rows of one request, which end one by one."""

    gateway: InferenceGateway
    done: Done
    answers: list[Answer]
    open_rows: int = 0
    is_shed: bool = False
    failed_stage: str = ""

    def submit_rows(self, rows: Array, deadline_s: float | None) -> None:
        """Submit each row as a query."""
        self.open_rows = len(rows)
        self.gateway.in_flight += self.open_rows
        for index, row in enumerate(rows):
            self._submit_row(index, row, deadline_s)

    def _submit_row(self, index: int, row: Array, deadline_s: float | None) -> None:
        start_s, has_ended = read_clock(), False
        gateway = self.gateway
        gateway.record.record_arrival()

        def finish(answer: Answer) -> None:
            nonlocal has_ended
            if has_ended:
                return
            has_ended = True
            self.is_shed |= query.is_shed
            self.failed_stage = self.failed_stage or query.failed_stage
            seconds = read_clock() - start_s
            gateway.record.record_outcome(query, seconds, gateway.settings.slo_s, is_answered=answer is not None)
            self._finish_row(index, answer)

        query = gateway.build_query(row, finish, deadline_s)
        gateway.runtime.submit(query)

    def _finish_row(self, index: int, answer: Answer) -> None:
        self.answers[index] = answer
        self.open_rows -= 1
        self.gateway.release_row()
        if self.open_rows == 0:
            self.done(self._build_result())

    def _build_result(self) -> Result:
        answers = [answer for answer in self.answers if answer is not None]
        if len(answers) < len(self.answers):
            return self._build_refusal()
        names = [stage.name for stage in self.gateway.pipeline.stages]
        try:
            outputs = {name: [encode_answer(answer.get(name)) for answer in answers] for name in names}
        except TypeError as error:
            return error
        self.gateway.metrics.rows.inc(len(answers))
        return encode_rows(outputs), 0, len(answers)

    def _build_refusal(self) -> Rejection:
        if self.failed_stage:
            return Rejection(500, f"the model of stage {self.failed_stage} failed on this input")
        return SHED if self.is_shed else UNAVAILABLE


def encode_answer(answer: Any) -> str:
    """Return the answer of a stage as JSON text; NaN and infinity, which JSON does not have, become null.

    Raises:
        TypeError: the answer is of a type without a JSON form.
    """
    try:
        return json.dumps(answer, allow_nan=False)
    except ValueError:
        return msgspec.json.encode(answer).decode()
