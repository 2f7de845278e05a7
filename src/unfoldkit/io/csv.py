"""Reads tables that users give as CSV: with or without a byte order mark, gzipped or not, always by line number.

A head with semicolons, tabs or bars and no comma is that of a table as spreadsheets write it where the comma is in the
numbers, or as command lines do.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from unfoldkit.errors import Diagnostic, UnfoldError, user_error
from unfoldkit.safe_io.archives import gunzip
from unfoldkit.safe_io.files import open_regular, read_bytes

GZIP = b"\x1f\x8b"
UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error)
"""What a damaged or foreign file raises as it is read."""
_SEPARATOR = re.compile(r"sep=([,;\t])\s*")
_COMMA = re.compile(r"\s*[-+]?\d*,\d+\s*")


@dataclass(frozen=True, slots=True)
class CsvRow:
    """A row of a table: its cells by column, and where it stands."""

    cells: dict[str, str]
    path: Path
    line: int

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def get(self, column: str) -> str:
        """Return a cell, empty where there is no such column."""
        return self.cells.get(column, "")

    def number(self, column: str, *, least: float = -math.inf) -> float:
        """Return a cell as a finite number of at least ``least``.

        Raises:
            UnfoldError: it is none.
        """
        try:
            found = float(self.cells[column])
        except ValueError as error:
            raise self.wrong(f"{self.cells[column][:40]!r} is not a number", column) from error
        if not math.isfinite(found) or found < least:
            hint = f"at least {least:g}" if math.isfinite(least) else ""
            raise self.wrong(f"{found:g} is not a number that can be meant", column, hint)
        return found

    def wrong(self, message: str, column: str, hint: str = "") -> UnfoldError:
        """Return an error about a cell."""
        return UnfoldError(Diagnostic(message, str(self.path), self.line, 1, column, hint))


def csv_rows(path: Path, wanted: Sequence[str] = (), *, hint: str = "", head: Sequence[str] = ()) -> Iterator[CsvRow]:
    """Yield the rows of a CSV file whose first line names the columns; empty lines are none.

    Args:
        path: the file, in UTF-8, gzipped or not.
        wanted: columns that must be there.
        hint: what to do if one is not; without it, what is there.
        head: the names of the columns of a file whose first line is a row already.

    Raises:
        UnfoldError: it is no such file, a column is missing, or a row has other cells than the head.
    """
    try:
        with open_text(path) as stream:
            lines = csv_lines(stream)
            names = list(head) or [name.strip() for name in next(lines, (0, []))[1]]
            _check(names, wanted, path, hint)
            for line, cells in lines:
                yield CsvRow(_named(names, cells, path, line), path, line)
    except UnicodeDecodeError as error:
        raise not_utf8(_plain(path), path) from error
    except UNREADABLE as error:
        raise user_error(f"not a CSV file: {error}", file=str(path)) from error


def csv_lines(text: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of each line of a table that is not empty; numbers have a point, however they are written.

    A first line ``sep=;``, as spreadsheets write it, is no row.

    Raises:
        csv.Error: it is none.
    """
    lines = iter(text)
    first = next(lines, "")
    said = _SEPARATOR.fullmatch(first)
    apart = said[1] if said else next((mark for mark in "\t;|" if mark in first and "," not in first), ",")
    reader = csv.reader(lines if said else itertools.chain([first], lines), delimiter=apart, strict=True)
    for cells in reader:
        if cells:
            yield reader.line_num + bool(said), cells if apart == "," else [_pointed(cell) for cell in cells]


def _pointed(cell: str) -> str:
    return cell.replace(",", ".") if _COMMA.fullmatch(cell) else cell


def open_text(path: Path, *, errors: str = "strict") -> io.TextIOWrapper:
    """Return a file in UTF-8, or UTF-16 that says so, as a stream of text, gzipped or not, without a byte order mark.

    ``errors="replace"`` takes what is not in UTF-8 for characters that nobody asked for.

    Raises:
        OSError: it cannot be opened; as it is read, what ``UNREADABLE`` names.
    """
    with _unpacked(path) as raw:
        encoding = encoding_of(raw.read(2))
    return io.TextIOWrapper(_unpacked(path), encoding, errors, newline="")


def encoding_of(data: bytes) -> str:
    """Return how the text of a file is encoded by its first bytes: UTF-16 where they say so, or UTF-8."""
    return "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _unpacked(path: Path) -> gzip.GzipFile | BinaryIO:
    raw = open_regular(path)
    packed = raw.read(2) == GZIP
    raw.seek(0)
    return _Gunzipped(raw) if packed else raw


class _Gunzipped(gzip.GzipFile):
    """A gzip file that closes the file beneath it."""

    def __init__(self, raw: BinaryIO) -> None:
        super().__init__(fileobj=raw)
        self.raw = raw

    def close(self) -> None:
        super().close()
        self.raw.close()


def not_utf8(data: bytes, path: Path) -> UnfoldError:
    """Return an error that tells the first line of a table which is not in UTF-8, and how to convert it.

    A file with zero bytes, such as an archive of arrays, is told as what it is.
    """
    wide = data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    if b"\0" in data and not wide:
        hint = "write it as CSV in UTF-8, a row for each case"
        return UnfoldError(Diagnostic("the file is binary, no table of text", str(path), hint=hint))
    line = 1
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, 0 if wide else error.start) + 1
    name, code = ("UTF-16", "UTF-16") if wide else ("Latin-1", "LATIN1")
    hint = f"if it is in {name}: iconv -f {code} -t UTF-8 {path.name.removesuffix('.gz')} > new.csv"
    return UnfoldError(Diagnostic("the file is not in UTF-8", str(path), line, 1, hint=hint))


def _plain(path: Path) -> bytes:
    return gunzip(read_bytes(path), str(path))


def _check(head: Sequence[str], wanted: Sequence[str], path: Path, hint: str) -> None:
    missing = [name for name in wanted if name not in head]
    twice = next((name for name in head if name and head.count(name) > 1), None)
    if missing:
        there = f"it has {', '.join(head[:12]) or 'nothing'}"
        raise UnfoldError(Diagnostic(f"no column {', '.join(missing)}", str(path), 1, 1, hint=hint or there))
    if twice is not None:
        raise UnfoldError(Diagnostic(f"two columns are called {twice!r}", str(path), 1, 1))


def _named(head: Sequence[str], cells: Sequence[str], path: Path, line: int) -> dict[str, str]:
    if len(cells) < len(head) or any(cell.strip() for cell in cells[len(head) :]):
        message = f"the row has {len(cells)} cells where the head has {len(head)}"
        raise UnfoldError(Diagnostic(message, str(path), line, 1))
    return {name: cell.strip() for name, cell in zip(head, cells, strict=False)}
