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
BEGUN = 1_700_158_627


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


def test_rates_of_prometheus_are_summed_over_their_series(tmp_path: Path) -> None:
    """The number of arrivals is the sum of all rates over time, and a warning names the values read as rates."""
    series = [{"metric": {"pod": str(n)}, "values": [[BEGUN + 60 * at, f"{n}.5"] for at in range(10)]} for n in (1, 2)]
    path = tmp_path / "prom.json"
    path.write_text(json.dumps({"status": "success", "data": {"resultType": "matrix", "result": series}}))
    messages: list[str] = []
    assert traces.read_trace(path, warn=messages.append).size == 4 * 600
    assert "a rate of arrivals" in messages[0]


def prometheus(path: Path, *series: dict[str, Any]) -> Path:
    """Write the answer of a range query with some series."""
    path.write_text(json.dumps({"status": "success", "data": {"resultType": "matrix", "result": list(series)}}))
    return path


def test_series_are_chosen_by_their_labels(tmp_path: Path) -> None:
    """With ``match`` only the series with the text in their labels arrive; without it all routes do."""
    series = [
        {"metric": {"route": name}, "values": [[BEGUN + 60 * at, rate] for at in range(10)]}
        for name, rate in (("/a", "1"), ("/b", "100"))
    ]
    assert traces.read_trace(prometheus(tmp_path / "prom.json", *series), match='"route": "/a"').size == 600


def test_counters_of_several_series_are_reported(tmp_path: Path) -> None:
    """Counters that rise in every series are reported as such, though one series counts more than another."""
    series = [
        {"metric": {"pod": str(n)}, "values": [[BEGUN + at, str(100 * n + at)] for at in range(20)]} for n in range(2)
    ]
    messages: list[str] = []
    traces.read_trace(prometheus(tmp_path / "prom.json", *series), warn=messages.append)
    assert any("never falls" in text for text in messages)


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ({"metric": {}, "histograms": [[BEGUN, {"count": "3"}]]}, "no pairs of time and value"),
        ({"metric": {}, "values": [[BEGUN, None], [BEGUN + 1, "3"]]}, "no pairs of time and value"),
        ({"metric": {}, "values": [[BEGUN]]}, "no pairs of time and value"),
        ({"metric": {}, "values": [[BEGUN, "-1.5"], [BEGUN + 1, "3"]]}, "-1.5 is not a rate"),
        ({"metric": {}, "values": [[BEGUN, "+Inf"], [BEGUN + 1, "3"]]}, "inf is not a rate"),
        (
            {"metric": {"__name__": "requests_total"}, "values": [[BEGUN, "7"], [BEGUN + 1, "9"]]},
            "requests_total is a counter",
        ),
    ],
)
def test_series_without_rates_are_reported(tmp_path: Path, series: dict[str, Any], expected: str) -> None:
    """A range of histograms, gaps in words or no rates is refused with what it lacks."""
    with pytest.raises(UnfoldError, match=expected):
        traces.read_trace(prometheus(tmp_path / "prom.json", series))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"status": "error", "errorType": "bad_data", "error": "1:5: parse error"}, "bad_data: 1:5: parse error"),
        ({"status": "error", "message": "too many outstanding requests"}, "too many outstanding requests"),
        ({"status": "error"}, "without a reason"),
    ],
)
def test_an_error_of_prometheus_is_shown(tmp_path: Path, answer: dict[str, str], reason: str) -> None:
    """The error of a query is reported as such, not as a table without a column of times."""
    path = tmp_path / "range.json"
    path.write_text(json.dumps(answer), "utf-8")
    with pytest.raises(UnfoldError, match=f"an error, not a range: {reason}"):
        traces.read_trace(path)


def write_cloudwatch(path: Path, form: str, counts: dict[int, float], **statistics: Any) -> Path:
    """Counts by minute as the command line of AWS prints them, in no order."""
    stamps = {minute: f"2026-01-05T10:{minute:02d}:00+00:00" for minute in counts}
    minutes = sorted(counts, key=lambda minute: (minute * 7) % 11)
    if form == "statistics":
        points = [{"Timestamp": stamps[at], "Sum": counts[at], "Unit": "Count", **statistics} for at in minutes]
        document: dict[str, Any] = {"Label": "RequestCount", "Datapoints": points}
    else:
        lists = {"Timestamps": [stamps[at] for at in minutes], "Values": [counts[at] for at in minutes]}
        result = {"Id": "m1", "Label": "RequestCount", **lists, "StatusCode": "Complete", **statistics}
        latency = {"Id": "m2", "Label": "TargetResponseTime", "Timestamps": [], "Values": []}
        document = {"MetricDataResults": [latency, result]}
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("form", ["statistics", "data"])
def test_counts_of_cloudwatch_are_arrivals(tmp_path: Path, form: str) -> None:
    """A data point stands for the requests of its period; none is reported for a period without requests."""
    counts = {minute: float(10 + minute) for minute in range(12) if minute != 5}
    path = write_cloudwatch(tmp_path / "cw.json", form, counts)
    arrivals = traces.read_trace(path, match="RequestCount" if form == "data" else "")
    assert arrivals.size == sum(counts.values())
    # up to 2 s before the first arrival
    assert np.histogram(arrivals, 12, (0, 720))[0] == pytest.approx([counts.get(at, 0) for at in range(12)], abs=4)


def test_latencies_of_cloudwatch_count_by_their_samples(tmp_path: Path) -> None:
    """The sum of latencies is no number of requests, but that of their samples is."""
    counts = dict.fromkeys(range(12), 1234.5)
    path = write_cloudwatch(tmp_path / "cw.json", "statistics", counts, Unit="Seconds", SampleCount=20.0)
    assert traces.read_trace(path).size == 240


@pytest.mark.parametrize(
    ("form", "statistics", "message"),
    [
        ("statistics", {"Unit": "Seconds"}, "no statistic .* in Seconds counts requests"),
        ("statistics", {"Unit": "Percent"}, "no statistic .* in Percent counts requests"),
        ("data", {}, "holds 2 metrics: TargetResponseTime, RequestCount"),
    ],
)
def test_other_metrics_of_cloudwatch_are_refused(
    tmp_path: Path, form: str, statistics: dict[str, Any], message: str
) -> None:
    """One arrival for each data point would be a rate that no system has."""
    path = write_cloudwatch(tmp_path / "cw.json", form, dict.fromkeys(range(12), 30.0), **statistics)
    with pytest.raises(UnfoldError, match=message):
        traces.read_trace(path)
