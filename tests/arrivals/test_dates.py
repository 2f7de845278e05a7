"""Dates are read as spreadsheets, load generators and log viewers write them, and what may be misread is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from unfoldkit.arrivals import traces
from unfoldkit.arrivals.readers.dates import in_digits, slashed, written
from unfoldkit.errors import UnfoldError

# each table has three arrivals, 0, 2 and 3.5 s (or whole minutes) after the first
FORMS = {
    "am and pm": ("timestamp", ["11/16/2023 11:59:58 AM", "11/16/2023 12:00:00 PM", "11/16/2023 12:00:01.5 PM"]),
    "midnight": ("timestamp", ["12/31/2023 11:59:58 p.m.", "1/1/2024 12:00:00 am", "1/1/2024 12:00:01.5 a.m."]),
    "day first": ("timestamp", ["31/12/2023 23:59:58", "01/01/2024 00:00:00", "01/01/2024 00:00:01.5"]),
    "points": ("timestamp", ["31.12.2023 23:59:58", "01.01.2024 00:00:00", "01.01.2024 00:00:01,5"]),
    "mail": ("date", ["Sun, 31 Dec 2023 23:59:58 GMT", "1 Jan 2024 01:00:00 +0100", "01 Jan 2024 00:00:01 GMT"]),
    "digits": ("ts", ["20231231235958", "20240101000000", "20240101000001"]),
    "basic": ("ts", ["20231231T235958Z", "20240101T000000Z", "20240101T000001Z"]),
    "clock": ("time", ["9:59:58", "10:00:00", "10:00:01.5"]),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_forms_of_dates(tmp_path: Path, form: str) -> None:
    """Every form gives the times of its rows."""
    name, cells = FORMS[form]
    (tmp_path / "a.csv").write_text("".join(f'"{cell}",x\n' for cell in [name, *cells]))
    last = 3 if form in ("mail", "digits", "basic") else 3.5
    assert traces.read(tmp_path / "a.csv").tolist() == pytest.approx([0, 2, last])


def test_the_day_may_be_first() -> None:
    """A number above 12 is the day; where either may be, the shorter span is meant."""
    first, last = slashed(["5/12/2023 9:05 PM", "5/13/2023 9:05 PM"])  # type: ignore[misc]
    assert last - first == 86400
    first, last = slashed(["12/5/2023 9:05 PM", "13/5/2023 9:05 PM"])  # type: ignore[misc]
    assert last - first == 86400
    first, last = slashed(["10/5/2024 9:05", "11/5/2024 9:05"])  # type: ignore[misc]
    assert last - first == 86400
    first, last = slashed(["5/10/2024 9:05", "5/11/2024 9:05"])  # type: ignore[misc]
    assert last - first == 86400


@pytest.mark.parametrize("text", ["13/13/2023 9:05", "2/30/2023 9:05", "1/1/2023 13:05 PM", "1/1/2023 0:05 AM", "x"])
def test_what_is_no_day_is_told(tmp_path: Path, text: str) -> None:
    """A cell that is no date in the order of the others names its line."""
    (tmp_path / "a.csv").write_text(f"timestamp,x\n1/1/2023 9:05,1\n1/1/2023 9:06,1\n{text},1\n")
    with pytest.raises(UnfoldError, match=rf"a\.csv:4:1: '{text}' is not a time"):
        traces.read(tmp_path / "a.csv")


def test_digits_that_are_no_date_are_seconds() -> None:
    """Hours as those of page views are dates; other long numbers are not."""
    assert in_digits("2024051023")
    assert written("2024051023") == written("20240510230000")
    assert not any(map(in_digits, ["2024051099", "1700000000", "2024", "1970010100"]))


def test_day_and_time_in_two_columns(tmp_path: Path) -> None:
    """Where the time of day has a column of its own, the day is that of its column."""
    (tmp_path / "a.csv").write_text("Date,x,Time\n2023-12-31,1,23:59:58\n2024-01-01,1,00:00:00.5\n")
    assert traces.read(tmp_path / "a.csv").tolist() == [0, 2.5]


@pytest.mark.parametrize("day", ["2023-11-{}", "202311{}", "11/{}/2023", "{}.11.2023"])
def test_day_and_hour_in_two_columns(tmp_path: Path, day: str) -> None:
    """Counts by day and hour are read as those by the moment that both make, however the day is written."""
    rows = [("16", "22", 2), ("16", "23", 3), ("17", "0", 4), ("17", "01", 5)]
    apart = "".join(f"{day.format(a)},{b},{c}\n" for a, b, c in rows)
    whole = "".join(f"2023-11-{a} {b:>02}:00,{c}\n" for a, b, c in rows)
    (tmp_path / "a.csv").write_text(f"date,hour,requests\n{apart}")
    (tmp_path / "b.csv").write_text(f"timestamp,requests\n{whole}")
    found, expected = (traces.read(tmp_path / name) for name in ("a.csv", "b.csv"))
    assert found.size == 14
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("moment", ["2023-11-16 18:{}:02.5", "11/16/2023 6:{}:02.5 pm", "20231116T18{}02Z"])
def test_a_column_beside_a_whole_date_changes_nothing(tmp_path: Path, moment: str) -> None:
    """Where the date has its time, an hour that stands beside it is not read."""
    (tmp_path / "a.csv").write_text(f"date,hour\n{moment.format('01')},18\n{moment.format('03')},18\n")
    assert traces.read(tmp_path / "a.csv").tolist() == pytest.approx([0, 120])


def test_days_in_digits_are_no_seconds(tmp_path: Path) -> None:
    """A day of eight digits in a column of dates is refused, as one with dashes is: it says no time of day."""
    for day in ("20231116", "2023-11-16"):
        (tmp_path / "a.csv").write_text(f"date,requests\n{day},50\n{day[:-1]}7,60\n")
        with pytest.raises(UnfoldError, match=rf"a.csv:2:1: '{day}' is not a time"):
            traces.read(tmp_path / "a.csv")


def test_logs_may_hold_other_bytes(tmp_path: Path) -> None:
    """What clients send need not be text: such bytes do not hide the times."""
    line = b'1.2.3.4 - - [16/Nov/2023:18:00:%02d +0100] "GET /\xe9\xff HTTP/1.1" 200 12\n'
    (tmp_path / "a.log").write_bytes(b"".join(line % at for at in (0, 2)))
    assert traces.read(tmp_path / "a.log").tolist() == [0, 2]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([f"{at * 60},7" for at in range(20)], "a row every 60 s, each taken as one arrival"),
        ([f"{at * 60_007 + at % 3},7" for at in range(20)], "read as seconds: 20 arrivals in 13.2 days; if they are"),
        ([f"{at * 607 + at % 3},7" for at in range(20)], "read as seconds: 20 arrivals in 3.2 hours; if they are"),
        ([f"{at * 2 + at % 2},7" for at in range(4000)], ""),
        ([f"{at * 60_007.5 + at % 3},7" for at in range(20)], ""),
        ([f"{at * 0.25},7" for at in range(20)], ""),
    ],
)
def test_what_may_be_misread_is_told(tmp_path: Path, rows: list[str], told: str) -> None:
    """Rows that keep a clock, whole numbers over days, and such far apart over hours are told as they were read."""
    (tmp_path / "a.csv").write_text("\n".join(["timestamp,views", *rows]))
    notes: list[str] = []
    traces.read(tmp_path / "a.csv", tell=notes.append)
    assert len(notes) == bool(told)
    assert all(told in note for note in notes)


def test_counts_may_be_written_in_thousands(tmp_path: Path) -> None:
    """A comma between thousands is part of the count."""
    (tmp_path / "a.csv").write_text('time,requests\n0,"1,024"\n60,"12"\n')
    assert traces.read(tmp_path / "a.csv").size == 1036


@pytest.mark.parametrize(("name", "alone"), [("interarrival", True), ("IAT_ms", True), ("interArrivalTime", False)])
def test_gaps_are_summed(tmp_path: Path, name: str, alone: bool) -> None:
    """A column of times since the arrival before gives the arrivals one after the other, in the unit of its name."""
    gaps = [0.5, 0.7, 0.1] if "ms" not in name else [500, 700, 100]
    head, rest = (name, "") if alone else (f"{name},bytes", ",3")
    (tmp_path / "a.csv").write_text(f"{head}\n" + "".join(f"{gap}{rest}\n" for gap in gaps))
    assert traces.read(tmp_path / "a.csv", column=None if alone else name).tolist() == pytest.approx([0, 0.7, 0.8])
