"""Whether a promise breaks toward the end of a table, as logs are often written in the order of time.

A random split hides such a change: every part holds early and late rows. Each promise is a mean excess that must not be
positive, so the test asks whether the excess of the last rows is positive and larger than that of the rows before
them. Every order of exchangeable rows is equally likely, so comparing the order of the table with random ones is exact
(permutation test; Pesarin and Salmaso 2010). Its statistic is the largest over windows of several lengths, which find
a sudden change, and the slope of a straight line, which finds a gradual one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from unfold_cascade._types import FloatArray, IntArray

MIN_UNITS = 60
LEVEL = 0.05
"""Chance that a promise over exchangeable rows is found to grow; that its last rows break it as well is rarer."""
WINDOWS = (0.5, 0.4, 1 / 3, 0.25, 0.2, 0.15, 0.1, 0.06)
"""Shares of the table that are compared with all rows before them."""
MAX_BLOCKS = 200
PERMUTATIONS = 999
ROUNDING = 1e-9


def find_late_break(excesses: Mapping[str, FloatArray]) -> str | None:
    """Find the promise with the strongest evidence that the last rows break it; ``None`` if there is none.

    Args:
        excesses: for each promise (n,) excesses in the order of the table; it holds where their mean is at most 0.
    """
    p_values = {name: late_break_p_value(excess) for name, excess in excesses.items()}
    name = min(p_values, key=lambda name: p_values[name], default=None)
    return None if name is None or p_values[name] > LEVEL else name


def late_break_p_value(excess: FloatArray) -> float:
    """Compute the p-value that the order of rows is random, against an excess that grows and ends above 0.

    Rows are summed in blocks of equal size. Exchangeable rows make exchangeable blocks, so the test stays exact.

    Args:
        excess: (n,) excesses in the order of the table.

    Returns:
        1 where no window at the end has a positive mean, nor the line a positive end, or there are fewer than
        ``MIN_UNITS`` rows.
    """
    n = len(excess)
    if n < MIN_UNITS:
        return 1.0
    size = -(-n // MAX_BLOCKS)
    count = n // size
    blocks = excess[n - count * size :].reshape(count, size).mean(axis=1)
    windows = np.unique([max(round(share * count), 1) for share in WINDOWS])
    growth, late = _compare_windows(blocks[None], windows)
    if not (late > 0.0).any():
        return 1.0
    observed = float(growth[late > 0.0].max())
    # a fixed seed: a verdict never depends on the draw of the permutations
    orders = np.random.default_rng(0).permuted(np.tile(blocks, (PERMUTATIONS, 1)), axis=1)
    largest = _compare_windows(orders, windows)[0].max(axis=1)
    return (1 + int((largest >= observed - ROUNDING).sum())) / (PERMUTATIONS + 1)


def average_in_order(values: FloatArray, clusters: IntArray | None) -> FloatArray:
    """Average (n,) values by cluster, in the order of the first row of each; without clusters they stay as they are."""
    if clusters is None:
        return values
    _, first, index, size = np.unique(clusters, return_index=True, return_inverse=True, return_counts=True)
    means: FloatArray = (np.bincount(index, values) / size)[np.argsort(first)]
    return means


def _compare_windows(blocks: FloatArray, windows: IntArray) -> tuple[FloatArray, FloatArray]:
    """Compare the last blocks of (p, b) orders with those before them, and fit a straight line to each order.

    Returns:
        (p, w + 1) differences of the means and the slope, in units that make all of them comparable, and the later
        means and the end of the line.
    """
    count = blocks.shape[1]
    sums = np.cumsum(blocks[:, ::-1], axis=1)
    late = sums[:, windows - 1] / windows
    early = (sums[:, -1:] - sums[:, windows - 1]) / (count - windows)
    growth = (late - early) * np.sqrt(windows * (count - windows) / count)
    position = np.arange(count) - (count - 1) / 2
    scale = np.sqrt((position**2).sum())
    trend = (blocks @ position)[:, None] / scale
    end = blocks.mean(axis=1, keepdims=True) + trend * position[-1] / scale
    return np.hstack([growth, trend]), np.hstack([late, end])
