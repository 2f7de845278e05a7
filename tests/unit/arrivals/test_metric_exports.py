"""Metrics of monitoring systems count requests by interval, or are refused with what would count them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unfoldkit.arrivals import traces
from unfoldkit.errors import UnfoldError

COUNTS = [30, 0, 17, 45, 12]
TIMES = [f"2026-03-02T09:{minute:02d}:00Z" for minute in range(len(COUNTS))]
EPOCH_S = 1_772_442_000


def azure(unit: str = "Count", name: str = "Requests", **statistics: list[float | None]) -> dict[str, Any]:
    """A metric as ``az monitor metrics list`` prints it; statistics that were not asked for are null."""
    known: Mapping[str, Sequence[float | None]] = statistics or {"total": COUNTS}
    empty: dict[str, Any] = {"average": None, "count": None, "total": None}
    data = [
        {"timeStamp": time, **empty, **{key: values[at] for key, values in known.items()}}
        for at, time in enumerate(TIMES)
    ]
    value = {"name": {"value": name, "localizedValue": name}, "unit": unit}
    return {"interval": "0:01:00", "value": [{**value, "timeseries": [{"data": data, "metadatavalues": []}]}]}


def google(kind: str = "DELTA") -> dict[str, Any]:
    """Two series of ``projects.timeSeries.list``, the newest point first."""
    points = [
        {"interval": {"startTime": time, "endTime": time}, "value": {"int64Value": str(count)}}
        for time, count in zip(TIMES, COUNTS, strict=True)
    ][::-1]
    series = {"metric": {"type": "https/request_count"}, "metricKind": kind, "valueType": "INT64", "points": points}
    return {"timeSeries": [series, {**series, "points": points[-1:]}]}


def datadog(expression: str) -> dict[str, Any]:
    """The answer of a query of Datadog."""
    points = [[(EPOCH_S + 60 * at) * 1000, float(count)] for at, count in enumerate(COUNTS)]
    return {"status": "ok", "series": [{"metric": "hits", "expression": expression, "pointlist": points}]}


def elasticsearch() -> dict[str, Any]:
    """A search of Elasticsearch with a date histogram, and terms beside it."""
    buckets = [
        {"key_as_string": time, "key": (EPOCH_S + 60 * at) * 1000, "doc_count": COUNTS[at]}
        for at, time in enumerate(TIMES)
    ]
    terms = [{"key": "web", "doc_count": sum(COUNTS)}]
    return {"hits": {"hits": []}, "aggregations": {"status": {"buckets": terms}, "minutes": {"buckets": buckets}}}


def read_minutes(path: Path, document: dict[str, Any], match: str = "") -> list[int]:
    """Read the arrivals of each minute; the first arrival is in the first minute."""
    path.write_text(json.dumps(document, indent=1))
    arrivals = traces.read_trace(path, match=match)
    assert arrivals.max() < 60 * len(COUNTS)
    return [int(count) for count in np.histogram(arrivals, len(COUNTS), (0, 60 * len(COUNTS)))[0]]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (azure(), COUNTS),
        (azure("Milliseconds", count=[float(count) for count in COUNTS], average=[3.0] * 5), COUNTS),
        (google(), [60, *COUNTS[1:]]),
        (datadog("sum:hits{*}.as_count()"), COUNTS),
        (elasticsearch(), COUNTS),
    ],
)
def test_a_point_counts_the_requests_of_its_interval(
    tmp_path: Path, document: dict[str, Any], expected: list[int]
) -> None:
    """Counts, samples of latencies and deltas are requests; series of one metric are summed."""
    # the first arrival is at 0, so that others move by up to 2 s
    assert read_minutes(tmp_path / "a.json", document) == pytest.approx(expected, abs=3)


def test_rates_are_per_second(tmp_path: Path) -> None:
    """A query of Datadog that states a rate has requests per second."""
    minutes = read_minutes(tmp_path / "a.json", datadog("sum:hits{*}.as_rate()"))
    assert minutes == pytest.approx([60 * count for count in COUNTS], abs=60)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (azure("Seconds", average=[0.5] * 5), "Requests: no statistic in Seconds counts requests .--aggregation Total"),
        (azure("Percent"), "no statistic in Percent counts requests"),
        (azure(average=[3.0] * 5), "no statistic in Count counts requests"),
        (google("CUMULATIVE"), "values of CUMULATIVE INT64 do not count requests .*ALIGN_DELTA"),
        (datadog("avg:hits{*}"), "hits: its values may be counts or rates .*as_count"),
        ({"MetricDataResults": [{"Label": "a", "Timestamps": TIMES, "Values": []}]}, "no pairs of time and value"),
        ({"value": [*azure()["value"], *azure(name="Errors")["value"]]}, "2 metrics: Requests, Errors"),
    ],
)
def test_what_counts_no_requests_is_refused(tmp_path: Path, document: dict[str, Any], reason: str) -> None:
    """Averages, gauges, counters and values of an unknown kind are no numbers of requests."""
    with pytest.raises(UnfoldError, match=reason):
        read_minutes(tmp_path / "a.json", document)


def test_match_selects_the_metric(tmp_path: Path) -> None:
    """Of several metrics, the one whose name contains the text counts."""
    document = {"value": [*azure()["value"], *azure("Seconds", "ResponseTime", average=[1.0] * 5)["value"]]}
    assert sum(read_minutes(tmp_path / "a.json", document, "Requests")) == sum(COUNTS)
