"""Monitors a running stage: when the run will end, trials that hang, and a deadline that cannot be met any more."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from unfold_tuning.cluster.interface import Cluster
from unfold_tuning.executor.deadline import StageRest, TimeEstimator, list_late_options
from unfold_tuning.executor.inputs_and_outcome import RunState, ignore_state
from unfold_tuning.executor.messages import (
    describe_late_finish,
    describe_missed_deadline,
    describe_progress,
    describe_silence,
    describe_stop,
    describe_straggler_option,
    describe_timeout,
)
from unfold_tuning.executor.ranking import select_winner
from unfold_tuning.executor.replanning import Replanner
from unfold_tuning.executor.stragglers import can_go_on_without
from unfold_tuning.job.allocation import Plan
from unfold_tuning.planner.planner import evaluate_machine
from unfold_tuning.simulator.execution_model import ExecutionModel, scale_iteration
from unfold_tuning.trial.worker import TrialJob

CHECK_PERIOD_S = 2.0
DOUBT_PERIOD_S = 30.0
"""Where the average trial would be late, the remaining job is simulated with the known ones, at most this often."""
MIN_SILENCE_S = 60.0
SILENCE_FACTOR = 10.0
"""A trial is suspicious after this many times its expected time to a checkpoint, and ``MIN_SILENCE_S`` seconds."""


@dataclass(slots=True)
class Watchdog:
    """The last progress of each running trial.

    Attributes:
        clock: A monotonic clock.
        last_progress: When each running trial started or reached its last checkpoint.
        warned: Suspicious trials since their last checkpoint.
        kill_reasons: Why trials were killed, until they are stopped.
    """

    clock: Callable[[], float] = time.monotonic
    last_progress: dict[int, float] = field(default_factory=dict)
    warned: set[int] = field(default_factory=set)
    kill_reasons: dict[int, str] = field(default_factory=dict)

    def record_progress(self, trial: int) -> None:
        """Record that a trial has started or reached a checkpoint."""
        self.last_progress[trial] = self.clock()
        self.warned.discard(trial)

    def measure_silence_s(self, trial: int) -> float:
        """Return the seconds since a trial's last progress; 0 if it does not run or is being killed."""
        is_running = trial in self.last_progress and trial not in self.kill_reasons
        return self.clock() - self.last_progress[trial] if is_running else 0.0

    def forget(self, trial: int) -> str:
        """Forget a trial that no longer runs, and return why it was killed, if it was."""
        self.last_progress.pop(trial, None)
        self.warned.discard(trial)
        return self.kill_reasons.pop(trial, "")

    def is_newly_suspicious(self, trial: int, expected_s: float) -> bool:
        """Return, once per checkpoint, whether a trial takes much longer than the expected seconds."""
        is_silent = self.measure_silence_s(trial) > max(MIN_SILENCE_S, SILENCE_FACTOR * expected_s)
        if not is_silent or trial in self.warned:
            return False
        self.warned.add(trial)
        return True


@dataclass(slots=True)
class Monitor:
    """The state of a run as the user sees it.

    Attributes:
        replanner: The run and its corrected profile.
        cluster: Kills trials that hang.
        publish: Receives the state of the run.
        watchdog: The last progress of each running trial.
        checked_at: Wall time of the last check.
        ends_at: Wall time at which the run is expected to end; 0 before the first check.
        doubted_at: Wall time at which the deadline was last in doubt.
    """

    replanner: Replanner
    cluster: Cluster
    publish: Callable[[RunState], None] = ignore_state
    watchdog: Watchdog = field(default_factory=Watchdog)
    checked_at: float = 0.0
    ends_at: float = 0.0
    doubted_at: float = -math.inf

    def check(self, index: int, plan: Plan, jobs: Sequence[TrialJob], began: float) -> None:
        """Estimate the end of the run, kill hanging trials, and note once if the deadline cannot be met any more.

        Args:
            index: The stage.
            plan: The plan.
            jobs: Jobs of the stage that have not ended.
            began: Wall time at which the run began.
        """
        config, ledger = self.replanner.config, self.replanner.ledger
        now = config.wall()
        if now - self.checked_at < CHECK_PERIOD_S:
            return
        self.checked_at = now
        profile = scale_iteration(config.profile, self.replanner.estimate_time_factor(index))
        estimator = TimeEstimator(profile, config.machine)
        self._check_trials(jobs, estimator)
        stage_s, later = estimator.estimate_stage_seconds(jobs, plan[index]), config.stages[index + 1 :]
        self.ends_at = now + stage_s + estimator.estimate_planned_seconds(later, plan[index + 1 :])
        deadline = began + (config.deadline_s or math.inf)
        if self.replanner.may_grow_stage():
            stage_s = estimator.estimate_soonest_seconds(jobs, plan[index])
        ends_stragglers = config.trainable.early_stop.ends_stragglers
        is_soon_over = can_go_on_without(config, ledger, index, jobs)
        if is_soon_over and ends_stragglers:
            stage_s = 0.0
        if (
            now + stage_s + estimator.estimate_fastest_seconds(later) > deadline
            and now - self.doubted_at >= DOUBT_PERIOD_S
            and ledger.read_fact("hopeless") is None
        ):
            self.doubted_at = now
            remaining = self.replanner.build_remaining_model(index, plan)
            if not _is_guaranteed(remaining, deadline - now - stage_s, config.confidence):
                ledger.record_fact("hopeless", now)
                stragglers = [job.trial for job in jobs] if is_soon_over and not ends_stragglers else []
                self._note_missed_deadline(remaining, deadline - now, stage_s, stragglers)
        self.publish_state(index, plan, began)

    def publish_state(self, index: int, plan: Plan, began: float) -> None:
        """Publish how far the run has come in a stage."""
        state = RunState(
            index=index,
            plan=plan,
            began=began,
            now=self.replanner.config.wall(),
            ends_at=self.ends_at or None,
            spent_usd=self.replanner.ledger.compute_spent_usd(),
        )
        self.publish(state)

    def _check_trials(self, jobs: Sequence[TrialJob], estimator: TimeEstimator) -> None:
        """Kill trials without a checkpoint within the timeout, and warn about those that take suspiciously long."""
        timeout_s, log = self.replanner.config.trainable.timeout_s, self.replanner.config.log
        for job in jobs:
            silence_s, expected_s = (
                self.watchdog.measure_silence_s(job.trial),
                estimator.estimate_checkpoint_seconds(job),
            )
            if timeout_s is not None and silence_s > timeout_s:
                reason = describe_timeout(timeout_s)
                self.watchdog.kill_reasons[job.trial] = reason
                log.warning("trial %d is killed: %s", job.trial, reason)
                self.cluster.kill(job.trial)
            elif self.watchdog.is_newly_suspicious(job.trial, expected_s):
                log.warning("%s", describe_silence(job.trial, silence_s, expected_s))

    def _note_missed_deadline(
        self, remaining: ExecutionModel, time_left_s: float, stage_s: float, stragglers: Sequence[int]
    ) -> None:
        config = self.replanner.config
        if remaining.stages:
            rest = StageRest(stage_s, stage_s * self.replanner.ledger.count_running() * config.machine.usd_per_second)
            options = list(list_late_options(remaining, time_left_s, config.confidence, rest))
        else:
            best = select_winner(config, self.replanner.ledger)
            has_metric = best is not None and best.metric is not None
            metric = config.trainable.display_metric(best.metric) if best and best.metric is not None else None
            late_s = max(0.0, self.ends_at - config.wall())
            options = [describe_late_finish(late_s), describe_stop(best.id if best and has_metric else None, metric)]
        if stragglers and (not remaining.stages or _is_guaranteed(remaining, time_left_s, config.confidence)):
            options.append(describe_straggler_option(stragglers))
        self.replanner.note_late(describe_missed_deadline(), options)

    def describe(self, index: int) -> str:
        """Describe the run in one line: stage, expected end, spend and what is left of the budget."""
        config = self.replanner.config
        remaining_s = self.ends_at - config.wall() if self.ends_at else None
        spent_usd = self.replanner.ledger.compute_spent_usd()
        return describe_progress(index + 1, len(config.stages), remaining_s, spent_usd, config.budget_usd)


def _is_guaranteed(remaining: ExecutionModel, time_left_s: float, confidence: float) -> bool:
    """Return whether some plan of the remaining stages still gives the guarantee."""
    if not remaining.stages:
        return False
    return evaluate_machine(remaining, confidence).select_cheapest(time_left_s) is not None
