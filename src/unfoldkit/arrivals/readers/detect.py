"""Tell by name and beginning which form a trace has."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Literal

from unfoldkit.arrivals.readers.log import line_time
from unfoldkit.arrivals.readers.table import known
from unfoldkit.arrivals.readers.timestamps import alone
from unfoldkit.errors import user_error
from unfoldkit.io.csv import UNREADABLE, csv_lines, open_text

Form = Literal["array", "document", "log", "table"]
_LOG = re.compile(r"\.(log([-_].*)?|jsonl|ndjson)")
_BEGINNING = 50
_LONGEST = 16_384
_SPANS = re.compile(r'\s*\{\s*"resource_?[sS]pans"|\{(?=.*"span_?[iI]d")(?=.*"start_?[tT]ime_?[uU]nix_?[nN]ano").*')
_CUT = re.compile(r"[a-z\d.+-]*")
_DIRECTIVES = ("#Version", "#Fields", "#Software")


def form(path: Path, column: str | None = None) -> Form:
    """Return the form of a trace: its name tells, also one that was rotated; where it does not, its beginning does.

    Raises:
        UnfoldError: it is no text, or cannot be read.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in (".npz", ".npy"):
        return "array"
    names = [suffix for suffix in suffixes if suffix != ".gz" and not suffix[1:].isdigit()]
    lines = _beginning(path)
    return _by_first(lines) or _by_name(names[-1] if names else "") or _by_content(lines, column)


def _by_first(lines: list[str]) -> Form | None:
    """Return the form that a first line tells, whatever the name is."""
    if lines and lines[0].startswith(_DIRECTIVES):
        return "log"
    return "document" if lines and _SPANS.match(lines[0]) else None


def _by_name(suffix: str) -> Form | None:
    if suffix == ".csv":
        return "table"
    return "log" if _LOG.fullmatch(suffix) else None


def _is_document(text: str, *, last: bool) -> bool:
    """Return whether a text, of which this is the beginning or (``last``) all, is one value of JSON that holds a list.

    Several objects, one a line, are a log.
    """
    text = text.strip()
    if not text.startswith(("{", "[")):
        return False
    try:
        value, end = json.JSONDecoder().raw_decode(text)
        return last and end == len(text) and _holds_list(value)
    except json.JSONDecodeError as error:
        # where only the beginning was read, that is where it breaks off
        return error.msg.startswith("Unterminated string") or _CUT.fullmatch(text[error.pos :]) is not None
    except RecursionError:
        return False


def _holds_list(value: object) -> bool:
    return isinstance(value, list) or (isinstance(value, dict) and any(map(_holds_list, value.values())))


def _by_content(lines: list[str], column: str | None) -> Form:
    if _is_document("".join(lines), last=len(lines) < _BEGINNING):
        return "document"
    head = _head(lines)
    if known(head, column) or (len(head) == 1 and len(lines) > 1 and alone(lines[1].strip())):
        return "table"
    return "log" if any(line_time(line, column) is not None for line in lines) else "table"


def _head(lines: list[str]) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv_lines(lines[:1]), (0, []))[1]]
    except csv.Error:  # quotes as only logs have them
        return []


def _beginning(path: Path) -> list[str]:
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise user_error("a pipe cannot be read twice", file=str(path), hint="write it to a file first")
    try:
        with open_text(path, errors="replace") as stream:
            lines = [stream.readline(_LONGEST) for _ in range(_BEGINNING)]
    except UNREADABLE as error:
        raise user_error(f"cannot read the trace: {error}", file=str(path)) from error
    if any("\0" in line for line in lines):
        hint = "CSV, TSV, JSON lines or a log, gzipped or not; or .npz, .npy"
        raise user_error("the trace is no text", file=str(path), hint=hint)
    return [line for line in lines if line.strip()]
