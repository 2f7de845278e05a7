"""JSON Lines tables: one object per line; keys of nested objects become columns named OUTER.INNER."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from unfoldkit.api import user_error
from unfoldkit.safe_io.files import MAX_JSON_DEPTH, is_deep

ENDINGS = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")


def parse_columns(text: str, file: str) -> dict[str, np.ndarray]:
    """Parse all lines into columns of (n,) objects, ``None`` where a line lacks the key.

    Raises:
        UnfoldError: a line is not a JSON object; the error names it.
    """
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows = [dict(_flatten(_parse_object(line, f"{file}:{number}:1"))) for number, line in lines]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _object_array([row.get(name) for row in rows]) for name in names}


def _parse_object(line: str, location: str) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise user_error(
            f"not JSON: {error}", file=location, hint="one object per line, not an array over many"
        ) from error
    if is_deep(value):
        raise user_error(f"JSON nested deeper than {MAX_JSON_DEPTH}", file=location)
    if not isinstance(value, dict):
        hint = 'one object per line, such as {"label": "yes", "score": 0.9}'
        raise user_error("not a JSON object", file=location, hint=hint)
    return value


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, member in value.items():
        if isinstance(member, dict):
            yield from _flatten(member, f"{prefix}{name}.")
        else:
            yield prefix + name, _convert_list(member)


def _convert_list(value: Any) -> Any:
    """Convert a list of numbers to an array and any other list to text; return other values unchanged."""
    if not isinstance(value, list):
        return value
    is_numeric = all(isinstance(number, (int, float)) for number in value)
    return np.array(value, dtype=np.float64) if is_numeric else json.dumps(value)


def _object_array(values: list[Any]) -> np.ndarray:
    # element by element: NumPy would stack arrays of equal length into two dimensions
    column = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        column[index] = value
    return column
