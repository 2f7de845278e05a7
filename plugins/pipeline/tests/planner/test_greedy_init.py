"""The initial plan of greedy is within the quotas wherever one is near."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unfold_pipeline.estimator.slo import SloChecker, build_slo_checker
from unfold_pipeline.planner import greedy, infeasibility, planner
from unfold_pipeline.planner.greedy_init import find_initial_plan
from unfold_pipeline.problem.pipeline import Edge, HardwareOption, Pipeline, Stage, interpolate_latency
from unfold_pipeline.problem.problem import SearchBudget
from unfold_pipeline.problem.sample import draw_sample
from unfoldkit.arrivals import processes


def option(hardware: str, price: float, *points: tuple[int, float]) -> HardwareOption:
    """An option with the latency of some batches."""
    return HardwareOption(hardware, price, interpolate_latency(points))


L4, H100 = option("l4", 0.7, (1, 0.3)), option("h100", 7.0, (1, 0.1))


def build_checker(pipeline: Pipeline, limit: float, rate: float = 25.0) -> SloChecker:
    """A checker of half a minute of traffic."""
    arrivals = processes.gamma_arrivals(rate, 30.0, np.random.default_rng(0))
    return build_slo_checker(pipeline, [draw_sample(pipeline, arrivals, np.random.default_rng(1))], limit)


def line(*stages: tuple[HardwareOption, ...], quota: int) -> Pipeline:
    """Stages one behind the other, with a quota of h100."""
    made = tuple(Stage(f"s{i}", (Edge(i - 1),) if i else (), offered) for i, offered in enumerate(stages))
    return Pipeline(made, (("h100", quota),))


def hardware(checker: SloChecker) -> list[str]:
    """The hardware of each stage at the start."""
    found = find_initial_plan(checker)
    assert found is not None
    assert checker.meets_slo(found)
    return [stage.options[choice.option].hardware for stage, choice in zip(checker.pipeline.stages, found, strict=True)]


def test_start_uses_other_hardware_beyond_the_quota() -> None:
    """If the fastest hardware cannot sustain the load within its quota, the start uses other hardware."""
    assert hardware(build_checker(line((L4, H100), quota=2), 1.0)) == ["l4"]
    assert hardware(build_checker(line((L4, H100), quota=6), 1.0)) == ["h100"]


def test_start_splits_a_quota_over_stages() -> None:
    """Of stages that are all fastest on limited hardware, some keep it and the others move."""
    short = option("l4", 0.7, (1, 0.2))
    found = hardware(build_checker(line((L4, H100), (short, H100), quota=4), 0.9))
    assert sorted(found) == ["h100", "l4"]


def test_start_prefers_larger_batches_to_slow_hardware() -> None:
    """If only limited hardware meets the SLO, the start sustains the load with larger batches."""
    batched = option("h100", 7.0, (1, 0.1), (8, 0.15))
    assert hardware(build_checker(line((L4, batched), quota=2), 0.29)) == ["h100"]


def test_greedy_finds_a_plan_within_quotas() -> None:
    """With a quota that the fastest hardware exceeds, even a stopped search ends with a plan."""
    checker = build_checker(line((option("l4", 0.7, (1, 0.01)),), (L4, H100), quota=2), 1.0)
    outcome = planner.find_plan(checker, SearchBudget(max_simulated_queries=1.0), lambda _step, _done, _total: None)
    assert isinstance(outcome, planner.Solution)
    whole = planner.find_plan(checker, SearchBudget(), lambda _step, _done, _total: None)
    assert isinstance(whole, planner.Solution)
    assert outcome.hourly_cost == pytest.approx(whole.hourly_cost)


def test_start_without_quotas_is_that_of_inferline() -> None:
    """Without a binding quota the start is batch 1 on the fastest hardware; one replica less is late."""
    checker = build_checker(Pipeline(line((L4, H100), quota=1).stages), 0.5)
    found = find_initial_plan(checker)
    assert found is not None
    assert (found[0].option, found[0].batch) == (1, 1)
    assert not checker.meets_slo((replace(found[0], replicas=found[0].replicas - 1),))


def test_rare_slow_stage_does_not_stop_greedy() -> None:
    """A stage slower than the SLO does not stop greedy if few enough queries visit it."""
    rare = Stage("rare", (Edge(0, 0.002),), (option("l4", 0.7, (1, 2.0)),))
    checker = build_checker(Pipeline((Stage("s0", (), (H100,)), rare)), 0.5, rate=40.0)
    assert checker.single_query_latency(tuple(find_initial_plan(checker) or ())) > checker.slo_s
    assert greedy.plan_greedily(checker).plan is not None


def test_no_start_beyond_the_quotas() -> None:
    """A load above all hardware, and a target below one service time, have no initial plan."""
    assert find_initial_plan(build_checker(line((H100,), quota=1), 1.0)) is None
    assert find_initial_plan(build_checker(line((L4, H100), quota=2), 0.05)) is None


def test_small_relaxation_is_found_under_a_quota() -> None:
    """If the fastest hardware exceeds its quota, a target slightly above the service time elsewhere is reported."""
    checker = build_checker(line((option("l4", 0.7, (1, 0.01)),), (L4, H100), quota=2), 0.3)
    assert isinstance(planner.find_plan(checker, SearchBudget(), lambda _step, _done, _total: None), planner.NoPlan)
    obstacle = infeasibility.explain_infeasibility(checker, 1e8)
    assert obstacle.relaxed_slo_s is not None
    assert obstacle.relaxed_slo_s < 0.33
