"""Promises on labelled new data: an interval for each outcome, and whether what was promised is kept or broken.

A certified mean is compared with a betting interval (Waudby-Smith and Ramdas, J R Stat Soc B 2024), which is valid for
any number of cases. So is a saving on independent cases of fixed prices, where a bootstrap misses costly paths that no
case of a small sample took. Shares of independent cases get Clopper-Pearson intervals, those of cases in groups the
same for an effective number of cases (Korn and Graubard, Survey Methodology 1998), other ratios a bootstrap by unit.
All intervals of one validation hold together (Bonferroni).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unfold_cascade._types import FloatArray

State = Literal["kept", "broken", "undecided"]
Interval = tuple[float, float]
REPLICATES = 2000
CHUNK = 100
MIN_UNITS = 30
GRID = 100_001
MAX_BET = 0.9
SEED_STREAM = 0x7A11
CERTIFIED_SAVING = "certified saving"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """An outcome as a ratio of sums over U independent units (cases, groups or patients), each (U,).

    ``most`` is the largest denominator that any unit can have, if it is known and all units have the same numerator.
    """

    numerator: FloatArray
    denominator: FloatArray
    most: float | None = None

    @property
    def value(self) -> float:
        """The outcome; NaN where nothing counts."""
        total = float(self.denominator.sum())
        return float(self.numerator.sum()) / total if total else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """One outcome, what a plan states about it, and what new data show.

    Attributes:
        name: The outcome.
        unit: Its unit, for the report.
        now: The outcome of the new data.
        limit: The certified limit, or ``None`` for an outcome that was only estimated.
        largest: Of a certified outcome that is a mean over units, the largest value that one unit can have;
            ``None`` for another ratio.
        before: The outcome of the plan's own test data, ``None`` for a certified one.
        margin: How much worse than estimated counts as kept.
        is_relative: Whether the margin is a share of the estimate.
        higher_is_better: The direction.
    """

    name: str
    unit: str
    now: Sums
    limit: float | None = None
    largest: float | None = None
    before: Sums | None = None
    margin: float = 0.0
    is_relative: bool = False
    higher_is_better: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A promise on new data: the interval there, the interval or limit before, and the state."""

    promise: Promise
    interval: Interval
    before: Interval
    state: State


def judge_promises(promises: Sequence[Promise], confidence: float, seed: int) -> list[Judgement]:
    """Compare promises with new data; with probability ``confidence`` no state but undecided is wrong.

    A certified outcome is broken if the interval lies beyond the limit, and kept if it lies within. An estimated one is
    broken if the interval lies on the worse side of the interval of the test data, and kept if no value in it is worse
    than that interval by more than the margin.
    """
    counted = sum(1 if promise.limit is not None else 2 for promise in promises)
    alpha = (1.0 - confidence) / max(counted, 1)
    return [_judge(promise, alpha, (seed, SEED_STREAM, number)) for number, promise in enumerate(promises)]


def _judge(promise: Promise, alpha: float, seed: tuple[int, ...]) -> Judgement:
    if promise.limit is not None:
        now, before = _bound_certified(promise, alpha, seed), (promise.limit, promise.limit)
        state = _compare(now, before, 0.0, higher=promise.higher_is_better)
        return Judgement(promise=promise, interval=now, before=before, state=state)
    if promise.before is None:
        raise ValueError("a promise needs a limit or an estimate")
    now, before = (
        compute_interval(sums, alpha, (*seed, part)) for part, sums in enumerate((promise.now, promise.before))
    )
    margin = promise.margin * abs(promise.before.value) if promise.is_relative else promise.margin
    state = _compare(now, before, margin, higher=promise.higher_is_better)
    return Judgement(promise=promise, interval=now, before=before, state=state)


def _bound_certified(promise: Promise, alpha: float, seed: tuple[int, ...]) -> Interval:
    """Bound a certified outcome: a mean of bounded numbers by betting, another ratio as an estimated one."""
    if promise.largest is None:
        return compute_interval(promise.now, alpha, seed)
    low, high = compute_betting_interval(promise.now.numerator / promise.largest, alpha, seed)
    return promise.largest * low, promise.largest * high


def _compare(now: Interval, before: Interval, margin: float, *, higher: bool) -> State:
    if any(map(math.isnan, (*now, *before))):
        return "undecided"
    sign = 1.0 if higher else -1.0
    worst_now, best_now = sorted(sign * end for end in now)
    worst_before = min(sign * end for end in before)
    if best_now < worst_before:
        return "broken"
    return "kept" if worst_now >= worst_before - margin else "undecided"


def compute_interval(sums: Sums, alpha: float, seed: tuple[int, ...]) -> Interval:
    """Compute an interval for a ratio of sums.

    It is exact for shares of independent cases, by betting where the denominators are bounded, for an effective number
    of cases for shares of cases in groups, else a bootstrap by unit: unknown (NaN) for fewer than 30 units, where
    neither of these is to be trusted.
    """
    counts = sums.denominator > 0
    numerator, denominator = sums.numerator[counts], sums.denominator[counts]
    if not len(numerator):
        return math.nan, math.nan
    if (denominator == 1.0).all() and np.isin(numerator, (0.0, 1.0)).all():
        return _bound_share(float(numerator.sum()), len(numerator), alpha)
    if sums.most is not None:
        low, high = compute_betting_interval(2.0 * sums.denominator / sums.most - 1.0, alpha, seed)
        total = 2.0 * float(sums.numerator[0]) / sums.most
        return total / (high + 1.0), total / (low + 1.0) if low > -1.0 else math.inf
    if len(numerator) < MIN_UNITS:
        return math.nan, math.nan
    if ((numerator >= 0.0) & (numerator <= denominator)).all():
        return _bound_grouped_share(numerator, denominator, alpha)
    return _bootstrap_ratio(numerator, denominator, alpha, seed)


def _bound_share(count: float, total: float, alpha: float) -> Interval:
    """Compute the interval of Clopper and Pearson; neither number must be whole."""
    from scipy.stats import beta

    low = beta.ppf(alpha / 2, count, total - count + 1.0) if count > 0.0 else 0.0
    high = beta.ppf(1.0 - alpha / 2, count + 1.0, total - count) if count < total else 1.0
    return float(low), float(high)


def _bound_grouped_share(numerator: FloatArray, denominator: FloatArray, alpha: float) -> Interval:
    """Bound a share from (U,) counts by unit, where a bootstrap of few errors, or none, would be too sure.

    The effective number of cases is the one that has the variance of the share if cases were independent. Two more
    units, one entirely right and one entirely wrong, keep the variance from zero where errors are few. Without any, or
    with nothing but errors, the effective number is that of units (Kish).
    """
    from scipy.stats import t

    total, squares = float(denominator.sum()), float((denominator**2).sum())
    share, units = float(numerator.sum()) / total, total**2 / squares
    effective = units
    if 0.0 < share < 1.0:
        size = squares / total
        cases, right = np.append(denominator, (size, size)), np.append(numerator, (size, 0.0))
        mean = float(right.sum() / cases.sum())
        residuals = right - mean * cases
        variance = len(cases) / (len(cases) - 1) * float((residuals**2).sum()) / float(cases.sum()) ** 2
        of_cases, of_units = (float(t.ppf(1.0 - alpha / 2, max(count - 1.0, 1.0))) for count in (total, units))
        effective = mean * (1.0 - mean) / variance * (of_cases / of_units) ** 2
    effective = min(effective, total)
    return _bound_share(share * effective, effective, alpha)


def _bootstrap_ratio(numerator: FloatArray, denominator: FloatArray, alpha: float, seed: tuple[int, ...]) -> Interval:
    generator, units = np.random.default_rng(seed), len(numerator)
    ratios = []
    for _ in range(REPLICATES // CHUNK):
        drawn = generator.integers(0, units, (CHUNK, units))
        ratios.append(numerator[drawn].sum(axis=1) / denominator[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(ratios), (alpha / 2, 1.0 - alpha / 2))
    return float(low), float(high)


def compute_betting_interval(d: FloatArray, alpha: float, seed: tuple[int, ...]) -> Interval:
    """Compute the hedged betting interval of the mean of (n,) independent numbers in [-1, 1].

    The bets are predictable plug-ins of the variance so far (Waudby-Smith and Ramdas, section 4.4), in random order.
    """
    x = (np.random.default_rng(seed).permutation(d) + 1.0) / 2.0
    count = np.arange(1, len(x) + 1)
    mean = (0.5 + np.cumsum(x)) / (count + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (count + 1)
    earlier = np.concatenate(([0.25], variance[:-1]))
    bets = np.sqrt(2.0 * math.log(2.0 / alpha) / (earlier * len(x)))
    limit = math.log(2.0 / alpha)
    first, last = _find_first_plausible(x, bets, limit), GRID - 1 - _find_first_plausible(1.0 - x, bets, limit)
    if first > last:
        return float(d.mean()), float(d.mean())
    step = 1.0 / (GRID - 1)
    return 2 * max((first - 1) * step, 0.0) - 1, 2 * min((last + 1) * step, 1.0) - 1


def _find_first_plausible(x: FloatArray, bets: FloatArray, limit: float) -> int:
    """Find the number of the smallest mean on a grid of [0, 1] that the bets on a larger one do not refute.

    The capital of these bets falls as the tested mean grows, so bisection finds it.
    """

    def is_plausible(number: int) -> bool:
        mean = number / (GRID - 1)
        capped = np.minimum(bets, MAX_BET / mean) if mean > 0 else bets
        return float(np.log1p(capped * (x - mean)).sum()) < limit

    return bisect_left(range(GRID), True, key=is_plausible)
