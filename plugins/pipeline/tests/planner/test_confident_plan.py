"""A plan with a confidence holds on fresh samples; without one, the share to expect is stated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from plugins.pipeline.tests.helpers import ignore_progress
from unfold_pipeline._types import FloatArray
from unfold_pipeline.estimator.estimator import Estimator
from unfold_pipeline.estimator.slo import build_slo_checker
from unfold_pipeline.estimator.slo_on_fresh_samples import bound_share, count_draws, count_required
from unfold_pipeline.planner.confident_plan import ConfidentPlan, find_confident_plan
from unfold_pipeline.planner.planner import NoPlan, find_plan
from unfold_pipeline.problem.build import build_problem
from unfold_pipeline.problem.problem import Problem
from unfold_pipeline.problem.sample import (
    bound_fresh_share,
    count_rare_bursts,
    draw_fresh_arrivals,
    draw_sample,
    measure_block_variance,
    resample_block_rows,
)
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.verbs.plan import plan
from unfoldkit.api import Run, RunDir, Verdict
from unfoldkit.arrivals import processes
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

SPEC = """
version: 1
kind: pipeline
name: two
slo: {p99: 300 ms}
arrivals: {process: gamma, rate: 60/s, cv: 2, duration: 30 s}
hardware: {cpu: {price: $0.05/h}}
stages:
  first: {latency: {cpu: {1: 10 ms, 8: 66 ms}}}
  second: {after: {first: 50%}, latency: {cpu: {1: 30 ms, 8: 120 ms}}}
"""
BURSTS = """
version: 1
kind: pipeline
name: bursts
slo: {p99: 1500 ms}
arrivals: {trace: t.npz}
hardware: {cpu: {price: $0.05/h}}
stages: {only: {latency: {cpu: {1: 400 ms, 2: 600 ms}}}}
"""
WANDERING = BURSTS.replace("1500 ms", "1500 ms, confidence: 90%")
FRESH = 40


def problem_of(text: str, folder: Path, seed: int = 0) -> Problem:
    """The problem of a spec."""
    spec = validate(PipelineSpec, parse(text, "two.yaml"))
    return build_problem(spec, Run(RunDir(folder / "run"), LocalEngine(1), base=folder, seed=seed))


def solve(problem: Problem) -> ConfidentPlan:
    """The plan of a problem."""
    checker = build_slo_checker(problem.pipeline, problem.samples, problem.slo_s)
    result = find_confident_plan(checker, problem, ignore_progress)
    assert isinstance(result, ConfidentPlan)
    return result


def kept_share(problem: Problem, result: ConfidentPlan) -> float:
    """The share of samples that the planner has not seen on which its plan meets the SLO."""
    samples = [problem.samplers[0](np.random.default_rng([99, draw])) for draw in range(FRESH)]
    tails = [Estimator(problem.pipeline, sample).tail_latency(result.solution.plan) for sample in samples]
    return float(np.mean([tail <= problem.slo_s for tail in tails]))


@pytest.mark.parametrize("seed", range(3))
def test_confident_plan_holds_on_fresh_samples(tmp_path: Path, seed: int) -> None:
    """With 90 %, the plan meets the SLO on at least 85 % of samples that the planner has not seen."""
    sure = problem_of(SPEC.replace("300 ms", "300 ms, confidence: 90%"), tmp_path, seed)
    result = solve(sure)
    assert result.is_reached
    assert kept_share(sure, result) >= 0.85
    assert result.solution.hourly_cost >= result.base_cost


def test_expected_share_is_that_of_fresh_samples(tmp_path: Path) -> None:
    """Without a confidence, the stated share is that which fresh samples show, within its noise."""
    shares = []
    for seed in range(6):
        problem = problem_of(SPEC, tmp_path, seed)
        result = solve(problem)
        assert result.share is not None
        shares.append((result.share.share, kept_share(problem, result)))
    stated, observed = np.array(shares).T
    assert np.abs(stated - observed).max() < 0.35
    assert abs(stated.mean() - observed.mean()) < 0.12


def test_trace_is_resampled_in_blocks(tmp_path: Path) -> None:
    """A trace keeps span, rate and burstiness; its plan has a share, and a confidence is met."""
    times = processes.gamma_arrivals(60.0, 40.0, np.random.default_rng(5), scv=4.0)
    fresh = [resample_block_rows(times - times[0], np.random.default_rng(seed))[1] for seed in range(20)]
    spread = [float(np.diff(item).std() / np.diff(item).mean()) for item in fresh]
    assert np.mean([item.size for item in fresh]) == pytest.approx(times.size, rel=0.05)
    assert np.mean(spread) == pytest.approx(2.0, rel=0.25)
    assert max(float(item[-1]) for item in fresh) <= float(times[-1] - times[0])
    np.savez(tmp_path / "t.npz", arrival_s=times)
    text = SPEC.replace("{process: gamma, rate: 60/s, cv: 2, duration: 30 s}", "{trace: t.npz}")
    result = solve(problem_of(text.replace("300 ms", "300 ms, confidence: 80%"), tmp_path))
    assert result.is_reached
    assert result.share is not None
    assert result.share.lower_bound >= 0.8


def test_queries_of_a_trace_vary_somewhat_more_than_in_two_draws() -> None:
    """The trace is a draw too: counts spread by the root of two more than those of resamples, and by the smoothing."""
    ratios = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        times = np.sort(np.repeat(rng.uniform(0.0, 1800.0, 540), rng.geometric(1 / 8, 540)) + rng.uniform(0.0, 0.3))
        times -= times[0]
        draws = [np.random.default_rng([1, draw]) for draw in range(100)]
        fresh = np.std([draw_fresh_arrivals(times, draw).size for draw in draws])
        ratios.append(fresh / np.std([resample_block_rows(times, draw)[1].size for draw in draws]))
    assert 0.95 < np.mean(ratios) / math.sqrt(2) < 1.2


def draw_batches(rng: np.random.Generator) -> FloatArray:
    """Batches of twelve queries on average, at random moments of two minutes."""
    sizes = rng.geometric(1 / 12, rng.poisson(200))
    starts = np.repeat(rng.uniform(0.0, 120.0, sizes.size), sizes)
    times: FloatArray = np.sort(starts + rng.uniform(0.0, 0.02, starts.size))
    times -= times[0]
    return times


def test_expected_share_of_a_trace_is_that_of_its_traffic(tmp_path: Path) -> None:
    """Plans for short traces of bursts: the mean share that is stated is that of other draws of the same traffic."""
    stated: list[bool] = []
    observed: list[bool] = []
    for seed in range(8):
        np.savez(tmp_path / "t.npz", arrival_s=draw_batches(np.random.default_rng([7, seed])))
        problem = problem_of(BURSTS, tmp_path, seed)
        checker = build_slo_checker(problem.pipeline, problem.samples, problem.slo_s)
        solution = find_plan(checker, problem.budget, ignore_progress)
        assert not isinstance(solution, NoPlan)
        for draw in range(20):
            rng = np.random.default_rng([3, seed, draw])
            for shares, sample in (
                (stated, problem.samplers[0](rng)),
                (observed, draw_sample(problem.pipeline, draw_batches(rng), rng)),
            ):
                tail_s = Estimator(problem.pipeline, sample).tail_latency(solution.plan)
                shares.append(tail_s <= problem.slo_s)
    assert abs(np.mean(stated) - np.mean(observed)) < 0.1


def draw_wandering(rng: np.random.Generator) -> FloatArray:
    """Queries of five minutes at 20/s, where the logarithm of the rate is an Ornstein-Uhlenbeck process of 15 s."""
    kept = math.exp(-1 / 15)
    shocks = 0.4 * rng.standard_normal(300) * np.array([1.0, *[math.sqrt(1 - kept**2)] * 299])
    logs = np.array(list(itertools.accumulate(shocks, lambda log, shock: kept * log + shock)))
    counts = rng.poisson(20 * np.exp(logs - 0.08))
    times: FloatArray = np.sort(np.repeat(np.arange(300.0), counts) + rng.random(counts.sum()))
    times -= times[0]
    return times


def draw_switching(rng: np.random.Generator) -> FloatArray:
    """Queries of five minutes at 8/s or 44/s, for 10 s each on average."""
    ends = np.cumsum(rng.exponential(10.0, 120))
    rates = np.where(np.searchsorted(ends, np.arange(300.0)) % 2, 44, 8)
    counts = rng.poisson(rates)
    times: FloatArray = np.sort(np.repeat(np.arange(300.0), counts) + rng.random(counts.sum()))
    times -= times[0]
    return times


def test_plan_for_a_wandering_rate_holds_on_fresh_traffic(tmp_path: Path) -> None:
    """With 90 %, plans for traces of a rate that wanders meet the SLO on at least 85 % of other draws of it."""
    shares = []
    for seed in range(4):
        np.savez(tmp_path / "t.npz", arrival_s=draw_wandering(np.random.default_rng([7, seed])))
        problem = problem_of(WANDERING, tmp_path, seed)
        plan = solve(problem).solution.plan
        for draw in range(15):
            rng = np.random.default_rng([3, seed, draw])
            sample = draw_sample(problem.pipeline, draw_wandering(rng), rng)
            shares.append(Estimator(problem.pipeline, sample).tail_latency(plan) <= problem.slo_s)
    assert np.mean(shares) >= 0.85


@pytest.mark.parametrize(("confidence", "verdict"), [("90%", Verdict.YES), ("97%", Verdict.NO)])
def test_wandering_rate_supports_no_share_above_its_stretches(
    tmp_path: Path, confidence: str, verdict: Verdict
) -> None:
    """A trace of 18 blocks of a rate that wanders supports 18 of 19: never all, and no confidence above."""
    times = draw_wandering(np.random.default_rng([7, 2]))
    np.savez(tmp_path / "t.npz", arrival_s=times)
    text = WANDERING.replace("90%", confidence)
    report = plan(validate(PipelineSpec, parse(text, "t")), Run(RunDir(tmp_path / "r"), LocalEngine(1), base=tmp_path))
    assert report.verdict is verdict
    assert report.metrics["fresh_share"].value == bound_fresh_share(times) < 0.96
    assert "on 100 %" not in report.headline
    assert any("of this length" in text for label, text in report.lines if label == "caution")


def draw_spike(rng: np.random.Generator) -> FloatArray:
    """Queries of five minutes at 20/s, and at 60/s for 15 s."""
    return np.sort(np.concatenate([rng.uniform(0.0, 300.0, 6000), rng.uniform(150.0, 165.0, 600)]))


@pytest.mark.parametrize("draw", [draw_switching, draw_spike])
def test_known_peaks_are_scaled_less_than_a_rate_that_wanders(draw: Callable[..., FloatArray]) -> None:
    """Traffic that switches on and off shows its peak rate, and a single spike is no random variation."""
    rngs = [np.random.default_rng([5, seed]) for seed in range(8)]
    known = np.median([measure_block_variance(draw(rng)) for rng in rngs])
    wandering = np.median([measure_block_variance(draw_wandering(rng)) for rng in rngs])
    assert known < 0.5 * wandering


def draw_rare_bursts(rng: np.random.Generator, bursts: int) -> FloatArray:
    """Queries of an hour at 3/s, and bursts of random height that last half a minute or so."""
    sizes = rng.lognormal(math.log(200), 0.5, bursts).astype(int)
    starts = 3600 / bursts * (np.arange(bursts) + rng.uniform(0.2, 0.8, bursts))
    parts = [start + rng.uniform(0, rng.uniform(15, 45), size) for start, size in zip(starts, sizes, strict=True)]
    times: FloatArray = np.sort(np.concatenate([rng.uniform(0.0, 3600.0, 10_800), *parts]))
    times -= times[0]
    return times


@pytest.mark.parametrize(("bursts", "confidence", "verdict"), [(2, "90%", Verdict.NO), (2, "60%", Verdict.YES)])
def test_rare_bursts_support_no_share_above_their_number(
    tmp_path: Path, bursts: int, confidence: str, verdict: Verdict
) -> None:
    """A trace with two bursts supports two of three fresh samples: a third burst is the largest as often as each."""
    np.savez(tmp_path / "t.npz", arrival_s=draw_rare_bursts(np.random.default_rng(4), bursts))
    text = BURSTS.replace("1500 ms", f"1500 ms, confidence: {confidence}")
    report = plan(validate(PipelineSpec, parse(text, "t")), Run(RunDir(tmp_path / "r"), LocalEngine(1), base=tmp_path))
    assert report.verdict is verdict
    assert report.metrics["fresh_share"].value == pytest.approx(bursts / (bursts + 1))
    cautions = [text for label, text in report.lines if label == "caution"]
    assert any(f"{bursts} bursts far above its usual rate" in text for text in cautions)
    assert "fresh traffic may keep it less often" in report.headline


@pytest.mark.parametrize("bursts", [1, 4, 8, 12])
def test_rare_bursts_are_counted(bursts: int) -> None:
    """The bursts of random size and length are found; one may vanish in the noise."""
    counts = [count_rare_bursts(draw_rare_bursts(np.random.default_rng([2, seed]), bursts)) for seed in range(8)]
    assert np.median(counts) == bursts
    assert max(counts) == bursts


def draw_batch_sizes(rng: np.random.Generator) -> FloatArray:
    """Batches of an hour with sizes of Pareto's distribution, up to some hundreds."""
    sizes = np.minimum(400, 1 + rng.pareto(1.6, 5400)).astype(int)
    return np.sort(np.repeat(rng.uniform(0.0, 3600.0, sizes.size), sizes) + rng.uniform(0.0, 0.5, sizes.sum()))


def draw_day(rng: np.random.Generator) -> FloatArray:
    """A day in an hour, with a job at night that stays below the rate of the afternoon."""
    day = 3600.0 * rng.beta(4.0, 4.0, 15_000)
    return np.sort(np.concatenate([day, rng.uniform(300.0, 340.0, 80), rng.uniform(0.0, 3600.0, 1000)]))


def draw_tiny_burst(rng: np.random.Generator) -> FloatArray:
    """Many queries, and a burst that holds a thousandth of them."""
    return np.sort(np.concatenate([rng.uniform(0.0, 3600.0, 400_000), rng.uniform(900.0, 901.5, 400)]))


@pytest.mark.parametrize(
    "draw", [draw_batches, draw_wandering, draw_switching, draw_batch_sizes, draw_day, draw_tiny_burst]
)
def test_usual_traffic_has_no_rare_bursts(draw: Callable[[np.random.Generator], FloatArray]) -> None:
    """Noise, batches of all sizes, switching, a job at night and a burst too small for p99 are no rare bursts."""
    for seed in range(8):
        times = draw(np.random.default_rng([6, seed]))
        assert count_rare_bursts(times - times[0]) == 0


@pytest.mark.parametrize(("kind", "word"), [("steady", ""), ("drifting", "long memory"), ("heavy", "heavy tail")])
def test_traces_that_show_too_little_are_reported(tmp_path: Path, kind: str, word: str) -> None:
    """A caution names the drift or the heavy tail of a trace, and the headline of a confident plan refers to it."""
    rng = np.random.default_rng(2)
    times = np.sort(rng.uniform(0.0, 60.0, 1200))
    if kind == "drifting":
        times = 60.0 * np.sqrt(times / 60.0)
    if kind == "heavy":
        times = np.sort(np.repeat(rng.uniform(0.0, 60.0, 400), np.minimum(1 + rng.pareto(1.2, 400), 300).astype(int)))
    np.savez(tmp_path / "t.npz", arrival_s=times - times[0])
    text = BURSTS.replace("1500 ms", "1500 ms, confidence: 50%")
    report = plan(validate(PipelineSpec, parse(text, "t")), Run(RunDir(tmp_path / "r"), LocalEngine(1), base=tmp_path))
    assert word in dict(report.lines).get("caution", "")
    assert ("caution" in dict(report.lines)) == ("fresh traffic may" in report.headline) == bool(word)


@pytest.mark.slow
def test_quota_that_allows_no_confident_plan_is_a_no(tmp_path: Path) -> None:
    """If the quota leaves no plan for enough samples, the answer is no, with the share that is met."""
    base = solve(problem_of(SPEC, tmp_path))
    used = sum(config.replicas for config in base.solution.plan)
    text = SPEC.replace("$0.05/h", f"$0.05/h, quota: {used}").replace("300 ms", "300 ms, confidence: 99%")
    spec = validate(PipelineSpec, parse(text, "two.yaml"))
    report = plan(spec, Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path))
    assert report.verdict is Verdict.NO
    assert "only" in dict(report.lines)["fresh samples"]
    plain = plan(validate(PipelineSpec, parse(SPEC, "t")), Run(RunDir(tmp_path / "b"), LocalEngine(1), base=tmp_path))
    assert "on this sample, but only on" in plain.headline


def test_bound_is_that_of_clopper_and_pearson() -> None:
    """If all draws are kept, the bound is a root of the uncertainty; the required number is the least that shows it."""
    assert bound_share(22, 22) == pytest.approx(0.1 ** (1 / 22), abs=1e-9)
    assert bound_share(0, 22) == 0.0
    draws = count_draws(0.9)
    required = count_required(0.9, draws)
    assert bound_share(required, draws) >= 0.9 > bound_share(required - 1, draws)
    assert count_required(0.99, 24) == 24
    # a share of exactly the bound is observed so often or more in one of ten cases
    share = bound_share(50, draws)
    tail = sum(math.comb(draws, k) * share**k * (1 - share) ** (draws - k) for k in range(50, draws + 1))
    assert tail == pytest.approx(0.1, abs=1e-6)
