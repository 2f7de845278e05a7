"""Slow-downs of all trials in the middle of a run: found in the order of the checkpoints, and planned for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig
from unfold_tuning.executor.replanning import Replanner
from unfold_tuning.job.allocation import Allocation
from unfold_tuning.job.problem import TrainableConfig
from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import build_custom_stages
from unfold_tuning.job.search_space import Categorical
from unfold_tuning.planner.pace_posterior import PacePosterior, build_pace_prior
from unfold_tuning.planner.slowdown import Slowdown, find_slowdown
from unfold_tuning.trial.ledger import Ledger, open_ledger
from unfold_tuning.trial.worker import TrialJob
from unfoldkit.catalog.billing import Billing

LEVELS = (0.0, 0.5, -0.4, 0.2)
"""Log seconds of an iteration of four trials."""


def find(pace: Callable[[int, int], float], rounds: int, noise: float = 0.05) -> Slowdown | None:
    """Find the slow-down of four trials that take turns; ``pace`` adds to the log pace of a trial in a round."""
    rng = np.random.default_rng(3)
    rows = [(trial, LEVELS[trial] + pace(trial, n)) for n in range(rounds) for trial in range(len(LEVELS))]
    paces = np.array([value for _, value in rows]) + rng.normal(0.0, noise, len(rows))
    return find_slowdown(paces, np.array([trial for trial, _ in rows]))


def test_a_lasting_slow_down_of_all_trials_is_found() -> None:
    """The onset is the first slow checkpoint, and the factor that of the trials against themselves."""
    slowdown = find(lambda _, n: math.log(4.0) * (n >= 6), 10)
    assert slowdown is not None
    assert slowdown.onset == 24
    assert slowdown.factor == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize(
    ("pace", "rounds", "noise"),
    [
        (lambda _, __: 0.0, 40, 0.5),
        # one that ended, one trial of four, less than is worth a plan, too few checkpoints
        (lambda _, n: math.log(4.0) * (4 <= n < 6), 10, 0.05),
        (lambda trial, n: math.log(4.0) * (n >= 6 and trial == 2), 10, 0.05),
        (lambda _, n: math.log(1.3) * (n >= 6), 10, 0.05),
        (lambda trial, n: math.log(4.0) * (n >= 6 and trial < 2), 7, 0.05),
    ],
)
def test_what_is_no_lasting_slow_down_is_none(pace: Callable[[int, int], float], rounds: int, noise: float) -> None:
    """Noise, a passing slow-down and slow trials change no plan."""
    assert find(pace, rounds, noise) is None


def test_trials_that_begin_later_may_be_slow_of_their_own() -> None:
    """A stage in waves ends with slower trials: none of them has changed."""
    trials = np.repeat(np.arange(12), 3)
    assert find_slowdown(np.where(trials < 6, 0.0, 1.4), trials) is None


MACHINE = Machine("m", 1, 3600.0, max_instances=8, billing=Billing(0.0, 0.0))
STAGES = build_custom_stages([(8, 10), (2, 10)])
PLAN = (Allocation(2, 1, 2), Allocation(1, 1, 1))


def build_config(folder: Path) -> ExecutionConfig:
    """Build the configuration of a run of 10 s an iteration, 300 s after its begin."""
    return ExecutionConfig(
        stages=STAGES,
        plan=PLAN,
        machine=MACHINE,
        profile=Profile(LogNormal(10.0), startup=LogNormal(20.0), sync=LogNormal(0.0), trial_cv=0.3, error_cv=0.1),
        trainable=TrainableConfig(function="sleeper:train", space={"ceiling": Categorical((0.5,))}),
        folder=folder,
        seed=0,
        checkpoint_iters=1,
        deadline_s=1900.0,
        paces=PacePosterior(prior=build_pace_prior(STAGES, [], 0), level=math.log(10.0)),
        wall=lambda: 1300.0,
    )


def record(ledger: Ledger, factor: float) -> None:
    """Record two trials that take turns, all iterations from the seventh on slower by a factor."""
    ledger.record_trials(0, [{"ceiling": 0.5}] * 8)
    ledger.record_fact("deal-0", [2, 1, 2])
    for name in ("n0", "n1"):
        ledger.record_node_start(name, 3600.0, 1000.0)
    for n in range(1, 9):
        for trial in (1, 2):
            ledger.record_checkpoint(trial, n, 0.5, (10.0 + 0.1 * (n % 3)) * (factor if n > 6 else 1.0), 1)


@pytest.mark.parametrize("has_paces", [True, False])
def test_a_stage_grows_when_its_trials_become_slower(tmp_path: Path, has_paces: bool) -> None:
    """The rest of the stage is planned at the new pace, also what was measured before; without a change it is kept."""
    config = build_config(tmp_path)
    config = config if has_paces else replace(config, paces=None)
    job = TrialJob(trial=1, config={}, done=8, target=10, checkpoint_iters=1, workers=1, seed=0, folder=tmp_path)
    jobs = [job, replace(job, trial=2), *(replace(job, trial=n, done=0) for n in range(3, 9))]
    for factor, is_changed in ((1.0, False), (4.0, True)):
        with open_ledger(tmp_path / f"{factor}.sqlite", MACHINE, "a") as ledger:
            record(ledger, factor)
            replanner = Replanner(config, ledger)
            plan = replanner.replan_after_slowdown(0, PLAN, jobs, 1000.0)
            assert (plan != PLAN) == is_changed
            expected = math.log(4.0) if is_changed else 0.0
            assert math.log(replanner.estimate_time_factor(0)) == pytest.approx(expected, abs=0.3)
            if is_changed:
                assert plan[0].instances > PLAN[0].instances
                assert "in stage 1, iterations take 4.0 times as long as before: " in replanner.notes[0]
                assert replanner.store.load_allocation(0) == plan[0]
                assert replanner.replan_after_slowdown(0, plan, jobs, 1000.0) == plan, "nothing new was reported"
