"""Engines behind a router: slices change nothing, routing shares the work, closed loops keep their clients."""

from __future__ import annotations

import numpy as np
import pytest

from unfold_pipeline.engine.simulation.cluster import EngineCluster, LatencyTargets, Routing, simulate
from unfold_pipeline.engine.simulation.engine_inputs import EngineLimits, StepTimes, pad_axes
from unfold_pipeline.engine.simulation.workload import EngineRequests, build_requests

LIMITS = EngineLimits(num_blocks=40, max_num_batched_tokens=64, max_num_seqs=8)


def step_times() -> StepTimes:
    axes, lengths = pad_axes([np.array([0.0, 64]), np.array([0.0, 256]), np.array([0.0, 32]), np.array([0.0, 99])])
    return StepTimes(
        dense=1e-3 + 1e-4 * np.arange(65.0),
        sequence=1e-5 * np.arange(33.0),
        axes=axes,
        axis_lengths=lengths,
        attention=1e-4 * np.random.default_rng(0).random((2, 2, 2, 2)),
    )


def requests(count: int = 60, seed: int = 1) -> EngineRequests:
    rng = np.random.default_rng(seed)
    shared_with = np.r_[-1, rng.integers(-1, np.arange(1, count))]
    return build_requests(
        np.sort(rng.random(count) * 0.5),
        rng.integers(1, 120, count),
        rng.integers(1, 40, count),
        block_tokens=4,
        shared_tokens=rng.integers(0, 60, count),
        shared_with=shared_with,
    )


@pytest.mark.parametrize("routing", ["round_robin", "least_tokens"])
@pytest.mark.parametrize("engines", [1, 3])
def test_slices_with_carried_state_equal_one_run(engines: int, routing: Routing) -> None:
    """A run that stops at many moments gives every token at the time of an uninterrupted run."""
    workload = requests()
    limits = EngineLimits(num_blocks=60, max_num_batched_tokens=64, max_num_seqs=8)
    complete = simulate(workload, limits, step_times(), engines=engines, routing=routing)
    sliced = EngineCluster(workload, limits, step_times(), engines=engines, routing=routing)
    for until in np.linspace(0, 2, 97):
        sliced.route(int(np.searchsorted(workload.arrival_s, until)))
        sliced.advance(float(until))
    sliced.route(len(workload))
    sliced.advance(np.inf)
    run = sliced.result()
    np.testing.assert_array_equal(run.first_token_s, complete.first_token_s)
    np.testing.assert_array_equal(run.last_token_s, complete.last_token_s)
    assert (run.preemptions, run.steps, run.finished) == (complete.preemptions, complete.steps, len(workload))


def test_round_robin_equals_separate_engines() -> None:
    """Engine ``i`` of three serves every third request as if it were alone."""
    workload = requests()
    limits = EngineLimits(num_blocks=60, max_num_batched_tokens=64, max_num_seqs=8)
    together = simulate(workload, limits, step_times(), engines=3)
    for part in range(3):
        rows = slice(part, None, 3)
        alone = build_requests(
            workload.arrival_s[rows], workload.input_tokens[rows], workload.output_tokens[rows], block_tokens=4
        )
        # without shared prefixes both sides are comparable
        plain = build_requests(workload.arrival_s, workload.input_tokens, workload.output_tokens, block_tokens=4)
        both = simulate(plain, limits, step_times(), engines=3)
        np.testing.assert_array_equal(both.last_token_s[rows], simulate(alone, limits, step_times()).last_token_s)
    assert together.finished == len(workload)


def test_least_tokens_avoids_a_busy_engine() -> None:
    """A short prompt behind a long one goes to the other engine."""
    workload = build_requests(
        np.array([0.0, 0.0, 0.001, 0.002]), np.array([100, 4, 4, 4]), np.array([20, 20, 20, 20]), block_tokens=4
    )
    run = simulate(workload, LIMITS, step_times(), engines=2, routing="least_tokens")
    alone = simulate(workload, LIMITS, step_times(), engines=2)
    assert run.first_token_s[2] < alone.first_token_s[2]


def test_a_closed_loop_keeps_its_clients_busy() -> None:
    """At most ``closed_loop`` requests are in flight, and the next arrives when one is answered."""
    workload = requests(40)
    limits = EngineLimits(num_blocks=200, max_num_batched_tokens=64, max_num_seqs=8)
    run = simulate(workload, limits, step_times(), closed_loop=3)
    assert (run.arrival_s[:3] == 0).all()
    in_flight = [int(((run.arrival_s <= time) & (run.last_token_s > time)).sum()) for time in run.arrival_s[3:]]
    assert max(in_flight) == 3
    assert np.isin(run.arrival_s[3:], run.last_token_s).all()


def test_early_abort_decides_as_the_complete_run() -> None:
    """A run ends early exactly if more requests miss a target than allowed."""
    workload = requests()
    complete = simulate(workload, LIMITS, step_times(), engines=2)
    ttft_s = complete.first_token_s - workload.arrival_s
    for allowed in (0, 3, 10):
        for target in (float(np.quantile(ttft_s, 0.9)), float(np.quantile(ttft_s, 0.97))):
            targets = LatencyTargets(ttft_s=target, allowed_misses=allowed)
            run = simulate(workload, LIMITS, step_times(), targets, engines=2)
            assert run.aborted == bool((ttft_s > target).sum() > allowed)
