"""ASHA on fixed clusters: promotions, the order of trials, bills, and Ray's rule."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tuning_jobs import JOBS, P3, deterministic_profile, noisy_profile

from unfold_tuning.job.schedule import build_hyperband, build_random_search, build_successive_halving
from unfold_tuning.simulator.asha import _is_promoted, is_one_ladder, run_asha, simulate_asha
from unfold_tuning.simulator.execution_model import build_execution_model


def test_promotions_follow_the_order_of_scores() -> None:
    """Scores that rise let every trial run to the end; scores that fall let only the first one do so."""
    seconds = np.array([[1.0] * 9, [2.0] * 9, [6.0] * 9])
    rising = run_asha(seconds, np.arange(9.0), 10.0, (1, 1), 3)
    assert rising.reached == (3,) * 9
    assert rising.ended_s == 10 + 9 * 9
    falling = run_asha(seconds, -np.arange(9.0), 10.0, (1, 1), 3)
    assert falling.reached == (3, *(1,) * 8)
    assert falling.ended_s == falling.busy_s + 10 == 10 + 9 + 8


def test_nodes_without_trials_are_released() -> None:
    """A node's last trial ends when its lanes have run out of trials, and every second of work is on some lane."""
    seconds = np.array([[1.0] * 4, [100.0] * 4])
    run = run_asha(seconds, np.array([3.0, 2.0, 1.0, 0.0]), 0.0, (2, 2), 2)
    assert run.node_ends_s == (101.0, 1.0)
    assert run.busy_s == 104.0


def test_more_nodes_are_faster_and_bills_count_idle_time() -> None:
    """Without randomness, a larger cluster ends earlier; the bill is at least that of the busy accelerators."""
    stages, _, _ = JOBS["J3"]
    model = build_execution_model(stages, deterministic_profile("J3"), P3, 100, 1)
    sizes = simulate_asha(model, 1)
    assert [runs.instances for runs in sizes] == [1, 2, 4, 8, 16, 21]
    means = [float(runs.seconds.mean()) for runs in sizes]
    assert means == sorted(means, reverse=True)
    for runs in sizes:
        busy_usd = runs.trial_iterations * 30.0 / 4 * P3.usd_per_second
        assert (runs.cost_usd >= busy_usd).all()
        # the first of each rung always continues, so that more iterations run than with barriers
        assert runs.trial_iterations.mean() > sum(stage.trial_iterations for stage in stages)


def test_equal_seeds_give_equal_runs() -> None:
    """The draws are those of the seed."""
    model = build_execution_model(JOBS["J1"][0], noisy_profile("J1"), P3, 100, 3)
    first, second = simulate_asha(model, 5), simulate_asha(model, 5)
    assert all((one.cost_usd == other.cost_usd).all() for one, other in zip(first, second, strict=True))


def test_only_one_ladder_has_a_search_without_barriers() -> None:
    """Hyperband and random search are not compared."""
    assert is_one_ladder(build_successive_halving(9, 1, 9, 3))
    assert not is_one_ladder(build_hyperband(27, 3))
    assert not is_one_ladder(build_random_search(9, 3))


@pytest.mark.ray
def test_promotions_are_those_of_ray() -> None:
    """The rule agrees with Ray's own bracket on random scores."""
    bracket = pytest.importorskip("ray.tune.schedulers.async_hyperband")._Bracket
    rng = np.random.default_rng(2)
    for eta in (2, 3, 4):
        theirs, seen = bracket(1, 1, eta, 0), []
        for trial, score in enumerate(rng.random(200)):
            stops = theirs.on_result(SimpleNamespace(trial_id=str(trial)), 1, float(score)) == "STOP"
            assert _is_promoted(sorted(seen), float(score), eta) != stops
            seen.append(float(score))
