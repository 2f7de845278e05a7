"""Read arrival times from a JSON document: lists of times or rows, spans, results of log searches, or metrics.

Spans are those of OpenTelemetry (OTLP, or as its SDK prints them), Jaeger and Zipkin. A request makes many of them; an
arrival is a span without a parent in the document.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unfoldkit.arrivals.readers.log import get_field
from unfoldkit.arrivals.readers.metric_exports import (
    DATAPOINTS,
    find_datapoint_counts,
    find_error_answer,
    read_metrics,
    read_range,
)
from unfoldkit.arrivals.readers.table import (
    TableColumns,
    TraceRows,
    is_table_head,
    name_positions,
    read_rows,
    sort_rows,
)
from unfoldkit.arrivals.readers.timestamps import COLUMNS, split_unit
from unfoldkit.errors import UnfoldError, user_error
from unfoldkit.io.tables import UNREADABLE, open_text
from unfoldkit.safe_io.files import parse_values

_ID_KEYS = ("spanId", "span_id", "spanID", "id")
_PARENT_KEYS = ("parentSpanId", "parent_span_id", "parentSpanID", "parentId", "parent_id")
_TRACE_KEYS = ("traceId", "trace_id", "traceID")
_START_KEYS = (("startTimeUnixNano", 1e9), ("start_time_unix_nano", 1e9), ("startTime", 1e6), ("timestamp", 1e6))
"""Keys of the start of a span, with their parts per second."""
_COUNT_ALL = "count(*)"
_FORMS_HINT = (
    "a list of times, of objects with a time, spans (OTLP, Jaeger, Zipkin), a range of Prometheus, the result of a "
    "search (Elasticsearch, Loki, Azure Monitor, CloudWatch Logs Insights), or metrics of CloudWatch, Azure, Google "
    "Cloud or Datadog"
)


def read_document(path: Path, columns: TableColumns) -> TraceRows:
    """Read the times of a document, sorted, with the counts or rates of its rows.

    Raises:
        UnfoldError: The file is not JSON, or holds none of the known forms.
    """
    try:
        with open_text(path) as stream:
            values = list(parse_values(stream.read()))
        rows = _read_spans(values, columns.match) or read_range(_iter_objects(list(values)), columns.match, path)
        rows = rows or read_metrics(_iter_objects(list(values)), columns, path) or _read_lists(values, columns, path)
    except json.JSONDecodeError as error:
        raise user_error(f"the document breaks off or is not JSON: {error}", file=str(path)) from error
    except (*UNREADABLE, ValueError, RecursionError) as error:
        raise user_error(f"cannot read the trace: {error}", file=str(path)) from error
    if rows is None and (reason := find_error_answer(values[0] if values else None)):
        hint = "run the query again; a status of success comes with the range"
        raise user_error(f"the file holds an error, not a range: {reason}", file=str(path), hint=hint)
    if rows is None:
        raise user_error("no arrival times in this document", file=str(path), hint=_FORMS_HINT)
    return rows


def _iter_objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in a value, outer objects first."""
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _iter_objects(child)


def _read_spans(values: Sequence[Any], match: str) -> TraceRows | None:
    objects = ({**each, **each["context"]} if is_sdk_span(each) else each for each in _iter_objects(list(values)))
    spans = [span for span in objects if _get(span, _ID_KEYS) and _get(span, _TRACE_KEYS) and _start_s(span)]
    selected = [span for span in spans if match in json.dumps(span, ensure_ascii=False)] if match else spans
    if not spans:
        return None
    ids = {_get(span, _ID_KEYS) for span in selected}
    starts = [_start_s(span) for span in selected if _parent_id(span) not in ids]
    return TraceRows(np.sort(np.array(starts, dtype=np.float64)))


def is_sdk_span(value: Any) -> bool:
    """Return whether a value is a span as the SDK of OpenTelemetry prints it: its ids are in a context."""
    context = value.get("context") if isinstance(value, dict) else None
    return isinstance(context, dict) and "span_id" in context and {"parent_id", "start_time"} <= set(value)


def _get(span: dict[str, Any], keys: Sequence[str]) -> str | int | None:
    return next((span[key] for key in keys if span.get(key) and isinstance(span[key], (str, int))), None)


def _start_s(span: dict[str, Any]) -> float | None:
    """Return the start of a span in s since 1970."""
    if is_sdk_span(span):
        try:
            return dt.datetime.fromisoformat(str(span["start_time"])).timestamp()
        except ValueError:
            return None
    for key, parts in _START_KEYS:
        if key in span:
            try:
                # nanoseconds since 1970 have more digits than a float: split off complete seconds first
                seconds, remainder = divmod(int(span[key]), int(parts))
            except (TypeError, ValueError):
                return None
            return seconds + remainder / parts
    return None


def _parent_id(span: dict[str, Any]) -> str | int | None:
    references = [_get(ref, _ID_KEYS) for ref in span.get("references") or () if isinstance(ref, dict)]
    return _get(span, _PARENT_KEYS) or (references[0] if references else None)


def _read_lists(values: Sequence[Any], columns: TableColumns, path: Path) -> TraceRows | None:
    """Read the rows of a list; errors name the entry, since a document has no lines."""
    try:
        return _read_first_list(values, columns, path)
    except UnfoldError as error:
        raise name_positions(error, "entry") from error


def _read_first_list(values: Sequence[Any], columns: TableColumns, path: Path) -> TraceRows | None:
    for head, rows in _iter_results(values, columns.time, path):
        if rows and is_table_head(head, columns.time):
            return sort_rows(read_rows(head, iter(enumerate(rows, 1)), columns, path), columns, path)
    for name, entries in _iter_lists(values[0] if len(values) == 1 else list(values), ""):
        if all(isinstance(entry, dict) for entry in entries):
            objects = _lift_field(entries, columns.time)
            head = list(dict.fromkeys(key for entry in objects for key in entry))
            if is_table_head(head, columns.time):
                if name == DATAPOINTS and "Unit" in head:
                    columns = find_datapoint_counts(objects, columns, path)
                return sort_rows(read_rows(head, _object_rows(objects, head), columns, path), columns, path)
        elif not any(isinstance(entry, (dict, list)) for entry in entries) and _is_time_list(name, columns.time):
            single = replace(columns, time=name or "time", default_time=None)
            return sort_rows(read_rows([name or "time"], _value_rows(entries), single, path), columns, path)
    return None


def _iter_results(values: Sequence[Any], column: str | None, path: Path) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Yield head and rows of the results of log searches, which hold no plain list of objects.

    These are the hits of Elasticsearch and OpenSearch, the tables of Azure Monitor, the streams of Loki, and the rows
    of CloudWatch Logs Insights.

    Raises:
        UnfoldError: A search returned only some of its hits.
    """
    for each in _iter_objects(list(values)):
        hits = [hit["_source"] for hit in _list_objects(each, "hits") if isinstance(hit.get("_source"), dict)]
        if hits:
            _require_all_hits(each.get("total"), len(hits), path)
            hits = _lift_field(hits, column)
            head = list(dict.fromkeys(key for hit in hits for key in hit))
            yield head, [[_to_text(hit.get(name)) for name in head] for hit in hits]
        names = [str(column.get("name")) for column in _list_objects(each, "columns")]
        if names and isinstance(each.get("rows"), list):
            yield names, [[_to_text(cell) for cell in row] for row in each["rows"] if isinstance(row, list)]
        if rows := _list_field_rows(each.get("results")):
            head = list(dict.fromkeys(name for row in rows for name in row))
            _require_all_matches(each.get("statistics"), head, rows, path)
            yield head, [[_to_text(row.get(name)) for name in head] for row in rows]
        if each.get("resultType") == "streams":
            yield ["timestamp", "labels", "line"], list(_iter_stream_rows(_list_objects(each, "result")))


def _lift_field(entries: list[dict[str, Any]], column: str | None) -> list[dict[str, Any]]:
    """Give entries the field of an inner object that a path such as ``event.start`` names, under that path."""
    inner = [get_field(entry, column) for entry in entries] if column else []
    if column is None or all(value is None for value in inner):
        return entries
    return [{**entry, column: value} for entry, value in zip(entries, inner, strict=True)]


def _require_all_hits(total: Any, found: int, path: Path) -> None:
    """Reject a page of hits: a search returns the best ten unless it is asked for more."""
    count = total.get("value") if isinstance(total, dict) else total
    if isinstance(count, int) and count > found:
        hint = "export all of them, for example with elasticdump"
        raise user_error(f"the search returned {found:,} of {count:,} hits", file=str(path), hint=hint)


def _list_field_rows(results: Any) -> list[dict[str, Any]]:
    """Return the rows of CloudWatch Logs Insights, which are lists of objects with ``field`` and ``value``."""
    rows = [row for row in results if isinstance(row, list) and row] if isinstance(results, list) else []
    is_known = all(isinstance(cell, dict) and {"field", "value"} <= cell.keys() for row in rows for cell in row)
    return [{str(cell["field"]): cell["value"] for cell in row} for row in rows] if is_known else []


def _require_all_matches(statistics: Any, head: Sequence[str], rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Reject rows without some of the events that a query has matched: it returns the first 10,000 at most."""
    matched = statistics.get("recordsMatched") if isinstance(statistics, dict) else None
    if isinstance(matched, (int, float)) and {"@ptr", _COUNT_ALL} & set(head):
        found = len(rows) if "@ptr" in head else sum(float(row.get(_COUNT_ALL) or 0) for row in rows)
        if matched > found:
            message = f"the query returned {found:,.0f} of {matched:,.0f} events"
            raise user_error(message, file=str(path), hint="stats count(*) by bin(1m), with a limit above its rows")


def _iter_stream_rows(streams: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    for stream in streams:
        labels, entries = json.dumps(stream.get("stream"), ensure_ascii=False), stream.get("values")
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, list) and len(entry) > 1:
                yield [_to_text(entry[0]), labels, _to_text(entry[1])]


def _list_objects(value: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = value.get(key)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _is_time_list(name: str, column: str | None) -> bool:
    """Whether a list under that name holds times; a list without a name does."""
    plain = split_unit(name)[0]
    return name == (column or "") or (column is None and not {name, plain, plain.rstrip("s")}.isdisjoint(COLUMNS))


def _iter_lists(value: Any, name: str) -> Iterator[tuple[str, list[Any]]]:
    """Yield the non-empty lists of a value with the key that holds them, outer lists first."""
    if isinstance(value, list) and value:
        yield name, value
    for key, child in value.items() if isinstance(value, dict) else ():
        yield from _iter_lists(child, key)


def _object_rows(entries: Sequence[dict[str, Any]], head: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    for number, entry in enumerate(entries, 1):
        yield number, [_to_text(entry.get(name)) for name in head]


def _value_rows(entries: Sequence[Any]) -> Iterator[tuple[int, list[str]]]:
    for number, entry in enumerate(entries, 1):
        yield number, [_to_text(entry)]


def _to_text(value: Any) -> str:
    return "" if value is None or isinstance(value, (dict, list)) else str(value)
