"""Examples of one's own: an NPZ archive or a CSV, looked at before anything is trained on them."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfold_supernet.arrays import Ints
from unfold_supernet.schema.models import DataSpec
from unfoldkit.api import UnfoldError, csv_rows, fail
from unfoldkit.safe_io.arrays import read_npz

Numbers = NDArray[np.float32]
DAMAGED = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error)
SIDES = {"1": True, "train": True, "2": False, "test": False}
"""From what the array ``split`` holds to whether the row is trained on."""
DIMS = {"conv1d": 1, "conv2d": 2}
"""Axes of the size of an input, where the form says it."""
LEAN = 4
"""Times that one edge of an image is as long as the other, from which on it may be a signal of several channels."""


@dataclass(frozen=True, slots=True)
class Own:
    """Inputs (n, channels, *size), numbers that join at the head (n, extra), labels and their names.

    ``whose`` numbers the groups that the rows are of, ``trained`` says which rows are trained on, if the file does.
    """

    x: Numbers
    extra: Numbers
    y: Ints
    names: tuple[str, ...]
    whose: Ints | None = None
    trained: NDArray[np.bool_] | None = None


def own(given: DataSpec, path: Path, content: bytes, form: str) -> Own:
    """Return the examples of a file for a net of a form.

    Raises:
        UnfoldError: the file does not hold what is needed, or does not tell it.
    """
    file, group = str(path), given.group or ""
    arrays = table(path, given) if path.name.endswith((".csv", ".csv.gz")) else stored(
        content, file, ("x", "y", "extra", "split", group)
    )  # fmt: skip
    need(arrays, ("x", "y", *([group] if group else []), *(["split"] if given.split == "given" else [])), file)
    y, names = labels(arrays["y"], file)
    x = shaped(numbers(arrays["x"], "x", len(y), file), given.channels, form, file)
    extra = numbers(arrays.get("extra", np.zeros((len(y), 0))), "extra", len(y), file)
    whose = np.unique(_rows(arrays[group], group, len(y), file), return_inverse=True)[1] if group else None
    trained = _sides(arrays["split"], len(y), file) if given.split == "given" else None
    return Own(x, extra[:, None] if extra.ndim == 1 else extra, y, names, whose, trained)


def stored(content: bytes, file: str, names: Sequence[str]) -> dict[str, Any]:
    """Return those of the named arrays that an NPZ archive holds; loading executes nothing.

    Raises:
        UnfoldError: it is no archive, or damaged, or an array holds objects.
    """
    if not content.startswith(b"PK"):
        raise fail("not an NPZ archive", file=file, key="data.path", hint="np.savez(path, x=..., y=...), or a CSV")
    try:
        found = read_npz(content, names=names)
    except UnfoldError as error:
        objects = "Python objects" in str(error)
        hint = "store labels as text or numbers: y.astype(str)" if objects else ""
        told = "an array holds Python objects, which are not loaded" if objects else f"a damaged NPZ archive: {error}"
        raise fail(told, file=file, key="data.path", hint=hint) from error
    return found


def table(path: Path, given: DataSpec) -> dict[str, Any]:
    """Return the columns of a CSV: labels, groups and sides by name, all others as ``x``."""
    apart = {given.target: "y"} | ({given.group: given.group} if given.group else {})
    apart |= {"split": "split"} if given.split == "given" else {}
    rows = list(csv_rows(path, tuple(apart), hint="data.target names the column of the labels"))
    if not rows:
        raise fail("no row", file=str(path), key="data.path")
    empty = next((row for row in rows if not row[given.target]), None)
    if empty is not None:
        raise empty.wrong("no label", given.target)
    names = [name for name in rows[0].cells if name not in apart]
    x = np.array([[row.number(name) for name in names] for row in rows], np.float32)
    return {"x": x} | {key: np.array([row[name] for row in rows]) for name, key in apart.items()}


def need(arrays: dict[str, Any], names: Sequence[str], file: str) -> None:
    """Stop unless all the named arrays are there.

    Raises:
        UnfoldError: one is not.
    """
    missing = [name for name in names if name not in arrays]
    if missing:
        hint = "np.savez(path, x=..., y=...); split holds 1 for rows to train on, 2 for rows to test on"
        raise fail(f"the file holds no {', '.join(missing)}", file=file, key="data.path", hint=hint)


def numbers(values: Any, name: str, rows: int, file: str) -> Numbers:
    """Return an array of finite numbers with as many rows as there are labels.

    Raises:
        UnfoldError: it is none.
    """
    if values.dtype.kind not in "biuf":
        raise fail(f"{name} holds {values.dtype}, not numbers", file=file, key="data.path")
    found = np.asarray(_rows(values, name, rows, file), np.float32)
    if not np.isfinite(found).all():
        row = int(np.argwhere(~np.isfinite(found))[0][0])
        hint = "fill gaps, or leave such rows out"
        raise fail(f"{name}[{row}] holds a value that is no number in single precision", file=file, hint=hint)
    return found


def labels(values: Any, file: str) -> tuple[Ints, tuple[str, ...]]:
    """Return the place of each row's class among the names of the classes.

    Raises:
        UnfoldError: there is not one label a row, only one class, or nearly as many classes as rows.
    """
    flat = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if flat.ndim != 1:
        raise fail(f"y has shape {values.shape}, not one label a row", file=file, hint="one-hot: y.argmax(1)")
    if flat.dtype.kind == "S":
        flat = np.char.decode(flat, "utf-8", "replace")
    if np.issubdtype(flat.dtype, np.floating):
        wrong = np.flatnonzero(~np.isfinite(flat) | (flat != np.round(flat)))
        if wrong.size:
            told = f"y[{wrong[0]}] is {flat[wrong[0]]}: labels are classes"
            raise fail(told, file=file, hint="leave rows without a label out; whole numbers, or text")
        flat = flat.astype(np.int64)
    classes, y = np.unique(flat, return_inverse=True)
    told = f"y holds {len(classes)} classes in {len(flat)} rows"
    if len(classes) < 2:
        raise fail(told, file=file, hint="at least two to tell apart")
    if 2 * len(classes) > len(flat) > 4:
        hint = "a measured number is cut into ranges first; a row's own name is no label"
        raise fail(
            f"y holds {len(classes)} classes in {len(flat)} rows, fewer than two rows each", file=file, hint=hint
        )
    return y.astype(np.int64), tuple(map(str, classes))


def shaped(x: Numbers, channels: str | None, form: str, file: str) -> Numbers:
    """Return inputs as (n, channels, *size), for a form of net.

    Raises:
        UnfoldError: they have not the axes that the form needs, or it cannot be told which are the channels.
    """
    if form == "mlp":
        if not math.prod(x.shape):
            raise fail(
                "x has no column", file=file, key="data.path", hint="columns beside the label, or another target"
            )
        return x.reshape(len(x), -1, 1)
    if form not in DIMS and channels is None and x.ndim == 3 and max(x.shape[1:]) > LEAN * min(x.shape[1:]):
        first, last = x.shape[1:]
        place = "first" if first < last else "last"
        told = f"x has shape {x.shape}: signals of {min(first, last)} channels, or images of {first} x {last}?"
        raise fail(told, file=file, key="data.channels", hint=f"write channels: {place}; or none, if they are images")
    dims = DIMS.get(form, max(1, min(x.ndim - 1 - (channels in ("first", "last")), 2)))
    whole = x[:, None] if x.ndim == dims + 1 and channels in (None, "none") else x
    if whole.ndim != dims + 2 or not math.prod(whole.shape):
        hint = {1: "conv1d: (rows, [channels,] length)", 2: "conv2d: (rows, [channels,] height, width)"}[dims]
        raise fail(f"x has shape {x.shape}, which {form} cannot take", file=file, key="space.form", hint=hint)
    if channels == "last":
        return np.ascontiguousarray(np.moveaxis(whole, -1, 1))
    if channels is None and whole.shape[1] > max(1, min(whole.shape[2:])):
        told = f"x has shape {x.shape}: {whole.shape[1]} channels of {' x '.join(map(str, whole.shape[2:]))}?"
        raise fail(told, file=file, key="data.channels", hint="write channels: last; or first, if they are that many")
    return whole


def _rows(values: Any, name: str, rows: int, file: str) -> Any:
    if not values.ndim or len(values) != rows:
        told = f"{name} has shape {values.shape}, y {rows} labels"
        raise fail(told, file=file, key="data.path", hint="one row for each label")
    return values


def _sides(values: Any, rows: int, file: str) -> NDArray[np.bool_]:
    said = [str(value).removesuffix(".0") for value in _rows(values, "split", rows, file).ravel().tolist()]
    other = next((value for value in said if value not in SIDES), None)
    if other is not None:
        raise fail(f"split holds {other!r}", file=file, key="data.split", hint="1 or train, 2 or test")
    return np.array([SIDES[value] for value in said])
