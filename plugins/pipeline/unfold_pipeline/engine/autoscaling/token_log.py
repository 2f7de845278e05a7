"""Tokens of the requests that arrived lately at a running service, for the rule that follows the plan's envelope."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from unfold_pipeline.engine.autoscaling.rules import Observation

MAX_ARRIVALS = 200_000
"""Requests that are remembered; with more within the longest window, the oldest no longer count."""


@dataclass(slots=True)
class Arrival:
    """A request: when it arrived, and its tokens, of which the generated ones are estimated until they are counted."""

    moment_s: float
    prompt: int
    output: int

    def correct(self, prompt: int, output: int) -> None:
        """Replace the estimates by what the engine counted."""
        self.prompt, self.output = prompt, output


@dataclass(slots=True)
class TokenLog:
    """The requests within the longest window of an envelope, in order of arrival.

    Attributes:
        longest_s: the longest window.
        arrivals: the requests; older ones are dropped.
        total: all requests so far.
    """

    longest_s: float
    arrivals: deque[Arrival] = field(default_factory=lambda: deque(maxlen=MAX_ARRIVALS))
    total: int = 0

    def add(self, moment_s: float, prompt: int, output: int) -> Arrival:
        """Record a request and return it, so that its tokens can be corrected."""
        arrival = Arrival(moment_s, prompt, output)
        self.arrivals.append(arrival)
        self.total += 1
        while self.arrivals[0].moment_s < moment_s - self.longest_s:
            self.arrivals.popleft()
        return arrival

    def count(self, seen: Observation, length_s: float) -> tuple[float, float]:
        """Return the prompt tokens and all tokens of the requests within a length before a moment."""
        prompt = output = 0
        for arrival in reversed(self.arrivals):
            if arrival.moment_s < seen.now_s - length_s:
                break
            prompt, output = prompt + arrival.prompt, output + arrival.output
        return float(prompt), float(prompt + output)
