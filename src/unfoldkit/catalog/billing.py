"""What a lifetime costs: increments, a minimum charge, and who is charged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Billing:
    """Rules of a bill. ``increment`` and ``minimum`` are in seconds.

    ``per`` is ``instance`` (an instance is paid from running to release, idle or not) or ``function`` (only the
    seconds in which work runs are paid, as on serverless platforms). AWS bills Linux by the second, 60 s at least.
    """

    increment: float = 1.0
    minimum: float = 60.0
    per: Literal["instance", "function"] = "instance"

    def billed(self, seconds: Floats | float) -> Floats:
        """Return the seconds that are charged for lifetimes of ``seconds``: ``ceil(max(x, minimum)/inc)*inc``."""
        life = np.maximum(np.asarray(seconds, dtype=float), self.minimum)
        # a whole number of increments that rounding pushed up by 1e-12 is still that number
        return np.asarray(np.ceil(life / self.increment - 1e-9) * self.increment) if self.increment else life

    def cost(self, seconds: Floats | float, price_per_hour: float) -> Floats:
        """Return the dollars for lifetimes of ``seconds`` at a price per hour."""
        return self.billed(seconds) * (price_per_hour / 3600.0)
