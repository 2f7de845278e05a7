"""Guarantees on the mean cost of a cascade: a minimum saving against the baseline, or a budget.

Costs are tested like losses: on cases that were used neither to fit nor to choose the cascade, by the betting test of
``certificate`` on scaled differences. A case costs at most what its most expensive path costs. Where prices vary by
case, twice the largest excess of the tuning rows bounds them, and a more expensive case refuses the guarantee.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.planner import certificate
from unfold_cascade.planner.guarantees import Guarantee
from unfold_cascade.planner.policy import Policy, as_indices, path_cost, second_stage_cost
from unfold_cascade.planner.score_tables import ScoreTables

SAVING, BUDGET = "saving", "budget"
HEADROOM = 2.0
"""How many times the largest excess of a tuning case a later case may have, where prices vary by case."""
MAX_RATIO = 1e6
TINY = 1e-300
ROUNDING = 1e-9
EDGES = 33
MARGINS = (0.95, 0.002)
"""Ratios from so much to so little below the tuned saving are tested, in cells between so many edges."""
SCALES = (1.0, 3.0, 10.0)
"""Scales of the test, in units of the largest excess."""


@dataclass(frozen=True, slots=True)
class CostSample:
    """What cases cost: (n,) under the cascade and (n,) under the baseline; one number per cluster where there are some.

    ``longest`` (n,) is the cost of the most expensive path of each case.
    """

    cascade: FloatArray
    baseline: FloatArray
    longest: FloatArray

    def excess(self, factor: float) -> FloatArray:
        """Compute (n,) how much ``factor`` times the cascade costs more than the baseline."""
        difference: FloatArray = factor * self.cascade - self.baseline
        return difference

    def max_excess(self, factor: float) -> float:
        """Bound the excess of any case by its most expensive path, with headroom where prices vary by case."""
        largest = float((factor * self.longest - self.baseline).max())
        is_varied = np.ptp(self.longest) > ROUNDING * abs(self.longest[0]) or np.ptp(self.baseline) > 0.0
        return HEADROOM * largest if is_varied and largest > 0.0 else largest

    def over(self, budget: float | FloatArray) -> CostSample:
        """Replace the baseline by a constant cost per case, or by (n,) costs of the units."""
        return CostSample(self.cascade, np.full(len(self.cascade), budget), self.longest)


def average_by_unit(values: FloatArray, clusters: IntArray | None) -> FloatArray:
    """Average (n,) values by cluster; without clusters they stay as they are."""
    if clusters is None:
        return values
    _, index, size = np.unique(clusters, return_inverse=True, return_counts=True)
    means: FloatArray = np.bincount(index, values) / size
    return means


def longest_path_costs(tables: ScoreTables, policy: Policy, rows: IntArray) -> FloatArray:
    """Compute the (n,) costs of the most expensive path of each case."""
    first = policy.first_stage
    if tables.first_stage.call_prices is not None:
        prices: FloatArray = tables.first_stage.call_prices[np.ix_(rows, as_indices(first.chain))].sum(axis=1)
        return prices
    total = float(path_cost(tables, tables.first_stage, first.chain)[-1])
    seconds = [
        float(second_stage_cost(tables, first, tables.second_stage[number], stage.chain).max())
        for number, stage in policy.second_stage.items()
    ]
    return np.full(len(rows), total + max(seconds, default=0.0))


def saving_guarantee(min_saving: float, samples: Sequence[tuple[CostSample, CostSample]]) -> Guarantee:
    """Build the guarantee that each of m cascades costs at most ``1 / min_saving`` of the baseline.

    Args:
        min_saving: How many times cheaper than the baseline, at least.
        samples: For each cascade its costs on tuning and on certifying units.
    """
    return cost_guarantee(SAVING, samples, min_saving)


def budget_guarantee(budget: float, samples: Sequence[tuple[CostSample, CostSample]]) -> Guarantee:
    """Build the guarantee that each of m cascades costs at most ``budget`` per case; arguments as above."""
    return cost_guarantee(BUDGET, [(tune.over(budget), fresh.over(budget)) for tune, fresh in samples], 1.0)


def cost_guarantee(label: str, samples: Sequence[tuple[CostSample, CostSample]], factor: float) -> Guarantee:
    """Build a guarantee that ``factor`` times each of m cascades costs no more than the baseline."""
    scaled = [
        _scale_excess(tune.excess(factor), fresh.excess(factor), tune.max_excess(factor)) for tune, fresh in samples
    ]
    tune, certify = (np.array([pair[part] for pair in scaled]) for part in (0, 1))
    return Guarantee(label, 0.0, tune, certify, is_cost=True)


def is_saving_refuted(fresh: CostSample, min_saving: float, delta: float) -> bool:
    """Whether fresh units show, with confidence 1 - delta, that the cascade saves less than ``min_saving``.

    The largest difference of these units scales the test.
    """
    excess = fresh.excess(min_saving)
    return certificate.mixture_p_value(-excess / max(float(np.abs(excess).max()), TINY), 0.0) <= delta


def bound_saving(tune: CostSample, fresh: CostSample, confidence: float) -> float:
    """Compute a lower confidence bound of ``E[baseline cost] / E[cascade cost]`` on fresh units.

    Ratios are tested in ascending order until one is not supported (fixed-sequence testing), so the bound needs no
    correction for their number. The ratios between two edges share one stake in units of cost, the best of the tuning
    units for the upper edge; their wealth falls as the ratio grows.

    Returns:
        The largest ratio, up to that of the tuning units, that the units support; 0 where they support none.
    """
    mean, reference = float(tune.cascade.mean()), max(float(tune.baseline.mean()), TINY)
    if mean <= 0.0:
        return MAX_RATIO if tune.longest.max() <= 0.0 else 0.0
    guess = reference / mean
    if tune.max_excess(guess) <= ROUNDING * reference:
        # every path costs the same
        return guess
    bound, needed = 0.0, -math.log(1.0 - confidence)
    for low, high in pairwise((guess * (1.0 - np.geomspace(*MARGINS, EDGES))).tolist()):
        stake = _best_stake(tune, high)
        if stake is None:
            supported = high if float(fresh.excess(high).max()) <= 0.0 else 0.0
        else:
            supported = _largest_supported(fresh, low, high, stake, needed)
        bound = max(bound, supported)
        if supported < high:
            break
    return bound


def _best_stake(tune: CostSample, ratio: float) -> float | None:
    """Choose the stake of fastest growth on tuning units; ``None`` if not even the most expensive path costs more."""
    largest = tune.max_excess(ratio)
    if largest <= 0.0:
        return None
    excess = tune.excess(ratio)
    scale = max(largest, float(np.abs(excess).max()))
    return min(certificate.best_wager(excess / scale, 0.0) / scale, 0.999 / largest)


def _largest_supported(fresh: CostSample, low: float, high: float, stake: float, needed: float) -> float:
    """Find the largest ratio from ``low`` to ``high`` at which a stake wins the log wealth ``needed``; 0 if none."""

    def is_supported(ratio: float) -> bool:
        payoff = -stake * fresh.excess(ratio)
        return bool((payoff > -1.0).all()) and float(np.log1p(payoff).sum()) >= needed

    if not is_supported(low):
        return 0.0
    if is_supported(high):
        return high
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if is_supported(middle) else (low, middle)
    return low


def _scale_excess(tune: FloatArray, certify: FloatArray, max_excess: float) -> tuple[FloatArray, FloatArray]:
    """Scale excess costs to [-1, 1]; an excess beyond the maximum refuses the cascade.

    Savings beyond the scale are cut, which only weakens the test. A small scale allows a high wager, a large one keeps
    large savings; the tuning units choose.
    """
    if max_excess <= 0.0 and certify.max() <= 0.0:
        # not even the most expensive path breaks the guarantee
        return np.full(len(tune), -1.0), np.full(len(certify), -1.0)
    largest = max(max_excess, float(np.abs(tune).max()), TINY)
    if certify.max() > max_excess * (1 + ROUNDING):
        return tune / largest, np.ones(len(certify))
    scales = sorted({*(min(share * max_excess, largest) for share in SCALES), largest})
    cut = [np.clip(tune / scale, -1.0, 1.0) for scale in scales]
    growth = [certificate.mean_log_wealth(each, 0.0, certificate.best_wager(each, 0.0)) for each in cut]
    best = int(np.argmax(growth))
    return cut[best], np.clip(certify / scales[best], -1.0, 1.0)
