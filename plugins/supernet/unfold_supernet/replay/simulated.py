"""A trace in simulated time, from the latencies measured in training or those of the simulated accelerator."""

from __future__ import annotations

from dataclasses import dataclass, replace

from unfold_supernet.replay.baselines import NamedPolicy, PolicyResult
from unfold_supernet.replay.on_accelerator import AcceleratedSubnets, accelerate_subnets
from unfold_supernet.replay.player import SimulatedServer, replay_with_targets
from unfold_supernet.replay.problem import ReplayProblem, scale_trace
from unfold_supernet.scheduling.simulator import ReplayOutcome, simulate_trace
from unfold_supernet.scheduling.speed import Slowdown

RARELY_USED = 0.001
"""Fraction of the requests below which a subnet is not worth deploying."""
SWITCHING_BASELINE = "swapping models"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedReplay:
    """Outcome of a simulated trace.

    Attributes:
        problem: The replay as simulated: scaled, and with the accelerator's latencies if it serves.
        results: By policy, the spec's own first; the last one loads models instead of sharing weights.
        needed: Fraction of the requests by subnet, rarely used subnets left out.
        reduced: Result of the spec's policy with the needed subnets alone.
        accelerated: Costs on the accelerator, if it serves.
    """

    problem: ReplayProblem
    results: tuple[PolicyResult, ...]
    needed: dict[str, float]
    reduced: PolicyResult
    accelerated: AcceleratedSubnets | None


def simulate_replay(problem: ReplayProblem) -> SimulatedReplay:
    """Simulate a trace under every policy, and find the subnets that the spec's policy needs."""
    accelerated = None
    if problem.accelerator is not None:
        accelerated = accelerate_subnets(problem.accelerator, problem.profiles)
        problem = replace(problem, profiles=accelerated.profiles, switch_s=accelerated.switch_s)
    problem = scale_trace(problem)
    policies = problem.policies
    results = [build_result(policy.name, simulate_policy(problem, policy), problem) for policy in policies]
    switching = simulate_policy(problem, policies[0], problem.switch_s)
    results.append(build_result(SWITCHING_BASELINE, switching, problem))
    usage = results[0].outcome.count_usage(problem.profiles)
    needed = {name: fraction for name, fraction in usage.items() if fraction >= RARELY_USED}
    deployed = replace(problem, profiles=tuple(p for p in problem.profiles if p.name in needed))
    outcome = simulate_policy(deployed, deployed.policies[0])
    return SimulatedReplay(
        problem=problem,
        results=tuple(results),
        needed=needed,
        reduced=build_result(policies[0].name, outcome, deployed),
        accelerated=accelerated,
    )


def simulate_policy(problem: ReplayProblem, policy: NamedPolicy, switch_s: float = 0.0) -> ReplayOutcome:
    """Simulate a trace under one policy; ``switch_s`` is the cost of a model switch in seconds."""
    if problem.targets is None:
        scheduler = policy.build(problem.profiles)
        return simulate_trace(problem.arrivals, problem.options.slo_s, problem.profiles, scheduler, switch_s)
    server = SimulatedServer(problem.profiles, switch_s)
    return replay_with_targets(problem.arrivals, problem.targets, policy, problem.profiles, Slowdown(), server)


def build_result(name: str, outcome: ReplayOutcome, problem: ReplayProblem) -> PolicyResult:
    """Attach name and served accuracy to an outcome."""
    return PolicyResult(name, outcome, outcome.compute_accuracy(problem.profiles))
