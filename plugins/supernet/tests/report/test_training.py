"""The report of a training."""

from __future__ import annotations

import numpy as np
import pytest

from unfold_supernet.report.front import MAX_SHOWN, draw_front
from unfold_supernet.report.heads import tabulate_heads
from unfold_supernet.report.training import describe_gap, note_missed_classes
from unfold_supernet.training.accuracy import compare_paired, evaluate_predictions
from unfold_supernet.training.head_quality import evaluate_values
from unfold_supernet.training.problem import StandaloneComparison
from unfoldkit.format import format_number


@pytest.mark.parametrize(
    ("worse", "message"),
    [
        ((0, 0), "no weight-sharing gap"),
        ((1, 0), "no significant weight-sharing gap (2.00 points, paired error 1.98)"),
        ((0, 20), "weight-sharing gap of at most 40.00 points"),
        ((30, 20), "weight-sharing gap of at most 60.00 points"),
    ],
)
def test_insignificant_gap_is_reported_as_such(worse: tuple[int, int], message: str) -> None:
    """A gap is stated as such only if a standalone model is significantly better; otherwise as possible chance."""
    alone = np.ones(50, bool)
    gaps = [compare_paired(alone, np.arange(50) >= count) for count in worse]
    assert describe_gap(gaps) == message


def test_missed_classes_are_those_of_classifiers() -> None:
    """A class that no member recognizes is named; labels and values, which have no sensitivity, are not."""
    quality = evaluate_predictions(np.zeros(6, np.int64), np.arange(6) % 2, 2)
    assert note_missed_classes(("a", "b"), {"1x1": quality}) == ("No subnet recognizes any test row of class b.",)
    assert note_missed_classes(("price", "rent"), {}) == ()


@pytest.mark.parametrize("unit", [1e-30, 1e-6, 1.0, 1e30])
def test_errors_of_values_are_shown_in_any_unit(unit: float) -> None:
    """Errors of values far from 1 have as many digits as others."""
    y = np.arange(1.0, 9.0)[:, None] * unit
    quality = evaluate_values(y * 1.25, y, y.mean(axis=0))
    *_, table = tabulate_heads("values", ("dose",), {"1x1": quality})
    cells = list(zip(table.rows[0], table.columns, strict=True))[2:]
    shown = [format_number(float(str(value)), column.digits) for value, column in cells]
    assert [float(text) for text in shown] == pytest.approx([1.125 * unit, 1.2624 * unit], rel=0.01)
    assert max(map(len, shown)) < 9


def test_front_shows_intervals_and_standalone_networks() -> None:
    """Each member has its Wilson interval at its latency; a network trained alone stands where its member does."""
    labels = np.zeros(100, np.int64)
    qualities = {
        str(index): evaluate_predictions((np.arange(100) >= 60 + 10 * index).astype(np.int64), labels, 2)
        for index in range(4)
    }
    alone = evaluate_predictions((np.arange(100) >= 100).astype(np.int64), labels, 2)
    seconds = {name: {1: (1 + int(name)) * 1e-4, 32: 1e-2} for name in qualities}
    plot = draw_front(qualities, seconds, ("0", "3"), {"3": StandaloneComparison(qualities["3"], alone)})
    assert [interval.value for interval in plot.intervals] == [60, 70, 80, 90, 100]
    assert all(interval.low <= interval.value <= interval.high for interval in plot.intervals)
    assert plot.intervals[-1].low < 100 == plot.intervals[-1].high
    assert plot.intervals[-1].at == plot.intervals[-2].at == pytest.approx(400)
    assert [interval.group for interval in plot.intervals[2:]] == [
        "other members",
        "on the front by operations",
        "standalone networks",
    ]


def test_front_of_a_long_list_keeps_what_was_chosen() -> None:
    """Of many members, the front and the compared ones are drawn, and the title states how many."""
    labels = np.zeros(50, np.int64)
    quality = evaluate_predictions(labels, labels, 2)
    names = [str(index) for index in range(MAX_SHOWN + 5)]
    seconds = {name: {1: 1e-4} for name in names}
    plot = draw_front(dict.fromkeys(names, quality), seconds, ("0",), {"7": StandaloneComparison(quality, quality)})
    assert [interval.name for interval in plot.intervals] == ["0", "7", "7, standalone"]
    assert f"2 of {len(names)}" in plot.title
