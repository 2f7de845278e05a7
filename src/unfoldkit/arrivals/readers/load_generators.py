"""What load generators export: the samples of k6, and the history of Locust."""

from __future__ import annotations

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
