"""Distribute requests to running engines: round robin, or the fewest outstanding tokens with rotating ties."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from unfold_pipeline.engine.simulation.cluster import Routing

DOWN_S = 5.0
"""How long an engine that failed gets no request while another is there."""


@dataclass(slots=True)
class EngineBalancer:
    """The engines, and what each still computes. Ties rotate, as a fixed order would make one engine hot.

    Attributes:
        urls: The engines.
        routing: How requests are distributed.
        outstanding: Tokens of the requests that each engine holds.
        requests: Requests that each engine holds.
        down_until_s: Until when each engine that failed is used only if no other is left.
        active: Whether each engine takes requests.
        cursor: The engine that is next by round robin.
    """

    urls: tuple[str, ...]
    routing: Routing
    outstanding: list[int] = field(init=False)
    requests: list[int] = field(init=False)
    down_until_s: list[float] = field(init=False)
    active: list[bool] = field(init=False)
    cursor: int = 0

    def __post_init__(self) -> None:
        self.outstanding, self.requests = [0] * len(self.urls), [0] * len(self.urls)
        self.down_until_s = [0.0] * len(self.urls)
        self.active = [True] * len(self.urls)

    def choose(self, tokens: int, now_s: float, tried: Collection[int] = ()) -> int | None:
        """Return the engine for a request and count its tokens there; ``None`` if every active engine was tried.

        Engines that failed lately are chosen only if no other is left.
        """
        count = len(self.urls)
        ring = [(self.cursor + step) % count for step in range(count)]
        candidates = [index for index in ring if self.active[index] and index not in tried]
        if not candidates:
            return None
        candidates = [index for index in candidates if self.down_until_s[index] <= now_s] or candidates
        index = candidates[0] if self.routing == "round_robin" else min(candidates, key=self.outstanding.__getitem__)
        self.cursor = (index + 1) % count
        self.outstanding[index] += tokens
        self.requests[index] += 1
        return index

    def count_up(self, now_s: float) -> int:
        """Return the engines that take requests and did not fail lately."""
        return sum(
            is_active and until_s <= now_s for is_active, until_s in zip(self.active, self.down_until_s, strict=True)
        )

    def release(self, index: int, tokens: int) -> None:
        """Remove a finished request from its engine."""
        self.outstanding[index] -= tokens
        self.requests[index] -= 1

    def mark_down(self, index: int, now_s: float) -> None:
        """Prefer other engines for a while."""
        self.down_until_s[index] = now_s + DOWN_S

    def mark_up(self, index: int) -> None:
        """Use an engine again."""
        self.down_until_s[index] = 0.0
