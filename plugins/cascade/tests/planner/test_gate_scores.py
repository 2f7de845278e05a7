"""Laws of what the gates of a question read."""

from __future__ import annotations

import numpy as np

from unfold_cascade.gates import calibrated
from unfold_cascade.gates.calibrated import fit_chain
from unfold_cascade.planner.gate_scores import GateScorer
from unfold_cascade.planner.score_tables import ScoreTable


def test_a_gate_is_fitted_once_for_all_points() -> None:
    """Two points of one chain share the curves of their gates, which are those of a chain fitted alone."""
    rng = np.random.default_rng(0)
    answer, score = rng.integers(0, 3, (60, 3)), rng.random((60, 3))
    loss = (rng.random((60, 3)) < 0.3).astype(np.float64)
    buys, nothing = (frozenset[str](),) * 3, np.full(3, np.nan)
    question = ScoreTable("s", "all", ("a", "b", "c"), answer, score, np.arange(1.0, 4.0), buys, nothing)
    scorer = GateScorer(question, np.arange(60), loss, conditional=True, fold=np.arange(60) % 5)
    one, two, short = (
        scorer.build_stage((0, 1, 2), (0.4, 0.5)),
        scorer.build_stage((0, 1, 2), (0.6, 0.7)),
        scorer.build_stage((0, 2), (0.4,)),
    )
    assert all(a is b for a, b in zip(one.curves, two.curves, strict=True))
    assert one.curves[0] is short.curves[0]
    alone = fit_chain(score, answer, 1.0 - loss, (0, 1, 2))
    assert [calibrated.write_calibration(each) for each in one.curves] == [
        calibrated.write_calibration(each) for each in alone
    ]
