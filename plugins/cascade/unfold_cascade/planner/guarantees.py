"""Guarantees on the loss of a cascade, over all cases and over one label, and the points of a front that meet them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade._types import FloatArray
from unfold_cascade.planner import certificate
from unfold_cascade.planner.certificate import Rule

GRID = 1000
Relaxation = tuple[tuple[str, float], ...]
"""Losses, by label (empty: of all cases), that must be allowed together."""


@dataclass(frozen=True, slots=True)
class Guarantee:
    """A bound on the loss against the baseline, and what it is tested on.

    Attributes:
        label: The label that it covers, empty for all cases; for a guarantee on the cost, its name.
        allowed: The loss that is allowed.
        tune: (m, n) paired differences of m points on tuning units, as shares of the ``largest`` loss of a case.
        certify: The same on certifying units.
        largest: The largest loss of a case, so that differences are in [-1, 1].
        is_cost: Whether it bounds the cost, which no relaxation touches.
    """

    label: str
    allowed: float
    tune: FloatArray
    certify: FloatArray
    largest: float = 1.0
    is_cost: bool = False

    @property
    def epsilon(self) -> float:
        """The allowed loss, as a share of the largest."""
        return self.allowed / self.largest

    @property
    def units(self) -> int:
        """The number of independent draws that certify it."""
        return int(self.certify.shape[1])


def certify_points(cost: FloatArray, guarantees: Sequence[Guarantee], delta: float) -> list[tuple[int, Rule]]:
    """List the points that meet every guarantee with probability 1 - delta, each with the test of the first one.

    Points are tested by falling evidence on tuning units (fixed-sequence testing, Learn then Test). The p-value of a
    point is the largest of its guarantees: the intersection-union test (Berger 1982) needs no correction for their
    number.

    Args:
        cost: (m,) costs of the points.
        guarantees: At least one on a loss; others may bound the cost.
        delta: Chance of a false certificate.
    """
    return _certify_losses(cost, _losses_of(guarantees), compute_cost_tests(guarantees, len(cost), delta), delta)


@dataclass(frozen=True, slots=True)
class CostTests:
    """The (m,) largest p-values of the guarantees on the cost: on tuning units, and on certifying units.

    ``evidence`` (m,) is the weakest of the tuning units, see ``measure_evidence``.
    """

    tune: FloatArray
    certify: FloatArray
    evidence: FloatArray


def compute_cost_tests(guarantees: Sequence[Guarantee], points: int, delta: float) -> CostTests:
    """Test the guarantees on the cost of some points; p-values are 0 where there is no such guarantee.

    ``delta`` is the p-value that is to be reached; each test is chosen for it.
    """
    tune, certify, evidence = np.zeros(points), np.zeros(points), np.full(points, np.inf)
    for each in (guarantee for guarantee in guarantees if guarantee.is_cost):
        rules = [certificate.choose_rule(d, each.epsilon, each.units, delta) for d in each.tune]
        for part, rows in ((tune, each.tune), (certify, each.certify)):
            p_values = [certificate.p_value(d, each.epsilon, rule) for d, rule in zip(rows, rules, strict=True)]
            np.maximum(part, p_values, out=part)
        np.minimum(evidence, _measure_evidence_of(each), out=evidence)
    return CostTests(tune, certify, evidence)


def _measure_evidence_of(guarantee: Guarantee) -> FloatArray:
    return measure_evidence(guarantee.tune, guarantee.epsilon, guarantee.units)


def measure_evidence(tuning: FloatArray, epsilon: float, units: int) -> FloatArray:
    """Compute (m,) by how many standard errors of so many units the (m, n) tuning differences stay below epsilon.

    Half a unit made worse is added, so that few units without a difference are no certainty.
    """
    count = tuning.shape[1] + 0.5
    mean, square = (tuning.sum(axis=1) + 0.5) / count, ((tuning**2).sum(axis=1) + 0.5) / count
    evidence: FloatArray = np.sqrt(units / np.maximum(square - mean**2, 1e-18)) * (epsilon - mean)
    return evidence


def order_tests(cost: FloatArray, evidence: FloatArray) -> list[int]:
    """Order (m,) points by falling evidence on the tuning units, each cheaper than the one before.

    A point that costs more than one with stronger evidence is left out: it could only end the sequence early.
    """
    order = np.lexsort((cost, -evidence))
    lowest = np.minimum.accumulate(cost[order])
    is_cheaper = np.concatenate(([True], cost[order][1:] < lowest[:-1]))
    return [int(point) for point in order[is_cheaper]]


def _losses_of(guarantees: Sequence[Guarantee]) -> list[Guarantee]:
    return [guarantee for guarantee in guarantees if not guarantee.is_cost]


def _certify_losses(
    cost: FloatArray, losses: Sequence[Guarantee], tests: CostTests, delta: float
) -> list[tuple[int, Rule]]:
    evidence = np.min([tests.evidence, *map(_measure_evidence_of, losses)], axis=0)
    certified: list[tuple[int, Rule]] = []
    for point in order_tests(cost, evidence):
        rules = [certificate.choose_rule(each.tune[point], each.epsilon, each.units, delta) for each in losses]
        p_values = [
            certificate.p_value(each.certify[point], each.epsilon, rule)
            for each, rule in zip(losses, rules, strict=True)
        ]
        if max(*p_values, tests.certify[point]) > delta:
            break
        certified.append((point, rules[0]))
    return certified


def find_relaxations(cost: FloatArray, guarantees: Sequence[Guarantee], delta: float) -> tuple[Relaxation, ...]:
    """Find the minimal losses, in tenths of a point, that certify some point; none if the cost stands in the way.

    Each guarantee on a loss is relaxed alone; if none of these suffices, all are relaxed together.
    """
    losses, tests = _losses_of(guarantees), compute_cost_tests(guarantees, len(cost), delta)
    single = [(each.label, _min_loss(cost, losses, tests, (index,), delta)) for index, each in enumerate(losses)]
    sufficient = tuple(((label, loss),) for label, loss in single if loss is not None)
    if sufficient:
        return sufficient
    joint = _min_loss(cost, losses, tests, range(len(losses)), delta)
    if joint is None:
        return ()
    return (tuple((each.label, max(joint, each.allowed)) for each in losses),)


def _min_loss(
    cost: FloatArray, losses: Sequence[Guarantee], tests: CostTests, relaxed: Sequence[int], delta: float
) -> float | None:
    """Find the minimal loss that certifies some point if the ``relaxed`` guarantees allow it; ``None`` if none does."""
    low, high = int(min(losses[index].allowed for index in relaxed) * GRID), GRID - 1

    def is_certified(tenths: int) -> bool:
        wide = [
            replace(each, allowed=max(each.allowed, tenths / GRID)) if index in relaxed else each
            for index, each in enumerate(losses)
        ]
        return bool(_certify_losses(cost, wide, tests, delta))

    if not is_certified(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_certified(middle) else (middle, high)
    return high / GRID
