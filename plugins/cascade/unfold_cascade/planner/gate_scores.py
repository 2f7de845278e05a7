"""The scores that gates compare with cuts: raw confidences, or confidences calibrated per label and agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.gates.calibrated import Calibration, cross_calibrate, encode_contexts, fit_gate
from unfold_cascade.gates.chains import Chain
from unfold_cascade.planner.policy import StagePolicy, as_indices, exit_answers, find_reached_cuts
from unfold_cascade.planner.score_tables import ScoreTable

FOLDS = 5


def assign_folds(rows: IntArray, clusters: IntArray | None) -> IntArray:
    """Assign the (n,) fold of each row; rows of one cluster share a fold."""
    unit = np.arange(len(rows)) if clusters is None else np.unique(clusters[rows], return_inverse=True)[1]
    folds: IntArray = unit % FOLDS
    return folds


@dataclass(frozen=True, slots=True)
class GateScorer:
    """Scores of one table on the tuning ``rows``, with the (n, M) ``loss`` and the (n,) ``fold`` of each row.

    If ``conditional``, each row is scored by curves that have not seen its fold, so that cuts do not profit from the
    fit; the curves of a selected chain are then fitted on all rows.
    """

    table: ScoreTable
    rows: IntArray
    loss: FloatArray
    conditional: bool
    fold: IntArray
    cross_fitted: dict[Chain, FloatArray] = field(default_factory=dict)
    fitted: dict[Chain, Calibration] = field(default_factory=dict)

    def score(self, chain: Chain) -> FloatArray:
        """Compute the (n, K-1) scores that the gates of a chain read."""
        if not self.conditional:
            return self.table.score[np.ix_(self.rows, as_indices(chain[:-1]))]
        columns = [self._cross_fitted_scores(chain[: j + 1]) for j in range(len(chain) - 1)]
        return np.array(columns).reshape(len(columns), len(self.rows)).T

    def build_stage(self, chain: Chain, cuts: Sequence[float]) -> StagePolicy:
        """Combine a chain, its cuts, and the curves that score new rows."""
        if not self.conditional or len(chain) == 1:
            return StagePolicy(chain, tuple(cuts))
        curves = tuple(self._fitted_curve(chain[: j + 1]) for j in range(len(chain) - 1))
        return StagePolicy(chain, tuple(cuts), curves)

    def answer_held_out(self, stage: StagePolicy) -> IntArray:
        """Compute the (n,) answers of a chain on the tuning rows, none scored by a curve that has seen its fold."""
        exits = find_reached_cuts(self.score(stage.chain), stage.cuts)
        return exit_answers(self.table, stage, self.rows, exits)

    def _cross_fitted_scores(self, prefix: Chain) -> FloatArray:
        if prefix not in self.cross_fitted:
            confidence, answer = self.table.score[self.rows, prefix[-1]], self.table.answer[self.rows]
            utility = 1.0 - self.loss[:, prefix[-1]]
            self.cross_fitted[prefix] = cross_calibrate(confidence, encode_contexts(answer, prefix), utility, self.fold)
        return self.cross_fitted[prefix]

    def _fitted_curve(self, prefix: Chain) -> Calibration:
        # a front has a thousand points but few chains: each gate is fitted once
        if prefix not in self.fitted:
            score, answer = self.table.score[self.rows], self.table.answer[self.rows]
            self.fitted[prefix] = fit_gate(score, answer, 1.0 - self.loss, prefix)
        return self.fitted[prefix]
