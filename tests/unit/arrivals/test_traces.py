"""Reading, cutting and scaling of traces."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from unfoldkit._types import FloatArray
from unfoldkit.arrivals import processes, traces
from unfoldkit.arrivals.readers.timestamps import TimeNotation
from unfoldkit.errors import UnfoldError


def test_scaling_changes_the_rate_and_not_the_span() -> None:
    """A trace that is thinned or thickened keeps its span; compression keeps the coefficient of variation."""
    rng = np.random.default_rng(2)
    times = traces.validate_times(processes.gamma_arrivals(20.0, 500.0, rng, scv=4.0))
    for factor in (0.3, 2.5):
        scaled = traces.scale_rate(times, factor, rng)
        assert scaled.size / times.size == pytest.approx(factor, rel=0.05)
        assert scaled[-1] <= times[-1]
        assert (np.diff(scaled) >= 0).all()
    quick = np.diff(traces.compress_time(times, 20.0))
    assert quick.std() / quick.mean() == pytest.approx(np.diff(times).std() / np.diff(times).mean())


def write(folder: Path, name: str, text: str) -> Path:
    """Write a file of a test."""
    path = folder / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "arrival_s,size\n5.0,1\n5.5,2\n7.25,3\n"),
        ("a.csv", "5.0\n5.5\n7.25\n"),
        ("a.csv", "Timestamp,Model\n5,a\n5.5,b\n7.25,a\n"),
        ("a.csv", "\ufeffwhen\n5\n5.5\n7.25\n"),
        ("a.csv", "n;arrival_s\n1;5\n1;5,5\n1;7,25\n"),
        ("a.csv", "n,ts\n1,1700000000000\n1,1700000000500\n1,1700000002250\n"),
        (
            "a.csv.gz",
            "TIMESTAMP,n\n2023-11-16 18:17:03.5000000,1\n2023-11-16 18:17:04,1\n2023-11-16 18:17:05.7500000,1\n",
        ),
        ("a.csv", "time_ms,n\n5,x\n505,x\n2255,x\n"),
        ("a.csv", "when (ms)\n5\n505\n2255\n"),
        ("a.csv", "x,timestampMicros\n,5e6\n,5500000\n,7250000\n"),
        ("a.csv", "TIME_NS,x\n5,x\n500000005,x\n2250000005,x\n"),
        ("a.csv", "Time (seconds),x\n5,x\n5.5,x\n7.25,x\n"),
        ("a.csv", "minute,x\n0,x\n0.00833333333333333333,x\n0.0375,x\n"),
        ("a.csv", "ts_ms,x\n2023-11-16 18:17:03.5,1\n2023-11-16 18:17:04,1\n2023-11-16 18:17:05.75,1\n"),
        ("a.csv", "x\tarrival_s\na b\t5\na,b\t5.5\n\t7.25\n"),
        ("a.tsv", "x\tarrival_s\n1\t5\n1\t5,5\n1\t7,25\n"),
        ("a.txt", "5.0\n5.5\n7.25\n"),
        ("a.csv", "2023-11-16 18:17:03.5,1\n2023-11-16 18:17:04,1\n2023-11-16 18:17:05.75,1\n"),
        ("a.txt", "when\n2023-11-16 18:17:03.5\n2023-11-16 18:17:04\n2023-11-16 18:17:05.75\n"),
        ("a", "when\n5.0\n5.5\n7.25\n"),
        ("a.dat.gz", "Timestamp,Model\n5,a\n5.5,b\n7.25,a\n"),
        ("a.log", "2024-01-01T00:00:01Z GET /\n\n2024-01-01T00:00:01.500Z GET /\n2024-01-01T02:00:03.25+02:00 GET /\n"),
    ],
)
def test_readers_agree(tmp_path: Path, name: str, text: str) -> None:
    """The same arrivals are read from seconds, bare numbers, time stamps, milliseconds and logs, from 0 on."""
    assert traces.read_trace(write(tmp_path, name, text)).tolist() == pytest.approx([0.0, 0.5, 2.25])


def test_access_log(tmp_path: Path) -> None:
    """Lines in the common log format give their times, whatever the time zone."""
    lines = [
        f'1.2.3.4 - - [10/Oct/2000:13:55:{second} {zone}] "GET / HTTP/1.0" 200 23'
        for second, zone in (("36", "-0700"), ("38", "-0700"))
    ]
    assert traces.read_trace(write(tmp_path, "access.log", "\n".join(lines))).tolist() == [0.0, 2.0]


@pytest.mark.parametrize(
    ("name", "line", "span", "rate"),
    [
        ("access.log", '1.2.3.4 - - [10/Oct/2000:13:{m:02}:{s:02} -0700] "GET / HTTP/1.0" 200 23', 300, 40),
        ("access.log.1", "2024-01-01T10:{m:02}:{s:02}Z GET /", 300, 40),
        ("a.csv", "2024-01-01 10:{m:02}:00", 1200, 5),
    ],
)
def test_stamps_of_seconds_or_minutes_are_spread(tmp_path: Path, name: str, line: str, span: int, rate: int) -> None:
    """Poisson traffic that a log keeps to the second or minute is read as such, each in its second or minute."""
    times = np.sort(np.random.default_rng(3).random(span * rate) * span)
    text = "\n".join(line.format(m=int(at // 60), s=int(at % 60)) for at in times)
    found = traces.read_trace(write(tmp_path, name, ("when\n" if name.endswith(".csv") else "") + text))
    gaps = np.diff(found)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.05)
    grain = 60 if name.endswith(".csv") else 1
    counts = [np.histogram(item, np.arange(0, span + 1, grain))[0] for item in (times, found + times[0] % grain)]
    assert np.abs(counts[0] - counts[1]).mean() < 0.2 * rate * grain
    assert found.tolist() == traces.read_trace(tmp_path / name).tolist()


def test_relative_whole_seconds_and_fractional_stamps_stay(tmp_path: Path) -> None:
    """Arrivals at one instant of a trace's own clock stay at one instant; so do those of stamps with fractions."""
    assert traces.read_trace(write(tmp_path, "a.csv", "arrival_s\n0\n0\n1\n1\n")).tolist() == [0, 0, 1, 1]
    text = "ts\n1700000000\n1700000000\n1700000000.5\n"
    assert traces.read_trace(write(tmp_path, "b.csv", text)).tolist() == [0, 0, 0.5]


def test_a_log_in_the_order_of_ends_is_sorted(tmp_path: Path) -> None:
    """A log with lines written as requests ended is read in the order of their starts; a table is not."""
    lines = ["2024-01-01T00:00:01.5Z", "2024-01-01T00:00:01Z", "2024-01-01T00:00:03.25Z"]
    assert traces.read_trace(write(tmp_path, "a.log", "\n".join(lines))).tolist() == [0.0, 0.5, 2.25]
    with pytest.raises(UnfoldError, match="before the one above"):
        traces.read_trace(write(tmp_path, "a.csv", "\n".join(["when", *lines])))


@pytest.mark.parametrize("name", ["a.log", "a.json", "a.parquet"])
def test_an_hour_that_a_clock_repeats_is_refused(tmp_path: Path, name: str) -> None:
    """Files in any order are not sorted across the end of daylight saving time: two hours would become one."""
    stamps = [f"2024-10-27T02:{minute:02}:{second:02}" for minute in (58, 59, 0, 1) for second in (0, 20, 40)]
    path = tmp_path / name
    if name.endswith(".parquet"):
        arrow = pytest.importorskip("pyarrow")
        table = arrow.table({"time": [datetime.fromisoformat(stamp) for stamp in stamps]})
        pytest.importorskip("pyarrow.parquet").write_table(table, path)
    else:
        path.write_text("\n".join(stamps) if name.endswith(".log") else json.dumps(stamps), "utf-8")
    with pytest.raises(UnfoldError, match=r"arrival 7 is an hour behind .*write the times in UTC"):
        traces.read_trace(path)


@pytest.mark.parametrize(
    ("start", "step_s", "is_warned"),
    [
        ("2026-03-29 00:30", 7.0, True),
        ("2026-03-28 12:00", 3600.0, True),
        ("2026-10-04 00:30", 300.0, True),
        ("2026-06-28 00:30", 7.0, False),
        ("2026-03-30 00:30", 7.0, False),
        ("2026-03-29 02:30", 7.0, False),
    ],
)
def test_an_hour_that_a_clock_skips_is_reported(tmp_path: Path, start: str, step_s: float, *, is_warned: bool) -> None:
    """Local stamps without a zone have no arrival in the hour with which daylight saving time begins."""
    began = datetime.fromisoformat(start)
    moments = [began + timedelta(seconds=step_s * index) for index in range(int(86_400 / step_s))]
    skipped = began.replace(hour=2, minute=0) + timedelta(days=began.hour // 12)
    kept = [moment for moment in moments if not skipped <= moment < skipped + timedelta(hours=1)]
    path, warnings = tmp_path / "a.csv", list[str]()
    path.write_text("time\n" + "".join(f"{moment}\n" for moment in kept), "utf-8")
    traces.read_trace(path, warn=warnings.append)
    assert any("daylight saving time" in text for text in warnings) == is_warned


def test_rows_in_no_order_repeat_no_hour(tmp_path: Path) -> None:
    """Shuffled stamps hold steps of an hour by chance, also in the night in which clocks are put back."""
    start = datetime(2024, 10, 27, tzinfo=UTC)
    shuffled, orders = np.random.default_rng(1).permutation(200), list[object]()
    rows = [(start + timedelta(minutes=int(row))).isoformat() for row in shuffled]
    found = traces.read_trace(write(tmp_path, "a.csv", "\n".join(["time", *rows])), on_unsorted=orders.append)
    assert len(orders) == 1
    assert found.tolist() == [60.0 * row for row in range(200)]


def test_a_table_may_list_its_newest_row_first(tmp_path: Path) -> None:
    """A caller that allows disorder gets a warning; other tables that go back remain errors."""
    times = np.linspace(100, 0, 12).tolist()
    path, calls = write(tmp_path, "a.csv", "\n".join(["time_s,n", *(f"{time},2" for time in times)])), list[int]()
    found = traces.read_trace(path, counts="", on_newest_first=lambda: calls.append(1))
    assert (found.tolist(), calls) == (times[::-1], [1])
    with pytest.raises(UnfoldError, match="before the one above"):
        traces.read_trace(path, counts="")
    times[5:7] = times[6], times[5]
    path = write(tmp_path, "b.csv", "\n".join(["time_s", *map(str, times)]))
    with pytest.raises(UnfoldError, match="before the one above"):
        traces.read_trace(path, on_newest_first=lambda: calls.append(1))


def test_a_table_of_stamps_may_be_sorted(tmp_path: Path) -> None:
    """A caller that allows it gets the order; times from 0 on, and an hour that a clock repeats, remain errors."""
    orders = list[list[int]]()

    def read(stamps: list[str]) -> list[float]:
        path = write(tmp_path, "a.csv", "\n".join(["time,n", *(f"{stamp},2" for stamp in stamps)]))
        found = traces.read_trace(path, counts="", on_unsorted=lambda order: orders.append(order.tolist()))
        return found.tolist()

    stamps = ["2024-01-01T00:00:01.5Z", "2024-01-01T00:00:01Z", "2024-01-01T00:00:03.25Z"]
    assert (read(stamps), orders) == ([0.0, 0.5, 2.25], [[1, 0, 2]])
    assert read([stamps[1], stamps[0], stamps[2]]) == [0.0, 0.5, 2.25]
    assert read([str(time) for time in range(12, 0, -1)]) == [float(time) for time in range(12)]
    assert orders[1:] == [list(range(11, -1, -1))]
    for wrong in (["1.5", "1.0", "3.0"], ["2024-10-27T02:59:59", "2024-10-27T02:00:10", "2024-10-27T02:01:00"]):
        with pytest.raises(UnfoldError, match="before the one above"):
            read(wrong)


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_the_dates_of_an_unnamed_index_are_times(tmp_path: Path, name: str) -> None:
    """Pandas writes its index without a name; row numbers there are not times."""
    rows = [f"2026-01-01 00:00:0{second}.5,7" for second in range(4)]
    assert traces.read_trace(write(tmp_path, "a.csv", "\n".join([f"{name},v", *rows]))).tolist() == [0, 1, 2, 3]
    with pytest.raises(UnfoldError, match="no column of arrival times"):
        traces.read_trace(write(tmp_path, "b.csv", f"{name},v\n0,7\n1,7\n"))


@pytest.mark.parametrize(
    ("text", "notation"),
    [
        ("Date,Time,ms\n2026-01-05,23:59:59.500,7\n2026-01-06,00:00:01,7\n", TimeNotation()),
        ("time;user;date\n23:59:59.5;a;2026-01-05\n00:00:01;b;2026-01-06\n", TimeNotation()),
        ("Date;Time\n5.1.2026;11:59:59 PM\n6.1.2026;12:00:01 AM\n", TimeNotation(format="%d.%m.%Y %I:%M:%S %p")),
    ],
)
def test_a_date_in_a_column_of_its_own_belongs_to_the_time(tmp_path: Path, text: str, notation: TimeNotation) -> None:
    """Spreadsheets and database exports split both; ``time_format`` then fits the date, a blank and the time."""
    times = traces.read_trace(write(tmp_path, "t.csv", text), notation=notation)
    assert times[1] - times[0] == (2.0 if notation.format else 1.5)


@pytest.mark.parametrize(
    ("text", "span_s"),
    [
        ("date,hour,count\n2026-01-05,8,20\n2026-01-05,9,0\n2026-01-05,10,20\n", 3 * 3600),
        ("date,hour,minute,requests\n2026-01-05,8,58,20\n2026-01-05,8,59,0\n2026-01-05,9,0,20\n", 3 * 60),
    ],
)
def test_hours_and_minutes_may_be_numbers_beside_the_date(tmp_path: Path, text: str, span_s: int) -> None:
    """So analytics group requests; each count lies within its own interval."""
    times = traces.read_trace(write(tmp_path, "t.csv", text))
    assert len(times) == 40
    assert times[20] - times[19] > span_s / 3
    assert times[-1] < span_s


@pytest.mark.parametrize(
    ("text", "notation"),
    [
        ("date,hour\n2026-01-05T13:22:01Z,13\n2026-01-05T13:22:03Z,13\n", TimeNotation()),
        ("date,hour\n1767600001,13\n1767600003,13\n", TimeNotation()),
        ("date,time\n2026-01-05,13:22:01\n2026-01-05,13:22:03\n", TimeNotation(format="%H:%M:%S")),
    ],
)
def test_a_time_that_is_complete_needs_no_other_column(tmp_path: Path, text: str, notation: TimeNotation) -> None:
    """A ``date`` may hold the time of day, and a ``time_format`` may fit the column of times alone."""
    assert traces.read_trace(write(tmp_path, "t.csv", text), notation=notation).tolist() == [0.0, 2.0]


def test_an_hour_beyond_the_day_is_an_error(tmp_path: Path) -> None:
    """The message has the date and the hour."""
    with pytest.raises(UnfoldError, match=r"t\.csv:3:1: '2026-01-05 25:00' is not a time"):
        traces.read_trace(write(tmp_path, "t.csv", "date,hour,count\n2026-01-05,8,20\n2026-01-05,25,1\n"))


def test_times_beyond_all_numbers_are_refused_before_they_are_compared(tmp_path: Path) -> None:
    """Times that are read as infinite end with an error alone, also where their order is looked at."""
    path = tmp_path / "t.csv"
    path.write_text("arrival_s\n" + "1e400\n" * 3, "utf-8")
    with pytest.raises(UnfoldError, match="arrival 1 is not a finite time"):
        traces.read_trace(path, on_newest_first=lambda: None, on_unsorted=lambda _order: None)


def test_only_lines_that_match_are_read(tmp_path: Path) -> None:
    """Of a log with other lines, some of them without a time, those that hold a text are read."""
    lines = [
        "started",
        "2024-01-01T00:00:01Z GET /health",
        "2024-01-01T00:00:02Z POST /a",
        "2024-01-01T00:00:05Z POST /a",
    ]
    path = write(tmp_path, "a.log", "\n".join(lines))
    assert traces.read_trace(path, match="POST /a").tolist() == [0.0, 3.0]
    with pytest.raises(UnfoldError, match="no time in this line"):
        traces.read_trace(path)
    with pytest.raises(UnfoldError, match="no arrival"):
        traces.read_trace(path, match="POST /b")


def test_a_likely_column_goes_before_the_usual_ones(tmp_path: Path) -> None:
    """A column that another trace of the same traffic has is taken where it is there, and missed where it is not."""
    path = write(tmp_path, "a.csv", "arrival_s,begun\n1,5\n2,9\n")
    assert traces.read_trace(path, likely="begun").tolist() == [0.0, 4.0]
    assert traces.read_trace(path, likely="ended").tolist() == [0.0, 1.0]


def test_arrays(tmp_path: Path) -> None:
    """NPZ and NPY give the arrays that were stored."""
    np.savez(tmp_path / "a.npz", arrival_s=np.array([1.0, 2.0]), other=np.array([0.0]))
    np.save(tmp_path / "b.npy", np.array([1.0, 4.0]))
    assert traces.read_trace(tmp_path / "a.npz").tolist() == [0.0, 1.0]
    assert traces.read_trace(tmp_path / "b.npy").tolist() == [0.0, 3.0]
    with pytest.raises(UnfoldError, match="no array when"):
        traces.read_trace(tmp_path / "a.npz", column="when")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "arrival_s\n", "the trace has no arrival"),
        ("a.csv", "", "the trace has no arrival"),
        ("a.csv", "arrival_s\n2\n1\n", "arrival 2 .* before the one above"),
        ("a.csv", "time\n2025-10-26 02:59:58\n2025-10-26 02:00:03\n", "daylight saving time"),
        ("a.csv", "arrival_s\n2\nsoon\n", r"a\.csv:3:1: 'soon' is not a time"),
        ("a.csv", "when,x\n2,3\n", r"a\.csv:1:1: no column of arrival times"),
        ("a.csv", "count\n2\n3\n", r"a\.csv:1:1: no column of arrival times \(it has: count"),
        ("a.csv", "x,arrival_s\n2\n", r"a\.csv:2:1: the row has 1 cells"),
        ("a.csv", "arrival_s\nnan\n", "is not a time"),
        ("a.log", "nothing here\n", r"a\.log:1:1: no time in this line"),
        ("a.csv.gz", "plain", "the trace has no arrival"),
        ("a.txt", "\0\n", "the trace is not text"),
        ("a.txt", "1\nnoon\n", r"a\.txt:2:1: 'noon' is not a time"),
        ("a", "x,y\n1,2\n", r"a:1:1: no column of arrival times \(it has: x, y"),
        ("a.npz", "junk", "cannot read the arrays"),
    ],
)
def test_bad_traces_are_reported_with_file_and_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    """Every bad trace gets a clear message with file and line."""
    with pytest.raises(UnfoldError, match=message):
        traces.read_trace(write(tmp_path, name, text))


@pytest.mark.parametrize("name", ["a.csv.gz", "a.log.gz"])
def test_damaged_archives_are_reported(tmp_path: Path, name: str) -> None:
    """A gzipped trace with a hole in it, or without its end, is refused in words."""
    whole = gzip.compress("".join(f"2024-01-01T00:00:{s:02}Z\n" for s in range(60)).encode())
    for data in (whole[:-9], whole[:20] + b"\xff" * 20 + whole[40:]):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnfoldError, match="cannot read the"):
            traces.read_trace(tmp_path / name)


def test_arrays_may_hold_gaps_and_must_hold_one_number_per_arrival(tmp_path: Path) -> None:
    """An array of gaps is summed as a column of them; a row or a column is a trace, a table of both ends none."""
    np.savez(tmp_path / "a.npz", iat_ms=np.array([500, 700, 100]))
    assert traces.read_trace(tmp_path / "a.npz").tolist() == pytest.approx([0, 0.7, 0.8])
    np.save(tmp_path / "a.npy", np.array([[1.0], [2.0]]))
    assert traces.read_trace(tmp_path / "a.npy").tolist() == [0, 1]
    np.save(tmp_path / "a.npy", np.array([[1.0, 1.5], [2.0, 2.5], [3.0, 3.5]]))
    with pytest.raises(UnfoldError, match="the array is 3 x 2; times are one number per arrival"):
        traces.read_trace(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"\x28\xb5\x2f\xfd\x04\x00abc", "zstd"),
        (bz2.compress(b"timestamp\n1\n2\n"), "bzip2"),
        (lzma.compress(b"timestamp\n1\n2\n"), "xz"),
        (b"PK\x03\x04\x14\x00\x00\x00", "zip"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "zst"])
def test_a_packed_trace_is_named(tmp_path: Path, content: bytes, name: str, suffix: str) -> None:
    """A file compressed otherwise than by gzip is an error that names the format, whatever the name of the file."""
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UnfoldError, match=f"a file of {name}"):
        traces.read_trace(path)


def test_rows_of_several_units_are_an_error(tmp_path: Path) -> None:
    """Seconds and then milliseconds since 1970 are not a trace of 55,000 years."""
    numbers = [1_760_000_000 + index for index in range(100)] + [1_760_000_100_000 + index for index in range(100)]
    path = write(tmp_path, "a.csv", "timestamp\n" + "\n".join(map(str, numbers)) + "\n")
    with pytest.raises(UnfoldError, match="arrival 101 is far from the one above it"):
        traces.read_trace(path)


@pytest.mark.parametrize("quote", ["", '"'])
def test_json_lines_without_a_unit_are_in_doubt_too(tmp_path: Path, quote: str) -> None:
    """Whole milliseconds from 0 on are no days, as in a table; a field that names its unit is in no doubt."""
    notation = TimeNotation(key="arrivals")
    rows = [f'{{"FIELD": {quote}{millisecond}{quote}}}' for millisecond in range(0, 300_000, 217)]
    path = write(tmp_path, "a.jsonl", "\n".join(rows).replace("FIELD", "ts"))
    with pytest.raises(UnfoldError, match="the unit of the times is unclear"):
        traces.read_trace(path, notation=notation)
    named = write(tmp_path, "b.jsonl", "\n".join(rows).replace("FIELD", "time_ms"))
    stated = traces.read_trace(path, notation=TimeNotation(unit="ms"))
    assert traces.read_trace(named, notation=notation)[-1] == stated[-1] == pytest.approx(299.894)


def test_two_columns_of_one_name_are_a_question(tmp_path: Path) -> None:
    """The first of them was read without a word; equal ones, as after a join, are no question."""
    with pytest.raises(UnfoldError, match="2 columns are called 'time'"):
        traces.read_trace(write(tmp_path, "a.csv", "time,time,x\n5,1,0\n9,4,0\n"))
    assert traces.read_trace(write(tmp_path, "b.csv", "time,x,time\n5,0,5\n9,0,9\n")).tolist() == [0, 4]


def test_dates_of_a_spreadsheet_need_a_unit(tmp_path: Path) -> None:
    """Days since 1900 are not read as seconds; a monotonic clock that lasts longer than a minute is."""
    notation = TimeNotation(key="arrivals")
    days = 45_940 + np.linspace(0.3, 0.9, 200)
    path = write(tmp_path, "days.csv", "time\n" + "\n".join(f"{day:.9f}" for day in days))
    with pytest.raises(UnfoldError, match=r"dates of a spreadsheet.*unit, d for days"):
        traces.read_trace(path, notation=notation)
    assert traces.read_trace(path, notation=TimeNotation(unit="d"))[-1] == pytest.approx(0.6 * 86_400, rel=1e-3)
    clock = write(tmp_path, "clock.csv", "time\n" + "\n".join(f"{42_385.5 + second:.6f}" for second in range(200)))
    assert traces.read_trace(clock, notation=notation)[-1] == 199


def test_means_of_counts_are_no_counts(tmp_path: Path) -> None:
    """A column of counts that holds 1.5 is refused, not read as one arrival a row."""
    path = tmp_path / "t.csv"
    path.write_text("time,requests\n0,1.5\n60,2.5\n120,4\n")
    with pytest.raises(UnfoldError, match=r"'1\.5' is not a count"):
        traces.read_trace(path)
    assert traces.read_trace(path, counts="").size == 3


def test_a_parquet_file_is_read_as_a_table(tmp_path: Path) -> None:
    """Its times may have a zone and nanoseconds, and be in any order; counts and rates are columns as in a table."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    nanoseconds = [1_763_971_200_500_000_007, 1_763_971_200_000_000_000, 1_763_971_202_000_000_000]
    for kind in (pa.timestamp("ns", "Asia/Kolkata"), pa.timestamp("ns"), pa.int64()):
        columns = {"id": ["a", "b", None], "timestamp": pa.array(nanoseconds).cast(kind), "vector": [[1.0], [2.0], []]}
        parquet.write_table(pa.table(columns), path)
        assert traces.read_trace(path).tolist() == pytest.approx([0, 0.5, 2])
    parquet.write_table(pa.table({"minute": [0, 1, 2], "requests": [60, 0, 30]}), path)
    assert traces.read_trace(path).size == 90
    parquet.write_table(pa.table({"timestamp": [0.5, None]}), path)
    with pytest.raises(UnfoldError, match="row 2: '' is not a time"):
        traces.read_trace(path)


def test_a_damaged_parquet_file_is_an_error(tmp_path: Path) -> None:
    """The error names the file and the format."""
    pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1\x15\x04\x15" * 100)
    with pytest.raises(UnfoldError, match="not a Parquet file"):
        traces.read_trace(path)


@pytest.mark.parametrize("comments", ["# exported by a tool\n", "# host, zone\n# a second line, with cells\n"])
def test_comments_before_the_head_are_skipped(tmp_path: Path, comments: str) -> None:
    """Lines that begin with a number sign before the header describe the table."""
    path = write(tmp_path, "a.csv", f"{comments}arrival_s,model\n1.5,a\n2.75,b\n")
    assert traces.read_trace(path).tolist() == [0, 1.25]


def test_milliseconds_of_mooncake_are_read_without_a_unit(tmp_path: Path) -> None:
    """Lines with Mooncake's lengths count in milliseconds, whole or not, in pipelines without an engine too."""
    lines = [f'{{"timestamp": {n * 500.5}, "input_length": 10, "output_length": 2}}' for n in range(100)]
    assert traces.read_trace(write(tmp_path, "a.jsonl", "\n".join(lines)))[-1] == pytest.approx(99 * 0.5005)


def test_fractions_of_milliseconds_may_be_seconds(tmp_path: Path) -> None:
    """Traces of Qwen have Mooncake's fields and times in seconds, which are not read as 1,000 times their rate."""
    lines = [f'{{"timestamp": {n * 0.0625}, "input_length": 10, "output_length": 2}}' for n in range(100)]
    path = write(tmp_path, "a.jsonl", "\n".join(lines))
    with pytest.raises(UnfoldError, match="may be seconds, or milliseconds"):
        traces.read_trace(path)
    assert traces.read_trace(path, notation=TimeNotation(unit="s"))[-1] == 99 * 0.0625
    path = write(tmp_path, "b.jsonl", '{"input_length": 10, "output_length": 2}')
    with pytest.raises(UnfoldError, match="no time in this line"):
        traces.read_trace(path, column="timestamp")


def test_tables_with_mooncakes_columns_are_in_milliseconds(tmp_path: Path) -> None:
    """As its JSON lines are; what would be too many requests a second, or has fractions, is no millisecond."""

    def read(stamps: list[str], name: str = "a.csv") -> float:
        rows = "\n".join(f"{stamp},900,20" for stamp in stamps)
        path = write(tmp_path, name, f"timestamp,input_length,output_length\n{rows}\n")
        return float(traces.read_trace(path)[-1])

    assert read([str(stamp) for stamp in range(0, 300_000, 217)]) == pytest.approx(299.894)
    assert read([str(stamp) for stamp in range(0, 900, 3)]) == 897.0
    assert read([f"{stamp}.5" for stamp in range(300)]) == 299.0


@pytest.mark.parametrize("name", ["clock.csv", "clock.log"])
def test_a_clock_that_was_set_back_is_a_warning(name: str, tmp_path: Path) -> None:
    """Rows from a place on are earlier; a row out of place, and requests logged as they end, are no such step."""
    rng = np.random.default_rng(4)
    times = 1.75e9 + np.cumsum(rng.exponential(0.1, 300))
    path = tmp_path / name

    def read(stamps: FloatArray) -> list[str]:
        head = "timestamp\n" if name.endswith(".csv") else ""
        path.write_text(head + "".join(f"{stamp:.3f}\n" for stamp in stamps))
        warnings: list[str] = []
        assert traces.read_trace(path, warn=warnings.append, on_unsorted=lambda _order: None).size == 300
        return warnings

    [warning] = read(np.concatenate([times[:200], times[200:] - 5.0]))
    assert "from arrival 201 on, times are 4.86 s earlier" in warning
    late = np.concatenate([times[:100], times[101:140], times[100:101], times[140:]])
    assert read(late) == read(times[np.argsort(times + rng.exponential(0.3, 300))]) == read(times) == []
