"""What a gate reads: the confidence itself, or one that knows the answer (calibrated per label and agreement)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.gates.calibrated import Calibration, contexts, cross_calibrate, fit_gate
from unfold_cascade.gates.chains import Chain
from unfold_cascade.planner.policy import Step, places
from unfold_cascade.planner.score_tables import Question

FOLDS = 5


def folds(rows: IntArray, clusters: IntArray | None) -> IntArray:
    """Return (n,) the fold of each row; rows of one cluster share theirs."""
    place = np.arange(len(rows)) if clusters is None else np.unique(clusters[rows], return_inverse=True)[1]
    found: IntArray = place % FOLDS
    return found


@dataclass(frozen=True, slots=True)
class Scorer:
    """Scores of one question on the tuning ``rows`` with (n, M) ``loss`` and the (n,) ``fold`` of each.

    With ``conditional`` each row is scored by curves that have not seen its fold, so that cuts are not flattered by
    the fit; the curves of a chosen chain are then fitted on all rows.
    """

    question: Question
    rows: IntArray
    loss: FloatArray
    conditional: bool
    fold: IntArray
    memo: dict[Chain, FloatArray] = field(default_factory=dict)
    fitted: dict[Chain, Calibration] = field(default_factory=dict)

    def scores(self, chain: Chain) -> FloatArray:
        """Return the (n, K-1) scores that the gates of a chain read."""
        if not self.conditional:
            return self.question.score[np.ix_(self.rows, places(chain[:-1]))]
        columns = [self._gate(chain[: j + 1]) for j in range(len(chain) - 1)]
        return np.array(columns).reshape(len(columns), len(self.rows)).T

    def step(self, chain: Chain, cuts: Sequence[float]) -> Step:
        """Return a chain with its cuts, and the curves that score new rows."""
        if not self.conditional or len(chain) == 1:
            return Step(chain, tuple(cuts))
        return Step(chain, tuple(cuts), tuple(self._fitted(chain[: j + 1]) for j in range(len(chain) - 1)))

    def _gate(self, asked: Chain) -> FloatArray:
        if asked not in self.memo:
            confidence, answer = self.question.score[self.rows, asked[-1]], self.question.answer[self.rows]
            worth = 1.0 - self.loss[:, asked[-1]]
            self.memo[asked] = cross_calibrate(confidence, contexts(answer, asked), worth, self.fold)
        return self.memo[asked]

    def _fitted(self, asked: Chain) -> Calibration:
        # a front has a thousand points, but few chains: each gate is fitted once
        if asked not in self.fitted:
            score, answer = self.question.score[self.rows], self.question.answer[self.rows]
            self.fitted[asked] = fit_gate(score, answer, 1.0 - self.loss, asked)
        return self.fitted[asked]
