"""Confidence calibrated per predicted label and per agreement with earlier models.

FrugalML keeps one threshold per predicted label (Chen, Zaharia, Zou, NeurIPS 2020). Here one increasing
curve per context maps the confidence to an expected utility, such as the probability of a correct answer, and
one cut on that common scale replaces many thresholds. The context is the predicted label of the gate's model
and which of the earlier models agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.gates.chains import Chain


@dataclass(frozen=True, slots=True)
class Curve:
    """An increasing, piecewise linear function through (k,) knots (x, y), constant beyond both ends."""

    x: FloatArray
    y: FloatArray

    def __call__(self, confidence: FloatArray) -> FloatArray:
        """Interpolate the (n,) values at (n,) confidences."""
        return np.interp(confidence, self.x, self.y)


@dataclass(frozen=True, slots=True)
class Calibration:
    """One curve per context, each shrunk towards the pooled one.

    Attributes:
        pooled: The curve of all rows, and the only one for unseen contexts.
        curves: For each context its curve, and the weight in [0, 1] of this curve against the pooled one.
    """

    pooled: Curve
    curves: Mapping[int, tuple[Curve, float]]

    def __call__(self, confidence: FloatArray, context: IntArray) -> FloatArray:
        """Compute (n,) scores of (n,) confidences in (n,) contexts; without a confidence (-inf) the score is -inf."""
        score, order = self.pooled(confidence), np.argsort(context, kind="stable")
        names = np.fromiter(self.curves, dtype=np.int64, count=len(self.curves))
        starts, ends = (np.searchsorted(context[order], names, side=side) for side in ("left", "right"))
        for (curve, weight), low, high in zip(self.curves.values(), starts, ends, strict=True):
            rows = order[low:high]
            score[rows] += weight * (curve(confidence[rows]) - score[rows])
        # predictions without a confidence never pass the gate
        score[confidence == -np.inf] = -np.inf
        return score


def calibrate(confidence: FloatArray, context: IntArray, target: FloatArray, *, shrinkage: float = 50.0) -> Calibration:
    """Fit the expected target as an increasing function of the confidence, in each context.

    Each curve is an isotonic regression through the centres of its blocks, so that rows of one block keep their
    order. A context of r rows weighs ``r / (r + shrinkage)`` against the pooled curve.

    Args:
        confidence: (n,) confidence of the gate's model; rows without one (minus infinity) are ignored.
        context: (n,) context, see ``encode_contexts``.
        target: (n,) utility of an exit: 1 - loss, or the loss of the next model minus that of this one.
        shrinkage: Rows at which a context weighs as much as the pooled curve.
    """
    # rows without a confidence say nothing about confidences
    has_confidence = confidence > -np.inf
    if has_confidence.any():
        confidence, context, target = confidence[has_confidence], context[has_confidence], target[has_confidence]
    order = np.argsort(context, kind="stable")
    names, starts, rows = np.unique(context[order], return_index=True, return_counts=True)
    curves = {
        int(name): (_fit_curve(confidence[part], target[part]), float(part.size / (part.size + shrinkage)))
        for name, part in ((name, order[low : low + size]) for name, low, size in zip(names, starts, rows, strict=True))
    }
    return Calibration(_fit_curve(confidence, target), curves)


def cross_calibrate(
    confidence: FloatArray, context: IntArray, target: FloatArray, fold: IntArray, *, shrinkage: float = 50.0
) -> FloatArray:
    """Score each row by a calibration that has not seen its fold.

    Cuts that are searched on such scores do not profit from the fit of the curves.

    Args:
        confidence: (n,) confidence of the gate's model.
        context: (n,) context.
        target: (n,) utility of an exit.
        fold: (n,) fold of each row, two or more; rows of one cluster (a patient) share one.
        shrinkage: As for ``calibrate``.

    Returns:
        (n,) scores.
    """
    score = np.empty(confidence.size)
    for held_out in np.unique(fold):
        is_out = fold == held_out
        fitted = calibrate(confidence[~is_out], context[~is_out], target[~is_out], shrinkage=shrinkage)
        score[is_out] = fitted(confidence[is_out], context[is_out])
    return score


def encode_contexts(predicted: IntArray, chain: Chain) -> IntArray:
    """Encode what a gate knows besides the confidence of its model.

    Args:
        predicted: (n, M) label that each model predicts, >= 0.
        chain: The models evaluated so far; the gate belongs to the last.

    Returns:
        (n,) label of the last model, with one bit per earlier model that says whether it agrees.
    """
    answer = predicted[:, chain[-1]].astype(np.int64)
    context = answer.copy()
    for model in chain[:-1]:
        context = 2 * context + (predicted[:, model] == answer)
    return context


def fit_chain(confidence: FloatArray, predicted: IntArray, target: FloatArray, chain: Chain) -> tuple[Calibration, ...]:
    """Calibrate every gate of a chain, for use on new rows.

    Args:
        confidence: (n, M) confidence of each model.
        predicted: (n, M) label that each model predicts, >= 0.
        target: (n, M) utility of an exit at each model.
        chain: The models in execution order; the last has no gate.
    """
    prefixes = (chain[: j + 1] for j in range(len(chain) - 1))
    return tuple(fit_gate(confidence, predicted, target, prefix) for prefix in prefixes)


def fit_gate(confidence: FloatArray, predicted: IntArray, target: FloatArray, prefix: Chain) -> Calibration:
    """Calibrate the gate after the last model of ``prefix``; arguments as for ``fit_chain``."""
    model = prefix[-1]
    return calibrate(confidence[:, model], encode_contexts(predicted, prefix), target[:, model])


def score_chain(
    gates: tuple[Calibration, ...], confidence: FloatArray, predicted: IntArray, chain: Chain
) -> FloatArray:
    """Compute the (n, G) scores that the gates of a chain read, from (n, M) confidences and labels."""
    columns = [
        gate(confidence[:, chain[j]], encode_contexts(predicted, chain[: j + 1])) for j, gate in enumerate(gates)
    ]
    return np.array(columns).reshape(len(gates), len(confidence)).T


def find_raw_cuts(calibration: Calibration, context: IntArray, cut: float) -> FloatArray:
    """Find the (c,) smallest confidence at which the score reaches ``cut``, in each of (c,) contexts.

    It is -inf where every confidence reaches the cut, inf where none does.
    """
    knots = _list_knots(calibration)
    grid = calibration(np.tile(knots, len(context)), np.repeat(context, len(knots))).reshape(len(context), -1) >= cut
    reached = grid.argmax(axis=1)
    # the score is constant below the lowest knot and above the highest
    cuts = np.where(grid.any(axis=1), knots[reached], np.inf)
    cuts[grid[:, 0]] = -np.inf
    is_inner = np.isfinite(cuts)
    cuts[is_inner] = _bisect(calibration, context[is_inner], cut, knots[reached[is_inner] - 1], cuts[is_inner])
    return cuts


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


def _fit_curve(confidence: FloatArray, target: FloatArray) -> Curve:
    from scipy.optimize import isotonic_regression

    if not confidence.size:
        return Curve(np.zeros(1), np.zeros(1))
    distinct, index, rows = np.unique(confidence, return_inverse=True, return_counts=True)
    fitted = isotonic_regression(np.bincount(index, target) / rows, weights=rows)
    starts = fitted.blocks[:-1]
    centre = np.add.reduceat(rows * distinct, starts) / np.add.reduceat(rows, starts)
    return Curve(centre, fitted.x[starts])


def _bisect(calibration: Calibration, context: IntArray, cut: float, low: FloatArray, high: FloatArray) -> FloatArray:
    """Bisect between ``low``, which does not reach the cut, and ``high``, which does, to adjacent floats."""
    while (is_open := np.nextafter(low, high) < high).any():
        middle = low + (high - low) / 2
        reached = calibration(middle, context) >= cut
        low, high = np.where(is_open & ~reached, middle, low), np.where(is_open & reached, middle, high)
    return high


def _list_knots(calibration: Calibration) -> FloatArray:
    arrays = [calibration.pooled.x, *(curve.x for curve, _ in calibration.curves.values())]
    # calls without an answer make a knot at -inf
    knots = np.unique(np.concatenate(arrays))
    finite: FloatArray = knots[np.isfinite(knots)]
    return finite if len(finite) else np.zeros(1)
