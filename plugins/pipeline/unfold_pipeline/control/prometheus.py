"""Demand from the HTTP API of Prometheus, or of a system that speaks it: Thanos, Mimir, VictoriaMetrics."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.control.demand import (
    CounterSeries,
    Demand,
    SignalError,
    find_first_sample,
    has_ended,
    spread_arrivals,
)
from unfold_pipeline.control.http import BoundedClient, HttpError, HttpReply
from unfoldkit.arrivals.envelope import LONGEST_WINDOW_S

HISTORY_S = 3 * LONGEST_WINDOW_S
"""The rules look back two windows; the third covers the age of the newest sample."""
MAX_TYPES = 10
"""Types are asked for so many metrics at most, as a selector may match thousands."""
MAX_WARNING = 200
"""Characters of a server's warning in messages."""
MEMORY_S = 24 * 3600.0
"""A target that had the counter this long ago, and is down when a controller starts, may still serve queries."""
MAX_RESETS = 2
"""A counter that falls more often in three minutes, and at a third of its changes, is none."""
DISTRIBUTIONS = {"histogram", "summary"}
"""Types with a sum and buckets or quantiles beside the count, which has the suffix ``_count``."""
MIN_COMMON_CHANGES = 4
"""Two counters that never contradict each other over fewer changes may be different ones by chance."""
MAX_SCRAPER_LABELS = 4
"""Label pairs in which two copies of a series differ at most: the job, and the replica of the server, of each."""
Target = tuple[str, str]
"""What Prometheus scrapes: the labels ``job`` and ``instance`` of its series."""
Row = tuple[Mapping[str, Any], CounterSeries]
"""A series as the server returns it, and its samples."""
AUTHORITY_HINT = "SSL_CERT_FILE names the file with the certificate of a private authority"
SELECTOR_HINT = 'control.arrivals selects one counter, such as http_requests_total{service="video"}'


def escape_label(value: str) -> str:
    """Escape the value of a label for a selector in PromQL."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def select_queries(name: str) -> str:
    """Return the selector of all queries of a pipeline that this project serves, refused ones included."""
    return f'unfold_pipeline_queries_total{{model="{escape_label(name)}"}}'


@dataclass(frozen=True, slots=True)
class QueryResult:
    """The ``data`` of a response, the server's time in Unix seconds, and why the data may be incomplete."""

    data: Mapping[str, Any]
    server_s: float
    gap: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusSource:
    """Queries a server for the raw samples of a counter, so that the resolution is that of its scrapes.

    Attributes:
        client: An HTTP client.
        url: The server.
        arrivals: Selector of the counter of queries.
        queues: PromQL of the items that wait at each stage; empty where that is unknown.
        stale_s: Age from which samples count as none.
        share: Queries that the counter counts, as a fraction of all.
        refusals: Selector of counters of queries that were refused in front of that counter; empty if there are none.
        types: Types by the name of a metric that the server knows, each asked for once; empty where it knows none.
        targets: Targets that had samples at the last reading, or are down since.
    """

    client: BoundedClient
    url: str
    arrivals: str
    queues: Sequence[str]
    stale_s: float
    share: float = 1.0
    refusals: str = ""
    types: dict[str, frozenset[str]] = field(default_factory=dict)
    targets: set[Target] = field(default_factory=set)

    @property
    def location(self) -> str:
        """What is read, in words."""
        return f"{self.arrivals} at {self.url}"

    def read(self) -> Demand:
        """Return the demand of the last three minutes.

        Raises:
            SignalError: The server does not respond, or its samples are absent, old or no counters.
        """
        result = self._query(f"{self.arrivals}[{HISTORY_S:.0f}s]")
        server_s, rows = result.server_s, _parse_matrix(result.data)
        series = [item for _, item in rows]
        if not series:
            raise SignalError("no data", f"no series matches {self.arrivals}", SELECTOR_HINT)
        newest_s = max(float(item.times_s[-1]) for item in series)
        if server_s - newest_s > self.stale_s:
            message = f"the newest sample of {self.arrivals} is {server_s - newest_s:.0f} s old"
            raise SignalError("stale", message, "is the target scraped? control.stale is the limit")
        self._require_counters(rows, series)
        series = [CounterSeries(item.times_s, item.values / self.share) for item in _drop_duplicates(rows)]
        if self.refusals:
            refused = self._query(f"{self.refusals}[{HISTORY_S:.0f}s]")
            series += _drop_duplicates(_parse_matrix(refused.data))
        arrivals_s, until_s = spread_arrivals(series)
        queued = np.array([self._read_queue(query) if query else math.nan for query in self.queues])
        return Demand(
            arrivals_s=arrivals_s,
            until_s=until_s,
            age_s=max(0.0, server_s - until_s),
            queued=queued,
            since_s=find_first_sample(series),
            gap=result.gap or self._find_down_targets(rows, newest_s),
        )

    def _find_down_targets(self, rows: Sequence[Row], newest_s: float) -> str:
        """Return which targets lost their samples although they still exist; empty if none did.

        A pod that was removed is no target any more. One that cannot be scraped may serve queries all the same, also
        if it was down before this process started.
        """
        if not self.targets:
            self.targets.update(self._list_recent_targets(newest_s), (_read_target(row) for row, _ in rows))
        running = {_read_target(row) for row, item in rows if item.times_s.size > 1 and not has_ended(item, newest_s)}
        lost = self.targets - running
        down = self._select_down(lost) if lost else set()
        self.targets.clear()
        self.targets.update(running | down)
        if not down:
            return ""
        return f"{len(down)} of {len(self.targets)} targets of {self.arrivals} are down, such as {min(down)[1]}"

    def _list_recent_targets(self, now_s: float) -> set[Target]:
        """Return the targets that had the counter lately; none if the server does not answer that."""
        params = {"match[]": self.arrivals, "start": f"{now_s - MEMORY_S:.0f}", "end": f"{now_s:.0f}"}
        try:
            reply = self.client.send("GET", f"{self.url.rstrip('/')}/api/v1/series", params=params)
            return {_read_target({"metric": labels}) for labels in json.loads(reply.body)["data"]}
        except (HttpError, ValueError, LookupError, TypeError, RecursionError):
            return set()

    def _select_down(self, targets: AbstractSet[Target]) -> set[Target]:
        """Return the targets of some that the server knows and cannot scrape; none if it does not answer that."""
        jobs = "|".join(sorted({re.escape(job) for job, _ in targets}))
        try:
            rows = _list_rows(self._query(f'up{{job=~"{escape_label(jobs)}"}} == 0').data)
        except SignalError as error:
            if error.reason == "unreachable":
                raise
            return set()
        return {_read_target(row) for row in rows}.intersection(targets)

    def _require_counters(self, rows: Sequence[Row], series: Sequence[CounterSeries]) -> None:
        """Refuse gauges, of which each fall would read as a restart, and what a histogram has beside its count."""
        for name in sorted({_read_label(row, "__name__") for row, _ in rows} - {""})[:MAX_TYPES]:
            base = name.removesuffix("_sum").removesuffix("_bucket")
            for stated in {name, base} - self.types.keys():
                self.types[stated] = self._read_types(stated)
            if self.types[name] == {"gauge"}:
                raise SignalError("refused", f"{name} is a gauge, not a counter", SELECTOR_HINT)
            has_buckets = any(_read_label(row, "le") for row, _ in rows if _read_label(row, "__name__") == name)
            if has_buckets or self.types[base] & DISTRIBUTIONS:
                hint = f"{base}_count counts the queries"
                raise SignalError("refused", f"{name} is part of a distribution, not a count of queries", hint)
        changes = np.concatenate([np.diff(item.values[np.isfinite(item.values)]) for item in series])
        falls = np.count_nonzero(changes < 0)
        if falls > MAX_RESETS and 3 * falls >= np.count_nonzero(changes):
            message = f"{self.arrivals} fell {falls} times in {HISTORY_S:.0f} s, as a gauge does and no counter"
            raise SignalError("refused", message, SELECTOR_HINT)

    def _read_types(self, name: str) -> frozenset[str]:
        """Return the types that the targets of the server state for a metric; empty if it knows none."""
        try:
            reply = self.client.send("GET", f"{self.url.rstrip('/')}/api/v1/metadata", params={"metric": name})
            return frozenset(str(item["type"]) for item in json.loads(reply.body)["data"][name])
        except (HttpError, ValueError, LookupError, TypeError, RecursionError):
            return frozenset()

    def _read_queue(self, query: str) -> float:
        """Return the sum of a query's values; NaN if it has none that is a length."""
        values = [_parse_value(row) for row in _list_rows(self._query(query).data)]
        total = sum(values, 0.0)
        return total if values and 0 <= total < math.inf else math.nan

    def _query(self, query: str) -> QueryResult:
        """Return what the server answers.

        Raises:
            SignalError: It does not respond, or refuses.
        """
        try:
            reply = self.client.send("POST", f"{self.url.rstrip('/')}/api/v1/query", data={"query": query})
        except HttpError as error:
            hint = AUTHORITY_HINT if "CERTIFICATE_VERIFY_FAILED" in str(error) else ""
            raise SignalError("unreachable", str(error), hint) from error
        return self._parse_reply(query, reply)

    def _parse_reply(self, query: str, reply: HttpReply) -> QueryResult:
        try:
            decoded = json.loads(reply.body)
        except (ValueError, RecursionError):
            decoded = None
        if not isinstance(decoded, Mapping) or decoded.get("status") != "success":
            reason = decoded.get("error", "") if isinstance(decoded, Mapping) else ""
            message = f"{self.url} answered {query} with status {reply.status}{reason and f': {reason}'}"
            raise SignalError("refused", message, _hint_at_status(reply.status))
        data = decoded.get("data")
        gap = _find_partial_response(decoded)
        return QueryResult(data if isinstance(data, Mapping) else {}, _read_server_time(reply), gap)


def _find_partial_response(reply: Mapping[str, Any]) -> str:
    """Return what is missing: Thanos and Prometheus warn of stores that fail, VictoriaMetrics states ``isPartial``."""
    warnings = reply.get("warnings")
    if isinstance(warnings, list) and warnings:
        return f"the server warns of partial data: {str(warnings[0])[:MAX_WARNING]}"
    return "the server states that its data is partial" if reply.get("isPartial") is True else ""


def _hint_at_status(status: int) -> str:
    """Return which key of the spec is likely at fault."""
    if status in (401, 403):
        return "control.key_env or control.key_file names where the bearer token is, or the password of control.user"
    if 300 <= status < 400 or status in (404, 405):
        return "control.prometheus is the base address of the server; redirects are not followed"
    return SELECTOR_HINT if 400 <= status < 500 else ""


def _read_server_time(reply: HttpReply) -> float:
    """Return the time of the server, with which its samples are compared: clocks of machines differ."""
    try:
        return parsedate_to_datetime(reply.headers["Date"]).timestamp()
    except (KeyError, ValueError):
        return time.time()


def _drop_duplicates(rows: Sequence[Row]) -> list[CounterSeries]:
    """Return the series without copies: two servers, or two jobs of one, that scrape the same target.

    Series of one scrape have the same times. Copies have others, and their samples together are those of one counter.
    """
    kept: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda item: (-item[1].times_s.size, -item[1].times_s[-1])):
        known = kept.setdefault(_read_label(row[0], "instance"), [])
        if not any(_is_copy(row, other) for other in known):
            known.append(row)
    return [series for instance in kept.values() for _, series in instance]


def _is_copy(row: Row, other: Row) -> bool:
    labels, other_labels = ({*_read_labels(item[0]).items()} for item in (row, other))
    series = (row[1], other[1])
    first_s, last_s = max(item.times_s[0] for item in series), min(item.times_s[-1] for item in series)
    if len(labels ^ other_labels) > MAX_SCRAPER_LABELS or np.isin(series[0].times_s, series[1].times_s).any():
        return False
    common = [item.values[(item.times_s >= first_s) & (item.times_s <= last_s)] for item in series]
    if min(np.count_nonzero(np.diff(values)) for values in common) < MIN_COMMON_CHANGES:
        return False
    order = np.argsort(np.concatenate([item.times_s for item in series]), kind="stable")
    merged = np.concatenate([item.values for item in series])[order]
    return _count_falls(merged) <= max(_count_falls(item.values) for item in series)


def _count_falls(values: FloatArray) -> int:
    return int(np.count_nonzero(np.diff(values) < 0))


def _parse_matrix(data: Mapping[str, Any]) -> list[Row]:
    """Return the rows with samples, and the samples."""
    if data.get("resultType") != "matrix":
        raise SignalError("refused", f"the result is a {data.get('resultType')}, not a matrix", SELECTOR_HINT)
    return [(row, series) for row in _list_rows(data) if (series := _parse_series(row)).times_s.size]


def _parse_series(row: Mapping[str, Any]) -> CounterSeries:
    if "histograms" in row:
        raise SignalError("refused", "the series is a native histogram", SELECTOR_HINT)
    try:
        samples: FloatArray = np.array([(float(at), float(value)) for at, value in row["values"]]).reshape(-1, 2)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise SignalError("refused", "the samples are no numbers", SELECTOR_HINT) from error
    ordered = samples[np.argsort(samples[:, 0], kind="stable")]
    return CounterSeries(ordered[:, 0], ordered[:, 1])


def _list_rows(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rows = data.get("result")
    if data.get("resultType") == "scalar":
        return [{"value": rows}]
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _read_labels(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels of a row as text; none if they are no object, which other servers may send."""
    metric = row.get("metric")
    return {name: str(value) for name, value in metric.items()} if isinstance(metric, Mapping) else {}


def _read_label(row: Mapping[str, Any], name: str) -> str:
    return _read_labels(row).get(name, "")


def _read_target(row: Mapping[str, Any]) -> Target:
    return _read_label(row, "job"), _read_label(row, "instance")


def _parse_value(row: Mapping[str, Any]) -> float:
    try:
        return float(row["value"][1])
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        return math.nan
