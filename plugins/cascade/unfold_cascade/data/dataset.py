"""The data set of a spec: labels, split and columns, without features. The run stores it: ``plan`` reads no table."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, Hashes, IntArray
from unfold_cascade.data.case_order import rank_by_time
from unfold_cascade.data.changed_units import ChangedUnit, Quartiles, find_changed_units, measure_quartiles
from unfold_cascade.data.doubtful_values import CODES, Doubt, find_doubts
from unfold_cascade.data.leakage import (
    Copies,
    LabelMark,
    find_copies,
    find_label_columns,
    find_label_marks,
    hash_rows,
    hash_unique_rows,
    join_groups,
)
from unfold_cascade.data.splits import SplitRule, UnitTable, leave_out, list_sites, split_units
from unfold_cascade.data.table import (
    Frame,
    Rows,
    TableSource,
    build_matrix,
    load_frame,
    most_common_labels,
    resolve_columns,
    select_cluster_rows,
)
from unfold_cascade.data.unnamed_groups import has_unnamed_groups
from unfold_cascade.schema import cell_values
from unfoldkit.api import PERSON_COLUMNS, Run, RunDir, fingerprint, user_error
from unfoldkit.safe_io.arrays import read_npz
from unfoldkit.safe_io.files import parse_object, read_bytes

DATASET_FILE = "cases.npz"
READER_VERSION = 3
"""Increase it when tables are read or split in another way, so that stored data sets are read again."""
MIN_PATIENT_SHARE = 0.02
"""Fewer different words than this share of the rows are subjects of another kind, such as those of a school."""
MIN_CASES_PER_LABEL = 8
MIN_FOLDS = 2
MIN_CLUSTERS = 10
MAX_LABELS = 1000
INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200c\u200d\u00ad"))
LARGEST_VALUE = float(np.finfo(np.float32).max)
CORRECT = "right"
"""The one label of recorded predictions that come with scores instead of labels."""
MEASURED = "if it is a measurement, write its ranges (low, middle, high) into a label column"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetOptions:
    """What defines a data set: the table, the label column, groups of labels, feature groups, split and seed.

    ``label_groups`` are the labels of each group that the first stage decides, or ``None`` for one stage. ``features``
    are patterns of columns by feature group. ``recorded`` are the columns of recorded models: numbers, and words.
    ``groups_copies`` keeps rows that repeat others in one part of the split; ``trusted`` columns may predict the label
    on their own. ``identity`` is plain data that fingerprints the data set.
    """

    source: TableSource
    label_column: str
    label_key: str
    is_recorded: bool
    is_scored: bool
    label_groups: Mapping[str, tuple[str, ...]] | None
    features: Mapping[str, tuple[str, ...]]
    split: SplitRule
    seed: int
    identity: tuple[Any, ...]
    recorded: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    groups_copies: bool = True
    trusted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dataset:
    """The labelled rows of a table; ``unlabelled`` counts the other rows.

    Attributes:
        rows: The split.
        labels: (n,) numbers from 0 to C-1.
        names: (C,) labels.
        columns: The columns of each feature group.
        order: All columns, in the order of the feature matrix.
        digest: Hash of the table.
        source: Name of the table.
        clusters: (n,) numbers from 0, shared by rows of one ``data.group`` and by copies; ``None`` if there are none.
        identical: Rows that repeat an earlier one.
        near: Further rows that repeat one, but for one column or for tiny differences.
        leaks: Columns that predict the label on their own.
        doubts: Columns with values that may be no measurements.
        marks: Columns with a state that occurs with one label and hardly any other.
        patients: A column of patients with several rows, by which they are grouped though the spec does not name it.
        has_unnamed_groups: Whether rows lie in close groups, such as visits of patients, that no column names.
        time_rank: (n,) rank of each row in time; ``None`` where no column has times, and the order of the table counts.
        row_hashes: Hashes of rows that no other case equals by chance; ``None`` in runs of earlier versions.
        quartiles: Quartiles of the columns.
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
    identical: int = 0
    near: int = 0
    leaks: tuple[str, ...] = ()
    doubts: tuple[Doubt, ...] = ()
    marks: tuple[LabelMark, ...] = ()
    patients: str = ""
    row_hashes: Hashes | None = None
    quartiles: Quartiles = field(default_factory=dict)
    has_unnamed_groups: bool = False
    time_rank: IntArray | None = None

    def sort_by_time(self, rows: IntArray) -> IntArray:
        """Sort rows by time, or in the order of the table."""
        return np.sort(rows) if self.time_rank is None else rows[np.argsort(self.time_rank[rows])]

    def find_changed_units(self, frame: Frame) -> Iterator[ChangedUnit]:
        """Yield the columns that another table seems to hold in another unit."""
        columns = {name: frame.numbers_or_flags(name, key="features") for name in self.quartiles}
        return find_changed_units(self.quartiles, measure_quartiles(columns))

    def find_known(self, frame: Frame) -> BoolArray:
        """Mark the (m,) rows of another table that have the features of one of these rows."""
        if self.row_hashes is None or not self.order:
            return np.zeros(len(frame), dtype=np.bool_)
        return np.isin(hash_rows(build_matrix(frame, self.order, key="features")), self.row_hashes)

    @property
    def copies(self) -> int:
        """The number of rows that repeat another one."""
        return self.identical + self.near

    def column_numbers(self, groups: Sequence[str] | None) -> IntArray:
        """Number the columns of the named feature groups; of all groups if ``None``."""
        selected = self.columns if groups is None else groups
        names = dict.fromkeys(column for group in selected for column in self.columns[group])
        return np.array([self.order.index(name) for name in names], dtype=np.int64)


def load_dataset(options: DatasetOptions, run: Run) -> Dataset:
    """Load the data set from the run if it is stored there and the table is unchanged; otherwise read and store it.

    Raises:
        UnfoldError: A file, column or label is not as the spec says.
    """
    made_from = dataset_fingerprint(options)
    dataset = _unpack(run.directory.once(DATASET_FILE, made_from, lambda: _pack(read_dataset(options))))
    if all(name == cell_values.label_text(name) and not cell_values.is_unlabelled(name) for name in dataset.names):
        return dataset
    # stored by a version that took a missing value, or 1.0 beside 1, for a label
    run.directory.write(DATASET_FILE, _pack(read_dataset(options)), made_from=made_from)
    return load_stored_dataset(run.directory)


def load_stored_dataset(directory: RunDir) -> Dataset:
    """Load the data set that a run stores, without reading the table.

    Raises:
        UnfoldError: The run stores none.
    """
    with directory.decoding(DATASET_FILE, "cases") as data:
        return _unpack(data)


def dataset_fingerprint(options: DatasetOptions) -> str:
    """Compute the fingerprint of everything that defines the data set, its table included."""
    split_file = options.split.locate
    # added only where there is one, so that stored data sets keep their fingerprints
    extra = [] if split_file is None else [hash_file(split_file(), options.split.path, "data.split.file")]
    return fingerprint(*options.identity, options.seed, source_digest(options.source), READER_VERSION, *extra)


def source_digest(source: TableSource) -> str:
    """Identify the version of a table without parsing it."""
    if source.locate is None:
        return importlib.metadata.version("scikit-learn")
    return hash_file(source.locate(), source.path, "data.path")


def hash_file(file: Path, written: str, key: str) -> str:
    """Hash a file; ``written`` is its name in the spec.

    Raises:
        UnfoldError: It cannot be read.
    """
    try:
        return hashlib.sha256(read_bytes(file)).hexdigest()
    except OSError as error:
        raise user_error(f"cannot read: {error.strerror}", file=written, key=key) from error


def read_labels(options: DatasetOptions, frame: Frame) -> np.ndarray:
    """Read the (n,) labels of a table as text; of scored predictions there is one label for all.

    Raises:
        UnfoldError: There is no such column.
    """
    if options.is_scored:
        return np.full(len(frame), CORRECT)
    return frame.text(options.label_column, key=options.label_key)


def is_case(options: DatasetOptions, frame: Frame) -> BoolArray:
    """Mark the (n,) rows of a table that have a label."""
    return cell_values.has_label(read_labels(options, frame))


def load_features(options: DatasetOptions, dataset: Dataset) -> FloatArray:
    """Load the (n, d) matrix of all feature columns, in the order of ``dataset.order``."""
    frame = load_frame(options.source)
    if not dataset.order:
        return np.zeros((len(dataset.labels), 0))
    matrix: FloatArray = build_matrix(frame, dataset.order, key="features")[is_case(options, frame)]
    return matrix


def find_similar_labels(names: Sequence[str]) -> list[tuple[str, str]]:
    """Find the pairs of labels that differ only in case or in encoding, such as one answer as two sites write it."""
    forms = {name: unicodedata.normalize("NFKC", name).translate(INVISIBLE).casefold() for name in names}
    first = {forms[name]: name for name in reversed(names)}
    return [(first[forms[name]], name) for name in names if first[forms[name]] != name]


def find_missing_labels(names: Sequence[str]) -> tuple[str, ...]:
    """Find the labels, of three or more, that may mark missing ones: words, and codes far from the other numbers."""
    numbers = {name: float(name) for name in names if cell_values.is_number(name)}
    usual = [number for number in numbers.values() if number not in CODES]
    far = [name for name, number in numbers.items() if number in CODES and usual and not _is_near(number, usual)]
    found = tuple(name for name in names if name.casefold() in cell_values.MISSING_WORDS or name in far)
    return found if len(names) - len(found) > 1 else ()


def _is_near(number: float, usual: Sequence[float]) -> bool:
    reach = max(usual) - min(usual)
    return min(usual) - 1.5 * reach <= number <= max(usual) + reach


def number_label_groups(label_groups: Mapping[str, Sequence[str]] | None, names: Sequence[str]) -> IntArray:
    """Number the group of each label; all 0 for a cascade of one stage.

    Raises:
        UnfoldError: A label of the data is in no group, or a group names a label that the data do not have.
    """
    if label_groups is None:
        return np.zeros(len(names), dtype=np.int64)
    group_of = {label: number for number, labels in enumerate(label_groups.values()) for label in labels}
    errors = {"is in no group": set(names) - set(group_of), "is not in the data": set(group_of) - set(names)}
    for complaint, labels in errors.items():
        if labels:
            raise user_error(f"the label {min(labels)!r} {complaint}", key="stages[0].target.groups")
    return np.array([group_of[name] for name in names], dtype=np.int64)


def read_dataset(options: DatasetOptions) -> Dataset:
    """Read the data set from its table, whatever the run stores.

    Raises:
        UnfoldError: A file, column or label is not as the spec says.
    """
    frame, column = load_frame(options.source), options.label_column
    every_label = read_labels(options, frame)
    is_labelled = cell_values.has_label(every_label)
    text = every_label[is_labelled]
    unlabelled = len(every_label) - len(text)
    _check_unlabelled(unlabelled, len(every_label), column, frame.name)
    names, labels = np.unique(text, return_inverse=True)
    if not options.is_scored:
        # recorded models are not fitted, so their labels may be arbitrarily rare
        _check_labels(text, names, column, min_cases=1 if options.is_recorded else MIN_CASES_PER_LABEL)
    columns = {} if options.is_recorded else _resolve_feature_columns(options, frame)
    order = tuple(dict.fromkeys(name for group in columns.values() for name in group))
    clusters, copies = group_rows(options, frame, order, is_labelled)
    rows = _split(options, text, clusters, _build_units(options, frame, is_labelled, clusters))
    words = tuple(map(str, names))
    if not options.is_recorded:
        _check_training_part(labels, rows.train, words, options, clusters)
    number_label_groups(options.label_groups, words)
    leaks = find_leaks(options, frame, order, labels, is_labelled)
    patients = find_patient_column(options, frame, is_labelled)
    features = build_matrix(frame, order, key="features")[is_labelled] if order else None
    dataset = Dataset(
        rows,
        labels.astype(np.int64),
        words,
        columns,
        order,
        frame.digest,
        frame.name,
        unlabelled,
        clusters,
        copies.identical if copies else 0,
        copies.near if copies else 0,
        leaks,
        find_column_doubts(frame, order, is_labelled),
        find_marks(options, frame, order, labels, is_labelled, leaks),
        patients,
        None if features is None else hash_unique_rows(features),
        measure_quartiles({name: frame.numbers_or_flags(name, key="features")[is_labelled] for name in order}),
        not patients and features is not None and _has_unnamed_groups(options, features, clusters),
        None if (rank := rank_by_time(frame)) is None else rank[is_labelled],
    )
    if options.split.kind == "leave-out":
        # before any model is fitted: a site may be too small to leave out
        _leave_out_sites(options, frame, dataset)
    return dataset


def group_rows(
    options: DatasetOptions, frame: Frame, order: Sequence[str], selected: BoolArray
) -> tuple[IntArray | None, Copies | None]:
    """Number the clusters of the selected rows (of one group, or copies), ``None`` if there are none; find the copies.

    Raises:
        UnfoldError: A column is missing, or holds no numbers.
    """
    copies = _find_copies(options, frame, order, selected)
    column = options.source.group or find_patient_column(options, frame, selected)
    clusters = _select_clusters(read_clusters(column, frame), selected)
    if copies is not None and options.groups_copies:
        clusters = copies.unit if clusters is None else join_groups(clusters, copies.unit)
    return clusters, copies


def find_patient_column(options: DatasetOptions, frame: Frame, selected: BoolArray) -> str:
    """Name a column of patients with several rows, where ``data.group`` names none; empty if there is none.

    Raises:
        UnfoldError: A spreadsheet rounded such a column.
    """
    if options.source.group or not options.groups_copies:
        return ""
    for name in frame.columns:
        if name.lower() in PERSON_COLUMNS and name not in (options.label_column, options.split.column):
            words = map(str, frame.identifiers(name, key="data.group")[selected])
            known = [word for word in words if not cell_values.is_missing(word)]
            if MIN_PATIENT_SHARE * len(known) <= len(set(known)) < len(known):
                return name
    return ""


def _find_copies(options: DatasetOptions, frame: Frame, order: Sequence[str], selected: BoolArray) -> Copies | None:
    """Find copies among the selected rows: by their features, or by what recorded models returned for them."""
    if not options.is_recorded:
        return find_copies(build_matrix(frame, order, key="features")[selected]) if order else None
    numbers, words = options.recorded
    present = [[name for name in dict.fromkeys(names) if name in frame.columns] for names in (numbers, words)]
    if not present[0]:
        return None
    values = np.column_stack([frame.numbers_or_flags(name, key="data.path") for name in present[0]])
    texts = [frame.text(name, key="data.path")[selected] for name in present[1]]
    labels = [] if options.is_scored else [read_labels(options, frame)[selected]]
    # confidences of good models crowd near 1, where independent cases are as close as noisy copies
    return find_copies(values[selected], [*texts, *labels], finds_noisy=False)


def find_leaks(
    options: DatasetOptions, frame: Frame, order: Sequence[str], labels: IntArray, selected: BoolArray
) -> tuple[str, ...]:
    """Find the feature columns that predict the label on their own, except for trusted ones."""
    if options.is_recorded:
        return ()
    columns = {
        name: frame.numbers_or_flags(name, key="features")[selected] for name in order if name not in options.trusted
    }
    return find_label_columns(columns, labels)


def find_marks(
    options: DatasetOptions,
    frame: Frame,
    order: Sequence[str],
    labels: IntArray,
    selected: BoolArray,
    leaks: Sequence[str],
) -> tuple[LabelMark, ...]:
    """Find the feature columns that mark a label, except for trusted ones and for leaks, which are refused."""
    if options.is_recorded:
        return ()
    names = [name for name in order if name not in options.trusted and name not in leaks]
    return find_label_marks({name: frame.numbers_or_flags(name, key="features")[selected] for name in names}, labels)


def _has_unnamed_groups(options: DatasetOptions, features: FloatArray, clusters: IntArray | None) -> bool:
    """Whether distinct rows lie in close groups, where the spec names none."""
    if options.source.group or not options.groups_copies:
        return False
    return has_unnamed_groups(features if clusters is None else features[np.unique(clusters, return_index=True)[1]])


def find_column_doubts(frame: Frame, order: Sequence[str], selected: BoolArray) -> tuple[Doubt, ...]:
    """Find the feature columns with values that may be no measurements."""
    return find_doubts({name: frame.numbers_or_flags(name, key="features")[selected] for name in order})


def read_clusters(column: str, frame: Frame) -> IntArray | None:
    """Number the (n,) clusters of a table; a row without a value is its own cluster. ``None`` without a column.

    Raises:
        UnfoldError: There is no such column, it has no value, or a spreadsheet rounded it.
    """
    if not column:
        return None
    groups = frame.identifiers(column, key="data.group")
    require_groups(column, groups)
    words = [f"row {row}" if cell_values.is_missing(str(word)) else f"group {word}" for row, word in enumerate(groups)]
    clusters: IntArray = np.unique(words, return_inverse=True)[1].astype(np.int64)
    return clusters


def require_groups(column: str, groups: Iterable[object]) -> None:
    """Check that some row has a group: without any, all rows would count as independent, as if no column were named.

    Raises:
        UnfoldError: None has.
    """
    if all(cell_values.is_missing(str(word).strip()) for word in groups):
        hint = "name the column that says which rows belong together, or leave group out"
        raise user_error(f"{column} has no value in any row", key="data.group", hint=hint)


def _select_clusters(clusters: IntArray | None, selected: BoolArray) -> IntArray | None:
    """Renumber the clusters of the selected rows from 0."""
    return None if clusters is None else np.unique(clusters[selected], return_inverse=True)[1].astype(np.int64)


def _split(options: DatasetOptions, text: np.ndarray, clusters: IntArray | None, units: UnitTable) -> Rows:
    """Split the cases by whole units; random parts are stratified by the most common label of a unit.

    Raises:
        UnfoldError: There are too few clusters for three parts, or the table is not as the split needs it.
    """
    if clusters is None:
        return split_units(options.split, text, units, options.seed)
    count = len(units.names)
    if count < MIN_CLUSTERS:
        source = f'the column "{options.source.group}" has' if options.source.group else "the rows are copies of"
        what = "groups" if options.source.group else "distinct rows"
        message = f"{source} {count} {what}; at least {MIN_CLUSTERS} are needed"
        raise user_error(message, key="data.group", hint="rows are split and certified by whole groups")
    strata = most_common_labels(text, clusters)
    return select_cluster_rows(clusters, split_units(options.split, strata, units, options.seed))


def leave_out_sites(options: DatasetOptions, dataset: Dataset) -> dict[str, Dataset]:
    """Split a data set once for each site of ``data.split``, which is its test part.

    Columns, copies and leaks are those of the whole table, and are not searched again.

    Raises:
        UnfoldError: The column is missing, a site is too small, or without a site a label is too rare.
    """
    return _leave_out_sites(options, load_frame(options.source), dataset)


def _leave_out_sites(options: DatasetOptions, frame: Frame, dataset: Dataset) -> dict[str, Dataset]:
    labels, clusters, text = dataset.labels, dataset.clusters, np.array(dataset.names)[dataset.labels]
    units = _build_units(options, frame, is_case(options, frame), clusters)
    by_site = {}
    for site in list_sites(options.split.column, units)[1]:
        rows = _split(replace(options, split=leave_out(options.split, site)), text, clusters, units)
        if not options.is_recorded:
            _check_training_part(labels, rows.train, dataset.names, options, clusters, without=site)
        by_site[site] = replace(dataset, rows=rows)
    return by_site


def _build_units(options: DatasetOptions, frame: Frame, is_labelled: BoolArray, clusters: IntArray | None) -> UnitTable:
    """Describe what is split as a whole: the labelled rows, or their clusters."""
    numbers = np.flatnonzero(is_labelled) + 1
    unit = np.arange(len(numbers)) if clusters is None else clusters
    # without a group column, a unit is named by its first row
    words = frame.text(options.source.group, key="data.group")[is_labelled] if options.source.group else numbers
    names = list(map(str, words[np.unique(unit, return_index=True)[1]].tolist()))

    def read(column: str) -> np.ndarray:
        frame.text(column, key="data.split")
        return np.asarray(frame.columns[column])[is_labelled]

    noun = "row" if clusters is None else "group"
    # copies of a row may come from several sites: then none of them tests what another one trained
    is_strict = bool(options.source.group)
    return UnitTable(
        unit=unit, names=names, read=read, noun=noun, table=frame.name, is_strict=is_strict, key=options.source.group
    )


def _resolve_feature_columns(options: DatasetOptions, frame: Frame) -> dict[str, tuple[str, ...]]:
    """Resolve the columns of each feature group and check that they hold numbers."""
    source = options.source
    # a misspelt name would leave the real column among the features, and the error would be about its cells
    for name, key in ((source.group, "data.group"), (options.split.column, "data.split")):
        if name:
            frame.text(name, key=key)
    # without feature groups all other columns are features, but neither the site nor the time of a split
    unused = "" if options.features else options.split.column
    columns = resolve_columns(frame, options.features, options.label_column, source.categories, (source.group, unused))
    if not any(columns.values()):
        raise user_error(f"{frame.name} has no column that a model could read", key="data.path", file="")
    for column in dict.fromkeys(name for group in columns.values() for name in group):
        # an indicator of a category is numeric by construction
        if column in frame.columns:
            check_size(frame, column, frame.numbers_or_flags(column, key="features"))
    return columns


def check_size(frame: Frame, column: str, values: FloatArray, limit: float = LARGEST_VALUE) -> None:
    """Raise when a value is beyond single precision, which trees read: often it marks a missing value."""
    large = np.flatnonzero(np.abs(values) > limit)
    if len(large):
        cell = f'"{frame.columns[column][large[0]]}" in row {large[0] + 1} of column "{column}"'
        hint = "rescale the column, or leave the cell empty where it marks a missing value"
        raise user_error(f"{frame.name}: {cell} is too large for a model", key="features", hint=hint)


def _check_unlabelled(unlabelled: int, rows: int, column: str, name: str) -> None:
    if 2 * unlabelled > rows:
        marks = ", ".join(sorted(filter(None, cell_values.MISSING - cell_values.LABEL_MARKS)))
        raise user_error(
            f'{unlabelled} of {rows} rows of {name} have no label in the column "{column}"',
            key="stages.target.column",
            hint=f"empty cells and these, in any case, are missing: {marks}; if one is a label, write another word",
        )


def _check_labels(text: np.ndarray, names: np.ndarray, column: str, *, min_cases: int) -> None:
    """Raise when a column has too few or too many labels, or one that is too rare."""
    counts = np.unique(text, return_counts=True)[1]
    is_mostly_rare = bool(2 * (counts < MIN_CASES_PER_LABEL).sum() > len(names))
    is_measured = is_mostly_rare and all(map(cell_values.is_number, names.tolist()))
    if len(names) < 2 or len(names) > MAX_LABELS:
        count = "only one value" if len(names) < 2 else f"{len(names)} different values"
        hint = MEASURED if is_measured and len(names) > 1 else ""
        raise user_error(f'the column "{column}" has {count}: it is not a label', key="stages.target.column", hint=hint)
    if counts.min() < min_cases:
        times = "once" if counts.min() == 1 else f"{counts.min()} times"
        rare_hint = "remove its rows from the file, or give them another label"
        raise user_error(
            f'the label "{names[counts.argmin()]}" of "{column}" occurs {times}; each needs at least {min_cases} cases',
            key="stages.target.column",
            hint=MEASURED if is_measured else rare_hint,
        )


def _check_training_part(
    labels: IntArray,
    train: IntArray,
    names: Sequence[str],
    options: DatasetOptions,
    clusters: IntArray | None,
    *,
    without: str = "",
) -> None:
    """Raise when a label is too rare in the training part (``without`` a site) for out-of-fold predictions."""
    column, part = options.label_column, f'training without "{without}"' if without else "the training part"
    site_hint = f'join "{without}" with another site, or leave no site out' if without else ""
    if clusters is not None:
        _check_training_clusters(labels[train], clusters[train], names, column, part, site_hint)
        return
    counts = np.bincount(labels[train], minlength=len(names))
    rare = int(counts.argmin())
    if counts[rare] < MIN_FOLDS:
        total, is_random = int((labels == rare).sum()), options.split.kind == "random"
        enough = next(percent for percent in range(1, 101) if round(total * percent / 100) >= MIN_FOLDS)
        hint = (f"train: {enough}% puts {MIN_FOLDS} there; or " if is_random else "") + "add cases of this label"
        raise user_error(
            f'the label "{names[rare]}" of "{column}" has {counts[rare]} of its {total} cases in {part}; '
            f"each needs at least {MIN_FOLDS} there",
            key="data.split.train" if is_random else "data.split",
            hint=site_hint or hint,
        )


def _check_training_clusters(
    labels: IntArray, clusters: IntArray, names: Sequence[str], column: str, part: str, site_hint: str
) -> None:
    for label, name in enumerate(names):
        count = len(np.unique(clusters[labels == label]))
        if count < MIN_FOLDS:
            raise user_error(
                f'the label "{name}" of "{column}" has {count} groups in {part}; it needs {MIN_FOLDS}',
                key="data.split" if site_hint else "data.group",
                hint=site_hint or "remove its rows from the file, or give them another label",
            )


def _pack(dataset: Dataset) -> bytes:
    facts = {
        "names": dataset.names,
        "columns": dict(dataset.columns),
        "order": dataset.order,
        "digest": dataset.digest,
        "source": dataset.source,
        "unlabelled": dataset.unlabelled,
        "identical": dataset.identical,
        "near": dataset.near,
        "leaks": dataset.leaks,
        "doubts": [astuple(doubt) for doubt in dataset.doubts],
        "marks": [astuple(mark) for mark in dataset.marks],
        "patients": dataset.patients,
        "quartiles": dict(dataset.quartiles),
        "has_unnamed_groups": dataset.has_unnamed_groups,
    }
    arrays: dict[str, IntArray | Hashes] = {
        "train": dataset.rows.train,
        "calibrate": dataset.rows.calibrate,
        "test": dataset.rows.test,
    }
    if dataset.clusters is not None:
        arrays["clusters"] = dataset.clusters
    if dataset.row_hashes is not None:
        arrays["row_hashes"] = dataset.row_hashes
    if dataset.time_rank is not None:
        arrays["time_rank"] = dataset.time_rank
    stream = io.BytesIO()
    text = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    np.savez(stream, allow_pickle=False, labels=dataset.labels, facts=text, **arrays)
    return stream.getvalue()


def _unpack(data: bytes) -> Dataset:
    stored = read_npz(data)
    facts = parse_object(stored["facts"].tobytes())
    return Dataset(
        Rows(stored["train"], stored["calibrate"], stored["test"]),
        stored["labels"],
        tuple(facts["names"]),
        {name: tuple(values) for name, values in facts["columns"].items()},
        tuple(facts["order"]),
        facts["digest"],
        facts["source"],
        facts.get("unlabelled", 0),
        stored.get("clusters"),
        facts.get("identical", 0),
        facts.get("near", 0),
        tuple(facts.get("leaks", ())),
        tuple(Doubt(*doubt) for doubt in facts.get("doubts", ())),
        tuple(LabelMark(*mark) for mark in facts.get("marks", ())),
        facts.get("patients", ""),
        stored.get("row_hashes"),
        facts.get("quartiles", {}),
        facts.get("has_unnamed_groups", False),
        stored.get("time_rank"),
    )
