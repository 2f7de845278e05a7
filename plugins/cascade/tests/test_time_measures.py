"""Laws of the measures: utility by its definition, rates of alerts, lead time, ranking."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from unfold_cascade.temporal.data.table import hours_since, rows_of, starts_of
from unfold_cascade.temporal.data.warning_metrics import (
    alerts_per_100h,
    bootstrap_weights,
    cut_at_rate,
    events,
    lead_hours,
    macro_f1,
    ranking,
    utility,
)

SEEDS = range(40)


def _cohort(rng: np.random.Generator, patients: int = 25) -> tuple[np.ndarray, np.ndarray]:
    """Return labels that once on stay on, for some patients, and starts."""
    sizes = rng.integers(1, 60, patients)
    starts = starts_of(sizes)
    label = np.zeros(int(sizes.sum()), dtype=np.bool_)
    for begin, end in itertools.pairwise(starts):
        if rng.random() < 0.5:
            label[rng.integers(begin, end) : end] = True
    label[:1] = True
    return label, starts


def _since(label: np.ndarray, starts: np.ndarray, step: float = 1.0) -> np.ndarray:
    """Return the hours since the label came on, with a row every ``step`` hours."""
    return hours_since(label, step * np.arange(len(label)), starts)


def _defined(label: np.ndarray, alert: np.ndarray) -> float:
    """Return the utility of one patient as the challenge defines it, hour by hour."""
    early, best, late = -12, -6, 3
    rising = 1 / (best - early)
    falling = -1 / (late - best)
    missing = -2 / (late - best)
    septic = bool(label.any())
    onset = int(np.argmax(label)) - best if septic else float("inf")
    total = 0.0
    for hour in range(len(label)):
        if hour > onset + late:
            continue
        away = hour - onset
        if septic and alert[hour]:
            total += max(rising * (away - early), -0.05) if away <= best else falling * (away - late)
        elif not septic and alert[hour]:
            total += -0.05
        elif septic and away > best:
            total += missing * (away - best)
    return total


def _official(label: np.ndarray, alert: np.ndarray, starts: np.ndarray) -> float:
    parts = [(label[a:b], alert[a:b]) for a, b in itertools.pairwise(starts)]
    total = sum(_defined(y, warned) for y, warned in parts)
    nothing = sum(_defined(y, np.zeros(len(y), dtype=np.bool_)) for y, _ in parts)
    perfect = sum(_defined(y, _perfect(y)) for y, _ in parts)
    return (total - nothing) / (perfect - nothing)


def _perfect(label: np.ndarray) -> np.ndarray:
    alert = np.zeros(len(label), dtype=np.bool_)
    if label.any():
        onset = int(np.argmax(label)) + 6
        alert[max(0, onset - 12) : min(onset + 3 + 1, len(label))] = True
    return alert


@pytest.mark.parametrize("seed", SEEDS)
def test_utility_equals_its_definition(seed: int) -> None:
    """The table of hourly scores gives what the challenge's definition, written out patient by patient, gives."""
    rng = np.random.default_rng(seed)
    label, starts = _cohort(rng)
    alert = rng.random(len(label)) < rng.random()
    assert utility(_since(label, starts)).normalised(alert) == pytest.approx(_official(label, alert, starts), abs=1e-12)


def test_utility_of_silence_is_0_and_of_the_best_is_1() -> None:
    """Never to warn scores 0, the best vector scores 1, and no vector scores more."""
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        label, starts = _cohort(rng)
        scored = utility(_since(label, starts))
        assert scored.normalised(np.zeros(len(label), dtype=np.bool_)) == 0.0
        assert scored.normalised(scored.best) == pytest.approx(1.0)
        assert scored.normalised(scored.yes > scored.no) <= 1.0 + 1e-12


def test_utility_of_single_hours() -> None:
    """A warning six hours before the event scores 1; three hours after it 0, and missing it then costs 2."""
    label = np.arange(40) >= 14
    scored = utility(_since(label, starts_of(np.array([40]))))
    onset = 14 + 6
    assert scored.yes[onset - 6] == pytest.approx(1.0)
    assert scored.yes[onset + 3] == pytest.approx(0.0)
    assert scored.no[onset + 3] == pytest.approx(-2.0)
    assert scored.yes[onset - 12] == pytest.approx(0.0)
    assert scored.yes[0] == pytest.approx(-0.05)
    assert scored.yes[onset + 4] == scored.no[onset + 4] == 0.0


def test_utility_weights_count_patients_again() -> None:
    """Counting each patient k times by weights equals a cohort in which each stands k times."""
    rng = np.random.default_rng(3)
    label, starts = _cohort(rng)
    alert = rng.random(len(label)) < 0.3
    times = bootstrap_weights(len(starts) - 1, 1, 5)[0]
    drawn = np.repeat(np.arange(len(starts) - 1), times)
    rows, again = rows_of(starts, drawn), starts_of(np.diff(starts)[drawn])
    weight = np.repeat(times, np.diff(starts)).astype(np.float64)
    expected = utility(_since(label[rows], again)).normalised(alert[rows])
    assert utility(_since(label, starts)).normalised(alert, weight) == pytest.approx(expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cut_keeps_its_rate_and_no_lower_cut_does(seed: int) -> None:
    """The cut warns at most the rate allowed among free hours, and the next lower score would warn more."""
    rng = np.random.default_rng(seed)
    label, starts = _cohort(rng)
    score = np.round(rng.random(len(label)), 2)
    happening = events(_since(label, starts), starts)
    cut = cut_at_rate(score, happening.free, 10.0)
    assert alerts_per_100h(score >= cut, happening) <= 10.0
    lower = score[happening.free & (score < cut)]
    assert alerts_per_100h(score >= lower.max(), happening) > 10.0


def test_lead_time_by_hand() -> None:
    """Lead is counted from the first warning of the last 48 hours to the event, 0 for who was not warned."""
    sizes = np.array([80, 30, 10, 20])
    starts = starts_of(sizes)
    label = np.zeros(int(sizes.sum()), dtype=np.bool_)
    label[70:80] = label[80 + 20 : 110] = label[110 + 3 : 120] = True
    happening = events(_since(label, starts), starts)
    alert = np.zeros(len(label), dtype=np.bool_)
    alert[[20, 40, 75]] = True
    assert happening.judged.tolist() == [True, True, False, False]
    assert lead_hours(alert, happening, starts).tolist() == [76 - 40, 0.0]


@pytest.mark.parametrize("rows_an_hour", [4, 0.25])
def test_figures_in_hours_do_not_change_with_the_spacing_of_rows(rows_an_hour: float) -> None:
    """The same record read every quarter of an hour, or every four hours, has the same lead time and free hours."""
    hours = np.arange(96) if rows_an_hour > 1 else np.arange(0, 96, 4)
    often = np.arange(0, 96, 1 / rows_an_hour)
    figures = []
    for hour in (hours, often):
        since, alert = hour - 72.0, np.isin(hour, (8.0, 48.0, 60.0))
        happening = events(since, np.array([0, len(hour)]))
        figures.append((lead_hours(alert, happening, np.array([0, len(hour)])).tolist(), hour[happening.free].max()))
        assert utility(since).yes[hour == 72.0].tolist() == [1.0]
    assert figures[0][0] == figures[1][0] == [72 + 6 - 48]
    assert figures[1][1] == max(often[often < 72 + 6 - 12])


@pytest.mark.parametrize("seed", SEEDS)
def test_ranking_equals_scikit_learn(seed: int) -> None:
    """Average precision and AUROC equal scikit-learn's, with ties and with weights."""
    rng = np.random.default_rng(seed)
    positive = rng.random(200) < 0.2
    score = np.round(rng.random(200) + 0.3 * positive, int(rng.integers(1, 4)))
    weight = rng.integers(0, 4, 200).astype(np.float64)
    ranked = ranking(score, positive)
    assert ranked.auprc() == pytest.approx(average_precision_score(positive, score))
    assert ranked.auroc() == pytest.approx(roc_auc_score(positive, score))
    assert ranked.auprc(weight) == pytest.approx(average_precision_score(positive, score, sample_weight=weight))
    assert ranked.auroc(weight) == pytest.approx(roc_auc_score(positive, score, sample_weight=weight))


def test_macro_f1_equals_scikit_learn() -> None:
    """The mean F1 over classes equals scikit-learn's."""
    rng = np.random.default_rng(0)
    answer, truth = rng.integers(0, 3, (2, 500))
    assert macro_f1(answer, truth, 3) == pytest.approx(f1_score(truth, answer, average="macro"))
    weight = rng.integers(0, 4, len(truth)).astype(np.float64)
    expected = f1_score(truth, answer, average="macro", sample_weight=weight)
    assert macro_f1(answer, truth, 3, weight) == pytest.approx(expected)
