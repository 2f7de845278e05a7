"""What was published, version by version, beside what the simulator gives.

The figures are those of the abstracts: the MLSys 2023 programme page, arXiv 2306.17266 version 1, and IEEE Micro of
November 2023. Their load, buffer and baseline are not told there, so that a hit is no confirmation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unfold_supernet.study.sweep import Savings


@dataclass(frozen=True, slots=True)
class Claim:
    """A headline: in which version, of what, and how much (a share, or points)."""

    version: str
    what: str
    value: float


@dataclass(frozen=True, slots=True)
class Obtained:
    """What the simulator gives at one buffer, against each baseline, and the least buffer that reaches the claim.

    Baselines: ``layered`` prefetches within a layer, ``fair`` through layers with the buffer's own bytes. ``needs``
    is the least persistent buffer of the sweep in bytes, ``None`` if none reaches it.
    """

    claim: Claim
    bandwidth: float
    layered: float
    fair: float
    needs: int | None
    needs_fair: int | None


def claims() -> tuple[Claim, ...]:
    """Return the published headlines."""
    return (
        Claim("arXiv v1", "latency", 0.25),
        Claim("IEEE Micro", "latency", 0.32),
        Claim("MLSys page", "latency", 0.41),
        Claim("all three", "accuracy points", 0.98),
        Claim("MLSys page", "off-chip energy", 0.526),
        Claim("arXiv v1, IEEE Micro", "off-chip energy", 0.787),
    )


def obtained(points: Sequence[Savings], persistent: int) -> list[Obtained]:
    """Return a line for every claim and bandwidth of a sweep that holds ``persistent``; "up to" is the best net."""
    result = []
    for claim in claims():
        for bandwidth in dict.fromkeys(point.bandwidth for point in points):
            at = [point for point in points if point.bandwidth == bandwidth]
            here = next(point for point in at if point.persistent == persistent)
            layered, fair = measures(claim.what)
            needs = (least(at, claim.value, measure) for measure in (layered, fair))
            result.append(Obtained(claim, bandwidth, layered(here), fair(here), *needs))
            if claim.what == "off-chip energy":
                break  # bytes do not depend on the bandwidth
    return result


def measures(what: str) -> tuple[Callable[[Savings], float], Callable[[Savings], float]]:
    """Return how a claim is read off, against the layered and the fair baseline."""
    if what == "latency":
        return (lambda point: point.latency_best), (lambda point: point.fair_best)
    if what == "accuracy points":
        return (lambda point: point.points), (lambda point: point.fair_points)
    return (lambda point: point.traffic_best), (lambda point: point.traffic_best)


def least(points: Sequence[Savings], value: float, measure: Callable[[Savings], float]) -> int | None:
    """Return the least buffer whose measure reaches ``value``."""
    return min((point.persistent for point in points if measure(point) >= value), default=None)
