"""Timestamps of logs and tables: which notations are recognized, and which the spec must name.

Three notations are unambiguous and recognized everywhere: ISO 8601 dates with a time, numbers since 1970 in seconds to
nanoseconds, and the common log format. Every other date needs ``time_format`` (directives of
:meth:`datetime.datetime.strptime`), and numbers in another unit than seconds need ``unit`` or a column name that ends
with it (``time_ms``). A question costs a user a minute; a wrong guess costs a wrong plan.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TypeVar

import numpy as np

from unfoldkit._types import BoolArray, FloatArray
from unfoldkit.errors import did_you_mean, user_error

Number = TypeVar("Number", float, FloatArray)
COLUMNS = (
    # Traefik has the end of a request as time, and HAR its duration
    *(
        "arrival_s",
        "arrival",
        "arrival_time",
        "startutc",
        "starteddatetime",
        "time_s",
        "timestamp",
        "time",
        "ts",
        "datetime",
        "date",
    ),
    *("second", "seconds", "minute", "minutes", "hour", "hours"),
    *(
        "start_time",
        "starttime",
        "start_timestamp",
        "start_time_unix",
        "started_at",
        "begin_time",
        "timegenerated",
        "day",
        "days",
    ),
    *("arrived_at", "received_at", "requested_at", "submitted_at", "created_at", "submit_time", "event_time"),
    *("time_iso8601", "time_local", "start", "realtime_timestamp", "created", "request_created_at"),
    # Logpush of Cloudflare, API Gateway
    *("edgestarttimestamp", "requesttimeepoch"),
)
"""Names of columns of arrival times, in any case and with or without a unit, the likeliest first."""
UNITS_S = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
"""Units that ``arrivals.unit`` takes, in s."""
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
MAX_NAME_LENGTH = 1000
MAX_RELATIVE_S = 1e8
"""Numbers below count seconds from any start (three years); larger ones must be a time since 1970."""
FIRST_EPOCH_S, _LAST_EPOCH_S = 6e8, 2e9
"""From 1989 to 2033 times count from 1970: earlier ones are those of a load generator, and the digits of later ones are
often a date such as 2034010112."""
_FIRST_EPOCHS_S = {1.0: FIRST_EPOCH_S, 1e3: 1e9, 1e6: 1e9, 1e9: 1e9}
"""From when on, by units in a second: smaller numbers are rather a smaller unit since a boot, or ticks of .NET."""
MOONCAKE_FIELDS = frozenset(("input_length", "output_length"))
"""Fields of a request in Mooncake's form, in which ``timestamp`` counts milliseconds."""
MAX_MOONCAKE_RATE = 200.0
"""Requests a second above which what may be Mooncake's milliseconds are another unit."""
MIN_DOUBTFUL = 10
"""Fewer numbers say nothing about their unit."""
_DAY_S, _HOUR_S = 86_400.0, 3600.0
ZONE_HINT = "an hour back, as daylight saving time ends? write the times in UTC"
_MIN_ORDERED = 20
_MIN_CORRELATION = 0.5
"""Times with a smaller correlation to their positions in a file are in no order."""
_MAX_CLOCK_STEPS, _MIN_SET_BACK = 3, 5
"""Places where a clock may have been set back in a file, and the fewest arrivals that such a step has moved."""
_MAX_LATENESS_S = 600.0
"""By how much a line may be older than the one above it, where requests are logged as they end."""
_SUNDAY, _LAST_REPEATED_HOUR = 6, 3
"""Clocks are put back in a night to Sunday, to a time before this hour."""
_SPRING = (3, 4, 9, 10)
"""Months in which daylight saving time begins, in the north and in the south."""
_MIN_GAPS = 10
"""A trace with fewer gaps does not show which one is unusual."""
SPREADSHEET_DAYS = (32_000.0, 73_000.0)
"""Serial numbers of spreadsheets for the dates from 1987 to 2099."""
_MAX_SERIAL_SPAN = 60.0
_SERIAL_DOUBT = "they may be dates of a spreadsheet, in days"
_SPARSE_GAP_S, _LONE_GAP_S = 5.0, 60.0
"""Mean seconds between whole numbers, and median ones between others, from which on they are rather milliseconds."""
_LONG_INTERVAL_S = 250
MIN_REPEATED = 0.2
"""Fraction of equal neighbours from which on times look rounded."""
_CLF_STAMP = r"(\d{2})/([A-Za-z]{3})/(\d{4}):(\d{2}:\d{2}:\d{2})(\.\d+)?(?: ([+-]\d{4}))?"
_CLF = re.compile(rf"\[{_CLF_STAMP}\]")
_CLF_CELL = re.compile(rf"\[?{_CLF_STAMP}\]?")
# behind a blank, a zone has minutes: another signed number there is not a zone
_ISO = (
    r"(\d{4})-(\d{2})-(\d{2})[T \t](\d{2}:\d{2})(?::(\d{2})([.,]\d+)?)?(?!\d)"
    r"(?:\s*(Z|[+-]\d{2}:?\d{2}(?!\d))|([+-]\d{2})(?![\d:]))?"
)
_ISO_DATE = re.compile(_ISO)
# years that fit into 64 bits as nanoseconds; possessive, so that a match of many lines keeps nothing to go back to
_PLAIN_UTC = re.compile(
    r"(?:(?:19|20)[0-9]{2}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9}+)?+(?:Z|\+00:00)?+\n)*+"
)
_CLOCK_OF_12 = re.compile(r"\s?[AaPp]\.?\s?[Mm]\b")
# anything else behind the date of a cell without a zone, such as the name of one, may be what shifts it by hours
_NO_ZONE = re.compile(r"\s*\(?(?:UTC|GMT|UT|Z)?[]})\"']*")
_SHORT_ZONE = re.compile(r"(?<=[\d.])\s([+-]\d{2})$")
"""A zone of whole hours behind a blank, as ``strftime`` writes those without a name; only the end of a cell is one."""
_ISO_BASIC = re.compile(r"\d{8}T\d{4,6}(?:Z|[+-]\d{2}(?:\d{2})?)?")
# digits without a fraction are a time only at the beginning of a line: elsewhere they may be any number
_KAFKA = "(?:Create|LogAppend)Time:"
_EPOCH = rf"(?<![\w.-])(1\d{{9}}\.\d{{3,9}})(?![\w.])|^(?:{_KAFKA}|[^\w-]{{0,3}})(1\d{{9}}(?:\d{{3}}){{0,3}})(?![\w.])"
_ISO_OR_EPOCH = re.compile(f"{_ISO}|{_EPOCH}")
# a line of an AWS load balancer begins with the time of the response; the time of the request follows further on
_BALANCER = re.compile(r'(?:https?|h2|grpcs?|wss?) \d{4}-.*? \d+ (\d{4}-\d{2}-\d{2}T[\d:.]+Z) "')
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_UNIT_SUFFIX = re.compile(
    r"(?:^|[\s_.(\[/-]+)(?:(s|secs?|seconds?)|(ms|msecs?|millis?|milliseconds?)|([uµμ]s|usecs?|micros?|microseconds?)"
    r"|(ns|nsecs?|nanos?|nanoseconds?)|(minutes?)|(hours?)|(days?))[)\]]?$"
)
_SUFFIX_S = (1.0, 1e-3, 1e-6, 1e-9, 60.0, 3600.0, 86_400.0)
_SEPARATORS = re.compile(r"[\s-]+")
_DIRECTIVES = {
    "Y": r"\d{4}", "y": r"\d{2}", "m": r"\d{1,2}", "d": r"\d{1,2}", "j": r"\d{1,3}", "H": r"\d{1,2}", "I": r"\d{1,2}",
    "M": r"\d{1,2}", "S": r"\d{1,2}", "f": r"\d{1,6}", "b": r"[A-Za-z]{3}", "B": r"[A-Za-z]{3,9}", "a": r"[A-Za-z]{3}",
    "A": r"[A-Za-z]{6,9}", "p": r"[AaPp][Mm]", "z": r"(?:Z|[+-]\d{2}:?\d{2})", "Z": r"[A-Z]{3,4}", "%": "%",
}  # fmt: skip


@dataclass(frozen=True)
class TimeNotation:
    """How a spec says that times are written.

    Args:
        format: Directives of ``strptime`` for dates that are neither ISO 8601 nor common log format.
        unit: Unit of numbers, a key of ``UNITS_S``; without it, a column's name or the size of the numbers decides.
        key: The section of the spec that has the keys ``time_format`` and ``unit``, for hints; empty if none has.
        likely_unit: Unit of numbers for which nothing else states one: that of a related trace.
    """

    format: str | None = None
    unit: str | None = None
    key: str = "arrivals"
    likely_unit: str | None = None

    def check(self) -> None:
        """Check format and unit before a file is read.

        Raises:
            UnfoldError: A directive or the unit is unknown.
        """
        if self.unit is not None and self.unit not in UNITS_S:
            hint = did_you_mean(self.unit, UNITS_S)
            raise user_error(f"no such unit: {self.unit!r}", key=f"{self.key}.unit", hint=hint)
        directives = re.findall(r"%(.?)", self.format or "%Y")
        unknown = next((name for name in directives if name not in _DIRECTIVES), None)
        if not directives or unknown is not None:
            message = f"{self.format!r} holds no directive" if unknown is None else f"no such directive: %{unknown}"
            raise user_error(message, key=f"{self.key}.time_format", hint='such as "%d/%m/%Y %H:%M:%S"')

    @property
    def unit_s(self) -> float | None:
        """The stated unit in s."""
        return None if self.unit is None else UNITS_S[self.unit]

    def convert_numbers(self, times: FloatArray, column: str, file: str, *, is_single: bool = True) -> FloatArray:
        """Convert numbers in a unit that neither the spec nor a column states: times since 1970, or seconds.

        ``is_single`` states that each is one arrival; otherwise each begins an interval of counts or rates.

        Raises:
            UnfoldError: Numbers are neither relative seconds nor since 1970, would last too long as seconds, or lie on
                a coarse grid.
        """
        describe_doubt = describe_unit_doubt if is_single else describe_interval_doubt
        if self.likely_unit is not None and float(times[0]) < FIRST_EPOCH_S:
            return to_seconds(times, UNITS_S[self.likely_unit])
        if is_ambiguous(float(times[0])):
            raise user_error(f"{times[0]:g} is not a time", file=file, key=column, hint=self.number_hint)
        if self.key and (doubt := describe_doubt(np.sort(times))):
            unit = "d for days" if doubt == _SERIAL_DOUBT else "such as ms"
            hint = f"set {self.key}.unit, {unit}, or name the column after its unit: time_ms, time_s"
            raise user_error(f"the unit of the times is unclear: {doubt}", file=file, key=column, hint=hint)
        return epoch_to_seconds(times)

    @property
    def hint(self) -> str:
        """What to write for a cell that is not recognized."""
        known = "ISO 8601, seconds, or epoch seconds to nanoseconds"
        return f'{known}; else set {self.key}.time_format, such as "%d/%m/%Y %H:%M:%S"' if self.key else known

    @property
    def number_hint(self) -> str:
        """What to write for numbers of an ambiguous size."""
        if not self.key:
            return "ISO 8601, or epoch seconds to nanoseconds"
        return f'set {self.key}.unit, such as ms, or {self.key}.time_format, such as "%Y%m%d"'

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The pattern of texts that ``format`` can parse."""
        parts = re.split(r"%(.)", self.format or "")
        return re.compile("".join(_DIRECTIVES[p] if i % 2 else re.escape(p) for i, p in enumerate(parts)))

    def parse_text(self, text: str) -> float | None:
        """Parse a cell that holds a date: by ``format`` if there is one, else ISO 8601 or common log format."""
        return parse_timestamp(text) if self.format is None else self._parse_format(text.strip())

    def parse_line(self, text: str) -> float | None:
        """Parse the time of a line of a log; with ``format``, the first text of the line that it fits."""
        if self.format is None:
            return parse_line_time(text)
        match = self.pattern.search(text)
        return self._parse_format(match[0]) if match else None

    def _parse_format(self, text: str) -> float | None:
        try:
            # the year of a format without one only shifts all times alike
            moment = datetime.strptime(text, self.format or "")  # noqa: DTZ007
        except ValueError:
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def split_unit(name: str) -> tuple[str, float | None]:
    """Split a column's name into its stem in lower case and its unit in s, ``None`` without a unit."""
    plain = _SEPARATORS.sub("_", _CAMEL.sub("_", name.strip().lstrip("@_"))).lower()
    # the search takes quadratic time, and no column has such a name
    match = _UNIT_SUFFIX.search(plain) if len(plain) <= MAX_NAME_LENGTH else None
    if match is None or match.lastindex is None:
        return plain, None
    return plain[: match.start()], _SUFFIX_S[match.lastindex - 1]


def to_seconds(value: Number, unit_s: float) -> Number:
    """Convert a value in units of ``unit_s`` to s; fractions of a second are divided, which rounds only once."""
    return value * unit_s if unit_s >= 1 else value / round(1 / unit_s)


def epoch_to_seconds(times: FloatArray) -> FloatArray:
    """Convert times since 1970 in ms, µs or ns to s, by the size of the first; other numbers stay."""
    return times / find_epoch_parts(float(times[0])) if times.size else times


def find_epoch_parts(number: float) -> float:
    """Find how many units a second of a time since 1970 has, by its size; 1 for other numbers."""
    ranges = _FIRST_EPOCHS_S.items()
    return next((parts for parts, low_s in ranges if low_s * parts <= number < _LAST_EPOCH_S * parts), 1.0)


def each_epoch_to_seconds(times: FloatArray) -> FloatArray:
    """Convert times since 1970 to s, each by its own size: lines of one log may use several units."""
    for parts, low_s in _FIRST_EPOCHS_S.items():
        times = np.where((times >= low_s * parts) & (times < _LAST_EPOCH_S * parts), times / parts, times)
    return times


def is_ambiguous(number: float, text: str = "") -> bool:
    """Whether a number is neither small enough for relative seconds nor in the range of a time since 1970.

    Eight digits that are a calendar date (``20231116``) are ambiguous too.
    """
    if text.isdecimal() and len(text) == 8 and _is_calendar_date(text):
        return True
    is_epoch = FIRST_EPOCH_S <= number / find_epoch_parts(number) < _LAST_EPOCH_S
    return number >= MAX_RELATIVE_S and not is_epoch


def describe_unit_doubt(times: FloatArray) -> str:
    """Describe why numbers without a unit may be milliseconds, or rounded; empty if they are plainly seconds.

    Load generators and tracers write whole milliseconds from 0 on. Read as seconds, minutes become days. On a grid of
    more than one unit, or with many equal times, the resolution is coarser than a second or the unit is a smaller one.
    Spreadsheets count days since 1900: read as seconds, a day becomes a burst of one second.

    Args:
        times: Sorted numbers as written; those since 1970 are in no doubt.
    """
    is_doubtful = times.size >= MIN_DOUBTFUL and 0 <= times[0] < FIRST_EPOCH_S
    if not is_doubtful or not np.isfinite(times).all() or times[-1] == times[0]:
        return ""
    span = float(times[-1] - times[0])
    is_whole = not (times % 1).any()
    if not is_whole and _is_serial(times):
        return _SERIAL_DOUBT
    # milliseconds with fractions are rarer than whole ones, and seconds with fractions are usual
    is_long = span > _DAY_S and (is_whole or float(np.median(np.diff(times))) > _LONE_GAP_S)
    if is_long or (is_whole and span > _HOUR_S and span > _SPARSE_GAP_S * times.size):
        duration = f"{span / _DAY_S:,.1f} days" if span > _DAY_S else f"{span / _HOUR_S:,.1f} hours"
        return f"as seconds, {times.size:,} arrivals would last {duration}"
    return _describe_grid(times) if is_whole else ""


def _describe_grid(times: FloatArray) -> str:
    """Describe why sorted whole numbers may be rounded, or not be seconds; empty if there is no sign of it."""
    gaps = np.diff(times).astype(np.int64)
    grid = int(np.gcd.reduce(gaps))
    # rows at a regular interval are rather counts
    if grid > 1 and np.ptp(gaps) > 0:
        return f"all times are multiples of {grid}"
    if (gaps == 0).mean() >= MIN_REPEATED:
        return "whole numbers, many of them repeated"
    return ""


def describe_interval_doubt(times: FloatArray) -> str:
    """Describe why the beginnings of intervals may be no seconds; empty if they plainly are.

    Intervals of seconds divide a day, or last for days; one of 60,000 s is a minute in milliseconds.

    Args:
        times: Sorted numbers as written; those since 1970 are in no doubt.
    """
    if times.size < 3 or not np.isfinite(times).all() or not 0 <= times[0] <= times[-1] < FIRST_EPOCH_S:
        return ""
    if (times % 1).any():
        return _SERIAL_DOUBT if _is_serial(times) else ""
    interval_s = int(np.gcd.reduce(np.diff(times).astype(np.int64)))
    if interval_s < _LONG_INTERVAL_S or _DAY_S % interval_s == 0 or interval_s % _DAY_S == 0:
        return ""
    return f"as seconds, each interval would last {interval_s / _HOUR_S:,.2f} hours"


def _is_serial(times: FloatArray) -> bool:
    span = float(times[-1] - times[0])
    return bool(times[0] >= SPREADSHEET_DAYS[0] and times[-1] < SPREADSHEET_DAYS[1] and span < _MAX_SERIAL_SPAN)


def format_time(time_s: float) -> str:
    """Return a time as a date in UTC if it counts from 1970, else in seconds."""
    if FIRST_EPOCH_S <= time_s < _LAST_EPOCH_S:
        return datetime.fromtimestamp(time_s, UTC).isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")
    return f"{time_s:g} s"


def check_clock(times: FloatArray, file: str) -> None:
    """Reject stamps of local time that repeat an hour, before they are sorted into the hour that they repeat.

    Args:
        times: Times in s, in the order of the file. Those in no order at all pass.
        file: The file to name in errors.

    Raises:
        UnfoldError: Stamps of a clock jump back by an hour once, in a Sunday night, as daylight saving time ends.
    """
    repeated = find_repeated_hour(times)
    if repeated is not None:
        raise user_error(
            f"the clock of arrival {repeated + 1} is an hour behind the one above it", file=file, hint=ZONE_HINT
        )


def describe_clock_step(times: FloatArray) -> str:
    """Describe where a clock was set back, or where the rows of another file begin; empty without such a place.

    Requests that are logged as they end are in disorder at many places, or a single one is out of place.

    Args:
        times: Times in s, in the order of the file.
    """
    back = np.flatnonzero(np.diff(times) < 0)
    if not 0 < back.size <= _MAX_CLOCK_STEPS:
        return ""
    index = int(back[np.argmin(np.diff(times)[back])]) + 1
    if np.count_nonzero(times[index:] < times[index - 1]) < _MIN_SET_BACK:
        return ""
    seconds = times[index - 1] - times[index]
    place = f"from arrival {index + 1} on, times are {seconds:,.3g} s earlier"
    return f"{place}, as if a clock had been set back or files joined; sorted by time, both parts overlap and add up"


def check_order(times: FloatArray, file: str) -> None:
    """Reject times from 0 on that do not follow the order of the file: a field called ``time`` may hold durations.

    Arrivals are written as they come or as they end, or the newest first, so that times and positions are correlated.

    Args:
        times: Times in s, in the order of the file. Those of a clock pass, and a few in any order.
        file: The file to name in errors.

    Raises:
        UnfoldError: The times have no order.
    """
    if times.size < _MIN_ORDERED or not times.max() < FIRST_EPOCH_S or np.ptp(times) == 0:
        return
    ranks = np.argsort(np.argsort(times, kind="stable"), kind="stable")
    correlation = np.corrcoef(ranks, np.arange(times.size))[0, 1]
    if abs(correlation) < _MIN_CORRELATION:
        hint = "arrivals.column names the field of arrival times; sort a list that has no name"
        raise user_error("the times have no order, like durations", file=file, hint=hint)


def find_repeated_hour(times: FloatArray) -> int | None:
    """Return the first arrival of the hour that a clock repeats at the end of summer; ``None`` without one."""
    if not times.size or not np.isfinite(times).all() or times.min() < FIRST_EPOCH_S:
        return None
    back_s = -np.diff(times)
    jumps = np.flatnonzero(back_s > _MAX_LATENESS_S)
    if jumps.size != 1:
        return None
    index = int(jumps[0]) + 1
    is_hour = 0.8 * _HOUR_S < back_s[index - 1] <= _HOUR_S
    return index if is_hour and is_end_of_summer(float(times[index])) else None


def is_end_of_summer(time_s: float) -> bool:
    """Whether a clock may show a time twice as daylight saving time ends: early on a Sunday."""
    moment = datetime.fromtimestamp(time_s, UTC)
    return moment.weekday() == _SUNDAY and moment.hour < _LAST_REPEATED_HOUR


def may_start_summer(hours_s: FloatArray) -> BoolArray:
    """Whether clocks may skip (n,) hours as daylight saving time begins: early on a Sunday of spring."""
    hours = (hours_s // _HOUR_S).astype("datetime64[h]")
    days = hours.astype("datetime64[D]")
    # 1970-01-01 was a Thursday
    is_sunday = days.astype(np.int64) % 7 == 3
    is_night = (hours - days).astype(np.int64) < _LAST_REPEATED_HOUR
    mask: BoolArray = is_sunday & is_night & np.isin(days.astype("datetime64[M]").astype(np.int64) % 12 + 1, _SPRING)
    return mask


def describe_skipped_hour(times: FloatArray) -> str:
    """Describe the hour that a clock skips when daylight saving time begins, in a Sunday night; empty without one.

    Args:
        times: Times in s, sorted. In stamps with a zone, or of sparse traffic, no gap is like that.
    """
    gaps_s = np.diff(times)
    if gaps_s.size < _MIN_GAPS or times[0] < FIRST_EPOCH_S:
        return ""
    index = int(np.argmax(gaps_s))
    usual_s = float(np.delete(gaps_s, index).max())
    skipped_s = math.ceil(times[index] / _HOUR_S) * _HOUR_S
    is_hour = _HOUR_S <= gaps_s[index] <= _HOUR_S + max(usual_s, 1.0) and gaps_s[index] >= 2 * usual_s
    if not is_hour or not may_start_summer(np.array([skipped_s])).all() or skipped_s + _HOUR_S > times[index + 1]:
        return ""
    moment = f"{datetime.fromtimestamp(skipped_s, UTC):%Y-%m-%d %H:%M}"
    lull = f"no arrival in the hour from {moment}, as if daylight saving time began"
    return f"{lull}; it counts as a lull: write the times in UTC"


def is_time(text: str) -> bool:
    """Whether a text is a number or a recognized date and nothing else."""
    return bool(NUMBER.fullmatch(text) or _ISO_DATE.fullmatch(text) or _ISO_BASIC.fullmatch(text))


def parse_timestamp(text: str) -> float | None:
    """Parse a date and time in ISO 8601 or common log format to s since 1970; UTC without a zone.

    Returns:
        Seconds since 1970, or ``None`` if the text holds no such date.
    """
    text = text.strip()
    if clf := _CLF_CELL.fullmatch(text):
        return _from_clf(clf)
    if _ISO_BASIC.fullmatch(text):
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    # ISO 8601 prefers the minus sign to the hyphen
    text = _SHORT_ZONE.sub(r"\1", text.replace("\N{MINUS SIGN}", "-"))
    match = _ISO_DATE.search(text)
    if match is None or _CLOCK_OF_12.match(text, match.end()):
        return None
    has_zone = match[7] is not None or match[8] is not None
    return _from_iso(match) if has_zone or _NO_ZONE.fullmatch(text, match.end()) else None


def parse_plain_timestamps(texts: Sequence[str]) -> FloatArray | None:
    """Parse many dates and times at once, with the results of :func:`parse_timestamp`.

    Returns:
        Seconds since 1970, or ``None`` if one is not in UTC with seconds in ISO 8601.
    """
    lines = "".join([f"{text}\n" for text in texts])
    if not _PLAIN_UTC.fullmatch(lines):
        return None
    try:
        moments = np.array(lines.replace("Z", "").replace("+00:00", "").split("\n")[:-1], "datetime64[ns]")
    except ValueError:
        return None
    seconds, nanoseconds = np.divmod(moments.astype(np.int64), 10**9)
    return seconds + nanoseconds / 1e9


def parse_line_time(text: str) -> float | None:
    """Parse the time of a line of a log; ``None`` if it has none.

    The stamp of the common log format takes precedence over others, which may be part of the request. Otherwise the
    first date or epoch time counts. Epoch times keep their unit, see :func:`each_epoch_to_seconds`.
    """
    clf = _CLF.search(text)
    if clf:
        return _from_clf(clf)
    balancer = _BALANCER.match(text)
    match = _ISO_OR_EPOCH.search(balancer[1] if balancer else text)
    if match is None or (match[1] and _CLOCK_OF_12.match(match.string, match.end())):
        return None
    return _from_iso(match) if match[1] else float(match[9] or match[10])


def _is_calendar_date(text: str) -> bool:
    try:
        return datetime.strptime(text, "%Y%m%d").year >= 1970  # noqa: DTZ007 - only its year is used
    except ValueError:
        return False


def _from_clf(match: re.Match[str]) -> float | None:
    day, month, year, clock, fraction, zone = match.groups()
    number = MONTHS.index(month) + 1 if month in MONTHS else 0
    return _moment(f"{year}-{number:02}-{day}T{clock}", fraction, zone)


def _from_iso(match: re.Match[str]) -> float | None:
    year, month, day, minute, second, fraction, zone, hours = match.groups()[:8]
    return _moment(f"{year}-{month}-{day}T{minute}:{second or '00'}", fraction, zone or hours)


def _moment(text: str, fraction: str | None, zone: str | None) -> float | None:
    added_s = 0.0
    if text.endswith("T24:00:00"):
        # midnight at the end of a day
        text, added_s = f"{text[:-8]}00:00:00", _DAY_S
    elif text.endswith(":59:60"):
        # a leap second
        text, added_s = f"{text[:-2]}59", 1.0
    try:
        seconds = datetime.fromisoformat(f"{text}{zone or '+00:00'}").timestamp() + added_s
    except ValueError:
        return None
    # cloud traces have fractions of seven digits, of which datetime would drop the last
    return seconds + float(fraction.replace(",", ".")) if fraction else seconds
