"""What a policy costs in a case-hour: prices of feature groups, operations, bytes, measured time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import FloatArray
from unfold_cascade.temporal.simulation.trajectories import Walk, Zoo

NOTIONS = ("price", "flops", "bytes", "latency")


@dataclass(frozen=True, slots=True)
class Rates:
    """What one call of each of M models costs: ``price`` beside its features, operations, bytes, and time in µs."""

    price: FloatArray
    flops: FloatArray
    bytes: FloatArray
    latency: FloatArray


def totals(walk: Walk, zoo: Zoo, rates: Rates, notion: str) -> FloatArray:
    """Return (P,) the spatio-temporal cost of each entity: the sum over its hours of what was called and bought."""
    called: FloatArray = walk.calls @ getattr(rates, notion)
    return called + walk.buys @ zoo.purchase.price if notion == "price" else called


def per_hour(walk: Walk, zoo: Zoo, rates: Rates, notion: str) -> float:
    """Return the mean cost of a case-hour."""
    return float(totals(walk, zoo, rates, notion).sum()) / len(walk.answer)


def bill(walk: Walk, zoo: Zoo, rates: Rates) -> dict[str, float]:
    """Return the mean cost of a case-hour by every notion."""
    return {notion: per_hour(walk, zoo, rates, notion) for notion in NOTIONS}


def relative(cost: dict[str, float], base: dict[str, float], by: str) -> float:
    """Return a cost as a share of the baseline's; ``price+flops`` is the mean of the two shares."""
    return float(np.mean([cost[notion] / base[notion] for notion in by.split("+")]))
