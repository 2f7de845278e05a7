"""Which targets are accepted, and what is said of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unfold_supernet._types import Task
from unfold_supernet.family.label_targets import (
    check_classes,
    check_evaluable,
    check_learnable,
    list_strata,
    parse_targets,
    standardize_values,
)
from unfoldkit.api import UnfoldError

NAN = float("nan")


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("labels", [[0, 1], [1, NAN]], r"y\[1, 1\] is nan, which is not a finite number"),
        ("labels", [[0, 1], [1, 0.5]], r"y\[1, 1\] is 0.5, not 0 or 1"),
        ("labels", [["a", "b"]], "text, not numbers"),
        ("labels", [[[0, 1]]], r"shape \(1, 1, 2\)"),
        ("labels", np.zeros((3, 0)), r"shape \(3, 0\)"),
        ("values", [1.0, NAN], r"y\[1, 0\] is nan"),
        ("values", [1.0, 1e39], "not a finite number in single precision"),
        ("values", ["high", "low"], "text, not numbers"),
        ("values", np.array([1 + 2j]), "complex128, not numbers"),
        ("classes", [[0, 1], [1, 0]], "not one label a row"),
        ("classes", [0.5, 1.0, 2.0], "not a class"),
        ("classes", [0.0, 1e300, 1e301], r"y\[1\] is 1e\+300, which is not a class"),
        ("classes", np.array(["2026-01-01", "NaT"], "datetime64[D]"), "y holds datetime64.*, not classes"),
    ],
)
def test_unsuitable_targets_are_refused(task: Task, values: Any, message: str) -> None:
    """Each mistake names its place."""
    with pytest.raises(UnfoldError, match=message):
        parse_targets(np.array(values), task, (), "y.npz")


def test_values_that_single_precision_rounds_away_are_refused() -> None:
    """Seconds of a day since 1970 would become multiples of 128; without the offset they are learnt."""
    seconds = np.random.default_rng(0).normal(size=(200, 2)) * [1.0, 300.0]
    with pytest.raises(UnfoldError, match=r"y\[:, 1\] differs by 3\d\d around 1\.7e\+09, .*steps of 128.*subtract"):
        parse_targets(seconds + np.array([0, 1.7e9]), "values", (), "y.npz")
    with pytest.raises(UnfoldError, match="steps of 128"):
        parse_targets((seconds[:, 1] + 1.7e9).astype(np.int64), "values", (), "y.npz")
    for values in (seconds, seconds + 1e4, np.full((9, 1), 1.7e9)):
        parse_targets(values, "values", (), "y.npz")


def test_classifiers_are_referred_to_the_other_tasks() -> None:
    """Targets of another task name the key that accepts them."""
    for values, task in (([[0, 1], [1, 0]], "labels"), ([0.5, 1.5, 2.0], "values"), ([[0.5, 3.0]], "values")):
        with pytest.raises(UnfoldError) as caught:
            parse_targets(np.array(values), "classes", (), "y.npz")
        assert f"data.task: {task}" in str(caught.value.diagnostics[0].hint)


def test_columns_are_named() -> None:
    """Names come from the file, or are the numbers of the columns; they must fit and differ."""
    y = np.array([[0, 1], [1, 0]])
    assert parse_targets(y, "labels", np.array(["rash", "cough"]), "f").names == ("rash", "cough")
    assert parse_targets(y, "labels", (), "f").names == ("0", "1")
    assert parse_targets(np.array(["1.5", "2"]), "values", (), "f").y.tolist() == [[1.5], [2.0]]
    for names in (["a"], ["a", "a"]):
        with pytest.raises(UnfoldError, match="names for 2 columns"):
            parse_targets(y, "labels", names, "f")


@pytest.mark.parametrize(
    ("task", "column", "message"),
    [("labels", 0, "label b is never 1"), ("labels", 1, "label b is always 1"), ("values", 3, "value b is 3 in all")],
)
def test_constant_targets_are_refused(task: Task, column: int, message: str) -> None:
    """What does not vary among the training rows cannot be learnt, even if it varies among the others."""
    y = np.array([[0, column], [1, column], [1, 1 - min(column, 1)]])
    with pytest.raises(UnfoldError, match=message):
        check_learnable(y, np.array([0, 1]), ("a", "b"), task, "f")
    check_learnable(y, np.arange(3), ("a", "b"), task, "f")


def test_classes_without_training_rows_are_refused() -> None:
    """A class of the test rows alone is named, and so is the only class of all training rows."""
    y, names = np.array([0, 1, 0, 2, 2, 3]), ("a", "b", "c", "d")
    message = "class c has 2 rows to test on, but none to train on; other classes like it: 1"
    with pytest.raises(UnfoldError, match=message):
        check_classes(y, np.arange(3), np.arange(3, 6), names, "f")
    check_classes(y, np.arange(3), np.array([1, 2]), names, "f")
    with pytest.raises(UnfoldError, match="all 2 rows to train on are of class a"):
        check_learnable(y, np.array([0, 2]), names, "classes", "f")


def test_test_rows_must_vary_in_a_target() -> None:
    """A single varying target can be scored; without any, nothing can."""
    y = np.array([[0, 1], [1, 1], [1, 1]])
    check_evaluable(y, np.array([0, 1]), "labels", "f")
    with pytest.raises(UnfoldError, match="no target varies among the 2 rows to test on"):
        check_evaluable(y, np.array([1, 2]), "labels", "f")


def test_strata_put_rare_labels_on_both_sides() -> None:
    """Rows belong to their rarest label; rows without one form a stratum."""
    y = np.array([[1, 0], [1, 0], [1, 1], [0, 0]])
    assert list_strata(y, "labels").tolist() == [0, 0, 1, -1]


def test_values_are_standardized_by_the_training_rows() -> None:
    """Mean and deviation ignore the other rows."""
    mean, deviation = standardize_values(np.array([[1.0], [3.0], [100.0]]), np.array([0, 1]))
    assert (mean.tolist(), deviation.tolist()) == ([2.0], [1.0])
