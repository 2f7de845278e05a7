"""Billing rules: increments, a minimum charge, and whether instances or work are billed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from unfoldkit._types import FloatArray


@dataclass(frozen=True, slots=True)
class Billing:
    """Rules of a bill. AWS bills Linux per second, with a minimum of 60 s.

    Args:
        increment: The billing increment in s; 0 for none.
        minimum: The minimum charge in s.
        per: ``instance`` bills an instance from start to release, idle or not. ``function`` bills only the time in
            which work runs, as serverless platforms do.
    """

    increment: float = 1.0
    minimum: float = 60.0
    per: Literal["instance", "function"] = "instance"

    def billed(self, seconds: FloatArray | float) -> FloatArray:
        """Return the seconds that are charged for lifetimes of ``seconds``: ``ceil(max(x, minimum)/inc)*inc``."""
        lifetime = np.maximum(np.asarray(seconds, dtype=float), self.minimum)
        # the tolerance keeps an exact number of increments from being rounded up
        return np.asarray(np.ceil(lifetime / self.increment - 1e-9) * self.increment) if self.increment else lifetime

    def cost(self, seconds: FloatArray | float, price_per_hour: float) -> FloatArray:
        """Return the US dollars for lifetimes of ``seconds`` at a price per hour."""
        return self.billed(seconds) * (price_per_hour / 3600.0)
