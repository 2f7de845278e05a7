"""Which trials of successive halving, Hyperband or ASHA may run, and to which rung, as they report.

Nothing here depends on the tool that runs the trials. Each bracket has rungs. With barriers (SHA, Hyperband) a trial
waits at a rung until all trials of its stage have reached it, then the best 1/eta continue. Without them (ASHA) a trial
continues once it is among the best 1/eta of those that have reached its rung so far.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from unfold_tuning.deadline.limits import MIN_PROFILED, MIN_STEPS, LimitKeeper, OpenWork
from unfoldkit.api import format_count, user_error

METHODS = ("sha", "hyperband", "asha")
EVEN_CHANCE = 0.5
"""The probability of being in time with which a trial of ASHA continues where its slot would otherwise stay empty."""
SIZING_WORK = 0.1
"""Fraction of the time of all slots in which a trial may run to its end to show how many steps there are."""
MAX_SIZING = 0.3
"""The same of the time until a limit: all trials wait at the first rung meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredStage:
    """The stage of a search, as far as its trials do not show it.

    Attributes:
        stages: The current stage of each bracket.
        levels: The rung to which each trial may run that has passed the first.
        stage_trials: Trials that finished each earlier stage.
        is_full: Whether no further trial begins in these brackets.
        size: Steps of the first and the last stage, if trials had to show them and did.
        rungs: The rungs of each bracket, once they are known.
    """

    stages: tuple[int, ...] = ()
    levels: Mapping[Any, int] = field(default_factory=dict)
    stage_trials: tuple[int, ...] = ()
    is_full: bool = False
    size: tuple[int, int] | None = None
    rungs: tuple[tuple[int, ...], ...] = ()


@dataclass(slots=True, kw_only=True)
class HalvingSearch:
    """The state of a search.

    When all brackets have ended and trials are left for which there was no time at first, the brackets are opened
    again: the numbers of the new ones follow those of the first.

    Attributes:
        keeper: The limits, and the brackets as planned.
        is_maximized: Whether larger values are better.
        numbers: The number of each trial, in the order in which they began.
        brackets: The bracket of each trial that has begun.
        levels: The number of the rung to which each of them may run.
        steps: Steps that each has run.
        values: Reported value by steps, for each trial.
        violations: By how much a trial violates its constraints, if it does: it ranks behind those that do less.
        ended: Trials that do not run any more.
        failed: Those of them that count at no rung.
        stages: The current stage of each bracket; without barriers, always 0.
        stage_trials: Trials that finished each stage, in the order in which the stages ended.
        is_full: Whether no further trial begins in these brackets.
        supply: Trials that the tool can suggest, where they are fewer than planned.
        is_sized: Whether it is known how many steps a complete trial has; the first trial may show it.
        size: The steps of the first and the last stage, once a trial has shown them.
    """

    keeper: LimitKeeper
    is_maximized: bool
    numbers: dict[Any, int] = field(default_factory=dict)
    brackets: dict[Any, int] = field(default_factory=dict)
    levels: dict[Any, int] = field(default_factory=dict)
    steps: dict[Any, int] = field(default_factory=dict)
    values: dict[Any, dict[int, float]] = field(default_factory=dict)
    violations: dict[Any, float] = field(default_factory=dict)
    ended: set[Any] = field(default_factory=set)
    failed: set[Any] = field(default_factory=set)
    stages: list[int] = field(default_factory=list)
    stage_trials: list[int] = field(default_factory=list)
    is_full: bool = False
    supply: int | None = None
    is_sized: bool = True
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Open the first brackets, with a rung for each halving if the last step is unknown."""
        if not self.is_sized:
            halvings = math.ceil(math.log(self.keeper.trials, self.keeper.eta) - 1e-9)
            self.keeper.max_steps = self.keeper.min_steps * self.keeper.eta**halvings
        self.stages = self.stages or [0] * len(self.keeper.brackets)

    @property
    def has_barriers(self) -> bool:
        """Whether trials wait for each other at the rungs."""
        return self.keeper.method != "asha"

    @property
    def has_new_trials(self) -> bool:
        """Whether trials are left that have not begun."""
        total = self.keeper.trials if self.supply is None else min(self.supply, self.keeper.trials)
        return len(self.brackets) < total

    def limit_supply(self, trials: int) -> None:
        """Search with fewer trials than planned, because the tool has no more."""
        self.supply = trials
        if self.keeper.method == "sha" and not any(self.stages):
            # the brackets of the other methods do not depend on it
            self.keeper.trials = max(1, trials)

    def count_wanted(self) -> int:
        """Count the trials that could run now if there were slots for all of them."""
        runnable, total = len(self.list_runnable()), self.keeper.trials
        return runnable if self.is_full or not self.has_new_trials else runnable + total - len(self.brackets)

    def list_rungs(self, bracket: int) -> list[int]:
        """List the steps at which the trials of a bracket are compared; brackets begin anew after the last."""
        return self.keeper.list_rungs(bracket % len(self.keeper.brackets))

    def list_open_brackets(self) -> list[int]:
        """List the brackets that were opened last."""
        count = len(self.keeper.brackets)
        return list(range(len(self.stages) - count, len(self.stages)))

    def begin_trial(self, trial: Any, bracket: int) -> None:
        """Number a new trial in the order of its start, at the lowest rung of its bracket."""
        self.numbers[trial] = max(self.numbers.values(), default=-1) + 1
        self.brackets[trial], self.levels[trial] = bracket, 0

    def record_report(self, trial: Any, steps: int, value: float | None) -> None:
        """Record what a trial has reported after some steps."""
        if value is not None:
            self.values.setdefault(trial, {})[steps] = value
        is_first = not self.steps
        self.steps[trial] = max(steps, self.steps.get(trial, 0))
        if not self.is_sized:
            self._extend(self.steps[trial], is_first=is_first)

    def _extend(self, steps: int, *, is_first: bool) -> None:
        """Search beyond the steps that a trial runs before its end; after a while, no trial shows more."""
        keeper = self.keeper
        if is_first and steps > keeper.min_steps:
            # scripts may report at every tenth step
            keeper.max_steps = keeper.max_steps * steps // keeper.min_steps
            keeper.min_steps = steps
        keeper.max_steps = max(keeper.max_steps, steps + 1)
        if keeper.is_share_used(min(SIZING_WORK * keeper.slots, MAX_SIZING)):
            self.set_size(keeper.min_steps, max(keeper.max_steps, steps * keeper.eta))
            keeper.note_once(f"max_steps: {keeper.max_steps} assumed, as no trial was complete soon enough to show it")

    def set_size(self, min_steps: int, max_steps: int) -> None:
        """Search with the steps that trials have shown: those of the first and of the last stage."""
        self.keeper.min_steps, self.keeper.max_steps = min_steps, max_steps
        self.size, self.is_sized = (min_steps, max_steps), True

    def complete_trial(self, trial: Any) -> None:
        """Record that a trial ended by itself: it counts with its last value at every rung."""
        if trial in self.ended:
            return
        self.ended.add(trial)
        if not self.is_sized and self.values.get(trial):
            steps = self.steps[trial]
            self.set_size(min(self.keeper.min_steps, steps), steps)
            self.keeper.note_once(f"max_steps: {steps}, as the first complete trial ran")
        if trial in self.brackets and self.values.get(trial):
            self.steps[trial] = max(self.steps.get(trial, 0), self.list_rungs(self.brackets[trial])[-1])

    def fail_trial(self, trial: Any) -> None:
        """Record that a trial was lost: it counts at no rung."""
        self.ended.add(trial)
        self.failed.add(trial)

    def revive_trial(self, trial: Any) -> None:
        """Forget a trial that failed: it begins again as a new one, in new brackets if the others have gone on."""
        self.ended.discard(trial)
        self.failed.discard(trial)
        tables: tuple[dict[Any, Any], ...] = (
            self.numbers,
            self.brackets,
            self.levels,
            self.steps,
            self.values,
            self.violations,
        )
        for table in tables:
            table.pop(trial, None)
        if not self.brackets:
            self.stages, self.stage_trials, self.is_full = [0] * len(self.keeper.brackets), [], False
        elif all(self.stages[bracket] for bracket in self.list_open_brackets()):
            self.is_full = True

    def has_reached_end(self, trial: Any) -> bool:
        """Return whether a trial has run to its last rung."""
        return self.steps.get(trial, 0) >= self.list_rungs(self.brackets[trial])[-1]

    def needs_steps(self, trial: Any) -> bool:
        """Return whether a trial may run, and has not reached its rung or has no value to be ranked by."""
        if trial not in self.brackets or trial in self.ended or self.has_lost(trial):
            return False
        is_unranked = not self.values.get(trial) and not self.has_reached_end(trial)
        return (
            is_unranked
            or self._is_scout(trial)
            or self._shows_size(trial)
            or self.steps.get(trial, 0) < self._get_target(trial)
        )

    def _is_scout(self, trial: Any) -> bool:
        """Return whether a trial runs ahead of its rung to show how long steps take that follow the first one."""
        if not self.keeper.is_scouting or len(self.keeper.steps.get(self.numbers[trial], ())) >= MIN_STEPS:
            return False
        first = [item for item in self.brackets if item not in self.ended][:MIN_PROFILED]
        return trial in first and not self.has_reached_end(trial)

    def _shows_size(self, trial: Any) -> bool:
        """Return whether a trial runs to its end to show how many steps there are: the first that has not failed."""
        return not self.is_sized and trial == next((item for item in self.brackets if item not in self.ended), None)

    def has_lost(self, trial: Any) -> bool:
        """Return whether the stage of a trial has ended without it."""
        bracket = self.brackets[trial]
        return self.has_barriers and self.levels[trial] < min(self.stages[bracket], len(self.list_rungs(bracket)) - 1)

    def drop_rungs(self) -> None:
        """Search with a single stage of one step, because trials never report."""
        self.is_sized = True
        if self.keeper.max_steps == 1:
            return
        self.keeper.min_steps = self.keeper.max_steps = 1
        self.stages = [0] * len(self.keeper.brackets)
        self.brackets, self.levels = dict.fromkeys(self.brackets, 0), dict.fromkeys(self.levels, 0)

    def describe_stage(self) -> StoredStage:
        """Describe what decides how an interrupted search continues."""
        levels = {trial: level for trial, level in self.levels.items() if level}
        return StoredStage(
            stages=tuple(self.stages),
            levels=levels,
            stage_trials=tuple(self.stage_trials),
            is_full=self.is_full,
            size=self.size,
            rungs=self._list_plan(),
        )

    def restore_stage(self, stored: StoredStage, brackets: Mapping[Any, int]) -> None:
        """Continue at a stored stage with the trials that had begun, by bracket.

        Where other arguments now lead to other rungs, the trials keep how far they may run, and are compared there.
        """
        if stored.size is not None and not self.is_sized:
            self.set_size(*stored.size)
        is_same = stored.rungs in ((), self._list_plan())
        if is_same:
            self.stages = list(stored.stages) or self.stages
            self.stage_trials, self.is_full = list(stored.stage_trials), stored.is_full
        else:
            self.keeper.note_once("the interrupted search had other rungs: its trials continue at those of this one")
        for trial, bracket in brackets.items():
            self.begin_trial(trial, bracket if is_same else bracket % len(self.keeper.brackets))
            highest = len(self.list_rungs(self.brackets[trial])) - 1
            self.levels[trial] = min(stored.levels.get(trial, 0), highest)

    def _list_plan(self) -> tuple[tuple[int, ...], ...]:
        """List the rungs of each bracket; none as long as trials are to show them."""
        if not self.is_sized:
            return ()
        return tuple(tuple(self.keeper.list_rungs(bracket)) for bracket in range(len(self.keeper.brackets)))

    def list_runnable(self) -> list[Any]:
        """List the trials that have begun and may run: those nearest to their end first, then the best.

        One with a next step that may well pass a limit waits until the search ends.
        """
        waiting = [trial for trial in self.brackets if self.needs_steps(trial)]
        runnable = [trial for trial in waiting if not self.keeper.is_last_report(self.numbers[trial])]
        if len(runnable) < len(waiting):
            self.keeper.note_limit()
        return sorted(
            runnable, key=lambda trial: (-self.levels[trial], self._rank_key(trial, self.steps.get(trial, 0)))
        )

    def list_waiting(self) -> list[Any]:
        """List the trials that wait at a rung, with a value."""
        begun = (trial for trial in self.brackets if trial not in self.ended and self.values.get(trial))
        return [trial for trial in begun if not self.needs_steps(trial)]

    def choose_bracket(self) -> int | None:
        """Choose the bracket of the next trial: the emptiest of those in which it ends in time, if there is one."""
        if self.is_full or not self.has_new_trials:
            return None
        work = self._list_work()
        count, planned = len(self.keeper.brackets), self.keeper.brackets
        fills = {
            bracket: self._count_begun(bracket) / planned[bracket % count][0].trials
            for bracket in self.list_open_brackets()
            if self.stages[bracket] == 0
        }
        for bracket in sorted(fills, key=lambda item: (fills[item], item)):
            if fills[bracket] < 1 and self.keeper.can_add_trial(bracket % count, work):
                return bracket
        return None

    def update(self) -> set[Any]:
        """Let trials continue that may; return those which lost, and are to be stopped."""
        losers: set[Any] = set()
        for bracket in self.list_open_brackets():
            if self.has_barriers:
                losers |= self._end_stages(bracket)
            else:
                self._promote(bracket, is_last=False)
        return losers

    def advance(self) -> bool:
        """Continue where no trial runs or may run and no further one fits; return whether the search goes on.

        First no further trials begin, so that the stages can end. Then the brackets are opened again.
        """
        if not self.is_full:
            if self.has_new_trials:
                self.keeper.note_fewer_trials(len(self.brackets))
            self.is_full = True
            return True
        if not self.has_barriers and any(self._promote(bracket, is_last=True) for bracket in self.list_open_brackets()):
            return True
        is_empty = not any(self._count_begun(bracket) for bracket in self.list_open_brackets())
        if is_empty or not self.has_new_trials:
            return False
        self.stages += [0] * len(self.keeper.brackets)
        self.is_full = False
        return self.choose_bracket() is not None

    def count_reached(self) -> list[int]:
        """Count the trials that finished each stage; without barriers, those that have reached each rung."""
        if self.has_barriers:
            return self.stage_trials
        return [len(self._list_reached(0, rung)) for rung in self.list_rungs(0)]

    def rank(self, trials: Iterable[Any], rung: int) -> list[Any]:
        """Rank trials by their value at a rung, best first; nan and inf rank last."""
        return sorted(trials, key=lambda trial: self._rank_key(trial, rung))

    def _rank_key(self, trial: Any, rung: int) -> tuple[bool, float, float, int]:
        values = self.values.get(trial) or {0: math.nan}
        value = values[max((step for step in values if step <= rung), default=min(values))]
        has_diverged = not math.isfinite(value)
        # of equal ones, that which began first
        key = 0.0 if has_diverged else -value if self.is_maximized else value
        return has_diverged, self.violations.get(trial, 0.0), key, self.numbers[trial]

    def _get_target(self, trial: Any) -> int:
        return self.list_rungs(self.brackets[trial])[self.levels[trial]]

    def _count_begun(self, bracket: int) -> int:
        return sum(item == bracket for item in self.brackets.values())

    def _list_reached(self, bracket: int, rung: int) -> list[Any]:
        """List the trials of a bracket that count at a rung."""
        return [
            trial
            for trial, item in self.brackets.items()
            if (item == bracket or not self.has_barriers)
            and trial not in self.failed
            and self.values.get(trial)
            and self.steps.get(trial, 0) >= rung
        ]

    def _list_members(self, bracket: int) -> list[Any]:
        """List the trials of a bracket's current stage."""
        stage = self.stages[bracket]
        return [trial for trial, item in self.brackets.items() if item == bracket and self.levels[trial] == stage]

    def _list_work(self, skipped: Collection[int] = ()) -> list[OpenWork]:
        """List what the trials of the open brackets still run."""
        items = []
        for bracket in self.list_open_brackets():
            stage, members = self.stages[bracket], self._list_members(bracket)
            if bracket in skipped or not members:
                continue
            rung = self.list_rungs(bracket)[stage]
            warm_up = self.keeper.estimate_warm_up_steps()
            steps = tuple(
                max(1, self._count_left(trial, rung)) if self.steps.get(trial) else rung + warm_up
                for trial in members
                if self.needs_steps(trial)
            )
            # what waits at the last rung has nothing left
            items.append(OpenWork(bracket % len(self.keeper.brackets), stage, steps, len(members)))
        return items

    def _count_left(self, trial: Any, rung: int) -> int:
        """Count the steps that a trial still runs to a rung."""
        done = self.steps[trial]
        return self.keeper.count_steps(done, rung) if self.levels[trial] else rung - done

    def _end_stages(self, bracket: int) -> set[Any]:
        """End the stages of a bracket once all trials have reached the rung or ended, and none is still to begin."""
        rungs, losers = self.list_rungs(bracket), set[Any]()
        index = bracket % len(self.keeper.brackets)
        while (stage := self.stages[bracket]) < len(rungs):
            planned, begun = self.keeper.brackets[index][0].trials, self._count_begun(bracket)
            is_left = begun < planned and self.has_new_trials and not self.is_full
            members = self._list_members(bracket)
            if (stage == 0 and (is_left or not begun)) or any(self.needs_steps(trial) for trial in members):
                break
            reached = set(self._list_reached(bracket, rungs[stage])) & set(members)
            # those that a limit has stopped before the rung did not fail
            counted = reached | (self.ended - self.failed) & set(members)
            is_lost = bool(members) and not any(self._has_usable_value(trial, rungs[stage]) for trial in counted)
            if is_lost and self._replace_failed(bracket):
                break
            ranked = self.rank(reached, rungs[stage])
            self.stage_trials.append(len(ranked))
            self.stages[bracket] += 1
            if self.stages[bracket] == len(rungs):
                break
            others = self._list_work(skipped=(bracket,))
            count = self.keeper.count_survivors(index, stage + 1, len(ranked), others) if ranked else 0
            for trial in ranked[:count]:
                self.levels[trial] = stage + 1
            losers |= set(members) - set(ranked) - self.ended
        losers |= self._release_reserve(bracket)
        self.ended |= losers
        return losers

    def _list_reserve(self, bracket: int) -> list[Any]:
        """List the trials that have lost and wait, best first: none of those that continued has reached its rung."""
        rungs, stage = self.list_rungs(bracket), self.stages[bracket]
        waiting = [trial for trial, item in self.brackets.items() if item == bracket and trial not in self.ended]
        return self.rank((trial for trial in waiting if self.levels[trial] < stage), rungs[max(0, stage - 1)])

    def _release_reserve(self, bracket: int) -> set[Any]:
        """Release the trials that have lost, those of the last stage once one that continued has reached its rung."""
        rungs, stage = self.list_rungs(bracket), self.stages[bracket]
        members = self._list_members(bracket)
        has_reached = stage < len(rungs) and any(
            trial in members and self._has_usable_value(trial, rungs[stage])
            for trial in self._list_reached(bracket, rungs[stage])
        )
        kept = stage if has_reached else stage - 1
        return {trial for trial in self._list_reserve(bracket) if self.levels[trial] < kept}

    def _replace_failed(self, bracket: int) -> bool:
        """Continue the best that lost the stage before, as all that continued have failed; return whether any does."""
        reserve, stage = self._list_reserve(bracket), self.stages[bracket]
        if not reserve:
            return False
        index = bracket % len(self.keeper.brackets)
        count = self.keeper.count_survivors(index, stage, len(reserve), self._list_work(skipped=(bracket,)))
        for trial in reserve[:count]:
            self.levels[trial] = stage
        losers = format_count(count, "trial")
        self.keeper.note_once(f"stage {stage + 1}: all trials failed or diverged, {losers} that had lost may continue")
        return True

    def _has_usable_value(self, trial: Any, rung: int) -> bool:
        """Return whether the value of a trial at a rung ranks it: it is finite."""
        has_diverged, *_ = self._rank_key(trial, rung)
        return not has_diverged

    def _promote(self, bracket: int, *, is_last: bool) -> bool:
        """Let the trials continue that are among the best at their rung so far and reach the next one in time.

        Args:
            bracket: The bracket.
            is_last: Whether nothing else may run. The best then continues even where there are fewer than eta, and if
                it is more likely than not in time.

        Returns:
            Whether any continues.
        """
        rungs, has_promoted = self.list_rungs(bracket), False
        for level in reversed(range(len(rungs) - 1)):
            ranked = self.rank(self._list_reached(bracket, rungs[level]), rungs[level])
            count = max(len(ranked) // self.keeper.eta, int(is_last))
            for trial in ranked[:count]:
                if self.levels[trial] != level or trial in self.ended or self.needs_steps(trial):
                    continue
                steps = self.keeper.count_steps(self.steps[trial], rungs[level + 1])
                confidence = EVEN_CHANCE if is_last else None
                if steps <= 0 or self.keeper.can_reach_rung(level + 1, steps, self.numbers[trial], confidence):
                    self.levels[trial], has_promoted = level + 1, True
        return has_promoted


def check_method(method: str) -> None:
    """Check the name of a method.

    Raises:
        UnfoldError: It is unknown.
    """
    if method not in METHODS:
        raise user_error(f"there is no method {method!r}", hint=f"one of {', '.join(METHODS)}")
