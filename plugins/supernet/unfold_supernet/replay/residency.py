"""Planned residency: which members to pin in a memory that does not hold them all, chosen by simulating a trace.

A short list is searched in full. For a longer one, a local search starts from the members that save most load time for
a byte, from the most and the least accurate ones, and from what LRU ends with. The members outside the set take turns
in the remaining room; one that is larger than the room is not used.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_supernet.replay.baselines import NamedPolicy
from unfold_supernet.replay.player import SimulatedServer, replay_with_targets
from unfold_supernet.replay.problem import ReplayProblem
from unfold_supernet.scheduling.requests import RequestTargets
from unfold_supernet.scheduling.residency import Eviction, MemberCost, Residency, fill_memory
from unfold_supernet.scheduling.simulator import ReplayOutcome
from unfold_supernet.scheduling.speed import Slowdown
from unfoldkit.api import Progress, RunDir
from unfoldkit.safe_io.files import parse_object

PLAN_FILE = "residency.json"
MAX_LISTED = 5
"""Up to so many members, every set is simulated; beyond, a local search chooses the sets."""
MAX_TRIALS = 250
"""Sets that a search simulates."""
PLANNED_REQUESTS = 4_000
"""Requests of a trace on which sets are compared."""
PLANNED_WINDOWS = 8
"""Equally spaced parts of the trace from which they are taken."""
SEARCH_STEP = "plan residency"
ROUNDING = 4
"""Digits of an attainment by which candidates differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidencyPlan:
    """Indices of members: those that always stay in memory, those that may be used, and those loaded at the start."""

    pinned: tuple[int, ...]
    usable: tuple[int, ...]
    initial: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy with the residency with which it starts; ``None`` where all members fit."""

    policy: NamedPolicy
    make_residency: Callable[[], Residency] | None


@dataclass(frozen=True, slots=True)
class ResidentOutcome:
    """Outcome of a trace with limited memory: the requests, and the loads of members."""

    outcome: ReplayOutcome
    loads: int
    load_s: float


def plan_residency(problem: ReplayProblem, progress: Progress | None = None) -> ResidencyPlan:
    """Choose the members to pin: the set with most requests in time and accurate enough, then most accurate.

    Among equals, the set that pins most members wins.

    Args:
        problem: The replay; its memory is short.
        progress: Receives progress.
    """
    search = _Search(_shorten(problem), progress or (lambda *_: None))
    for pinned in search.list_starts():
        search.try_set(pinned)
    if len(problem.costs) > MAX_LISTED:
        search.improve(np.random.default_rng(problem.seed))
    search.progress(SEARCH_STEP, MAX_TRIALS, MAX_TRIALS)
    return search.make_plan(search.best)


def complete_plan(
    costs: Sequence[MemberCost], memory_bytes: int, pinned: Sequence[int], ranked: Sequence[int]
) -> ResidencyPlan:
    """Add to pinned members those that fit the remaining room one at a time, and fill the room in the order of rank."""
    room = memory_bytes - sum(costs[index].bytes for index in pinned)
    usable = tuple(index for index in range(len(costs)) if index in pinned or costs[index].bytes <= room)
    others = [index for index in ranked if index in usable and index not in pinned]
    initial = fill_memory(costs, room, others) | set(pinned)
    return ResidencyPlan(pinned=tuple(sorted(pinned)), usable=usable, initial=tuple(sorted(initial)))


def rank_by_accuracy(accuracies: Sequence[float]) -> list[int]:
    """Rank members for a service without a plan: the most accurate first."""
    return sorted(range(len(accuracies)), key=lambda index: accuracies[index], reverse=True)


def list_contenders(problem: ReplayProblem, plan: ResidencyPlan) -> list[Contender]:
    """List the planned residency, LRU and LFU from an empty memory, and every single member that fits."""
    memory_bytes, policies = problem.memory_bytes or 0, problem.policies
    everything = complete_plan(problem.costs, memory_bytes, (), plan.initial)
    contenders = [make_planned(problem, plan)]
    rules: tuple[tuple[str, Eviction], ...] = (("least recently used", "lru"), ("least frequently used", "lfu"))
    for name, eviction in rules:
        policy = replace(policies[0], name=name, indices=everything.usable)
        contenders.append(Contender(policy, _residency_factory(problem, (), (), eviction)))
    for policy in policies:
        index = policy.indices[0]
        if policy.name.startswith("only ") and problem.costs[index].bytes <= memory_bytes:
            contenders.append(Contender(policy, _residency_factory(problem, (index,), (index,), "cost")))
    return contenders


def make_planned(problem: ReplayProblem, plan: ResidencyPlan) -> Contender:
    """Make the spec's policy with a planned residency."""
    policy = replace(problem.policies[0], indices=plan.usable)
    return Contender(policy, _residency_factory(problem, plan.pinned, plan.initial, "cost"))


def simulate_resident(problem: ReplayProblem, contender: Contender) -> ResidentOutcome:
    """Simulate a trace with limited memory; loading a member blocks the server for its measured load time."""
    residency = contender.make_residency() if contender.make_residency else None
    server = SimulatedServer(problem.profiles, residency=residency)
    targets = make_targets(problem)
    outcome = replay_with_targets(
        problem.arrivals, targets, contender.policy, problem.profiles, Slowdown(), server, residency
    )
    return ResidentOutcome(outcome, residency.loads if residency else 0, residency.load_s if residency else 0.0)


def make_targets(problem: ReplayProblem) -> RequestTargets:
    """Return the targets of the trace, or the spec's deadline for every request."""
    if problem.targets is not None:
        return problem.targets
    count = problem.arrivals.size
    return RequestTargets(np.full(count, problem.options.slo_s), np.zeros(count))


def write_plan(directory: RunDir, problem: ReplayProblem, plan: ResidencyPlan) -> None:
    """Store a plan by the names of its members, for ``unfold serve``."""
    names = [profile.name for profile in problem.profiles]
    document = {
        "memory_bytes": problem.memory_bytes,
        "members": names,
        **{key: [names[index] for index in getattr(plan, key)] for key in ("pinned", "usable", "initial")},
    }
    directory.write(PLAN_FILE, (json.dumps(document) + "\n").encode())


def read_plan(directory: RunDir, names: Sequence[str], memory_bytes: int) -> ResidencyPlan | None:
    """Read the plan of a run; ``None`` if there is none for these members and this memory.

    Raises:
        UnfoldError: The file is damaged.
    """
    if not directory.has(PLAN_FILE):
        return None
    with directory.decoding(PLAN_FILE, "a plan of resident members") as content:
        document = parse_object(content)
        if set(document["members"]) != set(names) or document["memory_bytes"] != memory_bytes:
            return None
        pinned, usable, initial = (
            tuple(sorted(list(names).index(name) for name in document[key])) for key in ("pinned", "usable", "initial")
        )
    return ResidencyPlan(pinned=pinned, usable=usable, initial=initial)


def _shorten(problem: ReplayProblem) -> ReplayProblem:
    """Join windows from all over a long trace: its start alone may not be like the rest."""
    size, length = problem.arrivals.size, PLANNED_REQUESTS // PLANNED_WINDOWS
    if size <= PLANNED_REQUESTS:
        return problem
    starts = np.linspace(0, size - length, PLANNED_WINDOWS).astype(np.int64)
    chosen = (starts[:, None] + np.arange(length)).ravel()
    arrivals = np.cumsum(np.diff(problem.arrivals, prepend=problem.arrivals[0])[chosen])
    return replace(problem, arrivals=arrivals, targets=problem.targets and problem.targets.select(chosen))


def _count_batches(problem: ReplayProblem) -> list[int]:
    """Count the batches of each member with memory for all of them."""
    everything = frozenset(range(len(problem.costs)))
    residency = Residency(costs=problem.costs, budget_bytes=2**63, resident=everything)
    server = SimulatedServer(problem.profiles, residency=residency)
    replay_with_targets(
        problem.arrivals, make_targets(problem), problem.policies[0], problem.profiles, Slowdown(), server
    )
    return residency.uses


def _rank(uses: int, cost: MemberCost) -> float:
    """Seconds of loading that a byte saves if the member stays in memory."""
    return uses * cost.load_s / max(1, cost.bytes)


class _Search:
    """Local search over sets of pinned members; every set is simulated once."""

    def __init__(self, problem: ReplayProblem, progress: Progress) -> None:
        self.problem, self.progress = problem, progress
        self.memory_bytes = problem.memory_bytes or 0
        uses = _count_batches(problem)
        self.ranked = sorted(range(len(uses)), key=lambda i: _rank(uses[i], problem.costs[i]), reverse=True)
        self.scores: dict[frozenset[int], tuple[float, float, float, int]] = {}
        self.best: frozenset[int] = frozenset()

    def list_starts(self) -> Iterator[frozenset[int]]:
        """Yield every set of a short list; of a longer one, members by rank and accuracy, and what LRU ends with."""
        members = range(len(self.problem.costs))
        if len(members) <= MAX_LISTED:
            for count in range(len(members) + 1):
                yield from map(frozenset, itertools.combinations(members, count))
            return
        accuracies = [profile.accuracy for profile in self.problem.profiles]
        for order in (self.ranked, rank_by_accuracy(accuracies), rank_by_accuracy(accuracies)[::-1]):
            filled = fill_memory(self.problem.costs, self.memory_bytes, order)
            preferred = [index for index in order if index in filled]
            for count in range(len(preferred) + 1):
                yield frozenset(preferred[:count])
        policy = replace(self.problem.policies[0], indices=self.make_plan(frozenset()).usable)
        recent = _residency_factory(self.problem, (), (), "lru")()
        simulate_resident(self.problem, Contender(policy, lambda: recent))
        yield recent.resident

    def improve(self, rng: np.random.Generator) -> None:
        """Add, remove or exchange single members until nothing helps or the trials are used up."""
        has_improved = True
        while has_improved and len(self.scores) < MAX_TRIALS:
            neighbours = list(self._list_neighbours())
            order = rng.permutation(len(neighbours))
            has_improved = any(self.try_set(neighbours[index]) for index in order if len(self.scores) < MAX_TRIALS)

    def try_set(self, pinned: frozenset[int]) -> bool:
        """Simulate a set unless it was simulated before or does not fit; return whether it is the best so far."""
        if pinned in self.scores or sum(self.problem.costs[index].bytes for index in pinned) > self.memory_bytes:
            return False
        self.progress(SEARCH_STEP, min(len(self.scores), MAX_TRIALS), MAX_TRIALS)
        result = simulate_resident(self.problem, make_planned(self.problem, self.make_plan(pinned)))
        satisfied = round(result.outcome.satisfied_fraction, ROUNDING)
        accuracy = round(result.outcome.compute_accuracy(self.problem.profiles), ROUNDING)
        self.scores[pinned] = (satisfied, accuracy, -result.load_s, len(pinned))
        if self.best in self.scores and self.scores[pinned] <= self.scores[self.best]:
            return self.best == pinned
        self.best = pinned
        return True

    def make_plan(self, pinned: frozenset[int]) -> ResidencyPlan:
        """Complete a set to a plan."""
        return complete_plan(self.problem.costs, self.memory_bytes, tuple(pinned), self.ranked)

    def _list_neighbours(self) -> Iterator[frozenset[int]]:
        others = [index for index in self.ranked if index not in self.best]
        for added in others:
            yield self.best | {added}
        for removed in sorted(self.best):
            yield self.best - {removed}
            for added in others:
                yield (self.best - {removed}) | {added}


def _residency_factory(
    problem: ReplayProblem, pinned: Sequence[int], initial: Sequence[int], eviction: Eviction
) -> Callable[[], Residency]:
    return lambda: Residency(
        costs=problem.costs,
        budget_bytes=problem.memory_bytes or 0,
        pinned=frozenset(pinned),
        eviction=eviction,
        resident=frozenset(initial),
    )
