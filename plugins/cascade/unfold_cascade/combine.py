"""The front of whole cascades: the gates of every question searched exactly, then put together.

One question: the exact front over its chains. Two: for each point of the first question's front the cases are routed,
the second question is searched exactly on the cases of each group, and the groups' fronts are added (losses and costs
add up over groups, so the Minkowski sum is exact). Loss is counted on the final label, so a case that was sent to the
wrong group is lost whatever it pays there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from unfold_cascade.arrays import FloatArray, IntArray
from unfold_cascade.gates.front import Front, minkowski, pareto, thin
from unfold_cascade.gates.orders import Chain, ChainFront, Tables, chains_of, search_chains
from unfold_cascade.policy import Policy, Step, answers, exits, path_cost, places, second_cost
from unfold_cascade.questions import Question, Zoo
from unfold_cascade.spec import GateSpec

FIRST_POINTS = 24
GROUP_POINTS = 200


@dataclass(frozen=True, slots=True)
class PolicyFront:
    """Cascades by ascending ``cost`` (m,) and descending ``loss`` (m,), means over the rows they were searched on."""

    loss: FloatArray
    cost: FloatArray
    policies: tuple[Policy, ...]


def search(zoo: Zoo, labels: IntArray, groups: IntArray, rows: IntArray, gates: GateSpec) -> PolicyFront:
    """Return the front of all cascades on ``rows``.

    Args:
        zoo: the tables, over all n rows.
        labels: (n,) true labels.
        groups: (C,) group of each label.
        rows: the rows to search on.
        gates: how to search.
    """
    truth = groups[labels[rows]] if zoo.then else labels[rows]
    first = _chains(zoo, zoo.first, rows, zoo.first.answer[rows] != truth[:, None], gates)
    if not zoo.then:
        policies = tuple(Policy(_step(first, point), {}) for point in range(len(first.front)))
        return PolicyFront(first.front.loss, first.front.cost, policies)
    return _merged([_below(zoo, labels, rows, _step(first, point), gates) for point in thin(first.front, FIRST_POINTS)])


def _below(zoo: Zoo, labels: IntArray, rows: IntArray, first: Step, gates: GateSpec) -> PolicyFront:
    """Return the front of all cascades that begin with ``first``."""
    exit_ = exits(zoo.first, first, rows)
    group = answers(zoo.first, first, rows, exit_)
    paid = path_cost(zoo, zoo.first, first.chain, frozenset())[exit_].mean()
    parts = [(g, _group(zoo, labels, rows, exit_, group == g, g, first, gates)) for g in zoo.then]
    known = [(g, part) for g, part in parts if part is not None]
    total, picks = _added([_scaled(part.front, float((group == g).mean())) for g, part in known])
    spare = {g: Step((int(zoo.then[g].price.argmin()),), ()) for g, part in parts if part is None}
    policies = tuple(
        Policy(first, spare | {g: _step(part, int(p)) for (g, part), p in zip(known, pick, strict=True)})
        for pick in picks
    )
    return PolicyFront(total.loss, total.cost + paid, policies)


def _group(
    zoo: Zoo,
    labels: IntArray,
    rows: IntArray,
    exit_: IntArray,
    here: np.ndarray,
    g: int,
    first: Step,
    gates: GateSpec,
) -> ChainFront | None:
    own = rows[here]
    if not len(own):
        return None
    question, came = zoo.then[g], exit_[here]
    loss = question.answer[own] != labels[own][:, None]

    def tables(chain: Chain) -> Tables:
        models = list(chain)
        costs = second_cost(zoo, first, question, chain)[came]
        marginal = np.diff(costs, axis=1, prepend=0.0)
        return question.score[np.ix_(own, places(models[:-1]))], loss[:, models].astype(np.float64), marginal

    order = chains_of(question.price, order=gates.order, max_models=gates.max_models)
    return search_chains(order, tables, bins=gates.bins)


def _chains(zoo: Zoo, question: Question, rows: IntArray, loss: np.ndarray, gates: GateSpec) -> ChainFront:
    def tables(chain: Chain) -> Tables:
        models = list(chain)
        marginal = np.diff(path_cost(zoo, question, chain, frozenset()), prepend=0.0)
        return question.score[np.ix_(rows, places(models[:-1]))], loss[:, models].astype(np.float64), marginal

    prices = np.array([float(path_cost(zoo, question, (m,), frozenset())[0]) for m in range(len(question.models))])
    return search_chains(chains_of(prices, order=gates.order, max_models=gates.max_models), tables, bins=gates.bins)


def _step(found: ChainFront, point: int) -> Step:
    chain, cuts = found.policy(int(point))
    return Step(chain, tuple(float(cut) for cut in cuts[:, 1]))


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
