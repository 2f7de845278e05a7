"""The posterior over the paces of a job's stages."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import tuning_jobs as jobs
from hypothesis import given, settings
from hypothesis import strategies as st

from unfold_tuning.job.pace_record import PaceRecord, build_features, build_pace_record, list_window_ends
from unfold_tuning.job.profile import LogNormal, Profile
from unfold_tuning.job.schedule import Stage, build_custom_stages, build_hyperband, build_successive_halving
from unfold_tuning.planner.pace_posterior import (
    CREDIT,
    GroupPaces,
    build_pace_posterior,
    build_pace_prior,
    build_recorded_posterior,
    estimate_log_spread,
    list_pace_groups,
)
from unfold_tuning.planner.pace_slopes import fit_pace_slopes
from unfold_tuning.simulator.execution_model import build_execution_model

LADDER = build_successive_halving(27, 4, 36, 3)


def synthetic_record(seed: int, drift: float, trials: int = 64) -> PaceRecord:
    """Return a job with a pace that changes by ``drift``, in logarithms, from the fifth iteration on."""
    rng = np.random.default_rng(seed)
    own = rng.normal(0, 0.3, trials)
    ends = np.array([4, 12, 36])
    paces = own[:, None] + np.array([0.0, drift, drift]) + rng.normal(0, 0.02, (trials, 3))
    return PaceRecord(name=str(seed), ends=ends, seconds=np.exp(paces), scores=rng.random((trials, 3)))


def list_history(drift: float, spread: float = 0.2) -> list[PaceRecord]:
    """Return twelve earlier jobs that drift alike."""
    rng = np.random.default_rng(5)
    return [synthetic_record(100 + number, drift + float(rng.normal(0, spread))) for number in range(12)]


@pytest.mark.parametrize(
    "stages",
    [LADDER, build_hyperband(27, 3), build_hyperband(27, 3, parallel=True), build_custom_stages([(5, 3), (9, 2)])],
)
def test_every_group_comes_from_the_last_one_of_its_bracket(stages: tuple[Stage, ...]) -> None:
    """Groups with earlier iterations continue where another group of their bracket ended."""
    groups = list_pace_groups(stages)
    assert len(groups) == sum(len(stage.groups) for stage in stages)
    for group in groups:
        if group.done:
            assert group.previous is not None
            before = groups[group.previous]
            assert (before.bracket, before.target, before.rung + 1) == (group.bracket, group.done, group.rung)


@pytest.mark.slow
def test_a_learnt_speed_up_is_believed_in_part_and_a_slow_down_entirely() -> None:
    """Means of later groups count with three quarters if negative, in full if positive."""
    quick, slow = (build_pace_prior(LADDER, list_history(drift), 0) for drift in (-0.6, 0.6))
    assert quick.mean[2] == pytest.approx(-0.6 * CREDIT, abs=0.1)
    assert slow.mean[2] == pytest.approx(0.6, abs=0.1)
    assert quick.jobs == 12


def test_jobs_of_successive_halving_are_learnt_from_whatever_the_order_of_their_trials() -> None:
    """Where only five of 27 trials ran beyond the profile's first window, replays are made that have one of these.

    A job that never ran so far is left out.
    """
    halved = []
    for record in list_history(-0.2):
        seconds = record.seconds[:27].copy()
        seconds[5:, 1:] = np.nan
        halved.append(replace(record, seconds=seconds, scores=record.scores[:27]))
    short = PaceRecord(name="short", ends=np.array([4]), seconds=np.ones((27, 1)), scores=np.ones((27, 1)))
    prior = build_pace_prior(LADDER, [*halved[:4], short], 0)
    assert prior.jobs == 4
    assert prior.mean[0] == pytest.approx(-0.2, abs=0.2)


@pytest.mark.parametrize("drift", [-0.9, 0.5])
def test_the_profile_of_this_job_moves_its_posterior(drift: float) -> None:
    """A drift that the profile shows is predicted for later stages, and narrows them, whatever other jobs did."""
    record = synthetic_record(1, drift)
    posterior = build_pace_posterior(LADDER, record, record.features, list_history(-0.2, 0.5), 0)
    paces = posterior.predict(0, posterior.level, has_known_trials=False)
    prior = posterior.prior
    assert paces.mean[1] == pytest.approx(drift, abs=0.25)
    assert paces.covariance[1, 1] < 0.5 * prior.covariance[2, 2]


def test_no_speed_up_is_assumed_without_records() -> None:
    """The default prior has no mean, and extrapolates at most the profile's own speed-up."""
    record = synthetic_record(1, -0.5)
    posterior = build_pace_posterior(LADDER, record, record.features, [], 0)
    paces = posterior.predict(0, posterior.level, has_known_trials=False)
    drift = posterior.observed[0]
    assert posterior.prior.jobs == 0
    assert all(drift - 0.01 <= mean <= 0.01 for mean in paces.mean)
    assert np.sqrt(np.diag(paces.covariance))[2] > 0.26


def test_the_model_predicts_what_it_has_measured() -> None:
    """After a stage the trials that continue keep their own paces, and a change of pace is learnt from them."""
    record = synthetic_record(1, -0.4)
    posterior = build_pace_posterior(LADDER, record, record.features, list_history(-0.4), 0)
    own = record.compute_log_paces(0, 4)[:27]
    posterior = posterior.observe_stage(0, [GroupPaces(last=tuple(own))])
    survivors = record.rank_survivors(np.arange(27), 4, 12, 9)
    later = record.compute_log_paces(4, 12)[survivors]
    earlier = record.compute_log_paces(0, 4)[survivors]
    posterior = posterior.observe_stage(1, [GroupPaces(last=tuple(later), earlier=tuple(earlier))])
    paces = posterior.predict(2, 0.0, has_known_trials=True)
    assert len(paces.mean) == 1
    assert abs(paces.mean[0]) < 0.15
    shifted = posterior.predict(2, 0.0, has_known_trials=False)
    assert shifted.mean[0] == pytest.approx(paces.mean[0] + later.mean())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 30), st.sampled_from([LADDER, build_hyperband(9, 3, parallel=True)]))
def test_paces_of_any_profile_give_finite_times(iters: int, step: int, stages: tuple[Stage, ...]) -> None:
    """Profiles of any length and checkpoint interval give finite, positive trial times in every stage."""
    ends = list(range(step, iters * step + 1, step))
    record = build_pace_record("p", {str(trial): [(float(end), 0.5 + trial) for end in ends] for trial in range(3)})
    posterior = build_pace_posterior(stages, record, record.features, [], 0)
    paces = posterior.predict(0, posterior.level, has_known_trials=False)
    profile = Profile(LogNormal(math.exp(posterior.level)))
    model = build_execution_model(stages, profile, jobs.P3, 50, 0, paces)
    for index in range(len(stages)):
        seconds = model.sample_trial_seconds(index, 1)
        assert np.isfinite(seconds).all()
        assert (seconds > 0).all()


def test_a_record_averages_steps_over_windows() -> None:
    """Steps that straddle windows are averaged, and a trial counts only where it ran."""
    record = build_pace_record("r", {"a": [(2.0, 1.0), (8.0, 3.0)], "b": [(2.0, 1.0)]})
    assert record.ends.tolist() == [1, 2, 3, 4, 6, 8]
    assert record.seconds[0].tolist() == [1, 1, 3, 3, 3, 3]
    assert np.isnan(record.seconds[1, 2:]).all()
    assert np.exp(record.compute_log_paces(0, 4)[0]) == pytest.approx(2.0)
    assert record.rank_survivors(np.array([0, 1]), 2, 8, 2).tolist() == [0]
    assert list_window_ends(30).tolist() == [1, 2, 3, 4, 6, 8, 12, 18, 27, 30]


def test_survivors_are_ranked_by_their_last_score() -> None:
    """Scores of checkpoints that straddle windows rank the trials too: the best continue, not the first ones."""
    ends = (5.0, 10.0, 15.0, 20.0)
    steps = {trial: [(end, 1.0) for end in ends] for trial in "abc"}
    scores = {trial: [(end, quality) for end in ends] for trial, quality in zip("abc", (0.1, 0.9, 0.5), strict=True)}
    record = build_pace_record("r", steps, scores)
    assert record.rank_survivors(np.arange(3), 10, 20, 2).tolist() == [1, 2]


def test_hyper_parameters_correct_the_profile() -> None:
    """Where a hyperparameter determines the pace, slow profiled trials do not make the whole job slow."""
    rng = np.random.default_rng(0)
    configs = [{"width": float(width)} for width in np.exp(rng.uniform(0, 4, 60))]
    names, features = build_features(configs)
    assert names == ("log width",)
    steps = {
        f"{index:03d}": [(4.0, math.exp(0.5 * row[0])), (12.0, math.exp(0.5 * row[0]))]
        for index, row in enumerate(features)
    }
    record = build_pace_record("r", steps, configs={f"{index:03d}": config for index, config in enumerate(configs)})
    slopes = fit_pace_slopes([record], (4, 12))
    assert slopes is not None
    slowest = features[np.argsort(-features[:, 0])[:8]]
    expected = 0.5 * (features.mean() - slowest.mean())
    assert slopes.estimate_shift(slowest, features)[0] == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(("spread", "expected"), [(0.0, 0.65), (0.2, 0.78), (0.45, 1.0), (1.5, 2.2)])
def test_the_spread_of_a_profile_scales_the_default_prior(spread: float, expected: float) -> None:
    """Without earlier jobs, trials that differ more or less than usual change every margin; equal ones leave some."""
    paces = spread * np.array([-1.5, -1, -0.5, 0, 0, 0.5, 1, 1.5])
    seconds = np.exp(np.repeat(paces[:, None], 2, axis=1))
    record = PaceRecord(name="own", ends=np.array([4, 12]), seconds=seconds, scores=np.full((8, 2), np.nan))
    prior = build_pace_posterior(LADDER, record, np.zeros((0, 0)), (), 0).prior
    usual = build_pace_prior(LADDER, (), 0)
    assert np.exp(prior.spread_mean - usual.spread_mean) == pytest.approx(expected, rel=0.05)
    changes = np.diag(prior.covariance) - np.diag(usual.covariance)
    assert (changes >= 0).all() if expected >= 1 else (changes <= 0).all()
    # how paces drift does not depend on the trials
    assert changes[0] == 0


def recorded_run(trials: int, first_s: float = 60.0, later_s: float = 2.0, spread: float = 0.05) -> PaceRecord:
    """Return a run of 27 iterations a trial, of which the first takes longer than the others."""
    rng = np.random.default_rng(3)
    factors = np.exp(rng.normal(0, spread, trials))
    return build_pace_record(
        "run",
        {
            f"{trial:02d}": [(float(end), factor * (first_s if end == 1 else later_s)) for end in range(1, 28)]
            for trial, factor in enumerate(factors)
        },
    )


def test_a_profile_of_unlike_trials_widens_a_learnt_prior() -> None:
    """Trials that spread four times as much as those of every earlier job widen the margin, others change nothing."""
    history = list_history(0.0)
    usual = synthetic_record(1, 0.0, trials=8)
    wide = replace(usual, seconds=np.exp(4 * np.log(usual.seconds)))
    narrow = replace(usual, seconds=np.exp(0.1 * np.log(usual.seconds)))
    posteriors = [build_pace_posterior(LADDER, record, np.zeros((8, 0)), history, 0) for record in (narrow, wide)]
    spreads = [float(np.exp(posterior.prior.spread_mean[0])) for posterior in posteriors]
    assert spreads[0] == pytest.approx(0.3, rel=0.1)
    assert 0.45 < spreads[1] < 0.9
    # the mean of eight such trials is off by their spread over the root of eight
    stds = [math.sqrt(posterior.prior.covariance[1, 1]) for posterior in posteriors]
    assert stds[1] == pytest.approx(math.hypot(stds[0], math.sqrt(spreads[1] ** 2 - spreads[0] ** 2) / math.sqrt(8)))
    # survivors are further off, by the selection of their stage
    assert posteriors[1].prior.covariance[3, 3] - posteriors[0].prior.covariance[3, 3] > (stds[1] - stds[0]) ** 2
    assert posteriors[0].prior.covariance == pytest.approx(build_pace_prior(LADDER, history, 0).covariance)


def test_a_profile_that_drifts_as_no_earlier_job_did_gets_the_default_prior() -> None:
    """What earlier jobs show of later paces is no guide after a warm-up that none had: it promised what no run kept."""
    history = list_history(0.0)
    usual = synthetic_record(1, 0.0, trials=8)
    slow = replace(usual, seconds=usual.seconds * np.where(usual.ends <= 4, 5.0, 1.0))
    posteriors = [build_pace_posterior(LADDER, record, np.zeros((8, 0)), history, 0) for record in (usual, slow)]
    assert [posterior.prior.jobs for posterior in posteriors] == [len(history), 0]
    level, drift = posteriors[1].level, posteriors[1].observed[0]
    assert drift == pytest.approx(-math.log(5), abs=0.2)
    # no stage is expected to be faster than what the profile shows
    assert (posteriors[1].predict(0, level, has_known_trials=False).mean >= drift - 1e-6).all()


def test_a_recorded_run_predicts_each_stage_by_its_own_iterations() -> None:
    """A warm-up counts in the stage with the first iteration and in no other, unlike in the mean of all iterations."""
    stages = build_successive_halving(27, 1, 27, 3)
    posterior = build_recorded_posterior(stages, recorded_run(8), (), 0, 0.1)
    paces = posterior.predict(0, 0.0, has_known_trials=False)
    assert np.exp(paces.mean) == pytest.approx([60.0, 2.0, 2.0, 2.0], rel=0.05)


def test_few_recorded_trials_are_believed_less() -> None:
    """One trial does not show how trials differ: margins fall with their number, and follow the recorded spread."""
    stages = build_successive_halving(27, 1, 27, 3)
    variances, spreads = [], []
    for trials in (1, 3, 30):
        posterior = build_recorded_posterior(stages, recorded_run(trials), (), 0, 0.1)
        paces = posterior.predict(0, 0.0, has_known_trials=False)
        variances.append(float(paces.covariance[0, 0]))
        spreads.append(float(math.exp(paces.spread_mean[0])))
    assert variances == sorted(variances, reverse=True)
    assert spreads == sorted(spreads, reverse=True)
    assert variances[0] > 0.1**2 + 0.4**2
    assert spreads[-1] == pytest.approx(0.05, rel=0.5)


@pytest.mark.parametrize(("eta", "factor"), [(2, 1.0), (3, 1.0), (4, math.log(4) / math.log(3))])
def test_selection_counts_by_the_fraction_that_continues(eta: int, factor: float) -> None:
    """The best quarter may differ more from all trials than the best third; no rung counts for less than that."""
    stages = build_custom_stages([(144, 1), (144 // eta, 2), (144 // eta**2, 3)])
    groups = list_pace_groups(stages)
    assert [group.selection for group in groups] == pytest.approx([0.0, factor, 2 * factor])


@pytest.mark.parametrize(("trials", "bias"), [(3, 0.29), (8, 0.075), (100, 0.005)])
def test_the_spread_of_few_trials_is_corrected(trials: int, bias: float) -> None:
    """The log of the standard deviation of few normal values is too small on average, by a known amount."""
    values = np.random.default_rng(0).normal(0, 1, (20_000, trials))
    logs = np.log(values.std(axis=1, ddof=1))
    assert logs.mean() == pytest.approx(-bias, abs=0.02)
    assert np.mean([estimate_log_spread(row) for row in values[:2000]]) == pytest.approx(0.0, abs=0.02)


def test_a_written_spread_replaces_the_recorded_one() -> None:
    """The spread that the spec gives holds in every stage."""
    stages = build_successive_halving(27, 1, 27, 3)
    posterior = build_recorded_posterior(stages, recorded_run(8), (), 0, 0.1, spread=0.3)
    paces = posterior.predict(0, 0.0, has_known_trials=False)
    assert np.exp(paces.spread_mean) == pytest.approx(0.3)
    assert not paces.spread_std.any()
