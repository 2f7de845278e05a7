"""Temperatures and the calibration error, against direct computation and on data of known calibration."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfold_supernet.training.calibration import compute_calibration_error, compute_confidence, fit_temperature


def draw_calibrated(seed: int, rows: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw logits, and labels from their softmax: confidences are right by construction."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (rows, classes))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (shares.cumsum(1) > rng.random((rows, 1))).argmax(1)
    return logits.astype(np.float32), labels.astype(np.int64)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.3, 1.0, 3.0]), st.integers(2, 6))
def test_temperature_undoes_the_scale_of_the_logits(seed: int, scale: float, classes: int) -> None:
    """Logits that were multiplied by a factor get that factor as their temperature."""
    logits, labels = draw_calibrated(seed, 4000, classes)
    assert fit_temperature(logits * np.float32(scale), labels) == pytest.approx(scale, rel=0.2)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.25, 4.0]))
def test_calibration_reduces_the_error_on_fresh_rows(seed: int, scale: float) -> None:
    """A temperature fitted on one half reduces the calibration error on the other half."""
    logits, labels = draw_calibrated(seed, 4000, 4)
    logits = logits * np.float32(scale)
    temperature = fit_temperature(logits[:2000], labels[:2000])
    correct = logits[2000:].argmax(1) == labels[2000:]
    before, after = (
        compute_calibration_error(compute_confidence(logits[2000:], divisor), correct) for divisor in (1.0, temperature)
    )
    assert after < before
    assert after < 5


def test_correct_rows_alone_prove_no_certainty() -> None:
    """A few rows that are all correct do not drive the temperature to its bound."""
    logits = np.tile(np.array([[2.0, 0.0]], np.float32), (5, 1))
    assert fit_temperature(logits, np.zeros(5, np.int64)) > 0.2
    assert fit_temperature(logits[:0], np.zeros(0, np.int64)) == 1.0


def test_calibration_error_is_the_mean_gap_over_bins() -> None:
    """The error equals the weighted gap of confidence and accuracy, bin by bin."""
    confidence = np.array([0.95, 0.95, 0.55, 1.0])
    correct = np.array([True, False, True, True])
    # bins of width 1/15: both 0.95 and 1.0 lie in the last one
    expected = (abs(0.95 + 0.95 + 1.0 - 2) + abs(0.55 - 1)) / 4 * 100
    assert compute_calibration_error(confidence, correct) == pytest.approx(expected)
