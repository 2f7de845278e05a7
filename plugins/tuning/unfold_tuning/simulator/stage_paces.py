"""How much slower or faster than its profile a job runs in each stage: a joint distribution, and draws from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unfold_tuning._types import FloatArray
from unfold_tuning.job.schedule import Stage

MAX_SHIFT = 3.0
"""Draws further than this from their mean, in logarithms, are cut off: a t distribution has no finite mean cost."""
MAX_SPREAD = 1.5
SHARED_SPREAD = 0.7
"""Correlation of the spreads of any two groups."""
STREAM = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePaces:
    """Log paces of every group of trials, stage by stage, relative to the profile's mean iteration.

    A group is the trials of one bracket in one stage. In each run it has one shift, from a multivariate t distribution,
    and a spread between its trials, from a log-normal one.

    Attributes:
        mean: Mean shift: [groups].
        covariance: Covariance of the shifts: [groups, groups].
        degrees: Degrees of freedom of the t distribution.
        spread_mean: Mean of the log of the spread: [groups].
        spread_std: Its standard deviation: [groups].
    """

    mean: FloatArray
    covariance: FloatArray
    degrees: float
    spread_mean: FloatArray
    spread_std: FloatArray


@dataclass(frozen=True, slots=True)
class PaceDraws:
    """Draws of one stage: the shift and the spread of each of its groups, [samples, groups] each."""

    shift: FloatArray
    spread: FloatArray

    def select(self, rows: slice) -> PaceDraws:
        """Return some of the runs."""
        return PaceDraws(self.shift[rows], self.spread[rows])

    def repeat(self, groups: int) -> PaceDraws:
        """Return the paces of the first group for several groups of a trial each."""
        return PaceDraws(np.repeat(self.shift[:, :1], groups, axis=1), np.repeat(self.spread[:, :1], groups, axis=1))


def draw_paces(stages: Sequence[Stage], paces: StagePaces, samples: int, seed: int) -> tuple[PaceDraws, ...]:
    """Draw the shift and spread of each group in every run; equal seeds give equal draws.

    Args:
        stages: The stages with groups that the distribution covers, in order.
        paces: The distribution.
        samples: Number of runs.
        seed: Seed of the draws.
    """
    rng = np.random.default_rng([seed, STREAM])
    groups = len(paces.mean)
    normal = rng.standard_normal((samples, groups))
    scale = np.sqrt((paces.degrees - 2) / rng.chisquare(paces.degrees, samples))[:, None]
    factor = _decompose(paces.covariance)
    shift = paces.mean + np.clip(scale * (normal @ factor.T), -MAX_SHIFT, MAX_SHIFT)
    shared, own = rng.standard_normal((samples, 1)), rng.standard_normal((samples, groups))
    normal = np.sqrt(SHARED_SPREAD) * shared + np.sqrt(1 - SHARED_SPREAD) * own
    spread = np.minimum(np.exp(paces.spread_mean + paces.spread_std * normal), MAX_SPREAD)
    ends = np.cumsum([len(stage.groups) for stage in stages])
    begins = ends - [len(stage.groups) for stage in stages]
    return tuple(PaceDraws(shift[:, begin:end], spread[:, begin:end]) for begin, end in zip(begins, ends, strict=True))


def list_trial_groups(stage: Stage) -> list[int]:
    """List the index of each trial's group, in the order in which trials start: longest first."""
    order = sorted(range(len(stage.groups)), key=lambda index: -stage.groups[index].iters)
    return [index for index in order for _ in range(stage.groups[index].trials)]


def _decompose(covariance: FloatArray) -> FloatArray:
    """Decompose a covariance, which may be singular, into a factor times its transpose."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))
