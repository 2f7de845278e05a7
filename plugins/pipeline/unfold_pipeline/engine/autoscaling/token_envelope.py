"""The scaling rule of a plan of LLM engines: engines in proportion to the token envelope that recent traffic fills."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.engine.autoscaling.autoscalers import Observation, ScalingRule
from unfold_pipeline.engine.simulation.workload import EngineRequests

ENVELOPE_MARGIN = 1.15
SHORTEST_WINDOW_S = 1.0
MAX_ARRIVALS = 200_000
"""Requests that a log remembers; with more within the longest window, the oldest no longer count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEnvelope:
    """The most tokens in any window of some lengths, over the traffic of a plan.

    Attributes:
        windows_s: (windows,) lengths.
        prompt: (windows,) prompt tokens.
        total: (windows,) prompt and generated tokens, which the KV cache holds.
        replicas: Engines of the plan.
    """

    windows_s: FloatArray
    prompt: FloatArray
    total: FloatArray
    replicas: int


def build_token_envelope(requests: EngineRequests, replicas: int, longest_s: float) -> TokenEnvelope:
    """Return the envelope of a trace, over windows from a second to the time that an engine takes to start."""
    doublings = max(1, math.ceil(math.log2(max(longest_s, 2 * SHORTEST_WINDOW_S) / SHORTEST_WINDOW_S)))
    windows_s = np.array([SHORTEST_WINDOW_S * 2.0**index for index in range(doublings + 1)], dtype=np.float64)
    total = requests.input_tokens + requests.output_tokens
    return TokenEnvelope(
        windows_s=windows_s,
        prompt=np.array([count_most_tokens(requests.arrival_s, requests.input_tokens, w) for w in windows_s], float),
        total=np.array([count_most_tokens(requests.arrival_s, total, w) for w in windows_s], float),
        replicas=replicas,
    )


def count_most_tokens(arrival_s: FloatArray, tokens: CountArray, length_s: float) -> int:
    """Return the most tokens in any window of a length."""
    sums = np.concatenate([[0], np.cumsum(tokens)])
    ends = np.searchsorted(arrival_s, arrival_s + length_s, side="left")
    return int((sums[ends] - sums[:-1]).max()) if arrival_s.size else 0


TokenCounter = Callable[[Observation, float], tuple[float, float]]
"""Takes a moment and a length; returns the prompt tokens and all tokens that arrived within it."""


def count_trace_tokens(live: EngineRequests) -> TokenCounter:
    """Return a counter over the requests of a trace that reads those of the past only."""
    sums = [
        np.concatenate([[0], np.cumsum(tokens)])
        for tokens in (live.input_tokens, live.input_tokens + live.output_tokens)
    ]

    def count(seen: Observation, length_s: float) -> tuple[float, float]:
        first = min(int(np.searchsorted(live.arrival_s, seen.now_s - length_s)), seen.arrived)
        prompt, total = (float(column[seen.arrived] - column[first]) for column in sums)
        return prompt, total

    return count


@dataclass(slots=True)
class Arrival:
    """A request: its arrival and its tokens; the generated ones are estimated until the engine has counted them."""

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
        longest_s: The longest window.
        arrivals: The requests; older ones are dropped.
        total: All requests so far.
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


def build_envelope_rule(
    envelope: TokenEnvelope, count_tokens: TokenCounter, *, hold_s: float, margin: float = ENVELOPE_MARGIN
) -> ScalingRule:
    """Return the rule of the plan: engines in proportion to the envelope that recent traffic fills.

    The plan serves its envelope with its engines, so traffic that fills a fraction of it at every window needs that
    fraction of them, and a margin for the time that an engine takes to start. At first the rule has seen no traffic,
    so the engines of the plan are held like a fraction.

    Args:
        envelope: Of the traffic that was planned for.
        count_tokens: Counts the tokens that arrived lately.
        hold_s: How long a fraction counts after its window.
        margin: Factor on the fraction.
    """
    fractions: list[tuple[float, float]] = []

    def decide(seen: Observation) -> int:
        fraction = 0.0
        for length, *planned in zip(envelope.windows_s, envelope.prompt, envelope.total, strict=True):
            counts = count_tokens(seen, float(length))
            fraction = max(fraction, *(count / limit for count, limit in zip(counts, planned, strict=True)))
        if not fractions:
            fractions.append((seen.now_s, 1 / margin))
        fractions.append((seen.now_s, fraction))
        while fractions[0][0] < seen.now_s - hold_s:
            fractions.pop(0)
        wanted = max(value for _, value in fractions) * margin * envelope.replicas
        return max(1, math.ceil(wanted - 1e-9))

    return decide
