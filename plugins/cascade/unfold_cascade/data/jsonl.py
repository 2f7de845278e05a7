"""Tables as logs are written: a JSON object a line; what stands in an object within it is called OUTER.INNER."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from unfoldkit.api import fail
from unfoldkit.safe_io.files import MAX_JSON_DEPTH, is_deep

ENDINGS = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")


def columns_of(text: str, file: str) -> dict[str, np.ndarray]:
    """Return the columns of all lines as (n,) objects, ``None`` where a line has no such key.

    Raises:
        UnfoldError: a line is no JSON object; it is named.
    """
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows = [dict(_flat(_object(line, f"{file}:{number}:1"))) for number, line in lines]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _column([row.get(name) for row in rows]) for name in names}


def _object(line: str, place: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise fail(f"not JSON: {error}", file=place, hint="one object a line, not an array over many") from error
    if is_deep(found):
        raise fail(f"JSON nested deeper than {MAX_JSON_DEPTH}", file=place)
    if not isinstance(found, dict):
        raise fail("not a JSON object", file=place, hint='one object a line, such as {"label": "yes", "score": 0.9}')
    return found


def _flat(found: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in found.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, _cell(value)


def _cell(value: Any) -> Any:
    """Return a list of numbers as an array, any other list as text."""
    if not isinstance(value, list):
        return value
    numbers = all(isinstance(item, (int, float)) for item in value)
    return np.array(value, dtype=np.float64) if numbers else json.dumps(value)


def _column(values: list[Any]) -> np.ndarray:
    # filled one by one: an array of arrays of one length would have two dimensions
    column = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        column[place] = value
    return column
