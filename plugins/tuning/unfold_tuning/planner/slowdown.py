"""A lasting slow-down in the middle of a run: all trials take longer from some moment on.

Another tenant, a throttled accelerator or slow storage is no property of a trial or of its iterations. What was
measured before it is no guide to the rest of the run, unless it is corrected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from unfold_tuning._types import FloatArray, IntArray

MIN_FACTOR = 1.5
"""Smaller changes are left to the posterior over paces, which expects some."""
MIN_REPORTS = 3
"""Checkpoints after a slow-down that show that it lasts."""
MIN_SURENESS = 4.0
"""Standard errors by which a slow-down differs from none: it is looked for at many checkpoints."""
NORMAL_MAD = 1.4826
"""Standard deviation of normal values over their median absolute deviation."""
MAX_REPORTS = 2000
"""Of more checkpoints, the last ones count."""


@dataclass(frozen=True, slots=True)
class Slowdown:
    """A lasting slow-down.

    Attributes:
        factor: How much longer an iteration takes since then.
        onset: How many checkpoints had been reported before.
    """

    factor: float
    onset: int


def find_slowdown(paces: FloatArray, trials: IntArray) -> Slowdown | None:
    """Find since when, and by how much, trials are slower than they were; ``None`` if they are not.

    Trials that ran before and after a moment are compared with themselves: those that began later may be slow of
    their own.

    Args:
        paces: Log seconds per iteration of each checkpoint, in the order in which they were reported: [checkpoints].
        trials: Their trials: [checkpoints].
    """
    first = max(0, len(paces) - MAX_REPORTS)
    paces, trials = paces[first:], trials[first:]
    # the checkpoint of the same trial before each
    order = np.lexsort((np.arange(len(trials)), trials))
    changes = np.diff(paces[order])
    is_next = trials[order][1:] == trials[order][:-1]
    onsets = order[1:][is_next & (changes > math.log(MIN_FACTOR))]
    if not len(onsets):
        return None
    noise = NORMAL_MAD * float(np.median(np.abs(changes[is_next]))) / math.sqrt(2)
    measured = (_measure_slowdown(paces, trials, int(onset), noise) for onset in onsets)
    largest = max((item for item in measured if item), key=lambda item: item.factor, default=None)
    return largest and Slowdown(largest.factor, first + largest.onset)


def _measure_slowdown(paces: FloatArray, trials: IntArray, onset: int, noise: float) -> Slowdown | None:
    """Measure how much slower trials are from a checkpoint on; ``None`` unless that is sure, large, and lasts.

    Args:
        paces: Log seconds per iteration of each checkpoint.
        trials: Their trials.
        onset: The checkpoint.
        noise: Standard deviation of a trial's log pace from checkpoint to checkpoint.
    """
    size = int(trials.max()) + 1
    before, after = (np.bincount(part, minlength=size) for part in (trials[:onset], trials[onset:]))
    levels = np.bincount(trials[:onset], paces[:onset], minlength=size) / np.maximum(before, 1)
    is_known = before > 0
    excess = (paces - levels[trials])[onset:][is_known[trials[onset:]]]
    if len(excess) < MIN_REPORTS:
        return None
    shares = after[is_known] / len(excess)
    # a median of normal values has 1.25 times the error of their mean
    error = 1.25 * noise * math.sqrt(1 / len(excess) + float((shares**2 / before[is_known]).sum()))
    change = float(np.median(excess))
    lasts = float(np.median(excess[-MIN_REPORTS:])) > change / 2
    is_sure = change > max(math.log(MIN_FACTOR), MIN_SURENESS * error)
    return Slowdown(math.exp(change), onset) if lasts and is_sure else None
