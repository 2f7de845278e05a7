"""Engines that share a machine: factors of a profile, busy engines, and the step times that follow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from plugins.pipeline.tests.engine.test_endpoint_fit import BUDGET, SHAPES, SLOTS, build_times, measure
from unfold_pipeline.engine.hardware.gpu import KvCache
from unfold_pipeline.engine.planner.busy_engines import count_busy_engines, estimate_step_times
from unfold_pipeline.engine.planner.problem import EngineOption, EngineProblem, EngineSettings, Targets
from unfold_pipeline.engine.planner.search import EngineConfig, evaluate
from unfold_pipeline.engine.simulation.cluster import EngineRun, simulate
from unfold_pipeline.engine.simulation.engine_inputs import EngineLimits, StepTimes
from unfold_pipeline.engine.simulation.workload import build_requests
from unfold_pipeline.engine.step_times.endpoint_profile import EndpointProfile
from unfold_pipeline.engine.step_times.interval import build_interval
from unfold_pipeline.engine.step_times.process_contention import ProcessContention, measure_contention

DENSE, REQUEST_S, CONTEXT_S, OVERHEAD_S, FRONT_S = SHAPES["a core, linear in tokens"]
TIMES = build_times(DENSE, REQUEST_S, CONTEXT_S, OVERHEAD_S)
LIMITS = EngineLimits(num_blocks=4096, max_num_batched_tokens=BUDGET, max_num_seqs=SLOTS, async_scheduling=False)
PAIR = ProcessContention(processes=2, capacity=2, decode=1.5, prefill=1.2)


def profile_pair(factor: float) -> EndpointProfile:
    """Return a profile with steps that take ``factor`` times as long at two processes."""
    alone = measure(TIMES, FRONT_S, 0.0, 0, synchronous=True)
    slow = build_times(DENSE * factor, REQUEST_S * factor, CONTEXT_S * factor, OVERHEAD_S * factor)
    together = measure(slow, FRONT_S * factor, 0.0, 1, synchronous=True).phases
    return replace(alone, processes=2, capacity=2, together=(*together, *together))


@pytest.mark.parametrize("factor", [1.0, 1.3, 2.0])
def test_a_profile_measures_the_factor(factor: float) -> None:
    """Steps that take longer at two processes give that factor; faster ones count as equal."""
    contention = measure_contention(profile_pair(factor))
    assert contention is not None
    assert contention.decode == pytest.approx(factor, rel=0.03)
    assert contention.prefill == pytest.approx(factor, rel=0.03)
    faster = measure_contention(profile_pair(0.7))
    assert faster is not None
    assert (faster.decode, faster.prefill) == (1.0, 1.0)


def test_a_server_elsewhere_shares_nothing() -> None:
    """A profile of an address has no contention."""
    assert measure_contention(measure(TIMES, FRONT_S, 0.0, 0, synchronous=True)) is None


def compute_step_s(times: StepTimes, tokens: int) -> float:
    return times.scale * float(times.dense[tokens] + times.sequence[1]) + times.overhead


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_steps_grow_with_the_busy_engines(scale: float) -> None:
    """One busy engine has the steps of the profile, all have the measured factors, and more share the cores."""
    times = replace(TIMES, scale=scale)
    for busy, decode, prefill in ((1.0, 1.0, 1.0), (1.5, 1.25, 1.1), (2.0, 1.5, 1.2), (4.0, 2 * 2.5, 2 * 1.6)):
        slow = PAIR.slow_down(times, busy)
        assert compute_step_s(slow, 1) == pytest.approx(decode * compute_step_s(times, 1))
        # the part of the requests is a decode's
        full_s = prefill * compute_step_s(times, BUDGET) + (decode - prefill) * scale * float(times.sequence[1])
        assert compute_step_s(slow, BUDGET) == pytest.approx(full_s)
    single = ProcessContention(processes=1, capacity=1, decode=1.0, prefill=1.0)
    assert compute_step_s(single.slow_down(times, 2.0), 1) == pytest.approx(2 * compute_step_s(times, 1))


def build_run(begins: np.ndarray, ends: np.ndarray) -> EngineRun:
    numbers = dict.fromkeys(
        ("preemptions", "hit_tokens", "steps", "prefill_steps", "peak_running", "peak_blocks", "finished"), 0
    )
    return EngineRun(arrival_s=begins, first_token_s=begins, last_token_s=ends, aborted=False, **numbers)


def test_busy_engines_are_counted_as_on_a_fine_clock() -> None:
    """The mean of busy engines, over the time of those engines, equals that of a sample of moments."""
    rng = np.random.default_rng(5)
    for case in range(40):
        engines, count = int(rng.integers(1, 5)), int(rng.integers(1, 30))
        begins = np.sort(rng.random(count)) * 20
        ends = begins + rng.exponential(0.3 + case % 5, count)
        clock = np.linspace(0, ends.max(), 40_001)
        states = [
            ((clock[:, None] >= begins[i::engines]) & (clock[:, None] < ends[i::engines])).any(axis=1)
            for i in range(engines)
        ]
        busy = np.sum(states, axis=0)
        found = count_busy_engines(build_run(begins, ends), engines, "round_robin")
        assert found == pytest.approx(float((busy**2).sum() / busy.sum()), rel=0.02), case
        assert 1.0 <= count_busy_engines(build_run(begins, ends), engines, "least_tokens") <= engines


def build_problem(rate: float, contention: ProcessContention | None) -> EngineProblem:
    rng = np.random.default_rng(2)
    arrivals = np.cumsum(rng.exponential(1 / rate, 300))
    option = EngineOption(
        hardware="box",
        gpu="box",
        tensor_parallel=1,
        usd_per_gpu_hour=1.0,
        gpus_per_node=1,
        quota=None,
        kv_cache=KvCache(num_blocks=4096, is_measured=True),
        times=TIMES,
        interval=build_interval("endpoint", 0.9),
        contention=contention,
    )
    return EngineProblem(
        name="box",
        stage="chat",
        requests=build_requests(arrivals, rng.integers(5, 20, 300), rng.integers(2, 12, 300)),
        options=(option,),
        too_small=(),
        settings=EngineSettings(budgets=(BUDGET,), max_seqs=(SLOTS,), async_scheduling=False),
        targets=Targets(),
        confidence=None,
        price_sources={},
        trace_sha256="",
        model="",
    )


def test_light_and_heavy_load_bracket_the_step_times() -> None:
    """Engines that rarely meet have nearly their own steps, engines that are always busy the measured factor."""
    steps = []
    for rate in (0.05, 1.0, 50.0):
        problem = build_problem(rate, PAIR)
        steps.append(compute_step_s(estimate_step_times(problem, problem.options[0], LIMITS, 2), 1))
    alone_s = compute_step_s(TIMES, 1)
    assert alone_s < steps[0] < steps[1] < steps[2] <= 1.5 * alone_s * (1 + 1e-9)
    assert steps[0] < 1.1 * alone_s
    assert steps[2] > 1.4 * alone_s


def test_one_engine_or_no_contention_changes_nothing() -> None:
    """The estimate of one engine, and of engines that share nothing, is that of their own steps."""
    for contention, engines in ((PAIR, 1), (None, 2)):
        problem = build_problem(1.0, contention)
        config = EngineConfig(option=0, replicas=engines, budget=BUDGET, max_seqs=SLOTS)
        run = evaluate(problem, config, complete=True).run
        plain = simulate(problem.requests, LIMITS, TIMES, engines=engines)
        assert run.last_token_s.tolist() == plain.last_token_s.tolist()
