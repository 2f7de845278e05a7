"""Prometheus counters of served requests by subnet, and the dashboard tiles read from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from unfold_supernet.report import sentences
from unfold_supernet.scheduling.policies import SubnetProfile
from unfoldkit.serving.observability.dashboard import Breakdown, DashboardExtras, Tile

COUNTER = "unfold_supernet_answers"
LATE, TIMELY = "no", "yes"
CountBatch = Callable[[int, Sequence[bool]], None]
"""Count the requests of a batch: index of the subnet, and whether each request was in time."""


@dataclass(frozen=True, slots=True)
class _Counts:
    """Served requests by subnet: in time, and late."""

    timely: dict[str, float]
    late: dict[str, float]


def register_counter(registry: Any, profiles: Sequence[SubnetProfile]) -> CountBatch:
    """Register the counter of served requests; return the function that counts a batch."""
    from prometheus_client import Counter

    counter = Counter(COUNTER, "Requests served by subnet", ("net", "in_time"), registry=registry)
    children = [(counter.labels(p.name, LATE), counter.labels(p.name, TIMELY)) for p in profiles]

    def count_batch(subnet: int, in_time: Sequence[bool]) -> None:
        late, timely = children[subnet]
        timely.inc(sum(in_time))
        late.inc(len(in_time) - sum(in_time))

    return count_batch


def make_dashboard(profiles: Sequence[SubnetProfile], min_attainment: float) -> Callable[[Any], DashboardExtras]:
    """Make the function that builds the dashboard's tiles and usage chart from the registry of the counter.

    Args:
        profiles: The served subnets.
        min_attainment: Required fraction of requests in time.
    """
    accuracy = {profile.name: profile.accuracy for profile in profiles}

    def build_dashboard(registry: Any) -> DashboardExtras:
        counts = _read_counts(registry)
        usage = {name: counts.timely[name] + counts.late[name] for name in accuracy}
        return DashboardExtras(_build_tiles(counts, accuracy, min_attainment), shares=(_build_usage(usage),))

    return build_dashboard


def _build_usage(usage: dict[str, float]) -> Breakdown:
    return Breakdown("requests by subnet", "requests", usage)


def _build_tiles(counts: _Counts, accuracy: dict[str, float], min_attainment: float) -> tuple[Tile, ...]:
    timely, late = sum(counts.timely.values()), sum(counts.late.values())
    if not timely + late:
        return (Tile("attainment", "–", sentences.note_attainment(min_attainment)), Tile("late", "0"))
    attainment = timely / (timely + late)
    note = sentences.note_attainment(min_attainment)
    tiles = (
        Tile("attainment", f"{100 * attainment:.2f} %", note, attainment >= min_attainment),
        Tile("late", f"{late:,.0f}"),
    )
    if not timely:
        return tiles
    served = sum(accuracy[name] * count for name, count in counts.timely.items()) / timely
    return (*tiles, Tile("accuracy served", f"{served:.2f} %", sentences.note_accuracy()))


def _read_counts(registry: Any) -> _Counts:
    counts = _Counts({}, {})
    for family in registry.restricted_registry([f"{COUNTER}_total"]).collect():
        for sample in family.samples:
            if sample.name == f"{COUNTER}_total":
                by_subnet = counts.late if sample.labels["in_time"] == LATE else counts.timely
                by_subnet[sample.labels["net"]] = sample.value
    return counts
