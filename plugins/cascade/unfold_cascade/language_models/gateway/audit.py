"""The audit of a promise while it is served: an e-process with restarts, which revokes it when the loss is too large.

For H0 ``E[d_t | past] <= epsilon``, ``prod(1 + g (d_i - epsilon))`` is a nonnegative supermartingale for every wager
g in (0, 1 / (1 + epsilon)), and so is a mixture over wagers and over the audits at which they start. By Ville's
inequality it ever reaches ``1 / alpha`` with probability at most alpha (Waudby-Smith and Ramdas 2024; Shin, Ramdas and
Rinaldo 2022, E-detectors). Starts after the first make a late change visible, which long good behaviour would hide.

The weights of the starts are a prior on the audit at which the loss changes: ``AT_START`` for the first one, and
``T / (t + T)`` of the remainder is left after t audits (Lomax). Within the first T audits every start therefore weighs
about as much as any other, and no audit is ever too late. All starts of one wager are multiplied alike, so one number
per wager holds their sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unfold_cascade._types import FloatArray

WAGERS = (0.1, 0.2, 0.4, 0.8)
"""Wagers as shares of their largest value; a factor of 2 between them, so that one is near the best."""
AT_START = 0.25
"""Weight of a promise that is broken from its first audit on."""
HORIZON = 2000.0
"""T: audits within which a change is about as likely at any one."""
ALPHA = 0.05
MAX_WEALTH = 1e200


@dataclass(slots=True)
class AuditProcess:
    """Evidence that a promise is broken.

    Attributes:
        limit: The mean difference that is promised.
        alpha: Probability of a false revocation, for ever.
        audits: Observed differences so far.
        total: Their sum.
        wealth: (wagers,) weighted wealth of all starts so far.
        is_revoked: Whether the evidence has ever reached 1 / alpha.
    """

    limit: float
    alpha: float = ALPHA
    audits: int = 0
    total: float = 0.0
    wealth: FloatArray = field(default_factory=lambda: np.zeros(len(WAGERS)))
    is_revoked: bool = False

    def observe(self, difference: float) -> bool:
        """Add one audited difference in [-1, 1] and return whether the promise is revoked."""
        if not -1.0 <= difference <= 1.0:
            raise ValueError(f"a difference is in [-1, 1], not {difference}")
        started = remaining_weight(self.audits) - remaining_weight(self.audits + 1)
        wagers = np.array(WAGERS) / (1.0 + self.limit)
        self.wealth = np.minimum((self.wealth + started) * (1.0 + wagers * (difference - self.limit)), MAX_WEALTH)
        self.audits += 1
        self.total += difference
        self.is_revoked = self.is_revoked or self.evidence() >= 1.0 / self.alpha
        return self.is_revoked

    def evidence(self) -> float:
        """Compute the e-value: the mean wealth of the wagers, and the weight that later starts still hold."""
        return float(self.wealth.mean()) + remaining_weight(self.audits)

    def to_document(self) -> dict[str, Any]:
        """Write the state as plain data."""
        return {
            "limit": self.limit,
            "alpha": self.alpha,
            "audits": self.audits,
            "total": self.total,
            "wealth": self.wealth.tolist(),
            "is_revoked": self.is_revoked,
        }


def remaining_weight(audits: int) -> float:
    """Compute the weight of the starts that come after so many audits."""
    return 1.0 if audits == 0 else (1.0 - AT_START) * HORIZON / (audits - 1 + HORIZON)


def parse_audit(document: Mapping[str, Any]) -> AuditProcess:
    """Parse the data of ``AuditProcess.to_document``.

    Raises:
        KeyError, TypeError, ValueError: The data is no such state.
    """
    wealth = np.array(document["wealth"], dtype=np.float64)
    limit, total = float(document["limit"]), float(document["total"])
    is_finite = math.isfinite(total) and bool(np.isfinite(wealth).all())
    if not (0.0 <= limit < 1.0 and is_finite and wealth.shape == (len(WAGERS),) and wealth.min() >= 0.0):
        raise ValueError("the state of the audit is not finite")
    return AuditProcess(
        limit, float(document["alpha"]), int(document["audits"]), total, wealth, bool(document["is_revoked"])
    )
