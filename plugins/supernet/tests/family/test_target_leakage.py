"""Columns that give a target away, and columns that honestly help to predict it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unfold_supernet._types import Task
from unfold_supernet.family.datasets import Dataset
from unfold_supernet.family.target_leakage import Leak, find_leaks

ROWS, CLASSES = 600, 4
RNG = np.random.default_rng(11)
CLASS = RNG.integers(0, CLASSES, ROWS)
NOISE = RNG.normal(size=(ROWS, 6))


def find(x: Any, y: Any, task: Task = "classes", extra: Any = None, columns: tuple[str, ...] = ()) -> tuple[Leak, ...]:
    """Find the leaks of data of which every third row is tested on."""
    numbers = np.zeros((ROWS, 0)) if extra is None else extra
    names = tuple(f"t{index}" for index in range(y.shape[1] if y.ndim > 1 else y.max() + 1))
    rows = np.arange(ROWS)
    return find_leaks(
        Dataset(
            x=np.asarray(x, np.float32),
            extra=np.asarray(numbers, np.float32),
            y=y,
            names=names,
            train=rows[rows % 3 > 0],
            test=rows[rows % 3 == 0],
            digest="",
            about="",
            task=task,
            columns=columns,
        ),
        0,
    )


@pytest.mark.parametrize(
    "column",
    [
        CLASS,
        np.array([5.0, -1.0, 0.0, 2.0])[CLASS],
        CLASS + RNG.normal(0, 0.05, ROWS),
        CLASS + CLASSES * RNG.integers(0, 5, ROWS),
        1e6 + CLASS,
    ],
    ids=["copy", "permuted", "noisy", "codes", "offset"],
)
def test_a_copy_of_the_class_leaks(column: Any) -> None:
    """Whatever numbers stand for the classes, the column is named and scored on the test rows."""
    (leak,) = find(np.insert(NOISE, 2, column, axis=1), CLASS)
    assert leak.columns == ("x[:, 2]",)
    assert leak.score == pytest.approx(100, abs=0.6)
    (leak,) = find(np.insert(NOISE, 2, column, axis=1), CLASS, columns=("a", "b", "dx", "c", "d", "e", "f"))
    assert leak.columns == ('column "dx"',)
    assert find(NOISE, CLASS, extra=column[:, None])[0].columns == ("extra[:, 0]",)


@pytest.mark.parametrize("indicated", [CLASSES, CLASSES - 1])
def test_indicators_of_all_classes_leak_together(indicated: int) -> None:
    """One column a class, or one fewer, is a copy of the class; one for a single class is not."""
    one_hot = np.eye(CLASSES)[CLASS]
    (leak,) = find(np.concatenate([NOISE, one_hot[:, :indicated]], 1), CLASS)
    assert leak.columns == tuple(f"x[:, {6 + index}]" for index in range(indicated))
    assert not find(np.concatenate([NOISE, one_hot[:, :1]], 1), CLASS)


def test_a_statistic_of_images_leaks() -> None:
    """Images of one class are brighter: no pixel gives it away, but their mean does."""
    images = RNG.normal(size=(ROWS, 1, 12, 12))
    assert not find(images, CLASS)
    assert find(images + CLASS[:, None, None, None], CLASS)[0].columns == ("the mean of x",)


def test_leaks_of_labels_and_values_are_named() -> None:
    """Each label or value has its own columns; a real value is leaked on a line or by rank."""
    labels = (RNG.random((ROWS, 3)) < 0.3).astype(np.int64)
    assert [leak.target for leak in find(np.insert(NOISE, 0, labels[:, 1], 1), labels, "labels")] == ["t1"]
    values = RNG.gamma(2, 1, (ROWS, 2))
    for column in (3 - 2 * values[:, 1], np.log(values[:, 1])):
        (leak,) = find(np.insert(NOISE, 4, column, 1), values, "values")
        assert (leak.columns, leak.target) == (("x[:, 4]",), "t1")
        assert leak.score > 99.9


def test_honest_columns_are_no_leak() -> None:
    """No alarm for classes that lie apart, constants, identities, a rare class, or a value that a column helps with."""
    apart = NOISE + 3 * RNG.normal(size=(CLASSES, 6))[CLASS]
    assert not find(apart, CLASS)
    assert not find(np.insert(NOISE, 0, np.arange(ROWS), 1), CLASS)
    assert not find(np.ones((ROWS, 3)), CLASS)
    assert not find(NOISE, (np.arange(ROWS) % 150 == 0).astype(np.int64))
    assert not find(NOISE, NOISE[:, :1] + RNG.normal(0, 0.2, (ROWS, 1)), "values")
    assert not find(NOISE, (NOISE[:, :2] > 0).astype(np.int64), "labels")
