"""Read tables: CSV, with or without a byte order mark, gzipped or not, and Parquet. Errors name the line.

The separator is the comma, or the semicolon, tab or bar if the head has one and no comma: spreadsheets write such files
where numbers have a decimal comma.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from unfoldkit.errors import Diagnostic, UnfoldError, list_columns, require_packages, user_error
from unfoldkit.safe_io.archives import gunzip, max_expanded_bytes
from unfoldkit.safe_io.files import first_line, open_regular, read_bytes

GZIP = b"\x1f\x8b"
OTHER_COMPRESSORS = {b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""Names of others, by how their files begin."""
PARQUET_SUFFIX = ".parquet"
UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error)
"""What reading a damaged file, or one of another format, raises."""
BATCH_ROWS = 8192
"""Rows of a Parquet file that are converted to texts at once."""
_BY_PANDAS = 'pandas.{}("{{name}}").to_csv("{{stem}}.csv", index=False)'
FOREIGN: Mapping[str, tuple[str, str]] = {
    ".dta": ("of Stata", _BY_PANDAS.format("read_stata")),
    ".sav": ("of SPSS", _BY_PANDAS.format("read_spss")),
    ".zsav": ("of SPSS", _BY_PANDAS.format("read_spss")),
    ".por": ("of SPSS", _BY_PANDAS.format("read_spss")),
    ".xpt": ("of SAS", _BY_PANDAS.format("read_sas")),
    ".sas7bdat": ("of SAS", _BY_PANDAS.format("read_sas")),
    ".xlsx": ("of Excel", _BY_PANDAS.format("read_excel")),
    ".xls": ("of Excel", _BY_PANDAS.format("read_excel")),
    ".ods": ("of a spreadsheet", _BY_PANDAS.format("read_excel")),
    ".feather": ("of Feather", _BY_PANDAS.format("read_feather")),
    ".orc": ("of ORC", _BY_PANDAS.format("read_orc")),
    ".h5": ("of HDF5", _BY_PANDAS.format("read_hdf")),
    ".hdf5": ("of HDF5", _BY_PANDAS.format("read_hdf")),
    ".pkl": ("of pickled objects, which may run code when read", _BY_PANDAS.format("read_pickle")),
    ".pickle": ("of pickled objects, which may run code when read", _BY_PANDAS.format("read_pickle")),
    ".xml": ("of XML", _BY_PANDAS.format("read_xml")),
    ".zip": ("of an archive", 'unzip "{name}"'),
    ".rds": ("of R", 'write.csv(readRDS("{name}"), "{stem}.csv", row.names = FALSE)'),
    ".rdata": ("of R", 'load("{name}"), then write.csv(TABLE, "{stem}.csv", row.names = FALSE)'),
    ".arff": ("of Weka", "keep the lines below @data, and name the attributes in a first line"),
}
"""Files that are no tables by suffix: their name in a message, and the command that converts them."""
PERSON_COLUMNS = ("patient", "patient_id", "patientid", "subject", "subject_id", "person_id", "uniquepid", "mrn")
"""Names of columns of patients who may have several rows or stays, in lower case."""
FORMULA_STARTS = frozenset("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""First letters of formulas, and their full-width forms."""
UTF16_SAMPLE = 64
"""First bytes of a file in which every second is zero if it is in UTF-16, which starts with names in ASCII."""
_SEPARATOR = re.compile(r"sep=([,;\t])\s*")
_COMMA = re.compile(r"\s*[-+]?\d*,\d+\s*")


@dataclass(frozen=True, slots=True)
class CsvRow:
    """A row of a table: its cells by column, and its position."""

    cells: dict[str, str]
    path: Path
    line: int

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def get(self, column: str) -> str:
        """Return a cell; empty if the column does not exist."""
        return self.cells.get(column, "")

    def number(self, column: str, *, least: float = -math.inf) -> float:
        """Parse a cell as a finite number of at least ``least``.

        Raises:
            UnfoldError: It is not such a number.
        """
        try:
            value = float(self.cells[column])
        except ValueError as error:
            raise self.wrong(f"{self.cells[column][:40]!r} is not a number", column) from error
        if not math.isfinite(value) or value < least:
            hint = f"at least {least:g}" if math.isfinite(least) else "a finite number"
            raise self.wrong(f"{value:g} is out of range", column, hint)
        return value

    def wrong(self, message: str, column: str, hint: str = "") -> UnfoldError:
        """Make an error about a cell."""
        return UnfoldError(Diagnostic(message, str(self.path), self.line, 1, column, hint))


def csv_rows(path: Path, wanted: Sequence[str] = (), *, hint: str = "", head: Sequence[str] = ()) -> Iterator[CsvRow]:
    """Yield the rows of a CSV file, with the columns that its first line names; empty lines are skipped.

    A Parquet file is read alike; the lines of its rows count from 1.

    Args:
        path: The file: CSV in UTF-8, gzipped or not, or Parquet with the suffix ``.parquet``.
        wanted: Columns that must exist.
        hint: The hint of the error if one does not; by default the columns of the file.
        head: The names of the columns of a file without a head.

    Raises:
        UnfoldError: The file is not CSV, a column is missing, or a row has another number of cells than the head.
    """
    if path.suffix == PARQUET_SUFFIX:
        names, table = read_parquet_rows(path)
        _check(names, wanted, path, hint)
        for number, row in enumerate(table, 1):
            yield CsvRow(dict(zip(names, row, strict=True)), path, number)
        return
    for names, rows in _iter_chunks(path, 1, wanted, hint, head):
        for line, cells in rows:
            yield read_row(names, cells, path, line)


def csv_chunks(path: Path, size: int) -> Iterator[tuple[list[str], list[tuple[int, list[str]]]]]:
    """Yield the names of the columns of a CSV file with the lines and cells of its next rows, unchecked: it is fast.

    Raises:
        UnfoldError: The file is not CSV, or two columns have one name.
    """
    return _iter_chunks(path, size, (), "", ())


def read_row(names: Sequence[str], cells: Sequence[str], path: Path, line: int) -> CsvRow:
    """Return a row of :func:`csv_chunks` as :func:`csv_rows` yields it.

    Raises:
        UnfoldError: It has another number of cells than the head.
    """
    return CsvRow(_to_dict(names, cells, path, line), path, line)


def _iter_chunks(
    path: Path, size: int, wanted: Sequence[str], hint: str, head: Sequence[str]
) -> Iterator[tuple[list[str], list[tuple[int, list[str]]]]]:
    reject_foreign(path)
    try:
        with open_text(path) as stream:
            lines = csv_lines(stream, len(head))
            names = list(head) or [name.strip() for name in next(lines, (0, []))[1]]
            if any("\0" in name for name in names):
                raise not_utf8(_read_bytes(path), path)
            _check(names, wanted, path, hint)
            while rows := list(itertools.islice(lines, size)):
                yield names, rows
    except UnicodeDecodeError as error:
        raise not_utf8(_read_bytes(path), path) from error
    except UNREADABLE as error:
        raise user_error(f"not a CSV file: {error}", file=str(path)) from error


def csv_lines(text: Iterable[str], width: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and cells of each non-empty line; decimal commas become points.

    A first line ``sep=;``, as spreadsheets write it, sets the separator.

    Args:
        text: The lines.
        width: Cells of the first line, by which the separator of a file without a head is found; 0 if it is unknown.

    Raises:
        csv.Error: The text is not CSV.
    """
    lines = iter(text)
    first = next(lines, "")
    stated = _SEPARATOR.fullmatch(first)
    second = "" if stated else next(lines, "")
    separator = stated[1] if stated else _find_separator(first, second, width)
    table = lines if stated else itertools.chain([first, second], lines)
    for line, cells in _split_bars(table) if separator == "|" else _split_quoted(table, separator):
        if cells:
            yield line + bool(stated), cells if separator == "," else [_use_point(cell) for cell in cells]


def _split_quoted(lines: Iterable[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(lines, delimiter=separator, strict=True)
    for cells in reader:
        yield reader.line_num, cells


def _split_bars(lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and cells of each row between bars.

    Slurm's ``sacct -P`` does not quote: a name that begins with a quote ends at the bar, if this gives as many cells as
    the first row has. Otherwise the quote opens a cell that may hold bars and line breaks.
    """
    number = width = 0
    for line in lines:
        cells, read = line.rstrip("\r\n").split("|"), 1
        if '"' in line and (len(cells) != width or _count_cells(line, "|")):
            reader = csv.reader(itertools.chain([line], lines), delimiter="|", strict=True)
            cells = next(reader, [])
            read = reader.line_num
        number, width = number + read, width or len(cells)
        yield number, cells if cells != [""] else []


def _find_separator(first: str, second: str, width: int) -> str:
    # accounting logs of Grid Engine have colons between their cells, and no head
    by_width = (mark for mark in ",\t;|:" if width > 1 and _count_cells(first, mark) == width)
    by_head = (mark for mark in "\t;|" if mark in first and "," not in first)
    # a name such as "Temp, C" in a table with semicolons, where cells may have decimal commas
    counts = {mark: (_count_cells(first, mark), _count_cells(second, mark)) for mark in ",\t;|"}
    most = max(counts, key=lambda mark: counts[mark][0] if counts[mark][0] == counts[mark][1] else 1)
    return next(itertools.chain(by_width, by_head), most)


def _count_cells(line: str, mark: str) -> int:
    """Count the cells of a line with a separator; 0 if it is not a line of such a table."""
    try:
        return len(next(csv.reader([line], delimiter=mark, strict=True), ()))
    except csv.Error:
        return 0


def _use_point(cell: str) -> str:
    return cell.replace(",", ".") if _COMMA.fullmatch(cell) else cell


def open_text(path: Path, *, errors: str = "strict") -> io.TextIOWrapper:
    """Open a file in UTF-8, or in UTF-16 with a byte order mark, gzipped or not, as text without the mark.

    Args:
        path: The file.
        errors: ``replace`` substitutes bytes that are not valid, as for :func:`open`.

    Raises:
        OSError: The file cannot be opened; reading it raises what ``UNREADABLE`` names.
    """
    with _open_binary(path) as raw:
        encoding = encoding_of(raw.read(2))
    return io.TextIOWrapper(_open_binary(path), encoding, errors, newline="")


def reject_foreign(path: Path) -> None:
    """Reject the file of a statistical package or spreadsheet by its suffix, with the command that converts it.

    Raises:
        UnfoldError: It is such a file.
    """
    program, command = FOREIGN.get(path.suffix.lower(), ("", ""))
    if program:
        hint = f"convert it: {command.format(name=path.name, stem=path.stem)}"
        raise user_error(f"is a file {program}, not a table of text", file=str(path), hint=hint)


def encoding_of(data: bytes) -> str:
    """Detect the encoding of a file by its first bytes: UTF-16 with a byte order mark, else UTF-8."""
    return "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _open_binary(path: Path) -> gzip.GzipFile | BinaryIO:
    raw = open_regular(path)
    beginning = raw.read(6)
    name = next((name for magic, name in OTHER_COMPRESSORS.items() if beginning.startswith(magic)), "")
    if name:
        raw.close()
        raise OSError(f"a file of {name}: unpack it, or pack it with gzip")
    raw.seek(0)
    return _OwningGzipFile(raw) if beginning.startswith(GZIP) else raw


class _OwningGzipFile(gzip.GzipFile):
    """A gzip file that closes its underlying file, and bounds what a reader has to hold: all of it, or one line."""

    def __init__(self, raw: BinaryIO) -> None:
        super().__init__(fileobj=raw)
        self.raw = raw
        self.max_bytes = max_expanded_bytes(os.fstat(raw.fileno()).st_size)
        self.line_bytes = 0

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size >= 0:
            return super().read(size)
        content = super().read(self.max_bytes + 1)
        self._check(len(content), "the file")
        return content

    def read1(self, size: int = -1) -> bytes:
        data = super().read1(size)
        end = max(data.rfind(b"\n"), data.rfind(b"\r"))
        self.line_bytes = len(data) - end - 1 + (self.line_bytes if end < 0 else 0)
        self._check(self.line_bytes, "a line of the file")
        return data

    def _check(self, size: int, what: str) -> None:
        if size > self.max_bytes:
            raise OSError(f"{what} expands to more than {self.max_bytes / (1 << 20):,.0f} MiB")

    def close(self) -> None:
        super().close()
        self.raw.close()


def decode_text(data: bytes, path: Path) -> str:
    """Decode the bytes of a text file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        UnfoldError: It is neither, or holds zero bytes, as binary files do.
    """
    try:
        text = data.decode(encoding_of(data))
    except UnicodeDecodeError as error:
        raise not_utf8(data, path) from error
    if "\0" in text:
        raise not_utf8(data, path)
    return text


def not_utf8(data: bytes, path: Path) -> UnfoldError:
    """Make the error for a file that is not UTF-8: it names the first such line and how to convert the file.

    A file with zero bytes, such as an archive of arrays, is reported as binary if these are not those of UTF-16.
    """
    line, name, code = 1, "Latin-1", "LATIN1"
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        name = code = "UTF-16"
    elif b"\0" in data:
        even, odd = data[:UTF16_SAMPLE:2], data[1:UTF16_SAMPLE:2]
        order = "LE" if all(even) and not any(odd) else "BE" if all(odd) and not any(even) else ""
        if not order:
            hint = "write it as CSV in UTF-8, one row per case"
            return UnfoldError(Diagnostic("the file is binary, not a table of text", str(path), hint=hint))
        name, code = "UTF-16", f"UTF-16{order}"
    else:
        try:
            data.decode()
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
    plain = path.name.removesuffix(".gz")
    hint = f"if it is in {name}: iconv -f {code} -t UTF-8 {plain} > new{Path(plain).suffix}"
    return UnfoldError(Diagnostic("the file is not in UTF-8", str(path), line, 1, hint=hint))


def _read_bytes(path: Path) -> bytes:
    return gunzip(read_bytes(path), str(path))


def _check(head: Sequence[str], wanted: Sequence[str], path: Path, hint: str) -> None:
    missing = [name for name in wanted if name not in head]
    duplicate = next((name for name in head if name and head.count(name) > 1), None)
    if missing:
        columns = f"it has {list_columns(head)}{_guess_fault(head)}"
        raise UnfoldError(Diagnostic(f"no column {', '.join(missing)}", str(path), 1, 1, hint=hint or columns))
    if duplicate is not None:
        raise UnfoldError(Diagnostic(f"two columns are called {duplicate!r}", str(path), 1, 1))


def _guess_fault(head: Sequence[str]) -> str:
    """Return what a first line is that lacks the columns, as the end of a hint; empty if it may be a head."""
    if head and head[0][:1] in ("{", "["):
        return "; that is JSON, not a table: write one row each as CSV"
    if len(head) == 1 and len(head[0].split()) > 1:
        return "; separate cells by commas, semicolons, tabs or bars, not by spaces"
    return "; that is data: the file has no head" if any(map(is_number, head)) else ""


def escape_formula(text: str) -> str:
    """Put an apostrophe before a text that a spreadsheet would run as a formula, as OWASP advises for CSV."""
    return f"'{text}" if text[:1] in FORMULA_STARTS and not is_number(text) else text


def is_number(text: str | bytes) -> bool:
    """Return whether a cell is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _to_dict(head: Sequence[str], cells: Sequence[str], path: Path, line: int) -> dict[str, str]:
    if len(cells) < len(head) or any(cell.strip() for cell in cells[len(head) :]):
        message = f"the row has {len(cells)} cells where the head has {len(head)}"
        raise UnfoldError(Diagnostic(message, str(path), line, 1))
    return dict(zip(head, map(str.strip, cells), strict=False))


def read_parquet_rows(path: Path) -> tuple[list[str], Iterator[tuple[str, ...]]]:
    """Return the names of the columns of a Parquet file, and an iterator over the cells of each row as texts.

    Raises:
        UnfoldError: pyarrow is not installed, or the file is damaged.
    """
    require_packages("a Parquet file", "pyarrow", file=str(path))
    table = parse_parquet(read_bytes(path), str(path))
    rows = (zip(*map(_to_texts, batch.columns), strict=True) for batch in table.to_batches(max_chunksize=BATCH_ROWS))
    return list(table.column_names), itertools.chain.from_iterable(rows)


def parse_parquet(data: bytes, file: str) -> Any:
    """Return the Arrow table that a Parquet file of distinct columns holds.

    Raises:
        UnfoldError: The file is damaged, has more cells than an archive of its size may expand to, or two columns of
            one name.
    """
    from pyarrow import ArrowException, parquet

    try:
        # its threads abort a process that ends while they start
        with parquet.ParquetFile(io.BytesIO(data), pre_buffer=False) as reader:
            names, cells = reader.schema_arrow.names, reader.metadata.num_rows * max(1, reader.metadata.num_columns)
            limit = max_expanded_bytes(len(data))
            if not 0 <= cells <= limit:
                raise user_error(f"the table has more than {limit:,} cells", file=file)
            table = reader.read(use_threads=False)
            table.validate(full=True)
    except (ArrowException, OSError, MemoryError) as error:
        raise user_error(f"not a Parquet file: {first_line(error)}", file=file) from error
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise user_error(f"two columns are called {twice!r}", file=file)
    return table


def _to_texts(column: Any) -> list[str]:
    """Return the cells as a table of text has them: times in ISO 8601, lists and nulls empty."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_timestamp(kind):
        # Arrow would need a database of zones for the texts of those with one, which count in UTC
        texts = column.cast(pa.timestamp("us"), safe=False).cast(pa.string()).to_pylist()
        zone = "+00:00" if kind.tz else ""
        return ["" if text is None else text.removesuffix(".000000") + zone for text in texts]
    if pa.types.is_integer(kind):
        column = column.cast(pa.string())
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return [""] * len(column)
    return ["" if value is None else str(value) for value in column.to_pylist()]
