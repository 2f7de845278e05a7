"""The control loop: demand in, the decision of the scaling rule, and bounded steps of replica counts out."""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.control.demand import Demand, DemandSource, SignalError
from unfold_pipeline.control.scaled_workloads import ScalingTarget, StageReplicas
from unfold_pipeline.estimator.replica_schedule import TICK_S
from unfold_pipeline.runtime.live_tuner import LiveTuner
from unfold_pipeline.tuner.table_rule import TREND_WINDOW_S
from unfoldkit.api import UnfoldError
from unfoldkit.kubernetes.api import ApiError

MAX_CATCH_UP_S = 120
RATE_WINDOW_S = 30.0
AGE_TOLERANCE_S = 2.0
AGES = 12
ANY_REPLICAS = np.iinfo(np.int64).max
"""As many as the rule expects."""
Role = Literal["standby", "leader"]


@dataclass(slots=True, kw_only=True)
class ObservedTuner:
    """The scaling rule, which also gets what is measured of a deployment.

    Attributes:
        tuner: Rule and quotas.
        observe: Receives existing replicas and waiting items of all stages.
        activation_s: From ordering a replica until it serves.
        expected_s: The delay that the rule expects: activation, and the age of the demand.
        ages_s: Age of the demand at the last readings, which swings by the interval of the scrapes.
        since_s: From when on the demand of the last reading was known, in Unix seconds.
        is_partial: Whether arrivals may be missing in the last reading.
        short_since_s: Time since which replicas that a stage demands are missing, NaN where none is; shape (stages,).
    """

    tuner: LiveTuner
    observe: Callable[[CountArray, FloatArray], None]
    activation_s: float
    expected_s: float
    ages_s: deque[float] = field(default_factory=lambda: deque(maxlen=AGES))
    since_s: float = -math.inf
    is_partial: bool = False
    short_since_s: FloatArray = field(default_factory=lambda: np.array(math.nan))

    def expect_age(self, age_s: float) -> None:
        """Let the rule look ahead by the largest recent age of the demand too, if that changed by two seconds."""
        self.ages_s.append(age_s)
        expected_s = self.activation_s + max(self.ages_s)
        if abs(expected_s - self.expected_s) > AGE_TOLERANCE_S:
            self.expected_s = expected_s
            self.tuner.set_delay(expected_s)

    def observe_replicas(self, replicas: Sequence[StageReplicas], queued: FloatArray, now_s: float) -> None:
        """Correct the queues of the rule by what was measured.

        Where replicas that were demanded are missing, for lack of capacity or as the workload is paused, more orders
        would be missing too. The rule then follows the queries, and after the time of a start no queue either.
        """
        desired, existing = (
            np.array([getattr(item, name) for item in replicas], dtype=np.int64) for name in ("desired", "existing")
        )
        is_short = (existing < desired) | (desired == 0)
        self.short_since_s = np.where(is_short, np.fmin(self.short_since_s, now_s), math.nan)
        is_overdue = now_s - self.short_since_s > self.expected_s
        self.observe(np.where(is_short, ANY_REPLICAS, existing), np.where(is_overdue, math.nan, queued))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """How far one decision may move the replicas of the stages.

    Attributes:
        add: Replicas that may be added to a stage.
        remove: Replicas that may be removed from a stage.
        minimum: Fewest replicas of each stage.
        maximum: Most replicas of each stage.
    """

    add: int
    remove: int
    minimum: tuple[int, ...]
    maximum: tuple[int, ...]

    def limit_step(self, stage: int, current: int, wanted: int) -> int:
        """Return the replicas to demand next on the way from ``current`` to ``wanted``.

        Zero replicas are a workload that was paused, as for a HorizontalPodAutoscaler: it stays so.
        """
        if current == 0:
            return 0
        bounded = min(max(wanted, self.minimum[stage]), self.maximum[stage])
        return min(max(bounded, current - self.remove), current + self.add)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleStep:
    """A decision about one stage: replicas demanded so far, those that exist, of the rule, and to demand next.

    ``fault`` says why the stage cannot be scaled; empty if it can.
    """

    stage: str
    workload: str
    current: int
    existing: int
    wanted: int
    next: int
    fault: str = ""


@dataclass(slots=True)
class ControlRecord:
    """What a controller did, for its status and metrics.

    Attributes:
        rate: Queries per second of the last 30 s; NaN before the first reading.
        age_s: Age of the demand at the last reading.
        steps: The last decision.
        changes: Replicas changed, by stage and direction.
        failures: Readings of the demand that failed, by reason.
        gap: Why arrivals may be missing in the last reading; empty if none are.
        signal_error: Why the demand is unknown or incomplete; empty if it is known.
        signal_effect: What follows from that; empty if the demand is known.
        target_error: Why the workloads cannot be scaled; empty if they can.
    """

    rate: float = math.nan
    age_s: float = math.nan
    steps: tuple[ScaleStep, ...] = ()
    changes: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    gap: str = ""
    signal_error: str = ""
    signal_effect: str = ""
    target_error: str = ""

    @property
    def error(self) -> str:
        """Why workloads are not scaled; empty if all are."""
        return self.target_error or "; ".join(dict.fromkeys(step.fault for step in self.steps if step.fault))

    @property
    def is_ready(self) -> bool:
        """Whether the demand is known and all workloads can be scaled."""
        return not self.signal_error and not self.error


@dataclass(slots=True, kw_only=True)
class DeploymentController:
    """Scales an existing deployment by the rule that a served pipeline and a replay apply.

    Times of the rule are seconds since the first reading, by the clock of the samples: a late sample delays a decision
    and does not read as a lull.

    Attributes:
        names: Name of each stage.
        build_tuner: Returns the rule, which takes charge of a deployment with some replicas.
        source: Where the demand comes from.
        target: The deployment.
        limits: Bounds of a step.
        record: What happened.
        log: Receives what an operator must know.
    """

    names: tuple[str, ...]
    build_tuner: Callable[[CountArray], ObservedTuner]
    source: DemandSource
    target: ScalingTarget
    limits: StepLimits
    record: ControlRecord = field(default_factory=ControlRecord)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("unfoldkit"))
    tuner: ObservedTuner | None = None
    origin_s: float = 0.0

    @property
    def role(self) -> Role:
        """Whether this process scales now, even while a step of it waits for a silent server."""
        return "leader" if self.target.is_leader else "standby"

    def step(self) -> None:
        """Read the demand, decide, and scale by one step if this process leads.

        Where the demand is unknown, all replicas stay as they are; faults of workloads are reported all the same.
        Where arrivals may be missing, none are removed.
        """
        if not self.target.is_leader:
            self._stand_by()
            return
        try:
            replicas = self.target.read_replicas()
        except (UnfoldError, ApiError) as error:
            self._report_target(f"replica counts cannot be read: {error}")
            return
        try:
            steps = self._decide_steps(replicas)
        except SignalError as error:
            self._report_signal(error, "replica counts stay as they are")
            steps = tuple(self._propose_step(index, item, item.desired) for index, item in enumerate(replicas))
            self._carry_out([replace(step, next=step.current) for step in steps])
            return
        gap = self.record.gap
        self._report_signal(SignalError("incomplete", gap) if gap else None, "no replicas are removed")
        self._carry_out(steps)

    def propose_steps(self) -> tuple[ScaleStep, ...]:
        """Return the next step of each stage, and change nothing.

        Raises:
            SignalError: The demand is unknown.
            UnfoldError: The deployment does not respond.
            ApiError: It refuses.
        """
        return self._decide_steps(self.target.read_replicas())

    def _decide_steps(self, replicas: Sequence[StageReplicas]) -> tuple[ScaleStep, ...]:
        demand = self.source.read()
        wanted = self._decide(demand, replicas)
        self.record.rate, self.record.age_s = demand.mean_rate(RATE_WINDOW_S), demand.age_s
        self.record.gap = demand.gap
        return tuple(
            self._propose_step(index, item, wanted[index], can_remove=not demand.gap)
            for index, item in enumerate(replicas)
        )

    def _propose_step(self, index: int, replicas: StageReplicas, wanted: int, *, can_remove: bool = True) -> ScaleStep:
        desired, fault = replicas.desired, replicas.fault
        aim = wanted if can_remove else max(wanted, desired)
        return ScaleStep(
            stage=self.names[index],
            workload=self.target.workloads[index],
            current=desired,
            existing=replicas.existing,
            wanted=wanted,
            next=self.limits.limit_step(index, desired, aim) if fault is None else desired,
            fault="" if fault is None else str(fault),
        )

    def renew(self) -> None:
        """Renew the leadership, or try to win it."""
        try:
            was_leader, is_leader = self.target.is_leader, self.target.renew()
        except (UnfoldError, ApiError) as error:
            # leadership ends by this process's own clock, before another controller may begin
            self._report_target(f"the lease cannot be renewed: {error}")
            return
        if was_leader != is_leader:
            text = "this controller scales the deployment" if is_leader else "another controller has the lease"
            self.log.warning("%s", text)
        if self.record.target_error.startswith("the lease"):
            self._report_target("")

    def _decide(self, demand: Demand, replicas: Sequence[StageReplicas]) -> tuple[int, ...]:
        tuner = self.tuner
        if tuner is None or self._must_begin_anew(tuner, demand) or self._has_new_workload(replicas):
            desired = np.array([max(1, item.desired) for item in replicas], dtype=np.int64)
            tuner, self.origin_s = self.build_tuner(desired), math.floor(demand.until_s)
            self.tuner = tuner
        tuner.since_s, tuner.is_partial = demand.since_s, bool(demand.gap)
        tuner.expect_age(demand.age_s)
        arrivals_s, now_s = demand.arrivals_s - self.origin_s, math.floor(demand.until_s - self.origin_s)
        decisions = tuner.tuner.decisions
        first_s = max(int(decisions[-1][0]) + 1 if decisions else 0, now_s - MAX_CATCH_UP_S)
        # each second is decided, as in a replay; without new samples the last decision stands
        for second in range(first_s, now_s + 1):
            if second == now_s:
                tuner.observe_replicas(replicas, demand.queued, now_s)
            tuner.tuner.decide(arrivals_s, second * TICK_S)
        return decisions[-1][1].replicas

    def _must_begin_anew(self, tuner: ObservedTuner, demand: Demand) -> bool:
        """Return whether the rule would mistake what it does not know for a lull, and what follows for growth.

        The clock of the samples was set back, so that the rule would wait until it is as late again. Arrivals were
        missing until now. Or earlier samples are gone: another server answers, or the same one with a new database.
        """
        if not tuner.tuner.decisions:
            return False
        decided_s = self.origin_s + tuner.tuner.decisions[-1][0]
        is_forgotten = demand.since_s > max(tuner.since_s, decided_s - 2 * TREND_WINDOW_S)
        is_complete_again = tuner.is_partial and not demand.gap
        return demand.until_s < decided_s - MAX_CATCH_UP_S or is_forgotten or is_complete_again

    def _has_new_workload(self, replicas: Sequence[StageReplicas]) -> bool:
        """Return whether a workload was created or resumed; before that, its demand may have gone elsewhere."""
        return any(step.current == 0 < item.desired for step, item in zip(self.record.steps, replicas, strict=False))

    def _carry_out(self, steps: Sequence[ScaleStep]) -> None:
        had_fault = {step.stage: bool(step.fault) for step in self.record.steps}
        self.record.steps = tuple(self._scale_stage(index, step) for index, step in enumerate(steps))
        for step in self.record.steps:
            if bool(step.fault) != had_fault.get(step.stage, False):
                self.log.warning("%s", step.fault or f"{step.workload} is scaled again")
        if not self.record.target_error.startswith("the lease"):
            self._report_target("")

    def _scale_stage(self, index: int, step: ScaleStep) -> ScaleStep:
        """Demand the replicas of a step; return it, with the reason if the target refused.

        A policy of the cluster may limit replicas. A refused increase is halved until the target accepts it.
        """
        fault = ""
        while step.next != step.current:
            try:
                # a step took time, in which the lease may have ended
                is_done = self.target.is_leader and self.target.set_replicas(index, step.next)
            except (UnfoldError, ApiError) as error:
                fault = fault or f"{step.workload} cannot be scaled to {step.next} replicas: {error}"
                if not (isinstance(error, ApiError) and error.is_refusal and step.next > step.current + 1):
                    return replace(step, fault=fault)
                step = replace(step, next=step.current + (step.next - step.current) // 2)
                continue
            if is_done:
                direction = "up" if step.next > step.current else "down"
                self.record.changes[step.stage, direction] += abs(step.next - step.current)
                self.log.info("%s: %d → %d replicas", step.workload, step.current, step.next)
            break
        return replace(step, fault=fault) if fault else step

    def _stand_by(self) -> None:
        """Forget what another controller sees to now; the next leadership begins with the replicas that it finds."""
        self.tuner = None
        self.record.steps, self.record.signal_error, self.record.signal_effect = (), "", ""
        if not self.record.target_error.startswith("the lease"):
            self.record.target_error = ""

    def _report_signal(self, error: SignalError | None, effect: str) -> None:
        """Count a failure, and log it once until its effect changes or the demand is known again."""
        text, effect = ("", "") if error is None else (str(error), effect)
        if error is not None:
            self.record.failures[error.reason] += 1
        if effect != self.record.signal_effect:
            self.log.warning("%s", f"{text}; {effect}" if text else "the demand is known again")
        self.record.signal_error, self.record.signal_effect = text, effect

    def _report_target(self, text: str) -> None:
        if bool(text) != bool(self.record.target_error):
            self.log.warning("%s", text or "the deployment responds again")
        self.record.target_error = text
