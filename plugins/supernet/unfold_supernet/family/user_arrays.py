"""A user's examples, an NPZ archive or a CSV, validated before anything is trained on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfold_supernet._types import BoolArray, Float32Array, IntArray, Task
from unfold_supernet.family.label_targets import MISSING_HINT, is_missing, parse_targets
from unfold_supernet.family.number_columns import ColumnSpread
from unfoldkit.api import PERSON_COLUMNS, UnfoldError, csv_rows, user_error
from unfoldkit.safe_io.archives import read_archive as open_archive
from unfoldkit.safe_io.arrays import read_npz

TRAIN_MARKS = {"1": True, "train": True, "2": False, "test": False}
"""Values of the array ``split``: whether the row is for training."""
INPUTS = ("x", "extra")
"""Arrays that a network takes."""
FORM_DIMS = {"conv1d": 1, "conv2d": 2}
"""Spatial axes of an input, where the form determines them."""
AMBIGUOUS_RATIO = 4
"""Ratio of an input's edges from which it may be a signal of several channels instead of an image."""


@dataclass(frozen=True, slots=True)
class UserDataOptions:
    """Layout of a user's file.

    Attributes:
        targets: The label column of a table; for several labels or values, one column each.
        channels: Position of the channel axis: ``first``, ``last``, ``none``, or ``None`` to infer it.
        group: Array or column with the group of each row; empty if there is none.
        has_split: Whether the file says which rows are for training.
        task: What the targets are.
    """

    targets: tuple[str, ...]
    channels: str | None
    group: str
    has_split: bool
    task: Task = "classes"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserData:
    """Validated examples.

    Attributes:
        x: Inputs (n, channels, *size).
        extra: Numbers that join at the head (n, extra).
        y: Classes (n), labels (n, labels) or values (n, values).
        names: Names of the classes, labels or values.
        groups: Group of each row, if known.
        is_train: Whether a row is for training, if the file says so.
        unnamed_group: Array or column by which persons have several rows, where neither a group nor a split is named.
        columns: Names of the columns of ``x``, where a table gives them.
    """

    x: Float32Array
    extra: Float32Array
    y: Any
    names: tuple[str, ...]
    groups: IntArray | None = None
    is_train: BoolArray | None = None
    unnamed_group: str = ""
    columns: tuple[str, ...] = ()


def load_user_data(options: UserDataOptions, path: Path, content: bytes, form: str) -> UserData:
    """Load the examples of a file for subnets of a form.

    Args:
        options: Layout of the file.
        path: The file; ``.csv`` and ``.csv.gz`` are tables, all others NPZ archives.
        content: Its bytes.
        form: Form of the subnets.

    Raises:
        UnfoldError: An array is missing, invalid or ambiguous.
    """
    file, group = str(path), options.group
    if path.name.endswith((".csv", ".csv.gz")):
        arrays = read_table(path, options)
    else:
        arrays = read_archive(content, file, ("x", "y", "extra", "split", "names", group))
        arrays = _read_persons(content) | arrays | {"columns": ()}
    required = ("x", "y", *([group] if group else []), *(["split"] if options.has_split else []))
    require_arrays(arrays, required, file)
    targets = parse_targets(arrays["y"], options.task, arrays.get("names", ()), file)
    y = targets.y
    arrays.setdefault("extra", np.zeros((len(y), 0)))
    columns, numbers = arrays["columns"], check_numbers(arrays["x"], "x", len(y), file)
    extra = check_extra(arrays["extra"], len(y), file)
    for name in INPUTS:
        spread = ColumnSpread()
        spread.add(arrays[name])
        spread.check(name, columns if name == "x" else (), file)
    groups = (
        parse_groups(check_present(_check_rows(arrays[group], group, len(y), file), group, file)) if group else None
    )
    return UserData(
        x=arrange_axes(numbers, options.channels, form, file),
        extra=extra,
        y=y,
        names=targets.names,
        groups=groups,
        is_train=parse_split(arrays["split"], len(y), file) if options.has_split else None,
        unnamed_group="" if group or options.has_split else _find_repeated_persons(arrays, len(y)),
        columns=columns,
    )


def _find_repeated_persons(arrays: dict[str, Any], rows: int) -> str:
    """Name the array or column by which persons have several rows; empty if there is none."""
    for name, values in arrays.items():
        if name.lower() in PERSON_COLUMNS and np.shape(values) == (rows,) and len(np.unique(values)) < rows:
            return name
    return ""


def read_archive(content: bytes, file: str, names: Sequence[str]) -> dict[str, Any]:
    """Read those of the named arrays that an NPZ archive holds; loading executes no code.

    Raises:
        UnfoldError: The content is no archive or damaged, or an array holds Python objects.
    """
    if not content.startswith(b"PK"):
        hint = "write np.savez(path, x=..., y=...), or a CSV"
        raise user_error("not an NPZ archive", file=file, key="data.path", hint=hint)
    try:
        return read_npz(content, names=names)
    except UnfoldError as error:
        if "Python objects" in str(error):
            message = "an array holds Python objects, which are not loaded"
            hint = "store labels as text or numbers: y.astype(str); pad sequences to one length"
        else:
            message, hint = f"the NPZ archive is damaged: {error}", ""
        raise user_error(message, file=file, key="data.path", hint=hint) from error


def read_table(path: Path, options: UserDataOptions) -> dict[str, Any]:
    """Read the columns of a CSV: targets, group and split by name, all others as ``x``."""
    named = {options.group: options.group} if options.group else {}
    named |= {"split": "split"} if options.has_split else {}
    rows = list(csv_rows(path, (*options.targets, *named), hint="data.target names the label column"))
    if not rows:
        raise user_error("the file contains no row", file=str(path), key="data.path")
    for column in (*options.targets, *named):
        empty = next((row for row in rows if not row[column]), None)
        if empty is not None:
            raise empty.wrong("no label" if column in options.targets else "no value", column)
    for row in rows if options.task == "classes" else ():
        if is_missing(row[options.targets[0]]):
            message = f"{row[options.targets[0]]!r} marks a missing label"
            raise row.wrong(message, options.targets[0], hint=MISSING_HINT)
    features = [name for name in rows[0].cells if name not in (*named, *options.targets)]
    x = np.array([[row.number(name) for name in features] for row in rows], np.float64)
    if options.task == "classes":
        targets = {"y": np.array([row[options.targets[0]] for row in rows])}
    else:
        y = np.array([[row.number(name) for name in options.targets] for row in rows])
        targets = {"y": y, "names": np.array(options.targets)}
    named |= {name: name for name in features if name.lower() in PERSON_COLUMNS}
    return (
        {"x": x, "columns": tuple(features)}
        | targets
        | {key: np.array([row[name] for row in rows]) for name, key in named.items()}
    )


def _read_persons(content: bytes) -> dict[str, Any]:
    """Read the arrays of an NPZ archive that name persons, except for Python objects, which are not loaded."""
    arrays: dict[str, Any] = {}
    for name in (member.removesuffix(".npy") for member in open_archive(content).namelist()):
        if name.lower() in PERSON_COLUMNS:
            with suppress(UnfoldError):
                arrays |= read_npz(content, names=(name,))
    return arrays


def require_arrays(arrays: dict[str, Any], names: Sequence[str], file: str) -> None:
    """Check that all named arrays are present.

    Raises:
        UnfoldError: One is missing.
    """
    missing = [name for name in names if name not in arrays]
    if missing:
        hint = "write np.savez(path, x=..., y=...); in split, 1 marks rows to train on, 2 rows to test on"
        raise user_error(f"the file holds no {', '.join(missing)}", file=file, key="data.path", hint=hint)


def check_numbers(values: Any, name: str, rows: int, file: str, start: int = 0) -> Float32Array:
    """Check that an array holds finite numbers and as many rows as there are labels; convert it to float32.

    ``start`` is the number of its first row, for the error.

    Raises:
        UnfoldError: It does not.
    """
    if values.dtype.kind not in "biuf":
        raise user_error(f"{name} holds {values.dtype}, not numbers", file=file, key="data.path")
    # what is too large for single precision becomes infinite, and is refused
    with np.errstate(over="ignore"):
        numbers = np.asarray(_check_rows(values, name, rows, file), np.float32)
    if not np.isfinite(numbers).all():
        row = start + int(np.argwhere(~np.isfinite(numbers))[0][0])
        message = f"{name}[{row}] holds a value that is not finite in single precision"
        raise user_error(message, file=file, hint="fill the gaps, or drop such rows")
    return numbers


def check_extra(values: Any, rows: int, file: str, start: int = 0) -> Float32Array:
    """Check the numbers beside the inputs as :func:`check_numbers` does, and arrange them as (n, numbers).

    Raises:
        UnfoldError: They are no finite numbers, or have more axes.
    """
    numbers = check_numbers(values, "extra", rows, file, start)
    if numbers.ndim > 2:
        message = f"extra has shape {numbers.shape}, not (rows, numbers)"
        raise user_error(message, file=file, key="data.path", hint="extra.reshape(len(extra), -1)")
    return numbers.reshape(rows, -1) if rows else numbers.reshape(0, math.prod(numbers.shape[1:]))


def arrange_axes(x: Float32Array, channels: str | None, form: str, file: str) -> Float32Array:
    """Arrange inputs as (n, channels, *size) for a form of subnets; a user's module gets them as they are stored.

    Raises:
        UnfoldError: The inputs lack the axes that the form needs, or the channel axis is ambiguous.
    """
    if not math.prod(x.shape[1:]):
        hint = "add columns beside the label, or choose another target"
        message = f"a row has shape {x.shape[1:]}, which holds no value"
        raise user_error(message, file=file, key="data.path", hint=hint)
    if form == "module":
        return np.ascontiguousarray(np.moveaxis(x, -1, 1)) if channels == "last" and x.ndim > 2 else x
    if form == "mlp":
        return x.reshape(len(x), -1, 1)
    if form not in FORM_DIMS and channels is None and x.ndim == 3:
        _refuse_signal_or_image(x, file)
    dims = FORM_DIMS.get(form, max(1, min(x.ndim - 1 - (channels in ("first", "last")), 2)))
    full = x[:, None] if x.ndim == dims + 1 and channels in (None, "none") else x
    if full.ndim != dims + 2:
        hint = {1: "conv1d: (rows, [channels,] length)", 2: "conv2d: (rows, [channels,] height, width)"}[dims]
        raise user_error(f"x has shape {x.shape}, which {form} cannot take", file=file, key="space.form", hint=hint)
    if channels == "last":
        return np.ascontiguousarray(np.moveaxis(full, -1, 1))
    if channels is None and full.shape[1] > max(1, min(full.shape[2:])):
        message = f"x has shape {x.shape}: {full.shape[1]} channels of {' x '.join(map(str, full.shape[2:]))}?"
        hint = "write channels: last, or channels: first to confirm"
        raise user_error(message, file=file, key="data.channels", hint=hint)
    return full


def _refuse_signal_or_image(x: Float32Array, file: str) -> None:
    height, width = x.shape[1:]
    if max(height, width) <= AMBIGUOUS_RATIO * min(height, width):
        return
    channels = "first" if height < width else "last"
    message = f"x has shape {x.shape}: signals of {min(height, width)} channels, or images of {height} x {width}?"
    hint = f"write channels: {channels}, or channels: none for images"
    raise user_error(message, file=file, key="data.channels", hint=hint)


def _check_rows(values: Any, name: str, rows: int, file: str) -> Any:
    if not values.ndim or len(values) != rows:
        message = f"{name} has shape {values.shape}, but y holds {rows} labels"
        raise user_error(message, file=file, key="data.path", hint="store one row for each label")
    return values


def check_present(values: Any, name: str, file: str, start: int = 0) -> Any:
    """Check that no value is missing; ``start`` is the number of the first row, for the error.

    Raises:
        UnfoldError: A number is NaN or infinite, or a text marks a missing value.
    """
    if values.dtype.kind == "U":
        missing = next((row for row, text in enumerate(values.ravel().tolist()) if is_missing(text)), None)
        if missing is not None:
            message = f"{name}[{start + missing}] is {str(values.ravel()[missing])!r}, which marks a missing value"
            raise user_error(message, file=file, key="data.path", hint=MISSING_HINT)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row = start + int(np.argwhere(~np.isfinite(values))[0][0])
        raise user_error(f"{name}[{row}] is not finite", file=file, key="data.path", hint="drop such rows")
    return values


def parse_groups(values: Any) -> IntArray:
    """Number the groups of rows."""
    groups: IntArray = np.unique(values, return_inverse=True)[1]
    return groups


def parse_split(values: Any, rows: int, file: str) -> BoolArray:
    """Parse which rows are for training.

    Raises:
        UnfoldError: A mark is unknown.
    """
    marks = [str(value).removesuffix(".0") for value in _check_rows(values, "split", rows, file).ravel().tolist()]
    unknown = next((mark for mark in marks if mark not in TRAIN_MARKS), None)
    if unknown is not None:
        raise user_error(f"split holds {unknown!r}", file=file, key="data.split", hint="use 1 or train, 2 or test")
    return np.array([TRAIN_MARKS[mark] for mark in marks])
