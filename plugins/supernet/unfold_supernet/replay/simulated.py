"""A trace in simulated time, from the latencies measured in training or those of the simulated accelerator."""

from __future__ import annotations

from dataclasses import dataclass, replace

from unfold_supernet.replay.baselines import NamedPolicy, PolicyResult
from unfold_supernet.replay.on_accelerator import AcceleratedSubnets, accelerate_subnets
from unfold_supernet.replay.player import SimulatedServer, replay_with_targets
from unfold_supernet.replay.problem import ReplayProblem, scale_trace
from unfold_supernet.replay.residency import (
    ResidencyPlan,
    list_contenders,
    make_targets,
    plan_residency,
    simulate_resident,
)
from unfold_supernet.scheduling.simulator import ReplayOutcome, simulate_trace
from unfold_supernet.scheduling.speed import Slowdown
from unfoldkit.api import Progress

RARELY_USED = 0.001
"""Fraction of the requests below which a subnet is not worth deploying."""
SWITCHING_BASELINE = "swapping models"
UNLIMITED_BASELINE = "memory for all"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedReplay:
    """Outcome of a simulated trace.

    Attributes:
        problem: The replay as simulated: scaled, and with the accelerator's latencies if it serves.
        results: By policy, the spec's own first.
        needed: Fraction of the requests by subnet, rarely used subnets left out.
        reduced: Result of the spec's policy with the needed subnets alone.
        accelerated: Costs on the accelerator, if it serves.
        residency: Which members stay in memory, if they do not all fit.
    """

    problem: ReplayProblem
    results: tuple[PolicyResult, ...]
    needed: dict[str, float]
    reduced: PolicyResult
    accelerated: AcceleratedSubnets | None
    residency: ResidencyPlan | None = None


def simulate_replay(problem: ReplayProblem, progress: Progress | None = None) -> SimulatedReplay:
    """Simulate a trace under every policy, and find the subnets that the spec's policy needs."""
    if problem.is_memory_short:
        return _simulate_short_memory(problem, progress)
    accelerated = None
    if problem.accelerator is not None:
        accelerated = accelerate_subnets(problem.accelerator, problem.profiles)
        problem = replace(problem, profiles=accelerated.profiles, switch_s=accelerated.switch_s)
    problem = scale_trace(problem)
    policies = problem.policies
    results = [build_result(policy.name, simulate_policy(problem, policy), problem) for policy in policies]
    if problem.switch_s is not None:
        switching = simulate_policy(problem, policies[0], problem.switch_s)
        results.append(build_result(SWITCHING_BASELINE, switching, problem))
    needed = _find_needed(problem, results[0])
    deployed = replace(problem, profiles=tuple(p for p in problem.profiles if p.name in needed))
    outcome = simulate_policy(deployed, deployed.policies[0])
    return SimulatedReplay(
        problem=problem,
        results=tuple(results),
        needed=needed,
        reduced=build_result(policies[0].name, outcome, deployed),
        accelerated=accelerated,
    )


def _simulate_short_memory(problem: ReplayProblem, progress: Progress | None) -> SimulatedReplay:
    """Simulate members that do not all fit: planned residency, LRU, LFU, single members, and memory for all."""
    problem = scale_trace(problem)
    problem = replace(problem, targets=make_targets(problem))
    plan = plan_residency(problem, progress)
    results = []
    for contender in list_contenders(problem, plan):
        resident = simulate_resident(problem, contender)
        result = build_result(contender.policy.name, resident.outcome, problem)
        results.append(replace(result, loads=resident.loads))
    outcome = simulate_policy(problem, problem.policies[0])
    results.append(replace(build_result(UNLIMITED_BASELINE, outcome, problem), loads=0))
    return SimulatedReplay(
        problem=problem,
        results=tuple(results),
        needed=_find_needed(problem, results[0]),
        reduced=results[0],
        accelerated=None,
        residency=plan,
    )


def _find_needed(problem: ReplayProblem, result: PolicyResult) -> dict[str, float]:
    usage = result.outcome.count_usage(problem.profiles)
    return {name: fraction for name, fraction in usage.items() if fraction >= RARELY_USED}


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
