"""Admission control: predict the queueing delay of a new request and reject it if the delay exceeds the useful maximum.

The prediction is Little's law: the number of queries in flight over the rate at which queries completed lately.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SLO_MULTIPLE = 4.0
MIN_USEFUL_WAIT_S = 0.5
MAX_PREDICTED_WAIT_S = 60.0


def compute_useful_wait(slo_s: float) -> float:
    """Return the seconds after which an answer with target ``slo_s`` is useless to the client."""
    return max(MIN_USEFUL_WAIT_S, SLO_MULTIPLE * slo_s)


@dataclass(slots=True)
class CompletionRate:
    """Completions per second while more queries are in flight than the replicas can serve at once.

    The rate is known after half of ``window_s`` seconds; older completions count less and less.

    Attributes:
        window_s: length of the measurement, and the delay from which on requests are rejected.
        since_s: start of the measurement; infinite while the replicas keep up.
        completions: number of completions since then.
    """

    window_s: float
    since_s: float = math.inf
    completions: float = 0.0

    def record_completion(self, in_flight: int, capacity: int, now_s: float) -> None:
        """Count a query that completes at ``now_s``.

        Args:
            in_flight: queries that remain in the pipeline.
            capacity: queries that the replicas can serve at once.
            now_s: seconds on any clock.
        """
        if in_flight <= capacity:
            self.since_s, self.completions = math.inf, 0.0
            return
        self.since_s, self.completions = min(self.since_s, now_s), self.completions + 1.0
        if (span_s := now_s - self.since_s) > self.window_s:
            self.since_s, self.completions = now_s - span_s / 2, self.completions / 2

    def predict_excess_wait(self, in_flight: int, capacity: int, now_s: float) -> float:
        """Return the queueing delay of a new query in seconds if it is known to exceed the window, otherwise 0.

        The delay is capped at a minute: few completions make it a guess.
        """
        if in_flight <= capacity:
            return 0.0
        self.since_s = min(self.since_s, now_s)
        span_s = now_s - self.since_s
        if span_s < self.window_s / 2 or not self.completions:
            return 0.0
        wait_s = in_flight * span_s / self.completions
        return min(wait_s, MAX_PREDICTED_WAIT_S) if wait_s > self.window_s else 0.0
