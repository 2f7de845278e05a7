"""Laws of scores that know the answer."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.gates.calibrated import (
    calibrate,
    cross_calibrate,
    encode_contexts,
    fit_chain,
    score_chain,
)
from unfold_cascade.gates.chains import (
    Chain,
    ChainFront,
    Tables,
    list_chains,
    search_all_chains,
    search_chains,
    select_chain_tables,
)
from unfold_cascade.gates.exact_search import evaluate_cuts

ROWS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=40).map(
    lambda rows: np.array(rows).T
)


@given(ROWS)
def test_score_rises_with_confidence_in_each_context(rows: np.ndarray) -> None:
    """In one context more confidence never means a lower score, and scores stay within the targets."""
    calibration = calibrate(rows[0] / 8, rows[1], rows[2].astype(np.float64))
    grid = np.linspace(-0.5, 1.5, 33)
    for context in range(4):
        score = calibration(grid, np.full(33, context))
        assert (np.diff(score) >= -1e-12).all()
        assert ((score >= -1e-12) & (score <= 1 + 1e-12)).all()


@given(ROWS)
def test_an_unseen_context_gets_the_pooled_curve(rows: np.ndarray) -> None:
    """What was never seen is judged by all rows together."""
    calibration = calibrate(rows[0] / 8, rows[1], rows[2].astype(np.float64))
    grid = np.linspace(0, 1, 9)
    np.testing.assert_array_equal(calibration(grid, np.full(9, 77)), calibration.pooled(grid))


@given(ROWS, st.integers(0, 39))
def test_a_row_never_sees_its_own_target(rows: np.ndarray, place: int) -> None:
    """Changing the target of one row leaves the cross-fitted score of its whole fold alone."""
    q, context, target = rows[0] / 8, rows[1], rows[2].astype(np.float64)
    fold = np.arange(q.size) % 2
    changed, row = target.copy(), place % q.size
    changed[row] = 1 - changed[row]
    if q.size > 1:
        before, after = (cross_calibrate(q, context, t, fold) for t in (target, changed))
        np.testing.assert_array_equal(before[fold == fold[row]], after[fold == fold[row]])


@given(ROWS)
def test_each_context_is_fitted_on_its_own_rows(rows: np.ndarray) -> None:
    """The curve and the score of a context are those that a mask of its rows gives, to the last bit."""
    q, context, target = rows[0] / 8, rows[1], rows[2].astype(np.float64)
    fitted = calibrate(q, context, target)
    score = fitted(q, context)
    for name in np.unique(context):
        own = context == name
        curve, weight = fitted.curves[int(name)]
        alone = calibrate(q[own], context[own], target[own])
        np.testing.assert_array_equal(curve.y, alone.pooled.y)
        pooled = fitted.pooled(q[own])
        np.testing.assert_array_equal(score[own], pooled + weight * (alone.pooled(q[own]) - pooled))


def test_contexts_separate_label_from_agreement() -> None:
    """Two rows share a context iff the last label and every agreement are the same."""
    predicted = np.array([[a, b, c] for a in range(3) for b in range(3) for c in range(3)])
    found = encode_contexts(predicted, (0, 1, 2))
    meaning = [(c, a == c, b == c) for a, b, c in predicted.tolist()]
    assert len(set(found.tolist())) == len(set(meaning)) == len(set(zip(found.tolist(), meaning, strict=True)))


def search_conditional(
    confidence: FloatArray, predicted: IntArray, loss: FloatArray, price: FloatArray, fold: IntArray
) -> ChainFront:
    """Search the chains of up to three models with scores that were cross-fitted in 64 bins."""

    def tables(chain: Chain) -> Tables:
        score, losses, prices = select_chain_tables(confidence, loss, price, chain)
        for gate in range(len(chain) - 1):
            contexts = encode_contexts(predicted, chain[: gate + 1])
            score[:, gate] = cross_calibrate(score[:, gate], contexts, 1.0 - losses[:, gate], fold)
        return score, losses, prices

    return search_chains(list_chains(price, order="sorted", max_models=3), tables, bins=64)


def test_labels_of_unequal_reliability_get_different_thresholds() -> None:
    """Where one label deserves less trust at equal confidence, conditional gates cost less."""
    rng = np.random.default_rng(5)
    n = 4000
    predicted = np.stack((rng.integers(0, 2, n), np.zeros(n, dtype=np.int64)), axis=1)
    confidence = rng.random((n, 2))
    wrong = (predicted[:, 0] == 1) & (rng.random(n) < 0.5)
    loss = np.stack((wrong, np.zeros(n)), axis=1).astype(np.float64)
    price, fold = np.array([1.0, 10.0]), np.arange(n) % 5
    plain = search_all_chains(confidence, loss, price)
    aware = search_conditional(confidence, predicted, loss, price, fold)
    at = [f.front.cost[f.front.cheapest_within(0.02)] for f in (plain, aware)]
    assert at[1] < 0.7 * at[0]


def test_a_fitted_chain_serves_new_rows() -> None:
    """Cuts found on cross-fitted scores perform on new rows about as the front predicts."""
    rng = np.random.default_rng(6)
    n = 20_000
    confidence, predicted = rng.random((n, 3)), rng.integers(0, 3, (n, 3))
    loss = (rng.random((n, 3)) > confidence ** (1 + predicted / 2)).astype(np.float64)
    price, half = np.array([1.0, 3.0, 9.0]), n // 2
    old, new = slice(0, half), slice(half, n)
    found = search_conditional(confidence[old], predicted[old], loss[old], price, np.arange(half) % 5)
    point = len(found.front) // 2
    chain, cuts = found.policy(point)
    gates = fit_chain(confidence[old], predicted[old], 1 - loss[old], chain)
    score = score_chain(gates, confidence[new], predicted[new], chain)
    _, losses, prices = select_chain_tables(confidence[new], loss[new], price, chain)
    seen = evaluate_cuts(score, losses, prices, cuts)
    np.testing.assert_allclose(seen, (found.front.loss[point], found.front.cost[point]), rtol=0.05)
