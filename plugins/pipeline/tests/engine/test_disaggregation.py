"""Two pools with a link between them: equal to the plain-Python reference, and consistent with one engine."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.pipeline.tests.engine.test_scheduler_kernel import cases, step_times
from plugins.pipeline.tests.engine.test_search import draw_problem
from unfold_pipeline.engine.planner.disaggregation import (
    PoolConfig,
    count_shared_nodes,
    evaluate_pools,
    find_cheapest_pools,
    price_pools,
)
from unfold_pipeline.engine.planner.problem import Disaggregation, EngineProblem
from unfold_pipeline.engine.planner.search import EngineConfig
from unfold_pipeline.engine.simulation.cluster import simulate
from unfold_pipeline.engine.simulation.disaggregation import (
    DisaggregatedRun,
    EnginePool,
    KvTransfer,
    simulate_decode,
    simulate_prefill,
    size_transfers,
)
from unfold_pipeline.engine.simulation.engine_inputs import EngineLimits
from unfold_pipeline.engine.simulation.scheduler_reference import simulate_disaggregated_reference
from unfold_pipeline.engine.simulation.workload import EngineRequests, build_requests

Case = tuple[EngineRequests, EnginePool, EnginePool, KvTransfer]


def simulate_disaggregated(
    requests: EngineRequests, prefill: EnginePool, decode: EnginePool, transfer: KvTransfer
) -> DisaggregatedRun:
    """Simulate both pools to their end."""
    return simulate_decode(requests, simulate_prefill(requests, prefill), decode, transfer, prefill.engines)


@st.composite
def pool_cases(draw: st.DrawFn) -> Case:
    """Draw requests that share prefixes, two pools, and links of any speed."""
    requests, limits = draw(cases())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    other = replace(
        limits, num_blocks=limits.num_blocks + draw(st.integers(0, 9)), max_num_seqs=draw(st.integers(1, 9))
    )
    times = step_times()
    send_s = requests.input_tokens * draw(st.sampled_from([0.0, 1e-5, 1e-3]))
    transfer = KvTransfer(
        latency_s=draw(st.sampled_from([0.0, 2e-3])), send_s=send_s, receive_s=send_s * draw(st.sampled_from([0.25, 1]))
    )
    prefill = EnginePool(engines=draw(st.integers(1, 3)), limits=limits, times=times)
    slow = times.calibrated(overhead=times.overhead, scale=float(rng.uniform(0.5, 2)))
    return requests, prefill, EnginePool(engines=draw(st.integers(1, 3)), limits=other, times=slow), transfer


@settings(max_examples=200)
@given(pool_cases())
def test_pools_equal_the_reference(case: Case) -> None:
    """Times of prompts, caches and tokens, preemptions, hits and steps are those of the reference."""
    run, (prompts, received_s, decode, order) = simulate_disaggregated(*case), simulate_disaggregated_reference(*case)
    np.testing.assert_allclose(run.prefilled_s, prompts.first_token_s, rtol=1e-12)
    np.testing.assert_allclose(run.received_s, received_s, rtol=1e-12)
    np.testing.assert_allclose(run.first_token_s[order], decode.first_token_s, rtol=1e-12)
    np.testing.assert_allclose(run.last_token_s[order], decode.last_token_s, rtol=1e-12)
    assert (run.decode.preemptions, run.decode.hit_tokens, run.decode.steps) == (
        decode.preemptions,
        decode.hit_tokens,
        decode.steps,
    )
    assert (run.prefill.preemptions, run.prefill.steps) == (prompts.preemptions, prompts.steps)


@given(pool_cases())
def test_the_first_token_waits_for_the_cache(case: Case) -> None:
    """A first token comes after prompt, transfer and a step; every request is answered by both pools once."""
    requests, _, decode, transfer = case
    run = simulate_disaggregated(*case)
    step_s = decode.times.scale * (decode.times.dense[1] + decode.times.sequence[1]) + decode.times.overhead
    assert (run.prefilled_s > requests.arrival_s).all()
    # differences of sums: to a rounding error
    assert (run.received_s - run.prefilled_s >= transfer.send_s + transfer.latency_s - 1e-12).all()
    assert (run.first_token_s - run.received_s >= step_s - 1e-12).all()
    assert (run.last_token_s >= run.first_token_s).all()
    assert run.prefill.finished == run.decode.finished == len(requests)


@given(pool_cases())
def test_links_carry_one_cache_at_a_time(case: Case) -> None:
    """The caches that a decode engine receives take at least the sum of their durations from the first byte on."""
    requests, prefill, _, transfer = case
    run = simulate_disaggregated(*case)
    for engine in range(prefill.engines):
        sent = np.arange(engine, len(requests), prefill.engines)
        if sent.size:
            begin_s, end_s = float(run.prefilled_s[sent].min()), float(run.received_s[sent].max())
            assert end_s - begin_s >= float(transfer.send_s[sent].sum()) + transfer.latency_s - 1e-9


def test_a_lone_request_takes_prompt_transfer_and_steps() -> None:
    """Without queues, TTFT is the prefill of one engine, the transfer and a decode step."""
    requests = build_requests(np.array([0.5]), np.array([30]), np.array([5]), block_tokens=4)
    limits = EngineLimits(num_blocks=100, max_num_batched_tokens=64, max_num_seqs=4)
    pool = EnginePool(engines=1, limits=limits, times=step_times())
    transfer = size_transfers(requests, send_bytes=200.0, receive_bytes=100.0, bytes_per_s=1e6, latency_s=3e-3)
    run = simulate_disaggregated(requests, pool, pool, transfer)
    alone = simulate(replace(requests, output_tokens=np.array([2])), limits, step_times())
    np.testing.assert_allclose(transfer.send_s, [32 * 200 / 1e6])
    np.testing.assert_allclose(run.prefilled_s, alone.first_token_s)
    np.testing.assert_allclose(run.received_s - run.prefilled_s, 32 * 200 / 1e6 + 3e-3)
    # the step that computes the last prompt token again is one decode of 30 tokens; the next one has 31
    step_s = alone.last_token_s - alone.first_token_s
    assert run.first_token_s - run.received_s == pytest.approx(step_s, rel=0.02)


def test_decode_engines_have_no_prefill_steps() -> None:
    """Prompts that are long never share a step with decodes, so the time per token has no peaks."""
    rng = np.random.default_rng(0)
    requests = build_requests(np.sort(rng.random(40)), rng.integers(30, 60, 40), rng.integers(5, 20, 40))
    limits = EngineLimits(num_blocks=400, max_num_batched_tokens=64, max_num_seqs=32)
    pool = EnginePool(engines=1, limits=limits, times=step_times())
    nothing = np.zeros(40)
    run = simulate_disaggregated(requests, pool, pool, KvTransfer(latency_s=0.0, send_s=nothing, receive_s=nothing))
    assert run.decode.prefill_steps == 0
    assert run.prefill.prefill_steps == run.prefill.steps


def pool_problem(seed: int) -> tuple[EngineProblem, Disaggregation]:
    """Return a small problem with two pools: no node is shared by chance, and targets may bind."""
    problem = draw_problem(seed)
    rng = np.random.default_rng(seed)
    options = tuple(
        replace(option, hardware="gpu", gpus_per_node=int(4 * (seed % 2) or 1)) for option in problem.options
    )
    options = tuple(replace(option, usd_per_gpu_hour=options[0].usd_per_gpu_hour, quota=None) for option in options)
    pairs = tuple(
        (prefill, decode)
        for prefill, first in enumerate(options)
        for decode, second in enumerate(options)
        if second.tensor_parallel % first.tensor_parallel == 0
    )
    disaggregation = Disaggregation(
        pairs=pairs,
        kv_bytes=tuple(1024 // option.tensor_parallel for option in options),
        bytes_per_s=float(rng.choice([1e7, 1e9])),
        latency_s=float(rng.choice([0.0, 1e-3])),
    )
    settings_ = replace(problem.settings, routing="round_robin", max_replicas=3)
    return replace(problem, options=options, settings=settings_, disaggregation=disaggregation), disaggregation


@pytest.mark.parametrize("seed", range(12))
def test_the_search_for_pools_equals_enumeration(seed: int) -> None:
    """No pools of any size meet the targets for less than those that the search returns."""
    problem, disaggregation = pool_problem(seed)
    settings_ = problem.settings
    best = np.inf
    for (prefill, decode), first, second, budget, slots in itertools.product(
        disaggregation.pairs, range(1, 4), range(1, 4), settings_.budgets, settings_.max_seqs
    ):
        config = PoolConfig(
            prefill=EngineConfig(option=prefill, replicas=first, budget=budget, max_seqs=max(settings_.max_seqs)),
            decode=EngineConfig(option=decode, replicas=second, budget=max(settings_.budgets), max_seqs=slots),
        )
        if price_pools(problem, config) < best and evaluate_pools(problem, disaggregation, config).meets(problem):
            best = price_pools(problem, config)
    solution = find_cheapest_pools(problem, disaggregation)
    assert solution.is_complete
    cost = np.inf if solution.outcome is None else price_pools(problem, solution.outcome.config)
    assert cost == pytest.approx(best)


@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.integers(0, 9), st.integers(0, 9))
def test_shared_nodes_hold_both_pools(first: int, second: int, first_engines: int, second_engines: int) -> None:
    """Nodes hold all GPUs of both pools, an engine stays within a node, and none fewer do."""
    if max(first, second) % min(first, second):
        return
    options = [replace(draw_problem(0).options[0], tensor_parallel=item, gpus_per_node=8) for item in (first, second)]
    nodes = count_shared_nodes(options[0], first_engines, options[1], second_engines)
    gpus = first * first_engines + second * second_engines
    # sizes divide each other and the node, so that only GPUs count
    assert nodes == -(-gpus // 8)
