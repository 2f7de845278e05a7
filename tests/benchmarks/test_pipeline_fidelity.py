"""The benchmark of fidelity: what its figures are made of."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.pipeline_fidelity import Case, Round, cases, judge_rounds, metrics

CHAIN = Case("chain", "computing", 0.5)


def made(measured: float, estimated: float, *, paced: float = 0.0, case: Case = CHAIN, foreign: float = 0.0) -> Round:
    times = (np.full(200, value) for value in (measured, estimated, paced or estimated))
    return Round(case, 10.0, *times, 0.0, 0.0, foreign)


def test_a_disturbed_round_is_left_out_where_most_were_quiet() -> None:
    """What others disturbed counts only where half of the rounds of the case or more were disturbed."""
    quiet, disturbed = [made(50.0, 55.0)] * 3, [made(200.0, 50.0, foreign=0.1)] * 2
    (found,) = judge_rounds([*quiet, *disturbed])
    assert (found["p99_error_percent_pooled"], found["disturbed"]) == (pytest.approx(10.0), 2)
    (found,) = judge_rounds([*quiet[:2], *disturbed])
    assert found["p99_error_percent_pooled"] < -50.0


def test_a_case_has_the_error_of_its_middle_round_and_of_all_together() -> None:
    """A round that was slow and one that was quick, each foretold in the other's place, are one distribution."""
    (found,) = judge_rounds([made(50.0, 80.0), made(80.0, 50.0), made(60.0, 66.0)])
    assert found["p99_error_percent"] == pytest.approx(10.0)
    assert found["p99_error_percent_pooled"] == pytest.approx(0.0)
    (pair,) = judge_rounds([made(50.0, 80.0), made(80.0, 50.0)])
    assert pair["halves_apart_percent"] == pytest.approx(60.0)


def test_the_worst_case_of_all_is_the_figure_with_the_aim() -> None:
    """No kind of models is left out of the largest error: what waits counts by its profile, what computes paced."""
    waiting = Case("chain", "waiting", 0.5)
    found = metrics(judge_rounds([made(50.0, 51.0, paced=80.0, case=waiting), made(100.0, 70.0, paced=95.0)]))
    assert found["p99_error_percent_max"] == pytest.approx(5.0)
    assert found["waiting_p99_error_percent_max"] == pytest.approx(2.0)
    assert found["computing_paced_p99_error_percent_max"] == pytest.approx(5.0)
    assert found["computing_p99_error_percent_max"] == pytest.approx(30.0)
    assert found["computing_halves_apart_percent_median"] is None
    found = metrics(judge_rounds([made(50.0, 60.0, paced=50.0, case=waiting), made(100.0, 70.0, paced=95.0)]))
    assert found["p99_error_percent_max"] == pytest.approx(20.0)


def test_every_pipeline_waits_and_computes_at_every_load() -> None:
    """Three pipelines at three loads, with either models, replicas on a core of their own."""
    pinned = {(case.shape, case.models, case.load) for case in cases(quick=False) if case.cores == "pinned"}
    assert len(pinned) == 18


def test_models_of_a_case_are_its_own() -> None:
    """A shape is filled with models that wait or with networks."""
    waits, computes = (Case("chain", models, 0.5).spec for models in ("waiting", "computing"))
    assert "fidelity_models:small" in waits
    assert "large.onnx" in computes
