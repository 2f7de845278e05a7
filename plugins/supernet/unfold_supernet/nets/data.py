"""Labelled examples: scikit-learn's digits, beats of MIT-BIH, or an NPZ or CSV file of one's own."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfold_supernet.arrays import Ints
from unfold_supernet.spec import DataSpec
from unfoldkit.api import Run, csv_rows, fail

Numbers = NDArray[np.float32]
NORMAL = 16_000
RR_MOST = 3.0


@dataclass(frozen=True, slots=True)
class Data:
    """Inputs (n, channels, *size), numbers that join at the head (n, extra), labels and their names, rows by use.

    ``held`` are rows kept back from training to choose nets by.
    """

    x: Numbers
    extra: Numbers
    y: Ints
    names: tuple[str, ...]
    train: Ints
    test: Ints
    digest: str
    about: str
    held: Ints = field(default_factory=lambda: np.zeros(0, np.int64))


def load(given: DataSpec, run: Run, *, flat: bool = False) -> Data:
    """Return the data of a spec, split by the run's seed; ``flat`` makes each number of an input a channel of its own.

    Raises:
        UnfoldError: the file is missing or does not hold what is needed.
    """
    if given.source == "digits":
        return _digits(given, run.seed)
    path = run.path(given.path or "", key="data.path")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if path.name.endswith((".csv", ".csv.gz")):
        arrays = _csv(path, given.target)
    else:
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (ValueError, OSError, EOFError) as error:
            raise fail(f"not an NPZ archive: {error}", file=str(path), key="data.path") from error
    if given.source == "mitbih":
        return _beats(given, arrays, run.seed, digest, str(path))
    own = _own(given, arrays, run.seed, digest, str(path))
    return replace(own, x=own.x.reshape(len(own.x), -1, 1)) if flat else own


def split(y: Ints, share: float, seed: int) -> tuple[Ints, Ints]:
    """Return rows to train and to test, ``share`` of each class to test."""
    rng = np.random.default_rng([seed, 0x5B1])
    train, test = [], []
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        cut = round(len(rows) * share)
        test.append(rows[:cut])
        train.append(rows[cut:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def _digits(given: DataSpec, seed: int) -> Data:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = (bunch.data / 16.0).astype(np.float32).reshape(-1, 1, 8, 8)
    y = bunch.target.astype(np.int64)
    digest = hashlib.sha256(bunch.data.tobytes()).hexdigest()
    names = tuple(map(str, range(10)))
    return Data(x, _none(y), y, names, *split(y, given.test, seed), digest, "scikit-learn's digits")


def _beats(given: DataSpec, arrays: dict[str, Any], seed: int, digest: str, file: str) -> Data:
    """Keep classes N, S, V, F; a random split takes 16,000 normal beats, an inter-patient one trains on DS1."""
    _need(arrays, ("X", "rr", "y", "split"), file)
    rng = np.random.default_rng([seed, 0xECC])
    y = arrays["y"].astype(np.int64)
    normal = rng.permutation(np.flatnonzero(y == 0))
    rare = np.flatnonzero((y > 0) & (y < 4))
    if given.split == "random":
        rows = np.sort(np.concatenate([normal[:NORMAL], rare]))
        train, test = split(y[rows], given.test, seed)
    else:
        first = arrays["split"] == 1
        few = normal[first[normal]][: NORMAL // 2]
        rows = np.concatenate([few, rare[first[rare]], np.flatnonzero(~first & (y < 4))])
        train, test = np.arange(len(rows))[first[rows]], np.arange(len(rows))[~first[rows]]
    x = arrays["X"][rows].astype(np.float32)[:, None, :]
    extra = np.clip(arrays["rr"][rows], 0, RR_MOST).astype(np.float32)
    about = f"MIT-BIH beats, {given.split} split"
    return Data(x, extra, y[rows], ("N", "S", "V", "F"), train, test, digest, about)


def _own(given: DataSpec, arrays: dict[str, Any], seed: int, digest: str, file: str) -> Data:
    _need(arrays, ("x", "y"), file)
    x = np.asarray(arrays["x"], np.float32)
    names, y = np.unique(arrays["y"], return_inverse=True)
    if len(x) != len(y) or x.ndim not in (2, 3, 4) or not np.isfinite(x).all():
        raise fail(f"x has shape {x.shape}, y {len(y)} labels", file=file, hint="x: (rows, [channels,] size), no gaps")
    x = x[:, None] if x.ndim == 2 else x
    y = y.astype(np.int64)
    extra = np.asarray(arrays.get("extra", _none(y)), np.float32)
    return Data(x, extra, y, tuple(map(str, names)), *split(y, given.test, seed), digest, file.rpartition("/")[2])


def _csv(path: Path, target: str) -> dict[str, Any]:
    rows = list(csv_rows(path, (target,), hint="data.target names the column of the labels"))
    if not rows:
        raise fail("no row", file=str(path), key="data.path")
    names = [name for name in rows[0].cells if name != target]
    x = np.array([[row.number(name) for name in names] for row in rows], np.float32)
    return {"x": x, "y": np.array([row[target] for row in rows])}


def _need(arrays: dict[str, Any], names: tuple[str, ...], file: str) -> None:
    missing = [name for name in names if name not in arrays]
    if missing:
        raise fail(f"the file holds no {', '.join(missing)}", file=file, key="data.path")


def _none(y: Ints) -> Numbers:
    return np.zeros((len(y), 0), np.float32)
