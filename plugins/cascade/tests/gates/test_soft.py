"""Laws of learnt gates: soft ones by gradient, and backward induction."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import check_grad

from unfold_cascade._types import FloatArray
from unfold_cascade.gates.chains import search_chains
from unfold_cascade.gates.exact_search import evaluate_cuts, search_exact_front
from unfold_cascade.gates.soft import expected_value, find_best_interval, induce_gates, learn_cuts, learn_gates

SEEDS = range(12)


def _zoo(seed: int, models: int = 3, rows: int = 300) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return confidences that carry information about errors, the errors, and rising prices."""
    rng = np.random.default_rng(seed)
    hard = rng.random(rows)
    skill = np.linspace(0.5, 0.9, models)
    loss = (rng.random((rows, models)) < hard[:, None] * (1.3 - skill)).astype(np.float64)
    score = np.clip(1 - hard[:, None] * 0.6 + rng.normal(0, 0.15, (rows, models - 1)), 0, 1)
    return score, loss, np.cumsum(rng.random(models) + 0.2)


def _priced(tables: tuple[FloatArray, FloatArray, FloatArray], cuts: FloatArray, lam: float) -> float:
    lost, paid = evaluate_cuts(*tables, cuts)
    return lost + lam * paid


@pytest.mark.parametrize("seed", SEEDS)
def test_the_gradient_equals_finite_differences(seed: int) -> None:
    """The closed-form gradient of the expected loss equals finite differences."""
    score, loss, cost = _zoo(seed, models=4)
    at = np.random.default_rng(seed).normal(0, 2, 2 * score.shape[1])
    found = check_grad(
        lambda x: expected_value(x, score, loss, cost, 0.1)[0],
        lambda x: expected_value(x, score, loss, cost, 0.1)[1],
        at,
    )
    assert found < 1e-5


@pytest.mark.parametrize("seed", SEEDS)
def test_sharp_soft_gates_equal_hard_gates(seed: int) -> None:
    """With slopes that decide every row, the expected value is that of the hardened cascade."""
    score, loss, cost = _zoo(seed)
    cuts = np.random.default_rng(seed).uniform(0.3, 0.9, score.shape[1])
    at = np.concatenate((np.full(len(cuts), -1e9), 1e9 * cuts))
    hard = np.stack((np.full(len(cuts), -np.inf), cuts), axis=1)
    assert expected_value(at, score, loss, cost, 0.1)[0] == pytest.approx(
        _priced((score, loss, cost), hard, 0.1), abs=1e-9
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_learning_improves_on_trivial_gates(seed: int) -> None:
    """The gates learnt expect no more loss plus priced cost than never asking on, and than always asking on."""
    score, loss, cost = _zoo(seed)
    for lam in (0.01, 0.1, 0.5):
        sides = [expected_value(np.array([0.0, 0.0, b, b]), score, loss, cost, lam)[0] for b in (-40.0, 40.0)]
        assert learn_gates(score, loss, cost, lam, seed).value <= min(sides) + 1e-6


@pytest.mark.parametrize("seed", SEEDS)
def test_soft_gates_beside_the_exact_search_are_never_worse(seed: int) -> None:
    """The merged front has at most the loss plus weighted cost of the exact optimum, on the same rows."""
    tables = _zoo(seed)
    exact = search_exact_front(*tables)
    merged = search_chains([(0, 1, 2)], lambda _chain: tables, also=lambda given: learn_cuts(given, ("soft",))).front
    for lam in (0.01, 0.1, 0.5):
        best = float((exact.loss + lam * exact.cost).min())
        assert float((merged.loss + lam * merged.cost).min()) <= best + 1e-12


@pytest.mark.parametrize("seed", SEEDS)
def test_the_best_interval_equals_brute_force(seed: int) -> None:
    """The interval equals brute force over all pairs of distinct scores, ties included."""
    rng = np.random.default_rng(seed)
    score, gain = np.round(rng.random(40), 1), rng.normal(-0.1, 1.0, 40)
    lo, hi = find_best_interval(score, gain, 999)
    edges = [*np.unique(score), np.inf]
    sums = [gain[(score >= a) & (score < b)].sum() for a, b in combinations(edges, 2)]
    assert gain[(score >= lo) & (score < hi)].sum() == pytest.approx(max(0.0, *sums))


@pytest.mark.parametrize("seed", SEEDS)
def test_induction_of_one_gate_is_exact(seed: int) -> None:
    """With two models, backward induction equals the exact two-sided search at the same price of cost."""
    tables = _zoo(seed, models=2, rows=60)
    for lam in (0.01, 0.1, 0.5):
        front = search_exact_front(*tables, bins=999, two_sided=True)
        best = float((front.loss + lam * front.cost).min())
        assert _priced(tables, induce_gates(*tables, lam, bins=999), lam) == pytest.approx(best)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_sided_induction_of_one_gate_is_exact(seed: int) -> None:
    """With two models and nothing stopped from below, backward induction equals the exact one-sided search."""
    tables = _zoo(seed, models=2, rows=60)
    for lam in (0.01, 0.1, 0.5):
        front = search_exact_front(*tables)
        best = float((front.loss + lam * front.cost).min())
        cuts = induce_gates(*tables, lam, bins=999, one_sided=True)
        assert np.isneginf(cuts[:, 0]).all()
        assert _priced(tables, cuts, lam) == pytest.approx(best)


@pytest.mark.parametrize("seed", SEEDS)
def test_learnt_gates_beside_coarse_exact_ones_only_add(seed: int) -> None:
    """With gates learnt beside a coarse search, each point has the loss and cost of its cuts, and none is lost."""
    tables = _zoo(seed)
    alone, both = (
        search_chains(
            [(0, 1, 2)], lambda _chain: tables, bins=4, also=lambda given, kinds=kinds: learn_cuts(given, kinds)
        )  # type: ignore[misc]
        for kinds in ((), ("soft", "induction"))
    )
    for point in range(len(both.front)):
        found = evaluate_cuts(*tables, both.policy(point)[1])
        assert found == pytest.approx((both.front.loss[point], both.front.cost[point]))
    for loss, cost in zip(alone.front.loss, alone.front.cost, strict=True):
        assert ((both.front.loss <= loss) & (both.front.cost <= cost)).any()


def test_learnt_gates_beat_coarse_exact_ones_somewhere() -> None:
    """Where the exact search has few bins, gates learnt on the rows themselves add points that it has not."""
    gained = 0
    for seed in SEEDS:
        tables = _zoo(seed)
        coarse = search_exact_front(*tables, bins=3)
        for cuts in learn_cuts(tables, ("soft", "induction")):
            loss, cost = evaluate_cuts(*tables, cuts)
            gained += not ((coarse.loss <= loss) & (coarse.cost <= cost)).any()
    assert gained > len(SEEDS)
