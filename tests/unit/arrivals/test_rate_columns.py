"""Columns of rates are read as arrivals through their intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unfoldkit.arrivals import traces
from unfoldkit.arrivals.readers.rate_columns import parse_rate, rate_period_s
from unfoldkit.errors import UnfoldError

BEGUN = 1_700_158_627


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
