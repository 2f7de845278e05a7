"""The Pareto front of whole cascades: the gates of each stage are searched exactly, then stages are combined.

One stage: the exact front over its chains. Two stages: for each point of the first front, cases are routed, the second
stage is searched exactly on the cases of each group, and the fronts of the groups are added. Losses and costs add up
over groups, so the Minkowski sum is exact. Losses count the final label: a case in the wrong group is always lost.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.data.error_costs import ErrorCosts
from unfold_cascade.gates.chains import Chain, ChainFront, Tables, list_chains, search_chains
from unfold_cascade.gates.pareto import Front, add_fronts, find_pareto_points, thin_front
from unfold_cascade.gates.soft import learn_cuts
from unfold_cascade.planner.gate_scores import GateScorer, assign_folds
from unfold_cascade.planner.policy import (
    Policy,
    StagePolicy,
    exit_answers,
    find_exits,
    marginal_cost,
    path_cost,
    second_stage_cost,
)
from unfold_cascade.planner.problem import GateOptions
from unfold_cascade.planner.score_tables import ScoreTable, ScoreTables
from unfoldkit.api import Progress, ignore_progress

FIRST_STAGE_POINTS = 24
GROUP_POINTS = 200
STEPS = "gates", "gates of the second stage"
CAUTIOUS_STEPS = "gates beside the baseline", "gates of the second stage beside it"
"""What progress is reported of, by stage."""


@dataclass(frozen=True, slots=True)
class PolicyFront:
    """Cascades by ascending ``cost`` (m,) and descending ``loss`` (m,), means over the rows of the search."""

    loss: FloatArray
    cost: FloatArray
    policies: tuple[Policy, ...]

    def take(self, points: IntArray) -> PolicyFront:
        """Return the front of some of its points."""
        return PolicyFront(self.loss[points], self.cost[points], tuple(self.policies[point] for point in points))


@dataclass(frozen=True, slots=True)
class SearchedFronts:
    """The fronts of one search.

    The losses of a front are optimistic: of many cascades some seem to answer better than the baseline, and hide
    costlier ones that hardly ever differ from it. A certificate needs those as well, as they are safe to test first.

    Attributes:
        front: The cascades that no other dominates in cost and loss.
        cautious: The cascades that no other dominates in cost and in the mean of what a row loses more than with the
            baseline, where it loses more; that mean is their ``loss``.
    """

    front: PolicyFront
    cautious: PolicyFront


def search_policies(
    tables: ScoreTables,
    labels: IntArray,
    groups: IntArray,
    rows: IntArray,
    gates: GateOptions,
    progress: Progress = ignore_progress,
    baseline: IntArray | None = None,
) -> PolicyFront:
    """Search the front of all cascades on ``rows``.

    Args:
        tables: The score tables of all n rows.
        labels: (n,) true labels.
        groups: (C,) group of each label.
        rows: The rows to search on.
        gates: How to search; of several kinds of scores, each point of the front uses the better.
        progress: Receives the chains of the first stage, then its points for which a second stage is searched.
        baseline: (n,) answers of the baseline, to search the cautious front; see ``SearchedFronts``.
    """
    step, second_step = STEPS if baseline is None else CAUTIOUS_STEPS
    search = _StageSearch(gates, tables.error_costs, tables.clusters, progress=progress, step=step)
    if not tables.second_stage:
        return _search_first_stage(_with_baseline(search, baseline, labels), tables, rows, labels).policies()
    of_baseline = None if baseline is None else groups[baseline]
    first = _search_first_stage(_with_baseline(search, of_baseline, groups[labels]), tables, rows, groups[labels])
    points = thin_front(first.front, FIRST_STAGE_POINTS)
    fronts, second = [], _with_baseline(replace(search, progress=ignore_progress), baseline, labels)
    for index, point in enumerate(points):
        progress(second_step, index, len(points))
        fronts.append(_extend(second, tables, labels, rows, first.stage_policy(point)))
    progress(second_step, len(points), len(points))
    return _merge(fronts)


@dataclass(frozen=True, slots=True)
class _StageFront:
    """The front of one stage: point p is point ``origin[p, 1]`` of the search ``searches[origin[p, 0]]``."""

    front: Front
    searches: tuple[tuple[ChainFront, GateScorer], ...]
    origin: IntArray

    def stage_policy(self, point: int) -> StagePolicy:
        """Return the chain and cuts of one point."""
        search, index = map(int, self.origin[point])
        chains, scorer = self.searches[search]
        chain, cuts = chains.policy(index)
        return scorer.build_stage(chain, [float(cut) for cut in cuts[:, 1]])

    def policies(self) -> PolicyFront:
        """Return the front as that of cascades of one stage."""
        policies = tuple(Policy(self.stage_policy(point), {}) for point in range(len(self.front)))
        return PolicyFront(self.front.loss, self.front.cost, policies)


@dataclass(frozen=True, slots=True)
class _StageSearch:
    """How one stage is searched: options, error costs and (n,) clusters of the rows.

    With ``baseline``, its (n,) losses, only what a row loses more than that counts. ``progress`` receives the chains
    that are done, as parts of ``step``.
    """

    gates: GateOptions
    error_costs: ErrorCosts
    clusters: IntArray | None
    baseline: FloatArray | None = None
    progress: Progress = ignore_progress
    step: str = STEPS[0]

    def search(
        self,
        table: ScoreTable,
        rows: IntArray,
        truth: IntArray,
        price: FloatArray,
        cost: Callable[[Chain], FloatArray],
    ) -> _StageFront:
        """Search all chains of a table on ``rows`` with (n,) ``truth``.

        ``price`` (M,) orders the models; ``cost`` gives what each model of a chain adds.
        """
        gates, loss = self.gates, self.error_costs.losses(table.answer[rows], truth[:, None])
        fold = assign_folds(rows, self.clusters)
        scorers = [GateScorer(table, rows, loss, conditional, fold) for conditional in gates.conditional]
        chains = list_chains(price, order=gates.order, max_models=gates.max_models)
        learnt = partial(learn_cuts, kinds=gates.learnt)
        counted = loss if self.baseline is None else np.maximum(loss - self.baseline[rows, None], 0.0)

        started, total = itertools.count(), len(chains) * len(scorers)

        def chain_tables(scorer: GateScorer, chain: Chain) -> Tables:
            self.progress(self.step, next(started), total)
            return scorer.score(chain), counted[:, list(chain)], cost(chain)

        fronts = [
            search_chains(chains, partial(chain_tables, scorer), bins=gates.bins, also=learnt) for scorer in scorers
        ]
        self.progress(self.step, total, total)
        return _merge_searches(list(zip(fronts, scorers, strict=True)))


def _merge_searches(searches: Sequence[tuple[ChainFront, GateScorer]]) -> _StageFront:
    """Merge searches of the same chains on different scores; of equal points the one of the earlier search stays."""
    fronts = [chains.front for chains, _ in searches]
    arrays = zip(*((front.loss, front.cost, front.cuts) for front in fronts), strict=True)
    union = Front(*(np.concatenate(parts) for parts in arrays))
    origin = np.array([(search, point) for search, front in enumerate(fronts) for point in range(len(front))])
    best = find_pareto_points(union.loss, union.cost)
    return _StageFront(union.take(best), tuple(searches), origin[best])


def _with_baseline(search: _StageSearch, baseline: IntArray | None, truth: IntArray) -> _StageSearch:
    """Return the search of a stage beside the (n,) answers of a baseline to its question."""
    return search if baseline is None else replace(search, baseline=search.error_costs.losses(baseline, truth))


def _search_first_stage(search: _StageSearch, tables: ScoreTables, rows: IntArray, truth: IntArray) -> _StageFront:
    table, truth = tables.first_stage, truth[rows]
    return search.search(
        table, rows, truth, _price_alone(tables, table), partial(marginal_cost, tables, table, rows=rows)
    )


def _price_alone(tables: ScoreTables, table: ScoreTable) -> FloatArray:
    """Return the (M,) cost of each model alone, by which chains are ordered; what stages share counts for each."""
    return np.array([float(path_cost(tables, table, (m,))[0]) for m in range(len(table.models))])


def _extend(
    search: _StageSearch, tables: ScoreTables, labels: IntArray, rows: IntArray, first: StagePolicy
) -> PolicyFront:
    """Search the front of all cascades that begin with the first stage ``first``."""
    exits = find_exits(tables.first_stage, first, rows)
    group = exit_answers(tables.first_stage, first, rows, exits)
    first_cost = path_cost(tables, tables.first_stage, first.chain)[exits].mean()
    searched = {
        number: _search_group(search, tables, labels, rows[group == number], exits[group == number], number, first)
        for number in np.unique(group)
    }
    total, picks = _add_fronts(
        [_scale(part.front, float((group == number).mean())) for number, part in searched.items()]
    )
    unused = {
        number: StagePolicy((int(_price_alone(tables, table).argmin()),), ())
        for number, table in tables.second_stage.items()
        if number not in searched
    }
    groups = list(searched.items())
    second_stages = [
        {number: part.stage_policy(point) for (number, part), point in zip(groups, pick, strict=True)} for pick in picks
    ]
    policies = tuple(Policy(first, unused | second) for second in second_stages)
    return PolicyFront(total.loss, total.cost + first_cost, policies)


def _search_group(
    search: _StageSearch,
    tables: ScoreTables,
    labels: IntArray,
    rows: IntArray,
    first_exits: IntArray,
    number: int,
    first: StagePolicy,
) -> _StageFront:
    """Search the second stage of one group on the rows routed to it; ``first_exits`` are their exits before."""
    table = tables.second_stage[number]

    def added_cost(chain: Chain) -> FloatArray:
        return np.diff(second_stage_cost(tables, first, table, chain)[first_exits], axis=1, prepend=0.0)

    return search.search(table, rows, labels[rows], _price_alone(tables, table), added_cost)


def _scale(front: Front, share: float) -> Front:
    return Front(front.loss * share, front.cost * share, front.cuts)


def _add_fronts(fronts: list[Front]) -> tuple[Front, list[tuple[int, ...]]]:
    """Add fronts; also return which point of each front makes up each point of the sum."""
    total = fronts[0]
    picks: list[tuple[int, ...]] = [(point,) for point in range(len(total))]
    for front in fronts[1:]:
        total, pairs = add_fronts(total, front, GROUP_POINTS)
        picks = [(*picks[a], int(b)) for a, b in pairs]
    return total, picks


def _merge(fronts: list[PolicyFront]) -> PolicyFront:
    """Merge fronts into the one of their undominated points."""
    loss = np.concatenate([front.loss for front in fronts])
    cost = np.concatenate([front.cost for front in fronts])
    policies = tuple(policy for front in fronts for policy in front.policies)
    return PolicyFront(loss, cost, policies).take(find_pareto_points(loss, cost))
