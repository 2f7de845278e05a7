"""How hyperparameters change the pace of a trial, learnt on earlier jobs: corrects a profile of a few trials.

The trials of a profile are a small sample of the search. Where batch size or width determine the pace, and earlier jobs
with the same hyperparameters show how, the difference between the profiled and all configurations is predictable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unfold_tuning._types import FloatArray
from unfold_tuning.job.pace_record import PaceRecord

RIDGE = 0.01
"""Penalty of a standardized slope, relative to the number of trials."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaceSlopes:
    """A quadratic regression of the log pace in the profile's first window, and of its change in the second one.

    Attributes:
        names: The hyperparameters.
        center: Their means over all records: [names].
        scale: Their standard deviations: [names].
        slopes: [terms, 2].
    """

    names: tuple[str, ...]
    center: FloatArray
    scale: FloatArray
    slopes: FloatArray

    def estimate_shift(self, profiled: FloatArray, planned: FloatArray) -> FloatArray:
        """Estimate the mean level and drift of the planned trials minus those of the profiled ones: [2].

        Args:
            profiled: Hyperparameters of the profiled trials: [trials, names].
            planned: Those of all trials.
        """
        return np.asarray((self._expand(planned).mean(axis=0) - self._expand(profiled).mean(axis=0)) @ self.slopes)

    def _expand(self, features: FloatArray) -> FloatArray:
        return _expand(np.clip((features - self.center) / self.scale, -3, 3))


def fit_pace_slopes(records: Sequence[PaceRecord], windows: tuple[int, int]) -> PaceSlopes | None:
    """Fit the slopes on records with the same hyperparameters; ``None`` if there are none, or too few trials.

    Args:
        records: Earlier jobs; a job's mean pace does not count, only the differences between its trials.
        windows: The iterations with which the two windows of a profile end.
    """
    if not records or not records[0].names or any(record.names != records[0].names for record in records):
        return None
    features = np.concatenate([record.features for record in records])
    center, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-9)
    rows, targets = [], []
    for record in records:
        early = record.compute_log_paces(0, windows[0])
        change = record.compute_log_paces(*windows) - early
        valid = np.isfinite(early) & np.isfinite(change)
        if valid.sum() > 1:
            terms = _expand(np.clip((record.features[valid] - center) / scale, -3, 3))
            target = np.column_stack([early[valid], change[valid]])
            rows.append(terms - terms.mean(axis=0))
            targets.append(target - target.mean(axis=0))
    if not rows or sum(len(item) for item in rows) < 2 * rows[0].shape[1]:
        return None
    x, y = np.concatenate(rows), np.concatenate(targets)
    slopes = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ y)
    return PaceSlopes(names=records[0].names, center=center, scale=scale, slopes=slopes)


def _expand(features: FloatArray) -> FloatArray:
    """Expand features to themselves, their squares and their products."""
    left, right = np.triu_indices(features.shape[1])
    return np.hstack([features, features[:, left] * features[:, right]])
