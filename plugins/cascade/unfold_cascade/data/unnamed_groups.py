"""Whether the rows of a table lie in close groups that no column names, as several visits of one patient do.

Split at random, such rows stand on both sides, and a model that remembers the patient seems better than it is for new
ones. Groups show in the distances of neighbours. Around a row of independent ones, the distance of the k-th neighbour
grows as the power 1/d of k in d dimensions, and d may be read from far neighbours (Levina and Bickel 2004: maximum
likelihood estimation of intrinsic dimension). Members of a group are nearer than their number then explains.
"""

from __future__ import annotations

import numpy as np

from unfold_cascade._types import FloatArray, IntArray

MIN_ROWS = 200
MIN_COLUMNS = 4
"""With fewer columns, independent rows are as near as visits of one patient."""
MIN_STEPS = 500
"""Steps of its smallest difference in the range of a column; a coarse one makes chance neighbours equal."""
MAX_SHARE = 0.05
"""Share of a column that may be missing or have one value, such as 0, in which independent rows agree."""
SAMPLE = 400
MIN_SAMPLE = 50
MAX_DISTANCES = 20_000_000
"""Distances that are computed; fewer rows of a large table are looked at."""
FAR = 60
"""The farthest neighbour that counts; the dimension is estimated from a quarter of it on."""
MIN_EXCESS = 1.75
"""How much nearer than expected the nearest neighbour is, in logarithms, from which rows are grouped.

Independent rows with heavy tails, zeros, rounding or missing values reach 1.5; several rows of one patient that share
97 % of the variance of eight columns, or 90 % of that of fifteen, exceed 2.
"""
CLOSEST = 1e-6
CHUNK = 4_000_000
"""Distances that are held at once."""


def has_unnamed_groups(numbers: FloatArray) -> bool:
    """Whether rows lie in close groups.

    Args:
        numbers: (n, d) features of distinct rows, NaN where a value is missing.
    """
    return measure_excess(numbers) >= MIN_EXCESS


def measure_excess(numbers: FloatArray) -> float:
    """Measure how much nearer the nearest neighbour of a row is than farther ones let expect; about 1 by chance.

    Returns:
        The ratio of two mean logarithms; 0 for too few rows or columns with a fine resolution.
    """
    from scipy.special import digamma, ndtri
    from scipy.stats import rankdata

    fine = [column for column in numbers.T if _is_fine(column)]
    n = len(numbers)
    if n < MIN_ROWS or len(fine) < MIN_COLUMNS:
        return 0.0
    # ranks: tails and scales of columns do not matter
    filled = [np.where(np.isfinite(column), column, np.nanmedian(column)) for column in fine]
    points = np.column_stack([ndtri((rankdata(column) - 0.5) / n) for column in filled])
    far = min(FAR, n // 4)
    near = far // 4
    rows = np.arange(n)[:: max(n // min(SAMPLE, max(MIN_SAMPLE, MAX_DISTANCES // n)), 1)]
    parts = np.array_split(rows, max(len(rows) * n // CHUNK, 1))
    logs = np.concatenate([_measure_neighbours(points, part, far) for part in parts if len(part)])
    first, middle, last = logs[:, [0, near - 1, far - 1]].mean(axis=0)
    if last <= middle:
        return 0.0
    inverse_dimension = (last - middle) / float(digamma(far) - digamma(near))
    return float((middle - first) / (inverse_dimension * float(digamma(near) - digamma(1))))


def _measure_neighbours(points: FloatArray, rows: IntArray, far: int) -> FloatArray:
    """Compute the (m, far) logarithms of the distances of some rows to their nearest neighbours, sorted."""
    squares = (points**2).sum(axis=1)
    distance = np.sqrt(np.maximum(squares[rows, None] + squares - 2.0 * points[rows] @ points.T, 0.0))
    distance[np.arange(len(rows)), rows] = np.inf
    nearest: FloatArray = np.sort(np.partition(distance, far - 1, axis=1)[:, :far], axis=1)
    return np.log(np.maximum(nearest, CLOSEST))


def _is_fine(column: FloatArray) -> bool:
    is_finite = np.isfinite(column)
    values, counts = np.unique(column[is_finite], return_counts=True)
    if is_finite.mean() < 1.0 - MAX_SHARE or counts.max(initial=0) > MAX_SHARE * len(column):
        return False
    return bool(values[-1] - values[0] >= MIN_STEPS * float(np.diff(values).min()))
