"""Rates, dates of spreadsheets and k6: what monitoring and load generators write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from unfoldkit.arrivals import traces
from unfoldkit.arrivals.readers.rate_columns import per, value
from unfoldkit.errors import UnfoldError

BEGUN = 1_700_158_627
TIMES = np.round(np.cumsum(np.random.default_rng(0).exponential(0.5, 200)), 3)


def table(folder: Path, head: str, rows: list[str]) -> Path:
    """Write a table of a test."""
    path = folder / "a.csv"
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def test_a_cell_with_its_unit_is_a_rate(tmp_path: Path) -> None:
    """A column whose first cell says ``req/s`` is one of rates under any name, as dashboards export them."""
    path = table(tmp_path, "Time,Value", [f"2023-11-16 18:00:{at:02},12.5 req/s" for at in range(0, 60, 10)])
    told: list[str] = []
    assert traces.read(path, tell=told.append).size == 750
    assert "Value is read as a rate" in told[0]


def test_a_rate_is_finite(tmp_path: Path) -> None:
    """A number too large for a rate is told with its line."""
    with pytest.raises(UnfoldError, match=r"a\.csv:3:1: rps: '1e400' is not a rate"):
        traces.read(table(tmp_path, "time,rps", ["1,2", "2,1e400"]))


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
def test_a_name_tells_a_rate(name: str, seconds: float | None) -> None:
    """Names of rates are known with the time that they count in; others are none."""
    assert per(name) == seconds


def test_a_rate_may_have_its_unit_behind_it() -> None:
    """Cells are numbers, with or without a unit of rates; nothing else is one."""
    assert [value(text) for text in ("10.5", "10.5 req/s", "3 /s", "1e2", "-1", "NaN", "")] == [
        *(10.5, 10.5, 3.0, 100.0),
        *(None, None, None),
    ]


def test_rates_are_arrivals_through_their_interval(tmp_path: Path) -> None:
    """Each interval gets what its rate makes of it, to one arrival, and rates below one an interval add up."""
    rates = np.random.default_rng(1).uniform(0, 3, 50)
    path = table(tmp_path, "timestamp,rps", [f"{BEGUN + 60 * at},{rate:.6f}" for at, rate in enumerate(rates)])
    told: list[str] = []
    found = traces.read(path, tell=told.append)
    assert "column rps is read as a rate of arrivals" in told[0]
    assert found.size == round(rates.sum() * 60)
    late = np.searchsorted(np.round(np.cumsum(rates * 60)), np.arange(found.size), side="right") * 60
    assert np.ptp(found - late) < 60
    slow = table(tmp_path, "time,qps", [f"{at},0.25" for at in range(40)])
    assert traces.read(slow).size == 10


def test_a_counter_in_the_place_of_a_rate_is_told(tmp_path: Path) -> None:
    """Whole numbers that rise and never fall are read as rates, and a warning says that they may be a counter's."""
    for rates, notes in ((range(0, 1200, 100), 2), ([5] * 12, 1), ([1.5, *range(2, 13)], 1)):
        told: list[str] = []
        traces.read(table(tmp_path, "time,rps", [f"{at},{rate}" for at, rate in enumerate(rates)]), tell=told.append)
        assert [("never falls" in note) for note in told] == [False, True][:notes]


def test_which_column_is_a_rate_can_be_said(tmp_path: Path) -> None:
    """A column of any name can be a rate, in the unit of its name; ``counts: ''`` takes rows as arrivals."""
    path = table(tmp_path, "ts,load,rpm", ["0,2,60", "1,3,60", "2,4,60"])
    assert traces.read(path, rates="load").size == 9
    assert traces.read(path, rates="rpm").size == 3
    assert traces.read(path, likely_rates="load").size == 9
    assert traces.read(path, likely_rates="other").size == 3
    assert traces.read(path, counts="").size == 3
    assert traces.read(path, counts="load").size == 9
    with pytest.raises(UnfoldError, match=r"no column lod"):
        traces.read(path, rates="lod")
    bad = table(tmp_path, "ts,rps", ["0,2", "1,many"])
    with pytest.raises(UnfoldError, match=r"a\.csv:3:1: rps: 'many' is not a rate \(arrivals a second"):
        traces.read(bad)


@pytest.mark.parametrize(("name", "digits"), [("time", 10), ("Date", 10), ("date", 5), ("timestamp", 5)])
def test_days_of_a_spreadsheet_are_times(tmp_path: Path, name: str, digits: int) -> None:
    """Days since 1899 give the gaps of their times to a millisecond, or to a second where five digits are all."""
    times = TIMES if digits == 10 else np.floor(TIMES)
    path = table(tmp_path, f"{name},model", [f"{45246.5 + time / 86400:.{digits}f},a" for time in times])
    found = traces.read(path)
    slack = 2e-3 if digits == 10 else 1.0  # whole seconds are spread over theirs
    assert np.abs(found - (times - times[0])).max() <= slack


def test_seconds_late_in_a_day_stay_seconds(tmp_path: Path) -> None:
    """Numbers as large as days of this century are seconds where they last for some; under a minute it is told."""
    rows = [f"{45246 + time:.3f}" for time in TIMES]
    told: list[str] = []
    assert traces.read(table(tmp_path, "time", rows), tell=told.append)[-1] == pytest.approx(TIMES[-1] - TIMES[0])
    assert not told
    traces.read(table(tmp_path, "time", rows[:40]), tell=told.append)
    assert "days of a spreadsheet" in told[0]


def test_a_request_of_k6_is_one_arrival(tmp_path: Path) -> None:
    """Of the measurements that k6 writes of a request one counts, in CSV and in JSON."""
    metrics = ("http_reqs", "http_req_duration", "http_req_waiting", "vus")
    head = "metric_name,timestamp,metric_value,check,url"
    rows = [f"{name},{BEGUN + int(time)},1,,http://a" for time in TIMES for name in metrics]
    rows[0], rows[40] = rows[40], rows[0]
    assert traces.read(table(tmp_path, head, rows)).size == TIMES.size
    path = tmp_path / "k6.json"
    lines = [
        json.dumps({"metric": name, "type": kind, "data": {"time": f"2023-11-16T18:17:{at % 60:02}.5Z", "value": 1}})
        for at, (name, kind) in enumerate([("http_reqs", "Metric"), *((name, "Point") for name in metrics * 50)])
    ]
    path.write_text("\n".join(line.replace(": ", ":").replace(", ", ",") for line in lines) + "\n")
    assert traces.read(path).size == 50


@pytest.mark.parametrize("name", ["a.csv", "a.txt"])
def test_requests_that_tell_their_end_came_before(tmp_path: Path, name: str) -> None:
    """Of end and duration the difference is the arrival, whatever the order of the ends."""
    lasted = np.random.default_rng(2).exponential(3, TIMES.size)
    ends = sorted(zip(TIMES + lasted, lasted, strict=True))
    path = tmp_path / name
    path.write_text("app,func,end_timestamp,duration\n" + "".join(f"a,b,{e:.9f},{s:.9f}\n" for e, s in ends))
    assert traces.read(path).tolist() == pytest.approx(TIMES - TIMES[0], abs=1e-6)


@pytest.mark.parametrize(
    "cells",
    [
        ("time_local", "16/Nov/2023:18:17:07 +0000", "16/Nov/2023:18:17:09 +0000"),
        ("@timestamp", '"Nov 16, 2023 @ 18:17:07.250"', '"Nov 16, 2023 @ 18:17:09.250"'),
        ("Created At", "2023-11-16T18:17:07", "2023-11-16T18:17:09"),
        ("Arrival Time (ms)", "7000", "9000"),
    ],
)
def test_names_and_dates_of_servers_and_dashboards_are_known(tmp_path: Path, cells: tuple[str, str, str]) -> None:
    """Columns as servers, Kibana and databases call them hold times, in their way to write dates."""
    name, *times = cells
    assert traces.read(table(tmp_path, f"id,{name}", [f"{at},{time}" for at, time in enumerate(times)]))[-1] == 2
