"""Fit scale and overhead of step times to benchmark results of the engine, by simulating each run.

An overhead stays as models and limits change, a factor grows with the step, and one load cannot separate them: with
one run, each is fitted alone, and both are part of the interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import optimize

from unfold_pipeline.engine.simulation.cluster import simulate
from unfold_pipeline.engine.simulation.engine_inputs import EngineLimits, StepTimes
from unfold_pipeline.engine.simulation.workload import build_requests
from unfold_pipeline.engine.step_times.benchmark_runs import BenchmarkRun

TTFT_WEIGHT = 0.25
LOADS_DIFFER = 1.3
SCALES = (0.2, 5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedStepTimes:
    """Step times that runs fit.

    Attributes:
        times: The step times.
        error: Root mean square of the log errors of TPOT, and of TTFT where it compares.
        low: Factor at which the other explanation of one load lies, at most 1.
        high: The same, at least 1.
        runs: Runs.
        notes: What limits the comparison.
    """

    times: StepTimes
    error: float
    low: float
    high: float
    runs: int
    notes: tuple[str, ...]


def fit_step_times(
    runs: Sequence[BenchmarkRun], times: StepTimes, limits: EngineLimits, *, front_s: float
) -> FittedStepTimes:
    """Fit step times to runs.

    Args:
        runs: At least one.
        times: Prior step times, from tables or a roofline.
        limits: Arguments of the engine that was measured.
        front_s: Time before the engine, at the client.
    """
    notes = tuple(dict.fromkeys(f"{run.path.name}: {note}" for run in runs for note in run.notes))
    scale_only = _minimize_scale(runs, times, limits, front_s)
    overhead_only = _minimize_overhead(runs, times, limits, front_s)
    tpots = [float(np.mean(run.tpot_s)) for run in runs if run.tpot_s.size]
    if len(runs) > 1 and tpots and max(tpots) / min(tpots) >= LOADS_DIFFER:
        fitted, error = _minimize_both(runs, times, limits, front_s)
        return FittedStepTimes(times=fitted, error=error, low=1.0, high=1.0, runs=len(runs), notes=notes)
    candidates = [(scale_only, _error(runs, scale_only, limits, front_s))]
    if overhead_only.overhead > 0:
        candidates.append((overhead_only, _error(runs, overhead_only, limits, front_s)))
    best, error = min(candidates, key=lambda item: item[1])
    ratios = [_small_step(other) / _small_step(best) for other, _ in candidates]
    ratios += [_large_step(other) / _large_step(best) for other, _ in candidates]
    return FittedStepTimes(times=best, error=error, low=min(ratios), high=max(ratios), runs=len(runs), notes=notes)


def _minimize_scale(runs: Sequence[BenchmarkRun], times: StepTimes, limits: EngineLimits, front_s: float) -> StepTimes:
    def error(log_scale: float) -> float:
        return _error(runs, replace(times, scale=math.exp(log_scale)), limits, front_s)

    bounds = (math.log(SCALES[0]), math.log(SCALES[1]))
    result = optimize.minimize_scalar(error, bounds=bounds, method="bounded", options={"xatol": 2e-3})
    return replace(times, scale=math.exp(float(result.x)))


def _minimize_overhead(
    runs: Sequence[BenchmarkRun], times: StepTimes, limits: EngineLimits, front_s: float
) -> StepTimes:
    tpot_s = max((float(np.mean(run.tpot_s)) for run in runs if run.tpot_s.size), default=0.01)

    def error(overhead: float) -> float:
        return _error(runs, replace(times, overhead=overhead), limits, front_s)

    result = optimize.minimize_scalar(error, bounds=(0.0, tpot_s), method="bounded", options={"xatol": tpot_s * 1e-3})
    return replace(times, overhead=float(result.x))


def _minimize_both(
    runs: Sequence[BenchmarkRun], times: StepTimes, limits: EngineLimits, front_s: float
) -> tuple[StepTimes, float]:
    step_s = _small_step(times)

    def decode(point: object) -> StepTimes:
        values = np.asarray(point, dtype=np.float64)
        scale = float(np.clip(math.exp(values[0]), *SCALES))
        return replace(times, scale=scale, overhead=max(0.0, float(values[1])) * step_s)

    simplex = np.array([[0.0, 0.05], [0.2, 0.05], [0.0, 0.3]])
    options: Any = {"maxfev": 120, "xatol": 1e-3, "fatol": 1e-5, "initial_simplex": simplex}
    minimize: Any = optimize.minimize
    result = minimize(
        lambda point: _error(runs, decode(point), limits, front_s),
        np.array([0.0, 0.05]),
        method="Nelder-Mead",
        options=options,
    )
    return decode(result.x), float(result.fun)


def _error(runs: Sequence[BenchmarkRun], times: StepTimes, limits: EngineLimits, front_s: float) -> float:
    squares, weights = 0.0, 0.0
    for run in runs:
        requests = build_requests(run.arrival_s, run.input_tokens, run.output_tokens)
        result = simulate(requests, limits, times, closed_loop=run.closed_loop)
        several = run.output_tokens > 1
        if several.any():
            later = (result.last_token_s - result.first_token_s)[several] / (run.output_tokens[several] - 1)
            squares += math.log(float(later.mean()) / float(run.tpot_s.mean())) ** 2
            weights += 1
        if run.compares_ttft:
            ttft_s = float(np.median(result.first_token_s - result.arrival_s)) + front_s
            squares += TTFT_WEIGHT * math.log(ttft_s / float(np.median(run.ttft_s))) ** 2
            weights += TTFT_WEIGHT
    return math.sqrt(squares / weights) if weights else 0.0


def _small_step(times: StepTimes) -> float:
    """Return the time of a step with one token."""
    return times.scale * float(times.dense[1] + times.sequence[1]) + times.overhead


def _large_step(times: StepTimes) -> float:
    """Return the time of the largest step."""
    return times.scale * float(times.dense[-1] + times.sequence[-1]) + times.overhead
