"""What the live page shows of a cascade over time."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

from unfold_cascade.report.dashboard import build_reader
from unfold_cascade.temporal.problem import CostOptions
from unfold_cascade.temporal.serving.service import name_cost_unit


def test_dashboard_shares_over_time_are_of_all_hours() -> None:
    """Over time the page divides by the hours answered, as the report does, not by calls or by exits."""
    registry = CollectorRegistry()
    asked = Counter("unfold_cascade_asked", "asked", ("stage", "model"), registry=registry)
    answered = Counter("unfold_cascade_answered", "answered", ("stage", "model", "verdict"), registry=registry)
    hours = Counter("unfold_cascade_hours", "hours", ("stage",), registry=registry)
    for name, times in (("ward", 8), ("watch", 2)):
        asked.labels("sirs", name).inc(times)
    for name, verdict, times in (("ward", "ICK0", 5), ("ward", "ICK1", 1), ("watch", "ICK0", 2)):
        answered.labels("sirs", name, verdict).inc(times)
    hours.labels("sirs").inc(10)
    found = {share.title: share for share in build_reader("price")(registry).shares}
    assert found["evaluated, of all hours"].values == {"sirs/ward": 8, "sirs/watch": 2}
    assert found["exits, of all hours"].values == {"sirs/ward": 6, "sirs/watch": 2}
    assert all(set((share.wholes or {"": 10}).values()) == {10} for share in found.values())


def test_what_is_paid_has_the_unit_of_prices() -> None:
    """The cost so far is of prices alone, so the unit of another notion of cost does not stand beside it."""
    assert name_cost_unit(CostOptions("price+flops", 256)) == "price of calls and purchases"
    assert name_cost_unit(CostOptions("price", 256, "$")) == "$"
