"""What monitoring and load generators export: columns of rates, the samples of k6, and the history of Locust."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

Rows = Iterator[tuple[int, list[str]]]
REQUEST_METRICS = ("http_reqs", "grpc_req_duration")
"""The metrics that k6 samples once per request."""
_K6_COLUMNS = ("metric_name", "timestamp", "metric_value")
_LOCUST_COLUMNS = {"Timestamp", "User Count", "Type", "Name", "Requests/s"}
_LOCUST_TOTAL = "Aggregated"
_K6_METRIC = re.compile(r'"metric":\s*"(\w+)"')
_K6_TYPE = re.compile(r'"type":\s*"(Metric|Point)"')
_SHORT_NAME = re.compile(r"[rqht]p([smh])")
_LONG_NAME = re.compile(
    r"(?:(?:http|total|mean|avg|average)_)?(?:requests?|reqs?|queries|calls|invocations|arrivals|hits|messages|ops)"
    r"(?:_per_|_?/_?|_p)(s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?)"
)
_RATE_NAME = re.compile(r"(?:(?:arrival|request|query)_)?rate|.*\bi?rate\(.*")
_SEPARATORS = re.compile(r"[\s_-]+")
_VALUE = re.compile(r"(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*((?:reqs?|requests|queries|ops)?/s|[rq]ps)?")
_PERIODS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


def rate_period_s(name: str) -> float | None:
    """Return the period in s that a column of rates names: 1 for ``rps``, 60 for ``requests/min``.

    ``rate(...)`` of Prometheus is per second. ``None`` if the name is not that of a rate.
    """
    plain = _SEPARATORS.sub("_", name.strip().lower())
    if match := _SHORT_NAME.fullmatch(plain) or _LONG_NAME.fullmatch(plain):
        return _PERIODS_S[match[1][0]]
    return 1.0 if _RATE_NAME.fullmatch(plain) else None


def parse_rate(text: str) -> float | None:
    """Parse a rate, with or without its unit (``10.5 req/s``); ``None`` if the text is not a finite rate."""
    match = _VALUE.fullmatch(text.strip())
    number = float(match[1]) if match else math.inf
    return number if math.isfinite(number) else None


def has_rate_unit(text: str) -> bool:
    """Whether a cell states by its unit that it is a rate."""
    match = _VALUE.fullmatch(text.strip())
    return match is not None and match[2] is not None


def is_k6_table(columns: Sequence[str]) -> bool:
    """Whether the columns are those of ``k6 run --out csv``."""
    return tuple(columns[:3]) == _K6_COLUMNS


def select_k6_requests(rows: Rows) -> Rows:
    """Yield the rows that stand for a request, sorted by time: k6 writes them in the order of its buffers."""
    return iter(sorted((row for row in rows if row[1][0] in REQUEST_METRICS), key=lambda row: row[1][1:2]))


def is_locust_history(columns: Sequence[str]) -> bool:
    """Whether the columns are those of the history that ``locust --csv`` writes."""
    return set(columns) >= _LOCUST_COLUMNS


def select_locust_totals(columns: Sequence[str], rows: Rows) -> Rows:
    """Yield the rows of all requests: with a full history, Locust adds them to the rows of each endpoint."""
    index = columns.index("Name")
    return (row for row in rows if row[1][index : index + 1] == [_LOCUST_TOTAL])


def is_other_k6_line(line: str) -> bool:
    """Whether a line of ``k6 run --out json`` is a declaration or a sample of another metric than requests."""
    if not line.startswith("{"):
        return False
    metric, kind = _K6_METRIC.search(line), _K6_TYPE.search(line)
    return metric is not None and kind is not None and (kind[1] == "Metric" or metric[1] not in REQUEST_METRICS)
