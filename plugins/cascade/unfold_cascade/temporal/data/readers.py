"""Readers of tables over time: folders and archives of psv files, long CSV and Parquet tables."""

from __future__ import annotations

import hashlib
import itertools
import tarfile
import zipfile
import zlib
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

import numpy as np

from unfold_cascade._types import Float32, FloatArray, IntArray
from unfold_cascade.data.table import Frame, frame_of_file
from unfold_cascade.schema.cells import is_missing
from unfold_cascade.schema.temporal import LongData, PhysioNetData, TimedData
from unfold_cascade.temporal.data.table import Long, checked_order, starts_of
from unfoldkit.api import Diagnostic, Run, UnfoldError, fail

CLOCK = "ICULOS"
CHUNK = 512
HOUR = 3600.0
Part = tuple[str, bytes]


def read(data: TimedData, run: Run) -> Long:
    """Return the table that a spec names.

    Raises:
        UnfoldError: a file is missing, damaged or empty; the message names file and line.
    """
    path = run.path(data.path, key="data.path")
    if isinstance(data, PhysioNetData):
        return read_psv(path, limit=data.patients)
    return read_long(path, data)


def read_psv(path: Path, *, limit: int | None = None) -> Long:
    """Return the hours of all ``*.psv`` files of a folder or archive, ordered by file name.

    Args:
        path: a folder, with those within it, a ``.zip``, a ``.tar`` or a compressed ``.tar.xz`` or ``.tar.gz``.
        limit: only so many patients, the first by name.

    Raises:
        UnfoldError: no such file in it, two of one name, heads that differ, or a cell that is no number.
    """
    parts = sorted(_folder(path) if path.is_dir() else _archive(path))[:limit]
    if not parts:
        raise fail("holds no .psv file", file=str(path), key="data.path")
    twice = next((one for (one, _), (other, _) in itertools.pairwise(parts) if one == other), None)
    if twice is not None:
        raise fail(f"two patients are called {twice}", file=str(path), key="data.path")
    head = parts[0][1].split(b"\n", 1)[0].strip()
    columns = tuple(head.decode("utf-8", "replace").split("|"))
    digest = hashlib.sha256()
    for name, content in parts:
        digest.update(name.encode() + b"\0" + content)
        if content.split(b"\n", 1)[0].strip() != head or b"\n" not in content:
            raise fail("the first line is not that of the other files", file=f"{path / name}:1:1")
    chunks = [_numbers(path, parts[at : at + CHUNK], len(columns)) for at in range(0, len(parts), CHUNK)]
    return _assembled(path, parts, columns, chunks, digest.hexdigest())


def read_long(path: Path, data: LongData) -> Long:
    """Return a long table: one row an entity and hour, in any order; of its columns those of numbers.

    Raises:
        UnfoldError: a column is missing, a row is of nobody, a time is neither number nor date, an hour occurs twice.
    """
    frame = frame_of_file(path)
    entity = frame.text(data.entity, key="data.entity")
    if any(map(is_missing, entity)):
        row = next(row for row, name in enumerate(entity) if is_missing(name))
        raise fail(f'{path.name}: row {row + 1} has no "{data.entity}": whose is it?', key="data.entity")
    ids, number = np.unique(entity, return_inverse=True)
    hour = _hour(frame, data, number)
    order = np.lexsort((hour, number))
    starts = starts_of(np.bincount(number, minlength=len(ids)))
    columns, words = _columns(frame, {data.entity, data.time})
    values = np.array([column[order] for column in columns.values()], dtype=np.float32).T.reshape(len(order), -1)
    names = tuple(map(str, ids))
    checked_order(hour[order], starts, names, path.name, "data.time")
    return Long(names, starts, hour[order], tuple(columns), values, frame.digest, path.name, words)


def _hour(frame: Frame, data: LongData, entity: IntArray) -> FloatArray:
    """Return (n,) hours: numbers as they stand, dates as the hours since the first of their entity."""
    dates = frame.dates(data.time, key="data.time")
    if dates is None:
        return frame.numbers(data.time, key="data.time")
    first = np.full(int(entity.max()) + 1, np.inf)
    np.fmin.at(first, entity, dates)
    hour: FloatArray = (dates - first[entity]) / HOUR
    return hour


def _columns(frame: Frame, beside: Container[str]) -> tuple[dict[str, Float32], dict[str, Diagnostic]]:
    """Return the columns of numbers, and of each other column why it is none: who names it is told."""
    numbers, words = {}, {}
    for name in frame.columns:
        if name not in beside:
            try:
                numbers[name] = frame.numbers_or_flags(name, key="features").astype(np.float32)
            except UnfoldError as error:
                words[name] = error.diagnostics[0]
    return numbers, words


def files(folder: Path) -> list[Path]:
    """Return the psv files of a folder and those within it, ordered by name."""
    found = (file for file in folder.rglob("*.psv") if _counts(file.name) and file.is_file())
    return sorted(found, key=lambda file: (file.name, file))


def _counts(name: str) -> bool:
    # what macOS lays beside a file has its name behind dots
    return name.endswith(".psv") and not Path(name).name.startswith("._")


def _folder(path: Path) -> Iterator[Part]:
    for file in files(path):
        yield file.name, file.read_bytes()


def _archive(path: Path) -> Iterator[Part]:
    try:
        yield from _zipped(path) if zipfile.is_zipfile(path) else _tarred(path)
    # RuntimeError: a zip that asks for a password
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, RuntimeError, OSError, EOFError) as error:
        raise fail(f"not an archive of psv files: {error}", file=str(path), key="data.path") from error


def _zipped(path: Path) -> Iterator[Part]:
    with zipfile.ZipFile(path) as archive:
        for name in filter(_counts, archive.namelist()):
            yield Path(name).name, archive.read(name)


def _tarred(path: Path) -> Iterator[Part]:
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            stream = archive.extractfile(member) if _counts(member.name) else None
            if stream is not None:
                yield Path(member.name).name, stream.read()


def _numbers(path: Path, parts: Iterable[Part], width: int) -> Float32:
    """Return the rows of many files at once; only if that fails, each line is looked at."""
    bodies = [content.split(b"\n", 1)[1].strip() for _, content in parts]
    text = b"|".join(body.replace(b"\r", b"").replace(b"\n", b"|") for body in bodies if body)
    found = _parsed(text)
    lines = sum(body.count(b"\n") + 1 for body in bodies if body)
    if found is None or found.size != lines * width:
        raise _first_mistake(path, parts, width)
    return found.reshape(-1, width)


def _parsed(text: bytes) -> Float32 | None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return np.fromstring(text, dtype=np.float32, sep="|")
        except (DeprecationWarning, ValueError):
            return None


def _first_mistake(path: Path, parts: Iterable[Part], width: int) -> Exception:
    for name, content in parts:
        for number, line in enumerate(content.splitlines()[1:], 2):
            cells = line.split(b"|")
            if len(cells) != width:
                message = f"has {len(cells)} cells where the head has {width}"
                return UnfoldError(Diagnostic(message, str(path / name), number, 1, "data.path"))
            for cell in cells:
                if not _is_number(cell):
                    message = f'"{cell.decode("utf-8", "replace")[:40]}" is not a number'
                    return UnfoldError(Diagnostic(message, str(path / name), number, 1, "data.path"))
    return fail("not a table of numbers", file=str(path), key="data.path")


def _is_number(cell: bytes) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _assembled(path: Path, parts: list[Part], columns: tuple[str, ...], chunks: list[Float32], digest: str) -> Long:
    values = np.concatenate(chunks)
    starts = starts_of(np.array([_lines(content) for _, content in parts]))
    ids = tuple(Path(name).stem for name, _ in parts)
    hour = _hours(values, columns, starts)
    checked_order(hour, starts, ids, path.name, "data.path")
    return Long(ids, starts, hour, columns, values, digest, path.name)


def _lines(content: bytes) -> int:
    body = content.split(b"\n", 1)[1].strip()
    return body.count(b"\n") + 1 if body else 0


def _hours(values: Float32, columns: tuple[str, ...], starts: np.ndarray) -> FloatArray:
    if CLOCK in columns:
        return values[:, columns.index(CLOCK)].astype(np.float64)
    sizes = np.diff(starts)
    hour: FloatArray = (np.arange(len(values)) - np.repeat(starts[:-1], sizes)).astype(np.float64)
    return hour
