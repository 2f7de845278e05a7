"""Spatio-temporal cost of a policy (UnfoldML): what calls and purchases cost per entity-hour, in four currencies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import FloatArray
from unfold_cascade.temporal.simulation.trajectories import ModelScores, Trajectories

CURRENCIES = ("price", "flops", "bytes", "latency")


@dataclass(frozen=True, slots=True)
class CallCosts:
    """What one call of each of M models costs, each (M,): price besides its features, FLOPs, bytes, latency in µs."""

    price: FloatArray
    flops: FloatArray
    bytes: FloatArray
    latency: FloatArray


def sum_costs(trajectories: Trajectories, scores: ModelScores, call_costs: CallCosts, currency: str) -> FloatArray:
    """Sum (P,) the cost of each entity over its hours: its calls and, for ``price``, its purchases."""
    calls: FloatArray = trajectories.calls @ getattr(call_costs, currency)
    return calls + trajectories.purchases @ scores.purchase.price if currency == "price" else calls


def compute_bill(trajectories: Trajectories, scores: ModelScores, call_costs: CallCosts) -> dict[str, float]:
    """Compute the mean cost of an entity-hour in every currency."""
    hours = len(trajectories.stage)
    return {
        currency: float(sum_costs(trajectories, scores, call_costs, currency).sum()) / hours for currency in CURRENCIES
    }


def compute_relative_cost(bill: dict[str, float], base: dict[str, float], by: str) -> float:
    """Divide a bill by that of the baseline model.

    Args:
        bill: Mean cost of an entity-hour, by currency.
        base: The same of the baseline model.
        by: A currency, or ``price+flops`` for the mean of both ratios.
    """
    return float(np.mean([bill[currency] / base[currency] for currency in by.split("+")]))


def compute_savings(base: dict[str, float], bill: dict[str, float], currencies: tuple[str, ...]) -> dict[str, float]:
    """Compute how many times cheaper ``bill`` is than ``base``; a currency in which it costs nothing is omitted."""
    return {currency: base[currency] / bill[currency] for currency in currencies if bill[currency] > 0}
