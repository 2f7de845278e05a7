"""Where no plan is within the quotas, the quota that is said to do does, and none does with less."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from plugins.pipeline.tests.test_planner import chain, judged, option, quiet
from unfold_pipeline.estimator.slo import Judge
from unfold_pipeline.planner import infeasibility, planner
from unfold_pipeline.problem.pipeline import Choice, Plan, counted

KINDS = {"cpu": 8, "one": 6, "two": 4}
"""More of a kind are not tried here, and are not needed by the pipelines below."""


def tight(seed: int, **quotas: int) -> Judge:
    """Two stages on three kinds of hardware of which there is too little."""
    rng = np.random.default_rng(seed)
    offered = [
        tuple(
            option(name, price, base / speed, slope / speed)
            for name, price, speed in (("cpu", 0.1, 1.0), ("one", 0.6, 4.0), ("two", 1.0, 6.0))
        )
        for base, slope in rng.uniform(0.01, 0.05, (2, 2))
    ]
    return judged(replace(chain(*offered), quotas=tuple(quotas.items())), 0.15, seconds=4.0, seed=seed)


def used(judge: Judge, plan: Plan) -> dict[str, int]:
    """Return the replicas of each kind."""
    return counted(judge.pipeline.options(plan), [choice.replicas for choice in plan])


def raises(judge: Judge) -> list[int]:
    """Return by how much a single quota is raised at least, of all plans that meet the limit."""
    free, quotas = replace(judge, pipeline=replace(judge.pipeline, quotas=())), dict(judge.pipeline.quotas)
    offers = [
        [Choice(p, b, k) for p, o in enumerate(stage.options) for b in o.batches for k in range(1, KINDS[o.hardware])]
        for stage in judge.pipeline.stages
    ]
    found = []
    for plan in itertools.product(*offers):
        over = [count - quotas[name] for name, count in used(judge, plan).items() if count > quotas[name]]
        if len(over) == 1 and free.meets(plan):
            found.append(over[0])
    return found


@pytest.mark.parametrize(
    ("one", "two", "seed"),
    [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3), (1, 0, 1), (1, 0, 2), (1, 0, 3), (0, 1, 1), (0, 1, 2)],
)
def test_the_least_raise_of_a_quota_is_told(one: int, two: int, seed: int) -> None:
    """Of all plans, none is within quotas of which one is raised less than is told, and with that there is a plan."""
    judge = tight(seed, cpu=2, one=one, two=two)
    assert isinstance(planner.seek(judge, planner.Effort(), quiet), planner.Unmet)
    ((name, wanted),) = infeasibility.explain(judge, 1e8).quotas
    quotas = dict(judge.pipeline.quotas)
    assert wanted - quotas[name] == min(raises(judge))
    raised = replace(judge, pipeline=replace(judge.pipeline, quotas=tuple({**quotas, name: wanted}.items())))
    assert isinstance(planner.seek(raised, planner.Effort(), quiet), planner.Outcome)


@pytest.mark.parametrize("seed", [1, 4, 5, 6, 7])
def test_the_least_relaxation_of_the_target_is_told(seed: int) -> None:
    """With the limit that is told there is a plan, and with one that is 3 % tighter there is none."""
    judge = tight(seed, cpu=4, one=1, two=0)
    told = infeasibility.explain(judge, 1e8)
    assert told.relaxed is not None
    for limit, kind in ((told.relaxed, planner.Outcome), (told.relaxed * 0.97, planner.Unmet)):
        assert isinstance(planner.seek(replace(judge, limit=limit), planner.Effort(), quiet), kind)


def test_quotas_that_must_be_raised_together_are_told_together() -> None:
    """Where no single quota is in the way alone, all of them are named."""
    first, second = (option("one", 1.0, 0.01, 0.01),), (option("two", 1.0, 0.01, 0.01),)
    judge = judged(replace(chain(first, second), quotas=(("one", 0), ("two", 0))), 0.3, seconds=4.0)
    told = infeasibility.explain(judge, 1e8)
    assert [name for name, _ in told.quotas] == ["one", "two"]
    raised = replace(judge, pipeline=replace(judge.pipeline, quotas=told.quotas))
    assert isinstance(planner.seek(raised, planner.Effort(), quiet), planner.Outcome)
