"""Of what load generators write about a request, one line counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from unfoldkit.arrivals import traces

BEGUN = 1_700_158_627
TIMES = np.round(np.cumsum(np.random.default_rng(0).exponential(0.5, 200)), 3)


def table(folder: Path, head: str, rows: list[str]) -> Path:
    """Write a table of a test."""
    path = folder / "a.csv"
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


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
