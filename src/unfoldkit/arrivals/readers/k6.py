"""Traces that k6 writes hold many measurements of a request; one of them stands for the request."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

REQUESTS = ("http_reqs", "grpc_req_duration")
"""The metrics of which k6 writes one sample a request."""
_HEAD = ("metric_name", "timestamp", "metric_value")
_METRIC = re.compile(r'"metric":\s*"(\w+)"')
_TYPE = re.compile(r'"type":\s*"(Metric|Point)"')
Rows = Iterator[tuple[int, list[str]]]


def is_head(head: Sequence[str]) -> bool:
    """Return whether the columns of a table are those of ``k6 run --out csv``."""
    return tuple(head[:3]) == _HEAD


def requests(rows: Rows) -> Rows:
    """Return the rows that stand for a request, in the order of time: k6 writes them in that of its buffers."""
    return iter(sorted((item for item in rows if item[1][0] in REQUESTS), key=lambda item: item[1][1:2]))


def is_aside(line: str) -> bool:
    """Return whether a line of ``k6 run --out json`` is no request: another measurement, or what one is."""
    if not line.startswith("{"):
        return False
    metric, kind = _METRIC.search(line), _TYPE.search(line)
    return metric is not None and kind is not None and (kind[1] == "Metric" or metric[1] not in REQUESTS)
