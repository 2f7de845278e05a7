"""Notations of times: which are recognized, and which the spec must name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unfoldkit.arrivals import traces
from unfoldkit.arrivals.readers.timestamps import (
    TimeNotation,
    is_ambiguous,
    parse_line_time,
    parse_plain_timestamps,
    parse_timestamp,
    split_unit,
)
from unfoldkit.errors import UnfoldError

# each has three times, 0, 2 and 3.5 s (or whole seconds) after the first
RECOGNISED = {
    "ISO 8601": ["2023-12-31T23:59:58", "2024-01-01 00:00:00", "2024-01-01T01:00:01.5+01:00"],
    "comma": ["2023-12-31 23:59:58", "2024-01-01 00:00:00", '"2024-01-01 00:00:01,5"'],
    "seven digits": ["2023-12-31 23:59:58.0000000", "2024-01-01 00:00:00.0000000", "2024-01-01 00:00:01.5000000"],
    "basic ISO 8601": ["20231231T235958Z", "20240101T000000Z", "20240101T000001Z"],
    "common log format": ["31/Dec/2023:23:59:58 +0000", "[01/Jan/2024:00:00:00 +0000]", "01/Jan/2024:01:00:01.5 +0100"],
    "seconds": ["5", "7", "8.5"],
    "epoch seconds": ["1700000000", "1700000002", "1700000003.5"],
    "epoch milliseconds": ["1700000000000", "1700000002000", "1700000003500"],
    "epoch microseconds": ["1700000000000000", "1700000002000000", "1700000003500000"],
    "epoch nanoseconds": ["1700000000000000000", "1700000002000000000", "1700000003500000000"],
}
STATED = {
    "%d/%m/%Y %H:%M:%S": ["31/12/2023 23:59:58", "01/01/2024 00:00:00", "01/01/2024 00:00:01"],
    "%m/%d/%Y %I:%M:%S %p": ["12/31/2023 11:59:58 PM", "1/1/2024 12:00:00 AM", "1/1/2024 12:00:01 am"],
    "%d.%m.%Y %H:%M:%S.%f": ["31.12.2023 23:59:58.0", "01.01.2024 00:00:00.0", "01.01.2024 00:00:01.5"],
    "%a, %d %b %Y %H:%M:%S %Z": [
        '"Sun, 31 Dec 2023 23:59:58 GMT"',
        '"Mon, 01 Jan 2024 00:00:00 GMT"',
        '"Mon, 01 Jan 2024 00:00:01 GMT"',
    ],
    "%b %d, %Y @ %H:%M:%S.%f": [
        '"Dec 31, 2023 @ 23:59:58.0"',
        '"Jan 1, 2024 @ 00:00:00.0"',
        '"Jan 1, 2024 @ 00:00:01.500"',
    ],
    "%Y%m%d%H%M%S": ["20231231235958", "20240101000000", "20240101000001"],
    "%H:%M:%S.%f": ["9:59:58.0", "10:00:00.0", "10:00:01.5"],
    "%Y-%m-%dT%H:%M:%S%z": ["2023-12-31T23:59:58+0000", "2024-01-01T00:00:00+0000", "2024-01-01T01:00:01+01:00"],
}


def write(folder: Path, cells: list[str], name: str = "timestamp") -> Path:
    path = folder / "a.csv"
    path.write_text("".join(f"{cell},x\n" for cell in [name, *cells]))
    return path


@pytest.mark.parametrize("notation", list(RECOGNISED))
@pytest.mark.parametrize("name", ["timestamp", "Created At", "@timestamp"])
def test_unambiguous_notations_are_recognized(tmp_path: Path, notation: str, name: str) -> None:
    last = 3 if notation == "basic ISO 8601" else 3.5
    assert traces.read_trace(write(tmp_path, RECOGNISED[notation], name)).tolist() == pytest.approx([0, 2, last])


@pytest.mark.parametrize("form", list(STATED))
def test_other_dates_need_their_format(tmp_path: Path, form: str) -> None:
    """With ``time_format`` the times are read; without it the error names the line and the key to write."""
    path = write(tmp_path, STATED[form])
    last = 3.5 if "%f" in form else 3
    assert traces.read_trace(path, notation=TimeNotation(format=form)).tolist() == pytest.approx([0, 2, last])
    if form == "%Y-%m-%dT%H:%M:%S%z":
        return
    key = "unit" if form == "%Y%m%d%H%M%S" else "time_format"
    with pytest.raises(UnfoldError, match=rf"a\.csv:2:1: .* is not a time \(.*set arrivals\.{key}") as error:
        traces.read_trace(path)
    assert error.value.code == 2


@pytest.mark.parametrize("text", ["13/13/2023 09:05:00", "30/02/2023 09:05:00", "1/1/2023", "x", "17"])
def test_a_cell_that_does_not_fit_the_format_is_reported_with_its_line(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, ["01/01/2023 09:05:00", "01/01/2023 09:06:00", text])
    with pytest.raises(UnfoldError, match=rf"a\.csv:4:1: '{text}' is not a time"):
        traces.read_trace(path, notation=TimeNotation(format="%d/%m/%Y %H:%M:%S"))


@pytest.mark.parametrize(
    ("notation", "message"),
    [
        (TimeNotation(format="%d/%m/%Q"), "arrivals.time_format: no such directive: %Q"),
        (TimeNotation(format="today"), "arrivals.time_format: 'today' holds no directive"),
        (TimeNotation(unit="msec"), "arrivals.unit: no such unit: 'msec'"),
        (TimeNotation(unit="weeks", key="trace"), "trace.unit: no such unit: 'weeks'"),
    ],
)
def test_an_unknown_directive_or_unit_names_its_key(tmp_path: Path, notation: TimeNotation, message: str) -> None:
    with pytest.raises(UnfoldError, match=message):
        traces.read_trace(write(tmp_path, ["1"]), notation=notation)


@pytest.mark.parametrize(("unit", "seconds"), [("ms", 1e-3), ("us", 1e-6), ("min", 60), ("h", 3600), ("d", 86_400)])
def test_a_stated_unit_overrules_names_and_sizes(tmp_path: Path, unit: str, seconds: float) -> None:
    path = write(tmp_path, ["1700000000", "1700000001", "1700000003"], "time_s")
    expected = [0, seconds, 3 * seconds]
    if seconds < 1:
        assert traces.read_trace(path, notation=TimeNotation(unit=unit)).tolist() == pytest.approx(expected, abs=1e-7)
    else:
        assert traces.read_trace(path, notation=TimeNotation(unit=unit)).tolist() == expected


@pytest.mark.parametrize(
    "digits",
    ["20231116", "2034010112", "202311161817", "20231116181702", "500000000", "777600000000000", "639003150002217640"],
)
def test_digits_of_an_ambiguous_size_are_refused(tmp_path: Path, digits: str) -> None:
    """A date in digits would lie in another century as seconds; the error names both keys.

    Nanoseconds of nine days since a boot would be microseconds since 1970, and ticks of .NET nanoseconds.
    """
    assert is_ambiguous(float(digits), digits)
    with pytest.raises(UnfoldError, match=r"set arrivals\.unit, such as ms, or arrivals\.time_format"):
        traces.read_trace(write(tmp_path, [digits, str(int(digits) + 1)], "date"))


def test_a_caller_without_such_keys_gets_a_hint_without_them(tmp_path: Path) -> None:
    with pytest.raises(UnfoldError, match=r"is not a time \(ISO 8601, seconds, or epoch seconds to nanoseconds\)"):
        traces.read_trace(write(tmp_path, ["5/5/2023 9:00"]), notation=TimeNotation(key=""))


def test_lines_of_a_log_are_searched_for_the_format(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("".join(f"host nginx: 16.11.2023 18:00:{s:02} GET /?t=1700000000.123\n" for s in (1, 3, 4)))
    assert traces.read_trace(path, notation=TimeNotation(format="%d.%m.%Y %H:%M:%S")).tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01 00:02", 120),
        ("1970-01-01T00:02:01.5", 121.5),
        ("1970-01-01 02:02:01+02", 121),
        ("1970-01-01 02:02:01 +02:00", 121),
        ("1970-01-01 02:02:01 -12 left", None),
        ("1970-01-01 02:02:01 +02", 121),
        ("1970-01-01T02:02:01\N{MINUS SIGN}02:00", 14521),
        ("1970-01-01 02:02:01 p. m.", None),
        ("1970-01-01 02:02:01 Uhr Ortszeit", None),
        ('"1970-01-01 00:02:01 UTC"', 121),
        ("1970-01-01 24:00", 86_400),
        ("1970-01-01 24:30", None),
        ("1970-01-31 23:59:60.5", 31 * 86_400 + 0.5),
        ("1970-01-31 23:58:60", None),
        ("19700101T000201Z", 121),
        ("1970-13-01 00:02", None),
        ("19701301T000201Z", None),
        ("1970-01-01", None),
        ("01/Foo/1970:00:02:00 +0000", None),
        ("1970-01-01 00:02 UTC", 120),
        ("1970-01-01 02:02+02:00[Europe/Berlin]", 120),
        ("1970-01-01 02:02 +0200 CEST", 120),
        ("1970-01-01 02:02 CEST", None),
        ("1970-01-01 02:02:01.5 Europe/Berlin", None),
        ("1970-01-01 02:02:01 PM", None),
        ("1970-01-01 02:02 p.m.", None),
    ],
)
def test_a_date_may_have_no_seconds_and_a_zone_of_hours(text: str, seconds: float | None) -> None:
    assert parse_timestamp(text) == seconds


@pytest.mark.parametrize(
    "text", ["order 1700000000 by 1.2.3.4", "id=17000000001234.567", "x1700000000.123", "-1700000000.123"]
)
def test_a_number_within_a_line_is_a_time_only_with_a_fraction(text: str) -> None:
    assert parse_line_time(text) is None


def test_units_of_column_names_are_split_off() -> None:
    assert split_unit("Arrival Time (ms)") == ("arrival_time", 1e-3)
    assert split_unit("timestampMicros") == ("timestamp", 1e-6)
    assert split_unit("deadline") == ("deadline", None)


def test_logs_may_hold_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    line = b'1.2.3.4 - - [16/Nov/2023:18:00:%02d +0100] "GET /\xe9\xff HTTP/1.1" 200 12\n'
    (tmp_path / "a.log").write_bytes(b"".join(line % second for second in (0, 2)))
    assert traces.read_trace(tmp_path / "a.log").tolist() == [0, 2]


@pytest.mark.parametrize(
    ("rows", "note"),
    [
        ([f"{index * 60},7" for index in range(20)], "a row every 60 s, each read as one arrival"),
        ([f"{index * 2 + index % 2},7" for index in range(4000)], ""),
        ([f"{index * 5_007.5 + index % 3},7" for index in range(17)], ""),
        ([f"{index * 0.25},7" for index in range(20)], ""),
    ],
)
def test_suspicious_readings_are_reported(tmp_path: Path, rows: list[str], note: str) -> None:
    (tmp_path / "a.csv").write_text("\n".join(["timestamp,views", *rows]))
    notes: list[str] = []
    traces.read_trace(tmp_path / "a.csv", warn=notes.append)
    assert len(notes) == bool(note)
    assert all(note in each for each in notes)


DOUBTFUL: list[tuple[list[float], str]] = [
    ([index * 60_007.5 + index % 3 for index in range(20)], "20 arrivals would last 13.2 days"),
    ([index * 60_007 + index % 3 for index in range(20)], "20 arrivals would last 13.2 days"),
    ([index * 607 + index % 3 for index in range(20)], "20 arrivals would last 3.2 hours"),
    ([(index * 7 // 3) * 5 for index in range(40)], "all times are multiples of 5"),
    ([index // 3 for index in range(60)], "whole numbers, many of them repeated"),
]


@pytest.mark.parametrize(("times", "doubt"), DOUBTFUL)
@pytest.mark.parametrize("form", ["csv", "npz", "bare"])
def test_unclear_units_are_refused(tmp_path: Path, times: list[float], doubt: str, form: str) -> None:
    """Numbers that may be milliseconds, or are rounded, need a unit: of the spec or in the name of the column."""

    def write(name: str) -> Path:
        if form == "npz":
            np.savez(tmp_path / "a.npz", **{name: np.array(times)})
            return tmp_path / "a.npz"
        head = [f"{name},bytes"] if form == "csv" else []
        (tmp_path / "a.csv").write_text("\n".join([*head, *(f"{moment},x" for moment in times)]))
        return tmp_path / "a.csv"

    with pytest.raises(UnfoldError, match=doubt) as caught:
        traces.read_trace(write("timestamp"))
    assert caught.value.code == 2
    assert "arrivals.unit" in caught.value.diagnostics[0].hint
    found = traces.read_trace(write("timestamp"), notation=TimeNotation(unit="ms"))
    assert found[-1] == pytest.approx(times[-1] / 1e3)
    likely = traces.read_trace(write("timestamp"), notation=TimeNotation(likely_unit="ms"))
    assert np.array_equal(found, likely)
    if form != "bare":
        assert np.array_equal(traces.read_trace(write("time_ms")), found)


@pytest.mark.parametrize(
    ("start", "interval", "doubt"),
    [
        (0, 60_000, "each interval would last 16.67 hours"),
        (600_000, 1_000, "each interval would last 0.28 hours"),
        (0, 3_000_000, "each interval would last 833.33 hours"),
        (45_361.25, 1 / 1440, "dates of a spreadsheet"),
        (0, 7, ""),
        (600, 3600, ""),
        (0, 604_800, ""),
        (1_710_000_000, 5_000, ""),
        (45_361.25, 300.5, ""),
    ],
)
@pytest.mark.parametrize("amount", ["requests", "requests per second"])
@pytest.mark.parametrize("step", [1, -1])
def test_unclear_units_of_intervals_are_refused(
    tmp_path: Path, start: float, interval: float, doubt: str, amount: str, step: int
) -> None:
    """Minutes in milliseconds are not read as intervals of hours, nor days of a spreadsheet as seconds."""
    rows = [f"{start + index * interval:.9f}".rstrip("0").rstrip(".") + f",{index % 3}" for index in range(30)][::step]
    path = tmp_path / "a.csv"
    path.write_text(f"timestamp,{amount}\n" + "\n".join(rows))
    if not doubt:
        assert traces.read_trace(path, on_newest_first=lambda: None)[-1] > 20 * interval
        return
    with pytest.raises(UnfoldError, match=doubt):
        traces.read_trace(path, on_newest_first=lambda: None)
    notation = TimeNotation(unit="d" if interval < 1 else "ms")
    assert traces.read_trace(path, notation=notation, on_newest_first=lambda: None).size > 10


def test_the_newest_row_first_leaves_the_unit_in_doubt(tmp_path: Path) -> None:
    """Whole milliseconds are no less doubtful in reverse."""
    (tmp_path / "a.csv").write_text("timestamp\n" + "\n".join(str(index * 607) for index in range(400, -1, -1)))
    with pytest.raises(UnfoldError, match=r"would last 2\.8 days"):
        traces.read_trace(tmp_path / "a.csv", on_newest_first=lambda: None)


def test_counts_may_be_written_in_thousands(tmp_path: Path) -> None:
    """A comma between thousands is part of the count."""
    (tmp_path / "a.csv").write_text('time,requests\n0,"1,024"\n60,"12"\n')
    assert traces.read_trace(tmp_path / "a.csv").size == 1036


@pytest.mark.parametrize(("name", "alone"), [("interarrival", True), ("IAT_ms", True), ("interArrivalTime", False)])
def test_gaps_are_summed(tmp_path: Path, name: str, alone: bool) -> None:
    """A column of times since the arrival before gives the arrivals one after the other, in the unit of its name."""
    gaps = [0.5, 0.7, 0.1] if "ms" not in name else [500, 700, 100]
    head, rest = (name, "") if alone else (f"{name},bytes", ",3")
    (tmp_path / "a.csv").write_text(f"{head}\n" + "".join(f"{gap}{rest}\n" for gap in gaps))
    assert traces.read_trace(tmp_path / "a.csv", column=None if alone else name).tolist() == pytest.approx(
        [0, 0.7, 0.8]
    )


PLAIN = ["2023-12-31T23:59:58Z", "2024-02-29 00:00:00", "2024-02-29T00:00:01.5+00:00", "1969-01-01T00:00:00.123456789Z"]


@pytest.mark.parametrize("other", ["", *PLAIN])
def test_many_times_are_parsed_like_each(other: str) -> None:
    """Plain stamps are the same numbers at once; one in another form, or none at all, is left to the slower parser."""
    texts = [*PLAIN, other or "2024-01-01T01:00:01.5+01:00"]
    times = parse_plain_timestamps(texts)
    assert (times is not None) == bool(other)
    assert times is None or times.tolist() == [parse_timestamp(text) for text in texts]


@pytest.mark.parametrize("text", ["2023-02-29T00:00:00Z", "2024-01-01T24:00:00Z", "2024-01-01T00:00:60Z", "NaT", ""])
def test_no_invalid_time_is_among_many(text: str) -> None:
    """What is not a date and time is left to the parser that names its row."""
    assert parse_plain_timestamps([*PLAIN, text]) is None


@pytest.mark.parametrize("rest", ["EST [42] LOG: ready", "Users/sign_in", "AT work", "Europe/Berlin up"])
def test_words_behind_the_time_of_a_log_line_are_its_message(rest: str) -> None:
    """Cells with such words are refused; in a log they may mean anything, and all lines have one clock."""
    assert parse_line_time(f"1970-01-01 00:02:01 {rest}") == 121


@pytest.mark.parametrize("zone", [" BRT", " SGT", " (AMST)", " GMT+2", "UTC-03:00"])
def test_a_zone_by_its_name_is_not_read_as_utc(zone: str) -> None:
    """Only UTC is known by name; a date of another zone would be read hours off."""
    assert parse_timestamp(f"2026-10-25 01:00:00{zone}") is None
    assert parse_timestamp("2026-10-25 01:00:00 UTC") == parse_timestamp("2026-10-25 01:00:00 (GMT)") == 1_792_890_000.0
