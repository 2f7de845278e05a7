"""Cells of user tables: missing-value marks, numbers, dates and the canonical text of a label."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray
from unfoldkit.api import UnfoldError, user_error
from unfoldkit.arrivals.readers import timestamps

MISSING = frozenset({"", "?", "-", ".", "na", "n/a", "nan", "null", "none", "<na>", "#n/a", "#na", "\\n", "(null)"})
MISSING_WORDS = frozenset(
    {"missing", "unknown", "pending", "not available", "not recorded", "#value!", "#ref!", "#div/0!"}
)
"""Words that may be labels, but often mark a missing one."""
LABEL_MARKS = frozenset({"-", ".", "none"})
"""Missing-value marks that are valid labels: test results are often ``-`` or ``none``, tokens often ``.``."""
HINTS: Mapping[str, str] = {
    "confidence": "a number such as 0.9, or 90%; empty where the service did not answer",
    "time": "hours as numbers, such as 1.5, or dates such as 2026-03-01 07:15",
}
_DECORATION = re.compile(r"(?<=\d)\s?[A-Za-zµ°/%]{2,}$|^[<>≤≥~]=?|\+$|[,_'$€£¥\s]")
"""Currency signs, thousands separators, signs of a bound, and units after a number."""
_WITH_REST = re.compile(r"[-+]?\d+([.,]\d+)?\s*[^\d\s.,].*")
"""A number and something else, such as 118/80 or 14.8 H."""
MIN_MEASURED = 20
"""Different numbers with something else from which they are measurements rather than names, such as ward 3A."""
_IS_BOUND = re.compile(r"^[<>≤≥~]|\+$")
"""A number with a known bound only: ages of 90+, results below what a device can measure."""
_BOUND = re.compile(r"\s*(<=?)\s*(\S.*?)\s*")
_NUMERIC_DATE = re.compile(r"(\d{4}[./-]\d{1,2}[./-]\d{1,2}|\d{1,2}[./-]\d{1,2}[./-](\d{4}|\d{2}))([ T].*)?")
_PARTIAL_DATES = ("%Y-%m", "%Y")
_ZONE = re.compile(r":\d{2}(\.\d+)?\s*\(?(Z|UTC|GMT|[+\N{MINUS SIGN}-]\d{2}(:?\d{2})?)", re.IGNORECASE)
ZONE_HINT = "write every time with its zone, such as 2025-01-31T06:00+01:00, or every one without"
_ROUNDED = re.compile(r"\d([.,]\d{1,8})?E\+\d{2,3}", re.IGNORECASE)
"""A number as spreadsheets shorten an identifier of many digits: 1.23457E+15."""
_INTEGRAL = re.compile(r"([-+]?\d+)\.0+")


@dataclass(frozen=True, slots=True)
class CellSource:
    """Table, column and spec key of some cells, for error messages.

    ``may_be_category`` says whether ``data.categories`` may name the column.
    """

    table: str
    column: str
    key: str
    may_be_category: bool

    def error(self, cell: Any, row: int, problem: str, hint: str) -> UnfoldError:
        """Build an error about the cell of row ``row``, counted from 0."""
        message = f'{self.table}: "{str(cell)[:40]}" in row {row + 1} of column "{self.column}" {problem}'
        return user_error(message, key=self.key, hint=hint)


def label_text(value: Any) -> str:
    """Write a label in its canonical form: integers without a decimal point, empty text for null."""
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return ""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    text = str(value).strip()
    integral = _INTEGRAL.fullmatch(text)
    return integral[1] if integral else text


def is_missing(text: str) -> bool:
    """Whether a cell marks a missing value."""
    return text.lower() in MISSING


def find_rounded(texts: np.ndarray) -> str:
    """Find an identifier that a spreadsheet shortened to a few digits, so that others look the same; empty if none.

    Args:
        texts: (n,) identifiers. Where most are written in full, or each occurs once, none was shortened.
    """
    rounded = [text for text in map(str, texts) if _ROUNDED.fullmatch(text)]
    is_repeated = len(set(rounded)) < len(rounded)
    return rounded[0] if is_repeated and 2 * len(rounded) > len(texts) else ""


def is_number(text: str) -> bool:
    """Whether a label is written as a number."""
    return not _is_word(text)


def is_unlabelled(text: str) -> bool:
    """Whether a cell of a label column holds no label."""
    return is_missing(text) and text not in LABEL_MARKS


def has_label(text: np.ndarray) -> BoolArray:
    """Mark the (n,) cells that hold a label."""
    return np.array([not is_unlabelled(str(cell)) for cell in text], dtype=np.bool_)


def parse_numbers(cells: np.ndarray, source: CellSource) -> FloatArray:
    """Parse (n,) cells as float64: NaN where missing, ``78.1%`` as 0.781.

    Raises:
        UnfoldError: A cell is not a number, or is infinite.
    """
    numeric = cells.dtype.kind in "fiub"
    values = cells.astype(np.float64) if numeric else np.array([_parse_number(cell) for cell in cells])
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        row = int(infinite[0])
        if _is_word(cells[row]):
            raise source.error(cells[row], row, "is not a number", _number_hint(cells, source))
        raise source.error(cells[row], row, "is infinite", "leave the cell empty")
    if not numeric:
        _check_percentages(cells, values, source)
    return values


def _check_percentages(cells: np.ndarray, values: FloatArray, source: CellSource) -> None:
    """Reject ``97`` beside ``97%``, which is 0.97.

    Raises:
        UnfoldError: Some cells are percentages, and another is a number above 1.
    """
    is_percentage = np.array([isinstance(cell, str) and cell.rstrip().endswith("%") for cell in cells], dtype=np.bool_)
    plain = np.flatnonzero(is_percentage.any() & ~is_percentage & (values > 1.0))
    if len(plain):
        row, other = int(plain[0]), cells[np.flatnonzero(is_percentage)[0]]
        raise source.error(cells[row], row, f'has no percent sign, unlike "{other}"', "write it everywhere or nowhere")


def parse_seconds(cells: np.ndarray, source: CellSource) -> FloatArray | None:
    """Parse (n,) dates as seconds since 1970, in UTC where no zone is given and NaN where missing.

    Returns:
        ``None`` if the column holds no dates.

    Raises:
        UnfoldError: The column holds dates, but one cell is not a date, or only some have a time zone.
    """
    if cells.dtype.kind == "M":
        exact = cells.astype("datetime64[us]")
        return np.where(np.isnat(exact), np.nan, exact.astype(np.int64) / 1e6)
    texts = ((row, label_text(cell)) for row, cell in enumerate(cells))
    present = [(row, text) for row, text in texts if not is_missing(text)]
    if not present or timestamps.parse_timestamp(present[0][1]) is None:
        return None
    mixed = find_mixed_zone([text for _, text in present])
    if mixed is not None:
        row, text = present[mixed]
        raise source.error(text, row, describe_mixed_zone(text), ZONE_HINT)
    seconds = np.full(len(cells), np.nan)
    for row, text in present:
        date = timestamps.parse_timestamp(text)
        if date is None:
            raise source.error(text, row, "is not a date, unlike the others", "")
        seconds[row] = date
    return seconds


def has_zone(date: str) -> bool:
    """Whether a date states its time zone."""
    return _ZONE.search(date) is not None


def find_mixed_zone(dates: Sequence[str]) -> int | None:
    """Find the first of some dates that has a time zone where the first one has none, or the other way round."""
    zones = [has_zone(text) for text in dates]
    return next((index for index, is_zoned in enumerate(zones) if is_zoned != zones[0]), None)


def describe_mixed_zone(date: str) -> str:
    """State how the zone of a date differs from those before it."""
    return f"has {'a' if has_zone(date) else 'no'} time zone, unlike the dates before it"


def parse_bound(text: str) -> tuple[str, bool] | None:
    """Parse a bound such as ``< 2025-01``: the limit, and whether it is included; ``None`` if it is no bound."""
    match = _BOUND.fullmatch(text)
    return None if match is None else (match[2], match[1] == "<=")


def parse_date(text: str) -> float | None:
    """Parse an ISO date, with or without a time, or a month or a year, as seconds since 1970 (UTC without a zone)."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moments = (_parse_partial_date(text, form) for form in _PARTIAL_DATES)
        first = next((each for each in moments if each is not None), None)
        if first is None:
            return None
        moment = first
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _parse_partial_date(text: str, form: str) -> datetime | None:
    try:
        return datetime.strptime(text, form).replace(tzinfo=UTC)
    except ValueError:
        return None


def _parse_number(cell: Any) -> float:
    """Parse one cell: NaN if it is missing, infinity if it is not a number."""
    text = "" if cell is None else str(cell).strip()
    if is_missing(text):
        return float("nan")
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return float("inf")


def _is_word(cell: Any) -> bool:
    try:
        float(str(cell).strip().removesuffix("%"))
    except ValueError:
        return True
    return False


def _is_date(text: str) -> bool:
    return timestamps.parse_timestamp(text) is not None or _NUMERIC_DATE.fullmatch(text) is not None


def _number_hint(cells: np.ndarray, source: CellSource) -> str:
    """Explain how to repair a column of numbers that contains words."""
    present = [text for text in (label_text(cell) for cell in cells) if not is_missing(text)]
    words = [text for text in present if _is_word(text)]
    decorated = [text for text in words if not _is_word(_DECORATION.sub("", text))]
    if 2 * len(decorated) > len(words):
        return _decoration_hint(decorated[0])
    mixed = [text for text in words if _WITH_REST.fullmatch(text) and not _is_date(text)]
    named = HINTS.get(source.key.rsplit(".", 1)[-1])
    if not named and len(set(mixed)) >= MIN_MEASURED and 2 * len(mixed) > len(words):
        return f'write one number a cell, and what else "{mixed[0]}" holds into a column of its own'
    if 2 * len(words) <= len(present):
        return "leave the cell empty where the value is missing"
    if source.may_be_category:
        if all(_is_date(text) for text in words):
            return f"no model reads dates: write the days since another date, or leave {source.column} out"
        return f"data.categories: [{source.column}] takes its words as values"
    return named or _flag_hint(present)


def _decoration_hint(text: str) -> str:
    if _IS_BOUND.search(text):
        return f'write a bound as its number: {_DECORATION.sub("", text)}, not "{text}"'
    return f'write plain digits, with a point before fractions: 1234.5, not as in "{text}"'


def _flag_hint(present: Sequence[str]) -> str:
    """Explain how to write a column of two words as numbers; empty for other columns."""
    words = sorted(set(present))
    is_flag = len(words) == 2 and all(map(_is_word, words))
    return f'write 0 and 1, or false and true, for "{words[0]}" and "{words[1]}"' if is_flag else ""
