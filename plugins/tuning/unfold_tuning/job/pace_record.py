"""Records of how fast trials of earlier jobs ran, iteration by iteration: what a prior over paces is learnt from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from unfold_tuning._types import FloatArray, IntArray

WINDOW_RATIO = 1.5
"""Ratio of the ends of two neighbouring windows, beyond the first few iterations."""
PACE_FLOOR = 0.1
"""A pace counts as at least this fraction of its window's median: a clock may stand still between two readings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaceRecord:
    """The paces of one earlier job.

    Attributes:
        name: Names the job in messages.
        ends: The iteration with which each window ends, ascending: [windows].
        seconds: Mean seconds of an iteration in each window on one accelerator: [trials, windows]; nan where a trial
            did not run.
        scores: Ranking score at the end of each window, more is better: [trials, windows]; nan where it is unknown.
        names: Numeric hyperparameters of the trials, if they are known.
        features: Their values, logarithms where a range spans decades: [trials, names].
        floored: ``seconds``, but nothing below the floor of its window: [trials, windows].
    """

    name: str
    ends: IntArray
    seconds: FloatArray
    scores: FloatArray
    names: tuple[str, ...] = ()
    features: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))
    floored: FloatArray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Floor the seconds once: a prior reads the paces of a record some thousand times."""
        medians = np.nanmedian(self.seconds, axis=0)
        floored = np.maximum(self.seconds, np.maximum(PACE_FLOOR * medians, 1e-9))
        object.__setattr__(self, "floored", floored)

    @property
    def trials(self) -> int:
        """Number of trials."""
        return len(self.seconds)

    def select_features(self, trials: IntArray) -> FloatArray:
        """Select the hyperparameters of trials: [trials, names]; no columns if they are unknown."""
        return self.features[trials] if self.names else np.zeros((len(trials), 0))

    def compute_log_paces(self, done: int, target: int) -> FloatArray:
        """Compute the log of each trial's mean seconds per iteration after ``done`` and up to ``target`` iterations.

        Iterations that the record does not reach count like those before its end.

        Returns:
            [trials]; nan for a trial that did not run all recorded windows of that range.
        """
        limit = int(self.ends[-1])
        done, target = min(done, limit - 1), min(target, limit)
        begins = np.concatenate([[0], self.ends[:-1]])
        overlap = np.clip(np.minimum(self.ends, target) - np.maximum(begins, done), 0, None).astype(float)
        used = overlap > 0
        with np.errstate(invalid="ignore"):
            return np.asarray(np.log(self.floored[:, used] @ overlap[used] / overlap.sum()))

    def rank_survivors(self, pool: IntArray, done: int, target: int, count: int) -> IntArray:
        """Select the trials of a pool that continue after ``done`` iterations, best first.

        Only trials that ran up to ``target`` can continue; without scores, those that continued in the record do.
        """
        ran = pool[np.isfinite(self.compute_log_paces(done, target)[pool])]
        window = min(int(np.searchsorted(self.ends, done)), len(self.ends) - 1)
        scores = self.scores[ran, window]
        order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")
        return np.asarray(ran[order][:count])


def build_pace_record(
    name: str,
    steps: Mapping[str, Sequence[tuple[float, float]]],
    scores: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    configs: Mapping[str, Mapping[str, object]] | None = None,
) -> PaceRecord:
    """Build a record from the steps of its trials.

    Args:
        name: Names the job.
        steps: By trial, the iterations run by the end of each step and the mean seconds of one of its iterations.
        scores: By trial, the iterations run and the ranking score then.
        configs: Configurations by trial, of which the numeric hyperparameters count.
    """
    trials = sorted(steps)
    ends = list_window_ends(round(max(items[-1][0] for items in steps.values())))
    names, features = build_features([(configs or {}).get(trial, {}) for trial in trials])
    return PaceRecord(
        name=name,
        ends=ends,
        seconds=np.array([_average_windows(steps[trial], ends) for trial in trials]),
        scores=np.array([_select_scores((scores or {}).get(trial, ()), ends) for trial in trials]),
        names=names,
        features=features,
    )


def build_features(configs: Sequence[Mapping[str, object]]) -> tuple[tuple[str, ...], FloatArray]:
    """Build the numeric hyperparameters that all configurations have; positive values as logarithms.

    Returns:
        Their names, and their values: [configurations, names].
    """
    shared = set.intersection(*(set(config) for config in configs)) if configs else set()
    columns: dict[str, FloatArray] = {}
    for name in sorted(shared):
        values = [config[name] for config in configs]
        if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
            column = np.array(values, dtype=float)
            if np.isfinite(column).all():
                is_positive = bool((column > 0).all())
                columns[f"log {name}" if is_positive else name] = np.log(column) if is_positive else column
    if not columns:
        return (), np.zeros((len(configs), 0))
    return tuple(columns), np.column_stack(list(columns.values()))


def list_window_ends(last: int) -> IntArray:
    """List the ends of windows up to an iteration: single iterations first, then wider and wider ones."""
    ends = [end for end in (1, 2, 3, 4, 6, 8, 12) if end < last]
    while ends and (end := round(ends[-1] * WINDOW_RATIO)) < last and ends[-1] >= 12:
        ends.append(end)
    return np.array([*ends, max(1, last)])


def _average_windows(steps: Sequence[tuple[float, float]], ends: IntArray) -> FloatArray:
    """Average the seconds of an iteration over each window; nan from the last iteration of the trial on."""
    at = np.array([0.0, *(end for end, _ in steps)])
    elapsed = np.concatenate([[0.0], np.cumsum(np.diff(at) * [seconds for _, seconds in steps])])
    bounds = np.concatenate([[0], ends])
    seconds = np.diff(np.interp(bounds, at, elapsed)) / np.diff(bounds)
    return np.where(ends <= at[-1], seconds, np.nan)


def _select_scores(scores: Sequence[tuple[float, float]], ends: IntArray) -> FloatArray:
    """Select the last score by the end of each window; nan before the first one."""
    at, values = [end for end, _ in scores], np.array([np.nan, *(score for _, score in scores)])
    return np.asarray(values[np.searchsorted(at, ends, side="right")])
