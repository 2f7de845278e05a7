"""What a deadline and a budget leave room for: how many trials may still begin, and how many may continue at a rung.

The tool that runs the trials reports their steps; this module predicts the rest of successive halving on the slots that
there are, with the posterior over stage paces, and trims what does not fit. At the limit itself everything stops.
"""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from numbers import Real
from statistics import fmean, median
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from unfold_tuning.deadline.machine_price import MachinePrice, find_machine_price
from unfold_tuning.job.allocation import Allocation
from unfold_tuning.job.pace_record import PaceRecord, build_pace_record
from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import Group, Stage, build_brackets, merge_brackets
from unfold_tuning.planner.pace_posterior import GroupPaces, build_pace_posterior
from unfold_tuning.simulator.execution_model import build_execution_model
from unfold_tuning.simulator.plan_cost import simulate_plan
from unfold_tuning.simulator.stage_paces import PaceDraws, draw_paces
from unfoldkit.api import Duration, Fraction, Money, Price, user_error

SAMPLES = 300
MAX_LOSS = 0.1
"""Probability of being on time that may be given up for more trials where no search is sure."""
MIN_PROFILED = 2
"""Trials that must have reported before anything is predicted."""

MIN_STEPS = 2
"""Reports of a trial from which its next one is predicted: the first step may contain a warm-up."""
WARM_UP_FACTOR = 2.0
"""A first step that takes more than this many times the median of the others contains a warm-up."""

Trial = TypeVar("Trial", int, str)
Steps = dict[Trial, list[tuple[float, float]]]
"""By trial, the steps run by the end of each report and the mean seconds of one of its steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a run.

    Attributes:
        deadline_s: Seconds from the start by which the run must have ended.
        budget_usd: The bill at which the run stops, if any.
        usd_per_hour: Price of a slot.
        confidence: Probability with which what is begun shall end in time.
        machine: The machine with the price that the slots share, if the budget came without one.
    """

    deadline_s: float
    budget_usd: float | None = None
    usd_per_hour: float = 0.0
    confidence: float = 0.95
    machine: MachinePrice | None = None


def parse_limits(
    deadline: str | float | dt.timedelta,
    budget: str | float | None,
    usd_per_hour: str | float | None,
    confidence: str | float,
) -> Limits:
    """Parse limits as users write them: ``"2h"`` or seconds, ``"$40"`` or dollars, ``"$1.50/h"``, ``"95%"``.

    A budget without a price counts that of this machine, and limits nothing if the machine is the user's own.

    Raises:
        UnfoldError: A limit cannot be read or is not positive, or the price of a rented machine is unknown.
    """
    deadline_s = _parse(Duration, deadline, "deadline", 'write deadline="2h"')
    budget_usd = None if budget is None else _parse(Money, budget, "budget", 'write budget="$40"')
    price_hint = 'write usd_per_hour="$1.50/h"'
    price_usd = 0.0 if usd_per_hour is None else _parse(Price, usd_per_hour, "usd_per_hour", price_hint)
    probability = _parse(Fraction, confidence, "confidence", 'write confidence="95%"')
    if not (math.isfinite(deadline_s) and deadline_s > 0):
        raise user_error("the deadline must be a positive time", hint='write deadline="2h"')
    if not (math.isfinite(price_usd) and price_usd >= 0):
        raise user_error("the price of a worker must not be negative", hint=price_hint)
    is_priced = usd_per_hour is None or price_usd > 0
    if budget_usd is not None and not (0 < budget_usd < math.inf and is_priced):
        raise user_error("a budget and the price of a worker must be positive", hint='write budget="$40"')
    if not 0.5 <= probability < 1:
        raise user_error("the confidence must be at least 0.5 and less than 1", hint='write confidence="95%"')
    machine = find_machine_price() if budget_usd is not None and usd_per_hour is None else None
    return Limits(
        deadline_s=deadline_s,
        budget_usd=None if machine and not machine.usd_per_hour else budget_usd,
        usd_per_hour=machine.usd_per_hour if machine else price_usd,
        confidence=probability,
        machine=machine,
    )


def _parse(kind: Any, value: str | float | dt.timedelta, name: str, hint: str) -> float:
    """Parse a quantity with its unit, or a time difference; a number is in seconds, dollars, or a fraction."""
    if kind is Duration and isinstance(value, dt.timedelta):
        return value.total_seconds()
    if kind is Duration and isinstance(value, dt.datetime):
        raise user_error(f"{name}: {value} is a date", hint=f"{hint}, which counts from the start of the run")
    # NumPy's time difference is a number of any unit
    if isinstance(value, (bool, np.timedelta64)) or not isinstance(value, (str, Real)):
        raise user_error(f"{name}: {value!r} is not a quantity", hint=hint)
    if not isinstance(value, str):
        return float(value)
    try:
        return float(TypeAdapter(kind).validate_python(value))
    except ValidationError as error:
        first = error.errors()[0]
        context = first.get("ctx", {})
        raise user_error(f"{name}: {first['msg']}", hint=context["hint"] if "unit" in context else hint) from error


@dataclass(frozen=True, slots=True)
class SteadyClock:
    """Reads the wall clock as it was at the start plus what has passed since: later changes of it move no deadline.

    Attributes:
        offset_s: The wall clock less the time since the boot, which counts on while the machine sleeps.
    """

    offset_s: float = field(default_factory=lambda: time.time() - _read_boot_time())

    def __call__(self) -> float:
        """Read the clock, in seconds since the epoch."""
        return self.offset_s + _read_boot_time()


def _read_boot_time() -> float:
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True, slots=True)
class OpenWork:
    """What the trials of a bracket still run in its current stage.

    Attributes:
        bracket: The bracket.
        stage: Its current stage.
        steps: Steps that each trial which has not reached the rung still needs.
        trials: Trials of the stage, from which the next one is counted.
    """

    bracket: int
    stage: int
    steps: tuple[int, ...]
    trials: int


@dataclass(slots=True)
class MeasuredSteps:
    """The steps of a run up to a report.

    Attributes:
        count: How many steps were reported.
        steps: Seconds of each step by trial, without a first one that contains a warm-up.
        warm_up_s: Mean seconds of that warm-up; 0 without one.
        record: The steps as a record of paces, once it was needed.
    """

    count: int = 0
    steps: Steps[str] = field(default_factory=dict)
    warm_up_s: float = 0.0
    record: PaceRecord | None = None

    def get_record(self) -> PaceRecord:
        """Return the steps as a record of paces."""
        if self.record is None:
            self.record = build_pace_record("run", self.steps)
        return self.record


@dataclass(slots=True, kw_only=True)
class LimitKeeper:
    """Keeps a search within its limits.

    Attributes:
        limits: The limits.
        slots: Trials that run at once.
        trials: Trials of the search.
        min_steps: Steps of every trial in the first stage.
        max_steps: Steps of the last trial.
        eta: The reduction factor.
        method: ``sha``, ``hyperband`` or ``asha``.
        wall: The clock.
        began: When the run began.
        paid_slot_s: Slot-seconds until ``slots`` changed last.
        changed_at: When that was.
        steps: Seconds of each reported step, by trial.
        notes: What was trimmed and why.
        is_scouting: Whether first steps alone leave no room for a search: a second one shows if they hold a warm-up.
        repeats_steps: Whether trials that continue begin again, for lack of a checkpoint.
    """

    limits: Limits
    slots: int
    trials: int
    min_steps: int
    max_steps: int
    eta: int
    method: str = "sha"
    wall: Callable[[], float] = field(default_factory=SteadyClock)
    began: float = field(default=0.0)
    paid_slot_s: float = 0.0
    changed_at: float = 0.0
    steps: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    is_scouting: bool = False
    repeats_steps: bool = False
    _latest: MeasuredSteps = field(default_factory=MeasuredSteps, init=False, repr=False)

    @property
    def brackets(self) -> tuple[tuple[Stage, ...], ...]:
        """The stages of each bracket as planned."""
        return build_brackets(self.method, self.trials, self.min_steps, self.max_steps, self.eta)

    def list_rungs(self, bracket: int) -> list[int]:
        """List the steps that a trial of a bracket has run at the end of each stage."""
        return [stage.groups[0].done + stage.groups[0].iters for stage in self.brackets[bracket]]

    def count_steps(self, done: int, target: int) -> int:
        """Count the steps that a trial runs to get from ``done`` to ``target`` ones after a pause."""
        return target if self.repeats_steps else target - done

    def record_step(self, trial: int, step: int, seconds: float) -> None:
        """Record that a trial took some seconds for its steps up to ``step``."""
        items = self.steps.setdefault(trial, [])
        before = items[-1][0] if items else 0.0
        if step > before and seconds > 0:
            items.append((float(step), seconds / (step - before)))

    def set_slots(self, slots: int) -> None:
        """Change how many trials run at once; what the earlier trials have cost stays in the bill."""
        if self.began and slots != self.slots:
            self.paid_slot_s, self.changed_at = self._compute_slot_s(), self.wall()
        self.slots = slots

    def share_machine(self, slots: int) -> None:
        """Share the price of the machine among its slots, where a budget came without the price of one."""
        machine = self.limits.machine
        if machine is not None:
            self.limits = replace(self.limits, usd_per_hour=machine.usd_per_hour / slots)

    def compute_time_left_s(self) -> float:
        """Compute the seconds until a limit is reached: the deadline, or the budget at all slots."""
        return min(self._compute_deadline_left_s(), self._compute_budget_left_s())

    def _compute_deadline_left_s(self) -> float:
        return self.limits.deadline_s - (self.wall() - self.began)

    def _compute_budget_left_s(self) -> float:
        if self.limits.budget_usd is None:
            return math.inf
        usd_per_s = self.limits.usd_per_hour / 3600.0 * self.slots
        return (self.limits.budget_usd - self.compute_spent_usd()) / usd_per_s

    def _describe_excess(self) -> str:
        """Describe which limit more trials would pass: the one that is reached first."""
        is_late = self._compute_deadline_left_s() <= self._compute_budget_left_s()
        return "more would be late" if is_late else "more would exceed the budget"

    def is_share_used(self, share: float) -> bool:
        """Return whether a fraction of the time until a limit has passed."""
        passed_s = self.wall() - self.began
        return passed_s > share * (passed_s + self.compute_time_left_s())

    def is_over(self) -> bool:
        """Return whether a limit is reached."""
        return self.compute_time_left_s() <= 0

    def is_last_report(self, trial: int) -> bool:
        """Return whether a trial stops with this report: a limit is reached, or its next step may well pass it.

        The next step takes as long as the slow ones of this trial, by the required confidence. Its first step counts
        only if no other follows and those of other trials contain no warm-up.
        """
        left_s, items = self.compute_time_left_s(), self.steps.get(trial, [])
        if left_s <= 0 or not items:
            return left_s <= 0
        if len(items) >= MIN_STEPS:
            paces = [seconds for _, seconds in items[1:]]
        elif self._measured.warm_up_s:
            paces = [seconds for others in self._measured.steps.values() for _, seconds in others]
        elif any(len(others) >= MIN_STEPS for others in self.steps.values()):
            paces = [items[-1][1]]
        else:
            return False
        steps = items[-1][0] - (items[-2][0] if len(items) >= MIN_STEPS else 0.0)
        # a quantile takes longer than a quick step
        return steps * max(paces) > left_s and steps * float(np.quantile(paces, self.limits.confidence)) > left_s

    def compute_spent_usd(self) -> float:
        """Compute the bill: all slots from the start on."""
        return self._compute_slot_s() * self.limits.usd_per_hour / 3600.0

    def _compute_slot_s(self) -> float:
        return self.paid_slot_s + (self.wall() - (self.changed_at or self.began)) * self.slots

    def can_add_trial(self, bracket: int, work: Sequence[OpenWork]) -> bool:
        """Return whether one more trial of a bracket, and what follows from all of them, still ends in time.

        Without barriers nothing follows: the trial has to reach its first rung.

        Args:
            bracket: The bracket.
            work: What the trials that have begun still run.
        """
        steps = self.list_rungs(bracket)[0] + self.estimate_warm_up_steps()
        if self.method == "asha" or not self.can_reach_rung(0, steps):
            return self.can_reach_rung(0, steps)
        items = {item.bracket: item for item in work}
        before = items.pop(bracket, OpenWork(bracket, 0, (), 0))
        extended = OpenWork(bracket, 0, (*before.steps, steps), before.trials + 1)
        return self._fits(extended, list(items.values()))

    def can_reach_rung(self, stage: int, steps: int, trial: int | None = None, confidence: float | None = None) -> bool:
        """Return whether a trial that begins now ends some steps of a stage in time, at its own pace or that of others.

        Args:
            stage: The stage.
            steps: Steps to its rung.
            trial: Its number, if it has run.
            confidence: The required probability, if not that of the limits.
        """
        paces = self.steps.get(-1 if trial is None else trial)
        if paces and steps * paces[-1][1] > self.compute_time_left_s():
            return False
        alone = OpenWork(0, stage, (steps,), 1)
        return self.estimate_probability([alone], has_later=False) >= (confidence or self.limits.confidence)

    def note_once(self, note: str) -> bool:
        """Note something unless it stands already; return whether it is new."""
        is_new = note not in self.notes
        if is_new:
            self.notes.append(note)
        return is_new

    def note_limit(self) -> None:
        """Note once that a limit was reached."""
        self.note_once("a limit was reached: the trials stopped with their last report")

    def note_fewer_trials(self, begun: int) -> None:
        """Note that no further trial fits."""
        self.notes.append(f"stage 1: {begun} of {self.trials} trials, {self._describe_excess()}")

    def warm_up(self) -> None:
        """Load compiled code before the clock starts."""
        example = {-1 - trial: [(1.0, 1.0), (2.0, 1.0)] for trial in range(MIN_PROFILED)}
        # more trials than slots, which need the compiled schedule
        count = self.slots + 1
        replace(self, steps=example).estimate_probability([OpenWork(0, 0, (self.min_steps,) * count, count)])

    def count_survivors(self, bracket: int, stage: int, candidates: int, others: Sequence[OpenWork] = ()) -> int:
        """Count the trials that continue into a stage: as planned if they fit, otherwise fewer, and at least one.

        Args:
            bracket: The bracket.
            stage: The stage.
            candidates: Trials that reached its rung.
            others: What the trials of other brackets still run.
        """
        group = self.brackets[bracket][stage].groups[0]
        planned = min(group.trials, -(-candidates // self.eta))

        def fits(count: int) -> bool:
            steps = self.count_steps(group.done, group.done + group.iters)
            return self._fits(OpenWork(bracket, stage, (steps,) * count, count), others)

        if planned <= 1 or fits(planned):
            return planned
        low, high = 1, planned
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        self.notes.append(f"stage {stage + 1}: {low} of {planned} trials continue, {self._describe_excess()}")
        return low

    def _fits(self, work: OpenWork, others: Sequence[OpenWork]) -> bool:
        """Return whether the rest of the search ends within the limits with the required confidence.

        Where even a single trial is not that sure, a search that is nearly as sure may begin: the limit stops it.
        """
        probability = self.estimate_probability([work, *others])
        if probability >= self.limits.confidence:
            return True
        alone = OpenWork(work.bracket, work.stage, work.steps[-1:], 1)
        self.is_scouting = self.is_scouting or all(len(items) < MIN_STEPS for items in self.steps.values())
        return probability >= self.estimate_probability([alone]) - MAX_LOSS

    def estimate_warm_up_steps(self) -> int:
        """Estimate how many steps the warm-up of a trial is worth; 0 without one."""
        measured = self._measured
        paces = [seconds for items in measured.steps.values() for _, seconds in items]
        return round(measured.warm_up_s / float(np.median(paces))) if measured.warm_up_s else 0

    @property
    def _measured(self) -> MeasuredSteps:
        """What was measured so far: a decision asks for it once per trial."""
        count = sum(map(len, self.steps.values()))
        if self._latest.count != count:
            self._latest = MeasuredSteps(count, *_split_warm_up(self.steps))
        return self._latest

    def estimate_probability(self, work: Sequence[OpenWork], *, has_later: bool = True) -> float:
        """Estimate the probability that open work and all later stages end within the limits; 1 if nothing is known.

        Brackets run side by side, with common barriers: a bound where they do not wait for each other.

        Args:
            work: What is open in each bracket.
            has_later: Whether later stages follow.
        """
        work = [item for item in work if item.steps or (has_later and item.trials)]
        if sum(bool(items) for items in self.steps.values()) < MIN_PROFILED or not work:
            return 1.0
        brackets = self.brackets
        table = merge_brackets(brackets)
        record = self._measured.get_record()
        # a job of unknown kind: the default prior, from however many trials have reported
        posterior = build_pace_posterior(table, record, np.zeros((0, 0)), (), 0)
        current = {item.bracket: item.stage for item in work}
        for earlier in range(max(current.values())):
            posterior = posterior.observe_stage(
                earlier,
                [
                    self._measure_stage(record, group.bracket, earlier)
                    if earlier < current.get(group.bracket, 0)
                    else GroupPaces(last=())
                    for group in table[earlier].groups
                ],
            )
        first = min(current.values())
        paces = posterior.predict(first, posterior.level, has_known_trials=False)
        drawn = draw_paces(table[first:], paces, SAMPLES, 0)
        columns = {
            (group.bracket, first + row): PaceDraws(draws.shift[:, [column]], draws.spread[:, [column]])
            for row, draws in enumerate(drawn)
            for column, group in enumerate(table[first + row].groups)
        }
        rows = [self._list_rest(item, has_later=has_later) for item in work]
        stages, draws = [], []
        for depth, row in enumerate(zip_longest(*rows, fillvalue=())):
            groups = [group for groups in row for group in groups]
            if not groups:
                continue
            stages.append(Stage(tuple(groups)))
            draws.append(_join_draws([columns[group.bracket, current[group.bracket] + depth] for group in groups]))
        profile, machine = Profile(LogNormal(math.exp(posterior.level))), Machine("slot", 1, 0.0)
        rest = build_execution_model(stages, profile, machine, SAMPLES, 0)
        plan = tuple(Allocation(self.slots, 1, self.slots) for _ in stages)
        return simulate_plan(rest.with_drawn_paces(tuple(draws)), plan).estimate_on_time_probability(
            self.compute_time_left_s()
        )

    def _measure_stage(self, record: PaceRecord, bracket: int, stage: int) -> GroupPaces:
        """Measure the paces of the trials that have run a stage, there and in the stage before."""
        bounds = [0, *self.list_rungs(bracket)]
        last = record.compute_log_paces(bounds[stage], bounds[stage + 1])
        before = record.compute_log_paces(bounds[stage - 1], bounds[stage]) if stage else np.zeros_like(last)
        ran = np.isfinite(last) & np.isfinite(before)
        return GroupPaces(last=tuple(last[ran]), earlier=tuple(before[ran]) if stage else ())

    def _list_rest(self, work: OpenWork, *, has_later: bool) -> list[tuple[Group, ...]]:
        """List what is left of a bracket by stage: a group of one trial for each that is open, then whole groups."""
        rest = [tuple(Group(1, steps, 0, work.bracket) for steps in work.steps)]
        count = work.trials
        for stage in self.brackets[work.bracket][work.stage + 1 :] if has_later else ():
            group = stage.groups[0]
            count = max(1, min(count // self.eta, stage.trials))
            steps = self.count_steps(group.done, group.done + group.iters)
            rest.append((replace(group, trials=count, iters=steps),))
        return rest


def _join_draws(draws: Sequence[PaceDraws]) -> PaceDraws:
    return PaceDraws(np.hstack([item.shift for item in draws]), np.hstack([item.spread for item in draws]))


def _split_warm_up(steps: Steps[int]) -> tuple[Steps[str], float]:
    """Split the warm-up of trials from their steps, if most of those that show one have it.

    Returns:
        The steps of each trial, without the first one if it contains a warm-up; and its mean seconds.
    """
    known = {str(trial): items for trial, items in steps.items() if items}
    complete = {trial: items for trial, items in known.items() if len(items) >= MIN_STEPS}
    medians = {trial: median(pace for _, pace in items[1:]) for trial, items in complete.items()}
    warm_ups = [
        items[0][0] * (items[0][1] - medians[trial])
        for trial, items in complete.items()
        if items[0][1] > WARM_UP_FACTOR * medians[trial]
    ]
    if 2 * len(warm_ups) <= len(complete):
        return known, 0.0
    return {trial: items[1:] for trial, items in complete.items()}, fmean(warm_ups)
