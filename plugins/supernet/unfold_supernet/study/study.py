"""The study of a family on an accelerator: which subgraph to cache for a query stream, and what that saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from unfold_supernet.accelerator.hardware import Accelerator
from unfold_supernet.accelerator.layers import Family
from unfold_supernet.accelerator.queries import QueryStream
from unfold_supernet.study.published import ClaimCheck, check_claims, has_published_size
from unfold_supernet.study.strategies import Strategy, StrategyOutcome, compare_strategies
from unfold_supernet.study.sweep import CacheSetup, Savings, build_setup, fit_to_stream, sweep_buffers
from unfoldkit.api import Progress, user_error


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryOptions:
    """How the stream is made and scheduled.

    Attributes:
        count: Drawn queries.
        pattern: ``random`` or ``bursty``.
        file: Name of the file that the queries come from; empty if they are drawn.
        policy: ``strict-accuracy`` or ``strict-latency``.
        keep: How the cached subgraph is chosen: ``fixed``, ``avgnet`` or ``least-latency``.
        every: Queries between two choices.
        batch: Queries of one subnet in the batching baseline.
        deadline_s: Subnets that take longer are left out.
    """

    count: int
    pattern: str
    file: str
    policy: str
    keep: str
    every: int
    batch: int
    deadline_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyProblem:
    """A resolved study.

    Attributes:
        name: Name of the spec.
        family: The subnets.
        is_reference: Whether the family is a published one: its accuracies are not measured.
        machine: The accelerator.
        stream: The queries.
        queries: How they are scheduled.
        sizes: Persistent buffers to sweep, in bytes.
        has_default_sizes: Whether the spec left them at their default.
        bandwidths: Bandwidths to sweep, in bytes per second.
        inputs: SHA-256 of each input file by name.
    """

    name: str
    family: Family
    is_reference: bool
    machine: Accelerator
    stream: QueryStream
    queries: QueryOptions
    sizes: tuple[int, ...]
    has_default_sizes: bool
    bandwidths: tuple[float, ...]
    inputs: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A solved study.

    Attributes:
        family: The subnets that meet the deadline.
        setup: They on the accelerator, with the cached subgraph.
        points: The sweep over buffers and bandwidths.
        strategies: Every strategy on the stream, the empty cache first and the static one second.
        claims: The published claims; empty for a family that is not of their size.
    """

    family: Family
    setup: CacheSetup
    points: tuple[Savings, ...]
    strategies: tuple[StrategyOutcome, ...]
    claims: tuple[ClaimCheck, ...]

    @property
    def actual(self) -> Savings:
        """The savings of the accelerator as specified."""
        machine = self.setup.machine
        key = (machine.persistent_bytes, machine.bandwidth)
        return next(point for point in self.points if (point.persistent_bytes, point.bandwidth) == key)

    def find_strategy(self, keep: str) -> int:
        """Find the index of the strategy that the spec's key ``queries.keep`` names."""
        return next(index for index, outcome in enumerate(self.strategies) if outcome.strategy is Strategy(keep))


@dataclass(frozen=True, slots=True)
class DeadlineMissed:
    """No subnet meets the deadline: the family on the accelerator, for the report."""

    family: Family
    setup: CacheSetup


def run_study(problem: StudyProblem, progress: Progress) -> Study | DeadlineMissed:
    """Choose the cached subgraph for the stream, sweep buffers and bandwidths, and compare strategies.

    Raises:
        UnfoldError: No kernel of the family fits the persistent buffer.
    """
    queries, family = problem.queries, problem.family
    setup = fit_to_stream(build_setup(family, problem.machine), problem.stream, queries.policy)
    late = _find_late_subnets(setup, queries.deadline_s)
    if len(late) == len(family.subnets):
        return DeadlineMissed(family, setup)
    if late:
        in_time = tuple(subnet for index, subnet in enumerate(family.subnets) if index not in late)
        family = replace(family, subnets=in_time)
        setup = fit_to_stream(build_setup(family, problem.machine), problem.stream, queries.policy)
    progress("sweep", 0, 2)
    points = _sweep(problem, family)
    progress("sweep", 1, 2)
    if not any(point.traffic for point in points) and problem.machine.persistent_bytes:
        raise user_error("no kernel of the family fits the persistent buffer", key="accelerator.persistent_buffer")
    strategies = tuple(compare_strategies(setup, problem.stream, queries.policy, queries.every, queries.batch))
    progress("sweep", 2, 2)
    is_comparable = problem.is_reference or has_published_size(family, problem.machine.weight_bytes)
    claims = tuple(check_claims(points, problem.machine.persistent_bytes)) if is_comparable else ()
    return Study(family=family, setup=setup, points=points, strategies=strategies, claims=claims)


def build_decision(family: Family, setup: CacheSetup, policy: str, keep: str) -> Mapping[str, Any]:
    """Describe the cached subgraph as data: kernels and depth of each layer."""
    cached = setup.cached
    layers = {
        name: {"kernels": int(row[0]), "depth": int(row[1])}
        for name, row in zip(family.layers, cached.graph, strict=True)
        if row.prod()
    }
    return {
        "family": family.name,
        "nets": [subnet.name for subnet in family.subnets],
        "policy": policy,
        "keep": keep,
        "cut_from": cached.source,
        "bytes": setup.cached_bytes,
        "layers": layers,
    }


def _find_late_subnets(setup: CacheSetup, deadline_s: float | None) -> set[int]:
    if deadline_s is None:
        return set()
    latencies = setup.layered.seconds[:, setup.static_column]
    return {index for index, latency_s in enumerate(latencies) if latency_s > deadline_s}


def _sweep(problem: StudyProblem, family: Family) -> tuple[Savings, ...]:
    machine = problem.machine
    sizes = sorted({*_choose_sizes(problem, family), machine.persistent_bytes})
    bandwidths = sorted({*problem.bandwidths, machine.bandwidth}, reverse=True)
    return tuple(sweep_buffers(family, machine, sizes, bandwidths, problem.stream, problem.queries.policy))


def _choose_sizes(problem: StudyProblem, family: Family) -> tuple[int, ...]:
    """Choose the buffers to sweep: fractions of the largest subnet if the default sizes would all hold it."""
    largest = max(int(subnet.weights.sum()) for subnet in family.subnets) * problem.machine.weight_bytes
    if not problem.has_default_sizes or largest >= min(problem.sizes):
        return problem.sizes
    return tuple(max(1, largest * eighths // 8) for eighths in (1, 2, 4, 6, 8))
