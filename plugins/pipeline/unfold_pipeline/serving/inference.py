"""Inference requests of a running pipeline: each row becomes a query; admission control rejects excess rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unfold_pipeline.estimator.admission import MAX_RETRY_S
from unfold_pipeline.problem.pipeline import Pipeline
from unfold_pipeline.problem.problem import compute_wait_bound
from unfold_pipeline.problem.routing import RouteDrawer
from unfold_pipeline.runtime.live_tuner import LiveTuner
from unfold_pipeline.runtime.local import PipelineRuntime
from unfold_pipeline.runtime.models.data_flow import encode_answer
from unfold_pipeline.runtime.query_admission import QueryGate
from unfold_pipeline.runtime.stage import Query, read_clock
from unfold_pipeline.serving.dashboard import PlannedService, ServiceRecord
from unfoldkit.serving.batching.batcher import Done, Limits, QueueFull, Result
from unfoldkit.serving.model import Array, Call, Rejection, encode_rows
from unfoldkit.serving.observability.metrics import ModelMetrics

Answer = dict[str, Any] | None
INPUT_NAME = "x"
REQUEST_STEP = 0.05
TOO_MANY_ROWS = Rejection(413, "so many rows would be answered too late; send fewer rows per request")
SHED = "shed: the deadline could not be met"
UNAVAILABLE = "a stage cannot be served"


def ignore_activation(_seconds: Mapping[str, float]) -> None:
    """Do nothing: a service without a run has no place for what it measures."""


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """How a pipeline is served.

    Attributes:
        seed: Seed of the routes.
        tuner: The scaling rule in charge, if any.
        planned: What the plan guarantees.
        sheds: Whether queries are dropped when they can no longer meet the SLO.
        store_activation: Receives the measured activation times, by stage name, at the start and at the end.
    """

    seed: int
    tuner: LiveTuner | None = None
    planned: PlannedService | None = None
    sheds: bool = False
    store_activation: Callable[[Mapping[str, float]], object] = ignore_activation

    @property
    def slo_s(self) -> float:
        """The target in seconds; infinite without a plan."""
        return self.planned.slo_s if self.planned else math.inf

    @property
    def max_wait_s(self) -> float:
        """The waiting bound: no query is answered later."""
        return compute_wait_bound(self.slo_s)


@dataclass(slots=True, kw_only=True)
class InferenceGateway:
    """Passes requests to the pipeline, row by row.

    It stands where the server of a single model has its batcher.

    Attributes:
        gate: The entrance of the pipeline.
        settings: How the pipeline is served.
        record: Receives arrivals and outcomes.
        limits: Maximum rows in flight and maximum body size.
        metrics: Metrics of the server.
        routes: Draws a route for each query.
        rows_per_request: Mean rows of a request; one that is refused by its head counts as so many queries.
        hung: Whether the pipeline does not answer any more; never, as hung replicas are replaced.
    """

    gate: QueryGate
    settings: ServiceSettings
    record: ServiceRecord
    limits: Limits
    metrics: ModelMetrics
    routes: RouteDrawer
    rows_per_request: float = 1.0
    hung: bool = False

    @property
    def pipeline(self) -> Pipeline:
        """The stages."""
        return self.gate.pipeline

    @property
    def runtime(self) -> PipelineRuntime:
        """The replicas."""
        return self.gate.runtime

    @property
    def in_flight(self) -> int:
        """Rows in the pipeline."""
        return self.gate.in_flight

    @property
    def is_stopped(self) -> bool:
        """Whether a stage has no replica that serves: its queries wait for a start, not for other queries."""
        return not all(self.runtime.serving_replicas())

    def full(self, rows: int) -> int:
        """Return 0 if the rows are not too many, otherwise the seconds after which to retry.

        While the pipeline is stopped, :meth:`submit` decides: the status of its refusal differs.
        """
        wait_s = 0.0 if self.is_stopped else self.gate.compute_retry_delay(rows)
        return max(math.ceil(wait_s), int(self.in_flight + rows > self.limits.queue_rows))

    def estimate_retry(self) -> int:
        """Return the seconds after which to repeat a request that was not answered, at least one."""
        stopped_s = [load.restart_s for load in self.runtime.measure_loads() if not load.replicas]
        wait_s = max(self.gate.compute_retry_delay(), min(MAX_RETRY_S, max(stopped_s, default=0.0)))
        return max(1, self.full(1), math.ceil(wait_s))

    def describe_shed(self) -> str:
        """Return why a query was dropped; a replica that keeps a batch for longer than the SLO may hang."""
        silent_s = {str(stage["name"]): float(stage.get("silent_s", 0.0)) for stage in self.runtime.list_status()}
        name = max(silent_s, key=silent_s.__getitem__)
        if silent_s[name] <= self.settings.slo_s:
            return SHED
        return f"{SHED}: stage {name} has not answered for {silent_s[name]:.3g} s"

    def note_rejections(self, requests: int) -> None:
        """Count the rows of refused requests as demand.

        The loop does not pause: it also serves the replicas.
        """
        self._refuse_rows(max(1, round(requests * self.rows_per_request)))

    def submit(self, inputs: Mapping[str, Array], call: Call, done: Done) -> None:
        """Admit the rows of a request; ``done`` is called with their answer or a refusal.

        Raises:
            Full: Too many rows are in flight, or the queueing delay is too long.
        """
        self.rows_per_request += REQUEST_STEP * (call.rows - self.rows_per_request)
        if retry_s := self.full(call.rows):
            self._refuse_rows(call.rows)
            if self.in_flight == 0 and call.rows > 1:
                done(TOO_MANY_ROWS)
                return
            raise QueueFull(retry_s)
        if self.gate.compute_retry_delay(call.rows):
            self._refuse_rows(call.rows)
            done(Rejection(503, UNAVAILABLE, self.estimate_retry()))
            return
        PendingRequest(self, done, [None] * call.rows).submit_rows(inputs[INPUT_NAME], call.deadline)

    def close(self) -> None:
        """Do nothing: the server has drained its requests before."""

    def build_query(self, row: Array, on_finished: Callable[[Answer], None], deadline_s: float | None) -> Query:
        """Return a query to submit now; a deadline of the request replaces that of the SLO."""
        routes, number = self.routes.draw_next()
        slo_s = self.settings.slo_s if self.settings.sheds else math.inf
        due_s = read_clock() + (slo_s if deadline_s is None else deadline_s)
        return Query(row, routes, number, on_finished, due_s=due_s)

    def _refuse_rows(self, rows: int) -> None:
        self.gate.refuse(rows)
        self.record.record_refusal(rows)


@dataclass(slots=True)
class PendingRequest:
    """The rows of one request, which end one by one."""

    gateway: InferenceGateway
    done: Done
    answers: list[Answer]
    open_rows: int = 0
    is_shed: bool = False
    failed_stage: str = ""
    refused_input: str = ""

    def submit_rows(self, rows: Array, deadline_s: float | None) -> None:
        """Submit each row as a query of its own, due in ``deadline_s`` or, if that is None, in the SLO."""
        self.open_rows = len(rows)
        for index, row in enumerate(rows):
            self._submit_row(index, row, deadline_s)

    def _submit_row(self, index: int, row: Array, deadline_s: float | None) -> None:
        start_s, gateway = read_clock(), self.gateway

        def finish(answer: Answer) -> None:
            self.is_shed |= query.is_shed
            self.failed_stage = self.failed_stage or query.failed_stage
            if query.refused_input:
                self.refused_input = f"row {index + 1}: the model of stage {query.failed_stage} cannot handle it: "
                self.refused_input += query.refused_input
            seconds = read_clock() - start_s
            gateway.record.record_outcome(query, seconds, gateway.settings.slo_s, is_answered=answer is not None)
            self._finish_row(index, answer)

        query = gateway.build_query(row, finish, deadline_s)
        gateway.gate.submit(query)

    def _finish_row(self, index: int, answer: Answer) -> None:
        self.answers[index] = answer
        self.open_rows -= 1
        if self.open_rows == 0:
            self.done(self._build_result())

    def _build_result(self) -> Result:
        answers = [answer for answer in self.answers if answer is not None]
        if len(answers) < len(self.answers):
            return self._build_refusal()
        outputs: dict[str, list[str]] = {}
        for stage in self.gateway.pipeline.stages:
            try:
                outputs[stage.name] = [encode_answer(answer.get(stage.name)) for answer in answers]
            except TypeError as error:
                return Rejection(500, f"the answer of stage {stage.name} has no JSON form: {error}")
        self.gateway.metrics.rows.inc(len(answers))
        return encode_rows(outputs), 0, len(answers)

    def _build_refusal(self) -> Rejection:
        if self.refused_input:
            return Rejection(400, self.refused_input)
        if self.failed_stage:
            return Rejection(500, f"the model of stage {self.failed_stage} failed on this input")
        reason = self.gateway.describe_shed() if self.is_shed else UNAVAILABLE
        return Rejection(503, reason, self.gateway.estimate_retry())
