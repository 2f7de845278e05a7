"""Chooses the plan for the thrifty market: the cheapest that ends on time with spot instances and an on-demand net.

Larger clusters than on demand are often best: speed buys slack, and slack buys spot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_tuning.job.availability import BoolArray
from unfold_tuning.job.problem import Problem
from unfold_tuning.job.profile import SpotTerms
from unfold_tuning.planner.planner import Candidate, Selection, Solution, solve, thin_indices
from unfold_tuning.simulator.plan_cost import SimulatedPlan
from unfold_tuning.simulator.spot_or_on_demand import (
    MAX_PATH_STEPS,
    NET_CHANGES,
    STEP_S,
    ThriftyRuns,
    add_unseen_outages,
    estimate_change_s,
    measure_progress,
    sample_availability,
    sample_poisson_losses,
    select_runs,
    simulate_thrifty,
)
from unfoldkit.api import user_error

COMPARED_RUNS = 300
COMPARED_PLANS = 24
JUDGED_RUNS = 1000
UNSEEN_STREAM = 1 << 24


def solve_job(problem: Problem, progress: Callable[[str, int, int], None]) -> Solution:
    """Find the plan of a job on any market; see :func:`~unfold_tuning.planner.planner.solve`.

    On the thrifty market the on-demand plan is kept if no plan leaves enough slack for spot instances.
    """
    solution = solve(problem, progress)
    if solution.selected is None:
        _require_known_spans(problem, progress)
    if problem.deadline_s is None or all(machine.spot is None for machine in problem.machines):
        return solution
    thrifty = select_thrifty(solution.candidates, problem.deadline_s, problem.confidence, problem.seed)
    if thrifty is None:
        return solution
    plan, budget_usd = thrifty.selection.plan, problem.budget_usd
    is_over = budget_usd is not None and plan.estimate_within_budget_probability(budget_usd) < problem.confidence
    return replace(solution, selected=thrifty.selection, is_over_budget=is_over, thrifty=thrifty.runs)


def _require_known_spans(problem: Problem, progress: Callable[[str, int, int], None]) -> None:
    """Require the speed-up across instances if a plan exists only as long as it equals that within one.

    Raises:
        UnfoldError: Such a plan exists; whether it is on time is unknown.
    """
    profile, machines = problem.profile, problem.machines
    sizes = sorted({size for machine in machines for size in profile.list_unmeasured_spans(machine.accelerators)})
    if not sizes:
        return
    assumed = tuple(sorted((dict(profile.speedup) | dict(profile.across)).items()))
    if solve(replace(problem, profile=replace(profile, across=assumed)), progress).selected is None:
        return
    counts = " or ".join(map(str, sizes))
    message = f"a plan needs trials of {counts} accelerators over several instances, at an unknown speed-up"
    hint = f"write profile.across: {{{sizes[-1]}: ...}}, or measure it: trainable.span, then unfold profile"
    raise user_error(message, key="profile.across", hint=hint)


@dataclass(frozen=True, slots=True)
class ThriftySelection:
    """A plan for the thrifty market, with its simulated runs, and the same plan entirely on demand."""

    selection: Selection
    runs: ThriftyRuns
    on_demand: SimulatedPlan


def select_thrifty(
    candidates: Sequence[Candidate], deadline_s: float, confidence: float, seed: int
) -> ThriftySelection | None:
    """Select the cheapest thrifty plan over all machines that have a spot price.

    Args:
        candidates: Machines with their on-demand frontiers.
        deadline_s: The deadline.
        confidence: Probability of the guarantee.
        seed: Seed of the market.

    Returns:
        The plan, or ``None`` if no plan leaves enough slack for a change of place.
    """
    selections = [
        _select_on_machine(candidate, terms, deadline_s, confidence, seed)
        for candidate in candidates
        if (terms := candidate.model.machine.spot) is not None
    ]
    found = [selection for selection in selections if selection is not None]
    return min(found, key=lambda item: item.selection.plan.mean_cost_usd, default=None)


def _select_on_machine(
    candidate: Candidate, terms: SpotTerms, deadline_s: float, confidence: float, seed: int
) -> ThriftySelection | None:
    limit_s = deadline_s - NET_CHANGES * estimate_change_s(candidate.model.profile) - STEP_S
    fitting = [index for index, seconds in enumerate(candidate.guaranteed_s) if seconds <= limit_s]
    fitting = _drop_dominated(candidate, fitting)
    plans = [candidate.plans[fitting[index]] for index in thin_indices(len(fitting), COMPARED_PLANS)] if fitting else []
    available = sample_market(terms, deadline_s, COMPARED_RUNS, seed)
    cheapest: SimulatedPlan | None = None
    min_usd = float("inf")
    for plan in plans:
        runs = run_thrifty(candidate, plan, available, deadline_s)
        cost_usd = float(runs.cost_usd.mean())
        if cost_usd < min_usd and float((runs.seconds <= deadline_s).mean()) >= confidence:
            cheapest, min_usd = plan, cost_usd
    if cheapest is None:
        return None
    available = sample_market(terms, deadline_s, JUDGED_RUNS, seed + 1)
    if terms.log is not None:
        rng = np.random.default_rng([seed, UNSEEN_STREAM])
        available = add_unseen_outages(available, terms.log.select_trailing(), rng)
    runs = run_thrifty(candidate, cheapest, available, deadline_s)
    judged = replace(cheapest, seconds=runs.seconds, cost_usd=runs.cost_usd)
    return ThriftySelection(Selection(candidate, judged), runs, cheapest)


def _drop_dominated(candidate: Candidate, indices: Sequence[int]) -> list[int]:
    """Drop plans that another one beats in guaranteed time and expected cost; fastest first."""
    kept: list[int] = []
    for index in sorted(indices, key=lambda item: (candidate.guaranteed_s[item], candidate.plans[item].mean_cost_usd)):
        if not kept or candidate.plans[index].mean_cost_usd < candidate.plans[kept[-1]].mean_cost_usd:
            kept.append(index)
    return kept


def run_thrifty(
    candidate: Candidate, plan: SimulatedPlan, available: BoolArray, deadline_s: float, begin: int = 0
) -> ThriftyRuns:
    """Simulate the policy with a plan of a candidate on a sampled market.

    Args:
        candidate: The machine.
        plan: One of its plans on demand, with all runs.
        available: Availability: [zones, samples, steps].
        deadline_s: The deadline.
        begin: The first of the plan's runs to use.
    """
    count = min(available.shape[1], candidate.model.samples - begin)
    progress = select_runs(measure_progress(candidate.model, plan), slice(begin, begin + count))
    return simulate_thrifty(progress, available[:, :count], deadline_s, candidate.model.machine)


def sample_market(terms: SpotTerms, deadline_s: float, samples: int, seed: int) -> BoolArray:
    """Sample the availability of a market up to the deadline: [zones, samples, steps]."""
    rng = np.random.default_rng([seed, 1 << 23])
    steps = int(min(np.ceil(deadline_s / STEP_S) + 1, MAX_PATH_STEPS))
    if terms.log is None:
        return sample_poisson_losses(terms.interruptions_per_hour, steps, samples, rng)
    return sample_availability(terms.log.select_trailing(), steps, samples, rng)
