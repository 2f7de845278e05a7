"""Prices that cannot be true are refused: fakes and parsing accidents must not end up in a plan."""

from __future__ import annotations

import math

LOWEST = 0.001
HIGHEST = 1000.0
DRIFT = 8.0
SPOT_SHARE = (0.02, 3.0)


def absurd(price: float, *, known: float | None = None) -> str:
    """Return why a price of ``price`` dollars per hour cannot be true, or nothing.

    ``known`` is an earlier price of the same type: AWS has never moved one by a factor of eight.
    """
    if not math.isfinite(price) or price <= 0:
        return f"{price} is not a price"
    if not LOWEST <= price <= HIGHEST:
        return f"${price:g}/h is outside ${LOWEST:g}/h to ${HIGHEST:g}/h"
    if known is not None and not known / DRIFT <= price <= known * DRIFT:
        return f"${price:g}/h is more than {DRIFT:g} times away from the ${known:g}/h known before"
    return ""


def absurd_spot(price: float, on_demand: float | None) -> str:
    """Return why a spot price cannot be true, or nothing; ``on_demand`` is the same type's price."""
    reason = absurd(price)
    if reason or on_demand is None:
        return reason
    low, high = SPOT_SHARE
    if not low * on_demand <= price <= high * on_demand:
        return f"${price:g}/h is not between {low:.0%} and {high:.0%} of the on-demand price"
    return ""
