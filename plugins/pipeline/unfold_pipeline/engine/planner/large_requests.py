"""Few large requests that drive the price of a plan: how many, and what the plan costs without them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from unfold_pipeline._types import CountArray
from unfold_pipeline.engine.planner.problem import EngineProblem
from unfold_pipeline.engine.simulation.workload import EngineRequests

SIZE_FACTOR = 10
"""Requests with so many times the tokens of the median are large."""
MAX_SHARE = 0.05
MIN_TOKEN_SHARE = 0.2
MAX_PRICE_SHARE = 0.9
"""A plan without large requests is worth a word if it costs at most so much of the plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LargeRequests:
    """Large requests, and the plan without them.

    Attributes:
        count: Large requests.
        tokens: Tokens of the smallest of them.
        token_share: Their fraction of all tokens.
        usd_per_hour: Price of the plan of all requests; ``None`` if there is none.
        usd_per_hour_without: Price of the plan of the other requests.
    """

    count: int
    tokens: int
    token_share: float
    usd_per_hour: float | None
    usd_per_hour_without: float


def find_large_requests(requests: EngineRequests) -> CountArray:
    """Return the few requests that are many times as large as the median and hold much of all tokens; maybe none."""
    tokens = requests.input_tokens + requests.output_tokens
    large = np.flatnonzero(tokens > SIZE_FACTOR * np.median(tokens))
    is_few = large.size <= MAX_SHARE * tokens.size
    return large if is_few and tokens[large].sum() >= MIN_TOKEN_SHARE * tokens.sum() else large[:0]


def measure_large_requests(
    problem: EngineProblem, usd_per_hour: float | None, find_price: Callable[[EngineProblem, float], float | None]
) -> LargeRequests | None:
    """Return large requests without which the plan is much cheaper, or exists; ``None`` where there are none.

    Args:
        problem: What was planned.
        usd_per_hour: Price of the plan; ``None`` if there is none.
        find_price: Returns the price of the plan for other requests; ``None`` if there is none. Plans above a ceiling
            in $/h are of no interest.
    """
    requests = problem.requests
    large = find_large_requests(requests)
    if not large.size:
        return None
    others = np.setdiff1d(np.arange(len(requests), dtype=np.int32), large)
    rest = replace(problem, requests=requests.reorder(others, requests.arrival_s[others]))
    ceiling = math.inf if usd_per_hour is None else MAX_PRICE_SHARE * usd_per_hour
    without = find_price(rest, ceiling)
    if without is None or without > ceiling:
        return None
    tokens = requests.input_tokens + requests.output_tokens
    return LargeRequests(
        count=large.size,
        tokens=int(tokens[large].min()),
        token_share=float(tokens[large].sum() / tokens.sum()),
        usd_per_hour=usd_per_hour,
        usd_per_hour_without=without,
    )
