"""Planning again at a barrier: what has been measured corrects the profile, and the rest is planned for the rest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_tuning.job.allocation import Deal, Plan, slots
from unfold_tuning.job.profile import Machine, Profile, Spread, log_sigma
from unfold_tuning.job.schedule import Group, Stage
from unfold_tuning.planner.planner import Offer, offer
from unfold_tuning.simulator.execution_model import Model, Paces, mean_slowest, slower
from unfold_tuning.simulator.plan_cost import Score, score
from unfold_tuning.trial.worker import Job

HYSTERESIS = 0.1
NEARLY = 0.02


@dataclass(frozen=True, slots=True)
class Belief:
    """How much slower the truth is than the profile: the logarithm's mean and standard deviation."""

    mu: float = 0.0
    sigma: float = 0.05

    def seen(self, ratios: Sequence[float], noise: float) -> Belief:
        """Return the belief after trials took ``ratios`` of their expected times, each with log-deviation ``noise``.

        One ratio a trial: how fast a trial is lasts, so that its iterations do not tell of the others.
        """
        if not ratios:
            return self
        observed = float(np.mean(np.log(ratios))) + noise**2 / 2
        variance = max(noise, 1e-3) ** 2 / len(ratios)
        prior = self.sigma**2
        weight = prior / (prior + variance) if prior > 0 else 0.0
        return Belief(self.mu + weight * (observed - self.mu), math.sqrt(prior * (1 - weight)))

    def applied(self, profile: Profile) -> Profile:
        """Return the profile as it is now believed."""
        return replace(slower(profile, math.exp(self.mu)), error_cv=math.sqrt(math.expm1(self.sigma**2)))


def noise_of(profile: Profile, iters: float) -> float:
    """Return the log-deviation of a trial's ratio after ``iters`` iterations: its lasting speed, and their luck."""
    return math.hypot(
        log_sigma(profile.trial_cv),
        log_sigma(profile.iteration.std / profile.iteration.mean / math.sqrt(max(1.0, iters))),
    )


def expected(profile: Profile, gang: int, machine: Machine) -> float:
    """Return the seconds that an iteration of a trial on ``gang`` accelerators is expected to take."""
    speed = profile.gain(gang, machine.accelerators) * machine.speed
    return profile.iteration.mean / speed * mean_slowest(profile.worker_cv, gang)


def paces_of(ratios: Sequence[float], iters: int, profile: Profile, belief: Belief) -> Paces:
    """Return the paces of trials that took ``ratios`` of their expected times over ``iters`` iterations each.

    Normal and normal in logarithms: a ratio counts by how much trials vary against how much iterations do; the rest
    of it is luck. Relative to the profile as it is believed.
    """
    between = log_sigma(profile.trial_cv) ** 2
    within = math.log1p((profile.iteration.std / profile.iteration.mean) ** 2 / max(1, iters))
    weight = between / (between + within) if between > 0 else 0.0
    factors = tuple(math.exp(weight * (math.log(max(ratio, 1e-9)) - belief.mu)) for ratio in ratios)
    return Paces(factors, math.sqrt(weight * within))


def waited(profile: Profile, seconds: float) -> Profile:
    """Return the profile after new instances came in ``seconds``: half-way, in logarithms, to what was seen."""
    spread = profile.provision
    if spread.mean <= 0 or seconds <= 0:
        return profile
    factor = math.sqrt(seconds / spread.mean)
    return replace(profile, provision=Spread(spread.mean * factor, spread.std * factor))


@dataclass(frozen=True, slots=True)
class Rest:
    """What is planned for the rest: the plan, whether it differs from the old one, and P(on time) of both.

    ``late`` tells that nothing keeps the promise any more; ``fastest`` is then the soonest that can be promised.
    """

    plan: Plan
    changed: bool
    before: float
    after: float
    late: bool
    fastest: float


def believed(profile: Profile) -> Belief:
    """Return the belief before anything was measured."""
    return Belief(0.0, log_sigma(profile.error_cv))


def plan_again(rest: Model, plan: Plan, time_left: float, share: float) -> Rest:
    """Keep the plan of the remaining stages if it still keeps the promise and nothing is a tenth cheaper.

    ``rest`` is the remaining job under the believed profile, with the instances that it holds.
    """
    kept, found = score(rest, plan), offer(rest, share)
    picked = found.pick(time_left)
    before = kept.on_time(time_left)
    soonest = float(found.promised.min())
    if picked is None:
        better = _fastest_in_time(found, time_left)
        gain = better.on_time(time_left) > before + 0.01
        best = better if gain else kept
        return Rest(best.plan, gain, before, best.on_time(time_left), True, soonest)
    if before >= share and picked.cost > (1 - HYSTERESIS) * kept.cost:
        return Rest(plan, False, before, before, False, soonest)
    return Rest(picked.plan, picked.plan != plan, before, picked.on_time(time_left), False, soonest)


def leftover(jobs: Iterable[Job]) -> Stage:
    """Return what is left of a stage that runs: each of its trials with the iterations to its target."""
    return Stage(tuple(Group(1, job.target - job.done, job.done) for job in jobs))


def regrown(deal: Deal, planned: Deal, accelerators: int) -> Deal:
    """Return a running stage's deal on the planned instances: trials that run keep their accelerators."""
    places = slots(planned.instances, deal.gang, accelerators)
    return Deal(planned.instances, deal.gang, places) if places else deal


def _fastest_in_time(found: Offer, time_left: float) -> Score:
    """The cheapest plan that is nearly as likely to be on time as the likeliest: the last points cost the most."""
    chances = [item.on_time(time_left) for item in found.scores]
    near = [item for item, chance in zip(found.scores, chances, strict=True) if chance >= max(chances) - NEARLY]
    return min(near, key=lambda item: item.cost)
