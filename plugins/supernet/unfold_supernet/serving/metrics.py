"""Which net answered how many requests in time: counted for Prometheus, and read from there by the live page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from unfold_supernet.scheduling.policies import Served
from unfoldkit.serving.observability.dashboard import More, Shares, Tile

NAME = "unfold_supernet_answers"
LATE = "no"


def counted(registry: Any, nets: Sequence[Served]) -> Callable[[int, Sequence[bool]], None]:
    """Return what counts the requests of a batch in ``registry``: by which net, which of them in time."""
    from prometheus_client import Counter

    counter = Counter(NAME, "Requests that a net answered", ("net", "in_time"), registry=registry)
    places = [(counter.labels(net.name, LATE), counter.labels(net.name, "yes")) for net in nets]

    def count(way: int, in_time: Sequence[bool]) -> None:
        late, timely = places[way]
        timely.inc(sum(in_time))
        late.inc(len(in_time) - sum(in_time))

    return count


def of_counters(registry: Any, nets: Sequence[Served], target: float) -> Callable[[], More]:
    """Return what to add to the board; ``target`` is the share of the answers that must be in time."""
    accuracy = {net.name: net.accuracy for net in nets}

    def more() -> More:
        timely, late = _answers(registry)
        shares = {name: timely[name] + late[name] for name in accuracy}
        return More(_tiles(timely, sum(late.values()), accuracy, target), shares=(_shares(shares),))

    return more


def _shares(values: dict[str, float]) -> Shares:
    return Shares("answered by", "requests", values)


def _tiles(timely: dict[str, float], late: float, accuracy: dict[str, float], target: float) -> tuple[Tile, ...]:
    good = sum(timely.values())
    if not good + late:
        return (Tile("attainment", "–", f"target {target:.1%}"), Tile("late", "0"))
    share = good / (good + late)
    tiles = (
        Tile("attainment", f"{share:.2%}", f"answered in time, target {target:.1%}", share >= target),
        Tile("late", f"{late:,.0f}"),
    )
    if not good:
        return tiles
    served = sum(accuracy[name] * count for name, count in timely.items()) / good
    return (*tiles, Tile("accuracy served", f"{served:.2f} %", "expected, of those in time"))


def _answers(registry: Any) -> tuple[dict[str, float], dict[str, float]]:
    found: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for family in registry.restricted_registry([f"{NAME}_total"]).collect():
        for sample in family.samples:
            if sample.name == f"{NAME}_total":
                found[sample.labels["in_time"] == LATE][sample.labels["net"]] = sample.value
    return found
