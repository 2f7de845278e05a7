"""The data of the live page of a service, made again every second while a page is open."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.samples import Sample

from unfoldkit.serving.observability.metrics import DURATION, LATENCY_BUCKETS_S, QUEUE, REQUESTS


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure in large type; ``ok`` is whether it meets its target, ``None`` without one."""

    label: str
    value: str
    note: str = ""
    ok: bool | None = None


@dataclass(frozen=True, slots=True)
class TimeSeries:
    """Values over time, by name.

    Args:
        title: Heading of the chart.
        unit: Unit of the values.
        values: The current values.
        counts: The values are counters: the page shows their growth per second.
        limit: A bound to draw.
    """

    title: str
    unit: str
    values: Mapping[str, float]
    counts: bool = False
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Distribution:
    """A cumulative histogram; the page shows its p50 and p99 over the last ten seconds.

    Args:
        title: Heading of the chart.
        unit: Unit of the values.
        bounds: Upper bounds of the buckets.
        counts: Values in each bucket since the start; the last count is of values above all bounds.
        limit: A bound to draw.
    """

    title: str
    unit: str
    bounds: Sequence[float]
    counts: Sequence[float]
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Parts by name, such as answered cases per model: parts of their sum, or of the total in ``wholes`` by name."""

    title: str
    unit: str
    values: Mapping[str, float]
    wholes: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of short texts."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class PastValues:
    """What the charts of a dashboard drew at an earlier moment.

    Args:
        ago_s: How long ago, in seconds.
        lines: Values of each chart of lines, by its title.
        spreads: Counts of each distribution, by its title.
    """

    ago_s: float
    lines: Mapping[str, Mapping[str, float]]
    spreads: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """The contents of the page, in the order of the fields; the first that a page gets has a history."""

    name: str
    kind: str
    tiles: tuple[Tile, ...] = ()
    lines: tuple[TimeSeries, ...] = ()
    spreads: tuple[Distribution, ...] = ()
    shares: tuple[Breakdown, ...] = ()
    grids: tuple[Grid, ...] = ()
    history: tuple[PastValues, ...] = ()


DashboardSource = Callable[[], Dashboard]


@dataclass(frozen=True, slots=True)
class DashboardExtras:
    """What a kind adds to the dashboard of its requests."""

    tiles: tuple[Tile, ...] = ()
    lines: tuple[TimeSeries, ...] = ()
    shares: tuple[Breakdown, ...] = ()
    grids: tuple[Grid, ...] = field(default=())


ReadExtras = Callable[[CollectorRegistry], DashboardExtras]
"""Reads what a kind adds from the metrics, of one process or summed over several."""


def request_dashboard(
    name: str, kind: str, read_metrics: Callable[[], CollectorRegistry], read_extras: ReadExtras | None = None
) -> DashboardSource:
    """Make the dashboard of the requests that a server counts, with what its kind adds.

    Args:
        name: The name of the service.
        kind: Its kind.
        read_metrics: Returns the metrics of the service, of all its processes.
        read_extras: Reads what the kind adds from them.
    """

    def current() -> Dashboard:
        registry = read_metrics()
        extra = read_extras(registry) if read_extras else DashboardExtras()
        codes = _count_codes(registry)
        tiles = (*_request_tiles(codes), *extra.tiles)
        lines = (*_request_series(codes, registry), *extra.lines)
        return Dashboard(name, kind, tiles, lines, (_latency(registry),), extra.shares, extra.grids)

    return current


def format_short(value: float) -> str:
    """Format a number in at most five characters and a suffix: ``12.3 k``, ``4.56 M``."""
    for size, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= max(size, 1e4):
            return f"{value / size:.3g}{suffix}"
    return f"{value:,.4g}" if value != int(value) else f"{value:,.0f}"


def list_samples(registry: CollectorRegistry, name: str) -> list[Sample]:
    """List the samples of one name, such as ``unfold_requests_total``."""
    families = registry.restricted_registry([name]).collect()
    return [sample for family in families for sample in family.samples if sample.name == name]


def _request_tiles(codes: Mapping[int, int]) -> tuple[Tile, ...]:
    total, failed = sum(codes.values()), sum(count for code, count in codes.items() if code >= 500)
    rejected = codes.get(429, 0)
    return (
        Tile("requests", f"{total:,}"),
        Tile("failed", f"{failed:,}", "status 5xx" if failed else "", failed == 0),
        Tile("rejected", f"{rejected:,}", "queue full: status 429" if rejected else "", rejected == 0),
    )


def _request_series(codes: Mapping[int, int], registry: CollectorRegistry) -> tuple[TimeSeries, ...]:
    responses = {str(code): float(count) for code, count in sorted(codes.items())}
    waiting = {sample.labels["model"]: sample.value for sample in list_samples(registry, QUEUE)}
    by_status = TimeSeries("responses by status", "/s", responses, counts=True)
    return (by_status, TimeSeries("waiting rows", "rows", waiting))


def _latency(registry: CollectorRegistry) -> Distribution:
    cumulative = dict.fromkeys((*map(str, LATENCY_BUCKETS_S), "+Inf"), 0.0)
    for sample in list_samples(registry, f"{DURATION}_bucket"):
        cumulative[sample.labels["le"]] += sample.value
    counts = [upper - lower for lower, upper in itertools.pairwise((0.0, *cumulative.values()))]
    return Distribution("response time", "s", LATENCY_BUCKETS_S, counts)


def _count_codes(registry: CollectorRegistry) -> dict[int, int]:
    codes: dict[int, int] = {}
    for sample in list_samples(registry, f"{REQUESTS}_total"):
        code = int(sample.labels["code"])
        codes[code] = codes.get(code, 0) + int(sample.value)
    return codes
