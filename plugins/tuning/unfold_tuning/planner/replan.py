"""Planning again during a run: measurements correct the profile, and the remaining job gets the remaining time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_tuning.job.allocation import Allocation, Plan, count_slots
from unfold_tuning.job.profile import Machine, Profile, compute_log_sigma
from unfold_tuning.job.schedule import Group, Stage
from unfold_tuning.planner.planner import Candidate, evaluate_machine
from unfold_tuning.simulator.execution_model import (
    ExecutionModel,
    TrialSlowdowns,
    compute_slowest_factor,
    scale_iteration,
)
from unfold_tuning.simulator.plan_cost import SimulatedPlan, simulate_plan
from unfold_tuning.trial.worker import TrialJob

HYSTERESIS = 0.1
"""A plan on time is replaced only if more than this fraction of its cost is saved."""
MIN_GAIN = 0.01
"""A late plan is replaced only if the probability of being on time grows by more."""
MAX_REQUIRED = 0.99
"""A plan is never kept only because it is on time with more than this probability."""
NEAR_BEST = 0.02
"""Probabilities of being on time within this distance of the best count as equal."""


@dataclass(frozen=True, slots=True)
class Posterior:
    """Posterior of the profile's error: the log of the true over the profiled iteration time, as a normal."""

    mu: float = 0.0
    sigma: float = 0.05

    def update(self, ratios: Sequence[float], noise: float) -> Posterior:
        """Update with the measured over expected times of trials.

        Args:
            ratios: One ratio per trial. A trial's speed is lasting, so more iterations of one trial say nothing about
                the others.
            noise: Log-standard deviation of each ratio.
        """
        if not ratios:
            return self
        observed = float(np.mean(np.log(ratios))) + noise**2 / 2
        variance = max(noise, 1e-3) ** 2 / len(ratios)
        prior = self.sigma**2
        weight = prior / (prior + variance) if prior > 0 else 0.0
        return Posterior(self.mu + weight * (observed - self.mu), math.sqrt(prior * (1 - weight)))

    def apply_to(self, profile: Profile) -> Profile:
        """Return the profile with its iteration time and error corrected."""
        return replace(scale_iteration(profile, math.exp(self.mu)), error_cv=math.sqrt(math.expm1(self.sigma**2)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Replan:
    """The plan of the remaining job.

    Attributes:
        plan: The plan.
        is_changed: Whether it differs from the plan so far.
        on_time_after: Probability of being on time with this plan.
        is_late: Whether no plan gives the guarantee any more.
    """

    plan: Plan
    is_changed: bool
    on_time_after: float
    is_late: bool


def build_prior(profile: Profile) -> Posterior:
    """Build the prior, before any measurement, from the error that the profile states."""
    return Posterior(0.0, compute_log_sigma(profile.error_cv))


def estimate_ratio_std(profile: Profile, iters: float) -> float:
    """Estimate the log-standard deviation of a trial's time ratio after ``iters`` iterations."""
    iteration_cv = profile.iteration.std / profile.iteration.mean
    return math.hypot(compute_log_sigma(profile.trial_cv), compute_log_sigma(iteration_cv / math.sqrt(max(1.0, iters))))


def estimate_iteration_s(profile: Profile, workers: int, machine: Machine) -> float:
    """Compute the expected seconds of an iteration of a trial on ``workers`` accelerators."""
    speed = profile.get_speedup(workers, machine.accelerators) * machine.speed
    return profile.iteration.mean / speed * compute_slowest_factor(profile.worker_cv, workers)


def estimate_slowdowns(ratios: Sequence[float], iters: int, profile: Profile, posterior: Posterior) -> TrialSlowdowns:
    """Estimate the lasting slowdown of each trial from its measured over expected time.

    A normal-normal model in logarithms: a ratio counts in proportion to the variation between trials against that of
    iterations; the rest of it is noise.

    Args:
        ratios: One ratio per trial.
        iters: Iterations that each trial has run.
        profile: The profile before correction.
        posterior: Its correction; the slowdowns are relative to the corrected profile.
    """
    between = compute_log_sigma(profile.trial_cv) ** 2
    within = math.log1p((profile.iteration.std / profile.iteration.mean) ** 2 / max(1, iters))
    weight = between / (between + within) if between > 0 else 0.0
    factors = tuple(math.exp(weight * (math.log(max(ratio, 1e-9)) - posterior.mu)) for ratio in ratios)
    return TrialSlowdowns(factors, math.sqrt(weight * within))


def replan_remaining(remaining: ExecutionModel, plan: Plan, time_left_s: float, confidence: float) -> Replan:
    """Keep the plan of the remaining stages if it gives the guarantee and no plan as sure saves much for its time.

    Otherwise take the cheapest plan that gives it, or the cheapest of those that are nearly the most likely.

    Args:
        remaining: The remaining job under the corrected profile, with the instances that run.
        plan: Its plan so far.
        time_left_s: Time to the deadline.
        confidence: Probability of the guarantee.
    """
    current, candidate = simulate_plan(remaining, plan), evaluate_machine(remaining, confidence)
    before = current.estimate_on_time_probability(time_left_s)
    cheapest = candidate.select_cheapest(time_left_s)
    if before >= confidence:
        # P(on time) of a kept plan is a martingale: exchanging a sure plan for one that is just sure enough at every
        # barrier would end below the guarantee
        required = max(confidence, min(before, MAX_REQUIRED))
        exchange = _select_cheapest_exchange(candidate, current, time_left_s, required)
        selected = exchange or current
    elif cheapest is not None:
        selected = cheapest
    else:
        likely = _select_most_likely(candidate, time_left_s)
        is_better = likely.estimate_on_time_probability(time_left_s) > before + MIN_GAIN
        selected = likely if is_better else current
    is_changed = selected.plan != plan
    return Replan(
        plan=selected.plan,
        is_changed=is_changed,
        on_time_after=selected.estimate_on_time_probability(time_left_s),
        is_late=cheapest is None and before < confidence,
    )


def _select_cheapest_exchange(
    candidate: Candidate, current: SimulatedPlan, time_left_s: float, required: float
) -> SimulatedPlan | None:
    """Select the cheapest plan that is as sure as required, if the dollars that it saves outweigh the slack it takes.

    The posterior does not contain changes of pace that it has no reason to expect, and only slack absorbs one. A plan
    that takes some of the slack has to save a larger fraction of the remaining cost than it takes of the slack.
    """
    cost_usd, seconds = current.mean_cost_usd, current.compute_guaranteed_seconds(candidate.confidence)
    slack_s = max(time_left_s - seconds, 1e-9)
    sure = [
        plan
        for plan, guaranteed_s in zip(candidate.plans, candidate.guaranteed_s, strict=True)
        if cost_usd - plan.mean_cost_usd > max(HYSTERESIS, (guaranteed_s - seconds) / slack_s) * cost_usd
        and plan.estimate_on_time_probability(time_left_s) >= required
    ]
    return min(sure, key=lambda plan: plan.mean_cost_usd, default=None)


def _select_most_likely(candidate: Candidate, time_left_s: float) -> SimulatedPlan:
    """Select the cheapest plan that is nearly the most likely to be on time: the last points cost the most."""
    probabilities = [plan.estimate_on_time_probability(time_left_s) for plan in candidate.plans]
    threshold = max(probabilities) - NEAR_BEST
    likely = [
        plan for plan, probability in zip(candidate.plans, probabilities, strict=True) if probability >= threshold
    ]
    return min(likely, key=lambda plan: plan.mean_cost_usd)


def build_remaining_stage(jobs: Iterable[TrialJob]) -> Stage:
    """Build the remaining work of a running stage: each of its trials with the iterations to its target."""
    return Stage(tuple(Group(1, job.target - job.done, job.done) for job in jobs))


def rescale_allocation(running: Allocation, planned: Allocation, accelerators: int) -> Allocation:
    """Rescale a running stage to the planned instances; running trials keep their number of workers."""
    slots = count_slots(planned.instances, running.workers, accelerators)
    return Allocation(planned.instances, running.workers, slots) if slots else running
