"""Temperatures and the calibration error, against direct computation and on data of known calibration."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfold_supernet.training.confidence_calibration import (
    compute_calibration_error,
    compute_confidence,
    fit_temperature,
    measure_calibration,
    minimize_log_loss,
    undo_smoothing,
)


def draw_calibrated(seed: int, rows: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw logits, and labels from their softmax: confidences are right by construction."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (rows, classes))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (shares.cumsum(1) > rng.random((rows, 1))).argmax(1)
    return logits.astype(np.float32), labels.astype(np.int64)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.3, 1.0, 3.0]), st.integers(2, 6))
def test_temperature_undoes_the_scale_of_the_logits(seed: int, scale: float, classes: int) -> None:
    """Logits that were multiplied by a factor get that factor as their temperature."""
    logits, labels = draw_calibrated(seed, 4000, classes)
    assert fit_temperature(logits * np.float32(scale), labels) == pytest.approx(scale, rel=0.2)


@settings(max_examples=8, deadline=None)
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


def test_a_temperature_rarely_harms_a_weak_member() -> None:
    """Members that are surely wrong about some rows keep their confidences; the log loss alone would flatten them."""
    guarded, unguarded = [], []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 10, 600)
        shown = np.where(rng.random(600) < rng.uniform(0.05, 0.4), rng.integers(0, 10, 600), labels)
        logits = np.zeros((600, 10), np.float32)
        logits[np.arange(600), shown] = np.where(rng.random(600) < 0.5, 12.0, 2.0)
        before, kept, fitted = (
            compute_calibration_error(
                compute_confidence(logits[300:], temperature), logits[300:].argmax(1) == labels[300:]
            )
            for temperature in (
                1.0,
                fit_temperature(logits[:300], labels[:300]),
                minimize_log_loss(logits[:300].astype(np.float64), labels[:300]),
            )
        )
        guarded.append(kept - before)
        unguarded.append(fitted - before)
    assert np.mean(np.array(unguarded) > 1) > 0.5
    assert np.mean(np.array(guarded) > 1) <= 0.1
    assert np.mean(guarded) < 0.5


def test_chance_is_no_reason_for_a_temperature() -> None:
    """Of calibrated logits, few validation rows rarely produce a temperature, and never a wild one."""
    temperatures = []
    for seed in range(100):
        logits, labels = draw_calibrated(seed, 60, 4)
        temperatures.append(fit_temperature(logits, labels))
    assert np.mean(np.array(temperatures) != 1) < 0.15
    assert min(temperatures) > 0.4
    assert max(temperatures) < 3


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_labels_have_a_temperature_too(scale: float) -> None:
    """Logits of independent labels that were multiplied by a factor get it as their temperature."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, (3000, 3))
    labels = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    scaled = (logits * scale).astype(np.float32)
    temperature = fit_temperature(scaled, labels)
    assert temperature == pytest.approx(scale, rel=0.15)
    errors = measure_calibration({"a": scaled / np.float32(temperature)}, {"a": temperature}, labels)
    assert errors["a"].after < 3
    assert errors["a"].after <= errors["a"].before + 0.1


def test_the_interval_counts_groups() -> None:
    """Patients with confidences that are off by chance leave a wide interval; that of rows is narrow.

    In 200 draws of 11 patients, the intervals by patient cover the true excess of 0; those by row rarely do.
    """
    rng = np.random.default_rng(4)
    covered = {"patients": 0, "rows": 0}
    for _ in range(200):
        patients = np.repeat(np.arange(11), 300)
        shares = np.clip(0.8 + rng.normal(0, 0.08, 11), 0, 1)[patients]
        labels = (rng.random(len(patients)) > shares).astype(np.int64)
        logits = np.tile(np.log([0.8, 0.2]), (len(patients), 1)).astype(np.float32)
        for unit, groups in (("patients", patients), ("rows", None)):
            error = measure_calibration({"a": logits}, {"a": 1.0}, labels, groups)["a"]
            covered[unit] += abs(error.excess) <= error.half_width
    assert covered["patients"] >= 180
    assert covered["rows"] <= 120


def test_one_group_has_no_interval() -> None:
    """A single patient says nothing of others."""
    logits, labels = draw_calibrated(8, 500, 3)
    error = measure_calibration({"a": logits}, {"a": 1.0}, labels, np.zeros(500, np.int64))["a"]
    assert np.isnan(error.half_width)
    assert abs(error.excess) < 6


def smooth(logits: np.ndarray, smoothing: float, shift: np.ndarray | None = None) -> np.ndarray:
    """Compute the logits at which the loss of smoothed labels is least, where ``logits`` are calibrated ones."""
    values = logits - (0 if shift is None else shift)
    shares = np.exp(values) / np.exp(values).sum(1, keepdims=True)
    return np.log((1 - smoothing) * shares + smoothing / logits.shape[1]).astype(np.float32)


@pytest.mark.parametrize(("smoothing", "classes"), [(0.1, 2), (0.1, 4), (0.1, 10), (0.3, 4)])
def test_label_smoothing_is_undone_without_labels(smoothing: float, classes: int) -> None:
    """Confidences of a network that learnt smoothed labels perfectly become nearly those of the true shares."""
    logits, labels = draw_calibrated(5, 20_000, classes)
    seen = smooth(logits * 2, smoothing)
    shares = np.exp(logits * 2) / np.exp(logits * 2).sum(1, keepdims=True)
    labels = (shares.cumsum(1) > np.random.default_rng(6).random((len(labels), 1))).argmax(1)
    temperature = undo_smoothing(seen, smoothing)
    errors = measure_calibration({"a": seen / np.float32(temperature)}, {"a": temperature}, labels)["a"]
    assert temperature < 1
    assert errors.after < errors.before / 2


def test_smoothing_of_sampled_classes_is_undone() -> None:
    """Logits that were shifted after training, as one class was sampled, are set right as a whole."""
    logits, _ = draw_calibrated(7, 20_000, 4)
    shift = np.array([1.7, 0, 0, 0], np.float32)
    seen = smooth(logits + shift, 0.1, shift) + shift
    assert undo_smoothing(seen, 0.1, shift) < 1
    assert undo_smoothing(seen[:0], 0.1, shift) == 1.0


def test_nothing_is_undone_without_smoothing() -> None:
    """The temperature is 1 where labels were not smoothed, and where they held nothing else."""
    logits, _ = draw_calibrated(8, 100, 4)
    assert undo_smoothing(logits, 0.0) == undo_smoothing(logits, 1.0) == 1.0


def test_whole_groups_judge_a_temperature() -> None:
    """Rows that repeat within a few groups prove nothing, however many they are."""
    for count in (2, 4, 12):
        logits, labels = draw_calibrated(1, count, 4)
        groups = np.repeat(np.arange(count), 200)
        many, truth = np.repeat(logits, 200, axis=0), np.repeat(labels, 200)
        assert fit_temperature(many, truth, groups) == 1.0


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


def draw_patients(rng: np.random.Generator, count: int, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw logits, labels and patients; each patient is as easy, and leans to some classes, as no other."""
    logits, labels, patients = [], [], []
    for patient in range(count):
        rows = int(rng.integers(10, 110))
        truth = rng.choice(3, rows, p=rng.dirichlet((3, 1, 1)))
        values = rng.standard_t(4, size=(rows, 3)) + rng.normal(0, 1, 3)
        values[np.arange(rows), truth] += rng.gamma(4, 0.6)
        logits.append(values * scale)
        labels.append(truth)
        patients.append(np.full(rows, patient))
    return np.concatenate(logits).astype(np.float32), np.concatenate(labels), np.concatenate(patients)


def test_few_patients_correct_confidences_that_are_far_off() -> None:
    """Ten patients remove most of a large error on fresh ones; three rarely make it worse by more than a point."""
    changes: dict[int, list[float]] = {3: [], 10: []}
    befores = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scale = float(np.exp(rng.uniform(-1.2, 1.4)))
        logits, labels, _ = draw_patients(rng, 80, scale)
        correct = logits.argmax(1) == labels
        befores.append(compute_calibration_error(compute_confidence(logits, 1.0), correct))
        for count, changed in changes.items():
            temperature = fit_temperature(*draw_patients(rng, count, scale))
            after = compute_calibration_error(compute_confidence(logits, temperature), correct)
            changed.append(after - befores[-1])
    assert np.mean(changes[10]) < -0.5 * np.mean(befores)
    assert np.mean(changes[3]) < -0.1 * np.mean(befores)
    for changed in changes.values():
        assert np.mean(np.array(changed) > 1) <= 0.1
