"""Tables of cases: reading CSV, Parquet and JSON Lines, resolving feature columns, and splitting rows."""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.data import jsonl
from unfold_cascade.data.evaluations import reader as evaluations
from unfold_cascade.data.evaluations.inspect_log import ARCHIVE_SUFFIX
from unfold_cascade.schema import cell_values
from unfoldkit.api import (
    Diagnostic,
    UnfoldError,
    csv_lines,
    decode_text,
    did_you_mean,
    format_count,
    require_packages,
    user_error,
)
from unfoldkit.io.tables import parse_parquet, reject_foreign
from unfoldkit.safe_io.archives import gunzip
from unfoldkit.safe_io.files import read_bytes

INDICATOR = "="
MAX_CATEGORIES = 200
MIN_ROWS = 10
MIN_CORRECT_SCORE = 0.5
NAMES_FIRST = "remove the lines above the names of the columns"
ROUNDING = 1e-6
PROMPTFOO_JSON = "promptfoo eval --output results.json"
PROMPTFOO_VERDICTS = ("[PASS]", "[FAIL]", "[ERROR]")
YAML_SUFFIXES = frozenset({".yaml", ".yml"})
BOOLEANS: Mapping[str, float] = {"true": 1.0, "false": 0.0}


class SplitShares(Protocol):
    """Shares of the cases in each part; they add up to 1."""

    @property
    def train(self) -> float:
        """Share for fitting and tuning."""

    @property
    def calibrate(self) -> float:
        """Share for the certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSource:
    """The table that a spec names: a file, or (``bundled``) a data set of scikit-learn.

    ``path`` is the file as the spec writes it; ``locate`` finds it, and is called only when the table is read.
    ``categories`` are patterns of categorical columns; ``allows_categories`` says whether the spec may name some.
    ``group`` is the column of clusters, or empty.
    """

    path: str = ""
    locate: Callable[[], Path] | None = None
    bundled: str = ""
    allows_categories: bool = False
    categories: tuple[str, ...] = ()
    group: str = ""


@dataclass(frozen=True, slots=True)
class Frame:
    """Columns of text or numbers, all of the same length; ``digest`` is a hash of the content.

    ``allows_categories`` says whether ``data.categories`` may name its columns.
    """

    columns: Mapping[str, np.ndarray]
    digest: str
    name: str
    allows_categories: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def text(self, column: str, *, key: str) -> np.ndarray:
        """Read a column as text, each value in the form of ``cell_values.label_text``.

        Every cell takes the room of the longest one: use ``long_texts`` for prompts and answers.

        Raises:
            UnfoldError: There is no such column.
        """
        return np.array(self.long_texts(column, key=key), dtype=np.str_)

    def long_texts(self, column: str, *, key: str) -> list[str]:
        """Read a column as text as ``text`` does, in the room that each cell needs.

        Raises:
            UnfoldError: There is no such column.
        """
        if column not in self.columns:
            raise user_error(f'{self.name} has no column "{column}"', key=key, hint=did_you_mean(column, self.columns))
        return [cell_values.label_text(value) for value in self.columns[column]]

    def identifiers(self, column: str, *, key: str) -> np.ndarray:
        """Read a column that identifies patients, customers or other groups, as text.

        Raises:
            UnfoldError: There is no such column, or a spreadsheet rounded what it holds.
        """
        text = self.text(column, key=key)
        rounded = cell_values.find_rounded(text)
        if rounded:
            message = f'{self.name}: a spreadsheet shortened the identifiers of column "{column}", such as {rounded}'
            hint = f"different ones look the same now: export {column} as text, or leave it out if none has two rows"
            raise user_error(message, key=key, hint=hint)
        return text

    def numbers(self, column: str, *, key: str) -> FloatArray:
        """Read a column as float64, NaN for an empty cell. ``COLUMN=WORD`` is the indicator of one category.

        Raises:
            UnfoldError: There is no such column, or a value is not a number; the error names the row.
        """
        if column not in self.columns:
            category = next((name for name in self.columns if column.startswith(name + INDICATOR)), column)
            word = cell_values.label_text(column.removeprefix(category + INDICATOR))
            return np.asarray(self.text(category, key=key) == word, dtype=np.float64)
        return cell_values.parse_numbers(self.columns[column], self._cell_source(column, key))

    def prices(self, column: str, may_be_empty: BoolArray, *, key: str) -> FloatArray:
        """Read a column of prices; an empty cell is 0 where (n,) ``may_be_empty`` allows it.

        Raises:
            UnfoldError: There is no such column, or a price is missing, negative or not a number.
        """
        price = self.numbers(column, key=key)
        invalid = np.flatnonzero((price < 0) | (np.isnan(price) & ~may_be_empty))
        if len(invalid):
            row = int(invalid[0])
            place = f'{self.name}: row {row + 1} of column "{column}"'
            if price[row] < 0:
                raise user_error(f"{place} has the negative price {price[row]:g}", key=key)
            hint = "an empty cell is unknown, not free; write 0 for a free call"
            raise user_error(f"{place} has no price", key=key, hint=hint)
        return np.nan_to_num(price)

    def numbers_or_flags(self, column: str, *, key: str) -> FloatArray:
        """Read a column of numbers, or of ``true`` and ``false`` as 1 and 0; an empty cell is NaN."""
        values = self.columns.get(column, ())
        words = (str(cell).strip().lower() for cell in values)
        # the first non-missing cell identifies a column of numbers without reading the others
        if next((word for word in words if word not in cell_values.MISSING), "") not in BOOLEANS:
            return self.numbers(column, key=key)
        if not {word for word in words if word not in cell_values.MISSING} <= set(BOOLEANS):
            return self.numbers(column, key=key)
        return np.array([BOOLEANS.get(str(cell).strip().lower(), np.nan) for cell in values])

    def judgements(self, column: str, right_from: float | None, *, key: str) -> FloatArray:
        """Read a column of scores of answers: 1 where right, 0 where wrong, NaN where there is no score.

        Args:
            column: 0 and 1, ``true`` and ``false``, or points.
            right_from: The least score of a right answer; ``None``: one half, of scores from 0 to 1.
            key: Spec key of the column.

        Raises:
            UnfoldError: There is no such column, a cell is not a number, or the scale has no threshold.
        """
        score = self.numbers_or_flags(column, key=key)
        outside = np.flatnonzero((score < -ROUNDING) | (score > 1.0 + ROUNDING))
        if right_from is None and len(outside):
            row = int(outside[0])
            message = f'{self.name}: row {row + 1} of column "{column}" holds {score[row]:g}, beyond 0 to 1'
            hint = "right_from: 7 is the least score of a right answer; leave the cell empty where no judge scored it"
            raise user_error(message, key=key, hint=hint)
        threshold = MIN_CORRECT_SCORE if right_from is None else right_from
        return np.where(np.isnan(score), np.nan, score >= threshold)

    def dates(self, column: str, *, key: str) -> FloatArray | None:
        """Read a column of dates in seconds since 1970; ``None`` if it holds no dates.

        Raises:
            UnfoldError: There is no such column, or only some of its cells are dates.
        """
        self.text(column, key=key)
        return cell_values.parse_seconds(self.columns[column], self._cell_source(column, key))

    def _cell_source(self, column: str, key: str) -> cell_values.CellSource:
        return cell_values.CellSource(self.name, column, key, self.allows_categories)


@dataclass(frozen=True, slots=True)
class Rows:
    """Row numbers of the three parts of a split; each sorted, together all rows once."""

    train: IntArray
    calibrate: IntArray
    test: IntArray


def load_frame(source: TableSource) -> Frame:
    """Load the table of a spec.

    Raises:
        UnfoldError: The file is missing, not a table, or too short.
    """
    if source.locate is None:
        return _load_bundled(source.bundled)
    return dataclasses.replace(frame_of_file(source.locate()), allows_categories=source.allows_categories)


def frame_of_file(path: Path) -> Frame:
    """Load a CSV, Parquet or JSON Lines file, or the results of an evaluation: a folder, or a file of one.

    Raises:
        UnfoldError: Not such a file, or fewer than ten rows.
    """
    reject_foreign(path)
    if path.suffix.lower() in YAML_SUFFIXES:
        hint = f"use CSV, Parquet or JSON Lines; of promptfoo, {PROMPTFOO_JSON}"
        raise user_error(f"{path.name} is YAML, not a table", key="data.path", file="", hint=hint)
    frame = _find_reader(path)(path)
    if any(str(values[0]).startswith(PROMPTFOO_VERDICTS) for values in frame.columns.values() if len(values)):
        message = f"{path.name} is a table of promptfoo: its cells join verdict and answer"
        raise user_error(message, key="data.path", file="", hint=PROMPTFOO_JSON)
    if {"doc_id", "filtered_resps"} <= frame.columns.keys():
        message = f"{path.name} holds the samples of one model"
        raise user_error(message, key="data.path", file="", hint=evaluations.LAYOUT)
    if "resourceType" in frame.columns:
        hint = "write one row per case, with a column for each measurement"
        raise user_error(f"{path.name} holds FHIR resources, not cases", key="data.path", file="", hint=hint)
    if len(frame) < MIN_ROWS:
        message = f"{path.name} has {format_count(len(frame), 'row')}; at least {MIN_ROWS} are needed"
        hint = jsonl.LAYOUT if path.name.endswith(jsonl.ENDINGS) else ""
        raise user_error(message, key="data.path", file="", hint=hint)
    return frame


def _find_reader(path: Path) -> Callable[[Path], Frame]:
    if path.is_dir() or path.suffix == ARCHIVE_SUFFIX:
        return _read_evaluations
    if path.suffix == ".parquet":
        return _read_parquet
    return _read_jsonl if path.name.endswith(jsonl.ENDINGS) else _read_csv


def build_matrix(frame: Frame, columns: Sequence[str], *, key: str) -> FloatArray:
    """Build the (n, d) float64 matrix of the named columns; ``true`` and ``false`` are 1 and 0."""
    return np.column_stack([frame.numbers_or_flags(column, key=key) for column in columns])


def resolve_columns(
    frame: Frame,
    groups: Mapping[str, Sequence[str]],
    label: str,
    categories: Sequence[str] = (),
    excluded: Sequence[str] = (),
) -> dict[str, tuple[str, ...]]:
    """Resolve the patterns of each feature group into columns; without groups, one group holds every named column.

    Args:
        frame: The table.
        groups: Names or patterns of columns, by feature group.
        label: The label column, which is not a feature.
        categories: Names or patterns of categorical columns; each is replaced by indicators ``COLUMN=WORD``.
        excluded: Other columns that are not features, such as that of clusters.

    Raises:
        UnfoldError: A pattern matches no column, or a category has too many values.
    """
    # a column without a name holds the row numbers of pandas
    usable = [column for column in frame.columns if column not in ("", label, *excluded)]
    indicators = {
        column: _list_indicators(frame, column)
        for column in _match_columns(frame, usable, "data.categories", categories)
    }
    matches = {
        name: _match_columns(frame, usable, f"features.{name}.columns", patterns) for name, patterns in groups.items()
    }
    matches = matches or {"all": tuple(usable)}
    return {
        name: tuple(part for column in columns for part in indicators.get(column, (column,)))
        for name, columns in matches.items()
    }


def split_rows(labels: np.ndarray, split: SplitShares, seed: int) -> Rows:
    """Split rows at random, stratified by label (within one case), reproducibly for a seed."""
    generator = np.random.default_rng([seed, 0x5711])
    parts: dict[str, list[IntArray]] = {"train": [], "calibrate": [], "test": []}
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        ends = [round(len(rows) * split.train), round(len(rows) * (split.train + split.calibrate))]
        for name, part in zip(parts, np.split(rows, ends), strict=True):
            parts[name].append(part)
    return Rows(**{name: np.sort(np.concatenate(chunks)) for name, chunks in parts.items()})


def split_clusters(labels: np.ndarray, clusters: IntArray, split: SplitShares, seed: int) -> Rows:
    """Split rows by whole clusters, stratified by the most common label of each cluster."""
    return select_cluster_rows(clusters, split_rows(most_common_labels(labels, clusters), split, seed))


def most_common_labels(labels: np.ndarray, clusters: IntArray) -> np.ndarray:
    """Find the most common of the (n,) labels in each cluster."""
    classes, label = np.unique(labels, return_inverse=True)
    count = np.zeros((int(clusters.max()) + 1, len(classes)), dtype=np.int64)
    np.add.at(count, (clusters, label), 1)
    common: np.ndarray = classes[count.argmax(axis=1)]
    return common


def select_cluster_rows(clusters: IntArray, parts: Rows) -> Rows:
    """Select the rows of the clusters in each part."""
    return Rows(*(np.flatnonzero(np.isin(clusters, part)) for part in (parts.train, parts.calibrate, parts.test)))


def _match_columns(frame: Frame, usable: Sequence[str], key: str, patterns: Sequence[str]) -> tuple[str, ...]:
    columns: list[str] = []
    for pattern in patterns:
        # the literal name first: "age [y]" is also a pattern, but does not match itself
        exact = [pattern] if pattern in usable else []
        matches = exact or [column for column in usable if fnmatch.fnmatchcase(column, pattern)]
        if not matches:
            hint = did_you_mean(pattern, frame.columns)
            raise user_error(f'{frame.name} has no column "{pattern}"', key=key, hint=hint)
        columns += [column for column in matches if column not in columns]
    return tuple(columns)


def _list_indicators(frame: Frame, column: str) -> tuple[str, ...]:
    """List the indicator columns of a category, one for each value that occurs."""
    text = frame.text(column, key="data.categories")
    words = [word for word in np.unique(text).tolist() if not cell_values.is_missing(word)]
    if not 0 < len(words) <= MAX_CATEGORIES:
        raise user_error(
            f'the column "{column}" has {len(words)} different values; a category has 1 to {MAX_CATEGORIES}',
            key="data.categories",
            hint="write fewer, such as the chapters of codes" if words else "",
        )
    return tuple(f"{column}{INDICATOR}{word}" for word in words)


def _load_bundled(dataset: str) -> Frame:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{dataset}")()
    names = [str(name).replace(" ", "_") for name in bunch.feature_names]
    columns = {name: bunch.data[:, index] for index, name in enumerate(names)}
    columns["target"] = bunch.target.astype(str)
    return Frame(columns, _digest(bunch.data.tobytes() + bunch.target.tobytes()), f"scikit-learn's {dataset}")


def _read_evaluations(path: Path) -> Frame:
    columns, digest = evaluations.read_evaluations(path)
    return Frame(columns, digest, path.name)


def _read_parquet(path: Path) -> Frame:
    require_packages("a Parquet file", "pyarrow")
    data = read_bytes(path)
    table = parse_parquet(data, str(path))
    columns = {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}
    return Frame(_expand_lists(columns, path), _digest(data), path.name)


def _read_jsonl(path: Path) -> Frame:
    data = read_bytes(path)
    if evaluations.find_reader_of_json(data) is not None:
        return _read_evaluations(path)
    columns = jsonl.parse_columns(decode_text(gunzip(data, str(path)), path), str(path))
    return Frame(_expand_lists(columns, path), _digest(data), path.name)


def _expand_lists(columns: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    return {name: part for column, values in columns.items() for name, part in _expand_list(column, values, path)}


def _expand_list(column: str, values: np.ndarray, path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a column; a column of lists, such as embeddings, becomes COLUMN_0, COLUMN_1 and so on."""
    lists = [_flatten(cell) if isinstance(cell, np.ndarray) else cell for cell in values]
    lengths = {len(cell) for cell in lists if isinstance(cell, np.ndarray)}
    if not lengths:
        yield column, values
        return
    if len(lengths) > 1:
        message = f'the lists of column "{column}" have from {min(lengths)} to {max(lengths)} values'
        raise user_error(
            message, file=str(path), key="data.path", hint="write lists of equal length, or remove the column"
        )
    gap = np.full(max(lengths), np.nan)
    table = np.array([gap if cell is None else cell for cell in lists])
    yield from ((f"{column}_{index}", part) for index, part in enumerate(table.T))


def _flatten(cell: np.ndarray) -> np.ndarray:
    """Flatten nested lists, such as the rows of an image, into one row of values."""
    while cell.size and isinstance(cell[0], np.ndarray):
        cell = np.concatenate(list(cell))
    return cell


def _read_csv(path: Path) -> Frame:
    data = read_bytes(path)
    try:
        rows = list(csv_lines(io.StringIO(decode_text(gunzip(data, str(path)), path), newline="")))
    except csv.Error as error:
        raise user_error(f"not a CSV file: {error}", file=str(path)) from error
    header = [name.strip() for name in rows[0][1]] if rows else []
    if not rows:
        raise user_error("the file is empty; its first line must name the columns", file=str(path))
    twice = next((name for index, name in enumerate(header) if name in header[:index]), None)
    if twice is not None:
        names = "two columns have no name" if not twice else f'two columns are named "{twice}"'
        message, hint = f"the first line must name each column once: {names}", "" if twice else NAMES_FIRST
        raise UnfoldError(Diagnostic(message, str(path), rows[0][0], 1, hint=hint))
    for number, row in rows[1:]:
        if len(row) != len(header):
            message = f"has {len(row)} cells where the header has {len(header)}"
            hint = NAMES_FIRST if len(header) == 1 else ""
            raise UnfoldError(Diagnostic(message, str(path), number, 1, hint=hint))
    columns = {name: np.array([row[index] for _, row in rows[1:]], dtype=object) for index, name in enumerate(header)}
    return Frame(columns, _digest(data), path.name)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
