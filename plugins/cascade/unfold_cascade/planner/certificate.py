"""Certificates that a cascade loses at most epsilon against its baseline, with a given confidence.

They test paired differences d in [-1, 1]: the loss of the cascade minus that of the baseline on the same case. A small
p-value is evidence against ``E[d] > epsilon``. The cases (or clusters of them) must be independent draws from the
target population, and must not have been used to select the cascade, its cuts, the order of points or the test.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.planner.paired_test import exact_paired_p_value

Method = Literal["exact", "binomial", "betting", "hoeffding-bentkus"]
MAX_EXACT_CASES = 20_000
"""Above this many cases the exact test of dozens of points takes too long."""
MAX_EXACT_FRACTIONS = 0.02
"""Share of differences between -1, 0 and 1 up to which the exact test is tried; it rounds them up."""
MIXTURE = (0.01, 0.03, 0.1, 0.3, 0.6, 0.9)
"""Wagers of the mixture, as shares of the largest possible one."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The test of a difference: the method, and for betting the wager."""

    method: Method
    wager: float = 0.0


def binomial_p_value(worse: int, n: int, epsilon: float) -> float:
    """Compute the exact p-value of the number of cases made worse, ``P(Binomial(n, epsilon) <= worse)``.

    It is valid because ``E[d] <= P(d > 0)``. Cases made better do not help; see ``betting_p_value``.

    Args:
        worse: Cases with d > 0.
        n: All cases.
        epsilon: Allowed loss, in [0, 1]; below 0 no test is possible, and the p-value is 1.
    """
    if epsilon <= 0.0 or worse >= n:
        return 1.0
    if epsilon >= 1.0 or worse < 0:
        return 0.0
    from scipy.special import bdtr

    return float(bdtr(worse, n, epsilon))


def betting_p_value(d: FloatArray, epsilon: float, wager: float) -> float:
    """Compute the p-value of a betting test: one over the wealth ``prod(1 + wager * (epsilon - d_i))``, at most 1.

    If ``E[d] >= epsilon`` the expected wealth is at most 1, so Markov's inequality makes this a p-value for
    any bounded d (Waudby-Smith and Ramdas 2024, Estimating means of bounded random variables by betting).
    Cases made better add to the wealth.

    Args:
        d: (n,) differences in [-1, 1].
        epsilon: Allowed loss, in [-1, 1).
        wager: In [0, 1 / (1 - epsilon)], fixed before d is observed; see ``best_wager``.

    Raises:
        ValueError: The wager or a difference is outside its bounds.
    """
    if not 0.0 <= wager <= 1.0 / (1.0 - epsilon):
        raise ValueError(f"wager must be from 0 to 1 / (1 - epsilon), not {wager}")
    return math.exp(min(0.0, -_log_wealth(_check_differences(d), epsilon, wager)))


def mean_log_wealth(d: FloatArray, epsilon: float, wager: float) -> float:
    """Compute the growth of a wager's wealth per case, the power of the betting test on such cases."""
    return _log_wealth(_check_differences(d), epsilon, wager) / d.size


def mixture_p_value(d: FloatArray, epsilon: float) -> float:
    """Compute the p-value of a betting test with the mean wealth over a fixed grid of wagers.

    It needs no tuning split, so it also tests what tuning rows did not suggest: that a promise is broken.

    Args:
        d: (n,) differences in [-1, 1].
        epsilon: Allowed loss, in (-1, 1).
    """
    wagers = np.array(MIXTURE) / (1.0 - epsilon)
    logs = np.array([_log_wealth(_check_differences(d), epsilon, float(wager)) for wager in wagers])
    highest = float(logs.max())
    if highest == -math.inf:
        return 1.0
    return math.exp(min(0.0, math.log(len(wagers)) - highest - math.log(float(np.exp(logs - highest).sum()))))


def hoeffding_bentkus_p_value(d: FloatArray, epsilon: float) -> float:
    """Compute the Hoeffding-Bentkus p-value of ``(1 + d) / 2`` (Bates et al. 2021); weak if few cases differ.

    Args:
        d: (n,) differences in [-1, 1].
        epsilon: Allowed loss, in (-1, 1).
    """
    from scipy.special import bdtr, rel_entr

    n, mean, bound = d.size, (1.0 + float(_check_differences(d).mean())) / 2, (1.0 + epsilon) / 2
    low = min(mean, bound)
    hoeffding = math.exp(-n * float(rel_entr(low, bound) + rel_entr(1.0 - low, 1.0 - bound)))
    return min(1.0, hoeffding, math.e * float(bdtr(math.ceil(n * mean), n, bound)))


def best_wager(d_tune: FloatArray, epsilon: float) -> float:
    """Find the wager of fastest wealth growth on the tuning split.

    Half a case made worse is added to the tuning data, so that a split without one does not bet everything.

    Args:
        d_tune: (n,) differences of the tuning split, in [-1, 1].
        epsilon: Allowed loss, in [-1, 1).

    Returns:
        Wager in [0, 1 / (1 - epsilon)).
    """
    value, count = np.unique(np.append(_check_differences(d_tune), 1.0), return_counts=True)
    weight = count - 0.5 * (value == 1.0)
    low, high = 0.0, 1.0 / (1.0 - epsilon)
    for _ in range(60):
        middle = (low + high) / 2
        slope = float((weight * (epsilon - value) / (1.0 + middle * (epsilon - value))).sum())
        low, high = (middle, high) if slope > 0.0 else (low, middle)
    return low


def choose_rule(d_tune: FloatArray, epsilon: float, cases: int, delta: float) -> Rule:
    """Choose the test that is most likely to pass on so many certifying cases, and its wager.

    The tests are compared on the tuning cases scaled to ``cases``, each with its statistic one standard error worse
    than expected: a test that passes there has power to spare. A search makes few tuning cases worse, so a count of
    none there is no reason to expect none: where some case is made better, which only the exact test credits, another
    test is taken only if it alone is expected to pass.

    The certificate stays valid because the choice depends on the tuning split only: given that split, each
    p-value is a fixed function of independent certifying data. Choosing on the certifying split, or taking the
    smaller of two p-values there, would invalidate it.

    Args:
        d_tune: (n,) differences of the tuning split, in [-1, 1].
        epsilon: Allowed loss, in [0, 1).
        cases: Number of cases, or clusters, of the certifying split.
        delta: The p-value that passes.
    """
    worse, better = (cases * count / d_tune.size for count in count_discordant(d_tune))
    wager = best_wager(d_tune, epsilon)
    payoff = np.log1p(wager * (epsilon - d_tune))
    wealth = cases * float(payoff.mean()) - math.sqrt(cases) * float(payoff.std())
    expected = {
        Rule("betting", wager): math.exp(min(0.0, -wealth)),
        Rule("binomial"): binomial_p_value(math.ceil(worse + math.sqrt(worse)), cases, epsilon),
    }
    is_fraction = ~np.isin(d_tune, (-1.0, 0.0, 1.0))
    if cases <= MAX_EXACT_CASES and is_fraction.mean() <= MAX_EXACT_FRACTIONS:
        unlucky = min(math.ceil(worse + math.sqrt(worse + better)), cases)
        exact = exact_paired_p_value(unlucky, min(math.floor(better), cases - unlucky), cases, epsilon)
        # its p-values have a floor, so a passing one is not compared with smaller ones
        if better and (exact <= delta or min(expected.values()) > delta):
            return Rule("exact")
        expected[Rule("exact")] = exact
    return min(expected, key=lambda rule: expected[rule])


def count_discordant(d: FloatArray) -> tuple[int, int]:
    """Count cases made worse and cases made better; fractions, such as means of clusters, are rounded up.

    The rounded mean is never smaller, so a bound on it bounds the loss.
    """
    rounded = np.ceil(d - 1e-12)
    return int((rounded > 0).sum()), int((rounded < 0).sum())


def per_cluster(d: FloatArray, clusters: IntArray, *, epsilon: float = 0.0, cap: int | None = None) -> FloatArray:
    """Aggregate differences to one number per cluster (such as a patient), the independent unit.

    Without ``cap`` it is the mean over the cases of a cluster: the guarantee covers the *average cluster*,
    however many cases each has. With ``cap`` it is ``epsilon + sum(d_i - epsilon) / cap``: its mean exceeds
    epsilon iff ``E[sum d] / E[cases] > epsilon``, so the guarantee covers the *average case*. Then no cluster of
    the population may have more than ``cap`` cases, and the cap is set before the certifying split is observed.

    Args:
        d: (n,) differences in [-1, 1].
        clusters: (n,) id of each case's cluster.
        epsilon: Allowed loss; used with ``cap`` only.
        cap: Maximum number of cases of a cluster, or None.

    Returns:
        (g,) numbers in [-1, 1], by ascending id.

    Raises:
        ValueError: A cluster has more cases than ``cap``.
    """
    _, index, size = np.unique(clusters, return_inverse=True, return_counts=True)
    if cap is None:
        return np.bincount(index, d) / size
    if size.max() > cap:
        raise ValueError(f"a cluster has {size.max()} cases, more than the cap of {cap} that was promised")
    return epsilon + np.bincount(index, d - epsilon) / cap


def p_value(
    d: FloatArray, epsilon: float, rule: Rule, *, clusters: IntArray | None = None, cap: int | None = None
) -> float:
    """Compute the p-value of ``E[d] > epsilon`` by a rule; a small one supports the cascade.

    Args:
        d: (n,) differences in [-1, 1].
        epsilon: Allowed loss, in (-1, 1).
        rule: Method and wager; a wager too high for this epsilon is lowered to the maximum.
        clusters: (n,) id of each case's cluster; None where cases are independent.
        cap: As for ``per_cluster``; unused without clusters.

    Raises:
        ValueError: A difference is outside [-1, 1], or a cap is used with another method than betting.
    """
    if clusters is not None:
        d = per_cluster(d, clusters, epsilon=epsilon, cap=cap)
    if clusters is not None and cap is not None and rule.method != "betting":
        raise ValueError("clusters that count by their cases can be tested by betting only")
    if rule.method == "exact":
        worse, better = count_discordant(_check_differences(d))
        return exact_paired_p_value(worse, better, d.size, epsilon)
    if rule.method == "binomial":
        return binomial_p_value(int((_check_differences(d) > 0.0).sum()), d.size, epsilon)
    if rule.method == "betting":
        return betting_p_value(d, epsilon, min(rule.wager, 1.0 / (1.0 - epsilon)))
    return hoeffding_bentkus_p_value(d, epsilon)


def upper_bound(
    d: FloatArray,
    confidence: float,
    rule: Rule,
) -> float:
    """Compute the smallest loss that the data certify: an upper confidence bound on ``E[d]``.

    Args:
        d: (n,) differences in [-1, 1].
        confidence: 1 - delta, such as 0.95.
        rule: Method and wager, chosen before d is observed.

    Returns:
        The smallest epsilon in [-1, 1] with p-value <= delta, to 1e-9; 1 where there is none.
    """
    low, high = -1.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        is_rejected = p_value(d, middle, rule) > 1.0 - confidence
        low, high = (middle, high) if is_rejected else (low, middle)
    return high


def count_leading_passes(p_values: Iterable[float], delta: float) -> int:
    """Count the p-values up to delta before the first larger one; later ones are not computed."""
    return sum(1 for _ in takewhile(lambda p: p <= delta, p_values))


def cases_needed(epsilon: float, delta: float) -> int:
    """Compute how many cases, none made worse, certify epsilon: ``log delta / log(1 - epsilon)``."""
    return math.ceil(math.log(delta) / math.log1p(-epsilon))


def smallest_certifiable(n: int, delta: float) -> float:
    """Compute the smallest epsilon that n cases, none made worse, certify: ``1 - delta^(1/n)``."""
    return -math.expm1(math.log(delta) / n)


def _check_differences(d: FloatArray) -> FloatArray:
    if not d.size or not (np.abs(d) <= 1.0).all():
        raise ValueError("differences must be in [-1, 1], and there must be one")
    return d


def _log_wealth(d: FloatArray, epsilon: float, wager: float) -> float:
    payoffs = np.maximum(wager * (epsilon - d), -1.0)
    if (payoffs == -1.0).any():
        return -math.inf
    return float(np.log1p(payoffs).sum())
