"""Scores that know what was answered: confidence calibrated per predicted label and per agreement.

FrugalML keeps one threshold per predicted label (Chen, Zaharia, Zou, NeurIPS 2020). Here one increasing
curve per context maps the confidence to an expected value, such as the chance of being right, and one cut
on that common scale does the work of many thresholds. The context is the answer of the gate's model and
which of the models asked before it agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.gates.chains import Chain, ChainFront, Order, chains_of, search_chains


@dataclass(frozen=True, slots=True)
class Curve:
    """An increasing, piecewise linear function through the (k,) knots (x, y), constant beyond both ends."""

    x: FloatArray
    y: FloatArray

    def __call__(self, confidence: FloatArray) -> FloatArray:
        """Return the (n,) values at (n,) confidences."""
        return np.interp(confidence, self.x, self.y)


@dataclass(frozen=True, slots=True)
class Calibration:
    """One curve per context, each drawn towards the pooled one.

    Attributes:
        pooled: The curve of all rows; it alone serves a context that was never seen.
        curves: Context -> its curve and the weight in [0, 1] that this curve has against the pooled one.
    """

    pooled: Curve
    curves: Mapping[int, tuple[Curve, float]]

    def __call__(self, confidence: FloatArray, context: IntArray) -> FloatArray:
        """Return the (n,) scores of rows with (n,) confidences in (n,) contexts; of -inf, no confidence, it is -inf."""
        score, order = self.pooled(confidence), np.argsort(context, kind="stable")
        names = np.fromiter(self.curves, dtype=np.int64, count=len(self.curves))
        first, last = (np.searchsorted(context[order], names, side=side) for side in ("left", "right"))
        for (curve, weight), low, high in zip(self.curves.values(), first, last, strict=True):
            rows = order[low:high]
            score[rows] += weight * (curve(confidence[rows]) - score[rows])
        # who gave no confidence is not trusted, however good such answers were
        score[confidence == -np.inf] = -np.inf
        return score


def calibrate(confidence: FloatArray, context: IntArray, target: FloatArray, *, shrinkage: float = 50.0) -> Calibration:
    """Fit the expected target as an increasing function of the confidence, in each context.

    Each curve is an isotonic regression, drawn through the centres of its blocks so that rows of one block
    keep their order. A context of r rows weighs ``r / (r + shrinkage)`` against the pooled curve.

    Args:
        confidence: (n,) confidence of the gate's model; rows of minus infinity, which has none, are not looked at.
        context: (n,) context, see ``contexts``.
        target: (n,) what stopping is worth: 1 - loss, or the loss of the next model minus this one's.
        shrinkage: Rows at which a context weighs as much as all rows together.
    """
    # of who gave no confidence nothing can be learnt about confidences
    given = confidence > -np.inf if (confidence > -np.inf).any() else np.ones(confidence.size, dtype=np.bool_)
    confidence, context, target = confidence[given], context[given], target[given]
    order = np.argsort(context, kind="stable")
    names, starts, rows = np.unique(context[order], return_index=True, return_counts=True)
    curves = {
        int(name): (_curve(confidence[own], target[own]), float(own.size / (own.size + shrinkage)))
        for name, own in ((name, order[low : low + size]) for name, low, size in zip(names, starts, rows, strict=True))
    }
    return Calibration(_curve(confidence, target), curves)


def cross_calibrate(
    confidence: FloatArray, context: IntArray, target: FloatArray, fold: IntArray, *, shrinkage: float = 50.0
) -> FloatArray:
    """Score each row by a calibration that has not seen its fold.

    Cuts that are searched on such scores are not flattered by the fit of the curves.

    Args:
        confidence: (n,) confidence of the gate's model.
        context: (n,) context.
        target: (n,) what stopping is worth.
        fold: (n,) fold of each row, two or more; rows that belong together (a patient's) share one.
        shrinkage: As for ``calibrate``.

    Returns:
        (n,) scores.
    """
    score = np.empty(confidence.size)
    for held_out in np.unique(fold):
        out, rest = fold == held_out, fold != held_out
        fitted = calibrate(confidence[rest], context[rest], target[rest], shrinkage=shrinkage)
        score[out] = fitted(confidence[out], context[out])
    return score


def contexts(predicted: IntArray, chain: Chain) -> IntArray:
    """Return what a gate knows besides the confidence of its model.

    Args:
        predicted: (n, M) label that each model predicts, >= 0.
        chain: The models asked so far; the last one is the gate's.

    Returns:
        (n,) label of the last model, with one bit appended for each earlier model: does it agree?
    """
    answer = predicted[:, chain[-1]].astype(np.int64)
    context = answer.copy()
    for model in chain[:-1]:
        context = 2 * context + (predicted[:, model] == answer)
    return context


def fit_chain(
    confidence: FloatArray, predicted: IntArray, target: FloatArray, chain: Chain, *, shrinkage: float = 50.0
) -> tuple[Calibration, ...]:
    """Calibrate every gate of a chain, for use on new rows.

    Args:
        confidence: (n, M) confidence of each model.
        predicted: (n, M) label that each model predicts, >= 0.
        target: (n, M) what stopping at each model is worth.
        chain: The models in the order in which they are asked; the last has no gate.
        shrinkage: As for ``calibrate``.
    """
    asked = (chain[: j + 1] for j in range(len(chain) - 1))
    return tuple(fit_gate(confidence, predicted, target, each, shrinkage=shrinkage) for each in asked)


def fit_gate(
    confidence: FloatArray, predicted: IntArray, target: FloatArray, asked: Chain, *, shrinkage: float = 50.0
) -> Calibration:
    """Calibrate the gate behind the last of the models ``asked`` so far; arguments as for ``fit_chain``."""
    last = asked[-1]
    return calibrate(confidence[:, last], contexts(predicted, asked), target[:, last], shrinkage=shrinkage)


def score_chain(
    gates: tuple[Calibration, ...], confidence: FloatArray, predicted: IntArray, chain: Chain
) -> FloatArray:
    """Return the (n, G) scores that the gates of a chain read, from (n, M) confidences and labels."""
    columns = [gate(confidence[:, chain[j]], contexts(predicted, chain[: j + 1])) for j, gate in enumerate(gates)]
    return np.array(columns).reshape(len(gates), len(confidence)).T


def search_conditional(
    confidence: FloatArray,
    predicted: IntArray,
    loss: FloatArray,
    price: FloatArray,
    fold: IntArray,
    *,
    order: Order = "sorted",
    max_models: int = 3,
    bins: int | None = 64,
    shrinkage: float = 50.0,
) -> ChainFront:
    """Return the exact front over all chains, with cuts on cross-fitted scores.

    To use a point: ``fit_chain`` on the same rows with ``target = 1 - loss``, ``score_chain`` on the new
    ones, then ``route``. On the fitting rows ``score_chain`` does not repeat the front's figures, since
    there each row was scored without its own fold.

    Args:
        confidence: (n, M) confidence of each model.
        predicted: (n, M) label that each model predicts, >= 0.
        loss: (n, M) loss of each model's answer.
        price: (n, M) or (M,) cost of asking each model.
        fold: (n,) fold of each row, as for ``cross_calibrate``.
        order: "sorted" takes the chains of ascending mean price only, "all" every order.
        max_models: Models of a chain at most, from 1 to 5.
        bins: Bins a gate, as for ``exact_front``; coarse ones follow the noise less.
        shrinkage: As for ``calibrate``.
    """

    @cache
    def gate(asked: Chain) -> FloatArray:
        q, worth = confidence[:, asked[-1]], 1.0 - loss[:, asked[-1]]
        return cross_calibrate(q, contexts(predicted, asked), worth, fold, shrinkage=shrinkage)

    def tables(chain: Chain) -> tuple[FloatArray, FloatArray, FloatArray]:
        return _stacked(gate, chain, len(loss)), loss[:, list(chain)], price[..., list(chain)]

    dearness = np.broadcast_to(price, loss.shape).mean(axis=0)
    return search_chains(chains_of(dearness, order=order, max_models=max_models), tables, bins=bins)


def write_calibration(calibration: Calibration) -> dict[str, Any]:
    """Write the curves of one gate as plain data, for the front that a run stores."""
    by_context = {
        str(context): [curve.x.tolist(), curve.y.tolist(), weight]
        for context, (curve, weight) in calibration.curves.items()
    }
    return {"pooled": [calibration.pooled.x.tolist(), calibration.pooled.y.tolist()], "by_context": by_context}


def read_calibration(document: Mapping[str, Any]) -> Calibration:
    """Read the curves that ``write_calibration`` wrote."""
    curves = {
        int(context): (Curve(np.array(x), np.array(y)), float(weight))
        for context, (x, y, weight) in document["by_context"].items()
    }
    x, y = document["pooled"]
    return Calibration(Curve(np.array(x), np.array(y)), curves)


def _stacked(gate: Callable[[Chain], FloatArray], chain: Chain, rows: int) -> FloatArray:
    scores = [gate(chain[: j + 1]) for j in range(len(chain) - 1)]
    return np.array(scores).reshape(len(scores), rows).T


def _curve(confidence: FloatArray, target: FloatArray) -> Curve:
    from scipy.optimize import isotonic_regression

    if not confidence.size:
        return Curve(np.zeros(1), np.zeros(1))
    distinct, place, rows = np.unique(confidence, return_inverse=True, return_counts=True)
    fitted = isotonic_regression(np.bincount(place, target) / rows, weights=rows)
    starts = fitted.blocks[:-1]
    centre = np.add.reduceat(rows * distinct, starts) / np.add.reduceat(rows, starts)
    return Curve(centre, fitted.x[starts])
