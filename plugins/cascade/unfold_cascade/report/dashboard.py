"""The live page of a served cascade: costs, savings and exits, read from the Prometheus counters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from unfoldkit.format import format_percent
from unfoldkit.serving.observability.dashboard import Breakdown, DashboardExtras, Tile, format_short

PREFIX = "unfold_cascade_"


def build_reader(unit: str, baseline_cost: float | None = None) -> Callable[[Any], DashboardExtras]:
    """Return a function that reads the dashboard from the Prometheus registry of a service.

    Args:
        unit: Unit of costs.
        baseline_cost: Cost of a row if the baseline answered it; without it no saving is shown.
    """

    def read(registry: Any) -> DashboardExtras:
        rows = sum(_sum_by_model(registry, "answered").values())
        return DashboardExtras(
            tuple(_list_tiles(registry, unit, baseline_cost, rows)), shares=tuple(_list_shares(registry, rows))
        )

    return read


def _list_shares(registry: Any, rows: float) -> Iterator[Breakdown]:
    """Yield the shares that the report prints for its test rows, under the same names."""
    evaluated, hours = _sum_by_model(registry, "asked"), _sum_by_stage(registry, "hours")
    if not hours:
        yield Breakdown("evaluated, of all cases", "cases", evaluated, dict.fromkeys(evaluated, rows))
        yield Breakdown("exits, of those evaluated", "cases", _sum_by_model(registry, "sure"), evaluated)
        return
    all_hours = dict.fromkeys(evaluated, sum(hours.values()))
    yield Breakdown("evaluated, of all hours", "hours", evaluated, all_hours)
    yield Breakdown("exits, of all hours", "hours", _sum_by_model(registry, "answered"), all_hours)
    yield Breakdown("hours by final stage", "hours", hours)


def _list_tiles(registry: Any, unit: str, baseline_cost: float | None, rows: float) -> Iterator[Tile]:
    cost = _sum(registry, "cost") + _sum(registry, "price")
    yield Tile("cost so far", format_short(cost), unit)
    if baseline_cost and cost:
        yield Tile("saving", f"{rows * baseline_cost / cost:.1f}x", "against the baseline")
    if cases := _sum(registry, "cases"):
        yield Tile("cases", f"{cases:,.0f}", "in memory")
    if _list_families(registry, "alarms"):
        yield Tile("alarms", f"{_sum(registry, 'alarms'):,.0f}", "hours with an alert")
    if audited := _sum(registry, "audited"):
        differs = _sum(registry, "differs") / audited
        yield Tile("audits", f"{format_percent(differs)} differ", f"of {audited:,.0f} also evaluated by the baseline")


def _sum_by_stage(registry: Any, name: str) -> dict[str, float]:
    return {sample.labels["stage"]: sample.value for sample in _list_samples(registry, name)}


def _sum_by_model(registry: Any, name: str) -> dict[str, float]:
    sums: dict[str, float] = {}
    for sample in _list_samples(registry, name):
        model = f"{sample.labels['stage']}/{sample.labels['model']}"
        sums[model] = sums.get(model, 0.0) + sample.value
    return sums


def _sum(registry: Any, name: str) -> float:
    return float(sum(sample.value for sample in _list_samples(registry, name)))


def _list_samples(registry: Any, name: str) -> list[Any]:
    families = _list_families(registry, name)
    return [sample for family in families for sample in family.samples if not sample.name.endswith("_created")]


def _list_families(registry: Any, name: str) -> list[Any]:
    metric = PREFIX + name
    return list(registry.restricted_registry([metric, f"{metric}_total"]).collect())
