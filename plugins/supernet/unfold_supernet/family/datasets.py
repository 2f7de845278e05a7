"""Labelled examples: scikit-learn's digits, beats of MIT-BIH, or an NPZ or CSV file of one's own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unfold_supernet.arrays import Ints
from unfold_supernet.family.user_arrays import Numbers, Own, need, numbers, own, stored
from unfold_supernet.schema.models import DataSpec
from unfoldkit.api import Run, fail
from unfoldkit.safe_io.files import read_bytes

NORMAL = 16_000
RR_MOST = 3.0


@dataclass(frozen=True, slots=True)
class Data:
    """Inputs (n, channels, *size), numbers that join at the head (n, extra), labels and their names, rows by use.

    ``held`` are rows kept back from training to choose nets by; ``whose`` numbers the groups that rows are of, if told.
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
    whose: Ints | None = None


def load(given: DataSpec, run: Run, *, form: str = "conv1d") -> Data:
    """Return the data of a spec for nets of a form, split by the run's seed.

    Raises:
        UnfoldError: the file is missing or does not hold what is needed.
    """
    if given.source == "digits":
        return _digits(given, run.seed)
    path = run.path(given.path or "", key="data.path")
    content = read_bytes(path)
    digest = hashlib.sha256(content).hexdigest()
    if given.source == "mitbih":
        arrays = stored(content, str(path), ("X", "rr", "y", "split"))
        return _checked(_beats(given, arrays, run.seed, digest, str(path)), str(path))
    return _checked(_own(given, own(given, path, content, form), run.seed, digest, path.name), str(path))


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


def split_groups(whose: Ints, share: float, seed: int) -> tuple[Ints, Ints]:
    """Return rows to train and to test, no group on both sides: groups by chance until ``share`` of the rows tests."""
    groups, counts = np.unique(whose, return_counts=True)
    order = np.random.default_rng([seed, 0x96B]).permutation(len(groups))
    below = int((np.cumsum(counts[order]) - counts[order] / 2 < share * len(whose)).sum())
    tested = np.isin(whose, groups[order[: min(max(1, below), len(groups) - 1)]])
    return np.flatnonzero(~tested), np.flatnonzero(tested)


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
    need(arrays, ("X", "rr", "y", "split"), file)
    rng = np.random.default_rng([seed, 0xECC])
    y = arrays["y"].astype(np.int64)
    beats, apart = (numbers(arrays[name], name, len(y), file) for name in ("X", "rr"))
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
    x, extra = beats[rows][:, None], np.clip(apart[rows], 0, RR_MOST)
    about = f"MIT-BIH beats, {given.split} split"
    return Data(x, extra, y[rows], ("N", "S", "V", "F"), train, test, digest, about)


def _own(given: DataSpec, found: Own, seed: int, digest: str, name: str) -> Data:
    about = name
    if found.trained is not None:
        train, test = np.flatnonzero(found.trained), np.flatnonzero(~found.trained)
    elif given.split == "inter-patient" and found.whose is not None:
        train, test = split_groups(found.whose, given.test, seed)
        about = f"{name}, no {given.group} on both sides"
    else:
        train, test = split(found.y, given.test, seed)
    return Data(found.x, found.extra, found.y, found.names, train, test, digest, about, whose=found.whose)


def _checked(found: Data, file: str) -> Data:
    # norms need the spread of a batch, which one row does not have
    if len(found.train) < 2 or not len(found.test):
        told = f"{len(found.train):,} rows to train and {len(found.test):,} to test"
        raise fail(told, file=file, key="data.split", hint="more rows, more groups, or another data.test")
    return found


def _none(y: Ints) -> Numbers:
    return np.zeros((len(y), 0), np.float32)
