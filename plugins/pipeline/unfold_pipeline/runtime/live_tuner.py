"""The scaling rule in charge of running replicas, under HTTP and under a replayed trace alike."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from unfold_pipeline._types import FloatArray
from unfold_pipeline.estimator.replica_schedule import ScalingState
from unfold_pipeline.problem.quotas import QuotaLimits
from unfold_pipeline.runtime.local import PipelineRuntime
from unfold_pipeline.tuner.calibration import ScalingRule

MAX_DECISIONS = 3600
DELAY_TOLERANCE_S = 1.0


def ignore_delay(_delay_s: float) -> None:
    """Do nothing: the callback of a rule that does not look ahead."""


@dataclass(slots=True, kw_only=True)
class LiveTuner:
    """The scaling rule in charge, and the quotas that limit it.

    Attributes:
        rule: Takes all demand so far and the time; returns the targets of all stages.
        limits: The quotas.
        set_delay: Lets the rule expect another activation time.
        delay_s: The activation time that the rule expects; infinite if it does not look ahead.
        decisions: The last targets, with the second of each.
    """

    rule: ScalingRule
    limits: QuotaLimits
    set_delay: Callable[[float], None] = ignore_delay
    delay_s: float = math.inf
    decisions: deque[tuple[float, ScalingState]] = field(default_factory=lambda: deque(maxlen=MAX_DECISIONS))

    def decide(self, arrivals: FloatArray, now_s: float) -> ScalingState:
        """Return the targets within the quotas; it may take tens of milliseconds.

        Args:
            arrivals: All demand, in seconds since the first query, refused queries included.
            now_s: Whole seconds since the first query.
        """
        targets = self.rule(arrivals, now_s)
        state = ScalingState(self.limits.share_replicas(targets.replicas), targets.batches)
        self.decisions.append((now_s, state))
        return state

    def follow_activation(self, runtime: PipelineRuntime) -> None:
        """Let the rule expect the activation time that was measured, where that has changed by more than a second."""
        measured_s = max(runtime.activation_times(), default=0.0)
        if measured_s > 0 and abs(measured_s - self.delay_s) > DELAY_TOLERANCE_S and self.delay_s < math.inf:
            self.delay_s = measured_s
            self.set_delay(measured_s)


def apply_state(runtime: PipelineRuntime, state: ScalingState) -> None:
    """Set replicas and batch sizes of running stages."""
    for stage, (count, batch) in enumerate(zip(state.replicas, state.batches, strict=True)):
        runtime.set_target(stage, count, batch)
