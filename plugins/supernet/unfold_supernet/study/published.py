"""The published headline figures, version by version, beside what the simulator obtains.

The figures are those of the abstracts: the MLSys 2023 programme page, arXiv 2306.17266 version 1, and IEEE Micro of
November 2023. They do not state load, buffer and baseline, so a match is no confirmation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unfold_supernet.accelerator.layers import Family
from unfold_supernet.accelerator.reference_families import build_reference_family, get_reference_spaces
from unfold_supernet.study.sweep import Savings

Measure = Callable[[Savings], float]


@dataclass(frozen=True, slots=True)
class Claim:
    """A headline figure.

    Attributes:
        version: Where it was published.
        quantity: ``latency``, ``accuracy points`` or ``off-chip energy``.
        value: A fraction saved, or points of accuracy.
    """

    version: str
    quantity: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimCheck:
    """What the simulator obtains for a claim at one buffer.

    Attributes:
        claim: The claim.
        bandwidth: Off-chip bandwidth, in bytes per second.
        layered: Obtained against a baseline that prefetches within a layer.
        fair: Obtained against a baseline that prefetches through layers with the buffer's bytes.
        needed_bytes: Smallest buffer of the sweep that reaches the claim; ``None`` if none does.
        needed_bytes_fair: The same against the fair baseline.
    """

    claim: Claim
    bandwidth: float
    layered: float
    fair: float
    needed_bytes: int | None
    needed_bytes_fair: int | None


def get_claims() -> tuple[Claim, ...]:
    """Get the published headline figures."""
    return (
        Claim("arXiv v1", "latency", 0.25),
        Claim("IEEE Micro", "latency", 0.32),
        Claim("MLSys page", "latency", 0.41),
        Claim("all three", "accuracy points", 0.98),
        Claim("MLSys page", "off-chip energy", 0.526),
        Claim("arXiv v1, IEEE Micro", "off-chip energy", 0.787),
    )


def has_published_size(family: Family, weight_bytes: int) -> bool:
    """Whether a family of several subnets lies between the smallest and the largest subnet of the published ones.

    What a buffer saves depends on its size against that of the weights, so that other families prove nothing.

    Args:
        family: The family.
        weight_bytes: Bytes of a weight.
    """
    published = [
        int(subnet.weights.sum()) for name in get_reference_spaces() for subnet in build_reference_family(name).subnets
    ]
    sizes = [int(subnet.weights.sum()) * weight_bytes for subnet in family.subnets]
    return len(sizes) > 1 and min(published) <= min(sizes) and max(sizes) <= max(published)


def check_claims(points: Sequence[Savings], persistent_bytes: int) -> list[ClaimCheck]:
    """Check every claim at every bandwidth of a sweep; "up to" means the subnet that gains most.

    Args:
        points: The sweep; it must contain ``persistent_bytes``.
        persistent_bytes: The accelerator's buffer.
    """
    checks = []
    for claim in get_claims():
        for bandwidth in dict.fromkeys(point.bandwidth for point in points):
            curve = [point for point in points if point.bandwidth == bandwidth]
            actual = next(point for point in curve if point.persistent_bytes == persistent_bytes)
            layered, fair = get_measures(claim.quantity)
            check = ClaimCheck(
                claim=claim,
                bandwidth=bandwidth,
                layered=layered(actual),
                fair=fair(actual),
                needed_bytes=find_smallest_buffer(curve, claim.value, layered),
                needed_bytes_fair=find_smallest_buffer(curve, claim.value, fair),
            )
            checks.append(check)
            if claim.quantity == "off-chip energy":
                break  # bytes do not depend on the bandwidth
    return checks


def get_measures(quantity: str) -> tuple[Measure, Measure]:
    """Get how a quantity is read from savings, against the layered and the fair baseline."""
    if quantity == "latency":
        return (lambda point: point.latency_best), (lambda point: point.latency_fair_best)
    if quantity == "accuracy points":
        return (lambda point: point.points), (lambda point: point.points_fair)
    return (lambda point: point.traffic_best), (lambda point: point.traffic_best)


def find_smallest_buffer(points: Sequence[Savings], value: float, measure: Measure) -> int | None:
    """Find the smallest buffer with a measure that reaches ``value``."""
    return min((point.persistent_bytes for point in points if measure(point) >= value), default=None)
