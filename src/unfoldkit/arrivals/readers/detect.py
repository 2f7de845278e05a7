"""Detect by name and beginning whether a trace is an array, a table, a log or a JSON document."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Literal

from unfoldkit.arrivals.readers.log import parse_line
from unfoldkit.arrivals.readers.metric_exports import find_error_answer
from unfoldkit.arrivals.readers.table import is_table_head
from unfoldkit.arrivals.readers.timestamps import TimeNotation, is_time
from unfoldkit.errors import user_error
from unfoldkit.io.tables import UNREADABLE, csv_lines, open_text

TraceForm = Literal["array", "document", "log", "parquet", "table"]
_LOG_SUFFIX = re.compile(r"\.(log([-_].*)?|jsonl|ndjson)")
_MAX_LINES = 50
_MAX_LINE_LENGTH = 16_384
_SPANS = re.compile(r'\s*\{\s*"resource_?[sS]pans"|\{(?=.*"span_?[iI]d")(?=.*"start_?[tT]ime_?[uU]nix_?[nN]ano").*')
_SDK_SPANS = re.compile(r'\s*\{\s*"name":.{0,999}?"context":\s*\{\s*"trace_id":.{0,999}?"parent_id":', re.DOTALL)
"""Beginning of the spans that the SDK of OpenTelemetry prints, in one line each or in many."""
_TRUNCATED_TOKEN = re.compile(r"[a-z\d.+-]*")
_ZIP = "PK\x03\x04"
_W3C_DIRECTIVES = ("#Version", "#Fields", "#Software")


def detect_form(path: Path, column: str | None = None, notation: TimeNotation | None = None) -> TraceForm:
    """Detect the form of a trace by its name, rotated or not, and where the name is no help, by its beginning.

    Raises:
        UnfoldError: The file is not text, or cannot be read.
    """
    if path.suffix.lower() in (".npz", ".npy"):
        return "array"
    if _is_parquet(path):
        return "parquet"
    lines = _read_beginning(path)
    return _by_first_line(lines) or _by_name(path) or _by_content(lines, column, notation or TimeNotation())


def has_log_name(path: Path) -> bool:
    """Whether the name of a file, rotated or packed or not, is that of a log."""
    return _by_name(path) == "log"


def _is_parquet(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(4) == b"PAR1"
    except OSError:
        return False


def _by_first_line(lines: list[str]) -> TraceForm | None:
    """Return the form that the first lines prove, whatever the name of the file."""
    if lines and lines[0].startswith(_W3C_DIRECTIVES):
        return "log"
    is_document = bool(lines) and (_SPANS.match(lines[0]) or _SDK_SPANS.match("".join(lines)))
    return "document" if is_document else None


def _by_name(path: Path) -> TraceForm | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    names = [suffix for suffix in suffixes if suffix != ".gz" and not suffix[1:].isdigit()]
    if names and names[-1] == ".csv":
        return "table"
    return "log" if names and _LOG_SUFFIX.fullmatch(names[-1]) else None


def _by_content(lines: list[str], column: str | None, notation: TimeNotation) -> TraceForm:
    if _is_document("".join(lines), is_complete=len(lines) < _MAX_LINES):
        return "document"
    head = _read_head(lines)
    if is_table_head(head, column) or (len(head) == 1 and len(lines) > 1 and is_time(lines[1].strip())):
        return "table"
    is_log = any(line.startswith("{") or parse_line(line, column, notation) is not None for line in lines)
    return "log" if is_log else "table"


def _is_document(text: str, *, is_complete: bool) -> bool:
    """Whether a text is, or begins, a JSON value with a list or an error; objects on separate lines are a log."""
    text = text.strip()
    if not text.startswith(("{", "[")):
        return False
    try:
        value, end = json.JSONDecoder().raw_decode(text)
        return is_complete and end == len(text) and (_holds_list(value) or find_error_answer(value) != "")
    except json.JSONDecodeError as error:
        # the error of a valid beginning is at the point where it was cut
        return error.msg.startswith("Unterminated string") or _TRUNCATED_TOKEN.fullmatch(text[error.pos :]) is not None
    except RecursionError:
        return False
    except ValueError:
        # an integer of thousands of digits, which the reader of documents reports
        return True


def _holds_list(value: object) -> bool:
    return isinstance(value, list) or (isinstance(value, dict) and any(map(_holds_list, value.values())))


def _read_head(lines: list[str]) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv_lines(lines[:2]), (0, []))[1]]
    except csv.Error:  # quotes that only logs have
        return []


def _read_beginning(path: Path) -> list[str]:
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise user_error("a pipe cannot be read twice", file=str(path), hint="write it to a file first")
    try:
        with open_text(path, errors="replace") as stream:
            lines = [stream.readline(_MAX_LINE_LENGTH) for _ in range(_MAX_LINES)]
    except UNREADABLE as error:
        raise user_error(f"cannot read the trace: {error}", file=str(path)) from error
    if lines[0].startswith(_ZIP):
        raise user_error("the trace is a file of zip", file=str(path), hint="unpack it, or pack it with gzip")
    if any("\0" in line for line in lines):
        hint = "CSV, TSV, JSON lines or a log, gzipped or not; or .npz, .npy"
        raise user_error("the trace is not text", file=str(path), hint=hint)
    return [line for line in lines if line.strip()]
