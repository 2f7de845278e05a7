"""Laws of the paper's greedy, beside the exact search."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfold_cascade._types import FloatArray
from unfold_cascade.gates.exact_search import evaluate_cuts, search_exact_front
from unfold_cascade.gates.hard_gating import (
    GreedyPolicy,
    apply_cut,
    build_greedy_policy,
    build_greedy_problem,
    search_greedy_for_loss,
    start_greedy,
    total_after_cuts,
)
from unfold_cascade.gates.pareto import find_pareto_points

Tables = tuple[FloatArray, FloatArray, FloatArray]


def hard_gating(
    score: FloatArray, loss: FloatArray, cost: FloatArray, budget: float, *, bins: int = 64
) -> GreedyPolicy | None:
    """Set one gate after the other to the cut of least loss within the remaining budget (Algorithm 1)."""
    problem = build_greedy_problem(score, loss, cost, [np.linspace(0.0, 1.0, bins)] * score.shape[1])
    state, rows = start_greedy(problem), len(problem.loss)
    if state.cost / rows > budget:
        return None
    for _ in problem.candidates:
        losses, costs = total_after_cuts(problem, state)
        choices = find_pareto_points(losses, costs)
        affordable = np.searchsorted(costs[choices] / rows, budget, side="right") - 1
        state = apply_cut(problem, state, int(choices[affordable]), losses, costs)
    return build_greedy_policy(problem, state)


@st.composite
def tables(draw: st.DrawFn) -> Tables:
    k, n = draw(st.sampled_from((2, 3, 4))), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    score, loss = rng.integers(0, 5, (n, k - 1)) / 5, rng.integers(0, 2, (n, k)) * 1.0
    dearest = draw(st.sampled_from((2, 32)))  # few prices make costs tie, where intervals of budgets are empty
    return score, loss, rng.integers(1, dearest + 1, (n, k)) / 16


def _plain(table: Tables, budget: float, grid: list[float]) -> tuple[float, float] | None:
    """Follow Algorithm 1 by the letter: try every cut of a gate on the whole cascade so far."""
    score, loss, cost = table
    if cost[:, 0].mean() > budget:
        return None
    done: list[list[float]] = []
    for gate in range(score.shape[1]):
        part = score[:, : gate + 1], loss[:, : gate + 2], cost[:, : gate + 2]
        tries = [[*done, [-np.inf, cut]] for cut in [-np.inf, *grid]]
        fits = [(evaluate_cuts(*part, np.array(cuts)), cuts) for cuts in tries]
        done = min((fit for fit in fits if fit[0][1] <= budget + 1e-12), key=lambda fit: fit[0])[1]
    return evaluate_cuts(*table, np.array(done))


@given(tables(), st.integers(0, 96))
def test_greedy_equals_the_published_algorithm(table: Tables, budget: int) -> None:
    """Prefix sums give what trying every cut on the whole cascade gives."""
    found = hard_gating(*table, budget / 16, bins=6)
    plain = _plain(table, budget / 16, np.linspace(0, 1, 6).tolist())
    assert (found is None) == (plain is None)
    if found is not None:
        assert (found.loss, found.cost) == pytest.approx(plain, abs=1e-12)
        assert evaluate_cuts(*table, found.cuts) == pytest.approx((found.loss, found.cost), abs=1e-12)


@given(tables(), st.integers(0, 96))
def test_exact_is_never_worse_than_greedy(table: Tables, budget: int) -> None:
    """At the cost that greedy spends, the exact front has no more loss."""
    found = hard_gating(*table, budget / 16)
    if found is not None:
        front = search_exact_front(*table)
        point = front.best_within(found.cost + 1e-12)
        assert point is not None
        assert front.loss[point] <= found.loss + 1e-12


@pytest.mark.e2e
@given(tables(), st.integers(0, 12))
@settings(max_examples=60)
def test_greedy_uses_the_smallest_budget(table: Tables, wrong: int) -> None:
    """No budget below the one found reaches the target, and that one does."""
    target = wrong / len(table[1])
    found = search_greedy_for_loss(*table, target, bins=6)
    budgets = np.unique(np.arange(0, 33 * 4 * len(table[1]) + 1) / 16 / len(table[1]))
    runs = (hard_gating(*table, float(b) + 1e-12, bins=6) for b in budgets)
    first = next((run for run in runs if run is not None and run.loss <= target), None)
    assert _figures(found) == pytest.approx(_figures(first), abs=1e-12)


def _figures(policy: GreedyPolicy | None) -> tuple[float, ...]:
    return () if policy is None else (policy.loss, policy.cost)


def test_greedy_starves_the_later_gate() -> None:
    """Money spent at gate 1 for a small gain is missing at gate 2, where the joint optimum spends it."""
    score = np.array([[0.5, 0.9]] * 2 + [[0.2, 0.1]] * 2)
    loss = np.array([[1.0, 0.9, 0.9]] * 2 + [[1.0, 1.0, 0.0]] * 2)
    price = np.array([1.0, 1.0, 1.0])
    greedy, front = hard_gating(score, loss, price, 2.0, bins=11), search_exact_front(score, loss, price)
    best = front.best_within(2.0)
    assert greedy is not None
    assert best is not None
    assert greedy.loss == pytest.approx(0.95)
    assert front.loss[best] == pytest.approx(0.5)


def test_a_budget_equal_to_the_next_cost_takes_the_next_cut() -> None:
    """Where gate 2 would cost what gate 1's next cut costs, greedy has spent it at gate 1 already."""
    score = np.array([[0.1, 0.1], [0.5, 0.9]])
    loss = np.array([[1.0, 0.9, 0.0], [1.0, 0.9, 0.9]])
    price = np.array([1.0, 1.0, 1.0])
    at_step, found = hard_gating(score, loss, price, 2.0), search_greedy_for_loss(score, loss, price, 0.5)
    assert at_step is not None
    assert at_step.loss == pytest.approx(0.9)
    assert found is not None
    assert (found.loss, found.cost) == pytest.approx((0.45, 2.5))
