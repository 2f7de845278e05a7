"""The compiled scheduler follows the rules of the plain-Python one, and its resources are conserved."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfold_pipeline.engine.simulation.cluster import LatencyTargets, simulate
from unfold_pipeline.engine.simulation.engine_inputs import EngineLimits, StepTimes, pad_axes
from unfold_pipeline.engine.simulation.scheduler_reference import (
    ReferenceEngine,
    ReferencePool,
    interpolate,
    simulate_reference,
)
from unfold_pipeline.engine.simulation.workload import EngineRequests, build_requests

TOKENS = 64


def step_times(window: int = 0) -> StepTimes:
    """Return tables in which every axis matters; with a window, for three of five layers."""
    axes, lengths = pad_axes(
        [np.array([0.0, 8, 64]), np.array([0.0, 16, 256]), np.array([0.0, 1, 32]), np.array([0.0, 9, 99])]
    )
    rng = np.random.default_rng(0)
    return StepTimes(
        dense=1e-3 + 1e-4 * np.arange(TOKENS + 1),
        sequence=1e-5 * np.arange(33.0),
        axes=axes,
        axis_lengths=lengths,
        attention=1e-4 * rng.random((3, 3, 3, 3)),
        overhead=5e-4,
        window=window,
        window_share=0.6 if window else 0.0,
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[EngineRequests, EngineLimits]:
    """Draw requests that share prefixes, and an engine with a cache that holds any one of them but rarely all."""
    count = draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.sampled_from([2, 4]))
    inputs, outputs = rng.integers(1, 40, count), rng.integers(1, 30, count)
    shared_with = np.array([rng.integers(-1, index) if index else -1 for index in range(count)])
    requests = build_requests(
        np.sort(rng.random(count) * draw(st.sampled_from([0.0, 0.05, 1.0]))),
        inputs,
        outputs,
        block_tokens=size,
        shared_tokens=rng.integers(0, 40, count),
        shared_with=shared_with,
    )
    largest = int((-(-(inputs + outputs) // size)).max())
    limits = EngineLimits(
        num_blocks=largest + draw(st.integers(1, 20)),
        max_num_batched_tokens=draw(st.sampled_from([4, 16, TOKENS])),
        max_num_seqs=draw(st.sampled_from([1, 3, 32])),
        prefix_cache=draw(st.booleans()),
        reserve_full_isl=draw(st.booleans()),
        async_scheduling=draw(st.booleans()),
    )
    return requests, limits


@st.composite
def window_cases(draw: st.DrawFn) -> tuple[EngineRequests, EngineLimits]:
    """Draw the same with groups of layers, some or all of which keep a window."""
    requests, limits = draw(cases())
    full, windowed = draw(st.sampled_from([(0, 1), (1, 1), (1, 3), (2, 2)]))
    window, size = draw(st.sampled_from([2, 3, 8, 13, 30])), requests.block_tokens
    limits = replace(limits, full_groups=full, window_groups=windowed, window=window)
    blocks = -(-(requests.input_tokens + requests.output_tokens) // size)
    needed = full * blocks + windowed * np.minimum(blocks, limits.count_window_blocks(size))
    return requests, replace(limits, num_blocks=int(needed.max()) + draw(st.integers(1, 40)))


@pytest.mark.e2e
@settings(max_examples=200)
@given(cases() | window_cases())
def test_kernel_and_reference_agree_on_every_token(case: tuple[EngineRequests, EngineLimits]) -> None:
    """Times of first and last tokens, preemptions, cache hits and steps are those of the reference."""
    requests, limits = case
    times = step_times(limits.window)
    run, reference = simulate(requests, limits, times), simulate_reference(requests, limits, times)
    np.testing.assert_allclose(run.first_token_s, reference.first_token_s, rtol=1e-12)
    np.testing.assert_allclose(run.last_token_s, reference.last_token_s, rtol=1e-12)
    assert (run.preemptions, run.hit_tokens, run.steps) == (
        reference.preemptions,
        reference.hit_tokens,
        reference.steps,
    )
    assert (run.peak_running, run.peak_blocks) == (reference.peak_running, reference.peak_blocks)


@settings(max_examples=100)
@given(cases() | window_cases())
def test_steps_keep_budget_and_blocks(case: tuple[EngineRequests, EngineLimits]) -> None:
    """No step exceeds the token budget or the slots, the number of blocks is constant, every request is answered."""
    requests, limits = case
    engine = ReferenceEngine(requests, limits)
    engine.waiting.extend(range(len(requests)))
    produced = 0
    while step := engine.schedule():
        if not step.chunks:
            break
        assert sum(tokens for tokens, _ in step.chunks.values()) <= limits.max_num_batched_tokens
        assert len(engine.running) <= limits.max_num_seqs
        used = {block for groups in engine.blocks for blocks in groups for block in blocks if block is not None}
        assert used.isdisjoint(engine.pool.free)
        assert len(used) + len(engine.pool.free) == limits.num_blocks
        produced += len(step.produces)
        engine.finish_step(step, 0.0)
    assert produced == int(requests.output_tokens.sum())
    assert len(engine.pool.free) == limits.num_blocks


@given(cases())
def test_requests_are_admitted_first_come_first_served(case: tuple[EngineRequests, EngineLimits]) -> None:
    """With one slot and without preemption, first tokens come in order of arrival."""
    requests, limits = case
    run = simulate(requests, limits, step_times())
    if not run.preemptions and limits.max_num_seqs == 1:
        assert (np.diff(run.first_token_s) >= 0).all()


@given(cases(), st.integers(0, 3))
def test_an_early_end_is_exact(case: tuple[EngineRequests, EngineLimits], allowed: int) -> None:
    """A simulation ends early exactly if more requests miss a target than allowed."""
    requests, limits = case
    complete = simulate(requests, limits, step_times())
    target = float(np.median(complete.first_token_s - requests.arrival_s))
    late = int((complete.first_token_s - requests.arrival_s > target).sum())
    run = simulate(requests, limits, step_times(), LatencyTargets(ttft_s=target, allowed_misses=allowed))
    assert run.aborted == (late > allowed)


@given(cases(), st.integers(100, 200))
def test_a_window_beyond_all_contexts_changes_nothing(case: tuple[EngineRequests, EngineLimits], window: int) -> None:
    """A model with a window that no request reaches has the token times of one without."""
    requests, limits = case
    plain = simulate(requests, limits, step_times())
    windowed = replace(limits, full_groups=0, window_groups=1, window=window)
    run = simulate(requests, windowed, replace(step_times(), window=window, window_share=1.0))
    np.testing.assert_allclose(run.first_token_s, plain.first_token_s, rtol=1e-12)
    np.testing.assert_allclose(run.last_token_s, plain.last_token_s, rtol=1e-12)
    assert (run.preemptions, run.hit_tokens, run.peak_blocks) == (
        plain.preemptions,
        plain.hit_tokens,
        plain.peak_blocks,
    )


def test_blocks_of_unshared_prompts_are_counted_and_not_listed() -> None:
    """Requests of 2.5 million blocks take less than a byte a block to simulate, and far less than a list of blocks."""
    count, blocks = 50, 50_000
    requests = build_requests(np.arange(count) * 1e6, np.full(count, 2 * blocks), np.ones(count, int), block_tokens=2)
    limits = EngineLimits(num_blocks=blocks + 1, max_num_batched_tokens=4096, max_num_seqs=2)
    simulate(requests, limits, step_times())
    tracemalloc.start()
    try:
        run = simulate(requests, limits, step_times())
        assert tracemalloc.get_traced_memory()[1] < count * blocks
    finally:
        tracemalloc.stop()
    assert (run.finished, run.peak_blocks) == (count, blocks)


def test_layers_with_a_window_hold_no_more_than_the_window() -> None:
    """A long decode holds all its blocks in a group without a window, and those of the window in the others."""
    requests = build_requests(np.array([0.0]), np.array([40]), np.array([24]), block_tokens=4)
    limits = EngineLimits(
        num_blocks=200, max_num_batched_tokens=8, full_groups=1, window_groups=2, window=8, async_scheduling=False
    )
    engine = ReferenceEngine(requests, limits)
    engine.waiting.append(0)
    held = []
    while (step := engine.schedule()).chunks:
        held.append([sum(block is not None for block in blocks) for blocks in engine.blocks[0]])
        engine.finish_step(step, 0.0)
    assert max(full for full, _, _ in held) == 16
    assert max(windowed for _, *groups in held for windowed in groups) == limits.count_window_blocks(4) - 1
    assert held[-1] == [16, 3, 3]
    assert simulate(requests, limits, step_times(8)).peak_blocks == max(sum(groups) for groups in held)


def test_a_freed_block_keeps_its_content_until_it_is_taken() -> None:
    """The pool reuses the block that was freed longest ago, and a prefix outlives the end of its request."""
    pool = ReferencePool(3)
    blocks = [pool.take(), pool.take()]
    pool.enter(blocks[0], 7)
    pool.release(blocks)
    assert pool.by_content == {7: blocks[0]}
    pool.take()  # the third one was never used
    assert pool.take() == blocks[1]
    assert pool.by_content == {7: blocks[0]}
    pool.take()
    assert pool.by_content == {}


def test_interpolation_is_exact_on_the_grid_and_linear_between() -> None:
    """Grid points give the table's values, and a midpoint along one axis their mean."""
    times = step_times()
    assert interpolate((8.0, 16.0, 1.0, 9.0), times) == pytest.approx(times.attention[1, 1, 1, 1])
    middle = (times.attention[1, 1, 1, 1] + times.attention[2, 1, 1, 1]) / 2
    assert interpolate((36.0, 16.0, 1.0, 9.0), times) == pytest.approx(middle)
