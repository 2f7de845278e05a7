"""The scaling rules in simulation: exact under changing counts, correctly billed, never below their floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from unfold_pipeline.estimator import replica_schedule
from unfold_pipeline.estimator.estimator import Estimator
from unfold_pipeline.estimator.replica_schedule import (
    ReplicaSchedule,
    ScalingTargets,
    build_target_schedule,
    hold_maximum,
)
from unfold_pipeline.estimator.simulator import (
    build_constant_targets,
    get_trace_duration,
    simulate_reactive_rule,
    simulate_targets,
)
from unfold_pipeline.estimator.slo import build_slo_checker
from unfold_pipeline.problem.pipeline import Edge, HardwareOption, Pipeline, Stage, StageConfig, interpolate_latency
from unfold_pipeline.problem.problem import TunerSettings
from unfold_pipeline.problem.quotas import QuotaLimits
from unfold_pipeline.problem.sample import Sample, draw_sample, slice_sample
from unfold_pipeline.replay.simulated import simulate_rules
from unfold_pipeline.tuner import autoscalers, envelope_rule, table_rule
from unfold_pipeline.tuner.calibration import MAX_MISS_RATE, build_live_rule, calibrate_settings
from unfold_pipeline.tuner.table_rule import build_context_table, compute_table_targets
from unfoldkit.arrivals import processes

CPU = HardwareOption("cpu", 0.05, interpolate_latency([(1, 0.02), (8, 0.09)]))
GRAPH = Pipeline(
    (
        Stage("in", (), (CPU,)),
        Stage("left", (Edge(0, 0.7),), (CPU,)),
        Stage("right", (Edge(0, 0.6),), (CPU,)),
        Stage("join", (Edge(1), Edge(2)), (CPU,)),
        Stage("crops", (Edge(3, 0.5),), (CPU,), fan_out=1.5),
    )
)
PLAN = tuple(StageConfig(0, batch, count) for batch, count in ((4, 3), (4, 2), (2, 2), (4, 3), (4, 3)))


def traffic(rates: Sequence[float], length_s: float = 10.0, seed: int = 0) -> Sample:
    """Traffic with a changing rate."""
    arrivals = processes.piecewise_arrivals(rates, length_s, np.random.default_rng(seed))
    return draw_sample(GRAPH, arrivals, np.random.default_rng([seed, 1]))


@pytest.mark.e2e
def test_slice_of_a_sample_keeps_times_and_routes() -> None:
    """Without waiting, the queries of a slice take as long as in the complete sample."""
    sample = traffic([30.0, 90.0])
    plan = tuple(StageConfig(0, 1, 2000) for _ in PLAN)
    whole = Estimator(GRAPH, sample).compute_latencies(plan)
    for low, high in ((0, sample.size), (200, 777), (sample.size - 1, sample.size)):
        found = slice_sample(sample, low, high)
        assert np.abs(Estimator(GRAPH, found).compute_latencies(plan) - whole[low:high]).max() == 0.0
        assert found.size == high - low


def random_targets(sample: Sample, seed: int) -> ScalingTargets:
    """Targets that jump about."""
    rng = np.random.default_rng(seed)
    seconds = envelope_rule.list_decision_times(sample).size
    return ScalingTargets(tuple(np.repeat(rng.integers(1, 6, seconds), 3)[:seconds].astype(np.int64) for _ in PLAN))


@pytest.mark.e2e
def test_constant_targets_equal_the_plan() -> None:
    """With constant replicas, a simulated trace has the latencies of the estimator and the cost of the plan."""
    sample = traffic([30.0, 90.0])
    played = simulate_targets(GRAPH, sample, PLAN, build_constant_targets(PLAN, sample), 5.0)
    assert np.abs(played.latencies - Estimator(GRAPH, sample).compute_latencies(PLAN)).max() == 0.0
    assert played.hourly_cost == pytest.approx(GRAPH.cost(PLAN))


@pytest.mark.slow
def test_shared_instances_are_billed_while_in_use() -> None:
    """A trace is billed for the whole instances that hold the ordered replicas of all stages."""
    shared = replace(CPU, usd_per_hour=1.0, replicas_per_instance=4)
    graph = replace(GRAPH, stages=tuple(replace(stage, options=(shared,)) for stage in GRAPH.stages))
    sample = traffic([30.0, 90.0])
    assert (
        simulate_targets(graph, sample, PLAN, build_constant_targets(PLAN, sample), 5.0).hourly_cost
        == pytest.approx(graph.cost(PLAN))
        == 16.0
    )
    targets = build_constant_targets(PLAN, sample)
    end = get_trace_duration(sample)
    # 16 replicas still fit on the four instances of the plan's 13, and 18 need a fifth
    for count, instances in ((6, 4), (8, 5)):
        targets.replicas[0][5:10] = count
        drained = simulate_targets(graph, sample, PLAN, targets, 1.0).hourly_cost - (
            16.0 + 5 * (instances - 4) * 4.0 / end
        )
        assert -1e-9 <= drained <= (count - 3) * 0.1 / end


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("delay", [0.0, 2.0, 3.5])
def test_reactive_simulation_equals_known_targets(seed: int, delay: float) -> None:
    """A reactive rule that repeats known targets gives the latencies of the complete simulation, to the last bit."""
    sample = traffic([40.0, 100.0, 20.0], seed=seed)
    targets = random_targets(sample, seed)

    def look(now: float, _inside: Sequence[int], _ordered: Sequence[int]) -> list[int]:
        return [int(wanted[round(now)]) for wanted in targets.replicas]

    whole = simulate_targets(GRAPH, sample, PLAN, targets, delay)
    sliced = simulate_reactive_rule(GRAPH, sample, PLAN, look, delay)
    assert np.abs(whole.latencies - sliced.latencies).max() == 0.0
    assert whole.hourly_cost == pytest.approx(sliced.hourly_cost)


def test_rule_observes_queries_in_flight() -> None:
    """The queries in flight are never negative, and 0 long after the last arrival."""
    sample = traffic([60.0, 0.0, 0.0, 0.0, 60.0])
    seen: list[list[int]] = []

    def look(_now: float, inside: Sequence[int], ordered: Sequence[int]) -> list[int]:
        seen.append(list(inside))
        return list(ordered)

    simulate_reactive_rule(GRAPH, sample, PLAN, look, 1.0)
    assert min(min(row) for row in seen) >= 0
    assert sum(seen[39]) == 0
    assert max(max(row) for row in seen) > 0


def test_schedule_bills_orders_and_cancels_starting_replicas() -> None:
    """Orders are billed at once, serve after the delay, and starting replicas are cancelled first."""
    ledger = ReplicaSchedule(2, 5.0)
    ledger.set_target(10.0, 5)
    ledger.set_target(12.0, 3)
    assert ledger.ordered == 3
    assert ledger.changes == [(15.0, 1)]
    ledger.set_target(20.0, 1)
    ledger.settle_until(30.0)
    assert ledger.changes == [(15.0, 1), (20.0, -2)]
    assert ledger.billed_s == 2 * 10 + 5 * 2 + 3 * 8 + 1 * 10


def test_held_targets_fall_only_after_the_hold() -> None:
    """A target falls once it was lower for the whole hold, and rises at once."""
    targets = np.array([1, 5, 1, 1, 1, 1, 7, 1], dtype=np.int64)
    assert hold_maximum(targets, 3.0, 2).tolist() == [2, 5, 5, 5, 1, 1, 7, 7]


def test_targets_after_the_end_are_not_billed() -> None:
    """Targets after the end of the trace are neither ordered nor billed."""
    ledger = build_target_schedule(1, np.array([1, 1, 9], dtype=np.int64), 0.0, 1.5)
    assert ledger.billed_s == 1.5
    assert ledger.orders == 0


def the_brief(sample: Sample) -> envelope_rule.ScalingContext:
    """The hand-over of the plan."""
    return envelope_rule.build_scaling_context(GRAPH, PLAN, [sample], 0.5)


def test_rules_keep_the_plan_on_planned_traffic() -> None:
    """On the planned sample, no rule of InferLine scales above the plan, nor below it with a floor."""
    sample = traffic([60.0, 60.0, 60.0])
    for rule in (envelope_rule.compute_paper_targets, envelope_rule.compute_ratio_targets):
        targets = rule(the_brief(sample), sample, TunerSettings())
        assert [set(counts.tolist()) for counts in targets.replicas] == [{choice.replicas} for choice in PLAN]


@pytest.mark.e2e
def test_rules_follow_a_step() -> None:
    """When the rate triples, every rule orders more at every stage; the literal formula no less than the ratio."""
    sample, live = traffic([40.0] * 3), traffic([40.0, 120.0, 120.0], seed=4)
    own, setting = the_brief(sample), TunerSettings()
    found = {
        rule.__name__: rule(own, live, setting)
        for rule in (envelope_rule.compute_paper_targets, envelope_rule.compute_ratio_targets, compute_table_targets)
    }
    for targets in found.values():
        assert all(counts[25] > choice.replicas for counts, choice in zip(targets.replicas, PLAN, strict=True))
    for literal, relative in zip(
        found["compute_paper_targets"].replicas, found["compute_ratio_targets"].replicas, strict=True
    ):
        assert (literal >= relative).all()


def test_rules_without_floor_fall_below_the_plan() -> None:
    """Without the floor InferLine's rules fall below the plan when the rate dips; with it they do not."""
    sample, live = traffic([80.0] * 6), traffic([80.0, 8.0, 8.0, 8.0, 8.0, 80.0], seed=2)
    bare = envelope_rule.compute_ratio_targets(the_brief(sample), live, TunerSettings(has_floor=False))
    kept = envelope_rule.compute_ratio_targets(the_brief(sample), live, TunerSettings(has_floor=True))
    assert min(int(counts.min()) for counts in bare.replicas) < min(choice.replicas for choice in PLAN)
    assert all(int(counts.min()) >= choice.replicas for counts, choice in zip(kept.replicas, PLAN, strict=True))


@pytest.mark.slow
def test_short_windows_are_ignored() -> None:
    """A burst of a tenth of a second changes the table rule only if short windows count."""
    sample = traffic([60.0] * 6)
    arrivals = np.sort(np.concatenate([traffic([60.0] * 6, seed=3).arrivals, np.linspace(30.0, 30.1, 40)]))
    live = draw_sample(GRAPH, arrivals, np.random.default_rng(0))
    own = the_brief(sample)
    steps = build_context_table(own, TunerSettings())
    asked = [
        compute_table_targets(own, live, TunerSettings(min_window_s=item, has_floor=False, hold_s=5.0), steps)
        for item in (0.0, 4.0)
    ]
    most, least = ([int(counts[31:36].max()) for counts in targets.replicas] for targets in asked)
    assert all(a >= b for a, b in zip(most, least, strict=True))
    assert sum(most) > sum(least)


def test_calibrated_settings_meet_the_miss_rate() -> None:
    """The calibrated settings miss at most 0.3 % on the sample, if any settings do."""
    sample = traffic([50.0, 90.0, 40.0, 80.0])
    own = the_brief(sample)
    steps = build_context_table(own, TunerSettings())
    best = calibrate_settings(own, TunerSettings(delay_s=1.0), steps)
    played = simulate_targets(GRAPH, sample, PLAN, compute_table_targets(own, sample, best, steps), 1.0)
    assert played.miss_rate(own.slo_s) <= MAX_MISS_RATE


@pytest.mark.e2e
def test_rules_keep_the_plan_on_every_planned_sample() -> None:
    """No planned sample makes a rule of InferLine scale up, and their order does not matter."""
    samples = [traffic([20.0] * 3, seed=5), traffic([60.0] * 3), traffic([40.0] * 3, seed=6)]
    own, other = (envelope_rule.build_scaling_context(GRAPH, PLAN, given, 0.5) for given in (samples, samples[::-1]))
    for rule in (envelope_rule.compute_paper_targets, envelope_rule.compute_ratio_targets):
        for sample in samples:
            targets = rule(own, sample, TunerSettings())
            assert [set(counts.tolist()) for counts in targets.replicas] == [{choice.replicas} for choice in PLAN]
    assert own.loads == other.loads
    assert build_context_table(own, TunerSettings()) == build_context_table(other, TunerSettings())


def test_ray_serve_rule_respects_its_delays() -> None:
    """Ray Serve's rule adds after more than 30 s of demand and removes after more than 600 s without."""
    rule = autoscalers.build_ray_serve_rule(PLAN[:1], 100, [0.0])
    ordered, moved = 1, []
    for now in range(1000):
        wanted = rule(float(now), [20 if now < 100 else 0], [ordered])[0]
        if wanted != ordered:
            moved.append((now, wanted))
        ordered = wanted
    assert 30 <= moved[0][0] <= 40
    assert moved[0][1] == 10
    assert all(600 < now <= 800 for now, wanted in moved[1:])
    assert ordered == 1


def test_knative_does_not_shrink_in_panic() -> None:
    """If the 6-s mean needs twice the replicas, Knative follows at once and removes only after 60 s."""
    rule = autoscalers.build_knative_rule((StageConfig(0, 10, 1),), 100, [0.0])
    ordered = 1
    history = []
    for now in range(200):
        ordered = rule(float(now), [70 if 20 <= now < 30 else 0], [ordered])[0]
        history.append(ordered)
    assert max(history[:30]) == 10
    assert history[60] == 10
    assert history[-1] == 1


def test_knative_keeps_a_plan_that_it_finds_busy() -> None:
    """Knative starts with the queries that the plan has in flight, not with an empty window that halves the plan."""
    plan = (StageConfig(0, 10, 8),)
    rule, ordered = autoscalers.build_knative_rule(plan, 100, [50.0]), 8
    history = []
    for now in range(30):
        ordered = rule(float(now), [50], [ordered])[0]
        history.append(ordered)
    assert set(history) == {8}
    cold = autoscalers.build_knative_rule(plan, 100, [0.0])
    assert cold(0.0, [0], [8]) == [4]


def test_autoscalers_are_tuned_in_hindsight() -> None:
    """A replay shows the cheapest setting of an autoscaler that misses no more than our rule, and its default."""
    sample, live = traffic([40.0] * 4), traffic([40.0, 120.0, 40.0], seed=4)
    checker = build_slo_checker(GRAPH, [sample], 0.8)
    entries = {entry.name: entry for entry in simulate_rules(checker, PLAN, live, TunerSettings(delay_s=2.0))}
    limit = entries["calibrated"].trace.miss_rate(0.8)
    for name in ("Ray Serve", "Knative"):
        tuned, default = entries[name].trace, entries[f"{name}, defaults"].trace
        assert tuned.miss_rate(0.8) <= max(limit, default.miss_rate(0.8))
        if default.miss_rate(0.8) <= limit:
            assert tuned.hourly_cost <= default.hourly_cost
    assert entries["Knative, defaults"].settings == autoscalers.KnativeSettings()


def test_cost_is_that_of_the_ordered_replicas() -> None:
    """A trace costs between the least and the most ordered replicas, draining included."""
    sample = traffic([40.0, 100.0, 20.0])
    targets = random_targets(sample, 1)
    played = simulate_targets(GRAPH, sample, PLAN, targets, 1.0)
    assert 5 * 0.05 <= played.hourly_cost <= 25 * 0.05 * 1.05
    assert played.orders > 10
    assert get_trace_duration(sample) == pytest.approx(float(sample.arrivals[-1]))
    assert replica_schedule.list_serving_counts(3, played.schedules[0], 30.0)[0][0] == 0.0


@pytest.mark.parametrize("floor", [True, False])
@pytest.mark.parametrize("name", ["paper", "ratio", "table"])
def test_live_rule_decides_as_in_the_replay(name: str, floor: bool) -> None:
    """Called once a second with the arrivals so far, a rule decides as for the complete trace."""
    own, live = the_brief(traffic([40.0], 30.0, seed=9)), traffic([40.0, 200.0, 20.0, 5.0, 60.0], 30.0)
    setting = TunerSettings(has_floor=floor, hold_s=20.0)
    rule = build_live_rule(name, own, setting)
    now = envelope_rule.list_decision_times(live)
    found = [rule(live.arrivals[: np.searchsorted(live.arrivals, second, "right")], second) for second in now]
    targets = getattr(envelope_rule if name != "table" else table_rule, f"compute_{name}_targets")(own, live, setting)
    if name == "table":
        assert np.array_equal(np.array([step.batches for step in found]).T, np.array(targets.batches))
    ahead = list(targets.replicas)
    assert np.array_equal(np.array([step.replicas for step in found]).T, np.array(ahead))
    assert max(np.ptp(counts) for counts in ahead) > 0


@pytest.mark.parametrize("seed", range(20))
def test_stages_on_one_hardware_share_its_quota(seed: int) -> None:
    """The stages get all that they want or the whole quota, none less than planned or wanted."""
    rng = np.random.default_rng(seed)
    plan = tuple(StageConfig(0, 1, int(count)) for count in rng.integers(1, 4, 3))
    wanted = [int(count) for count in rng.integers(1, 12, 3)]
    most = sum(choice.replicas for choice in plan) + int(rng.integers(0, 6))
    planned = np.array([choice.replicas for choice in plan])
    given = QuotaLimits(np.zeros(3, np.int64), np.array([most]), planned).share_replicas(wanted)
    assert sum(given) == min(most, sum(wanted))
    for count, want, choice in zip(given, wanted, plan, strict=True):
        assert min(want, choice.replicas) <= count <= want


def test_quota_is_shared_in_proportion_to_demand() -> None:
    """Two stages that want twice and four times the surplus get a third and two thirds of it."""
    limits = QuotaLimits(np.array([0, 0, -1]), np.array([8]), np.ones(3, np.int64))
    assert limits.share_replicas((5, 9, 7)) == (3, 5, 7)
