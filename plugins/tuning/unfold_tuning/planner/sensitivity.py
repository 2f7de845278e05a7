"""Sensitivity of a plan: to errors of the profile, to the deadline, and to the loss of all spot instances at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_tuning.job.allocation import Plan
from unfold_tuning.job.profile import LogNormal, Profile
from unfold_tuning.planner.baselines import Goal, select_cheapest, simulate_static_clusters
from unfold_tuning.planner.planner import Candidate, select_best
from unfold_tuning.planner.replan import estimate_iteration_s
from unfold_tuning.planner.rubberband_greedy import plan_greedily
from unfold_tuning.simulator.execution_model import ExecutionModel, build_execution_model, scale_iteration
from unfold_tuning.simulator.plan_cost import SimulatedPlan, simulate_plan

CURVE_SAMPLES = 1000
CURVE_POINTS = 8


@dataclass(frozen=True, slots=True)
class DeadlinePoint:
    """The cost of the cheapest plan found at one deadline, and the greedy's plan (each ``None`` if there is none)."""

    deadline_s: float
    cost_usd: float | None
    greedy: SimulatedPlan | None


def simulate_profile_errors(model: ExecutionModel, plan: Plan, goal: Goal) -> list[tuple[str, float]]:
    """Compute P(on time) of a plan if the truth differs from the profile, by name of the difference."""
    profile = model.profile
    provision = profile.provision
    changes = {
        "iterations 3 % slower": scale_iteration(profile, 1.03),
        "provisioning twice as long": replace(profile, provision=LogNormal(2 * provision.mean, 2 * provision.std)),
    }
    if model.paces is None:
        changes["variation 50 % larger"] = _widen(profile)
    return [
        (name, simulate_plan(model.with_profile(changed), plan).estimate_on_time_probability(goal.deadline_s))
        for name, changed in changes.items()
    ]


def simulate_total_loss(candidate: Candidate, plan: Plan, goal: Goal) -> float:
    """Compute P(on time) if all spot instances are lost at once, halfway through a checkpoint interval.

    The loss falls into the longest stage and costs half an interval, new instances and the start of the trials.
    """
    model = candidate.model
    profile, machine = model.profile, model.machine
    ends = simulate_plan(model, plan).ends
    longest = int(np.diff(ends, axis=0, prepend=0.0).mean(axis=1).argmax())
    interval = min(machine.checkpoint_iters, max(model.stages[longest].list_iterations()))
    repeated_s = estimate_iteration_s(profile, plan[longest].workers, machine) * interval / 2
    delay_s = repeated_s + profile.provision.mean + profile.startup.mean + profile.start.mean
    return float((ends[-1] + delay_s <= goal.deadline_s).mean())


def sweep_deadlines(candidates: Sequence[Candidate], goal: Goal, seed: int) -> list[DeadlinePoint]:
    """Plan exactly and greedily at deadlines from the earliest possible to where one instance is enough."""
    first = candidates[0].model
    samples = min(CURVE_SAMPLES, first.samples)
    small = (
        build_execution_model(first.stages, first.profile, first.machine, samples, seed)
        if first.paces is None
        else first.select_first_runs(samples)
    )
    earliest_s = min(float(candidate.guaranteed_s.min()) for candidate in candidates)
    latest_s = max(float(candidate.guaranteed_s.max()) for candidate in candidates)
    deadlines = np.geomspace(earliest_s * 1.001, max(latest_s, earliest_s * 1.01), CURVE_POINTS)
    models = [small.with_machine(candidate.model.machine) for candidate in candidates]
    statics = [simulate_static_clusters(model) for model in models]
    return [
        _plan_at_deadline(candidates, models, statics, Goal(float(deadline_s), goal.confidence))
        for deadline_s in deadlines
    ]


def build_cost_steps(plans: Sequence[SimulatedPlan], confidence: float) -> list[tuple[float, float]]:
    """Build the step curve of ``(deadline in seconds, dollars)`` from which on each plan is the cheapest on time."""
    steps: list[tuple[float, float]] = []
    for seconds, cost_usd in sorted(
        (plan.compute_guaranteed_seconds(confidence), plan.mean_cost_usd) for plan in plans
    ):
        if not steps or cost_usd < steps[-1][1]:
            steps.append((seconds, cost_usd))
    return steps


def _plan_at_deadline(
    candidates: Sequence[Candidate],
    models: Sequence[ExecutionModel],
    statics: Sequence[Sequence[SimulatedPlan]],
    goal: Goal,
) -> DeadlinePoint:
    cheapest = select_best(candidates, goal.deadline_s)
    starts = [select_cheapest(plans, goal).plan for plans in statics]
    greedy = [plan_greedily(model, goal, start).plan for model, start in zip(models, starts, strict=True)]
    # simulated on the runs of the cheapest plan found, so that their costs can be compared to the cent
    plans = [
        simulate_plan(candidate.model, plan.plan) for candidate, plan in zip(candidates, greedy, strict=True) if plan
    ]
    return DeadlinePoint(
        goal.deadline_s,
        cheapest.plan.mean_cost_usd if cheapest else None,
        min(plans, key=lambda plan: plan.mean_cost_usd, default=None),
    )


def _widen(profile: Profile) -> Profile:
    iteration = profile.iteration
    return replace(profile, iteration=LogNormal(iteration.mean, 1.5 * iteration.std), trial_cv=1.5 * profile.trial_cv)
