"""Pictures of gates: risk by coverage and reliability, on cases of known quality."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.cascade.tests.runs import CONFIGS, run_in, solve_spec, spec_of
from unfold_cascade.planner.policy import follow
from unfold_cascade.report.gate_quality import (
    GateScores,
    compute_risk,
    draw_reliability,
    draw_risk_coverage,
    list_gates,
)


def _draw_gate(seed: int, cases: int, bias: float = 0.0) -> GateScores:
    """Draw a gate with scores on a grid, which are right as often as the score says plus a bias."""
    rng = np.random.default_rng(seed)
    score = rng.integers(50, 101, cases) / 100
    return GateScores("m", score, rng.random(cases) < score + bias, 0.9)


@given(st.integers(0, 1000), st.integers(1, 80))
def test_risk_counts_the_cases_that_a_threshold_trusts(seed: int, cases: int) -> None:
    """Every point is the share of wrong answers above one threshold; the last one is that of all answers."""
    gate = _draw_gate(seed, cases)
    coverage, risk = compute_risk(gate.score, gate.is_right)
    thresholds = np.unique(gate.score)[::-1]
    trusted = [gate.score >= threshold for threshold in thresholds]
    assert coverage == pytest.approx([each.mean() for each in trusted])
    assert risk == pytest.approx([1 - gate.is_right[each].mean() for each in trusted])


def test_reliability_shows_overconfidence() -> None:
    """Honest scores lie on the diagonal, boastful ones below it; scores that are no probabilities are left out."""
    honest, boastful = _draw_gate(1, 20_000), _draw_gate(2, 20_000, bias=-0.2)
    figure = draw_reliability([honest, boastful], timed=False)
    assert figure is not None
    first, second, diagonal = figure.series
    assert np.abs(np.subtract(first.x, first.y)).max() < 3
    assert np.subtract(second.x, second.y).min() > 15
    assert diagonal.x == diagonal.y
    assert draw_reliability([GateScores("m", honest.score * 7, honest.is_right, 0.9)], timed=False) is None


def test_thresholds_of_the_plan_lie_on_their_curves(tmp_path: Path) -> None:
    """The pictures of a plan have a curve for each gate, through the point of its threshold."""
    solution = solve_spec(spec_of(CONFIGS / "api-logs.yaml", "gates.bins=64"), run_in(tmp_path))
    assert solution.policy is not None
    rows = solution.problem.dataset.rows.test
    gates = list_gates(solution, solution.policy, follow(solution.tables, solution.policy, rows))
    assert len(gates[0].score) == len(rows)
    figure = draw_risk_coverage(gates, timed=False)
    assert figure is not None
    *curves, chosen = figure.series
    for gate, curve, coverage, risk in zip(gates, curves, chosen.x, chosen.y, strict=True):
        assert curve.y[-1] == pytest.approx(100 * (1 - gate.is_right.mean()))
        assert coverage == pytest.approx(100 * (gate.score >= gate.cut).mean())
        assert min(curve.y) <= risk <= max(curve.y)


def test_without_gates_there_is_no_picture() -> None:
    """A cascade of one model has no gate."""
    assert draw_risk_coverage([], timed=False) is None
    assert draw_reliability([], timed=False) is None
