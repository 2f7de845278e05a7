"""Cells of tables: what stands for nothing, what is a number, and how a label is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray
from unfoldkit.api import UnfoldError, fail
from unfoldkit.arrivals.readers import timestamps

MISSING = frozenset({"", "?", "-", "na", "n/a", "nan", "null", "none", "<na>", "#n/a", "#na"})
MEANT = frozenset({"-", "none"})
"""Marks that are labels all the same: of tests that are + or -, of what has one of several kinds or none."""
HINTS: Mapping[str, str] = {
    "confidence": "a number such as 0.9, or 90%; empty where the service did not answer",
    "time": "hours as numbers, such as 1.5, or dates such as 2026-03-01 07:15",
}
_DRESS = re.compile(r"[,_'$€£¥\s]")
"""What numbers are dressed with: signs of money, and of thousands."""
_WHOLE = re.compile(r"([-+]?\d+)\.0+")


@dataclass(frozen=True, slots=True)
class Place:
    """Where cells stand: table, column, the key that names them; ``words`` says if ``data.categories`` could."""

    table: str
    column: str
    key: str
    words: bool

    def wrong(self, cell: Any, row: int, problem: str, hint: str) -> UnfoldError:
        """Return an error about one cell."""
        message = f'{self.table}: "{str(cell)[:40]}" in row {row + 1} of column "{self.column}" {problem}'
        return fail(message, key=self.key, hint=hint)


def label_text(value: Any) -> str:
    """Return a label as it is written everywhere: whole numbers without a point, nothing for null."""
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return ""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    text = str(value).strip()
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def is_missing(text: str) -> bool:
    """Whether a cell says that nothing is known."""
    return text.lower() in MISSING


def is_number(text: str) -> bool:
    """Whether a label is written as a number."""
    return not _is_word(text)


def is_unlabelled(text: str) -> bool:
    """Whether a cell of a column of labels holds none."""
    return is_missing(text) and text not in MEANT


def numbers(cells: np.ndarray, place: Place) -> FloatArray:
    """Return (n,) float64, NaN for what is missing; ``78.1%`` is 0.781.

    Raises:
        UnfoldError: a cell is no number, or an infinite one.
    """
    found = np.array([_number(cell) for cell in cells]) if cells.dtype.kind not in "fiub" else cells.astype(np.float64)
    bad = np.flatnonzero(np.isinf(found))
    if len(bad):
        row = int(bad[0])
        if _is_word(cells[row]):
            raise place.wrong(cells[row], row, "is not a number", _hint(cells, place))
        raise place.wrong(cells[row], row, "is not a number that can be meant", "leave the cell empty")
    return found


def seconds(cells: np.ndarray, place: Place) -> FloatArray | None:
    """Return (n,) dates in s since 1970, those without a zone in UTC, NaN for what is missing; ``None`` if no dates.

    Raises:
        UnfoldError: some cells are dates and one is not.
    """
    if cells.dtype.kind == "M":
        exact = cells.astype("datetime64[us]")
        return np.where(np.isnat(exact), np.nan, exact.astype(np.int64) / 1e6)
    given = ((row, label_text(cell)) for row, cell in enumerate(cells))
    known = [(row, text) for row, text in given if not is_missing(text)]
    if not known or timestamps.dated(known[0][1]) is None:
        return None
    found = np.full(len(cells), np.nan)
    for row, text in known:
        date = timestamps.dated(text)
        if date is None:
            raise place.wrong(text, row, "is not a date as the others are", "")
        found[row] = date
    return found


def _number(cell: Any) -> float:
    """Return the number in a cell, NaN if it is missing, infinity if there is none."""
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


def _hint(cells: np.ndarray, place: Place) -> str:
    given = [text for text in (label_text(cell) for cell in cells) if not is_missing(text)]
    words = [text for text in given if _is_word(text)]
    dressed = [text for text in words if not _is_word(_DRESS.sub("", text))]
    if 2 * len(dressed) > len(words):
        return f'write plain digits, with a point before fractions: 1234.5, not as in "{dressed[0]}"'
    if 2 * len(words) <= len(given):
        return "leave the cell empty where nothing is known"
    if place.words:
        return f"data.categories: [{place.column}] takes its words as values"
    return HINTS.get(place.key.rsplit(".", 1)[-1], "")


def known(text: np.ndarray) -> BoolArray:
    """Return (n,) whether there is a label."""
    return np.array([not is_unlabelled(str(cell)) for cell in text], dtype=np.bool_)
