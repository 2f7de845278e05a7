"""The order of cases: exchangeable tables pass, and promises that break at the end are found."""

from __future__ import annotations

import numpy as np
import pytest

from unfold_cascade._types import FloatArray
from unfold_cascade.data.case_order import (
    average_in_order,
    find_late_break,
    is_sorted_by_words,
    late_break_p_value,
    rank_by_time,
)
from unfold_cascade.data.table import Frame


def _draw_excess(rng: np.random.Generator, loss: FloatArray, limit: float) -> FloatArray:
    return (rng.random(len(loss)) < loss).astype(np.float64) - limit


@pytest.mark.parametrize("rows", [120, 999, 5000])
@pytest.mark.parametrize("loss", [0.02, 0.1])
def test_the_order_of_exchangeable_rows_is_rarely_suspected(rows: int, loss: float) -> None:
    """At most 5 % of tables with exchangeable rows have a p-value up to 5 %, whatever the limit."""
    rng = np.random.default_rng([rows, int(100 * loss)])
    p_values = [late_break_p_value(_draw_excess(rng, np.full(rows, loss), 0.0)) for _ in range(40)]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 40)


def test_several_promises_are_suspected_no_more_often_than_one() -> None:
    """Of random logs with four promises at most 5 % are refused, not 5 % for each promise."""
    rng, refused = np.random.default_rng(11), 0
    for _ in range(100):
        # without a limit every end breaks its promise, so that only the growth decides
        excesses = {str(promise): _draw_excess(rng, np.full(120, 0.1), 0.0) for promise in range(4)}
        refused += find_late_break(excesses) is not None
    assert refused <= 5 + 3 * np.sqrt(100 * 0.05 * 0.95)


@pytest.mark.parametrize("start", [0.5, 0.75, 0.9])
def test_a_promise_that_breaks_at_the_end_is_found(start: float) -> None:
    """A loss of 1 % that becomes 20 % exceeds an allowed 5 % over the whole end, and is found in most tables."""
    rng = np.random.default_rng(7)
    loss = np.where(np.arange(1000) >= 1000 * start, 0.2, 0.01)
    late = [find_late_break({"loss": _draw_excess(rng, loss, 0.05)}) for _ in range(20)]
    assert sum(name == "loss" for name in late) >= 18


def test_a_promise_that_breaks_gradually_is_found() -> None:
    """A loss that grows evenly from nothing to twice what is allowed is found in most tables."""
    rng = np.random.default_rng(8)
    loss = np.linspace(0.0, 0.12, 1000)
    late = [find_late_break({"loss": _draw_excess(rng, loss, 0.06)}) for _ in range(20)]
    assert sum(name == "loss" for name in late) >= 18


def test_a_promise_that_only_the_rows_to_come_break_is_found() -> None:
    """A loss that begins to grow late has a last quarter within the promise, and is found by where its ramp ends."""
    rng = np.random.default_rng(9)
    loss = 0.01 + 0.13 * np.clip((np.arange(1000) / 1000 - 0.4) / 0.6, 0.0, 1.0)
    assert loss[-250:].mean() < 0.115 < loss[-1]
    late = [find_late_break({"loss": _draw_excess(rng, loss, 0.115)}) for _ in range(20)]
    assert sum(name == "loss" for name in late) >= 16


def test_growth_beyond_doubt_must_keep_a_margin() -> None:
    """Growth that ends just within the promise is a break if it is certain, and none if it may be chance."""
    sure = np.where(np.arange(1000) >= 500, 0.2, 0.0)
    weak = np.where(np.arange(1000) >= 500, 0.2, 0.17)
    rng = np.random.default_rng(10)
    breaks = [[find_late_break({"loss": _draw_excess(rng, loss, 0.21)}) for _ in range(20)] for loss in (sure, weak)]
    assert sum(name == "loss" for name in breaks[0]) >= 15
    assert sum(name == "loss" for name in breaks[1]) <= 5


def test_growth_within_the_promise_is_no_break() -> None:
    """A loss that grows but stays below what is allowed breaks nothing."""
    loss = np.where(np.arange(1000) >= 500, 0.05, 0.0)
    assert find_late_break({"loss": _draw_excess(np.random.default_rng(1), loss, 0.2)}) is None


def test_a_falling_loss_is_no_break() -> None:
    """Rows that lose too much only at the start of the table break no promise about later ones."""
    loss = np.where(np.arange(1000) < 300, 0.3, 0.02)
    assert late_break_p_value(_draw_excess(np.random.default_rng(1), loss, 0.05)) > 0.5


def test_the_strongest_evidence_names_the_promise() -> None:
    """Of several promises the one that breaks is named; few rows are no evidence."""
    rng = np.random.default_rng(2)
    steady, growing = rng.normal(-0.1, 1, 800), rng.normal(-0.1, 1, 800) + 2.0 * (np.arange(800) > 600)
    assert find_late_break({"loss": steady, "saving": growing}) == "saving"
    assert find_late_break({"saving": growing[580:630]}) is None
    assert find_late_break({}) is None


def test_clusters_count_once_in_the_order_of_their_first_rows() -> None:
    """Rows of a cluster are averaged, and clusters keep the order of the table whatever their numbers."""
    values = np.array([1.0, 5.0, 3.0, 7.0])
    assert average_in_order(values, np.array([9, 2, 9, 4])).tolist() == [2.0, 5.0, 7.0]
    assert average_in_order(values, None) is values


@pytest.mark.parametrize(
    ("name", "cells", "rank"),
    [
        ("createdAt", ["2026-03-02", "2026-03-01", "2026-03-01"], [2, 0, 1]),
        ("createdAt", ["2026-03-02T00:00:00Z", "2026-03-01T10:00:00Z", "2026-03-01T09:00:00Z"], [2, 1, 0]),
        ("meta.timestamp", [1_770_000_002, 1_770_000_000, 1_770_000_001], [2, 0, 1]),
        ("admission_date", ["2025-02-01 00:00", "2025-02-01 00:00", "2025-01-01 00:00"], [1, 2, 0]),
        ("time", [3.0, 2.0, 1.0], None),
        ("created_at", ["2026-03-02 00:00", "", "2026-03-01 00:00"], None),
        ("created_at", ["2026-03-01", "2026-03-01", "2026-03-01"], None),
        ("created_at", ["", *(f"2026-03-{day}" for day in range(31, 10, -1))], [*range(20, 22), *range(19, -1, -1)]),
        ("birth_date", ["1950-01-02 00:00", "1940-01-02 00:00", "1960-01-01 00:00"], None),
    ],
)
def test_rows_are_ranked_by_a_column_of_times(name: str, cells: list[object], rank: list[int] | None) -> None:
    """Dates and times since 1970 order all rows or none; hours of a stay and dates of birth are no times of a row."""
    found = rank_by_time(Frame({name: np.array(cells, dtype=object)}, "", "log.csv"))
    assert (None if found is None else found.tolist()) == rank


@pytest.mark.parametrize(
    ("name", "cells", "is_sorted"),
    [
        ("subject", ["algebra", "history"], True),
        ("month", ["2026-01", "2026-02"], False),
        ("difficulty", [1, 2, 3, 5], True),
        ("week", [1, 2, 3, 5], False),
        ("max_tokens", [256, 512], False),
        ("user_id", [3, 4, 6, 8], False),
    ],
)
def test_rows_by_subject_or_level_have_no_order_in_time(name: str, cells: list[object], is_sorted: bool) -> None:
    """Benchmarks are sorted by subject or difficulty; numbers of weeks or of users, and a changed setting, are not."""
    values = np.repeat(np.array(cells, dtype=object), 50)
    assert is_sorted_by_words(Frame({name: values}, "", "log.csv")) == is_sorted
    assert not is_sorted_by_words(Frame({name: np.random.default_rng(0).permutation(values)}, "", "log.csv"))


def test_verdicts_that_change_over_time_are_no_subjects() -> None:
    """A judge that passes nearly all answers until a model is replaced, and hardly any later, sorts nothing."""
    passes = np.random.default_rng(0).random(1000) < np.where(np.arange(1000) < 600, 0.95, 0.05)
    assert not is_sorted_by_words(Frame({"verdict": np.where(passes, "pass", "fail").astype(object)}, "", "log.csv"))
