"""Read rates of requests from Prometheus, and counts from CloudWatch, Azure, Google Cloud, Datadog and Elasticsearch.

A metric counts requests only by some statistics and units; what does not is refused with the statistic that would.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unfoldkit._types import FloatArray, IntArray
from unfoldkit.arrivals.readers.table import TableColumns, TraceRows, read_rows, sort_rows
from unfoldkit.arrivals.readers.timestamps import epoch_to_seconds
from unfoldkit.errors import user_error

DATAPOINTS = "Datapoints"
"""The key of the data points of ``aws cloudwatch get-metric-statistics``."""
_DURATION_UNITS = ("Seconds", "MilliSeconds", "Milliseconds", "Microseconds")
_CLOUDWATCH_HINT = "--statistics Sum of a metric that counts requests, or SampleCount of their latency"
_AZURE_HINT = "--aggregation Total of a metric that counts requests, or Count of their latency"
_GOOGLE_HINT = "request_count with the aligner ALIGN_DELTA"
_DATADOG_HINT = "a query that ends in .as_count() or .as_rate()"
_RATES_HINT = "the range of a query such as sum(rate(http_requests_total[1m]))"
_COUNTER_ENDINGS = ("_total", "_count")
MAX_REASON = 200
_TIME, _VALUE = "time", "value"


@dataclass(frozen=True, slots=True)
class MetricSeries:
    """The values of one metric.

    Attributes:
        name: Its name.
        points: Times and values as they are written; the value is ``None`` where nothing was measured.
        fault: Why its values count no requests; empty if they do.
        hint: What would.
        is_rate: Whether the values are per second.
    """

    name: str
    points: Sequence[tuple[Any, Any]]
    fault: str = ""
    hint: str = ""
    is_rate: bool = False


def read_metrics(objects: Iterable[dict[str, Any]], columns: TableColumns, path: Path) -> TraceRows | None:
    """Read the requests that one metric counts, summed over its series; its name contains ``match``.

    Returns:
        Times and counts, sorted; ``None`` if the document holds no metrics.

    Raises:
        UnfoldError: It holds several metrics, or their values count no requests.
    """
    series = [metric for value in objects for metric in _list_series(value)]
    if not series:
        return None
    selected = [metric for metric in series if columns.match in metric.name]
    names = list(dict.fromkeys(metric.name for metric in selected))
    if len(names) != 1:
        message = f"the file holds {len(names)} metrics{': ' if names else ''}{', '.join(names[:5])}"
        raise user_error(message, file=str(path), hint="arrivals.match names the one that counts requests")
    for metric in selected:
        if metric.fault:
            raise user_error(f"{metric.name}: {metric.fault}", file=str(path), hint=metric.hint)
    points = [(str(time), "0" if value is None else str(value)) for metric in selected for time, value in metric.points]
    is_rate = selected[0].is_rate
    named = replace(columns, time=_TIME, match="", counts="" if is_rate else _VALUE, rates=_VALUE if is_rate else None)
    rows = ((number, list(point)) for number, point in enumerate(points, 1))
    return sort_rows(read_rows([_TIME, _VALUE], rows, named, path), named, path)


def read_range(objects: Iterable[dict[str, Any]], match: str, path: Path) -> TraceRows | None:
    """Read a range query of Prometheus: the sum of the series with labels that contain ``match``.

    Returns:
        Times and rates, sorted; ``None`` if the document holds no range.

    Raises:
        UnfoldError: The values are not rates.
    """
    matrix = next((result for result in objects if result.get("resultType") == "matrix"), None)
    if matrix is None:
        return None
    try:
        series = [row for row in matrix["result"] if match in json.dumps(row.get("metric"), ensure_ascii=False)]
        names = [str((row.get("metric") or {}).get("__name__", "")) for row in series]
        pairs = sorted((float(time), float(rate)) for row in series for time, rate in row["values"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = "a series of the range has no pairs of time and value"
        raise user_error(message, file=str(path), hint=_RATES_HINT) from error
    # rate() and the like drop the name
    if counters := [name for name in names if name.endswith(_COUNTER_ENDINGS)]:
        raise user_error(f"{counters[0]} is a counter, not a rate", file=str(path), hint=_RATES_HINT)
    times, rates = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    marks, first = np.unique(times, return_index=True)
    return TraceRows(epoch_to_seconds(marks), None, "values", True, _sum_series(rates, first, path))


def find_error_answer(value: Any) -> str:
    """Return why a query of Prometheus, or of a server that answers like it, failed; empty if ``value`` is no error."""
    if not isinstance(value, dict) or value.get("status") != "error":
        return ""
    parts = (str(value[key]) for key in ("errorType", "error", "message") if value.get(key))
    return ": ".join(parts)[:MAX_REASON] or "without a reason"


def find_datapoint_counts(entries: Sequence[dict[str, Any]], columns: TableColumns, path: Path) -> TableColumns:
    """Return the columns of ``aws cloudwatch get-metric-statistics``, with the statistic that counts requests.

    Raises:
        UnfoldError: None of its statistics does.
    """
    if columns.counts is not None or columns.rates is not None:
        return columns
    units = {str(entry.get("Unit")) for entry in entries}
    counts = "SampleCount" if units <= set(_DURATION_UNITS) else "Sum"
    if units - {"Count", "None", *_DURATION_UNITS} or any(counts not in entry for entry in entries):
        message = f"no statistic of these data points in {', '.join(sorted(units))} counts requests"
        raise user_error(message, file=str(path), hint=_CLOUDWATCH_HINT)
    return replace(columns, default_counts=counts)


def _list_series(value: dict[str, Any]) -> Iterator[MetricSeries]:
    """Yield the metrics that an object holds by itself, whatever system has exported it."""
    for result in _list_objects(value.get("MetricDataResults")):
        # results in pages share a label
        yield _read_cloudwatch(result)
    if isinstance(value.get("timeseries"), list) and isinstance(value.get("name"), dict):
        yield from _list_azure(value)
    for result in _list_objects(value.get("timeSeries")):
        yield _read_google(result)
    # those of a date histogram of Elasticsearch; other buckets have no key_as_string
    if buckets := [bucket for bucket in _list_objects(value.get("buckets")) if "key_as_string" in bucket]:
        yield MetricSeries("doc_count", [(bucket.get("key"), bucket.get("doc_count")) for bucket in buckets])
    for result in _list_objects(value.get("series")):
        if isinstance(result.get("pointlist"), list):
            yield _read_datadog(result)


def _read_cloudwatch(result: dict[str, Any]) -> MetricSeries:
    """Read a result of ``aws cloudwatch get-metric-data``, with its times and its values in two lists."""
    name, times, values = str(result.get("Label")), result.get("Timestamps"), result.get("Values")
    if not isinstance(times, list) or not isinstance(values, list) or len(times) != len(values):
        return MetricSeries(name, (), "it has no pairs of time and value", "Timestamps and Values of equal length")
    return MetricSeries(name, list(zip(times, values, strict=True)))


def _list_azure(metric: dict[str, Any]) -> Iterator[MetricSeries]:
    """Yield the series of a metric of ``az monitor metrics list``, one for each value of its dimensions."""
    name, unit = str(metric["name"].get("value")), str(metric.get("unit"))
    statistic = "count" if unit in _DURATION_UNITS else "total"
    for series in _list_objects(metric["timeseries"]):
        entries = _list_objects(series.get("data"))
        is_counted = unit in ("Count", *_DURATION_UNITS)
        is_empty = all(entry.get(statistic) is None for entry in entries)
        fault = "" if is_counted and not is_empty else f"no statistic in {unit} counts requests"
        yield MetricSeries(name, [(e.get("timeStamp"), e.get(statistic)) for e in entries], fault, _AZURE_HINT)


def _read_google(series: dict[str, Any]) -> MetricSeries:
    """Read a series of ``projects.timeSeries.list``; only a delta counts the requests of its interval."""
    points = [
        (point["interval"].get("startTime"), value.get("int64Value", value.get("doubleValue")))
        for point in _list_objects(series.get("points"))
        if isinstance(value := point.get("value"), dict) and isinstance(point.get("interval"), dict)
    ]
    kind = (series.get("metricKind"), series.get("valueType"))
    is_count = kind in (("DELTA", "INT64"), ("DELTA", "DOUBLE"))
    fault = "" if is_count else f"values of {kind[0]} {kind[1]} do not count requests"
    metric = series.get("metric")
    return MetricSeries(str(metric.get("type")) if isinstance(metric, dict) else "", points, fault, _GOOGLE_HINT)


def _read_datadog(series: dict[str, Any]) -> MetricSeries:
    expression = str(series.get("expression"))
    is_count, is_rate = ".as_count()" in expression, ".as_rate()" in expression
    fault = "" if is_count != is_rate else "its values may be counts or rates"
    points = [tuple(point) for point in series["pointlist"] if isinstance(point, list) and len(point) == 2]
    return MetricSeries(str(series.get("metric")), points, fault, _DATADOG_HINT, is_rate)


def _sum_series(rates: FloatArray, first: IntArray, path: Path) -> FloatArray:
    """Sum the rates of each time; missing measurements (NaN) count as zero."""
    invalid = rates[(rates < 0) | np.isinf(rates)]
    if invalid.size:
        raise user_error(f"{invalid[0]:g} is not a rate", file=str(path), key="values", hint=_RATES_HINT)
    return np.add.reduceat(np.where(np.isnan(rates), 0.0, rates), first) if rates.size else rates


def _list_objects(entries: Any) -> list[dict[str, Any]]:
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
