"""The cases of a spec without their features: labels, split, columns; kept in the run, so `plan` reads no table."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_cascade.arrays import FloatArray, IntArray
from unfold_cascade.data import Frame, Rows, expand, load_frame, matrix, split_rows
from unfold_cascade.spec import CascadeSpec
from unfoldkit.api import Run, dump, fail, fingerprint

FILE = "cases.npz"
FITTED = 8


@dataclass(frozen=True, slots=True)
class Cases:
    """The rows of a spec.

    ``labels`` (n,) are numbers from 0 to C-1 with ``names``; ``columns`` the columns of each feature group and
    ``order`` all of them, as they stand in the matrix of features; ``digest`` is a hash of the table.
    """

    rows: Rows
    labels: IntArray
    names: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]
    order: tuple[str, ...]
    digest: str
    source: str

    def places(self, groups: Sequence[str] | None) -> IntArray:
        """Return the column numbers of the named feature groups, all if ``None``."""
        wanted = self.columns if groups is None else groups
        names = dict.fromkeys(column for group in wanted for column in self.columns[group])
        return np.array([self.order.index(name) for name in names], dtype=np.int64)


def cases(spec: CascadeSpec, run: Run) -> Cases:
    """Return the cases, from the run if they stand there and the table is still the same.

    Raises:
        UnfoldError: a file, column or label is not as the spec says.
    """
    return _unpacked(run.directory.once(FILE, made_from(spec, run), lambda: _packed(_read(spec, run))))


def made_from(spec: CascadeSpec, run: Run) -> str:
    """Return the fingerprint of what the cases of a spec are made from."""
    return fingerprint(dump(spec.data), _targets(spec), dump_features(spec), run.seed, source_digest(spec, run))


def stored_cases(run: Run) -> Cases:
    """Return the cases as they stand in the run, without a look at the table.

    Raises:
        UnfoldError: the run holds none.
    """
    return _unpacked(run.directory.read(FILE))


def features(spec: CascadeSpec, run: Run, given: Cases) -> FloatArray:
    """Return the (n, d) matrix of all feature columns, in ``given.order``."""
    frame = load_frame(spec, run)
    return matrix(frame, given.order, key="features") if given.order else np.zeros((len(frame), 0))


def dump_features(spec: CascadeSpec) -> object:
    """Return the feature groups as plain data, without their prices: prices change no model."""
    return {name: list(group.columns) for name, group in spec.features.items()}


def source_digest(spec: CascadeSpec, run: Run) -> str:
    """Return what tells one version of the table from another, without parsing it."""
    data = spec.data
    if data.source == "sklearn":
        return importlib.metadata.version("scikit-learn")
    try:
        return hashlib.sha256(run.path(data.path, key="data.path").read_bytes()).hexdigest()
    except OSError as error:
        raise fail(f"cannot read: {error.strerror}", file=data.path, key="data.path") from error


def group_of_label(spec: CascadeSpec, names: Sequence[str]) -> IntArray:
    """Return the group number of each label; all 0 for a cascade of one stage.

    Raises:
        UnfoldError: a label of the data is in no group, or a group names a label that the data does not have.
    """
    target = spec.stages[0].target.groups
    if target is None:
        return np.zeros(len(names), dtype=np.int64)
    known = {str(label): number for number, labels in enumerate(target.values()) for label in labels}
    wrong = {"is in no group": set(names) - set(known), "is not in the data": set(known) - set(names)}
    for complaint, labels in wrong.items():
        if labels:
            raise fail(f"the label {min(labels)!r} {complaint}", key="stages[0].target.groups")
    return np.array([known[name] for name in names], dtype=np.int64)


def _read(spec: CascadeSpec, run: Run) -> Cases:
    frame = load_frame(spec, run)
    last = len(spec.stages) - 1
    column = spec.stages[last].target.column or ""
    text = frame.text(column, key=f"stages[{last}].target.column")
    names, labels = np.unique(text, return_inverse=True)
    # of recorded models nothing is fitted, so a label may be as rare as it is
    _check_labels(text, names, column, least=1 if spec.data.source == "recorded" else FITTED)
    rows = split_rows(text, spec.data.split, run.seed)
    words = spec.data.categories if spec.data.source == "table" else ()
    columns = {} if spec.data.source == "recorded" else expand(frame, spec.features, column, words)
    order = tuple(dict.fromkeys(name for group in columns.values() for name in group))
    _check_numeric(frame, order)
    found = Cases(rows, labels.astype(np.int64), tuple(map(str, names)), columns, order, frame.digest, frame.name)
    group_of_label(spec, found.names)
    return found


def _check_labels(text: np.ndarray, names: np.ndarray, column: str, *, least: int) -> None:
    if len(names) < 2 or len(names) > 1000:
        count = "only one value" if len(names) < 2 else f"{len(names)} different values"
        raise fail(f'the column "{column}" has {count}: it is no label', key="stages.target.column")
    counts = np.unique(text, return_counts=True)[1]
    if counts.min() < least:
        raise fail(
            f'the label "{names[counts.argmin()]}" of "{column}" occurs {counts.min()} times; '
            f"each needs at least {least} cases",
            key="stages.target.column",
            hint="leave its rows out of the file, or give them the label that they are nearest to",
        )


def _check_numeric(frame: Frame, order: Sequence[str]) -> None:
    # a word of a category is a number whatever it is
    for column in filter(frame.columns.__contains__, order):
        frame.numbers(column, key="features")


def _targets(spec: CascadeSpec) -> list[object]:
    return [dump(stage.target) for stage in spec.stages]


def _packed(found: Cases) -> bytes:
    facts = {
        "names": found.names,
        "columns": dict(found.columns),
        "order": found.order,
        "digest": found.digest,
        "source": found.source,
    }
    stream = io.BytesIO()
    parts = {"train": found.rows.train, "calibrate": found.rows.calibrate, "test": found.rows.test}
    text = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    np.savez(stream, allow_pickle=False, labels=found.labels, facts=text, **parts)
    return stream.getvalue()


def _unpacked(data: bytes) -> Cases:
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        facts = json.loads(stored["facts"].tobytes())
        rows = Rows(stored["train"], stored["calibrate"], stored["test"])
        labels = stored["labels"]
    columns = {name: tuple(values) for name, values in facts["columns"].items()}
    return Cases(rows, labels, tuple(facts["names"]), columns, tuple(facts["order"]), facts["digest"], facts["source"])
