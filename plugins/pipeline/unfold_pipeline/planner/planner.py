"""All planners on one workload: greedy, optimum with its proof, coarse-grained baselines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from unfold_pipeline.estimator.estimator import Estimator
from unfold_pipeline.estimator.slo import Judge
from unfold_pipeline.planner import coarse_grained, greedy, local_search
from unfold_pipeline.planner.bounds import Bounds
from unfold_pipeline.planner.branch_and_bound import CENT, Found, Search, cheapest
from unfold_pipeline.problem.pipeline import Pipeline, Plan
from unfold_pipeline.problem.sample import Sample

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much may be simulated (queries of a stage; nodes of the proof), whether to try a proof, greedy's steps."""

    most_items: float = 2.5e8
    most_nodes: int = 25_000
    proof: bool = True
    compound: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found for one limit.

    ``bound`` is a proven lower bound in $ an hour; ``searched`` says that the sharp search came to its end, so that
    ``plan`` is the cheapest within the per-stage bounds; ``steps`` are those of greedy.
    """

    judge: Judge
    plan: Plan
    greedy: greedy.Greedy
    searched: bool
    bound: float

    @property
    def cost(self) -> float:
        """The $ an hour of the plan."""
        return self.judge.pipeline.cost(self.plan)

    @property
    def gap(self) -> float:
        """How much cheaper, as a share of the bound, a plan could be at most."""
        return max(0.0, self.cost / self.bound - 1) if self.bound > 0 else 0.0

    @property
    def proven(self) -> bool:
        """Whether nothing can be cheaper (with batches of the profile and powers of two)."""
        return self.cost <= self.bound + CENT


@dataclass(frozen=True, slots=True)
class Unmet:
    """No plan was found; ``searched`` says that the search came to its end, so that there is none to be found."""

    searched: bool


@dataclass(frozen=True, slots=True)
class Baseline:
    """A coarse-grained plan of ``count`` units, its $ an hour and percentile in seconds."""

    unit: coarse_grained.Unit
    count: int
    cost: float
    tail: float


def judge_of(pipeline: Pipeline, samples: Sequence[Sample], limit: float) -> Judge:
    """Return the judge of plans for some samples and a limit in seconds."""
    return Judge(pipeline, tuple(Estimator(pipeline, sample) for sample in samples), limit)


def solve(judge: Judge, effort: Effort, progress: Progress) -> Outcome | None:
    """Return the cheapest plan with greedy's beside it, or ``None`` if none was found."""
    found = seek(judge, effort, progress)
    return found if isinstance(found, Outcome) else None


def seek(judge: Judge, effort: Effort, progress: Progress) -> Outcome | Unmet:
    """Return the cheapest plan with greedy's beside it, or how sure it is that nothing meets the limit."""
    bounds = Bounds(judge.pipeline, judge.estimators)
    progress("greedy", 0, 1)
    first = greedy.plan(judge, compound=effort.compound)
    progress("greedy", 1, 1)
    ceiling = judge.pipeline.cost(first.plan) if first.plan else float("inf")
    found = _search(judge, bounds, effort, ceiling, "search", progress, fluid=False)
    plan = found.plan or first.plan
    if plan is None:
        return Unmet(found.complete)
    if not found.complete:
        plan = local_search.better(judge, plan, effort.most_items)
    bound = bounds.proven_cost(judge.limit)
    outcome = Outcome(judge, plan, first, found.complete, bound)
    outcome = _with_proof(outcome, bounds, effort, progress) if effort.proof else outcome
    return replace(outcome, plan=polished(judge, outcome.plan))


def polished(judge: Judge, plan: Plan) -> Plan:
    """Return the plan of equal price whose percentile no other batch of a single stage lowers."""
    best, tail = plan, judge.tail(plan)
    for index, choice in enumerate(plan):
        for batch in judge.pipeline.stages[index].options[choice.option].batches:
            other = (*best[:index], replace(choice, batch=batch), *best[index + 1 :])
            if (lower := judge.tail(other)) < tail - CENT and judge.meets(other):
                best, tail = other, lower
    return best


def _with_proof(outcome: Outcome, bounds: Bounds, effort: Effort, progress: Progress) -> Outcome:
    found = _search(outcome.judge, bounds, effort, outcome.cost, "proof", progress, fluid=True)
    bound = max(outcome.bound, min(found.bound, outcome.cost))
    if found.plan is not None:
        return replace(outcome, plan=found.plan, bound=found.bound)
    return replace(outcome, bound=bound)


def _search(
    judge: Judge, bounds: Bounds, effort: Effort, ceiling: float, name: str, progress: Progress, *, fluid: bool
) -> Found:
    def told(done: int, total: int) -> None:
        progress(name, min(done, total), total)

    most_nodes = effort.most_nodes if fluid else math.inf
    search = Search(judge, bounds, ceiling, fluid)
    return cheapest(search, most_items=effort.most_items, most_nodes=most_nodes, progress=told)


def baselines(judge: Judge) -> tuple[Baseline, Baseline] | None:
    """Return CG-Peak and CG-Mean, or ``None`` if no unit keeps the limit."""
    unit = coarse_grained.unit(judge)
    if unit is None:
        return None
    return _baseline(judge, unit, coarse_grained.peak_count(judge, unit)), _baseline(
        judge, unit, coarse_grained.mean_count(judge, unit)
    )


def _baseline(judge: Judge, unit: coarse_grained.Unit, count: int) -> Baseline:
    return Baseline(unit, count, judge.pipeline.cost(unit.times(count)), judge.tail(unit.times(count)))
