"""Planning again with what is known of each trial."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import jobs

from unfold_tuning.cluster.local import LocalCluster
from unfold_tuning.cluster.provider import own
from unfold_tuning.executor.executor import Executor, Task
from unfold_tuning.job.allocation import Deal, at, ladder
from unfold_tuning.job.schedule import custom
from unfold_tuning.planner.planner import offer
from unfold_tuning.planner.replan import Belief, expected, leftover, paces_of, plan_again, regrown
from unfold_tuning.schema.models import Trainable
from unfold_tuning.simulator.execution_model import Paces, model
from unfold_tuning.simulator.plan_cost import score
from unfold_tuning.trial.ledger import opened
from unfold_tuning.trial.trainable import Work
from unfold_tuning.trial.worker import Job


@given(st.lists(st.floats(0.2, 5.0), min_size=1, max_size=8), st.integers(1, 50), st.floats(0.0, 1.0))
def test_a_pace_lies_between_what_was_seen_and_what_is_believed(ratios: list[float], iters: int, spread: float) -> None:
    """A trial's pace is drawn from its own ratio towards the mean, less so the more it has run."""
    profile = replace(jobs.noisy("J1"), trial_cv=spread)
    few, many = (paces_of(ratios, count, profile, Belief(0.0, 0.1)) for count in (iters, 10 * iters))
    for ratio, short, long in zip(ratios, few.factors, many.factors, strict=True):
        assert min(1.0, ratio) - 1e-9 <= short <= max(1.0, ratio) + 1e-9
        assert abs(np.log(long / ratio)) <= abs(np.log(short / ratio)) + 1e-9
    assert many.doubt <= few.doubt + 1e-12


def test_known_paces_are_the_times_of_the_stage() -> None:
    """Without other spread the next stage takes what its slowest known trial takes; fresh brackets stay unknown."""
    profile = replace(jobs.still("J1"), trial_cv=0.5)
    stages = custom([(4, 1), (2, 3), (4, 1)])
    rest = model(stages, profile, jobs.P3, 50, 0).rest(1, 2).paced(Paces((0.5, 2.0)))
    deal = at(ladder(stages[1], profile, jobs.P3), 2)
    gain = profile.gain(deal.gang, jobs.P3.accelerators)
    assert rest.seconds(0, deal) == pytest.approx(3 * 40.0 * 2.0 / gain + 10.0)
    assert rest.seconds(1, at(ladder(stages[2], profile, jobs.P3), 2)).std() > 0


def test_survivors_are_some_of_those_whose_pace_is_known() -> None:
    """In later stages each sampled run draws its survivors among the known trials, the later ones among the earlier."""
    paces = Paces(tuple(float(k) for k in range(1, 10)))
    three, one = paces.drawn(400, 3), paces.drawn(400, 1)
    assert all(len(set(row)) == 3 for row in three.tolist())
    assert (three == one).any(axis=1).all()
    assert three.mean() == pytest.approx(5.0, abs=0.4)


def test_what_is_left_of_a_stage_is_what_its_trials_have_not_run() -> None:
    """Each open trial counts with the iterations to its target; the deal keeps the accelerators of those that run."""
    here = [Job(1, {}, 3, 10, 1, 2, 0, Path()), Job(2, {}, 0, 10, 1, 2, 0, Path())]
    assert leftover(here).lengths() == [10, 7]
    assert regrown(Deal(1, 2, 2), Deal(3, 4, 3), 4) == Deal(3, 2, 6)
    assert regrown(Deal(2, 8, 1), Deal(1, 4, 1), 4) == Deal(2, 8, 1)


def test_knowing_that_the_survivors_are_quick_is_cheaper() -> None:
    """With survivors known to be quick the rest is promised for less than with the spread of all trials."""
    stages = custom([(32, 1), (10, 4), (3, 12)])
    profile = replace(jobs.noisy("J1"), trial_cv=0.8)
    rest = model(stages, profile, jobs.P3, 500, 0).rest(1, 8)
    known = rest.paced(Paces((0.4,) * 10, 0.05))
    plan = offer(rest, 0.95).scores[0].plan
    left = float(np.quantile(score(rest, plan).seconds, 0.96))
    blind, seeing = plan_again(rest, plan, left, 0.95), plan_again(known, plan, left, 0.95)
    assert score(known, seeing.plan).cost < score(known, blind.plan).cost


@pytest.mark.parametrize("workers", [0.0, 0.3])
def test_a_run_as_fast_as_its_profile_is_seen_to_be(workers: float) -> None:
    """What trials are expected to take is the mean of their sampled times, the spread of their workers included."""
    profile = replace(jobs.still("J1"), worker_cv=workers)
    drawn = model(custom([(4, 5)]), profile, jobs.P3, 4000, 0)
    for gang in profile.fitting(jobs.P3.accelerators):
        assert drawn.trials(0, gang).mean() == pytest.approx(5 * expected(profile, gang, jobs.P3), rel=0.01)


def test_a_slow_trial_does_not_make_the_others_slow(tmp_path: Path) -> None:
    """A trial counts once in what is believed of the profile, however many checkpoints it has written."""
    profile = replace(jobs.noisy("J1", error=0.1), trial_cv=1.0)
    stages = custom([(16, 1), (1, 50), (16, 1)])
    task = Task(stages, (), jobs.P3, profile, Trainable(function="a:b"), tmp_path, 0, 1)
    with opened(tmp_path / "ledger.sqlite", jobs.P3, "a") as ledger:
        ledger.trial_starts(0, [{}] * 16)
        for trial, slow in enumerate([0.0] * 15 + [1.6]):
            for iters in range(1, 52 if slow else 2):
                ledger.step(trial + 1, iters, 0.5, 40.0 * math.exp(slow - 0.36), 1)
        found = Executor(task, ledger, LocalCluster(Work(task.trainable), 4, own(ledger, 1.0))).belief
    assert abs(found.mu) < 0.05
    assert found.sigma > 0.08
