"""CSV tables of users are read as people write them, and mistakes are reported by line."""

from __future__ import annotations

import datetime as dt
import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from unfoldkit.errors import UnfoldError
from unfoldkit.io.tables import csv_rows, escape_formula, parse_parquet

TEXT = 'name,cpu, note\nn1,4,"a, b"\n\nn2, 8,\n'


def test_files_of_other_programs_are_named(tmp_path: Path) -> None:
    """A workbook is an archive: as text it was binary, without a way out."""
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(UnfoldError, match=r"a\.xlsx: is a file of Excel, .*pandas\.read_excel\(\"a\.xlsx\"\)"):
        list(csv_rows(tmp_path / "a.xlsx"))


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n")])
def test_tables_as_they_are_written(tmp_path: Path, pack: object) -> None:
    """Plain, gzipped, and with a byte order mark and the line ends of Windows, a table has the same rows and lines."""
    (tmp_path / "a.csv").write_bytes(pack(TEXT.encode()))  # type: ignore[operator]
    rows = list(csv_rows(tmp_path / "a.csv", ("name", "cpu")))
    assert [row.cells for row in rows] == [
        {"name": "n1", "cpu": "4", "note": "a, b"},
        {"name": "n2", "cpu": "8", "note": ""},
    ]
    assert [row.line for row in rows] == [2, 4]
    assert [row.number("cpu", least=4) for row in rows] == [4.0, 8.0]
    assert rows[0].get("gpu") == ""


def test_tables_with_semicolons_have_commas_in_their_numbers(tmp_path: Path) -> None:
    """A table as spreadsheets write it where the comma is in the numbers reads as one with points; words stay words."""
    (tmp_path / "a.csv").write_text('name;cpu;note\nn1;4,5;"a; b, c"\nn2;-,5;7\n')
    rows = list(csv_rows(tmp_path / "a.csv", ("cpu",)))
    assert [row.number("cpu") for row in rows] == [4.5, -0.5]
    assert [row["note"] for row in rows] == ["a; b, c", "7"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("code", ["utf-16", "utf-8-sig"])
def test_tables_of_spreadsheets_are_read(tmp_path: Path, code: str, pack: Callable[[bytes], bytes]) -> None:
    """UTF-16 with its mark, and a line that names the separator, are read; lines are counted as in the file."""
    (tmp_path / "a.csv").write_bytes(pack("sep=;\r\nname;cpu\r\nK\u00f6ln;x, y\r\n".encode(code)))
    (row,) = csv_rows(tmp_path / "a.csv")
    assert (row.line, row.cells) == (3, {"name": "K\u00f6ln", "cpu": "x, y"})


def test_empty_cells_beyond_the_head_are_no_cells(tmp_path: Path) -> None:
    """Commas at the end of a row, as spreadsheets leave them, are taken; a row with more cells than that is not."""
    (tmp_path / "a.csv").write_text("a,b\n1,2,,\n")
    assert [row.cells for row in csv_rows(tmp_path / "a.csv")] == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"a\.csv:1:1: no column name \(it has nothing\)"),
        (b"a,b\n", r"a\.csv:1:1: no column name \(it has a, b\)"),
        (b"nom;cpu\nx;1\n", r"no column name \(it has nom, cpu\)"),
        (b"name,name\n", "two columns are called 'name'"),
        (b"name,cpu\nx\n", r"a\.csv:2:1: the row has 1 cells where the head has 2"),
        (b"name,cpu\nx,1,2\n", r"a\.csv:2:1: the row has 3 cells where the head has 2"),
        (b"name\nx\nK\xf6ln\n", r"a\.csv:3:1: the file is not in UTF-8 .*LATIN1"),
        (gzip.compress(b"name\n\xff\n", mtime=0), r"a\.csv:2:1: the file is not in UTF-8"),
        (b"PK\x03\x04\x2d\x00\xff\xffx.npy", r"a\.csv: the file is binary, not a table of text \(write it as CSV"),
        (b"\0\0\0\2name\n", r"a\.csv: the file is binary"),
        ("name,cpu\nx,1\n".encode("utf-16-le"), r"a\.csv:1:1: the file is not in UTF-8 .*iconv -f UTF-16LE"),
        ("name,cpu\nx,1\n".encode("utf-16-be"), r"a\.csv:1:1: the file is not in UTF-8 .*iconv -f UTF-16BE"),
        (b'name\n"x\n', "not a CSV file"),
        (gzip.compress(b"name\nx\n" * 9, mtime=0)[:-9], "not a CSV file"),
        (b"\x1f\x8bjunk", "not a CSV file"),
    ],
)
def test_bad_tables_are_reported(tmp_path: Path, data: bytes, message: str) -> None:
    """A file that is damaged, cut off, or another table is refused in words, with its line where there is one."""
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(UnfoldError, match=message):
        list(csv_rows(tmp_path / "a.csv", ("name",)))


@pytest.mark.parametrize("text", ["many", "nan", "inf", "-1", ""])
def test_cells_without_numbers_are_reported(tmp_path: Path, text: str) -> None:
    """A cell without a finite number of at least the minimum names its line and column."""
    (tmp_path / "a.csv").write_text(f"name,cpu\nx,1\ny,{text}\n")
    rows = list(csv_rows(tmp_path / "a.csv"))
    with pytest.raises(UnfoldError, match=r"a\.csv:3:1: cpu: "):
        rows[1].number("cpu", least=0)


def test_what_is_not_asked_for_is_no_hint(tmp_path: Path) -> None:
    """A cell without a finite number is reported without a limit where there is none."""
    (tmp_path / "a.csv").write_text("cpu\nnan\n")
    (row,) = csv_rows(tmp_path / "a.csv")
    with pytest.raises(UnfoldError, match=r"is out of range"):
        row.number("cpu")


def test_parquet_is_read_like_csv(tmp_path: Path) -> None:
    """Numbers, dates and nulls become the texts of a CSV file; a missing column and a damaged file are errors."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    times = [dt.datetime(2026, 1, 31, 12), dt.datetime(2026, 1, 31, 13)]  # noqa: DTZ001 - tables have local times too
    table = pa.table({"task": ["a", "b"], "arrival": times, "gpu": [0.5, None], "count": [1, 2]})
    path = tmp_path / "jobs.parquet"
    parquet.write_table(table, path)
    rows = list(csv_rows(path, ("task", "gpu")))
    assert [row.line for row in rows] == [1, 2]
    assert rows[0].cells == {"task": "a", "arrival": "2026-01-31 12:00:00", "gpu": "0.5", "count": "1"}
    assert rows[1]["gpu"] == ""
    with pytest.raises(UnfoldError, match="run"):
        list(csv_rows(path, ("run",)))
    zoned = pa.array([0, 1_500, None], pa.timestamp("ms", "Europe/Berlin"))
    parquet.write_table(pa.table({"at": zoned}), tmp_path / "zoned.parquet")
    texts = [row["at"] for row in csv_rows(tmp_path / "zoned.parquet")]
    assert texts == ["1970-01-01 00:00:00+00:00", "1970-01-01 00:00:01.500000+00:00", ""]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UnfoldError, match="not a Parquet file"):
        list(csv_rows(path))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('[{"name": "n1", "cpu": 4}]\n', "that is JSON, not a table"),
        ("name  cpu\nn1    4\n", "separate cells by commas, semicolons, tabs or bars, not by spaces"),
        ("n1,4\nn2,8\n", "that is data: the file has no head"),
    ],
)
def test_what_is_no_table_with_a_head_is_named(tmp_path: Path, text: str, hint: str) -> None:
    """JSON, columns of fixed width, and a first line of data lack every column: the hint names the format."""
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UnfoldError, match=hint):
        list(csv_rows(tmp_path / "a.csv", ("name", "cpu")))


def test_the_width_of_a_head_finds_the_separator(tmp_path: Path) -> None:
    """Without a head, cells may hold the marks that usually separate them."""
    (tmp_path / "a.csv").write_text("n1|cpu=4,gpu=8|a\nn2|cpu=8|b\n")
    rows = list(csv_rows(tmp_path / "a.csv", ("name",), head=("name", "tres", "note")))
    assert [row["tres"] for row in rows] == ["cpu=4,gpu=8", "cpu=8"]


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("who;Temp, C;HR\na;36,5;80\n", {"who": "a", "Temp, C": "36.5", "HR": "80"}),
        ("who;Temp, C\na;36,5\n", {"who;Temp": "a;36", "C": "5"}),
        ("a|b,c;d\n1,2\n", {"a|b": "1", "c;d": "2"}),
        ('who\t"Temp, C; axillary"\tHR\na\t36.5\t80\n', {"who": "a", "Temp, C; axillary": "36.5", "HR": "80"}),
    ],
)
def test_the_separator_is_the_one_that_both_first_lines_share(tmp_path: Path, text: str, cells: dict[str, str]) -> None:
    """A comma in a name is no separator where another mark gives both lines the same, larger number of cells."""
    (tmp_path / "a.csv").write_text(text)
    assert [dict(row.cells) for row in csv_rows(tmp_path / "a.csv")] == [cells]


def test_quotes_in_names_between_bars_join_no_rows(tmp_path: Path) -> None:
    """Slurm writes names as they are; a quoted cell of any other program may hold bars and line breaks."""
    path = tmp_path / "jobs.csv"
    path.write_text('id|name|n\n1|"a|10\n2|b"|20\n\n3|"c" d|30\n4|"e\nf|g"|40\n5|"g"|50\n6||60\n')
    assert [(row.line, row["name"], row["n"]) for row in csv_rows(path)] == [
        (2, '"a', "10"), (3, 'b"', "20"), (5, '"c" d', "30"), (7, "e\nf|g", "40"), (8, "g", "50"), (9, "", "60")
    ]  # fmt: skip
    path.write_text('id|name|n\n1|"a|b|10\n2|c|20\n')
    with pytest.raises(UnfoldError, match="unexpected end of data"):
        list(csv_rows(path))


@pytest.mark.parametrize("text", ["=cmd|'/C calc'!A0", "+SUM(A1)", "-2+3", "@SUM(A1)", "\t=1", "\uff1d1"])
def test_formulas_become_texts(text: str) -> None:
    """A name from someone else's trace runs nothing in the spreadsheet that opens an export."""
    assert escape_formula(text) == f"'{text}"


@pytest.mark.parametrize("text", ["-1", "+2.5e3", "job-1", "", "a=b", "2026-01-01"])
def test_numbers_and_names_are_no_formulas(text: str) -> None:
    """Numbers stay numbers, and names are unchanged."""
    assert escape_formula(text) == text


def write_parquet(path: Path, *columns: tuple[str, object]) -> bytes:
    """Write a Parquet file and return its bytes."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names, arrays = zip(*columns, strict=True)
    parquet.write_table(pa.Table.from_arrays(list(arrays), names=list(names)), path)
    return path.read_bytes()


def test_hostile_parquet_files_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged file, one name twice, bytes that are no text, and columns that expand without end are errors."""
    pa = pytest.importorskip("pyarrow")
    numbers, path = pa.array(range(20)), tmp_path / "a.parquet"
    data = write_parquet(path, ("a", numbers))
    damaged = data[:-200] + b"\xff" * 192 + data[-8:]
    raw = pa.array([b"\xff\xfe"] * 20, type=pa.binary())
    words = pa.StringArray.from_buffers(20, raw.buffers()[1], raw.buffers()[2])
    for hostile, message in (
        (damaged, "not a Parquet file"),
        (write_parquet(path, ("a", numbers), ("a", numbers)), "two columns are called 'a'"),
        (write_parquet(path, ("a", words)), "not a Parquet file"),
        (write_parquet(path, ("a", pa.nulls(30_000))), "more than 20,000 cells"),
    ):
        monkeypatch.setattr("unfoldkit.io.tables.max_expanded_bytes", lambda _size: 20_000)
        with pytest.raises(UnfoldError, match=message):
            parse_parquet(hostile, "a.parquet")


def test_parquet_starts_no_threads(tmp_path: Path) -> None:
    """A process that ends at once after reading a small table would abort while its threads start."""
    pa = pytest.importorskip("pyarrow")
    write_parquet(tmp_path / "a.parquet", ("a", pa.array(range(20))))
    script = (
        "import os, pyarrow.parquet\nfrom unfoldkit.io.tables import parse_parquet\n"
        "before = len(os.listdir('/proc/self/task'))\nparse_parquet(open('a.parquet', 'rb').read(), 'a')\n"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
