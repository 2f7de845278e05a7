"""Whole cascades: routed, priced and searched as a plain loop would."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfold_cascade.planner.policy import Policy, StagePolicy, follow
from unfold_cascade.planner.policy_search import PolicyFront, search_policies
from unfold_cascade.planner.problem import GateOptions
from unfold_cascade.planner.score_tables import ScoreTable, ScoreTables


def _question(
    generator: np.random.Generator, stage: str, answers: np.ndarray, truth: np.ndarray, models: int
) -> ScoreTable:
    n = len(truth)
    right = generator.random((n, models)) < np.linspace(0.6, 0.95, models)
    other = generator.choice(answers, (n, models))
    answer = np.where(right & np.isin(truth, answers)[:, None], truth[:, None], other)
    score = np.round(generator.random((n, models)), 1)
    price = np.sort(generator.integers(1, 20, models)).astype(float)
    buys = tuple(frozenset({"x"}) if m % 2 else frozenset[str]() for m in range(models))
    return ScoreTable(stage, "all", tuple("abcd"[:models]), answer, score, price, buys, price / 10)


def _zoo(seed: int, n: int = 24) -> tuple[ScoreTables, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    groups = np.array([0, 0, 1, 1])
    labels = generator.integers(0, 4, n)
    first = _question(generator, "first", np.array([0, 1]), groups[labels], 2)
    then = {g: _question(generator, "then", np.flatnonzero(groups == g), labels, 2) for g in (0, 1)}
    return ScoreTables(first, then, first, {"x": 5.0}, {"x": 1.0}, "$"), labels, groups


def _walk(zoo: ScoreTables, policy: Policy, row: int) -> tuple[int, float]:
    """Follow one case, model by model."""
    paid, have, answer = 0.0, set(), -1
    question, step = zoo.first_stage, policy.first_stage
    for _ in range(2):
        for position, model in enumerate(step.chain):
            paid += question.price[model] + sum(
                zoo.shared_prices[name] for name in question.feature_groups[model] - have
            )
            have |= question.feature_groups[model]
            answer = int(question.answer[row, model])
            if position == len(step.chain) - 1 or question.score[row, model] >= step.cuts[position]:
                break
        if question is not zoo.first_stage:
            break
        question, step = zoo.second_stage[answer], policy.second_stage[answer]
    return answer, paid


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_following_a_policy_equals_a_loop_over_models(seed: int, a: float, b: float) -> None:
    """Answers and costs of the arrays equal those of a walk, case by case, with shared features paid once."""
    zoo, labels, _ = _zoo(seed)
    policy = Policy(StagePolicy((0, 1), (a,)), {0: StagePolicy((0, 1), (b,)), 1: StagePolicy((1,), ())})
    rows = np.arange(len(labels))
    outcome = follow(zoo, policy, rows)
    walked = [_walk(zoo, policy, int(row)) for row in rows]
    assert outcome.answer.tolist() == [answer for answer, _ in walked]
    assert outcome.cost == pytest.approx([paid for _, paid in walked])


@given(st.integers(0, 10_000))
def test_front_points_equal_following_their_policy(seed: int) -> None:
    """Every point of a two-stage front reproduces its own loss and cost on the rows that it was searched on."""
    zoo, labels, groups = _zoo(seed)
    rows = np.arange(len(labels))
    front = search_policies(zoo, labels, groups, rows, GateOptions())
    for loss, cost, policy in zip(front.loss, front.cost, front.policies, strict=True):
        outcome = follow(zoo, policy, rows)
        assert float((outcome.answer != labels).mean()) == pytest.approx(loss)
        assert float(outcome.cost.mean()) == pytest.approx(cost)


@pytest.mark.e2e
@given(st.integers(0, 10_000))
def test_second_stages_equal_brute_force(seed: int) -> None:
    """With a one-model first question the front equals brute force over all second steps of both groups."""
    zoo, labels, groups = _zoo(seed, n=12)
    single = ScoreTable("first", "all", ("a",), *_only(zoo.first_stage))
    zoo = ScoreTables(single, zoo.second_stage, single, zoo.shared_prices, zoo.shared_times_us, "$")
    rows = np.arange(len(labels))
    front = search_policies(zoo, labels, groups, rows, GateOptions())
    steps = {g: list(_all_steps(question)) for g, question in zoo.second_stage.items()}
    for one, two in itertools.product(steps[0], steps[1]):
        outcome = follow(zoo, Policy(StagePolicy((0,), ()), {0: one, 1: two}), rows)
        loss, cost = float((outcome.answer != labels).mean()), float(outcome.cost.mean())
        assert ((front.loss <= loss + 1e-9) & (front.cost <= cost + 1e-9)).any()


@given(st.integers(0, 10_000))
def test_either_score_is_as_good_as_the_better_one(seed: int) -> None:
    """One question searched on both scores loses, at every cost, what the better of the two searches does."""
    zoo, labels, groups = _zoo(seed, n=60)
    alone = ScoreTables(zoo.first_stage, {}, zoo.first_stage, zoo.shared_prices, zoo.shared_times_us, "$")
    ways: tuple[tuple[bool, ...], ...] = ((False,), (True,), (False, True))
    plain, knowing, both = (
        search_policies(alone, groups[labels], groups, np.arange(len(labels)), GateOptions(conditional=way))
        for way in ways
    )
    for cost in np.concatenate((plain.cost, knowing.cost)):
        least = min(_loss_within(front, cost) for front in (plain, knowing))
        assert _loss_within(both, cost) == pytest.approx(least)


def _loss_within(front: PolicyFront, cost: float) -> float:
    return min(front.loss[front.cost <= cost + 1e-9], default=np.inf)


def _only(question: ScoreTable) -> list[Any]:
    return [
        question.answer[:, :1],
        question.score[:, :1],
        question.price[:1],
        question.feature_groups[:1],
        question.latency_us[:1],
    ]


def _all_steps(question: ScoreTable) -> list[StagePolicy]:
    order = [int(m) for m in np.argsort(question.price, kind="stable")]
    cuts = [*np.unique(question.score[:, order[0]]), np.inf]
    return [
        StagePolicy((order[0],), ()),
        StagePolicy((order[1],), ()),
        *(StagePolicy(tuple(order), (float(cut),)) for cut in cuts),
    ]


def test_a_last_resort_that_stages_share_comes_last_in_the_second_one() -> None:
    """Its own price is 0, as it is paid once a case, but a cheap model goes first where the first stage did without."""
    labels = np.array([0, 1, 2, 3] * 10)
    groups, rows = np.array([0, 0, 1, 1]), np.arange(len(labels))
    is_hard = rows % 10 == 0
    shared = (frozenset[str](), frozenset({"whole"}))
    score = np.column_stack((np.where(is_hard, 0.1, 0.9), np.ones(len(rows))))
    answers = np.column_stack((np.where(is_hard, (labels + 1) % 4, labels), labels))
    times, prices = np.full(2, np.nan), np.array([1.0, 0.0])
    first = ScoreTable(
        "group", "all", ("a", "whole"), groups[np.column_stack((labels, labels))], score, prices, shared, times
    )
    second = {
        number: ScoreTable("label", str(number), ("b", "whole"), answers, score, prices, shared, times)
        for number in (0, 1)
    }
    tables = ScoreTables(first, second, first, {"whole": 20.0}, {}, "$")
    front = search_policies(tables, labels, groups, rows, GateOptions())
    assert front.loss[-1] == 0.0
    assert front.cost[-1] == pytest.approx(1.0 + 1.0 + 0.1 * 20.0)
    assert {stage.chain for stage in front.policies[-1].second_stage.values()} == {(0, 1)}
