"""Rates and k6: what monitoring and load generators write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from unfoldkit.arrivals import traces
from unfoldkit.arrivals.readers.monitoring import parse_rate, rate_period_s
from unfoldkit.errors import UnfoldError

BEGUN = 1_700_158_627
TIMES = np.round(np.cumsum(np.random.default_rng(0).exponential(0.5, 200)), 3)


def table(folder: Path, head: str, rows: list[str]) -> Path:
    """Write a table of a test."""
    path = folder / "a.csv"
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def test_a_column_with_a_unit_of_rates_holds_rates(tmp_path: Path) -> None:
    """A column with ``req/s`` in its first cell is one of rates under any name, as dashboards export them."""
    path = table(tmp_path, "Time,Value", [f"2023-11-16 18:00:{at:02},12.5 req/s" for at in range(0, 60, 10)])
    messages: list[str] = []
    assert traces.read_trace(path, warn=messages.append).size == 750
    assert "Value is read as a rate" in messages[0]


def test_a_rate_is_finite(tmp_path: Path) -> None:
    """A number too large for a rate is reported with its line."""
    with pytest.raises(UnfoldError, match=r"a\.csv:3:1: rps: '1e400' is not a rate"):
        traces.read_trace(table(tmp_path, "time,rps", ["1,2", "2,1e400"]))


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("rps", 1),
        ("QPS", 1),
        ("Requests/s", 1),
        ("requests per second", 1),
        ("http_requests_per_second", 1),
        ("sum(rate(http_requests_total[1m]))", 1),
        ("arrival_rate", 1),
        ("rpm", 60),
        ("req/min", 60),
        ("calls_per_hour", 3600),
        ("requests", None),
        ("learning_rate", None),
        ("duration_per_s", None),
        ("sampling", None),
    ],
)
def test_the_name_of_a_column_gives_the_period_of_its_rates(name: str, seconds: float | None) -> None:
    """Names of rates are known with the time that they count in; others are none."""
    assert rate_period_s(name) == seconds


def test_a_rate_may_have_a_unit() -> None:
    """Cells are numbers, with or without a unit of rates; nothing else is one."""
    assert [parse_rate(text) for text in ("10.5", "10.5 req/s", "3 /s", "1e2", "-1", "NaN", "")] == [
        *(10.5, 10.5, 3.0, 100.0),
        *(None, None, None),
    ]


def test_rates_are_arrivals_through_their_interval(tmp_path: Path) -> None:
    """Each interval gets what its rate makes of it, to one arrival, and rates below one an interval add up."""
    rates = np.random.default_rng(1).uniform(0, 3, 50)
    path = table(tmp_path, "timestamp,rps", [f"{BEGUN + 60 * at},{rate:.6f}" for at, rate in enumerate(rates)])
    messages: list[str] = []
    found = traces.read_trace(path, warn=messages.append)
    assert "column rps is read as a rate of arrivals" in messages[0]
    assert found.size == round(rates.sum() * 60)
    late = np.searchsorted(np.round(np.cumsum(rates * 60)), np.arange(found.size), side="right") * 60
    assert np.ptp(found - late) < 60
    slow = table(tmp_path, "time,qps", [f"{at},0.25" for at in range(40)])
    assert traces.read_trace(slow).size == 10


def test_a_counter_instead_of_a_rate_is_reported(tmp_path: Path) -> None:
    """Whole numbers that rise and never fall are read as rates, with a warning that they may be a counter's."""
    for rates, notes in ((range(0, 1200, 100), 2), ([5] * 12, 1), ([1.5, *range(2, 13)], 1)):
        messages: list[str] = []
        traces.read_trace(
            table(tmp_path, "time,rps", [f"{at},{rate}" for at, rate in enumerate(rates)]), warn=messages.append
        )
        assert [("never falls" in note) for note in messages] == [False, True][:notes]


def test_the_column_of_rates_can_be_stated(tmp_path: Path) -> None:
    """A column of any name can be a rate, in the unit of its name; ``counts: ''`` takes rows as arrivals."""
    path = table(tmp_path, "ts,load,rpm", ["0,2,60", "1,3,60", "2,4,60"])
    assert traces.read_trace(path, rates="load").size == 9
    assert traces.read_trace(path, rates="rpm").size == 3
    assert traces.read_trace(path, likely_rates="load").size == 9
    assert traces.read_trace(path, likely_rates="other").size == 3
    assert traces.read_trace(path, counts="").size == 3
    assert traces.read_trace(path, counts="load").size == 9
    with pytest.raises(UnfoldError, match=r"no column lod"):
        traces.read_trace(path, rates="lod")
    bad = table(tmp_path, "ts,rps", ["0,2", "1,many"])
    with pytest.raises(UnfoldError, match=r"a\.csv:3:1: rps: 'many' is not a rate \(arrivals per second"):
        traces.read_trace(bad)


def test_a_request_of_k6_is_one_arrival(tmp_path: Path) -> None:
    """Of the measurements that k6 writes of a request one counts, in CSV and in JSON."""
    metrics = ("http_reqs", "http_req_duration", "http_req_waiting", "vus")
    head = "metric_name,timestamp,metric_value,check,url"
    rows = [f"{name},{BEGUN + int(time)},1,,http://a" for time in TIMES for name in metrics]
    rows[0], rows[40] = rows[40], rows[0]
    assert traces.read_trace(table(tmp_path, head, rows)).size == TIMES.size
    path = tmp_path / "k6.json"
    lines = [
        json.dumps({"metric": name, "type": kind, "data": {"time": f"2023-11-16T18:17:{at % 60:02}.5Z", "value": 1}})
        for at, (name, kind) in enumerate([("http_reqs", "Metric"), *((name, "Point") for name in metrics * 50)])
    ]
    path.write_text("\n".join(line.replace(": ", ":").replace(", ", ",") for line in lines) + "\n")
    assert traces.read_trace(path).size == 50


@pytest.mark.parametrize("name", ["a.csv", "a.txt"])
def test_arrivals_are_end_minus_duration_where_a_table_has_only_these(tmp_path: Path, name: str) -> None:
    """Of end and duration the difference is the arrival, whatever the order of the ends."""
    lasted = np.random.default_rng(2).exponential(3, TIMES.size)
    ends = sorted(zip(TIMES + lasted, lasted, strict=True))
    path = tmp_path / name
    path.write_text("app,func,end_timestamp,duration\n" + "".join(f"a,b,{e:.9f},{s:.9f}\n" for e, s in ends))
    assert traces.read_trace(path).tolist() == pytest.approx(TIMES - TIMES[0], abs=1e-6)


@pytest.mark.parametrize(("match", "rate"), [("", 8), ("GET,/b", 3)])
def test_a_full_history_of_locust_counts_no_request_twice(tmp_path: Path, match: str, rate: int) -> None:
    """Each time has a row for each endpoint and one for all of them; ``match`` selects an endpoint."""
    head = "Timestamp,User Count,Type,Name,Requests/s,Total Request Count"
    endpoints = ("POST,/a,5.000000", "GET,/b,3.000000", ",Aggregated,8.000000")
    rows = [f"{BEGUN + second},10,{row},{second}" for second in range(60) for row in endpoints]
    assert traces.read_trace(table(tmp_path, head, rows), match=match).size == pytest.approx(60 * rate, abs=1)
