"""Successive halving, Hyperband and ASHA on a virtual clock, with learning curves and speeds of many kinds."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from unfold_tuning.deadline import limits
from unfold_tuning.deadline.halving_search import METHODS, HalvingSearch
from unfold_tuning.deadline.limits import LimitKeeper, SteadyClock, parse_limits
from unfold_tuning.job.pace_record import PaceRecord, build_pace_record
from unfold_tuning.job.schedule import build_brackets, build_hyperband


@dataclass(kw_only=True)
class VirtualRun:
    """Runs a search on a clock that jumps from report to report.

    Attributes:
        method: The method.
        deadline_s: The deadline.
        trials: Trials of the search.
        slots: Trials that run at once.
        step_s: Seconds of a trial's step.
        fails: Whether a trial fails after a step.
        every: Steps between reports.
        now: The clock.
        longest_s: The longest time between two reports of a trial.
        reports: Every report: trial and steps.
    """

    method: str
    deadline_s: float = 1000.0
    trials: int = 27
    slots: int = 4
    step_s: Callable[[int, int], float] = lambda _trial, _step: 1.0
    fails: Callable[[int, int], bool] = lambda _trial, _step: False
    every: int = 1
    now: float = 1000.0
    longest_s: float = 0.0
    reports: list[tuple[int, int]] = field(default_factory=list)

    def run(self) -> HalvingSearch:
        """Run the search to its end, or to the deadline."""
        keeper = LimitKeeper(
            limits=parse_limits(self.deadline_s, None, None, 0.95),
            slots=self.slots,
            trials=self.trials,
            min_steps=1,
            max_steps=27,
            eta=3,
            method=self.method,
            wall=lambda: self.now,
        )
        keeper.began = self.now
        search = HalvingSearch(keeper=keeper, is_maximized=True)
        events: list[tuple[float, int, float]] = []
        while not keeper.is_over():
            search.update()
            while (
                len(events) < self.slots and (trial := self._choose(search, {item[1] for item in events})) is not None
            ):
                done = search.steps.get(trial, 0)
                seconds = sum(self.step_s(trial, done + step) for step in range(self.every))
                self.longest_s = max(self.longest_s, seconds)
                heapq.heappush(events, (self.now + seconds, trial, self.now))
            if events:
                self._report(search, *heapq.heappop(events))
            elif not search.advance():
                break
        self.now = max([self.now, *(item[0] for item in events)])
        return search

    def _choose(self, search: HalvingSearch, running: set[int]) -> int | None:
        waiting = [trial for trial in search.list_runnable() if trial not in running]
        if waiting:
            return int(waiting[0])
        bracket = search.choose_bracket()
        if bracket is None:
            return None
        search.begin_trial(len(search.brackets), bracket)
        return len(search.brackets) - 1

    def _report(self, search: HalvingSearch, at: float, trial: int, begun: float) -> None:
        self.now = max(self.now, at)
        steps = search.steps.get(trial, 0) + self.every
        if self.fails(trial, steps):
            search.fail_trial(trial)
            return
        self.reports.append((trial, steps))
        search.record_report(trial, steps, measure_score(trial, steps))
        search.keeper.record_step(search.numbers[trial], steps, self.now - begun)
        if search.has_reached_end(trial):
            search.complete_trial(trial)


def measure_score(trial: int, steps: int) -> float:
    """Compute the score of a trial: curves cross."""
    rng = Random(trial)  # noqa: S311 - curves, not cryptography
    return rng.random() * (1 - rng.uniform(0.3, 0.95) ** steps)


@pytest.mark.parametrize(("max_steps", "eta"), [(27, 3), (81, 3), (16, 2), (52, 3), (1, 3)])
def test_a_whole_hyperband_has_the_brackets_of_its_paper(max_steps: int, eta: int) -> None:
    """With as many trials as one Hyperband has, the brackets are its own; with others, they share them."""
    stages = [stage.groups[0] for stage in build_hyperband(max_steps, eta)]
    trials = sum(group.trials for group in stages if group.done == 0)
    brackets = build_brackets("hyperband", trials, 1, max_steps, eta)
    assert [stage.groups[0] for bracket in brackets for stage in bracket] == stages
    for count in (1, 5, 64):
        shared = build_brackets("hyperband", count, 1, max_steps, eta)
        assert sum(bracket[0].trials for bracket in shared) == count


def test_hyperband_runs_each_bracket_to_its_rungs() -> None:
    """Each bracket begins as many trials as planned, and the planned number reaches each of its rungs."""
    run = VirtualRun(method="hyperband", trials=49)
    search = run.run()
    for index, stages in enumerate(search.keeper.brackets):
        steps = [search.steps[trial] for trial, bracket in search.brackets.items() if bracket == index]
        for stage in stages:
            group = stage.groups[0]
            # a third of the trials, rounded up where it is not whole
            assert sum(item >= group.done + group.iters for item in steps) >= group.trials
        assert len(steps) == stages[0].trials


def test_asha_continues_the_best_third_of_those_so_far() -> None:
    """A trial that passes a rung was among the best third there at some time, and no slot waits for a stage."""
    run = VirtualRun(method="asha")
    search = run.run()
    assert len(search.brackets) == 27
    seen: dict[int, list[tuple[float, int]]] = {}
    allowed: dict[int, set[int]] = {}
    for trial, steps in run.reports:
        for rung in (1, 3, 9):
            if steps == rung:
                scores = seen.setdefault(rung, [])
                scores.append((measure_score(trial, rung), trial))
                scores.sort(reverse=True)
                allowed.setdefault(rung, set()).update(item[1] for item in scores[: max(1, len(scores) // 3)])
            elif steps == rung + 1:
                assert trial in allowed[rung]
    assert max(search.steps.values()) == 27


CASES: dict[str, dict[str, Any]] = {
    "ten times slower late": {"step_s": lambda _, step: 10.0 if step > 2 else 1.0, "deadline_s": 100.0},
    "a slow first step": {"step_s": lambda _, step: 50.0 if step == 0 else 1.0, "deadline_s": 150.0},
    "speeds from 1 to 100": {"step_s": lambda trial, _: 10 ** (trial * 7 % 20 / 10 - 1), "deadline_s": 100.0},
    "one straggler": {"step_s": lambda trial, _: 90.0 if trial == 3 else 1.0, "deadline_s": 100.0},
    "rare reports": {"every": 10, "deadline_s": 120.0},
    "failures": {"fails": lambda trial, step: trial % 3 == step % 3},
    "every trial fails": {"fails": lambda _trial, _step: True},
    "one trial": {"trials": 1},
    "more slots than trials": {"slots": 100, "deadline_s": 20.0},
    "no time": {"deadline_s": 1e-9},
    "no seconds": {"step_s": lambda _trial, _step: 0.0},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_unlike_searches_end_in_time(name: str, method: str) -> None:
    """Whatever its curves and speeds, a search ends one report after its deadline, and no trial is lost."""
    run = VirtualRun(method=method, **CASES[name])
    search = run.run()
    assert run.now - 1000.0 <= run.deadline_s + run.longest_s
    is_over = run.now - 1000.0 > run.deadline_s - run.longest_s
    fails = name in ("failures", "every trial fails")
    # ASHA may stop where nothing would be in time
    assert is_over or fails or method == "asha" or max(search.steps.values()) >= 27
    assert len(run.reports) == len(set(run.reports))


def test_reported_steps_are_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decision looks at the trials many times, but what they reported is evaluated once: searches may be large."""
    evaluated: list[int] = []

    def build(name: str, steps: Mapping[str, Sequence[tuple[float, float]]]) -> PaceRecord:
        evaluated.append(sum(map(len, steps.values())))
        return build_pace_record(name, steps)

    monkeypatch.setattr(limits, "build_pace_record", build)
    run = VirtualRun(method="sha", trials=40)
    run.run()
    assert len(run.reports) >= 100
    assert len(evaluated) == len(set(evaluated))


def test_asha_begins_nothing_that_would_be_late() -> None:
    """Once the pace is known, no trial is promoted to a rung that it reaches after the deadline."""
    run = VirtualRun(method="asha", deadline_s=10.5, trials=27, slots=2)
    search = run.run()
    assert run.now - 1000.0 <= 10.5
    assert max(search.steps.values()) < 9
    assert all(steps in (1, 3) for steps in search.steps.values())


@pytest.mark.parametrize("method", METHODS)
def test_equal_steps_end_before_a_tight_deadline(method: str) -> None:
    """Where all steps take equally long, nothing begins or continues that would pass the deadline."""
    for deadline_s in (6.5, 10.5, 14.5):
        run = VirtualRun(method=method, deadline_s=deadline_s, slots=2)
        run.run()
        assert run.now - 1000.0 <= deadline_s


@pytest.mark.parametrize("method", ["sha", "hyperband"])
def test_a_warm_up_is_no_pace(method: str) -> None:
    """Where first steps take 30 times as long as the others, trials are trimmed so that one runs to the end in time."""
    run = VirtualRun(method=method, deadline_s=150.0, step_s=lambda _, step: 30.0 if step == 0 else 1.0)
    search = run.run()
    assert max(search.steps.values()) == 27
    assert run.now - 1000.0 <= 150.0


def test_the_clock_ignores_changes_of_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour that the wall clock is set back or forward moves no deadline."""
    clock = SteadyClock()
    before = clock()
    monkeypatch.setattr("time.time", lambda: before - 3600.0)
    assert 0 <= clock() - before < 60
    assert math.isclose(SteadyClock()() - before, -3600.0, abs_tol=60.0)


@pytest.mark.parametrize(("budget", "reason"), [("$1", "more would exceed the budget"), ("$9", "more would be late")])
def test_a_note_names_the_limit_that_leaves_room_for_fewer_trials(budget: str, reason: str) -> None:
    """A dollar pays four workers for a quarter of the hour to the deadline; nine pay for more than all of it."""
    keeper = LimitKeeper(
        limits=parse_limits("1 h", budget, 1.0, 0.95),
        slots=4,
        trials=9,
        min_steps=1,
        max_steps=27,
        eta=3,
        method="sha",
        wall=lambda: 1000.0,
    )
    keeper.began = 1000.0
    keeper.note_fewer_trials(4)
    assert keeper.notes == [f"stage 1: 4 of 9 trials, {reason}"]
