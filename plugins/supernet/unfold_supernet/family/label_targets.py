"""What rows are trained to predict: a class, several labels of 0 or 1, or real values; checked before any training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_supernet._types import Float32Array, IntArray, Task
from unfold_supernet.family.number_columns import ColumnSpread
from unfoldkit.api import user_error

MAX_OUTPUTS = 10_000
MAX_EXACT = 2**53
"""Largest integer up to which floating-point numbers hold each of them."""
MISSING = frozenset(("", "?", "nan", "nat", "na", "n/a", "null", "none", "<na>", "#n/a", "#na", "\\n", "(null)"))
"""What tables hold in place of a missing value, in lower case; ``none`` in lower case is a common class too."""
INTEGRAL = re.compile(r"([+-]?\d+)\.0+")
MISSING_HINT = "drop such rows; rename a class or group that is called so"


@dataclass(frozen=True, slots=True)
class Targets:
    """Targets of all rows.

    Attributes:
        y: Classes (n), labels of 0 and 1 (n, labels), or real values (n, values).
        names: Names of the classes, labels or values.
    """

    y: Any
    names: tuple[str, ...]


def parse_targets(values: Any, task: Task, names: Any, file: str) -> Targets:
    """Check the targets of a file, and name them.

    Args:
        values: Array ``y`` of the file.
        task: What it holds.
        names: Names of the columns; by default their numbers.
        file: The file, for errors.

    Raises:
        UnfoldError: A target is missing, not finite, too far from zero for single precision, no label of 0 or 1, or
            the names do not fit.
    """
    if task == "classes":
        return Targets(*parse_labels(values, file))
    columns = _arrange_columns(values, file)
    _check_finite(columns, file)
    if task == "labels":
        _check_labels(columns, file)
    else:
        spread = ColumnSpread()
        spread.add(columns.astype(np.float64))
        spread.check("y", (), file, "data.task")
    listed = tuple(map(str, np.ravel(names))) or tuple(str(index) for index in range(columns.shape[1]))
    if len(listed) != columns.shape[1] or len(set(listed)) != len(listed):
        message = f"{len(listed)} names for {columns.shape[1]} columns of y, {len(set(listed))} of them different"
        raise user_error(message, file=file, key="data.path", hint="store one name a column in the array names")
    return Targets(columns.astype(np.int64 if task == "labels" else np.float32), listed)


def parse_labels(values: Any, file: str) -> tuple[IntArray, tuple[str, ...]]:
    """Convert labels to class indices and the names of the classes.

    Raises:
        UnfoldError: There is not one label a row, only one class, or nearly as many classes as rows.
    """
    flat = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if flat.ndim != 1:
        message = f"y has shape {values.shape}, not one label a row"
        hint = "one-hot labels: y.argmax(1); several labels a row: data.task: labels; numbers: data.task: values"
        raise user_error(message, file=file, hint=hint)
    if flat.dtype.kind not in "biufSU":
        raise user_error(f"y holds {flat.dtype}, not classes", file=file, hint="use integers or text: y.astype(str)")
    if flat.dtype.kind == "S":
        # labels that are not UTF-8 stay apart
        flat = np.char.decode(flat, "utf-8", "backslashreplace")
    if flat.dtype.kind == "U":
        flat = _check_texts(flat, file)
    if np.issubdtype(flat.dtype, np.floating):
        # in half precision, the bound is infinite
        flat = flat.astype(np.float64)
        invalid = np.flatnonzero(~(np.abs(flat) <= MAX_EXACT) | (flat != np.round(flat)))
        if invalid.size:
            message = f"y[{invalid[0]}] is {flat[invalid[0]]}, which is not a class"
            hint = "use integers or text; drop rows without a label; real values: data.task: values"
            raise user_error(message, file=file, hint=hint)
        flat = flat.astype(np.int64)
    classes, y = np.unique(flat, return_inverse=True)
    message = f"y holds {len(classes)} classes in {len(flat)} rows"
    if len(classes) < 2:
        raise user_error(message, file=file, hint="at least two classes are needed")
    if 2 * len(classes) > len(flat) > 4:
        hint = "bin a measured quantity into ranges; do not use row names as labels"
        raise user_error(f"{message}, fewer than two rows each", file=file, hint=hint)
    return y.astype(np.int64), tuple(map(str, classes))


def is_missing(label: str) -> bool:
    """Return whether the text of a label marks a missing one."""
    return label.strip().lower() in MISSING and label != "none"


def _check_texts(labels: Any, file: str) -> Any:
    """Check that no text marks a missing label, and join classes that are written as ``4`` and as ``4.0``.

    Raises:
        UnfoldError: One does.
    """
    row = next((row for row, label in enumerate(labels) if is_missing(label)), None)
    if row is not None:
        message = f"y[{row}] is {str(labels[row])!r}, which marks a missing label"
        raise user_error(message, file=file, key="data.path", hint=MISSING_HINT)
    classes = np.unique(labels)
    joined = {label: INTEGRAL.sub(r"\1", label) if INTEGRAL.fullmatch(label) else label for label in classes.tolist()}
    if len({*joined.values()}) == len(classes):
        return labels
    return np.array([joined[label] for label in labels.tolist()])


def check_learnable(y: Any, rows: IntArray, names: Sequence[str], task: Task, file: str) -> None:
    """Check that every target takes two values among the training rows; of a constant, nothing can be learnt.

    Raises:
        UnfoldError: A label is never or always 1, a value is constant, or all rows are of one class.
    """
    if task == "classes":
        present = np.unique(y[rows])
        if len(present) < 2:
            message = f"all {len(rows):,} rows to train on are of class {names[present[0]]}"
            raise user_error(message, file=file, key="data.split", hint="add rows or groups of other classes")
        return
    for name, column in zip(names, y[rows].T, strict=True):
        if column.min() < column.max():
            continue
        message = f"value {name} is {column[0]:g} in all {len(rows):,} rows to train on"
        if task == "labels":
            message = f"label {name} is {'always' if column[0] else 'never'} 1 among the {len(rows):,} rows to train on"
        raise user_error(message, file=file, key="data.task", hint=f"leave {name} out, or add rows")


def check_classes(y: Any, train: IntArray, test: IntArray, names: Sequence[str], file: str) -> None:
    """Check that no class appears among the test rows alone: a network cannot learn it.

    Raises:
        UnfoldError: One does.
    """
    unknown = np.setdiff1d(y[test], y[train])
    if len(unknown):
        count = int((y[test] == unknown[0]).sum())
        message = f"class {names[unknown[0]]} has {count:,} rows to test on, but none to train on"
        message += f"; other classes like it: {len(unknown) - 1:,}" if len(unknown) > 1 else ""
        raise user_error(message, file=file, key="data.split", hint="add rows or groups, or remove the class")


def check_evaluable(y: Any, rows: IntArray, task: Task, file: str) -> None:
    """Check that a target varies among the test rows, without which no score is defined.

    Raises:
        UnfoldError: There is none.
    """
    if task != "classes" and not (y[rows].min(axis=0) < y[rows].max(axis=0)).any():
        message = f"no target varies among the {len(rows):,} rows to test on, so nothing can be scored"
        raise user_error(message, file=file, key="data.split", hint="add rows or groups, or raise data.test")


def list_strata(y: Any, task: Task) -> IntArray:
    """Number the strata of a random split: the class, the rarest label of a row, or one stratum for real values."""
    if task == "values":
        return np.zeros(len(y), np.int64)
    if task == "classes":
        strata: IntArray = y
        return strata
    rarest_first = np.argsort(y.sum(axis=0), kind="stable")
    ordered = y[:, rarest_first]
    return np.where(ordered.any(axis=1), rarest_first[ordered.argmax(axis=1)], -1)


def standardize_values(y: Any, rows: IntArray) -> tuple[Float32Array, Float32Array]:
    """Compute mean and standard deviation of each value over the training rows, with which a network learns them."""
    train = y[rows].astype(np.float64)
    return train.mean(axis=0).astype(np.float32), train.std(axis=0).astype(np.float32)


def _arrange_columns(values: Any, file: str) -> Any:
    """Arrange targets as numbers (n, targets)."""
    array = np.asarray(values)
    columns = array[:, None] if array.ndim == 1 else array
    if columns.ndim != 2 or not 1 <= columns.shape[1] <= MAX_OUTPUTS:
        message = f"y has shape {array.shape}, not (rows, targets) with at most {MAX_OUTPUTS:,} targets"
        raise user_error(message, file=file, key="data.task", hint="store one column for each label or value")
    if columns.dtype.kind in "US":
        try:
            columns = columns.astype(np.float64)
        except ValueError as error:
            message = f"y holds text, not numbers: {error}"
            raise user_error(
                message, file=file, key="data.task", hint="remove data.task to train a classifier"
            ) from error
    if columns.dtype.kind not in "biuf":
        raise user_error(f"y holds {columns.dtype}, not numbers", file=file, key="data.task")
    return columns


def _check_finite(columns: Any, file: str) -> None:
    # what is too large for single precision becomes infinite, and is refused
    with np.errstate(over="ignore"):
        numbers = columns.astype(np.float32)
    if not np.isfinite(numbers).all():
        row, column = (int(index) for index in np.argwhere(~np.isfinite(numbers))[0])
        message = f"y[{row}, {column}] is {columns[row, column]}, which is not a finite number in single precision"
        raise user_error(message, file=file, key="data.path", hint="drop rows without a target")


def _check_labels(columns: Any, file: str) -> None:
    broken = np.argwhere((columns != 0) & (columns != 1))
    if len(broken):
        row, column = (int(index) for index in broken[0])
        message = f"y[{row}, {column}] is {columns[row, column]:g}, not 0 or 1"
        raise user_error(message, file=file, key="data.task", hint="labels are 0 or 1 each; real values: task: values")
