"""For an infeasible problem the reported quota or target admits a plan, and nothing smaller does."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from plugins.pipeline.tests.helpers import build_checker, chain, ignore_progress, option
from unfold_pipeline.estimator.slo import SloChecker
from unfold_pipeline.planner import infeasibility, planner
from unfold_pipeline.problem.pipeline import Plan, StageConfig, count_by_hardware
from unfold_pipeline.problem.problem import SearchBudget

KINDS = {"cpu": 8, "one": 6, "two": 4}
"""More of a kind are not tried here, and are not needed by the pipelines below."""


def tight(seed: int, **quotas: int) -> SloChecker:
    """Two stages on three kinds of hardware of which there is too little."""
    rng = np.random.default_rng(seed)
    offered = [
        tuple(
            option(name, price, base / speed, slope / speed)
            for name, price, speed in (("cpu", 0.1, 1.0), ("one", 0.6, 4.0), ("two", 1.0, 6.0))
        )
        for base, slope in rng.uniform(0.01, 0.05, (2, 2))
    ]
    return build_checker(replace(chain(*offered), quotas=tuple(quotas.items())), 0.15, seconds=4.0, seed=seed)


def used(checker: SloChecker, plan: Plan) -> dict[str, int]:
    """Return the replicas of each kind."""
    return count_by_hardware(checker.pipeline.chosen_options(plan), [choice.replicas for choice in plan])


def raises(checker: SloChecker) -> list[int]:
    """Return by how much a single quota is raised at least, of all plans that meet the limit."""
    free, quotas = replace(checker, pipeline=replace(checker.pipeline, quotas=())), dict(checker.pipeline.quotas)
    offers = [
        [
            StageConfig(p, b, k)
            for p, o in enumerate(stage.options)
            for b in o.batch_sizes
            for k in range(1, KINDS[o.hardware])
        ]
        for stage in checker.pipeline.stages
    ]
    found = []
    for plan in itertools.product(*offers):
        over = [count - quotas[name] for name, count in used(checker, plan).items() if count > quotas[name]]
        if len(over) == 1 and free.meets_slo(plan):
            found.append(over[0])
    return found


@pytest.mark.parametrize(
    ("one", "two", "seed"),
    [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3), (1, 0, 1), (1, 0, 2), (1, 0, 3), (0, 1, 1), (0, 1, 2)],
)
def test_required_quota_is_minimal(one: int, two: int, seed: int) -> None:
    """The reported quota admits a plan, and no plan needs a smaller increase of a single quota."""
    checker = tight(seed, cpu=2, one=one, two=two)
    assert isinstance(planner.find_plan(checker, SearchBudget(), ignore_progress), planner.NoPlan)
    (required,) = infeasibility.explain_infeasibility(checker, 1e8).quotas
    quotas = dict(checker.pipeline.quotas)
    assert required.quota - quotas[required.hardware] == min(raises(checker))
    quotas[required.hardware] = required.quota
    raised = replace(checker, pipeline=replace(checker.pipeline, quotas=tuple(quotas.items())))
    assert isinstance(planner.find_plan(raised, SearchBudget(), ignore_progress), planner.Solution)


@pytest.mark.parametrize("seed", [1, 4, 5, 6, 7])
def test_relaxed_target_is_minimal(seed: int) -> None:
    """The reported target admits a plan, and a target that is 3 % tighter does not."""
    checker = tight(seed, cpu=4, one=1, two=0)
    obstacle = infeasibility.explain_infeasibility(checker, 1e8)
    assert obstacle.relaxed_slo_s is not None
    for limit, kind in ((obstacle.relaxed_slo_s, planner.Solution), (obstacle.relaxed_slo_s * 0.97, planner.NoPlan)):
        assert isinstance(planner.find_plan(replace(checker, slo_s=limit), SearchBudget(), ignore_progress), kind)


def test_quotas_that_must_be_raised_together_are_all_named() -> None:
    """If no single quota suffices, all of them are reported."""
    first, second = (option("one", 1.0, 0.01, 0.01),), (option("two", 1.0, 0.01, 0.01),)
    checker = build_checker(replace(chain(first, second), quotas=(("one", 0), ("two", 0))), 0.3, seconds=4.0)
    obstacle = infeasibility.explain_infeasibility(checker, 1e8)
    assert [required.hardware for required in obstacle.quotas] == ["one", "two"]
    quotas = tuple((required.hardware, required.quota) for required in obstacle.quotas)
    raised = replace(checker, pipeline=replace(checker.pipeline, quotas=quotas))
    assert isinstance(planner.find_plan(raised, SearchBudget(), ignore_progress), planner.Solution)
