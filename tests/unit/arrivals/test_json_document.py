"""Documents of JSON as traces: lists, rows, spans, and results of log searches."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unfoldkit.arrivals import traces
from unfoldkit.errors import UnfoldError

BEGUN = 1_700_158_627
TIMES = np.round(np.cumsum(np.random.default_rng(0).exponential(0.1, 120)), 3)
FROM_0 = pytest.approx(TIMES - TIMES[0], abs=2e-6)


def spans(identity: str, parent: str, trace: str, start: str, parts: int) -> list[dict[str, Any]]:
    """Three spans a request, the outer one first, as a tracer writes them."""
    made = []
    for number, time in enumerate(TIMES):
        for part in range(3):
            at = round((BEGUN + time + part * 0.01) * parts)
            above = {parent: f"{number}-0"} if part else {}
            own = {trace: f"t{number}", identity: f"{number}-{part}", "name": f"op{part}"}
            made.append({**own, **above, start: at if parts < 1e9 else str(at)})
    return made


OTLP = spans("spanId", "parentSpanId", "traceId", "startTimeUnixNano", 1_000_000_000)
ZIPKIN = spans("id", "parentId", "traceId", "timestamp", 1_000_000)
JAEGER = [
    {**item, "references": [{"refType": "CHILD_OF", "spanID": item["above"]}]} if "above" in item else item
    for item in spans("spanID", "above", "traceID", "startTime", 1_000_000)
]

SDK = [
    {
        "name": item["name"],
        "context": {"trace_id": item["traceId"], "span_id": item["spanId"], "trace_state": "[]"},
        "parent_id": item.get("parentSpanId"),
        "start_time": dt.datetime.fromtimestamp(int(item["startTimeUnixNano"]) / 1e9, dt.UTC).isoformat(),
        "events": [{"name": "chunk", "timestamp": "2023-11-16T18:17:07.9Z"}],
    }
    for item in OTLP
]


def batch(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of spans as OTLP nests them."""
    return {"resourceSpans": [{"scopeSpans": [{"scope": {"name": "app"}, "spans": items}]}]}


def lines(values: list[Any]) -> str:
    """Values one a line."""
    return "".join(json.dumps(value) + "\n" for value in values)


FORMS = {
    "times.json": json.dumps(TIMES.tolist()),
    "named.json": json.dumps({"model": "a", "timestamps": TIMES.tolist()}, indent=2),
    "rows.json": json.dumps([{"id": n, "created_at": float(t)} for n, t in reversed(list(enumerate(TIMES)))]),
    "otlp.json": json.dumps(batch(OTLP)),
    "pretty.json": json.dumps(batch(OTLP), indent=2),
    "batches.jsonl": lines([batch(OTLP[at : at + 20]) for at in range(0, len(OTLP), 20)]),
    "spans.jsonl": lines(OTLP),
    "sdk.jsonl": lines(SDK),
    "sdk.json": "\n".join(json.dumps(item, indent=4) for item in SDK),
    "jaeger.json": json.dumps({"data": [{"traceID": "t", "spans": JAEGER}]}),
    "zipkin.json": json.dumps(ZIPKIN, indent=1),
}


@pytest.mark.parametrize("name", FORMS)
def test_an_arrival_is_an_entry_of_a_list_or_a_span_without_its_parent(tmp_path: Path, name: str) -> None:
    """Every form gives the same requests at the same times, however many spans each made and in what order."""
    path = tmp_path / name
    path.write_text(FORMS[name])
    assert traces.read_trace(path).tolist() == FROM_0


def test_spans_that_hold_a_text_are_requests_of_their_own(tmp_path: Path) -> None:
    """Where only inner spans are wanted, their parents are not in sight and each is an arrival."""
    path = tmp_path / "otlp.json"
    path.write_text(FORMS["otlp.json"])
    assert traces.read_trace(path, match="op1").tolist() == FROM_0
    assert traces.read_trace(path, match="op").size == TIMES.size


def test_odd_names_and_depths_of_documents_are_reported(tmp_path: Path) -> None:
    """Spans with lists as names are no spans, and a document too deep to look through is refused."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps(batch([{"traceId": "a", "spanId": ["l"], "startTimeUnixNano": "1"}])))
    with pytest.raises(UnfoldError, match="no arrival times"):
        traces.read_trace(path)
    path.write_text('{"a":' * 600 + "[1]" + "}" * 600)
    with pytest.raises(UnfoldError):
        traces.read_trace(path)


def test_rows_may_hold_counts(tmp_path: Path) -> None:
    """Objects are rows as those of a table, in any order: a column of theirs may count arrivals."""
    path = tmp_path / "points.json"
    rows = [{"Timestamp": f"2023-11-16T18:{at:02}:00Z", "Sum": 10 + at} for at in (2, 0, 1)]
    path.write_text(json.dumps({"Label": "RequestCount", "Datapoints": rows}, indent=1))
    assert traces.read_trace(path, counts="Sum").size == 33
    with pytest.raises(UnfoldError, match=r"points\.json: Label: entry 1: no column|no column Label"):
        traces.read_trace(path, counts="Label")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (json.dumps(ZIPKIN)[:-40], "breaks off or is not JSON"),
        (json.dumps({"a": [{"x": 1}]}), "no arrival times in this document"),
        ("", "the trace has no arrival"),
        (json.dumps([{"time": "0"}, {"time": "soon"}]), "entry 2: 'soon' is not a time"),
    ],
)
def test_an_incomplete_document_is_reported(tmp_path: Path, text: str, expected: str) -> None:
    """A document that is cut, holds no times, or holds an invalid entry is reported as such."""
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UnfoldError, match=expected):
        traces.read_trace(path)


def test_lines_of_json_are_a_log_whatever_they_nest(tmp_path: Path) -> None:
    """Objects one a line are a log, and so is a single one in a file that is called one."""
    path = tmp_path / "a.json"
    path.write_text(lines([{"ts": time, "tags": ["a"]} for time in TIMES]))
    assert traces.read_trace(path).size == TIMES.size
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"ts": 5, "tags": ["a"]}) + "\n")
    assert traces.read_trace(path).size == 1


STAMPS = [dt.datetime.fromtimestamp(BEGUN + time, dt.UTC) for time in TIMES]
HITS = [{"_id": str(at), "_source": {"@timestamp": each.isoformat(), "url": "/"}} for at, each in enumerate(STAMPS)]
SEARCHES: dict[str, dict[str, Any]] = {
    "elasticsearch": {"took": 3, "hits": {"total": {"value": TIMES.size, "relation": "eq"}, "hits": HITS[::-1]}},
    "loki": {
        "status": "success",
        "data": {
            "resultType": "streams",
            "result": [
                {"stream": {"pod": pod}, "values": [[str(round((BEGUN + time) * 1e9)), "POST /"] for time in times]}
                for pod, times in (("a", TIMES[::2]), ("b", TIMES[1::2]))
            ],
        },
    },
    "azure": {
        "tables": [
            {
                "name": "PrimaryResult",
                "columns": [{"name": "id", "type": "string"}, {"name": "timestamp", "type": "datetime"}],
                "rows": [[f"i{at}", each.isoformat()] for at, each in enumerate(STAMPS)],
            }
        ]
    },
}


@pytest.mark.parametrize("form", SEARCHES)
def test_results_of_log_searches_are_read(tmp_path: Path, form: str) -> None:
    """Each entry is an arrival, in whatever order the search returns it."""
    path = tmp_path / "found.json"
    path.write_text(json.dumps(SEARCHES[form]))
    assert traces.read_trace(path).tolist() == FROM_0


@pytest.mark.parametrize("is_search", [True, False])
def test_a_path_names_a_field_of_an_inner_object(tmp_path: Path, is_search: bool) -> None:
    """Elastic's agents keep the start of a request below ``event``, and its end at the top."""
    late = dt.timedelta(seconds=9)
    rows = [{"@timestamp": (each + late).isoformat(), "event": {"start": each.isoformat()}} for each in STAMPS]
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"hits": {"hits": [{"_source": row} for row in rows]}} if is_search else rows))
    assert traces.read_trace(path, column="event.start").tolist() == FROM_0
    with pytest.raises(UnfoldError, match="no arrival times"):
        traces.read_trace(path, column="event.begin")


def test_a_page_of_hits_is_refused(tmp_path: Path) -> None:
    """Ten hits of thousands are no trace."""
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"hits": {"total": {"value": 52_000}, "hits": HITS[:10]}}))
    with pytest.raises(UnfoldError, match="returned 10 of 52,000 hits"):
        traces.read_trace(path)


@pytest.mark.parametrize(
    "document",
    [
        {"resultType": "streams", "result": [{"stream": None, "values": ["x", [], [1], None]}]},
        {"hits": {"total": "many", "hits": [{"_source": None}, 3]}},
        {"columns": [{"name": None}], "rows": [3, [[]]]},
    ],
)
def test_damaged_results_are_reported(tmp_path: Path, document: dict[str, Any]) -> None:
    """They end with a message and no traceback."""
    path = tmp_path / "found.json"
    path.write_text(json.dumps(document))
    with pytest.raises(UnfoldError):
        traces.read_trace(path)


def insights(rows: list[dict[str, str]], matched: int) -> str:
    """The result of a query of CloudWatch Logs Insights, as the command line of AWS prints it."""
    results = [[{"field": name, "value": value} for name, value in row.items()] for row in rows]
    return json.dumps({"results": results, "statistics": {"recordsMatched": float(matched)}, "status": "Complete"})


def test_logs_insights_are_rows_or_counts(tmp_path: Path) -> None:
    """Events are arrivals, in any order; ``count(*)`` by ``bin`` counts them; a part of the events is refused."""
    path = tmp_path / "insights.json"
    stamps = [dt.datetime.fromtimestamp(BEGUN + time, dt.UTC).strftime("%F %T.%f")[:-3] for time in TIMES]
    events = [{"@timestamp": stamp, "@message": "GET /", "@ptr": "Cm"} for stamp in reversed(stamps)]
    path.write_text(insights(events, len(events)))
    assert traces.read_trace(path) == FROM_0
    bins = [{"bin(1m)": f"2026-03-02 09:{at:02d}:00.000", "count(*)": str(30 + at)} for at in range(5)]
    path.write_text(insights(bins[::-1], 160))
    assert np.histogram(traces.read_trace(path), 5, (0, 300))[0] == pytest.approx([30, 31, 32, 33, 34], abs=4)
    path.write_text("bin(1m),count(*)\n" + "".join(f"{row['bin(1m)']},{row['count(*)']}\n" for row in bins))
    assert traces.read_trace(path.rename(tmp_path / "insights.csv")).size == 160
    for rows, total in ((events, 5000), (bins, 161)):
        path.write_text(insights(rows, total))
        with pytest.raises(UnfoldError, match=rf"the query returned 1[26]0 of {total:,} events"):
            traces.read_trace(path)


def test_a_summary_is_no_trace(tmp_path: Path) -> None:
    """The one time in the summary of a load test is its start, not an arrival."""
    path = tmp_path / "autocannon.json"
    summary = {"url": "http://a", "start": "2026-03-02T09:00:00Z", "latency": {"p50": 2, "p99": 9}}
    for document in (summary, {"runs": [summary]}):
        path.write_text(json.dumps(document))
        with pytest.raises(UnfoldError, match="the file holds a single time"):
            traces.read_trace(path)


def test_durations_are_no_arrivals(tmp_path: Path) -> None:
    """HAR has the duration of a request as ``time``; other rows with complete times beside it must name the column."""
    stamps = [dt.datetime.fromtimestamp(BEGUN + time, dt.UTC).isoformat() for time in TIMES]
    path = tmp_path / "page.har"
    path.write_text(json.dumps({"log": {"entries": [{"startedDateTime": at, "time": 12.5} for at in stamps]}}))
    assert traces.read_trace(path) == FROM_0
    path.write_text(json.dumps([{"finished": at, "time": 12.5} for at in stamps]))
    with pytest.raises(UnfoldError, match=r"time may be a duration, since finished .*arrivals\.column: finished, or"):
        traces.read_trace(path)
    assert traces.read_trace(path, column="finished") == FROM_0


@pytest.mark.parametrize("wrap", [list, lambda items: {"hits": items}, lambda items: [item["time"] for item in items]])
def test_durations_in_documents_are_refused(wrap: Callable[[list[dict[str, float]]], Any], tmp_path: Path) -> None:
    """Numbers from 0 on in no order are durations; times in the order of ends, or of a clock, are arrivals."""
    rng = np.random.default_rng(1)
    path = tmp_path / "trace.json"

    def write(times: Iterable[float]) -> None:
        path.write_text(json.dumps(wrap([{"time": round(float(time), 4)} for time in times])))

    write(rng.gamma(2.0, 0.1, 300))
    with pytest.raises(UnfoldError, match=r"trace\.json: the times have no order, like durations"):
        traces.read_trace(path)
    for times in (TIMES[np.argsort(TIMES + rng.exponential(2.0, 120))], BEGUN + rng.permutation(TIMES)):
        write(times)
        assert traces.read_trace(path).size == 120


def test_a_stated_field_may_be_in_no_order(tmp_path: Path) -> None:
    """The user answers for the field that the spec names."""
    path = tmp_path / "trace.json"
    path.write_text(json.dumps([{"time": time} for time in np.random.default_rng(1).permutation(TIMES)]))
    assert traces.read_trace(path, column="time") == FROM_0
