"""Whether a promise breaks toward the end of a table, as logs are often written in the order of time.

A random split hides such a change: every part holds early and late rows. Each promise is a mean excess that must not be
positive, so the test asks whether the excess of the last rows is positive and larger than that of the rows before
them. Every order of exchangeable rows is equally likely, so comparing the order of the table with random ones is exact
(permutation test; Pesarin and Salmaso 2010). Its statistic is the largest over windows of several lengths, which find
a sudden change, and over ramps, which find a gradual one: flat up to a point, and then a straight line. The end of a
ramp estimates the excess of the rows to come, which the mean of a window understates while the excess still grows.

Where growth is beyond doubt, the certificate has lost its ground, so the end must keep the promise by a margin.

Many tools export the newest rows first, so a column of times decides the order of the rows, if the table has one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.data.table import Frame
from unfold_cascade.schema import cell_values
from unfoldkit.arrivals.readers import timestamps

MIN_UNITS = 60
LEVEL = 0.05
"""Chance that any promise over exchangeable rows is found to grow; that its last rows break it as well is rarer."""
WINDOWS = (0.5, 0.4, 1 / 3, 0.25, 0.2, 0.15, 0.1, 0.06)
"""Shares of the table that are compared with all rows before them."""
RAMPS = (0.0, 0.2, 0.4, 0.6, 0.8)
"""Shares of the table before a gradual change."""
DOUBTFUL = 5.0
"""By how much smaller the p-value must be if the end breaks the promise only with its standard error added."""
MAX_BLOCKS = 200
PERMUTATIONS = 999
ROUNDING = 1e-9
TIME_COLUMNS = (*timestamps.COLUMNS, "admitted", "admittime", "admission_date", "admitdate", "visit_date", "charttime")
"""Names of columns of times, in lower case and without what they are nested in, the likeliest first."""
MAX_WITHOUT_TIME = 0.1
"""Rows without a time, as a share of the table, which take their place from their neighbours."""
MAX_BLOCKS_OF_WORDS = 0.2
"""Different words, as a share of the rows, up to which a column may name subjects or tasks."""
MAX_BORDERS = 4
"""Changes between neighbours for each different word: rows which were written at the same time mix at the borders."""
LEVELS = range(3, 21)
"""Different numbers of a column of levels, such as of difficulty; two may be a setting that changed once."""
PERIODS = re.compile(r"day|week|month|quarter|year|hour|date|time|version|release|batch|epoch|period|step|(^|_)id$")
"""Parts of names of columns of numbers that count time."""


def find_late_break(excesses: Mapping[str, FloatArray]) -> str | None:
    """Find the promise with the strongest evidence that the last rows break it; ``None`` if there is none.

    The level holds for all promises together: that of each is divided by their number (Bonferroni). Promises of too
    few rows cannot be found, so they do not count.

    Args:
        excesses: For each promise (n,) excesses in the order of the table; it holds where their mean is at most 0.
    """
    p_values = {name: late_break_p_value(excess) for name, excess in excesses.items() if len(excess) >= MIN_UNITS}
    name = min(p_values, key=lambda name: p_values[name], default=None)
    return None if name is None or p_values[name] * len(p_values) > LEVEL else name


def late_break_p_value(excess: FloatArray) -> float:
    """Compute the p-value that the order of rows is random, against an excess that grows and ends above 0.

    Rows are summed in blocks of equal size. Exchangeable rows make exchangeable blocks, so the test stays exact.

    Args:
        excess: (n,) excesses in the order of the table.

    Returns:
        1 where no end of a window or ramp is positive, even with its standard error added, or there are fewer than
        ``MIN_UNITS`` rows.
    """
    n = len(excess)
    if n < MIN_UNITS:
        return 1.0
    size = -(-n // MAX_BLOCKS)
    count = n // size
    blocks = excess[n - count * size :].reshape(count, size).mean(axis=1)
    contrasts, ends = _build_contrasts(count)
    growth, end, error = blocks @ contrasts, blocks @ ends, blocks.std() * np.sqrt((ends**2).sum(axis=0))
    if not (end + error > 0.0).any():
        return 1.0
    # a fixed seed: a verdict never depends on the draw of the permutations
    orders = np.random.default_rng(0).permuted(np.tile(blocks, (PERMUTATIONS, 1)), axis=1)
    largest = (orders @ contrasts).max(axis=1)

    def p_value(mask: BoolArray) -> float:
        observed = float(growth[mask].max()) if mask.any() else -np.inf
        return (1 + int((largest >= observed - ROUNDING).sum())) / (PERMUTATIONS + 1)

    # both are p-values of the same maximum, so that their union at 1 and 1 / DOUBTFUL of a level has this level
    return min(p_value(end > 0.0), DOUBTFUL * p_value(end + error > 0.0), 1.0)


def rank_by_time(frame: Frame) -> IntArray | None:
    """Rank (n,) the rows from 0 by a column of dates or of times since 1970; ``None`` without such a column.

    A row without a time follows the row before it. A column of one time, such as the day of an evaluation, is no order.
    """
    stems = {timestamps.split_unit(re.split(r"[./|]", name)[-1])[0]: name for name in reversed(list(frame.columns))}
    for name in (stems[stem] for stem in TIME_COLUMNS if stem in stems):
        times = np.array([_parse_time(cell_values.label_text(value)) for value in frame.columns[name]])
        has_time = times >= timestamps.FIRST_EPOCH_S
        if (~has_time).mean() <= MAX_WITHOUT_TIME and len(np.unique(times[has_time])) > 1:
            # the last row with a time so far, or the first one of all
            last = np.maximum.accumulate(np.where(has_time, np.arange(len(times)), has_time.argmax()))
            rank: IntArray = np.argsort(np.argsort(times[last], kind="stable"))
            return rank
    return None


def _parse_time(text: str) -> float:
    """Parse a date or a number; minus infinity if it is neither."""
    date = timestamps.parse_timestamp(text)
    date = cell_values.parse_date(text) if date is None else date
    if date is not None:
        return date
    return float(text) if timestamps.NUMBER.fullmatch(text) else -np.inf


def is_sorted_by_words(frame: Frame) -> bool:
    """Whether rows are sorted by a column of words, such as subjects, or of a few levels, such as of difficulty.

    Their order then says nothing about time.
    """
    for name, values in frame.columns.items():
        # not as an array of text, in which each cell takes the room of the longest
        words = [cell_values.label_text(value) for value in values]
        number = {word: index for index, word in enumerate(dict.fromkeys(words))}
        if not 1 < len(number) <= MAX_BLOCKS_OF_WORDS * len(words):
            continue
        index = np.array([number[word] for word in words])
        # a column of results, such as the verdict of a judge, changes often, though less after a change over time
        if np.count_nonzero(np.diff(index)) > MAX_BORDERS * len(number) or not are_sorted(index):
            continue
        if all(map(cell_values.is_number, number)) and len(number) in LEVELS:
            if PERIODS.search(name.casefold()) is None:
                return True
        elif not any(cell_values.is_number(word) or cell_values.parse_date(word) is not None for word in number):
            return True
    return False


def average_in_order(values: FloatArray, clusters: IntArray | None) -> FloatArray:
    """Average (n,) values by cluster, in the order of the first row of each; without clusters they stay as they are."""
    if clusters is None:
        return values
    _, first, index, size = np.unique(clusters, return_index=True, return_inverse=True, return_counts=True)
    means: FloatArray = (np.bincount(index, values) / size)[np.argsort(first)]
    return means


def are_sorted(labels: IntArray) -> bool:
    """Whether neighbours differ less than half as often as in a random order."""
    shares = np.bincount(labels) / len(labels)
    changes = float((np.diff(labels) != 0).mean()) if len(labels) > 1 else 0.0
    return changes < 0.5 * (1.0 - float((shares**2).sum()))


def _build_contrasts(count: int) -> tuple[FloatArray, FloatArray]:
    """Build the statistics of so many blocks, which are all linear in them.

    Returns:
        (count, k) contrasts of unit length, which measure growth, and (count, k) weights of the excess at the end.
    """
    contrasts, ends = [], []
    for window in np.unique([max(round(share * count), 1) for share in WINDOWS]):
        is_late = np.arange(count) >= count - window
        step = is_late - window / count
        contrasts.append(step / np.sqrt((step**2).sum()))
        ends.append(is_late / window)
    for start in RAMPS:
        ramp = np.clip((np.arange(count) + 0.5) / count - start, 0.0, None)
        ramp = (ramp - ramp.mean()) / np.sqrt(((ramp - ramp.mean()) ** 2).sum())
        contrasts.append(ramp)
        ends.append(1.0 / count + ramp * ramp[-1])
    return np.column_stack(contrasts), np.column_stack(ends)
