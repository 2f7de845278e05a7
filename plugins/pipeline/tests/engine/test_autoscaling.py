"""Scaling rules see the past only; engines that stop finish their requests; what runs is paid."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from plugins.pipeline.tests.engine.test_cluster import step_times
from unfold_pipeline.engine.autoscaling.autoscalers import (
    HPA_PERIOD_S,
    HPA_STABILIZATION_S,
    Observation,
    build_hpa_rule,
    build_keda_rule,
    keep_replicas,
)
from unfold_pipeline.engine.autoscaling.fleet import Fleet
from unfold_pipeline.engine.autoscaling.hindsight import (
    SlotMisses,
    find_cheapest_schedule,
    find_fixed_peak,
    simulate_slots,
)
from unfold_pipeline.engine.autoscaling.replay import replay_rule
from unfold_pipeline.engine.autoscaling.token_envelope import (
    build_envelope_rule,
    build_token_envelope,
    count_trace_tokens,
)
from unfold_pipeline.engine.hardware.gpu import KvCache
from unfold_pipeline.engine.planner.problem import EngineOption, EngineProblem, EngineSettings, Targets
from unfold_pipeline.engine.planner.search import EngineConfig, evaluate
from unfold_pipeline.engine.simulation.cluster import EngineLoad, simulate
from unfold_pipeline.engine.simulation.engine_inputs import EngineLimits
from unfold_pipeline.engine.simulation.workload import EngineRequests, build_requests
from unfold_pipeline.engine.step_times.interval import StepInterval

CONFIG = EngineConfig(option=0, replicas=2, budget=64, max_seqs=8)


def burst(count: int = 900, seed: int = 0) -> EngineRequests:
    """Return traffic that is quiet, busy for a while, and quiet again."""
    rng = np.random.default_rng(seed)
    rate = np.where((np.arange(count) > 150) & (np.arange(count) < 750), 12.0, 1.0)
    return build_requests(
        np.cumsum(rng.exponential(1 / rate)), rng.integers(20, 120, count), rng.integers(2, 40, count), block_tokens=4
    )


def problem(requests: EngineRequests) -> EngineProblem:
    option = EngineOption(
        hardware="g",
        gpu="g",
        tensor_parallel=1,
        usd_per_gpu_hour=2.0,
        gpus_per_node=1,
        quota=None,
        kv_cache=KvCache(num_blocks=300, is_measured=False),
        times=replace(step_times(), scale=3.0),
        interval=StepInterval(source="tables", groups=4, low=1.0, high=1.0),
    )
    return EngineProblem(
        name="burst", stage="chat", requests=requests, options=(option,), too_small=(),
        settings=EngineSettings(budgets=(64,), max_seqs=(8,), start_s=10.0),
        targets=Targets(ttft_s=0.5, tpot_s=0.1), confidence=None, price_sources={}, trace_sha256="", model="m",
    )  # fmt: skip


def seen(now_s: float, *, running: int, waiting: int, replicas: int = 1) -> Observation:
    load = EngineLoad(
        running=np.array([running]), waiting=np.array([waiting]), blocks=np.array([0]), unfinished=np.array([running])
    )
    return Observation(now_s=now_s, arrived=0, load=load, replicas=replicas)


def test_a_rule_that_keeps_the_plan_equals_the_plan() -> None:
    """The replay in slices gives the latencies of the simulation at once, and its price."""
    case = problem(burst())
    run = replay_rule("fixed", case, CONFIG, keep_replicas(2), max_replicas=4)
    outcome = evaluate(case, CONFIG, complete=True)
    # engines beyond the plan are off, so round robin alternates between the same two
    np.testing.assert_allclose(
        np.sort(run.latencies.latency_s), np.sort(outcome.run.last_token_s - outcome.run.arrival_s)
    )
    assert run.usd_per_hour == 4.0


def test_every_request_of_a_scaled_service_is_answered() -> None:
    """Draining engines finish what they hold, started ones take requests, and counts stay within bounds."""
    case = problem(burst())
    envelope = build_token_envelope(case.requests, 2, 10.0)
    for rule in (
        build_envelope_rule(envelope, count_trace_tokens(case.requests), hold_s=10.0),
        build_hpa_rule(4.0),
        build_keda_rule(),
    ):
        run = replay_rule("rule", case, CONFIG, rule, max_replicas=4)
        assert np.isfinite(run.latencies.latency_s).all()
        assert run.engines.min() >= 1
        assert run.paid.max() <= 4
        assert (run.paid >= run.engines).all()


def test_the_envelope_rule_follows_the_traffic() -> None:
    """Quiet traffic needs fewer engines than the plan, and the traffic of the plan no more than the margin."""
    case = problem(burst())
    rule = build_envelope_rule(
        build_token_envelope(case.requests, 2, 10.0), count_trace_tokens(case.requests), hold_s=10.0
    )
    run = replay_rule("rule", case, CONFIG, rule, max_replicas=4)
    assert run.engines.min() == 1
    assert run.engines.max() <= 3


def test_hpa_scales_up_at_once_and_down_after_its_window() -> None:
    """The largest wish of five minutes holds, and 10 % around the target change nothing."""
    rule = build_hpa_rule(10.0)
    assert rule(seen(0.0, running=30, waiting=10)) == 4
    assert rule(seen(15.0, running=0, waiting=0, replicas=4)) == 4
    assert rule(seen(15.0 + HPA_STABILIZATION_S + 1, running=1, waiting=0, replicas=4)) == 1
    steady = build_hpa_rule(10.0)
    assert steady(seen(0.0, running=21, waiting=0, replicas=2)) == 2


def test_rules_keep_the_engines_that_they_find_until_they_have_seen_traffic() -> None:
    """A trace begins with few requests: no rule drains the engines of the plan before its window has passed."""
    case = problem(burst())
    envelope = build_token_envelope(case.requests, 3, 10.0)
    rules = {
        HPA_STABILIZATION_S: (build_hpa_rule(10.0), build_keda_rule()),
        20.0: (build_envelope_rule(envelope, count_trace_tokens(case.requests), hold_s=20.0),),
    }
    for held_s, several in rules.items():
        for rule in several:
            assert rule(seen(0.0, running=1, waiting=0, replicas=3)) == 3
            assert rule(seen(held_s - 1, running=1, waiting=0, replicas=3)) == 3
            assert rule(seen(held_s + HPA_PERIOD_S, running=1, waiting=0, replicas=3)) == 1


def test_hpa_adds_at_most_four_engines_or_as_many_again_a_period() -> None:
    """The default behaviour of Kubernetes, whatever the metric asks for."""
    rule = build_hpa_rule(10.0)
    counts = [1]
    for period in range(4):
        counts.append(rule(seen(period * HPA_PERIOD_S, running=900, waiting=0, replicas=counts[-1])))
    assert counts == [1, 5, 10, 20, 40]


def test_hpa_does_not_cancel_engines_that_start() -> None:
    """Load that falls while engines start leaves them ordered until the window has passed."""
    fleet = Fleet(4, 2, start_s=180.0)
    idle, rule = np.zeros(4, dtype=np.int64), build_hpa_rule(10.0)
    for now_s, running in ((0.0, 40), (15.0, 20), (30.0, 20)):
        fleet.update(now_s, idle)
        fleet.scale(rule(seen(now_s, running=running, waiting=0, replicas=fleet.count_ordered())), now_s, idle)
        assert fleet.count_ordered() == 4


def test_perfect_knowledge_is_the_cheapest_schedule_by_brute_force() -> None:
    """Over random slots, no choice of engines that misses as few costs less; fewer misses never cost less."""
    rng = np.random.default_rng(4)
    for _ in range(40):
        misses = np.sort(rng.integers(0, 9, (4, 4)), axis=1)[:, ::-1]
        slots = SlotMisses(
            seconds=rng.uniform(60, 90, 4), misses=misses, usd_per_hour=np.array([0.0, 3.0, 4.0, 7.0]), requests=99
        )
        last = np.inf
        for allowed in (0, 3, 8, 40):
            prices = [
                float((slots.usd_per_hour[list(choice)] * slots.seconds).sum() / slots.seconds.sum())
                for choice in itertools.product(range(4), repeat=4)
                if sum(misses[slot, count] for slot, count in enumerate(choice)) <= allowed
            ]
            schedule = find_cheapest_schedule(slots, allowed)
            assert (schedule is None) == (not prices)
            if schedule is not None:
                assert abs(schedule.usd_per_hour - min(prices)) < 1e-9
                assert schedule.usd_per_hour <= last + 1e-9
                last = schedule.usd_per_hour


def test_no_rule_is_cheaper_than_perfect_knowledge_with_its_misses() -> None:
    """On bursts, every rule and the fixed engines cost at least the bound at their own attainment."""
    case = problem(burst())
    slots = simulate_slots(case, CONFIG, 20.0, 4)
    envelope = build_token_envelope(case.requests, 2, 10.0)
    rules = {
        "envelope": build_envelope_rule(envelope, count_trace_tokens(case.requests), hold_s=10.0),
        "hpa": build_hpa_rule(4.0),
        "keda": build_keda_rule(),
        "one": keep_replicas(1),
        "two": keep_replicas(2),
    }
    for name, rule in rules.items():
        run = replay_rule(name, case, CONFIG, rule, max_replicas=4)
        bound = find_cheapest_schedule(slots, run.misses)
        assert bound is not None, name
        assert bound.usd_per_hour <= run.usd_per_hour + 1e-9, name
        assert bound.engine_hours * 2.0 <= run.engine_hours * 2.0 + 0.01, name
    assert slots.misses.shape[1] == 5


def test_the_fixed_peak_is_the_fewest_engines_for_the_whole_trace() -> None:
    """One engine less misses a target; without any number that meets them there is no peak."""
    case = replace(problem(burst(300)), targets=Targets(ttft_s=2.0, tpot_s=0.5))
    peak = find_fixed_peak(case, CONFIG).replicas
    assert peak is not None
    assert evaluate(case, replace(CONFIG, replicas=peak)).meets(case)
    assert peak == 1 or not evaluate(case, replace(CONFIG, replicas=peak - 1)).meets(case)


def test_a_trace_without_a_fixed_peak_names_the_target_in_the_way() -> None:
    """Either a single request misses it, or as many engines as may run still do."""
    case = replace(problem(burst(300)), targets=Targets(ttft_s=1e-6))
    single = find_fixed_peak(case, CONFIG)
    assert (single.replicas, single.most, single.obstacle) == (None, 0, "ttft")
    assert single.value_s > 1e-6
    settings = replace(case.settings, max_replicas=1)
    crowded = find_fixed_peak(replace(case, settings=settings, targets=Targets(ttft_s=0.05)), CONFIG)
    assert (crowded.replicas, crowded.most, crowded.obstacle) == (None, 1, "ttft")
    assert crowded.value_s > 0.05


def test_a_range_of_requests_keeps_the_prompts_that_they_share() -> None:
    """A cut in the middle of a trace has the prefix hits of the same requests built alone."""
    shared_with = np.array([-1, 0, 1, 2, -1, 4, 5])
    columns = {"arrival_s": np.arange(7.0), "input_tokens": np.full(7, 40), "output_tokens": np.full(7, 4)}
    whole = build_requests(**columns, block_tokens=4, shared_tokens=np.full(7, 32), shared_with=shared_with)
    part = whole.select_range(2, 6)
    alone = build_requests(
        **{name: column[:4] for name, column in columns.items()},
        block_tokens=4,
        shared_tokens=np.full(4, 32),
        shared_with=np.array([-1, 0, -1, 2]),
    )
    runs = [simulate(requests, EngineLimits(num_blocks=100), step_times()) for requests in (part, alone)]
    assert runs[0].hit_tokens == runs[1].hit_tokens == 2 * 32
    np.testing.assert_array_equal(runs[0].last_token_s, runs[1].last_token_s)
