"""The front of whole cascades: the gates of every question searched exactly, then put together.

One question: the exact front over its chains. Two: for each point of the first question's front the cases are routed,
the second question is searched exactly on the cases of each group, and the groups' fronts are added (losses and costs
add up over groups, so the Minkowski sum is exact). Loss is counted on the final label, so a case that was sent to the
wrong group is lost whatever it pays there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.data.error_costs import Stakes
from unfold_cascade.gates.chains import Chain, ChainFront, Order, Tables, chains_of, search_chains
from unfold_cascade.gates.pareto import Front, minkowski, pareto, thin
from unfold_cascade.gates.soft_learning import learnt_cuts
from unfold_cascade.planner.gate_scores import Scorer, folds
from unfold_cascade.planner.policy import Policy, Step, answers, exits, marginal, path_cost, second_cost
from unfold_cascade.planner.score_tables import Question, Zoo
from unfold_cascade.schema.models import GateSpec

FIRST_POINTS = 24
GROUP_POINTS = 200


@dataclass(frozen=True, slots=True)
class PolicyFront:
    """Cascades by ascending ``cost`` (m,) and descending ``loss`` (m,), means over the rows they were searched on."""

    loss: FloatArray
    cost: FloatArray
    policies: tuple[Policy, ...]


def search(
    zoo: Zoo,
    labels: IntArray,
    groups: IntArray,
    rows: IntArray,
    gates: GateSpec,
    order: Order = "sorted",
    conditional: Sequence[bool] = (False,),
) -> PolicyFront:
    """Return the front of all cascades on ``rows``.

    Args:
        zoo: the tables, over all n rows.
        labels: (n,) true labels.
        groups: (C,) group of each label.
        rows: the rows to search on.
        gates: how to search.
        order: the orders in which models are asked, as for ``chains_of``.
        conditional: the scores to search on, as for ``Scorer``; of several, each point of the front has the better.
    """
    how = How(gates, order, tuple(conditional), zoo.stakes, zoo.clusters)
    truth = groups[labels[rows]] if zoo.then else labels[rows]
    found = _first(zoo, rows, truth, how)
    if not zoo.then:
        policies = tuple(Policy(found.step(point), {}) for point in range(len(found.front)))
        return PolicyFront(found.front.loss, found.front.cost, policies)
    return _merged([_below(zoo, labels, rows, found.step(point), how) for point in thin(found.front, FIRST_POINTS)])


@dataclass(frozen=True, slots=True)
class How:
    """How to search, in which orders, on which scores, what errors cost, and whose the rows are."""

    gates: GateSpec
    order: Order
    conditional: tuple[bool, ...]
    stakes: Stakes
    clusters: IntArray | None


@dataclass(frozen=True, slots=True)
class Found:
    """The front of one question: point p is point ``place[p, 1]`` of the search ``ways[place[p, 0]]``."""

    front: Front
    ways: tuple[tuple[ChainFront, Scorer], ...]
    place: IntArray

    def step(self, point: int) -> Step:
        """Return the chain and cuts of one point."""
        way, at = map(int, self.place[point])
        chains, scorer = self.ways[way]
        chain, cuts = chains.policy(at)
        return scorer.step(chain, [float(cut) for cut in cuts[:, 1]])


def _best(ways: Sequence[tuple[ChainFront, Scorer]]) -> Found:
    """Return the front over searches of the same chains on different scores; of equal points the earlier one's."""
    fronts = [chains.front for chains, _ in ways]
    every = Front(*(np.concatenate(parts) for parts in zip(*((f.loss, f.cost, f.cuts) for f in fronts), strict=True)))
    place = np.array([(way, point) for way, front in enumerate(fronts) for point in range(len(front))])
    best = pareto(every.loss, every.cost)
    return Found(every.take(best), tuple(ways), place[best])


def _below(zoo: Zoo, labels: IntArray, rows: IntArray, first: Step, how: How) -> PolicyFront:
    """Return the front of all cascades that begin with ``first``."""
    exit_ = exits(zoo.first, first, rows)
    group = answers(zoo.first, first, rows, exit_)
    paid = path_cost(zoo, zoo.first, first.chain, frozenset())[exit_].mean()
    known = {g: _then(zoo, labels, rows[group == g], exit_[group == g], g, first, how) for g in np.unique(group)}
    total, picks = _added([_scaled(part.front, float((group == g).mean())) for g, part in known.items()])
    spare = {g: Step((int(zoo.then[g].price.argmin()),), ()) for g in zoo.then if g not in known}
    steps = [{g: part.step(p) for (g, part), p in zip(known.items(), pick, strict=True)} for pick in picks]
    return PolicyFront(total.loss, total.cost + paid, tuple(Policy(first, spare | then) for then in steps))


def _then(zoo: Zoo, labels: IntArray, rows: IntArray, came: IntArray, g: int, first: Step, how: How) -> Found:
    """Search the second question of group ``g`` on the rows sent there; ``came`` is where the first chain stopped."""
    question = zoo.then[g]

    def added(chain: Chain) -> FloatArray:
        return np.diff(second_cost(zoo, first, question, chain)[came], axis=1, prepend=0.0)

    return _searched(question, rows, labels[rows], question.price, added, how)


def _first(zoo: Zoo, rows: IntArray, truth: IntArray, how: How) -> Found:
    alone = [float(path_cost(zoo, zoo.first, (m,), frozenset())[0]) for m in range(len(zoo.first.models))]
    cost = partial(marginal, zoo, zoo.first, rows=rows)
    return _searched(zoo.first, rows, truth, np.array(alone), cost, how)


def _searched(
    question: Question,
    rows: IntArray,
    truth: IntArray,
    price: FloatArray,
    cost: Callable[[Chain], FloatArray],
    how: How,
) -> Found:
    loss = how.stakes.losses(question.answer[rows], truth[:, None])
    fold = folds(rows, how.clusters)
    gates, scorers = how.gates, [Scorer(question, rows, loss, knows, fold) for knows in how.conditional]
    chains = chains_of(price, order=how.order, max_models=gates.max_models)
    also = partial(learnt_cuts, kinds=gates.learnt)

    def tables(scorer: Scorer, chain: Chain) -> Tables:
        return scorer.scores(chain), loss[:, list(chain)], cost(chain)

    fronts = [search_chains(chains, partial(tables, one), bins=gates.bins, also=also) for one in scorers]
    return _best(list(zip(fronts, scorers, strict=True)))


def _scaled(front: Front, share: float) -> Front:
    return Front(front.loss * share, front.cost * share, front.cuts)


def _added(fronts: list[Front]) -> tuple[Front, list[tuple[int, ...]]]:
    """Return the sum of fronts, and which point of each made every point of it."""
    total = fronts[0]
    picks: list[tuple[int, ...]] = [(point,) for point in range(len(total))]
    for front in fronts[1:]:
        total, pairs = minkowski(total, front, GROUP_POINTS)
        picks = [(*picks[a], int(b)) for a, b in pairs]
    return total, picks


def _merged(fronts: list[PolicyFront]) -> PolicyFront:
    loss = np.concatenate([front.loss for front in fronts])
    cost = np.concatenate([front.cost for front in fronts])
    policies = list(_all_policies(fronts))
    best = pareto(loss, cost)
    return PolicyFront(loss[best], cost[best], tuple(policies[point] for point in best))


def _all_policies(fronts: list[PolicyFront]) -> Iterator[Policy]:
    for front in fronts:
        yield from front.policies
