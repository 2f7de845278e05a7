"""A run in simulation that plans again at its barriers: the truth is one model, what is believed another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unfold_tuning.job.allocation import Plan
from unfold_tuning.job.profile import Profile
from unfold_tuning.planner.baselines import Goal
from unfold_tuning.planner.replan import believed, expected, noise_of, plan_again, waited
from unfold_tuning.simulator.execution_model import Floats, Model
from unfold_tuning.simulator.plan_cost import score


@dataclass(frozen=True, slots=True)
class Played:
    """How a simulated run ended: seconds, dollars, and the plan that it came to."""

    seconds: float
    dollars: float
    plan: Plan


def play(truth: Model, sample: int, believed_model: Model, plan: Plan, goal: Goal) -> Played:
    """Run sample number ``sample`` of the truth, planning the rest again after each stage from what was measured.

    ``believed_model`` is the job under the profile that the plan was made from.
    """
    run, profile = truth.one(sample), believed_model.profile
    belief = believed(profile)
    for index in range(len(plan) - 1):
        profile = _waited(profile, run, plan, index)
        noise = noise_of(profile, float(run.draws[index].lengths.mean()))
        belief = belief.seen(_ratios(run, believed_model, index, plan[index].gang), noise)
        clock = float(score(run, plan).ends[index, 0])
        rest = believed_model.with_profile(belief.applied(profile)).rest(index + 1, plan[index].instances)
        plan = (*plan[: index + 1], *plan_again(rest, plan[index + 1 :], goal.deadline - clock, goal.share).plan)
    end = score(run, plan)
    return Played(float(end.seconds[0]), float(end.dollars[0]), plan)


def _waited(profile: Profile, run: Model, plan: Plan, index: int) -> Profile:
    grown = index == 0 or plan[index].instances > plan[index - 1].instances
    return waited(profile, float(run.provision(index)[0])) if grown else profile


def _ratios(run: Model, believed_model: Model, index: int, gang: int) -> Sequence[float]:
    profile = believed_model.profile
    seconds: Floats = profile.start.mean + run.draws[index].lengths * expected(profile, gang, run.machine)
    ratios = np.asarray(run.trials(index, gang)[0] / seconds)
    return [float(ratio) for ratio in ratios]
