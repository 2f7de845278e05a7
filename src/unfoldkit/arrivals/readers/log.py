"""Read arrival times from logs with one request per line, in the order in which requests came or ended."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unfoldkit._types import FloatArray
from unfoldkit.arrivals.readers.load_generators import is_other_k6_line
from unfoldkit.arrivals.readers.timestamps import (
    COLUMNS,
    MAX_MOONCAKE_RATE,
    MOONCAKE_FIELDS,
    NUMBER,
    TimeNotation,
    check_clock,
    check_order,
    describe_clock_step,
    each_epoch_to_seconds,
    find_epoch_parts,
    split_unit,
    to_seconds,
)
from unfoldkit.errors import Diagnostic, UnfoldError, user_error
from unfoldkit.io.tables import UNREADABLE, open_text

Warn = Callable[[str], None]
MAX_UNREADABLE = 0.01
"""The fraction of lines without a time that is tolerated: crashes, cuts and restarts leave a few."""
MAX_FIELDS_SHOWN = 12
MAX_DEPTH = 4
"""Levels of a JSON object on which fields of times are looked for."""


class EndLog(NamedTuple):
    """A kind of log that has a request at its end, with the time that it took.

    Attributes:
        times: Its fields of times.
        fields: Fields that all its requests have.
        duration: The path of the field with the time that the request took.
        unit_s: The unit (s) of that field, unless it is a text with a unit.
    """

    times: frozenset[str]
    fields: frozenset[str]
    duration: str
    unit_s: float


NGINX_TIMES = frozenset(("time", "time_iso8601", "time_local", "timestamp", "@timestamp", "ts"))
END_LOGS = {
    "Caddy": EndLog(frozenset(("ts",)), frozenset(("logger", "request", "status", "duration")), "duration", 1.0),
    "nginx": EndLog(NGINX_TIMES, frozenset(("request_time",)), "request_time", 1.0),
    "pino-http": EndLog(frozenset(("time",)), frozenset(("level", "res", "responseTime")), "responseTime", 1e-3),
    "Serilog": EndLog(frozenset(("@t",)), frozenset(("RequestPath", "StatusCode", "Elapsed")), "Elapsed", 1e-3),
    "TGI": EndLog(frozenset(("timestamp",)), frozenset(("target", "span")), "span.total_time", 1.0),
}
"""Logs of JSON lines in which the time of a request is its end."""
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|µs|ms|s)?")
_END = re.compile(r"(?:^|[_.])(?:end|ended|finish|finished|complete|completed|done|expires|updated)(?:_|$)")
_HEROKU = re.compile(r" connect=(\d+)ms service=(\d+)ms ")
MAX_DURATION_S = 86_400.0
_UNITS_S = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(slots=True)
class UnitDoubts:
    """What leaves the unit of times in doubt.

    Attributes:
        unitless: Fields with numbers in a unit that neither name nor notation states.
        has_fractions: Whether a time that counts as one of Mooncake's milliseconds has a fraction.
    """

    unitless: set[str] = field(default_factory=set)
    has_fractions: bool = False

    def check_mooncake(self, times: FloatArray, file: str) -> None:
        """Reject times with fractions that would be too many requests a second as Mooncake's milliseconds.

        Raises:
            UnfoldError: They may be seconds, as in traces of Qwen.
        """
        if self.has_fractions and 0 < np.ptp(times) * MAX_MOONCAKE_RATE < times.size:
            message = (
                "the unit of the times is unclear: with fractions they may be seconds, or milliseconds as Mooncake's"
            )
            raise user_error(message, file=file, key="timestamp", hint="arrivals.unit: s, or ms")


def ignore_warning(text: str) -> None:
    """Take a warning and do nothing: the default of readers that have no log."""


def read_log(path: Path, match: str, column: str | None, notation: TimeNotation, warn: Warn) -> FloatArray:
    """Read the times of the lines that contain ``match``.

    Lines that begin with ``#`` (W3C extended logs) and samples of k6 that are not requests are skipped. At most 1 % of
    the lines may have no time; ``warn`` receives a note about them.

    Args:
        path: The log, gzipped or not.
        match: A text that a line must contain; empty selects all lines.
        column: The field of JSON lines; without it, the first usual name.
        notation: How times are written.
        warn: Receives a note about skipped lines.

    Returns:
        Sorted times in s, from any origin.

    Raises:
        UnfoldError: The file cannot be read, too many lines have no time, or the unit of their numbers is unclear,
            or their clock repeats an hour.
    """
    skipped: list[tuple[int, str]] = []
    doubts = UnitDoubts()
    try:
        with open_text(path, errors="replace") as stream:
            times = np.fromiter(_parse_lines(stream, match, column, notation, skipped, doubts), np.float64)
    except UNREADABLE as error:
        raise user_error(f"cannot read the log: {error}", file=str(path)) from error
    _check_skipped(skipped, times.size + len(skipped), path, notation, warn)
    doubts.check_mooncake(times, str(path))
    times = times if notation.unit else each_epoch_to_seconds(times)
    check_clock(times, str(path))
    if step := describe_clock_step(times):
        warn(f"{path}: {step}")
    if column is None:
        check_order(times, str(path))
    times, unitless = np.sort(times), doubts.unitless
    return notation.convert_numbers(times, min(unitless), str(path)) if unitless and times.size else times


def parse_line(text: str, column: str | None, notation: TimeNotation, doubts: UnitDoubts | None = None) -> float | None:
    """Parse the time of a line, JSON or plain; ``None`` if it has none.

    Args:
        text: The line.
        column: The field of JSON lines; without it, the first usual name.
        notation: How times are written.
        doubts: Receives what leaves the unit of the time in doubt.
    """
    fields = _parse_object(text)
    if fields is not None:
        time = parse_object_time(fields, column, notation, doubts or UnitDoubts())
        return time if time is not None or column else _parse_only_time(fields, notation)
    if column and text[:1] == "{":
        return None
    time = notation.parse_line(text)
    # the router of Heroku has the end of a request, and how long it took
    ended = _HEROKU.search(text) if " service=" in text else None
    return time - 1e-3 * (int(ended[1]) + int(ended[2])) if time is not None and ended else time


def _parse_lines(
    lines: Iterator[str],
    match: str,
    column: str | None,
    notation: TimeNotation,
    skipped: list[tuple[int, str]],
    doubts: UnitDoubts,
) -> Iterator[float]:
    for number, text in enumerate(lines, 1):
        if match not in text or text.startswith("#") or text.isspace() or is_other_k6_line(text):
            continue
        time = parse_line(text, column, notation, doubts)
        if time is None:
            # the text of the first line is enough for the report
            skipped.append((number, "" if skipped else text))
        else:
            yield time


def _parse_object(text: str) -> dict[str, Any] | None:
    """Parse a line that is a JSON object; ``None`` for any other, also one that was cut."""
    try:
        return json.loads(text) if text[:1] == "{" else None
    except (ValueError, RecursionError):
        return None


def _parse_only_time(fields: Mapping[str, Any], notation: TimeNotation) -> float | None:
    """Parse the only field that holds a time; ``None`` if there are several, or if it is named as an end."""
    times = _find_times(fields, notation)
    if len(times) != 1:
        return None
    [(name, time)] = times.items()
    return None if _END.search(split_unit(name)[0]) else time


def _find_times(fields: Mapping[str, Any], notation: TimeNotation) -> dict[str, float]:
    """Find the fields that hold a time, by their paths: a text, or a fraction of the size of one since 1970."""
    found = {}
    for path in _iter_paths(fields):
        value = get_field(fields, path)
        if isinstance(value, str | float):
            time = notation.parse_line(value if isinstance(value, str) else f"{value:f}")
            if time is not None:
                found[path] = time
    return found


def parse_object_time(
    fields: Mapping[str, Any], column: str | None, notation: TimeNotation, doubts: UnitDoubts
) -> float | None:
    """Parse the time of a JSON object, from its field of times alone; ``None`` if it has none.

    Args:
        fields: The object.
        column: The field; without it, the first usual name.
        notation: How times are written.
        doubts: Receives what leaves the unit of the time in doubt.
    """
    name = column or find_time_field(fields)
    if name is None:
        return None
    if name == "timestamp" and notation.unit is None and fields.keys() >= MOONCAKE_FIELDS:
        notation, value = replace(notation, unit="ms"), fields.get("timestamp")
        doubts.has_fractions |= isinstance(value, float) and value % 1 != 0
    try:
        time_s = _parse_field(name, get_field(fields, name), notation, doubts.unitless)
    except (ValueError, OverflowError):
        return None
    if time_s is None or column:
        return time_s
    # a time since 1970 keeps its unit until all are read
    return time_s - _duration_before(name, fields) * find_epoch_parts(time_s)


def _duration_before(name: str, fields: Mapping[str, Any]) -> float:
    """Return for how long (s) a request had lasted at its time: 0 unless the log is known to have its end."""
    for log in END_LOGS.values():
        if name in log.times and fields.keys() >= log.fields:
            value = get_field(fields, log.duration)
            found = _DURATION.fullmatch(str(value))
            # a whole number may be milliseconds of another program, and a large one a time since 1970
            is_doubtful = isinstance(value, int) and log.unit_s == 1.0
            seconds = float(found[1]) * _UNITS_S.get(found[2], log.unit_s) if found and not is_doubtful else 0.0
            return seconds if seconds < MAX_DURATION_S else 0.0
    return 0.0


def get_field(fields: Mapping[str, Any], name: str) -> object:
    """Return a field of an object, or that of an inner one by its path, such as ``event.start``."""
    if name in fields:
        return fields[name]
    outer, _, inner = name.partition(".")
    below = fields.get(outer)
    return get_field(below, inner) if inner and isinstance(below, Mapping) else None


def find_time_field(names: Iterable[str]) -> str | None:
    """Return the field of times by its usual name; ``None`` without one."""
    plain = {name.lstrip("@_").lower(): name for name in names}
    # the compact log events of Serilog
    usual = next((plain[name] for name in COLUMNS if name in plain), "@t" if "@t" in plain.values() else None)
    return usual or next((name for name in names if split_unit(name)[0] in COLUMNS), None)


def _parse_field(name: str, value: object, notation: TimeNotation, unitless: set[str]) -> float | None:
    if isinstance(value, str) and not (NUMBER.fullmatch(value) and notation.format is None):
        return notation.parse_text(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    unit_s = notation.unit_s or split_unit(name)[1]
    if unit_s is None:
        unitless.add(name)
    return to_seconds(float(value), unit_s or 1.0)


def _check_skipped(skipped: list[tuple[int, str]], lines: int, path: Path, notation: TimeNotation, warn: Warn) -> None:
    if not skipped:
        return
    number, text = skipped[0]
    if len(skipped) > MAX_UNREADABLE * lines:
        keys = "; arrivals.match selects lines that contain a text" if notation.key else ""
        others = f"{len(skipped) - 1:,} other lines of {lines:,}" if skipped[1:] else ""
        fields = _parse_object(text)
        names = _list_fields(fields) if fields and notation.key else ""
        hint = f"{names}common log format, {notation.hint}{keys}"
        if _find_times(fields or {}, notation):
            message = f"the time of this line is unclear{others and f', and that of {others}'}"
        else:
            message = f"no time in this line{others and f', nor in {others}'}"
        raise UnfoldError(Diagnostic(message, str(path), number, 1, hint=hint))
    warn(f"{path}: skipped {len(skipped):,} of {lines:,} lines, which have no time; the first is line {number}")


def _list_fields(fields: Mapping[str, Any]) -> str:
    """Return a hint that names the fields of a line that is a JSON object."""
    names = ", ".join(list(_iter_paths(fields))[:MAX_FIELDS_SHOWN])
    return f"arrivals.column names the field of times, of: {names}; "


def _iter_paths(fields: Mapping[str, Any], depth: int = 1) -> Iterator[str]:
    for name, value in fields.items():
        is_outer = isinstance(value, dict) and depth < MAX_DEPTH
        yield from (f"{name}.{inner}" for inner in _iter_paths(value, depth + 1)) if is_outer else (name,)
