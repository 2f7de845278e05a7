"""What a deadline and a budget leave room for: how many trials may still begin, and how many may continue at a rung.

The tool that runs the trials reports their steps; this module predicts the rest of successive halving on the slots that
there are, with the posterior over stage paces, and trims what does not fit. At the limit itself everything stops.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from unfold_tuning.job.allocation import Allocation
from unfold_tuning.job.pace_record import PaceRecord, build_pace_record
from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import Group, Stage, build_successive_halving
from unfold_tuning.planner.pace_posterior import GroupPaces, build_pace_posterior
from unfold_tuning.simulator.execution_model import build_execution_model
from unfold_tuning.simulator.plan_cost import simulate_plan
from unfold_tuning.simulator.stage_paces import draw_paces
from unfoldkit.api import Duration, Money, user_error

SAMPLES = 300
MAX_LOSS = 0.1
"""Probability of being on time that may be given up for more trials where no search is sure."""
MIN_PROFILED = 2
"""Trials that must have reported before anything is predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a run.

    Attributes:
        deadline_s: Seconds from the start by which the run must have ended.
        budget_usd: The bill at which the run stops, if any.
        usd_per_hour: Price of a slot.
        confidence: Probability with which what is begun shall end in time.
    """

    deadline_s: float
    budget_usd: float | None = None
    usd_per_hour: float = 0.0
    confidence: float = 0.95


def parse_limits(
    deadline: str | float, budget: str | float | None, usd_per_hour: float | None, confidence: float
) -> Limits:
    """Parse limits as users write them: ``"2h"`` or seconds, ``"$40"`` or dollars.

    Raises:
        UnfoldError: A limit cannot be read or is not positive, or a budget has no price to compare with.
    """
    deadline_s = _parse(Duration, deadline, 'write deadline="2h"')
    budget_usd = None if budget is None else _parse(Money, budget, 'write budget="$40"')
    if not (math.isfinite(deadline_s) and deadline_s > 0):
        raise user_error("the deadline must be a positive time", hint='write deadline="2h"')
    if budget_usd is not None and (not budget_usd > 0 or not usd_per_hour or not usd_per_hour > 0):
        hint = 'write budget="$40", usd_per_hour=1.5'
        raise user_error("a budget must be positive and needs the price of a worker", hint=hint)
    if not 0.5 <= confidence < 1:
        raise user_error("the confidence must be at least 0.5 and less than 1")
    return Limits(
        deadline_s=deadline_s,
        budget_usd=budget_usd,
        usd_per_hour=usd_per_hour or 0.0,
        confidence=confidence,
    )


def _parse(kind: Any, value: str | float, hint: str) -> float:
    """Parse a quantity with its unit; a number is in seconds or dollars."""
    if not isinstance(value, str):
        return float(value)
    try:
        return float(TypeAdapter(kind).validate_python(value))
    except ValidationError as error:
        raise user_error(f"{value!r}: {error.errors()[0]['msg']}", hint=hint) from error


@dataclass(slots=True, kw_only=True)
class LimitKeeper:
    """Keeps a run of successive halving within its limits.

    Attributes:
        limits: The limits.
        slots: Trials that run at once.
        trials: Trials of the first stage.
        min_steps: Steps of every trial in the first stage.
        max_steps: Steps of the last trial.
        eta: The reduction factor.
        wall: The wall clock.
        began: When the run began.
        steps: Seconds of each reported step, by trial.
        notes: What was trimmed and why.
    """

    limits: Limits
    slots: int
    trials: int
    min_steps: int
    max_steps: int
    eta: int
    wall: Callable[[], float] = time.time
    began: float = field(default=0.0)
    steps: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages as planned."""
        return build_successive_halving(self.trials, self.min_steps, self.max_steps, self.eta)

    @property
    def rungs(self) -> list[int]:
        """Steps that a trial has run at the end of each stage."""
        return [stage.groups[0].done + stage.groups[0].iters for stage in self.stages]

    def record_step(self, trial: int, step: int, seconds: float) -> None:
        """Record that a trial took some seconds for its steps up to ``step``."""
        items = self.steps.setdefault(trial, [])
        before = items[-1][0] if items else 0.0
        if step > before and seconds > 0:
            items.append((float(step), seconds / (step - before)))

    def compute_time_left_s(self) -> float:
        """Compute the seconds until a limit is reached: the deadline, or the budget at all slots."""
        elapsed_s = self.wall() - self.began
        left_s = self.limits.deadline_s - elapsed_s
        if self.limits.budget_usd is not None:
            paid_s = self.limits.budget_usd / self.limits.usd_per_hour * 3600.0 / self.slots
            left_s = min(left_s, paid_s - elapsed_s)
        return left_s

    def is_over(self) -> bool:
        """Return whether a limit is reached."""
        return self.compute_time_left_s() <= 0

    def compute_spent_usd(self) -> float:
        """Compute the bill: all slots from the start on."""
        return (self.wall() - self.began) * self.slots * self.limits.usd_per_hour / 3600.0

    def can_begin_trial(self, begun: int, open_steps: Sequence[int]) -> bool:
        """Return whether one more trial of the first stage, and what follows from it, still ends in time.

        Args:
            begun: Trials that have begun.
            open_steps: Steps that each of those still needs to the first rung.
        """
        return self._fits(0, [*open_steps, self.min_steps], begun + 1)

    def note_limit(self) -> None:
        """Note once that a limit was reached."""
        note = "a limit was reached: the trials stopped with their last report"
        if note not in self.notes:
            self.notes.append(note)

    def note_fewer_trials(self, begun: int) -> None:
        """Note that no further trial fits."""
        self.notes.append(f"stage 1: {begun} of {self.trials} trials, more would be late")

    def warm_up(self) -> None:
        """Load compiled code before the clock starts."""
        example = {-1 - trial: [(1.0, 1.0), (2.0, 1.0)] for trial in range(MIN_PROFILED)}
        # more trials than slots, which need the compiled schedule
        count = self.slots + 1
        replace(self, steps=example).estimate_probability(0, [self.min_steps] * count, count)

    def count_survivors(self, stage: int, candidates: int) -> int:
        """Count the trials that continue into a stage: as planned if they fit, otherwise fewer, and at least one.

        Args:
            stage: The stage.
            candidates: Trials that reached its rung.
        """
        planned = min(self.stages[stage].trials, -(-candidates // self.eta))
        iters = self.stages[stage].groups[0].iters
        if planned <= 1 or self._fits(stage, [iters] * planned, planned):
            return planned
        low, high = 1, planned
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(stage, [iters] * middle, middle) else (low, middle)
        self.notes.append(f"stage {stage + 1}: {low} of {planned} trials continue, more would be late")
        return low

    def _fits(self, stage: int, work: Sequence[int], count: int) -> bool:
        """Return whether the rest of the search ends within the limits with the required confidence.

        Where even a single trial is not that sure, a search that is nearly as sure may begin: the limit stops it.
        """
        probability = self.estimate_probability(stage, work, count)
        if probability >= self.limits.confidence:
            return True
        return probability >= self.estimate_probability(stage, work[-1:], 1) - MAX_LOSS

    def estimate_probability(self, stage: int, work: Sequence[int], count: int) -> float:
        """Estimate the probability that open work and all later stages end within the limits; 1 if nothing is known.

        Args:
            stage: The stage of the open work.
            work: Steps that each of its trials still needs.
            count: Trials of the stage.
        """
        known = {str(trial): items for trial, items in self.steps.items() if items}
        if len(known) < MIN_PROFILED or not work:
            return 1.0
        stages = [Stage(tuple(Group(1, steps) for steps in work))]
        done = self.rungs[stage]
        for later in self.stages[stage + 1 :]:
            count = max(1, count // self.eta)
            stages.append(Stage((Group(min(count, later.trials), later.groups[0].iters, done),)))
            done = later.groups[0].done + later.groups[0].iters
        record = build_pace_record("run", known)
        # a job of unknown kind: the default prior, from however many trials have reported
        posterior = build_pace_posterior(self.stages, record, np.zeros((0, 0)), (), 0)
        for earlier in range(stage):
            posterior = posterior.observe_stage(earlier, [self._measure_stage(record, earlier)])
        paces = posterior.predict(stage, posterior.level, has_known_trials=False)
        drawn = draw_paces(self.stages[stage:], paces, SAMPLES, 0)
        profile, machine = Profile(LogNormal(math.exp(posterior.level))), Machine("slot", 1, 0.0)
        rest = build_execution_model(stages, profile, machine, SAMPLES, 0)
        plan = tuple(Allocation(self.slots, 1, self.slots) for _ in stages)
        simulated = simulate_plan(rest.with_drawn_paces((drawn[0].repeat(len(work)), *drawn[1:])), plan)
        return simulated.estimate_on_time_probability(self.compute_time_left_s())

    def _measure_stage(self, record: PaceRecord, stage: int) -> GroupPaces:
        """Measure the paces of the trials that have run a stage, there and in the stage before."""
        bounds = [0, *self.rungs]
        last = record.compute_log_paces(bounds[stage], bounds[stage + 1])
        before = record.compute_log_paces(bounds[stage - 1], bounds[stage]) if stage else np.zeros_like(last)
        ran = np.isfinite(last) & np.isfinite(before)
        return GroupPaces(last=tuple(last[ran]), earlier=tuple(before[ran]) if stage else ())
