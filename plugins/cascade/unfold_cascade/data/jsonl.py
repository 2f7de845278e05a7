"""JSON tables, one object per line or one array of objects; keys of nested objects become columns OUTER.INNER."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from unfoldkit.api import user_error
from unfoldkit.safe_io.files import MAX_JSON_DEPTH, is_deep

LAYOUT = "one object per line, or one array of objects"
ENDINGS = tuple(f"{name}{packed}" for name in (".jsonl", ".ndjson", ".json") for packed in ("", ".gz"))


def parse_columns(text: str, file: str) -> dict[str, np.ndarray]:
    """Parse all objects into columns of (n,) objects, ``None`` where an object lacks the key.

    Raises:
        UnfoldError: A line or an item of the array is not a JSON object; the error names it.
    """
    objects = _parse_array(text, file) if text.lstrip().startswith("[") else _parse_lines(text, file)
    rows = [dict(_flatten(each)) for each in objects]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _object_array([row.get(name) for row in rows]) for name in names}


def _parse_lines(text: str, file: str) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            location = f"{file}:{number}:1"
            yield _check_object(_parse_json(line, location), location)


def _parse_array(text: str, file: str) -> Iterator[Mapping[str, Any]]:
    for number, item in enumerate(_parse_json(text, file), 1):
        yield _check_object(item, f"{file}: item {number}")


def _parse_json(text: str, location: str) -> Any:
    try:
        # a record of a JSON text sequence (RFC 7464) begins with a separator, which counts as white space here
        return json.loads(text.strip())
    except (ValueError, RecursionError) as error:
        raise user_error(f"not JSON: {error}", file=location, hint=LAYOUT) from error


def _check_object(value: Any, location: str) -> Mapping[str, Any]:
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
