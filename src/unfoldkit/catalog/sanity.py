"""Plausibility checks of prices: fakes and parsing errors must not end up in a plan."""

from __future__ import annotations

import math

MIN_USD_PER_HOUR = 0.001
MAX_USD_PER_HOUR = 1000.0
MAX_CHANGE = 8.0
SPOT_RANGE = (0.02, 3.0)


def find_implausibility(price: float, *, known: float | None = None) -> str:
    """Return why a price is implausible; empty if it is plausible.

    Args:
        price: US dollars per hour.
        known: An earlier price of the same type; AWS has never changed one by a factor of eight.
    """
    if not math.isfinite(price) or price <= 0:
        return f"{price} is not a price"
    if not MIN_USD_PER_HOUR <= price <= MAX_USD_PER_HOUR:
        return f"${price:g}/h is outside ${MIN_USD_PER_HOUR:g}/h to ${MAX_USD_PER_HOUR:g}/h"
    if known is not None and not known / MAX_CHANGE <= price <= known * MAX_CHANGE:
        return f"${price:g}/h is more than {MAX_CHANGE:g} times away from the ${known:g}/h known before"
    return ""


def find_spot_implausibility(price: float, on_demand: float | None) -> str:
    """Return why a spot price is implausible; ``on_demand`` is the on-demand price of the same type."""
    reason = find_implausibility(price)
    if reason or on_demand is None:
        return reason
    low, high = SPOT_RANGE
    if not low * on_demand <= price <= high * on_demand:
        return f"${price:g}/h is not between {low:.0%} and {high:.0%} of the on-demand price"
    return ""
