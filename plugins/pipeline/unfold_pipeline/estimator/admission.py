"""How long who comes now will wait, by the pace at which queries ended lately: more than is worth it is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass

TARGETS = 4.0
LEAST_S = 0.5
MOST_S = 60.0


def worth(limit: float) -> float:
    """Return how many seconds a query may wait whose answer should take ``limit`` s: what is later helps nobody."""
    return max(LEAST_S, TARGETS * limit)


@dataclass(slots=True)
class Pace:
    """Counts what ends while more queries are inside than can be served at once.

    By Little's law who comes then waits for as many as are inside, at the pace at which they end. It is known after
    half of ``longest`` s, and what is older than that counts less and less. ``since`` is when the count began.
    """

    longest: float
    since: float = math.inf
    ended: float = 0.0

    def end(self, inside: int, room: int, now: float) -> None:
        """Count a query that ends at ``now``; ``inside`` are left, and ``room`` can be served at once."""
        if inside <= room:
            self.since, self.ended = math.inf, 0.0
            return
        self.since, self.ended = min(self.since, now), self.ended + 1.0
        if (span := now - self.since) > self.longest:
            self.since, self.ended = now - span / 2, self.ended / 2

    def wait(self, inside: int, room: int, now: float) -> float:
        """Return the seconds that who comes at ``now`` will wait, if they are known to be too many; else 0.

        More than a minute is said to be one: where few queries ended the pace is a guess.
        """
        if inside <= room:
            return 0.0
        self.since = min(self.since, now)
        span = now - self.since
        if span < self.longest / 2 or not self.ended:
            return 0.0
        wait = inside * span / self.ended
        return min(wait, MOST_S) if wait > self.longest else 0.0
