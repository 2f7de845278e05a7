"""A trace in real time: every response is computed by the subnets of the run, or by members, on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_supernet._types import Float32Array, IntArray, ShareModel
from unfold_supernet.members.runtime import MemberPool
from unfold_supernet.replay.baselines import PolicyResult
from unfold_supernet.replay.player import RealServer, replay_with_targets
from unfold_supernet.replay.problem import MeasuredReplay, ReplayProblem, scale_trace
from unfold_supernet.replay.residency import (
    Contender,
    list_contenders,
    make_targets,
    plan_residency,
    simulate_resident,
)
from unfold_supernet.replay.simulated import build_result, simulate_policy
from unfold_supernet.scheduling.residency import Residency
from unfold_supernet.scheduling.simulator import measure_trace
from unfold_supernet.scheduling.speed import Slowdown, adapt_to_slowdown
from unfoldkit.api import Progress

WARM_UP, TIMED = 2, 5
"""Full batches of each subnet before a trace: to warm up, and to measure the machine's present slowdown."""


@dataclass(frozen=True, slots=True)
class RequestRows:
    """Rows that requests carry, in turn: inputs (n, *size) and extra numbers (n, extra)."""

    x: Float32Array
    extra: Float32Array


def measure_replay(
    problem: ReplayProblem,
    models: Sequence[ShareModel],
    rows: RequestRows,
    clock: Callable[[], float],
    progress: Progress,
    pool: MemberPool | None = None,
) -> MeasuredReplay:
    """Replay a trace under every policy in real time.

    Args:
        problem: The replay.
        models: The subnets, in the order of the problem's profiles.
        rows: What requests carry.
        clock: Source of time, in seconds.
        progress: Receives progress.
        pool: The sessions of the models, if they do not all fit the memory.
    """
    batch_runner = _BatchRunner(problem, models, rows, clock, pool)
    results: list[PolicyResult] = []
    slowdown = batch_runner.warm_up()
    problem = scale_trace(problem, slowdown)
    if problem.is_memory_short:
        problem = replace(problem, targets=make_targets(problem))
        contenders = list_contenders(problem, plan_residency(problem, progress))
    else:
        contenders = [Contender(policy, None) for policy in problem.policies]
    for contender in contenders:
        progress("replay", len(results), len(contenders))
        # every policy learns the slowdown again, as a server does, so that none gains from another's batches
        batch_runner.slowdown = Slowdown(slowdown, slowdown)
        results.append(_measure_contender(problem, contender, batch_runner))
    progress("replay", len(results), len(contenders))
    first = contenders[0]
    if first.make_residency is None:
        predicted = simulate_policy(problem, first.policy)
    else:
        predicted = simulate_resident(problem, first).outcome
    return MeasuredReplay(
        problem=problem,
        results=tuple(results),
        predicted=build_result(first.policy.name, predicted, problem),
        slowdowns=tuple(batch_runner.slowdowns[: max(1, results[0].outcome.batches)]),
    )


def _measure_contender(problem: ReplayProblem, contender: Contender, batch_runner: _BatchRunner) -> PolicyResult:
    profiles, policy, slowdown = problem.profiles, contender.policy, batch_runner.slowdown
    if problem.targets is None:
        scheduler = adapt_to_slowdown(policy.build, profiles, slowdown)
        outcome = measure_trace(problem.arrivals, problem.options.slo_s, scheduler, batch_runner.run_range)
        return build_result(policy.name, outcome, problem)
    residency = batch_runner.reset_residency(contender)
    server = RealServer(batch_runner.run_requests)
    outcome = replay_with_targets(problem.arrivals, problem.targets, policy, profiles, slowdown, server, residency)
    result = build_result(policy.name, outcome, problem)
    return result if residency is None else replace(result, loads=residency.loads)


class _BatchRunner:
    """Runs batches of rows and tracks the ratio of measured to profiled latency."""

    def __init__(
        self,
        problem: ReplayProblem,
        models: Sequence[ShareModel],
        rows: RequestRows,
        clock: Callable[[], float],
        pool: MemberPool | None,
    ) -> None:
        self.profiles, self.models, self.clock, self.pool = problem.profiles, models, clock, pool
        self.slowdown, self.slowdowns = Slowdown(), list[float]()
        self.count = len(rows.x)
        # rows in a cycle, with room for a batch at the end: a scaled trace has far more requests than rows
        indices = np.arange(self.count + max(profile.max_batch for profile in self.profiles)) % self.count
        self.x, self.extra = rows.x[indices], rows.extra[indices]

    def reset_residency(self, contender: Contender) -> Residency | None:
        """Open the members with which a contender starts, and no others."""
        if self.pool is None or contender.make_residency is None:
            return None
        self.pool.residency = contender.make_residency()
        self.pool.sessions.clear()
        self.pool.open_initial()
        self.pool.take_load_s()
        # opening them is no use that a rule may count
        self.pool.residency = contender.make_residency()
        return self.pool.residency

    def warm_up(self) -> float:
        """Run full batches of every subnet; return the median slowdown of those after the warm-up."""
        for subnet, profile in enumerate(self.profiles):
            if self.pool is not None and not self.pool.residency.can_hold(subnet):
                continue
            for _ in range(WARM_UP + TIMED):
                self.run_range(subnet, 0, profile.max_batch)
            del self.slowdowns[-WARM_UP - TIMED : -TIMED]
        slowdown = float(np.median(self.slowdowns))
        self.slowdowns.clear()
        return slowdown

    def run_range(self, subnet: int, start: int, stop: int) -> None:
        """Serve the requests from ``start`` to ``stop``."""
        offset = start % self.count
        self._run(subnet, slice(offset, offset + stop - start), stop - start)

    def run_requests(self, subnet: int, requests: Sequence[int]) -> None:
        """Serve the requests with some indices."""
        self._run(subnet, np.array(requests) % self.count, len(requests))

    def _run(self, subnet: int, rows: slice | IntArray, size: int) -> None:
        start = self.clock()
        self.models[subnet](self.x[rows], self.extra[rows]).argmax(1)
        load_s = 0.0 if self.pool is None else self.pool.take_load_s()
        measured_s, profiled_s = self.clock() - start - load_s, self.profiles[subnet].estimate_latency(size)
        self.slowdown.update(profiled_s, measured_s)
        self.slowdowns.append(measured_s / profiled_s)
