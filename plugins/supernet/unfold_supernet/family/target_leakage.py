"""Target leakage: columns of the input that alone predict the target of rows on which no rule was fitted.

Such a column is often a copy of the target, or known only after it. A column leaks classes if it hardly varies within
them; several columns do if each is an indicator of a class; a column of codes does if each code stands for one class.
It leaks a real value if it determines it on a line or by rank. Where rows are signals or images, their mean, deviation,
least and largest value count as columns.

A column that separates classes without being nearly constant within them, as in Fisher's irises, is no leak.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_supernet._types import FloatArray, IntArray
from unfold_supernet.family.datasets import Dataset
from unfold_supernet.family.number_columns import name_column

MIN_BETWEEN = 0.97
"""Least fraction of a column's variance that lies between the classes (the correlation ratio)."""
MAX_ERRORS = 0.02
"""Errors of a rule that leaks, as a fraction of the errors of the commonest class."""
MIN_ERRORS = 10
"""Test rows outside the commonest class from which a rule is tested at all."""
MIN_DETERMINATION = 0.999
"""Squared correlation from which a column leaks a real value."""
MAX_VALUES, MIN_ROWS, MAX_ROWS = 20_000_000, 256, 20_000
"""Numbers and rows to which rules are fitted; of wide rows there are fewer."""
BLOCK_VALUES = 1 << 22
"""Numbers that are correlated together, in double precision."""
MAX_CODED = 256
"""Columns up to which each may hold codes; pixels do not."""
MIN_ROWS_PER_CODE = 10
STATISTICS = ("the mean of x", "the deviation of x", "the least value of x", "the largest value of x")


@dataclass(frozen=True, slots=True)
class Leak:
    """Columns that alone predict a target.

    Attributes:
        columns: Their names.
        target: Name of the label or value; empty for classes.
        score: Accuracy, or squared correlation for real values, on the test rows, in percent.
    """

    columns: tuple[str, ...]
    target: str
    score: float


@dataclass(frozen=True, slots=True)
class _Sample:
    """Columns (rows, columns) and classes, labels or values of some rows."""

    columns: FloatArray
    y: Any


def find_leaks(data: Dataset, seed: int) -> tuple[Leak, ...]:
    """Find what leaks the classes, or each label or value, by rules fitted to training rows and tested on test rows."""
    width = data.x[0].size + data.extra.shape[1]
    height = int(np.clip(MAX_VALUES // max(1, width), MIN_ROWS, MAX_ROWS))
    rng = np.random.default_rng([seed, 0x1EA4])
    train, test = (_draw_sample(data, np.sort(rng.permutation(rows)[:height])) for rows in (data.train, data.test))
    if data.task == "values":
        return tuple(_find_correlations(data, test))
    if data.task == "classes":
        leak = _find_rule(data, train, test, "")
        return (leak,) if leak else ()
    leaks = [
        _find_rule(data, _Sample(train.columns, train.y[:, label]), _Sample(test.columns, test.y[:, label]), name)
        for label, name in enumerate(data.names)
    ]
    return tuple(leak for leak in leaks if leak)


def _draw_sample(data: Dataset, rows: IntArray) -> _Sample:
    """List all numbers of some rows, and where rows are signals or images their statistics last."""
    x = data.x[rows].reshape(len(rows), -1)
    statistics = [] if data.columns or x.shape[1] < 2 else [x.mean(1), x.std(1), x.min(1), x.max(1)]
    return _Sample(np.column_stack([x, data.extra[rows], *statistics]), data.y[rows])


def _name_columns(data: Dataset, indices: IntArray) -> tuple[str, ...]:
    width, extra = data.x[0].size, data.extra.shape[1]
    names = []
    for index in indices.tolist():
        if index < width:
            names.append(name_column("x", data.columns, data.x.shape[1:], index))
        else:
            rest = index - width
            names.append(name_column("extra", (), (extra,), rest) if rest < extra else STATISTICS[rest - extra])
    return tuple(names)


def _find_rule(data: Dataset, train: _Sample, test: _Sample, target: str) -> Leak | None:
    """Find the columns that predict the classes of the test rows."""
    wrong = len(test.y) - int(np.bincount(test.y).max())
    classes, y = np.unique(train.y, return_inverse=True)
    if wrong < MIN_ERRORS or len(classes) < 2:
        return None
    for columns, predicted in _apply_rules(_Sample(train.columns, y), test.columns):
        errors = int((classes[predicted] != test.y).sum())
        if errors <= MAX_ERRORS * wrong:
            return Leak(_name_columns(data, columns), target, 100 * (1 - errors / len(test.y)))
    return None


def _apply_rules(train: _Sample, tested: FloatArray) -> Iterator[tuple[IntArray, IntArray]]:
    """Fit a rule of each sort to training rows; yield its columns and the classes that it predicts."""
    between, indicators, indicated = _correlate_columns(train)
    best = int(between.argmax())
    if between[best] >= MIN_BETWEEN:
        means = _average_classes(train.columns[:, [best]], train.y)[:, 0]
        yield np.array([best]), np.abs(tested[:, [best]] - means).argmin(axis=1)
    found = indicated >= MIN_BETWEEN
    if len(found) > 2 and found.sum() >= len(found) - 1:
        means = _average_classes(train.columns[:, indicators], train.y)
        low, high = (means.sum(axis=0) - means.diagonal()) / (len(means) - 1), means.diagonal()
        # a class that no column indicates is that of rows without an indicator
        scores = np.where(found, (tested[:, indicators] - low) / np.where(found, high - low, 1), 0.5)
        yield np.unique(indicators[found]), scores.argmax(axis=1)
    yield from _decode_columns(train, tested)


def _average_classes(columns: FloatArray, y: IntArray) -> FloatArray:
    """Average columns over the rows of each class (classes, columns)."""
    is_class = (y[:, None] == np.arange(y.max() + 1)).astype(np.float64)
    return np.asarray(is_class.T @ columns / is_class.sum(axis=0)[:, None], np.float64)


def _correlate_columns(train: _Sample) -> tuple[FloatArray, IntArray, FloatArray]:
    """Correlate columns with the classes.

    Returns:
        The correlation ratio of each column, the column that indicates each class best, and its squared correlation.
    """
    counts = np.bincount(train.y).astype(np.float64)
    odds, width = counts / (len(train.y) - counts), train.columns.shape[1]
    between, best, score = np.zeros(width), np.zeros(len(counts), np.int64), np.zeros(len(counts))
    step = max(1, BLOCK_VALUES // max(len(train.y), len(counts)))
    for start in range(0, width, step):
        block = train.columns[:, start : start + step].astype(np.float64)
        block -= block.mean(axis=0)
        variance, means = (block**2).mean(axis=0), _average_classes(block, train.y)
        between[start : start + step] = _divide(counts @ means**2 / len(train.y), variance)
        indicated = _divide(means**2 * odds[:, None], np.broadcast_to(variance, means.shape))
        is_better = indicated.max(axis=1) > score
        best = np.where(is_better, start + indicated.argmax(axis=1), best)
        score = np.maximum(score, indicated.max(axis=1))
    return between, best, score


def _decode_columns(train: _Sample, tested: FloatArray) -> Iterator[tuple[IntArray, IntArray]]:
    """Find columns of codes that stand for one class each; yield the column and the classes that it predicts."""
    for index in range(train.columns.shape[1] if train.columns.shape[1] <= MAX_CODED else 0):
        codes, coded = np.unique(train.columns[:, index], return_inverse=True)
        if not 1 < len(codes) <= len(train.y) // MIN_ROWS_PER_CODE:
            continue
        counts = np.zeros((len(codes), train.y.max() + 1), np.int64)
        np.add.at(counts, (coded, train.y), 1)
        known = np.searchsorted(codes, tested[:, index]).clip(0, len(codes) - 1)
        if (counts > 0).sum() == len(codes) and (codes[known] == tested[:, index]).all():
            yield np.array([index]), counts.argmax(axis=1)[known]


def _divide(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Divide by variances; constant columns have none."""
    return np.asarray(
        np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0), np.float64
    )


def _find_correlations(data: Dataset, test: _Sample) -> Iterator[Leak]:
    """Find for each value a column of the test rows that determines it, on a line or by rank."""
    if len(test.y) < MIN_ERRORS:
        return
    scores, best = np.zeros(len(data.names)), np.zeros(len(data.names), np.int64)
    forms = [(form, _standardize(form(test.y))) for form in (np.asarray, _rank)]
    step = max(1, BLOCK_VALUES // len(test.y))
    for start in range(0, test.columns.shape[1], step):
        block = test.columns[:, start : start + step].astype(np.float64)
        determination = np.max([(_standardize(form(block)).T @ y / len(y)) ** 2 for form, y in forms], axis=0)
        best = np.where(determination.max(axis=0) > scores, start + determination.argmax(axis=0), best)
        scores = np.maximum(scores, determination.max(axis=0))
    for index in np.flatnonzero(scores >= MIN_DETERMINATION):
        yield Leak(_name_columns(data, best[[index]]), data.names[index], 100 * min(1.0, float(scores[index])))


def _rank(values: Any) -> FloatArray:
    """Rank the values of each column."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(values, axis=0), np.float64)


def _standardize(values: Any) -> FloatArray:
    """Scale columns to mean 0 and deviation 1; constant ones become 0."""
    centred = values - values.mean(axis=0, dtype=np.float64)
    return _divide(centred, np.broadcast_to(centred.std(axis=0), centred.shape))
