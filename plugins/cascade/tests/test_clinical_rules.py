"""SIRS and partial SOFA follow their published tables."""

from __future__ import annotations

import numpy as np

from unfold_cascade.clinical_rules import count_sirs_criteria, score_partial_sofa


def test_sirs_counts_each_criterion_once() -> None:
    """Heart rate, temperature, respiration (rate or gas) and white cells count one each, beyond their bounds."""
    cases = [
        ((90, 38, 20, 32, 12), 0), ((91, 38, 20, 32, 12), 1), ((90, 38.1, 20, 32, 12), 1), ((90, 35.9, 20, 32, 12), 1),
        ((90, 37, 21, 31, 12), 1), ((90, 37, 20, 31, 12), 1), ((90, 37, 20, 40, 12.1), 1), ((90, 37, 20, 40, 3.9), 1),
        ((100, 39, 30, 20, 2), 4), ((np.nan, np.nan, np.nan, np.nan, np.nan), 0),
    ]  # fmt: skip
    names = ("HR", "Temp", "Resp", "PaCO2", "WBC")
    columns = {name: np.array([row[k] for row, _ in cases], dtype=np.float32) for k, name in enumerate(names)}
    with np.errstate(invalid="ignore"):
        assert count_sirs_criteria(columns).tolist() == [count for _, count in cases]


def test_partial_sofa_follows_its_table() -> None:
    """Points grow with creatinine and bilirubin, and fall with platelets and pressure, at the published bounds."""
    v = {
        "MAP": np.array([70, 69, 70, 70, 70, 70], dtype=np.float32),
        "Creatinine": np.array([1.1, 1.1, 1.2, 5.0, 1.1, 1.1], dtype=np.float32),
        "Bilirubin_total": np.array([1.1, 1.1, 1.1, 1.1, 6.0, 1.1], dtype=np.float32),
        "Platelets": np.array([150, 150, 150, 150, 150, 19], dtype=np.float32),
    }
    assert score_partial_sofa(v).tolist() == [0, 1, 1, 4, 3, 4]
