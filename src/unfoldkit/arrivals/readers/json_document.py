"""Read the times of arrivals from a document of JSON: a list of times or of rows, spans, or rates of Prometheus.

Spans are those of OpenTelemetry (OTLP), Jaeger and Zipkin. A request makes many of them: one arrives where no other
span of the document is its parent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfoldkit.arrivals.readers.table import Columns, Found, from_rows, known
from unfoldkit.arrivals.readers.timestamps import COLUMNS, Times, present, unit
from unfoldkit.errors import UnfoldError, user_error
from unfoldkit.io.csv import UNREADABLE, open_text

_ID = ("spanId", "span_id", "spanID", "id")
_PARENT = ("parentSpanId", "parent_span_id", "parentSpanID", "parentId")
_STARTS = (("startTimeUnixNano", 1e9), ("start_time_unix_nano", 1e9), ("startTime", 1e6), ("timestamp", 1e6))
_TRACE = ("traceId", "trace_id", "traceID")
_RATES = "the range of a query such as sum(rate(http_requests_total[1m]))"
_KINDS = "a list of times, of objects with a time, spans (OTLP, Jaeger, Zipkin), or a range of Prometheus"


def read_document(path: Path, columns: Columns) -> Found:
    """Return the times of a document, sorted; of rows with counts or rates, these too.

    Raises:
        UnfoldError: it is no JSON, or holds nothing that is known.
    """
    try:
        with open_text(path) as stream:
            values = list(_values(stream.read()))
        found = _spans(values, columns.match) or _matrix(values, columns.match, path) or _listed(values, columns, path)
    except json.JSONDecodeError as error:
        raise user_error(f"the document breaks off or is no JSON: {error}", file=str(path)) from error
    except (*UNREADABLE, RecursionError) as error:
        raise user_error(f"cannot read the trace: {error}", file=str(path)) from error
    if found is None:
        raise user_error("no arrival times in this document", file=str(path), hint=_KINDS)
    return found


def _values(text: str) -> Iterator[Any]:
    """Yield the values of a document, which may stand behind each other, as batches of spans do."""
    decoder, at, text = json.JSONDecoder(), 0, text.strip()
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        yield value
        while at < len(text) and text[at].isspace():
            at += 1


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in a value, outer ones first."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(item)


def _spans(values: Sequence[Any], match: str) -> Found | None:
    spans = [item for item in _objects(list(values)) if _first(item, _ID) and _first(item, _TRACE) and _start(item)]
    chosen = [item for item in spans if match in json.dumps(item, ensure_ascii=False)] if match else spans
    if not spans:
        return None
    names = {_first(item, _ID) for item in chosen}
    return Found(np.sort(np.array([_start(item) for item in chosen if _parent(item) not in names], dtype=np.float64)))


def _first(item: dict[str, Any], names: Sequence[str]) -> str | int | None:
    return next((item[name] for name in names if item.get(name) and isinstance(item[name], (str, int))), None)


def _start(item: dict[str, Any]) -> float | None:
    """Return when a span began, in s since 1970."""
    for name, parts in _STARTS:
        if name in item:
            try:
                # nanoseconds since 1970 have more digits than a float: whole seconds and the rest apart
                whole, rest = divmod(int(item[name]), int(parts))
            except (TypeError, ValueError):
                return None
            return whole + rest / parts
    return None


def _parent(item: dict[str, Any]) -> str | int | None:
    above = [_first(ref, _ID) for ref in item.get("references") or () if isinstance(ref, dict)]
    return _first(item, _PARENT) or (above[0] if above else None)


def _matrix(values: Sequence[Any], match: str, path: Path) -> Found | None:
    """Return the rates of a range query of Prometheus, summed over the series whose labels hold ``match``."""
    found = next((item for item in _objects(list(values)) if item.get("resultType") == "matrix"), None)
    if found is None:
        return None
    try:
        chosen = [row for row in found["result"] if match in json.dumps(row.get("metric"), ensure_ascii=False)]
        pairs = sorted((float(at), float(rate)) for row in chosen for at, rate in row["values"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise user_error("a series of the range has no pairs of time and value", file=str(path), hint=_RATES) from error
    times, rates = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    marks, first = np.unique(times, return_index=True)
    return Found(present(marks), None, "values", True, _summed(rates, first, path))


def _summed(rates: Times, first: NDArray[np.int64], path: Path) -> Times:
    """Return the sums from each place in ``first`` on; what was not measured (NaN) counts as nothing."""
    wrong = rates[(rates < 0) | np.isinf(rates)]
    if wrong.size:
        raise user_error(f"{wrong[0]:g} is not a rate", file=str(path), key="values", hint=_RATES)
    return np.add.reduceat(np.where(np.isnan(rates), 0.0, rates), first) if rates.size else rates


def _listed(values: Sequence[Any], columns: Columns, path: Path) -> Found | None:
    """Return what the rows of a list tell; mistakes name the entry, as there are no lines."""
    try:
        return _rows(values, columns, path)
    except UnfoldError as error:
        told = [replace(item, message=f"entry {item.line}: {item.message}", line=0) for item in error.diagnostics]
        raise UnfoldError(*told) from error


def _rows(values: Sequence[Any], columns: Columns, path: Path) -> Found | None:
    for name, items in _lists(values[0] if len(values) == 1 else list(values), ""):
        if all(isinstance(item, dict) for item in items):
            head = list(dict.fromkeys(key for item in items for key in item))
            if known(head, columns.time):
                return _sorted(from_rows(head, _cells(items, head), columns, path))
        elif not any(isinstance(item, (dict, list)) for item in items) and _named(name, columns.time):
            return _sorted(from_rows([name or "time"], _single(items), Columns(name or "time"), path))
    return None


def _named(name: str, wanted: str | None) -> bool:
    """Whether a list of that name holds times; one without a name does."""
    plain = unit(name)[0]
    return name == (wanted or "") or (wanted is None and not {name, plain, plain.rstrip("s")}.isdisjoint(COLUMNS))


def _lists(value: Any, name: str) -> Iterator[tuple[str, list[Any]]]:
    """Yield the lists of a value that hold something, outer ones first, by the name under which they stand."""
    if isinstance(value, list) and value:
        yield name, value
    for key, item in value.items() if isinstance(value, dict) else ():
        yield from _lists(item, key)


def _cells(items: Sequence[dict[str, Any]], head: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    for place, item in enumerate(items, 1):
        yield place, [_text(item.get(name)) for name in head]


def _single(items: Sequence[Any]) -> Iterator[tuple[int, list[str]]]:
    for place, item in enumerate(items, 1):
        yield place, [_text(item)]


def _text(value: Any) -> str:
    return "" if value is None or isinstance(value, (dict, list)) else str(value)


def _sorted(found: Found) -> Found:
    """Return rows in the order of time: documents keep none."""
    order = np.argsort(found.times, kind="stable")
    counts = None if found.counts is None else found.counts[order]
    rates = None if found.rates is None else found.rates[order]
    return Found(found.times[order], counts, found.column, found.guessed, rates)
