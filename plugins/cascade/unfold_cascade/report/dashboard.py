"""What the live page shows of a cascade, beside its requests: read from the counters that Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from unfoldkit.serving.observability.dashboard import More, Shares, Tile, short

PREFIX = "unfold_cascade_"


def of_counters(registry: Any, unit: str, whole: float | None = None) -> Callable[[], More]:
    """Return what to add to the board; ``whole`` is what a row would cost if the best single model answered it."""

    def more() -> More:
        rows = sum(_by_model(registry, "answered").values())
        return More(tuple(_tiles(registry, unit, whole, rows)), shares=tuple(_shares(registry, rows)))

    return more


def _shares(registry: Any, rows: float) -> Iterator[Shares]:
    """Yield the shares that the report prints of its test rows, by its names for them."""
    asked, hours = _by_model(registry, "asked"), _by_stage(registry, "hours")
    if not hours:
        yield Shares("asked, of all cases", "cases", asked, dict.fromkeys(asked, rows))
        yield Shares("sure, of those asked", "cases", _by_model(registry, "sure"), asked)
        return
    every = sum(hours.values())
    yield Shares("asked, of all hours", "hours", asked, dict.fromkeys(asked, every))
    yield Shares("answers, of all hours", "hours", _by_model(registry, "answered"), dict.fromkeys(asked, every))
    yield Shares("hours that ended in stage", "hours", hours)


def _tiles(registry: Any, unit: str, whole: float | None, rows: float) -> Iterator[Tile]:
    cost = _total(registry, "cost") + _total(registry, "price")
    yield Tile("cost so far", short(cost), unit)
    if whole and cost:
        yield Tile("saving", f"{rows * whole / cost:.1f}x", "against the best single model")
    if cases := _total(registry, "cases"):
        yield Tile("cases", f"{cases:,.0f}", "remembered")
    if _families(registry, "alarms"):
        yield Tile("alarms", f"{_total(registry, 'alarms'):,.0f}", "hours with a yes of the last stage")
    if audited := _total(registry, "audited"):
        differs = _total(registry, "differs") / audited
        yield Tile("audits", f"{differs:.1%} differ", f"of {audited:,.0f} that the full model answered too")


def _by_stage(registry: Any, name: str) -> dict[str, float]:
    return {sample.labels["stage"]: sample.value for sample in _samples(registry, name)}


def _by_model(registry: Any, name: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for sample in _samples(registry, name):
        place = f"{sample.labels['stage']}/{sample.labels['model']}"
        found[place] = found.get(place, 0.0) + sample.value
    return found


def _total(registry: Any, name: str) -> float:
    return float(sum(sample.value for sample in _samples(registry, name)))


def _samples(registry: Any, name: str) -> list[Any]:
    families = _families(registry, name)
    return [sample for family in families for sample in family.samples if not sample.name.endswith("_created")]


def _families(registry: Any, name: str) -> list[Any]:
    wanted = PREFIX + name
    return list(registry.restricted_registry([wanted, f"{wanted}_total"]).collect())
