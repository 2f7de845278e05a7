"""A certificate that a cascade loses at most epsilon against its baseline (section 1.10).

All of it speaks of paired differences d, the loss of the cascade minus the loss of the baseline on the same
case, in [-1, 1]. A p-value is small where the data speak against ``E[d] > epsilon``. The cases, or the
clusters where there are some, must be independent draws from the population that the promise is about, and
must not have been used to choose the cascade, its cuts, the order of the points or the rule of the test.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import numpy as np

from unfold_cascade._types import FloatArray, IntArray

Method = Literal["binomial", "betting", "hoeffding-bentkus"]


@dataclass(frozen=True, slots=True)
class Rule:
    """How a difference is tested: the method, and for betting the wager."""

    method: Method
    wager: float = 0.0


def binomial_p_value(worse: int, n: int, epsilon: float) -> float:
    """Test exactly by the number of cases made worse, ``P(Binomial(n, epsilon) <= worse)``.

    Valid because ``E[d] <= P(d > 0)``. Cases made better do not help; see ``betting_p_value``.

    Args:
        worse: Cases with d > 0.
        n: Cases in all.
        epsilon: Loss allowed, in [0, 1]; no test is possible below 0, where the answer is 1.
    """
    if epsilon <= 0.0 or worse >= n:
        return 1.0
    if epsilon >= 1.0 or worse < 0:
        return 0.0
    # not scipy.special.bdtr: its import takes longer than a whole plan
    k = np.arange(worse)
    ratio = np.log((n - k) / (k + 1.0)) + math.log(epsilon) - math.log1p(-epsilon)
    logs = n * math.log1p(-epsilon) + np.concatenate(([0.0], np.cumsum(ratio)))
    return min(1.0, float(np.exp(logs).sum()))


def betting_p_value(d: FloatArray, epsilon: float, wager: float) -> float:
    """Test by betting: one over the wealth ``prod(1 + wager * (epsilon - d_i))``, at most 1.

    If ``E[d] >= epsilon`` the expected wealth is at most 1, so Markov's inequality makes this a p-value for
    any bounded d (Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, 2024).
    Cases made better add to the wealth.

    Args:
        d: (n,) differences in [-1, 1].
        epsilon: Loss allowed, in [-1, 1).
        wager: In [0, 1 / (1 - epsilon)], fixed before d is seen; see ``best_wager``.

    Raises:
        ValueError: The wager is outside its bounds, or a difference is.
    """
    if not 0.0 <= wager <= 1.0 / (1.0 - epsilon):
        raise ValueError(f"wager must be from 0 to 1 / (1 - epsilon), not {wager}")
    return math.exp(min(0.0, -_log_wealth(_checked(d), epsilon, wager)))


def hoeffding_bentkus_p_value(d: FloatArray, epsilon: float) -> float:
    """Test by Hoeffding-Bentkus on ``(1 + d) / 2`` (Bates et al. 2021); weak where few cases differ.

    Args:
        d: (n,) differences in [-1, 1].
        epsilon: Loss allowed, in (-1, 1).
    """
    from scipy.special import bdtr, rel_entr

    n, mean, bound = d.size, (1.0 + float(_checked(d).mean())) / 2, (1.0 + epsilon) / 2
    low = min(mean, bound)
    hoeffding = math.exp(-n * float(rel_entr(low, bound) + rel_entr(1.0 - low, 1.0 - bound)))
    return min(1.0, hoeffding, math.e * float(bdtr(math.ceil(n * mean), n, bound)))


def best_wager(d_tune: FloatArray, epsilon: float) -> float:
    """Return the wager under which wealth would have grown fastest on the tuning split.

    Half a case made worse is added to the tuning data, so that a split without any does not bet everything.

    Args:
        d_tune: (n,) differences of the tuning split, in [-1, 1].
        epsilon: Loss allowed, in [-1, 1).

    Returns:
        Wager in [0, 1 / (1 - epsilon)).
    """
    value, count = np.unique(np.append(_checked(d_tune), 1.0), return_counts=True)
    weight = count - 0.5 * (value == 1.0)
    low, high = 0.0, 1.0 / (1.0 - epsilon)
    for _ in range(60):
        middle = (low + high) / 2
        slope = float((weight * (epsilon - value) / (1.0 + middle * (epsilon - value))).sum())
        low, high = (middle, high) if slope > 0.0 else (low, middle)
    return low


def choose_rule(d_tune: FloatArray, epsilon: float, cases: int) -> Rule:
    """Choose the method and the wager that promise the smaller p-value on so many certifying cases.

    The certificate stays valid because the choice looks at the tuning split alone: given that split, each
    p-value is one fixed function of certifying data that are independent of it. Choosing on the certifying
    split, or taking the smaller of two p-values there, would break it.

    Args:
        d_tune: (n,) differences of the tuning split, in [-1, 1].
        epsilon: Loss allowed, in [0, 1).
        cases: Cases, or clusters, of the certifying split.
    """
    wager = best_wager(d_tune, epsilon)
    betting = -cases * _log_wealth(d_tune, epsilon, wager) / d_tune.size
    worse = math.ceil(cases * float((d_tune > 0.0).mean()))
    binomial = binomial_p_value(worse, cases, epsilon)
    return Rule("betting", wager) if betting < math.log(max(binomial, 1e-300)) else Rule("binomial")


def per_cluster(d: FloatArray, clusters: IntArray, *, epsilon: float = 0.0, cap: int | None = None) -> FloatArray:
    """Turn the differences of cases into one number per cluster (patient), the unit that is independent.

    Without ``cap`` it is the mean of the cluster's cases: the promise is that the *average patient* loses
    at most epsilon, each patient counting once however many cases they have. With ``cap`` it is ``epsilon +
    sum(d_i - epsilon) / cap``: its mean exceeds epsilon iff ``E[sum d] / E[cases] > epsilon``, so the
    promise is about the *average case*, a patient counting by their cases. Then no patient of the
    population may have more than ``cap`` cases, and the cap is set before the certifying split is seen.

    Args:
        d: (n,) differences in [-1, 1].
        clusters: (n,) id of each case's cluster.
        epsilon: Loss allowed; read with ``cap`` only.
        cap: Most cases that a cluster may have, or None.

    Returns:
        (g,) numbers in [-1, 1], by ascending id.

    Raises:
        ValueError: A cluster has more cases than ``cap``.
    """
    _, place, size = np.unique(clusters, return_inverse=True, return_counts=True)
    if cap is None:
        return np.bincount(place, d) / size
    if size.max() > cap:
        raise ValueError(f"a cluster has {size.max()} cases, more than the cap of {cap} that was promised")
    return epsilon + np.bincount(place, d - epsilon) / cap


def p_value(
    d: FloatArray, epsilon: float, rule: Rule, *, clusters: IntArray | None = None, cap: int | None = None
) -> float:
    """Test ``E[d] > epsilon`` by a rule; small speaks for the cascade.

    Args:
        d: (n,) differences in [-1, 1].
        epsilon: Loss allowed, in (-1, 1).
        rule: Method and wager; a wager too high for this epsilon is lowered to the most allowed.
        clusters: (n,) id of each case's cluster; None where cases are independent.
        cap: As for ``per_cluster``; without clusters it has no meaning.

    Raises:
        ValueError: A difference is outside [-1, 1], or a cap meets a method that is not betting.
    """
    if clusters is not None:
        d = per_cluster(d, clusters, epsilon=epsilon, cap=cap)
    if clusters is not None and cap is not None and rule.method != "betting":
        raise ValueError("clusters that count by their cases can be tested by betting only")
    if rule.method == "binomial":
        return binomial_p_value(int((_checked(d) > 0.0).sum()), d.size, epsilon)
    if rule.method == "betting":
        return betting_p_value(d, epsilon, min(rule.wager, 1.0 / (1.0 - epsilon)))
    return hoeffding_bentkus_p_value(d, epsilon)


def upper_bound(
    d: FloatArray,
    confidence: float,
    rule: Rule,
    *,
    clusters: IntArray | None = None,
    cap: int | None = None,
) -> float:
    """Return the smallest loss that the data certify: an upper confidence bound on ``E[d]``.

    Args:
        d: (n,) differences in [-1, 1].
        confidence: 1 - delta, such as 0.95.
        rule: Method and wager, chosen before d is seen.
        clusters: As for ``p_value``.
        cap: As for ``p_value``.

    Returns:
        The smallest epsilon in [-1, 1] with p-value <= delta, to 1e-9; 1 where there is none.
    """
    low, high = -1.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        refused = p_value(d, middle, rule, clusters=clusters, cap=cap) > 1.0 - confidence
        low, high = (middle, high) if refused else (low, middle)
    return high


def fixed_sequence(
    differences: FloatArray,
    epsilon: float,
    delta: float,
    rules: Rule | Sequence[Rule],
    *,
    clusters: IntArray | None = None,
    cap: int | None = None,
) -> int | None:
    """Walk along the front from expensive to cheap and return the last point before the first failure.

    Learn-then-Test with fixed-sequence testing (Angelopoulos et al. 2021): with probability 1 - delta the
    point returned has ``E[d] <= epsilon``. No correction is needed for the number of points, as the walk
    stops at the first failure; it holds whatever the dependence between the points.

    Args:
        differences: (m, n) differences in [-1, 1], points from expensive to cheap.
        epsilon: Loss allowed, in (-1, 1).
        delta: Chance of a false certificate.
        rules: One rule for all points, or one a point; chosen on the tuning split, as is the order of points.
        clusters: As for ``p_value``.
        cap: As for ``p_value``.

    Returns:
        Index of the point, or None where the first one fails.
    """
    each = [rules] * len(differences) if isinstance(rules, Rule) else rules
    tests = zip(differences, each, strict=True)
    passed = count_leading_passes((p_value(d, epsilon, rule, clusters=clusters, cap=cap) for d, rule in tests), delta)
    return passed - 1 if passed else None


def count_leading_passes(p_values: Iterable[float], delta: float) -> int:
    """Return how many p-values pass before the first that fails; what comes after it is not looked at."""
    return sum(1 for _ in takewhile(lambda p: p <= delta, p_values))


def cases_needed(epsilon: float, delta: float) -> int:
    """Return how many cases, none made worse, certify epsilon: ``log delta / log(1 - epsilon)``."""
    return math.ceil(math.log(delta) / math.log1p(-epsilon))


def smallest_certifiable(n: int, delta: float) -> float:
    """Return the smallest epsilon that n cases, none made worse, certify: ``1 - delta^(1/n)``."""
    return -math.expm1(math.log(delta) / n)


def _checked(d: FloatArray) -> FloatArray:
    if not d.size or not (np.abs(d) <= 1.0).all():
        raise ValueError("differences must be in [-1, 1], and there must be one")
    return d


def _log_wealth(d: FloatArray, epsilon: float, wager: float) -> float:
    stakes = np.maximum(wager * (epsilon - d), -1.0)
    if (stakes == -1.0).any():
        return -math.inf
    return float(np.log1p(stakes).sum())
