"""The cases of a spec without their features: labels, split, columns; kept in the run, so `plan` reads no table."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.data.table import Frame, Rows, expand, load_frame, matrix, split_clusters, split_rows
from unfold_cascade.schema import cells
from unfold_cascade.schema.models import CascadeSpec
from unfoldkit.api import Run, dump, fail, fingerprint
from unfoldkit.safe_io.arrays import read_npz
from unfoldkit.safe_io.files import parse_object, read_bytes

FILE = "cases.npz"
FITTED = 8
FOLDED = 2
LEAST_GROUPS = 10
RIGHT = "right"
MEASURED = "if it is a measured number, write ranges of it into a column (low, middle, high): those are labels"


@dataclass(frozen=True, slots=True)
class Cases:
    """The rows of a spec that have a label; ``unlabelled`` counts those of the table that have none.

    ``labels`` (n,) are numbers from 0 to C-1 with ``names``; ``columns`` the columns of each feature group and
    ``order`` all of them, as they stand in the matrix of features; ``digest`` is a hash of the table. ``clusters``
    (n,) are numbers from 0 that rows of one ``data.group`` share; ``None`` where each row stands alone.
    """

    rows: Rows
    labels: IntArray
    names: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]
    order: tuple[str, ...]
    digest: str
    source: str
    unlabelled: int = 0
    clusters: IntArray | None = None

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
    made = made_from(spec, run)
    found = _unpacked(run.directory.once(FILE, made, lambda: _packed(read(spec, run))))
    if all(name == cells.label_text(name) and not cells.is_unlabelled(name) for name in found.names):
        return found
    # kept by a version that took a gap, or 1.0 beside 1, for a label of its own
    run.directory.write(FILE, _packed(read(spec, run)), made_from=made)
    return stored_cases(run)


def labels_of(spec: CascadeSpec, frame: Frame) -> np.ndarray:
    """Return (n,) the label of each row of a table as text; where scores say what is right, one for all.

    Raises:
        UnfoldError: there is no such column.
    """
    last = len(spec.stages) - 1
    if spec.scored:
        return np.full(len(frame), RIGHT)
    return frame.text(spec.stages[last].target.column or "", key=f"stages[{last}].target.column")


def labelled(spec: CascadeSpec, frame: Frame) -> BoolArray:
    """Return (n,) which rows of a table are cases: those with a label."""
    return cells.known(labels_of(spec, frame))


def left_out(given: Cases) -> tuple[str, ...]:
    """Return what a report notes of rows that are no cases."""
    count = given.unlabelled
    return (f"{count:,} row{'s' * (count > 1)} of {given.source} without a label left out",) if count else ()


def made_from(spec: CascadeSpec, run: Run) -> str:
    """Return the fingerprint of what the cases of a spec are made from."""
    return fingerprint(dump(spec.data), _targets(spec), dump_features(spec), run.seed, source_digest(spec, run))


def stored_cases(run: Run) -> Cases:
    """Return the cases as they stand in the run, without a look at the table.

    Raises:
        UnfoldError: the run holds none.
    """
    with run.directory.decoding(FILE, "cases") as data:
        return _unpacked(data)


def features(spec: CascadeSpec, run: Run, given: Cases) -> FloatArray:
    """Return the (n, d) matrix of all feature columns of the cases, in ``given.order``."""
    frame = load_frame(spec, run)
    if not given.order:
        return np.zeros((len(given.labels), 0))
    found: FloatArray = matrix(frame, given.order, key="features")[labelled(spec, frame)]
    return found


def dump_features(spec: CascadeSpec) -> object:
    """Return the feature groups as plain data, without their prices: prices change no model."""
    return {name: list(group.columns) for name, group in spec.features.items()}


def source_digest(spec: CascadeSpec, run: Run) -> str:
    """Return what tells one version of the table from another, without parsing it."""
    data = spec.data
    if data.source == "sklearn":
        return importlib.metadata.version("scikit-learn")
    try:
        return hashlib.sha256(read_bytes(run.path(data.path, key="data.path"))).hexdigest()
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
    known = {cells.label_text(label): number for number, labels in enumerate(target.values()) for label in labels}
    wrong = {"is in no group": set(names) - set(known), "is not in the data": set(known) - set(names)}
    for complaint, labels in wrong.items():
        if labels:
            raise fail(f"the label {min(labels)!r} {complaint}", key="stages[0].target.groups")
    return np.array([known[name] for name in names], dtype=np.int64)


def read(spec: CascadeSpec, run: Run) -> Cases:
    """Return the cases as the table has them, whatever the run holds.

    Raises:
        UnfoldError: a file, column or label is not as the spec says.
    """
    frame = load_frame(spec, run)
    column, recorded = spec.stages[-1].target.column or "", spec.data.source == "recorded"
    every = labels_of(spec, frame)
    text = every[cells.known(every)]
    unlabelled = len(every) - len(text)
    _check_known(unlabelled, len(every), column, frame.name)
    names, labels = np.unique(text, return_inverse=True)
    if not spec.scored:
        # of recorded models nothing is fitted, so a label may be as rare as it is
        _check_labels(text, names, column, least=1 if recorded else FITTED)
    clusters = _of_cases(clusters_of(spec, frame), cells.known(every))
    rows = _split(spec, text, clusters, run.seed)
    if not recorded:
        _check_train(labels, rows.train, names, column, clusters)
    columns = {} if recorded else _columns(spec, frame, column)
    order = tuple(dict.fromkeys(name for group in columns.values() for name in group))
    words = tuple(map(str, names))
    group_of_label(spec, words)
    return Cases(rows, labels.astype(np.int64), words, columns, order, frame.digest, frame.name, unlabelled, clusters)


def _of_cases(clusters: IntArray | None, known: BoolArray) -> IntArray | None:
    """Return the clusters of the rows that are cases, numbered from 0 again."""
    return None if clusters is None else np.unique(clusters[known], return_inverse=True)[1].astype(np.int64)


def clusters_of(spec: CascadeSpec, frame: Frame) -> IntArray | None:
    """Return (n,) the cluster of each row of a table, if its spec names groups; a row without one stands alone.

    Raises:
        UnfoldError: there is no such column.
    """
    if spec.group is None:
        return None
    text = frame.text(spec.group, key="data.group")
    alone = (cells.is_missing(str(word)) for word in text)
    words = [f"row {row}" if one else f"group {word}" for row, (word, one) in enumerate(zip(text, alone, strict=True))]
    found: IntArray = np.unique(words, return_inverse=True)[1].astype(np.int64)
    return found


def _split(spec: CascadeSpec, text: np.ndarray, clusters: IntArray | None, seed: int) -> Rows:
    """Return the parts, each cluster in one.

    Raises:
        UnfoldError: there are too few clusters for three parts.
    """
    if clusters is None:
        return split_rows(text, spec.data.split, seed)
    count = int(clusters.max()) + 1
    if count < LEAST_GROUPS:
        message = f'the column "{spec.group}" has {count} groups; at least {LEAST_GROUPS} are needed'
        raise fail(message, key="data.group", hint="rows are split and certified by whole groups")
    return split_clusters(text, clusters, spec.data.split, seed)


def _columns(spec: CascadeSpec, frame: Frame, label: str) -> dict[str, tuple[str, ...]]:
    """Return the columns of each feature group; all of them hold numbers."""
    words = spec.data.categories if spec.data.source == "table" else ()
    found = expand(frame, spec.features, label, words, spec.group or "")
    _check_numeric(frame, tuple(dict.fromkeys(name for group in found.values() for name in group)))
    return found


def _check_known(unlabelled: int, rows: int, column: str, name: str) -> None:
    if 2 * unlabelled > rows:
        marks = ", ".join(sorted(filter(None, cells.MISSING - cells.MEANT)))
        raise fail(
            f'{unlabelled} of {rows} rows of {name} have no label in the column "{column}"',
            key="stages.target.column",
            hint=f"empty and these, in any case, are none: {marks}; if one is meant as a label, write another word",
        )


def _check_labels(text: np.ndarray, names: np.ndarray, column: str, *, least: int) -> None:
    counts = np.unique(text, return_counts=True)[1]
    measured = bool(2 * (counts < FITTED).sum() > len(names)) and all(map(cells.is_number, names.tolist()))
    if len(names) < 2 or len(names) > 1000:
        count = "only one value" if len(names) < 2 else f"{len(names)} different values"
        hint = MEASURED if measured and len(names) > 1 else ""
        raise fail(f'the column "{column}" has {count}: it is no label', key="stages.target.column", hint=hint)
    if counts.min() < least:
        raise fail(
            f'the label "{names[counts.argmin()]}" of "{column}" occurs {counts.min()} times; '
            f"each needs at least {least} cases",
            key="stages.target.column",
            hint=MEASURED
            if measured
            else "leave its rows out of the file, or give them the label that they are nearest to",
        )


def _check_train(labels: IntArray, train: IntArray, names: np.ndarray, column: str, clusters: IntArray | None) -> None:
    """Raise when a label is too rare in the training part for out-of-fold answers."""
    if clusters is not None:
        _check_groups(labels[train], clusters[train], names, column)
        return
    counts = np.bincount(labels[train], minlength=len(names))
    rare = int(counts.argmin())
    if counts[rare] < FOLDED:
        total = int((labels == rare).sum())
        least = next(percent for percent in range(1, 101) if round(total * percent / 100) >= FOLDED)
        raise fail(
            f'the label "{names[rare]}" of "{column}" has {counts[rare]} of its {total} cases in the training part; '
            f"each needs at least {FOLDED} there",
            key="data.split.train",
            hint=f"train: {least}% puts {FOLDED} there; so do more cases of this label",
        )


def _check_groups(labels: IntArray, clusters: IntArray, names: np.ndarray, column: str) -> None:
    for label, name in enumerate(names):
        found = len(np.unique(clusters[labels == label]))
        if found < FOLDED:
            message = f'the label "{name}" of "{column}" has {found} groups in the training part; it needs {FOLDED}'
            raise fail(message, key="data.group", hint="leave its rows out of the file, or give them another label")


def _check_numeric(frame: Frame, order: Sequence[str]) -> None:
    # a word of a category is a number whatever it is
    for column in filter(frame.columns.__contains__, order):
        frame.flags(column, key="features")


def _targets(spec: CascadeSpec) -> list[object]:
    return [dump(stage.target) for stage in spec.stages]


def _packed(found: Cases) -> bytes:
    facts = {
        "names": found.names,
        "columns": dict(found.columns),
        "order": found.order,
        "digest": found.digest,
        "source": found.source,
        "unlabelled": found.unlabelled,
    }
    stream = io.BytesIO()
    parts = {"train": found.rows.train, "calibrate": found.rows.calibrate, "test": found.rows.test}
    text = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    if found.clusters is not None:
        parts["clusters"] = found.clusters
    np.savez(stream, allow_pickle=False, labels=found.labels, facts=text, **parts)
    return stream.getvalue()


def _unpacked(data: bytes) -> Cases:
    stored = read_npz(data)
    facts = parse_object(stored["facts"].tobytes())
    rows = Rows(stored["train"], stored["calibrate"], stored["test"])
    labels, clusters = stored["labels"], stored.get("clusters")
    columns = {name: tuple(values) for name, values in facts["columns"].items()}
    told = facts["digest"], facts["source"], facts.get("unlabelled", 0)
    return Cases(rows, labels, tuple(facts["names"]), columns, tuple(facts["order"]), *told, clusters)
