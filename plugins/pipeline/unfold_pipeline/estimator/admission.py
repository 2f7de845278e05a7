"""Admission control: predict when a new query would be answered, and refuse it if that is later than is useful.

The prediction reads the queues: what is ahead of a query at each stage, over the rate at which the replicas that serve
work it off. Batches count as long as they took lately, because a busy machine is slower than its profile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.problem.pipeline import Pipeline, compute_longest_path

MAX_RETRY_S = 60.0
ADMITTED_FRACTION = 0.75
"""A query is admitted if its answer is predicted within this fraction of the waiting bound: predictions err."""
SPEED_STEP = 0.1


@dataclass(slots=True)
class BatchSpeed:
    """How long the batches of a stage take at present, relative to the plan.

    Attributes:
        planned_s: Planned seconds of a batch by its size, shape (sizes + 1,); empty where nothing is planned.
        ratio: Measured over planned seconds, an exponential average.
        mean_s: Mean seconds of a batch, where nothing is planned; 0 before the first.
    """

    planned_s: FloatArray = field(default_factory=lambda: np.empty(0))
    ratio: float = 1.0
    mean_s: float = 0.0

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a batch that was answered."""
        if self.planned_s.size:
            planned_s = float(self.planned_s[min(rows, self.planned_s.size - 1)])
            self.ratio += SPEED_STEP * (seconds / max(planned_s, 1e-9) - self.ratio)
        self.mean_s = seconds if self.mean_s == 0.0 else self.mean_s + SPEED_STEP * (seconds - self.mean_s)

    def estimate(self, rows: int) -> float:
        """Return the seconds of a batch of so many rows."""
        if not self.planned_s.size:
            return self.mean_s
        return float(self.planned_s[min(max(1, rows), self.planned_s.size - 1)]) * self.ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLoad:
    """The state of a stage at one instant.

    Attributes:
        items: Items that wait or are in service.
        replicas: Replicas that serve.
        max_batch: Maximum batch size.
        speed: How long its batches take.
        restart_s: Seconds until a replica serves, if none does.
    """

    items: int
    replicas: int
    max_batch: int
    speed: BatchSpeed
    restart_s: float = 0.0

    @property
    def capacity(self) -> int:
        """Items that the replicas serve at once."""
        return self.replicas * self.max_batch

    def estimate_wait(self, items: float) -> float:
        """Return the seconds until the replicas have worked off so many items."""
        if not self.replicas:
            return self.restart_s + items * self.speed.estimate(self.max_batch) / self.max_batch
        return items * self.speed.estimate(self.max_batch) / self.capacity

    def estimate_service(self) -> float:
        """Return the seconds that a new query takes in its batch: a full one where a queue fills it."""
        waiting = max(0, self.items - self.capacity)
        return self.speed.estimate(min(self.max_batch, 1 + (waiting or self.items // max(1, self.replicas))))


def predict_response_time(pipeline: Pipeline, loads: Sequence[StageLoad], in_flight: int, rows: int = 1) -> float:
    """Return the seconds until the last of ``rows`` queries that arrive now would be answered.

    The stage that takes longest to work off what is ahead decides how long a query waits; service is added on the
    longest path. What waits upstream counts at a stage with the probability of its edge.

    Args:
        pipeline: The stages.
        loads: The state of each stage.
        in_flight: Queries in the pipeline, which limit what can be ahead at a join.
        rows: Queries that arrive together.
    """
    ahead: list[float] = []
    for stage, load in zip(pipeline.stages, loads, strict=True):
        upstream = sum(ahead[edge.parent] * edge.share for edge in stage.parents) * stage.fan_out
        if len(stage.parents) > 1:
            upstream = min(upstream, in_flight + rows - 1)
        ahead.append(load.items + (upstream if stage.parents else (rows - 1) * stage.share))
    wait_s = max(load.estimate_wait(items) for load, items in zip(loads, ahead, strict=True))
    return wait_s + compute_longest_path(pipeline, [load.estimate_service() for load in loads])


def compute_retry_delay(
    pipeline: Pipeline, loads: Sequence[StageLoad], in_flight: int, max_wait_s: float, rows: int = 1
) -> float:
    """Return 0 if ``rows`` queries that arrive now are admitted, else the seconds after which to try again.

    They are refused if the last answer is predicted for later than ``max_wait_s``. While the replicas could serve them
    at once, they are admitted: a prediction of slow batches must not end the traffic that would correct it. The delay
    is at most a minute.
    """
    if max_wait_s == math.inf or not loads:
        return 0.0
    if all(load.replicas and load.items + rows <= load.capacity for load in loads):
        return 0.0
    excess_s = predict_response_time(pipeline, loads, in_flight, rows) - max_wait_s
    return min(excess_s, MAX_RETRY_S) if excess_s > 0 else 0.0
