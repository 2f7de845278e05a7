"""An exact test that one classifier loses at most epsilon against another on the same cases, for 0/1 losses.

The difference d of a case is -1, 0 or 1. Under ``E[d] = epsilon`` the only nuisance is the discordance
``pi = P(d != 0)``, because ``P(d = 1) = (pi + epsilon) / 2`` and ``P(d = -1) = (pi - epsilon) / 2``. Berger and Boos
(1994, P values maximized over a confidence set for the nuisance parameter, JASA 89) bound it: the p-value is beta plus
the largest p-value over a 1 - beta confidence set of pi. No asymptotics are involved, so it holds for any n.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from unfold_cascade._types import FloatArray

BETA = 0.002
"""Chance that the discordance exceeds its confidence bound; part of the p-value."""
GRID = 33
"""Discordances at which the p-value is maximized, both ends among them."""
ROUNDING = 1e-11
"""Bound on the error of the transform, added to every tail probability."""
COARSE_GRID, COARSE_FROM = 5, 5_000
"""With many cases the p-value varies little between the ends, where its maximum lies in all tabulated cases."""
MAX_CASES = 200_000
"""Above this many cases the transform of one test takes too long."""


@lru_cache(maxsize=65_536)
def exact_paired_p_value(worse: int, better: int, n: int, epsilon: float) -> float:
    """Compute the p-value of ``E[d] >= epsilon``; a small one shows that less than epsilon is lost.

    Args:
        worse: Cases with d = 1.
        better: Cases with d = -1.
        n: All cases.
        epsilon: The loss to exclude, in (-1, 1).

    Raises:
        ValueError: The counts exceed n, or n is out of range.
    """
    if min(worse, better) < 0 or worse + better > n or not 0 < n <= MAX_CASES:
        raise ValueError(f"{worse} + {better} discordant of {n} cases is impossible, or above {MAX_CASES}")
    if epsilon >= 1.0:
        return 0.0
    size = abs(epsilon)
    largest = max(upper_proportion(worse + better, n, BETA), size)
    discordances = (
        np.linspace(size, largest, GRID if n < COARSE_FROM else COARSE_GRID) if largest > size else np.array([size])
    )
    tails = tail_probabilities(worse - better, n, discordances, epsilon)
    return float(min(1.0, BETA + tails.max()))


def tail_probabilities(total: int, n: int, discordance: FloatArray, epsilon: float) -> FloatArray:
    """Compute ``P(T <= total)`` of the sum T of n differences, for each discordance.

    The characteristic function of one difference to the power n is inverted by the discrete Fourier transform, which
    is exact for a variable on the integers from -n to n once it has more than 2n points.

    Args:
        total: The sum, cases made worse minus cases made better.
        n: Number of cases.
        discordance: (g,) values of pi, at least ``abs(epsilon)``.
        epsilon: The mean difference.

    Returns:
        (g,) probabilities, each rounded up by the error of the transform.
    """
    points = 1 << (2 * n + 1).bit_length()
    angle = 2j * np.pi * np.arange(points // 2 + 1) / points
    up, down = (discordance + epsilon) / 2, np.maximum((discordance - epsilon) / 2, 0.0)
    one = up[:, None] * np.exp(-angle) + down[:, None] * np.exp(angle) + np.maximum(1.0 - discordance, 0.0)[:, None]
    probability = np.fft.irfft(one**n, points, axis=1)
    # index k holds P(T = k), and index -k holds P(T = -k)
    below = probability[:, points - n :].sum(axis=1) if total >= 0 else 0.0
    lower = probability[:, : total + 1] if total >= 0 else probability[:, points - n : points + total + 1]
    tails: FloatArray = np.clip(below + lower.sum(axis=1), 0.0, 1.0) + ROUNDING
    return tails


@lru_cache(maxsize=65_536)
def upper_proportion(count: int, n: int, alpha: float) -> float:
    """Compute the one-sided upper Clopper-Pearson bound of a proportion at level ``1 - alpha``."""
    from scipy.special import betaincinv

    return 1.0 if count >= n else float(betaincinv(count + 1, n - count, 1.0 - alpha)) * (1 + 1e-9)


@lru_cache(maxsize=4096)
def smallest_excluded_loss(worse: int, better: int, n: int, delta: float) -> float:
    """Compute the upper confidence bound of ``E[d]``: the smallest epsilon with a p-value up to delta, to 1e-6.

    Returns:
        a loss in [-1, 1]; 1 where none can be excluded.
    """
    low, high = (worse - better) / n, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if exact_paired_p_value(worse, better, n, middle) <= delta else (middle, high)
    return high
