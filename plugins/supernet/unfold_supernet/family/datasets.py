"""Labelled examples: scikit-learn's digits, heartbeats of MIT-BIH, or a user's files.

One NPZ or CSV file is read into memory. Shards, Parquet files and images are read in bounded memory.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from unfold_supernet._types import Float32Array, IntArray, Task
from unfold_supernet.family.image_folder import load_images
from unfold_supernet.family.label_targets import check_classes, check_evaluable, check_learnable, list_strata
from unfold_supernet.family.shards import is_sharded, load_shards
from unfold_supernet.family.space_builder import InputShape
from unfold_supernet.family.user_arrays import (
    UserData,
    UserDataOptions,
    check_numbers,
    load_user_data,
    read_archive,
    require_arrays,
)
from unfoldkit.api import user_error
from unfoldkit.safe_io.files import read_bytes

NORMAL_BEATS = 16_000
MAX_RR_RATIO = 3.0
HELD_GROUPS, MANY_GROUPS = 3, 20
"""Groups that are held out at least, where there are so many that they cost the training about a tenth of its rows."""
FEW_COMBINATIONS = 10
"""Combinations of column values per row up to which rows are expected to repeat, so that none counts as a copy."""
DEFAULT_EDGE = 64
"""Height and width of images, in pixels."""
MITBIH_ARRAYS = ("X", "rr", "y", "split")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """Where the examples come from and how they are split.

    Attributes:
        source: ``digits``, ``mitbih``, ``file`` or ``images``.
        path: The file or folder; ``None`` for digits.
        user: Layout of a user's file.
        split: ``random``, ``inter-patient`` or ``given``.
        test_fraction: Fraction of each class held out for testing.
        edge: Height and width of images, in pixels.
        scratch: Folder for decoded inputs; ``None`` takes the system's folder for temporary files.
    """

    source: str
    path: Path | None
    user: UserDataOptions
    split: str
    test_fraction: float
    edge: int = DEFAULT_EDGE
    scratch: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Examples and their split.

    Attributes:
        x: Inputs (n, channels, *size).
        extra: Numbers that join at the head (n, extra).
        y: Classes (n), labels of 0 and 1 (n, labels) or real values (n, values).
        names: Names of the classes, labels or values.
        train: Rows to train on.
        test: Rows to test on.
        digest: SHA-256 of the source.
        about: Description for reports.
        holdout: Rows held out to select subnets and to calibrate confidences. Of a group that is held out, they
            include those that are on neither side, so that its mix of classes is its own.
        groups: Group of each row, if known.
        task: What the targets are.
        sampling: By class, the fraction of its rows from which the training rows were drawn; empty where all were.
        inputs: Number of each row's input (n), equal for copies; ``None`` without copies.
        unnamed_group: Array or column of persons with rows on both sides of the split; empty if none is known.
        columns: Names of the columns of ``x``, where a table gives them.
    """

    x: Float32Array
    extra: Float32Array
    y: Any
    names: tuple[str, ...]
    train: IntArray
    test: IntArray
    digest: str
    about: str
    holdout: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    groups: IntArray | None = None
    task: Task = "classes"
    sampling: tuple[float, ...] = ()
    inputs: IntArray | None = None
    unnamed_group: str = ""
    columns: tuple[str, ...] = ()

    @property
    def logit_shift(self) -> Float32Array:
        """What logits (classes) of a network lack that saw some classes less often than they occur; 0 where all agree.

        A class that was sampled at a rate has this fraction of its odds (King and Zeng, Political Analysis 2001).
        """
        rates = np.array(self.sampling or (1.0,) * len(self.names))
        shift: Float32Array = -np.log(rates).astype(np.float32)
        return shift

    @property
    def test_groups(self) -> IntArray | None:
        """Group of each test row (test), if known."""
        return None if self.groups is None else self.groups[self.test]

    @property
    def shape(self) -> InputShape:
        """Shape of the examples."""
        return InputShape(self.x.shape[1], self.x.shape[2:], self.extra.shape[1], len(self.names))


def load_dataset(options: DataOptions, seed: int, *, form: str = "conv1d") -> Dataset:
    """Load and split the examples for subnets of a form.

    Raises:
        UnfoldError: The file lacks an array, or leaves too few rows on a side.
    """
    if options.path is None:
        return _load_digits(options, seed)
    file = str(options.path)
    if options.source == "images":
        images = load_images(options.path, options.edge, options.scratch, has_split=options.split == "given")
        return _check_split(_split_user_data(options, images[0], seed, images[1]), file)
    if options.source == "file" and is_sharded(options.path):
        shards = load_shards(options.user, options.path, form, options.scratch)
        return _check_split(_split_user_data(options, shards[0], seed, shards[1]), file)
    content = read_bytes(options.path)
    digest = hashlib.sha256(content).hexdigest()
    if options.source == "mitbih":
        return _check_split(
            _select_beats(options, read_archive(content, file, (*MITBIH_ARRAYS, "record")), seed, digest), file
        )
    user_data = load_user_data(options.user, options.path, content, form)
    return _check_split(_split_user_data(options, user_data, seed, digest), file)


def split_by_class(y: IntArray, fraction: float, seed: int) -> tuple[IntArray, IntArray]:
    """Split rows into training and test rows, with ``fraction`` of each class to test on."""
    rng = np.random.default_rng([seed, 0x5B1])
    train, test = [], []
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        cut = round(len(rows) * fraction)
        test.append(rows[:cut])
        train.append(rows[cut:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def split_by_group(groups: IntArray, fraction: float, seed: int, min_test_groups: int = 1) -> tuple[IntArray, IntArray]:
    """Split rows into training and test rows, with no group on both sides.

    Groups are drawn at random until ``fraction`` of the rows, and ``min_test_groups`` of the groups, are in the test
    set.
    """
    names, counts = np.unique(groups, return_counts=True)
    order = np.random.default_rng([seed, 0x96B]).permutation(len(names))
    count = int((np.cumsum(counts[order]) - counts[order] / 2 < fraction * len(groups)).sum())
    is_test = np.isin(groups, names[order[: min(max(min_test_groups, count), len(names) - 1)]])
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def hold_out_rows(data: Dataset, fraction: float, seed: int, min_groups: int = 2) -> Dataset:
    """Hold out a fraction of the training rows; entire groups if the training rows have ``min_groups`` or more.

    Of many groups, at least as many are held out as show whether a temperature helps those that it was not fitted on.
    """
    if not fraction:
        return data
    count = 0 if data.groups is None else len(np.unique(data.groups[data.train]))
    if data.groups is not None and count >= min_groups:
        held = HELD_GROUPS if count >= MANY_GROUPS else 1
        train, holdout = (data.train[part] for part in split_by_group(data.groups[data.train], fraction, seed, held))
        if data.task == "classes":
            train, holdout = _return_classes(data.y, train, holdout, data.groups)
        spare = np.setdiff1d(np.arange(len(data.groups)), np.concatenate([data.train, data.test]))
        if data.inputs is not None:
            holdout = holdout[~np.isin(data.inputs[holdout], data.inputs[train])]
        of_held = spare[np.isin(data.groups[spare], data.groups[holdout])]
        return replace(data, train=train, holdout=np.sort(np.concatenate([holdout, of_held])))
    if data.inputs is None:
        units, rows = np.arange(len(data.y)), np.random.default_rng([seed, 0x5EA]).permutation(data.train)
        cut = round(len(rows) * fraction)
        train, holdout = rows[cut:], rows[:cut]
    else:
        units = data.inputs
        train, holdout = (data.train[part] for part in split_by_group(units[data.train], fraction, seed))
    if data.task == "classes":
        train, holdout = _return_classes(data.y, train, holdout, units)
    return replace(data, train=np.sort(train), holdout=np.sort(holdout))


def _return_classes(y: IntArray, train: IntArray, held: IntArray, units: IntArray) -> tuple[IntArray, IntArray]:
    """Return a row, or a group, of each class to the training rows that has none there; ``units`` are by row."""
    classes, first = np.unique(y[held], return_index=True)
    returned = units[held[first[~np.isin(classes, y[train])]]]
    is_returned = np.isin(units[held], returned)
    return np.concatenate([train, held[is_returned]]), held[~is_returned]


def _load_digits(options: DataOptions, seed: int) -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    y = bunch.target.astype(np.int64)
    train, test = split_by_class(y, options.test_fraction, seed)
    return Dataset(
        x=(bunch.data / 16.0).astype(np.float32).reshape(-1, 1, 8, 8),
        extra=np.zeros((len(y), 0), np.float32),
        y=y,
        names=tuple(map(str, range(10))),
        train=train,
        test=test,
        digest=hashlib.sha256(bunch.data.tobytes()).hexdigest(),
        about="scikit-learn's digits",
    )


def _select_beats(options: DataOptions, arrays: dict[str, Any], seed: int, digest: str) -> Dataset:
    """Select classes N, S, V, F; a random split takes 16,000 normal beats, an inter-patient split trains on DS1.

    An inter-patient split trains on 8,000 normal beats; the others of DS1 are on neither side. Their fraction is noted,
    since patients of either side have nearly all of their beats normal.
    """
    file = str(options.path)
    require_arrays(arrays, MITBIH_ARRAYS, file)
    rng = np.random.default_rng([seed, 0xECC])
    y = arrays["y"].astype(np.int64)
    beats, intervals = (check_numbers(arrays[name], name, len(y), file) for name in ("X", "rr"))
    normal = rng.permutation(np.flatnonzero(y == 0))
    rare = np.flatnonzero((y > 0) & (y < 4))
    drawn = 1.0
    if options.split == "random":
        rows = np.sort(np.concatenate([normal[:NORMAL_BEATS], rare]))
        train, test = split_by_class(y[rows], options.test_fraction, seed)
    else:
        is_ds1 = arrays["split"] == 1
        taken, spare = np.split(normal[is_ds1[normal]], [NORMAL_BEATS // 2])
        drawn = len(taken) / max(1, len(taken) + len(spare))
        sides = [np.concatenate([taken, rare[is_ds1[rare]]]), np.flatnonzero(~is_ds1 & (y < 4)), spare]
        rows = np.concatenate(sides)
        train, test, _ = np.split(np.arange(len(rows)), np.cumsum([len(side) for side in sides[:2]]))
    by_patient = options.split != "random" and "record" in arrays
    return Dataset(
        x=beats[rows][:, None],
        extra=np.clip(intervals[rows], 0, MAX_RR_RATIO),
        y=y[rows],
        names=("N", "S", "V", "F"),
        train=train,
        test=test,
        digest=digest,
        about=f"MIT-BIH beats, {options.split} split",
        groups=arrays["record"][rows].astype(np.int64) if by_patient else None,
        sampling=(drawn or 1.0, 1.0, 1.0, 1.0),
    )


def _split_user_data(options: DataOptions, data: UserData, seed: int, digest: str) -> Dataset:
    assert options.path is not None  # noqa: S101 - user data is a file
    about, inputs = options.path.name, _number_inputs(data)
    if data.is_train is not None:
        train, test = np.flatnonzero(data.is_train), np.flatnonzero(~data.is_train)
    elif options.split == "inter-patient" and data.groups is not None:
        train, test = split_by_group(data.groups, options.test_fraction, seed)
        if options.user.task == "classes":
            train, test = (np.sort(part) for part in _return_classes(data.y, train, test, data.groups))
        about = f"{about}, no {options.user.group} on both sides"
    else:
        units = np.arange(len(data.y)) if inputs is None else inputs
        rows = np.unique(units, return_index=True)[1]
        test = split_by_class(list_strata(data.y, options.user.task)[rows], options.test_fraction, seed)[1]
        is_test = np.isin(units, units[rows[test]])
        train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
        about = about if inputs is None else f"{about}, copies of a row on one side"
    if inputs is not None:
        copied = np.isin(inputs[test], inputs[train])
        if copied.all():
            message = f"all {len(test):,} rows to test on have inputs of rows to train on"
            raise user_error(message, file=str(options.path), key="data.split", hint="test on rows that are not copies")
        about += f", {copied.sum():,} test rows left out as copies" if copied.any() else ""
        test = test[~copied]
    return Dataset(
        x=data.x,
        extra=data.extra,
        y=data.y,
        names=data.names,
        train=train,
        test=test,
        digest=digest,
        about=about,
        groups=data.groups,
        task=options.user.task,
        inputs=inputs,
        unnamed_group=data.unnamed_group,
        columns=data.columns,
    )


def _number_inputs(data: UserData) -> IntArray | None:
    """Number the inputs (n), equal ones alike; ``None`` if none is a copy of another.

    A network remembers the target of an input, so a copy on the other side of a split would be no test. Where columns
    take few values, equal rows are no copies.
    """
    digests = (
        hashlib.blake2b(row.tobytes() + numbers.tobytes(), digest_size=8).digest()
        for row, numbers in zip(data.x, data.extra, strict=True)
    )
    values = np.frombuffer(b"".join(digests), np.uint64)
    distinct, inputs = np.unique(values, return_inverse=True)
    if len(distinct) == len(values) or _repeats_by_chance(data):
        return None
    return inputs.astype(np.int64)


def _repeats_by_chance(data: UserData) -> bool:
    """Check whether columns take so few values that rows repeat without being copies."""
    combinations = 1
    for values in (data.x.reshape(len(data.x), -1), data.extra):
        for column in values.T:
            combinations *= len(np.unique(column))
            if combinations > FEW_COMBINATIONS * len(values):
                return False
    return True


def _check_split(data: Dataset, file: str) -> Dataset:
    # norm statistics need the spread of a batch, which a single row lacks
    if len(data.train) < 2 or not len(data.test):
        message = f"{len(data.train):,} rows to train and {len(data.test):,} to test"
        raise user_error(message, file=file, key="data.split", hint="add rows or groups, or change data.test")
    check_learnable(data.y, data.train, data.names, data.task, file)
    if data.task == "classes":
        check_classes(data.y, data.train, data.test, data.names, file)
    check_evaluable(data.y, data.test, data.task, file)
    return data
