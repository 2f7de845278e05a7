"""The audit of a promise while it is served: an e-process with restarts, which revokes it when the loss is too large.

For H0 ``E[d_t | past] <= epsilon``, ``prod(1 + g (d_i - epsilon))`` is a nonnegative supermartingale for every wager
g in (0, 1 / (1 + epsilon)), and so is a mixture of wagers and of starting times with fixed weights. By Ville's
inequality it ever reaches ``1 / alpha`` with probability at most alpha (Waudby-Smith and Ramdas 2024; Shin, Ramdas and
Rinaldo 2022, E-detectors). Starts after the first make a late change visible, which long good behaviour would hide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unfold_cascade._types import FloatArray

WAGERS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.6, 0.9)
"""Wagers as shares of their largest value."""
RESTART_EVERY = 50
MAX_STARTS = 4000
ALPHA = 0.05


@dataclass(slots=True)
class AuditProcess:
    """Evidence that a promise is broken.

    Attributes:
        limit: the mean difference that is promised.
        alpha: probability of a false revocation, for ever.
        audits: observed differences so far.
        total: their sum.
        log_wealth: (starts, wagers) logarithms of the wealth since each start.
        is_revoked: whether the evidence has ever reached 1 / alpha.
    """

    limit: float
    alpha: float = ALPHA
    audits: int = 0
    total: float = 0.0
    log_wealth: FloatArray = field(default_factory=lambda: np.zeros((0, len(WAGERS))))
    is_revoked: bool = False

    def observe(self, difference: float) -> bool:
        """Add one audited difference in [-1, 1] and return whether the promise is revoked."""
        if not -1.0 <= difference <= 1.0:
            raise ValueError(f"a difference is in [-1, 1], not {difference}")
        if self.audits % RESTART_EVERY == 0 and len(self.log_wealth) < MAX_STARTS:
            self.log_wealth = np.concatenate([self.log_wealth, np.zeros((1, len(WAGERS)))])
        wagers = np.array(WAGERS) / (1.0 + self.limit)
        self.log_wealth += np.log1p(wagers * (difference - self.limit))
        self.audits += 1
        self.total += difference
        self.is_revoked = self.is_revoked or self.evidence() >= 1.0 / self.alpha
        return self.is_revoked

    def evidence(self) -> float:
        """Compute the e-value: the weighted wealth of all starts, and the weight that later starts still hold."""
        starts = len(self.log_wealth)
        weight = 1.0 / (np.arange(1, starts + 1) * np.arange(2, starts + 2))
        wealth = np.exp(np.minimum(self.log_wealth, 700.0)).mean(axis=1)
        return float(min(weight @ wealth, 1e300)) + 1.0 / (starts + 1)

    def to_document(self) -> dict[str, Any]:
        """Write the state as plain data."""
        return {
            "limit": self.limit,
            "alpha": self.alpha,
            "audits": self.audits,
            "total": self.total,
            "log_wealth": self.log_wealth.tolist(),
            "is_revoked": self.is_revoked,
        }


def parse_audit(document: Mapping[str, Any]) -> AuditProcess:
    """Parse the data of ``AuditProcess.to_document``.

    Raises:
        KeyError, TypeError, ValueError: the data is no such state.
    """
    wealth = np.array(document["log_wealth"], dtype=np.float64).reshape(-1, len(WAGERS))
    limit, total = float(document["limit"]), float(document["total"])
    if not (0.0 <= limit < 1.0 and math.isfinite(total) and np.isfinite(wealth).all()):
        raise ValueError("the state of the audit is not finite")
    return AuditProcess(
        limit, float(document["alpha"]), int(document["audits"]), total, wealth, bool(document["is_revoked"])
    )
