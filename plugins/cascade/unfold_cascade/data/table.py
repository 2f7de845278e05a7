"""Tables of cases: read, checked, split."""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.data import jsonl
from unfold_cascade.schema import cells
from unfold_cascade.schema.models import CascadeSpec, FeatureGroup
from unfold_cascade.schema.temporal import Split
from unfoldkit.api import Diagnostic, Run, UnfoldError, csv_lines, did_you_mean, encoding_of, fail, not_utf8
from unfoldkit.safe_io.archives import gunzip
from unfoldkit.safe_io.files import read_bytes

IS = "="
MOST_WORDS = 200


@dataclass(frozen=True, slots=True)
class Frame:
    """Columns of text or numbers, all of the same length; ``digest`` is a hash of the content.

    ``words`` says whether ``data.categories`` may name columns of it.
    """

    columns: Mapping[str, np.ndarray]
    digest: str
    name: str
    words: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def text(self, column: str, *, key: str) -> np.ndarray:
        """Return a column as text, each value as ``cells.label_text`` writes it.

        Raises:
            UnfoldError: there is no such column.
        """
        if column not in self.columns:
            raise fail(f'{self.name} has no column "{column}"', key=key, hint=did_you_mean(column, self.columns))
        return np.array([cells.label_text(value) for value in self.columns[column]], dtype=np.str_)

    def numbers(self, column: str, *, key: str) -> FloatArray:
        """Return a column as float64; an empty cell is NaN. ``COLUMN=WORD`` is 1 where the column says so, else 0.

        Raises:
            UnfoldError: no such column, or a value that is not a number (its row is named).
        """
        if column not in self.columns:
            whole = next((name for name in self.columns if column.startswith(name + IS)), column)
            word = cells.label_text(column.removeprefix(whole + IS))
            return np.asarray(self.text(whole, key=key) == word, dtype=np.float64)
        return cells.numbers(self.columns[column], cells.Place(self.name, column, key, self.words))

    def flags(self, column: str, *, key: str) -> FloatArray:
        """Return a column of numbers, or of ``true`` and ``false`` as 1 and 0; an empty cell is NaN."""
        given, words = self.columns.get(column, ()), {"true": 1.0, "false": 0.0}
        told = (str(cell).strip().lower() for cell in given)
        # the first cell that says something tells columns of numbers at once
        if next((word for word in told if word not in cells.MISSING), "") not in words:
            return self.numbers(column, key=key)
        if not {word for word in told if word not in cells.MISSING} <= set(words):
            return self.numbers(column, key=key)
        return np.array([words.get(str(cell).strip().lower(), np.nan) for cell in given])

    def dates(self, column: str, *, key: str) -> FloatArray | None:
        """Return a column of dates in s since 1970, ``None`` if it holds none or does not exist.

        Raises:
            UnfoldError: no such column, or some of its cells are dates and one is not.
        """
        self.text(column, key=key)
        return cells.seconds(self.columns[column], cells.Place(self.name, column, key, self.words))


@dataclass(frozen=True, slots=True)
class Rows:
    """Row numbers of the three parts of a split; each sorted, together all rows once."""

    train: IntArray
    calibrate: IntArray
    test: IntArray


def load_frame(spec: CascadeSpec, run: Run) -> Frame:
    """Return the table that the spec names.

    Raises:
        UnfoldError: the file is missing, not a table, or empty.
    """
    data = spec.data
    if data.source == "sklearn":
        return _bundled(data.dataset)
    frame = frame_of_file(run.path(data.path, key="data.path"))
    return dataclasses.replace(frame, words=data.source == "table")


def frame_of_file(path: Path) -> Frame:
    """Return the table of a CSV, Parquet or JSON Lines file.

    Raises:
        UnfoldError: not such a file, or fewer than ten rows.
    """
    read = _parquet if path.suffix == ".parquet" else _jsonl if path.name.endswith(jsonl.ENDINGS) else _csv
    frame = read(path)
    if len(frame) < 10:
        raise fail(f"{path.name} has {len(frame)} rows; at least 10 are needed", key="data.path", file="")
    return frame


def matrix(frame: Frame, columns: Sequence[str], *, key: str) -> FloatArray:
    """Return the named columns as an (n, d) float64 array; ``true`` and ``false`` are 1 and 0."""
    return np.column_stack([frame.flags(column, key=key) for column in columns])


def expand(
    frame: Frame, groups: Mapping[str, FeatureGroup], label: str, categories: Sequence[str] = (), whose: str = ""
) -> dict[str, tuple[str, ...]]:
    """Return the columns of each feature group, patterns resolved; without groups, one of all others that have a name.

    ``label`` and ``whose``, the column that says which rows belong together, are no features. A column of
    ``categories`` is replaced by one for each of its words, ``COLUMN=WORD``.

    Raises:
        UnfoldError: a name or pattern that matches no column, or a category with too many words.
    """
    # a column without a name holds the row numbers of pandas
    usable = [column for column in frame.columns if column not in ("", label, whose)]
    words = {column: _words(frame, column) for column in _matching(frame, usable, "data.categories", categories)}
    found = {
        name: _matching(frame, usable, f"features.{name}.columns", group.columns) for name, group in groups.items()
    }
    found = found or {"all": tuple(usable)}
    return {name: tuple(part for c in columns for part in words.get(c, (c,))) for name, columns in found.items()}


def split_rows(labels: np.ndarray, split: Split, seed: int) -> Rows:
    """Return a split that keeps the share of each label (within one case), the same for the same seed."""
    generator = np.random.default_rng([seed, 0x5711])
    parts: dict[str, list[IntArray]] = {"train": [], "calibrate": [], "test": []}
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        first = round(len(rows) * split.train)
        second = round(len(rows) * (split.train + split.calibrate))
        for name, part in zip(parts, np.split(rows, [first, second]), strict=True):
            parts[name].append(part)
    return Rows(**{name: np.sort(np.concatenate(chunks)) for name, chunks in parts.items()})


def split_clusters(labels: np.ndarray, clusters: IntArray, split: Split, seed: int) -> Rows:
    """Return the same with the rows of a cluster in one part; it keeps the share of each cluster's commonest label."""
    kinds, kind = np.unique(labels, return_inverse=True)
    count = np.zeros((int(clusters.max()) + 1, len(kinds)), dtype=np.int64)
    np.add.at(count, (clusters, kind), 1)
    whole = split_rows(count.argmax(axis=1), split, seed)
    return Rows(*(np.flatnonzero(np.isin(clusters, part)) for part in (whole.train, whole.calibrate, whole.test)))


def _matching(frame: Frame, usable: Sequence[str], key: str, patterns: Sequence[str]) -> tuple[str, ...]:
    found: list[str] = []
    for pattern in patterns:
        # the name itself goes first: "age [y]" is a pattern too, but not of its own name
        exact = [pattern] if pattern in usable else []
        matched = exact or [column for column in usable if fnmatch.fnmatchcase(column, pattern)]
        if not matched:
            hint = did_you_mean(pattern, frame.columns)
            raise fail(f'{frame.name} has no column "{pattern}"', key=key, hint=hint)
        found += [column for column in matched if column not in found]
    return tuple(found)


def _words(frame: Frame, column: str) -> tuple[str, ...]:
    """Return a column for each word that occurs in a category."""
    text = frame.text(column, key="data.categories")
    words = [word for word in np.unique(text).tolist() if not cells.is_missing(word)]
    if not 0 < len(words) <= MOST_WORDS:
        raise fail(
            f'the column "{column}" has {len(words)} different words; a category has 1 to {MOST_WORDS}',
            key="data.categories",
        )
    return tuple(f"{column}{IS}{word}" for word in words)


def _bundled(dataset: str) -> Frame:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{dataset}")()
    names = [str(name).replace(" ", "_") for name in bunch.feature_names]
    columns = {name: bunch.data[:, index] for index, name in enumerate(names)}
    columns["target"] = bunch.target.astype(str)
    return Frame(columns, _digest(bunch.data.tobytes() + bunch.target.tobytes()), f"scikit-learn's {dataset}")


def _parquet(path: Path) -> Frame:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError as error:
        raise fail(
            "a Parquet file needs pyarrow, which is not installed", hint="pip install 'unfoldkit[parquet]'"
        ) from error
    data = _bytes(path)
    try:
        table = parquet.read_table(io.BytesIO(data))
    except ArrowException as error:
        raise fail(f"not a Parquet file: {str(error).splitlines()[0]}", file=str(path)) from error
    whole = {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}
    return Frame(_spread(whole, path), _digest(data), path.name)


def _jsonl(path: Path) -> Frame:
    data = _bytes(path)
    plain = _plain(data, path)
    try:
        whole = jsonl.columns_of(plain.decode(encoding_of(plain)), str(path))
    except UnicodeDecodeError as error:
        raise not_utf8(plain, path) from error
    return Frame(_spread(whole, path), _digest(data), path.name)


def _plain(data: bytes, path: Path) -> bytes:
    return gunzip(data, str(path))


def _spread(whole: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    return {name: part for column, cells in whole.items() for name, part in _parts(column, cells, path)}


def _parts(column: str, cells: np.ndarray, path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a column; one of lists, such as embeddings, as COLUMN_0, COLUMN_1 and so on."""
    lists = [_flat(cell) if isinstance(cell, np.ndarray) else cell for cell in cells]
    lengths = {len(cell) for cell in lists if isinstance(cell, np.ndarray)}
    if not lengths:
        yield column, cells
        return
    if len(lengths) > 1:
        message = f'the lists of column "{column}" have from {min(lengths)} to {max(lengths)} values'
        raise fail(message, file=str(path), key="data.path", hint="write lists of one length, or no such column")
    gap = np.full(max(lengths), np.nan)
    table = np.array([gap if cell is None else cell for cell in lists])
    yield from ((f"{column}_{place}", part) for place, part in enumerate(table.T))


def _flat(cell: np.ndarray) -> np.ndarray:
    """Return the values of a list, and of a list of lists, such as the rows of an image, row after row."""
    while cell.size and isinstance(cell[0], np.ndarray):
        cell = np.concatenate(list(cell))
    return cell


def _csv(path: Path) -> Frame:
    data = _bytes(path)
    try:
        plain = gunzip(data, str(path))
        rows = list(csv_lines(io.StringIO(plain.decode(encoding_of(plain)), newline="")))
    except UnicodeDecodeError as error:
        raise not_utf8(plain, path) from error
    except csv.Error as error:
        raise fail(f"not a CSV file: {error}", file=str(path)) from error
    head = [name.strip() for name in rows[0][1]] if rows else []
    if not rows or len(set(head)) != len(head):
        raise fail("the first line must name the columns, each once", file=str(path))
    for number, row in rows[1:]:
        if len(row) != len(head):
            raise _ragged(path, number, len(row), len(head))
    columns = {name: np.array([row[index] for _, row in rows[1:]], dtype=object) for index, name in enumerate(head)}
    return Frame(columns, _digest(data), path.name)


def _ragged(path: Path, line: int, found: int, wanted: int) -> UnfoldError:
    return UnfoldError(Diagnostic(f"has {found} cells where the head has {wanted}", str(path), line, 1))


def _bytes(path: Path) -> bytes:
    return read_bytes(path)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
