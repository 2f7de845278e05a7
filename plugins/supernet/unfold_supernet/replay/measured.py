"""A trace in real time: every response is computed by the subnets of the run on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from unfold_supernet._types import IntArray
from unfold_supernet.family.datasets import Dataset
from unfold_supernet.modules.onnx_members import OnnxFamily
from unfold_supernet.networks.supernet import Supernet
from unfold_supernet.replay.baselines import NamedPolicy, PolicyResult
from unfold_supernet.replay.player import RealServer, replay_with_targets
from unfold_supernet.replay.problem import MeasuredReplay, ReplayProblem, scale_trace
from unfold_supernet.replay.simulated import build_result, simulate_policy
from unfold_supernet.scheduling.escalation import get_small_subnet
from unfold_supernet.scheduling.simulator import ReplayOutcome, measure_trace
from unfold_supernet.scheduling.speed import Slowdown, adapt_to_slowdown
from unfoldkit.api import Progress

WARM_UP, TIMED = 2, 5
"""Full batches of each subnet before a trace: to warm up, and to measure the machine's present slowdown."""


def measure_replay(
    problem: ReplayProblem,
    supernet: Supernet | OnnxFamily,
    data: Dataset,
    clock: Callable[[], float],
    progress: Progress,
) -> MeasuredReplay:
    """Replay a trace under every policy in real time.

    Args:
        problem: The replay.
        supernet: The trained subnets.
        data: Examples; requests carry its test rows.
        clock: Source of time, in seconds.
        progress: Receives progress.
    """
    torch.set_num_threads(1)
    batch_runner = _BatchRunner(problem, supernet, data, clock)
    results: list[PolicyResult] = []
    policies = problem.policies
    with torch.inference_mode():
        slowdown = batch_runner.warm_up()
        problem = scale_trace(problem, slowdown)
        for policy in policies:
            # every policy learns the slowdown anew, as a server does, so that none gains from another's batches
            batch_runner.slowdown = Slowdown(slowdown, slowdown)
            outcome = _measure_policy(problem, policy, batch_runner)
            results.append(build_result(policy.name, outcome, problem))
            progress("replay", len(results), len(policies))
    predicted = simulate_policy(problem, problem.policies[0])
    return MeasuredReplay(
        problem=problem,
        results=tuple(results),
        predicted=build_result(policies[0].name, predicted, problem),
        slowdowns=tuple(batch_runner.slowdowns[: max(1, results[0].outcome.batches)]),
    )


def _measure_policy(problem: ReplayProblem, policy: NamedPolicy, batch_runner: _BatchRunner) -> ReplayOutcome:
    profiles = problem.profiles
    if problem.targets is None:
        scheduler = adapt_to_slowdown(policy.build, profiles, batch_runner.slowdown)
        return measure_trace(problem.arrivals, problem.options.slo_s, scheduler, batch_runner.run_range)
    server = RealServer(batch_runner.run_requests)
    return replay_with_targets(problem.arrivals, problem.targets, policy, profiles, batch_runner.slowdown, server)


class _BatchRunner:
    """Runs batches of test rows and tracks the ratio of measured to profiled latency."""

    def __init__(
        self, problem: ReplayProblem, supernet: Supernet | OnnxFamily, data: Dataset, clock: Callable[[], float]
    ) -> None:
        self.profiles, self.clock = problem.profiles, clock
        self.slowdown, self.slowdowns = Slowdown(), list[float]()
        self.count = len(data.test)
        # test rows in a cycle, with room for a batch at the end: a scaled trace has far more requests than rows
        rows = np.resize(data.test, self.count + max(profile.max_batch for profile in self.profiles))
        self.x, self.extra = torch.from_numpy(data.x[rows]), torch.from_numpy(data.extra[rows])
        threshold = problem.options.escalate_below
        self.models = [
            supernet.select(get_small_subnet(profile), profile.fallback, threshold) for profile in self.profiles
        ]

    def warm_up(self) -> float:
        """Run full batches of every subnet; return the median slowdown of those after the warm-up."""
        for subnet, profile in enumerate(self.profiles):
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
        measured_s, profiled_s = self.clock() - start, self.profiles[subnet].estimate_latency(size)
        self.slowdown.update(profiled_s, measured_s)
        self.slowdowns.append(measured_s / profiled_s)
