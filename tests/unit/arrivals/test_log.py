"""Logs are read under whatever name and in whatever form servers write them."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from unfoldkit._types import FloatArray
from unfoldkit.arrivals import traces
from unfoldkit.arrivals.readers.timestamps import TimeNotation
from unfoldkit.errors import UnfoldError

CLF = '1.2.3.4 - - [16/Nov/2023:18:00:{second:02} +0100] "GET /a HTTP/1.1" 200 12 "-" "curl"\n'
# each log has three requests, 0, 2 and 3.5 s after the first
W3C = """#Version: 1.0
#Date: 2023-11-16 17:00:00
#Fields: date time x-edge-location sc-bytes
2023-11-16\t18:59:58.0\tLAX1\t2390
2023-11-16\t19:00:00.0\tLAX1\t2390
#Fields: date time x-edge-location sc-bytes
2023-11-16\t19:00:01.5\tLAX1\t2390
"""
BALANCER = """http {0}T18:00:09.5Z app/lb/50 192.168.1.1:2817 10.0.0.1:80 0.000 0.001 0.000 200 200 34 366 \
"GET http://x.org:80/?at=2001-01-01T00:00:00Z HTTP/1.1" "curl" - - arn "Root=1-5833" "-" "-" 0 {1}Z "forward"\n"""
FORMS = {
    "w3c": W3C,
    "nginx msec": "".join(f'1.2.3.4 - 170000000{at} "GET /a?x=1600000000" 200\n' for at in ("0.250", "2.250", "3.750")),
    "msec first": "".join(
        f'170000000{at} 1.2.3.4 "GET /a?t=2001-01-01T00:00:00"\n' for at in ("0.250", "2.250", "3.750")
    ),
    "squid": "".join(f"170000000{at}    180 192.168.0.224 TCP_MISS/200\n" for at in ("0.250", "2.250", "3.750")),
    "milliseconds": "".join(f"17000000{at} GET /\n" for at in ("00250", "02250", "03750")),
    "haproxy": "".join(
        f"Nov 16 18:00:09 host haproxy[12]: 1.2.3.4:33 [16/Nov/2023:18:00:{at}] in static/s1 10/0/30/69/109 200 -\n"
        for at in ("01.500", "03.500", "05.000")
    ),
    "kafka": "".join(f"CreateTime:17000000{at}\tPartition:0\tkey\t1600000000\n" for at in ("00250", "02250", "03750")),
    "journal": "".join(
        f'{{"_PID": "1600000000", "__REALTIME_TIMESTAMP": "17000000{at}000"}}\n' for at in ("00250", "02250", "03750")
    ),
    "several units": "".join(
        f'{{"ts": {at}}}\n' for at in ('"2023-11-14T22:13:20.25Z"', "1700000002250", "1700000003.75")
    ),
    "balancer": "".join(BALANCER.format("2023-11-16", f"2023-11-16T18:00:{at}") for at in ("01.5", "03.5", "05.0")),
    "classic balancer": "".join(
        f"2023-11-16T18:00:{at}Z my-lb 1.2.3.4:28 10.0.0.1:80 0 200\n" for at in ("01.5", "03.5", "05.0")
    ),
    "json, seconds": "".join(f'{{"level": "info", "ts": 170000000{at}}}\n' for at in ("0.25", "2.25", "3.75")),
    "json, whole": "".join(
        f'{{"status": 1600000000, "@timestamp": 17000000{at}}}\n' for at in ("00250", "02250", "03750")
    ),
    "json, relative": "".join(f'{{"a": "2001-01-01T00:00:00", "time_ms": {at}}}\n' for at in (250, 2250, 3750)),
    "traefik": "".join(
        f'{{"Duration": 1200345, "StartUTC": "2023-11-16T18:00:{at}Z", "time": "2023-11-16T18:00:{later}Z"}}\n'
        for at, later in (("01.5", "10"), ("03.5", "40"), ("05.0", "06"))
    ),
    "caddy": "".join(
        f'{{"ts": 170000000{end}, "logger": "http.log.access.log0", "request": {{}}, "duration": {s}, "status": 200}}\n'
        for s, end in ((2.5, 2.75), (0, 2.25), (0.125, 3.875))
    ),
    "nginx in json": "".join(
        f'{{"time_iso8601": "2023-11-16T18:00:{end}Z", "request_time": "{took}", "status": "200"}}\n'
        for took, end in (("4.000", "05.5"), ("0.000", "03.5"), ("9.500", "14.5"))
    ),
    "nginx in microseconds": "".join(
        f'{{"timestamp": 17000000{end}000, "request_time": {took}}}\n'
        for took, end in ((2.5, "02750"), (0, "02250"), (0.125, "03875"))
    ),
    "no durations": "".join(
        f'{{"ts": {1700000000 + at}, "request_time": {took}}}\n'
        for took, at in ((250, 0.25), (1700000000.5, 2.25), ("1700000001.5", 3.75))
    ),
    "pino": "".join(
        f'{{"level": 30, "time": 17000000{end}, "pid": 1, "req": {{}}, "res": {{}}, "responseTime": {took}}}\n'
        for took, end in ((2500, "02750"), (0, "02250"), (125, "03875"))
    ),
    "serilog": "".join(
        f'{{"@t": "2023-11-16T18:00:{end}Z", "RequestPath": "/", "StatusCode": 200, "Elapsed": {took}}}\n'
        for took, end in ((4000.0, "05.5"), (0.25, "03.50025"), (9500, "14.5"))
    ),
    "text-generation-inference": "".join(
        f'{{"timestamp": "2023-11-16T18:00:{end}Z", "target": "router", "span": {{"total_time": "{took}"}}}}\n'
        for took, end in (("4.000000012s", "05.5"), ("250.5µs", "03.50025"), ("500ms", "05.5"))
    ),
    "cloudflare": "".join(
        f'{{"ClientIP": "::1", "EdgeStartTimestamp": 17000000{at}000000, "EdgeEndTimestamp": 1700000009000000000}}\n'
        for at in ("00250", "02250", "03750")
    ),
    "heroku": "".join(
        f"2023-11-16T18:00:{end}+00:00 heroku[router]: at=error code=H12 connect=1ms service={took}ms status=200\n"
        for took, end in ((3999, "05.5"), (0, "03.501"), (499, "05.5"))
    ),
    "json, dates": "".join(
        f'{{"url": "?2001-01-01T00:00", "time": "2023-11-16T18:00:{at}Z"}}\n' for at in ("01.5", "03.5", "05.0")
    ),
}


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("name", ["a.log", "a"])
def test_every_log_format_gives_the_times_of_its_requests(tmp_path: Path, form: str, name: str) -> None:
    """Every form gives the times of its requests, and none of the other times that its lines hold."""
    (tmp_path / name).write_text(FORMS[form])
    assert traces.read_trace(tmp_path / name).tolist() == pytest.approx([0, 2, 3.5], abs=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "access_log",
        "access.log-20231116",
        "access.log-20231116.gz",
        "access.log.2.gz",
        "ssl_access_log.1",
        "a.txt",
        "a",
    ],
)
def test_logs_are_detected_under_rotated_and_unknown_names(tmp_path: Path, name: str) -> None:
    """A log is one under the name that its server or logrotate gave it, and under any other."""
    data = "".join(CLF.format(second=second) for second in (5, 4, 8)).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert traces.read_trace(tmp_path / name).tolist() == [0, 1, 4]


@pytest.mark.parametrize("first", ["started", "# of today", "", "a b, c"])
def test_a_log_may_begin_otherwise(tmp_path: Path, first: str) -> None:
    """A log of any name may begin with a line that is none of its requests."""
    (tmp_path / "access_log").write_text(f"{first}\n" + "".join(CLF.format(second=at // 9) for at in range(200)))
    assert traces.read_trace(tmp_path / "access_log").size == 200


def test_a_pipe_is_rejected(tmp_path: Path) -> None:
    """An input that can be read only once is rejected, not read by halves."""
    os.mkfifo(tmp_path / "a.log")
    with pytest.raises(UnfoldError, match="a pipe cannot be read twice"):
        traces.read_trace(tmp_path / "a.log")


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json"])
def test_lines_of_json_have_columns(tmp_path: Path, name: str) -> None:
    """Of lines in JSON that column is read which is asked for, with the unit of its name."""
    lines = ['{"ts": 5, "begun_ms": 1000}', '{"ts": 6, "begun_ms": 1250}']
    (tmp_path / name).write_text("\n".join(lines))
    assert traces.read_trace(tmp_path / name).tolist() == [0, 1]
    assert traces.read_trace(tmp_path / name, column="begun_ms").tolist() == [0, 0.25]


@pytest.mark.parametrize(("stray", "taken"), [(1, True), (10, True), (11, False)])
def test_up_to_one_percent_of_the_lines_may_have_no_time(tmp_path: Path, stray: int, taken: bool) -> None:
    """Up to 1 % of the lines may have no time; a warning gives their count and the first. More are an error."""
    lines = [CLF.format(second=number // 20) for number in range(1000 - stray)]
    (tmp_path / "a.log").write_text("".join([*lines[:500], "cut off\n" * stray, *lines[500:]]))
    notes: list[str] = []
    if taken:
        assert traces.read_trace(tmp_path / "a.log", warn=notes.append).size == 1000 - stray
        assert notes == [f"{tmp_path}/a.log: skipped {stray} of 1,000 lines, which have no time; the first is line 501"]
        return
    with pytest.raises(
        UnfoldError, match=r"a\.log:501:1: no time in this line, nor in 10 other lines of 1,000 \(.*match"
    ):
        traces.read_trace(tmp_path / "a.log")


def test_fields_of_lines_without_a_known_time_are_listed(tmp_path: Path) -> None:
    """A line that is a JSON object shows the names among which the column may be."""
    path = tmp_path / "gateway.jsonl"
    path.write_text('{"requestId": "a", "gatewayClock": 1772442000123}\n' * 3)
    with pytest.raises(UnfoldError, match=r"arrivals\.column names the field of times, of: requestId, gatewayClock"):
        traces.read_trace(path)
    assert traces.read_trace(path, column="gatewayClock").size == 3


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"expires": "2030-01-01T00:00:00Z", "at": 1700000000.5}', "of: expires, at;"),
        ('{"queued": "2023-11-16T18:00:01Z", "request": {"finished": "2023-11-16T18:00:09Z"}}', "request.finished"),
        ('{"completed_at": "2023-11-16T18:00:09Z", "latency_ms": 800}', "of: completed_at"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a"])
def test_a_line_with_several_times_or_an_end_asks_for_its_field(
    tmp_path: Path, line: str, reason: str, name: str
) -> None:
    """The first time of a line may be an expiry, and the end of a long request is far from its arrival."""
    (tmp_path / name).write_text(f"{line}\n" * 3)
    with pytest.raises(UnfoldError, match=rf"the time of this line is unclear.*arrivals\.column.*{reason}"):
        traces.read_trace(tmp_path / name)


def test_milliseconds_since_a_boot_are_no_seconds(tmp_path: Path) -> None:
    """A number that is neither relative seconds nor since 1970 was taken as seconds, and minutes became days."""
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(f'{{"time": {3_456_000_000 + 700 * row}}}\n' for row in range(30)))
    with pytest.raises(UnfoldError, match=r"3.456e\+09 is not a time \(set arrivals\.unit, such as ms"):
        traces.read_trace(path)
    assert traces.read_trace(path, notation=TimeNotation(unit="ms"))[-1] == pytest.approx(20.3)


def test_durations_in_lines_are_refused(tmp_path: Path) -> None:
    """Numbers that do not follow the lines are durations; lines in the order of ends, or reversed, are times."""
    rng = np.random.default_rng(0)
    starts = np.cumsum(rng.exponential(0.1, 300))
    path = tmp_path / "app.jsonl"

    def write(times: FloatArray) -> None:
        path.write_text("".join(f'{{"path": "/", "time": {time:.4f}}}\n' for time in times))

    write(rng.exponential(0.05, 300))
    with pytest.raises(UnfoldError, match="the times have no order, like durations"):
        traces.read_trace(path)
    # four workers whose logs were joined: the user names the field, as the hint says
    write(np.tile(starts[:100], 4))
    with pytest.raises(UnfoldError, match=r"arrivals\.column names the field"):
        traces.read_trace(path)
    assert traces.read_trace(path, column="time").size == 400
    for times in (starts[np.argsort(starts + rng.exponential(3.0, 300))], starts[::-1]):
        write(times)
        assert traces.read_trace(path).size == 300


@pytest.mark.parametrize("line", ["{} GET /\n", "[{}] GET /\n", '{{"time": "{}"}}\n'])
def test_lines_of_a_twelve_hour_clock_need_a_format(tmp_path: Path, line: str) -> None:
    """Read as hours of 24, one o'clock would come eleven hours before noon."""
    path = tmp_path / "a.log"
    path.write_text("".join(line.format(f"2025-11-12 {at} PM") for at in ("12:59:58", "01:00:00", "01:00:03")))
    with pytest.raises(UnfoldError, match=r"no time in this line.*\n?.*arrivals\.time_format"):
        traces.read_trace(path)
    notation = TimeNotation(format="%Y-%m-%d %I:%M:%S %p")
    assert traces.read_trace(path, notation=notation).tolist() == [0, 2, 5]


def test_no_other_time_stands_in_for_a_field_that_is_asked_for(tmp_path: Path) -> None:
    """Lines without the field have no time, whatever other dates they hold."""
    path = tmp_path / "a.log"
    path.write_text('{"@timestamp": "2025-11-12T10:00:00Z", "event": {"start": "2025-11-12T09:00:00Z"}}\n' * 3)
    with pytest.raises(UnfoldError, match=r"arrivals\.column names the field of times, of: @timestamp, event\.start"):
        traces.read_trace(path, column="event.begin")


def test_a_path_names_a_field_of_an_inner_object(tmp_path: Path) -> None:
    """Elastic's lines have the start of a request below ``event``, and its end at the top; a plain name wins."""
    path = tmp_path / "a.log"
    line = '{{"@timestamp": "2025-11-12T10:00:0{0}Z", "event": {{"start": "2025-11-12T09:00:0{1}Z"}}}}\n'
    path.write_text("".join(line.format(end, start) for start, end in ((1, 2), (3, 8), (7, 9))))
    assert traces.read_trace(path, column="event.start").tolist() == [0, 2, 6]
    path.write_text(path.read_text().replace('{"@timestamp"', '{"event.start"'))
    assert traces.read_trace(path, column="event.start").tolist() == [0, 6, 7]
