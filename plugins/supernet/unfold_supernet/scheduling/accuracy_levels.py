"""Requests with a minimum accuracy: only subnets that reach it may serve them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace

from unfold_supernet.scheduling.policies import Policy, SubnetProfile
from unfold_supernet.scheduling.residency import Residency
from unfold_supernet.scheduling.speed import PolicyFactory, Slowdown, adapt_to_slowdown
from unfoldkit.serving.batching.request_queue import ExecutionPaths
from unfoldkit.serving.model import Call

MAX_VARIANTS = 256
"""Sets of resident members for which policies are kept."""


def build_accuracy_levels(
    profiles: Sequence[SubnetProfile], make_policy: PolicyFactory, slowdown: Slowdown
) -> ExecutionPaths:
    """Build the request queue's view of the subnets: one policy for each minimum accuracy that a request can have.

    Level 0 allows every subnet, the highest level only the most accurate one. That one also serves requests above its
    own accuracy (SUSHI: if no subnet qualifies, use the nearest). A request that cannot be in time is served by the
    first subnet, or by the fastest one that is accurate enough. A request with more rows than the largest measured
    batch is computed in parts by the most accurate subnet that answers all of them in time.

    Args:
        profiles: The subnets.
        make_policy: Builds a policy over a subset of them.
        slowdown: Present slowdown of the machine.
    """
    accuracies = sorted({profile.accuracy_fraction for profile in profiles})
    levels = tuple(accuracies.index(profile.accuracy_fraction) for profile in profiles)
    allowed = [[index for index, top in enumerate(levels) if top >= level] for level in range(len(accuracies))]
    policies: list[Policy] = [
        adapt_to_slowdown(make_policy, [profiles[index] for index in indices], slowdown) for indices in allowed
    ]
    fastest = [0, *(min(indices, key=lambda index: profiles[index].estimate_latency(1)) for indices in allowed[1:])]

    def pick(slack: float, rows: int, level: int) -> tuple[int, int] | None:
        choice = policies[level](slack, rows)
        return None if choice is None else (allowed[level][choice.subnet], choice.batch)

    largest = max(profile.max_batch for profile in profiles)

    def pick_split(slack: float, rows: int, level: int) -> tuple[int, int] | None:
        if rows <= largest:
            # a policy that drops a request which fits a batch has its reasons
            return None
        by_accuracy = sorted(allowed[level], key=lambda index: profiles[index].accuracy, reverse=True)
        for index in by_accuracy:
            if profiles[index].estimate_split_latency(rows) * slowdown.p90 <= slack:
                return index, rows
        return None

    return ExecutionPaths(pick, levels, tuple(fastest), _make_level_lookup(accuracies), pick_split)


def _make_level_lookup(accuracies: Sequence[float]) -> Callable[[Call], int]:
    top_level = len(accuracies) - 1
    return lambda call: min(bisect_left(accuracies, call.least_accuracy), top_level)


def build_resident_levels(
    profiles: Sequence[SubnetProfile],
    indices: Sequence[int],
    residency: Residency,
    make_policy: PolicyFactory,
    slowdown: Slowdown,
) -> ExecutionPaths:
    """Build the request queue's view of members that are not all in memory.

    The latency of a member that would have to be loaded includes its load time. A late request is served by the member
    that is done first among those that are accurate enough.

    Args:
        profiles: The members to choose from.
        indices: Their indices in the residency.
        residency: Which members are in memory; the view follows it.
        make_policy: Builds a policy over a subset of them.
        slowdown: Present slowdown of the machine.
    """
    variants: dict[frozenset[int], tuple[ExecutionPaths, tuple[int, ...]]] = {}

    def get_current() -> tuple[ExecutionPaths, tuple[int, ...]]:
        resident = residency.resident
        if resident not in variants:
            if len(variants) >= MAX_VARIANTS:
                variants.clear()
            loads_s = [0.0 if index in resident else residency.costs[index].load_s for index in indices]
            variants[resident] = _build_variant(profiles, loads_s, make_policy, slowdown)
        return variants[resident]

    paths = get_current()[0]

    def pick(slack: float, rows: int, level: int) -> tuple[int, int] | None:
        return get_current()[0].pick(slack, rows, level)

    def pick_split(slack: float, rows: int, level: int) -> tuple[int, int] | None:
        split = get_current()[0].pick_split
        return None if split is None else split(slack, rows, level)

    return ExecutionPaths(
        pick,
        paths.serves,
        paths.hopeless,
        paths.level,
        pick_split,
        lambda level: get_current()[1][level],
    )


def _build_variant(
    profiles: Sequence[SubnetProfile],
    loads_s: Sequence[float],
    make_policy: PolicyFactory,
    slowdown: Slowdown,
) -> tuple[ExecutionPaths, tuple[int, ...]]:
    """Build the view for one set of resident members, and the member for late requests by level."""
    loaded = [_add_load(profile, load_s) for profile, load_s in zip(profiles, loads_s, strict=True)]
    paths = build_accuracy_levels(loaded, make_policy, slowdown)
    late = tuple(
        min(
            (index for index, top in enumerate(paths.serves) if top >= level),
            key=lambda index: loaded[index].estimate_latency(1),
        )
        for level in range(len(paths.hopeless))
    )
    return paths, late


def _add_load(profile: SubnetProfile, load_s: float) -> SubnetProfile:
    return replace(profile, seconds=tuple((size, time_s + load_s) for size, time_s in profile.seconds))
