"""The cheapest plan that meets the SLO on a stated share of fresh samples: scenarios join the search until it does.

Each round plans for the sample and the scenarios so far, and tries the plan on all scenarios. If too few are met, the
scenario that is the hardest of those to meet joins. It is constraint generation for a chance constraint (Calafiore and
Campi, "The scenario approach", 2006): few scenarios decide the plan, and the search simulates only those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from unfold_pipeline._types import FloatArray, IndexArray
from unfold_pipeline.engine.planner.problem import EngineProblem
from unfold_pipeline.engine.simulation.workload import EngineRequests
from unfold_pipeline.estimator.estimator import Estimator
from unfold_pipeline.estimator.slo import SloChecker
from unfold_pipeline.estimator.slo_on_fresh_samples import (
    DRAWS,
    FreshShare,
    Scenario,
    count_draws,
    count_required,
    draw_scenarios,
    list_scenario_tails,
    measure_fresh_share,
)
from unfold_pipeline.planner.planner import NoPlan, Progress, Solution, find_plan
from unfold_pipeline.problem.pipeline import Plan
from unfold_pipeline.problem.problem import Problem
from unfold_pipeline.problem.sample import bound_fresh_share, draw_fresh_rows

MAX_ROUNDS = 12
MAX_ITEMS = 2e7
MIN_DRAWS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidentPlan:
    """A plan, and on which share of fresh samples it meets the SLO.

    Attributes:
        solution: The plan; its checker holds the sample and the scenarios that decided.
        share: On how many scenarios it meets the SLO; ``None`` if nothing draws them.
        base_cost: $/h of the plan for the sample alone.
        is_reached: Whether it meets as many as the confidence requires.
    """

    solution: Solution
    share: FreshShare | None
    base_cost: float
    is_reached: bool = True


def find_confident_plan(checker: SloChecker, problem: Problem, progress: Progress) -> ConfidentPlan | NoPlan:
    """Return the cheapest plan that meets the SLO on the sample and, with a confidence, on fresh samples.

    Without a confidence the plan is that of the sample alone, with the share of fresh samples to expect.
    """
    result = find_plan(checker, problem.budget, progress)
    if isinstance(result, NoPlan):
        return result
    base_cost, confidence = result.hourly_cost, problem.confidence
    if not problem.samplers:
        return ConfidentPlan(solution=result, share=None, base_cost=base_cost)
    scenarios = draw_scenarios(problem.samplers, _limit_draws(checker, confidence), problem.seed)
    required = 0 if confidence is None else count_required(confidence, len(scenarios))
    limit, joined = problem.max_fresh_share, set[int]()
    while True:
        tails_s = list_scenario_tails(checker.pipeline, result.plan, scenarios)
        share = measure_fresh_share(tails_s, checker.slo_s, limit)
        has_enough = share.kept >= required
        is_reached = has_enough and (confidence is None or limit >= confidence)
        if required:
            progress("scenarios", min(share.kept, required), required)
        ranked = [int(index) for index in np.argsort(tails_s, kind="stable")[:required]]
        hardest = next((index for index in reversed(ranked) if index not in joined), None)
        plan = ConfidentPlan(solution=result, share=share, base_cost=base_cost, is_reached=is_reached)
        if has_enough or hardest is None or len(joined) == MAX_ROUNDS:
            return plan
        joined.add(hardest)
        following = find_plan(add_scenario(result.checker, scenarios[hardest]), problem.budget, progress)
        if isinstance(following, NoPlan):
            return plan
        result = following


def measure_plan_share(checker: SloChecker, problem: Problem, plan: Plan) -> FreshShare | None:
    """Return on how many fresh samples a plan meets the SLO; ``None`` if nothing draws them."""
    if not problem.samplers:
        return None
    scenarios = draw_scenarios(problem.samplers, _limit_draws(checker, problem.confidence), problem.seed)
    tails_s = list_scenario_tails(checker.pipeline, plan, scenarios)
    return measure_fresh_share(tails_s, checker.slo_s, problem.max_fresh_share)


def add_scenario(checker: SloChecker, scenario: Scenario) -> SloChecker:
    """Return a checker that requires the SLO on a scenario too."""
    added = tuple(Estimator(checker.pipeline, sample) for sample in scenario)
    return replace(checker, estimators=(*checker.estimators, *added), scenarios=checker.scenarios + len(scenario))


def _limit_draws(checker: SloChecker, confidence: float | None) -> int:
    """Return how many fresh samples to draw; fewer of a large sample where only a rough share is wanted."""
    draws = count_draws(confidence)
    if confidence is not None:
        return draws
    items = sum(visits.query.size for sample in checker.samples for visits in sample.visits)
    return min(draws, max(MIN_DRAWS, int(MAX_ITEMS / max(1, items))))


MIN_REQUESTS = 50
MIN_DRAWS = 8
MAX_TOKENS = 1e8
"""Generated tokens of all samples, which the simulation takes some seconds for."""


def draw_fresh_requests(requests: EngineRequests, rng: np.random.Generator) -> EngineRequests:
    """Return requests that vary from those of a trace as two draws of its traffic vary from each other.

    They keep their lengths, and the prompts that they share with others.
    """
    return copy_requests(requests, *draw_fresh_rows(requests.arrival_s, rng))


def copy_requests(requests: EngineRequests, rows: IndexArray, arrival_s: FloatArray) -> EngineRequests:
    """Return copies of requests, which share what these share with others, and nothing else."""
    chosen = requests.reorder(rows, arrival_s)
    if requests.content is None or chosen.content is None:
        # nothing is shared
        return chosen
    uses = np.bincount(requests.content, minlength=requests.contents)
    own = np.flatnonzero(uses[chosen.content] == 1)
    content = chosen.content.copy()
    content[own] = requests.contents + np.arange(own.size)
    return replace(chosen, content=content, contents=requests.contents + own.size)


def measure_fresh_request_share(
    problem: EngineProblem, meets_targets: Callable[[EngineProblem], bool], seed: int
) -> FreshShare | None:
    """Return on how many fresh samples of its requests a problem's targets are met; ``None`` for few, or for a batch.

    Args:
        problem: What was planned, with the requests as they arrive at the first stage.
        meets_targets: Simulates the plan on the requests of a problem.
        seed: Seed of the samples.
    """
    requests = problem.requests
    if len(requests) < MIN_REQUESTS or requests.arrival_s[-1] <= requests.arrival_s[0]:
        return None
    draws = int(np.clip(MAX_TOKENS / max(1, int(requests.output_tokens.sum())), MIN_DRAWS, DRAWS))
    kept = 0
    for draw in range(draws):
        sample = draw_fresh_requests(requests, np.random.default_rng([seed, 8, draw]))
        kept += meets_targets(replace(problem, requests=sample))
    return FreshShare(kept, draws, bound_fresh_share(requests.arrival_s))
