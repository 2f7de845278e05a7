"""From the front to one cascade: the goal, and the certificate that it holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.data.error_costs import ALIKE, Stakes
from unfold_cascade.planner import certificate
from unfold_cascade.planner.compose import PolicyFront
from unfold_cascade.planner.guarantees import Promise, Relaxation, certified, relaxations
from unfold_cascade.planner.policy import Policy, follow
from unfold_cascade.planner.score_tables import Zoo
from unfold_cascade.schema.goals import Goal
from unfoldkit.api import did_you_mean, fail

POINTS = 64
OF_LABEL = "goal.max_loss_of"
NO_BETTER = "the best single model is within the budget and more accurate"


@dataclass(frozen=True, slots=True)
class Monolith:
    """The reference: the candidate that loses least on the tuning rows, and its (n,) answers."""

    index: int
    name: str
    answer: IntArray
    cost: float
    latency_us: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and why.

    ``point`` is an index into the front; ``None`` means that only the monolith itself keeps the promise. ``certified``
    is the loss that is promised with ``confidence``; ``least`` the smallest loss that could have been certified;
    ``stopped`` whether a point was refused. ``relaxed`` are the smallest losses of which any one would have to be
    allowed.
    """

    point: int | None
    certified: float
    confidence: float
    cases: int
    least: float
    method: str
    stopped: bool
    reason: str = ""
    relaxed: tuple[Relaxation, ...] = ()


def monolith(zoo: Zoo, labels: IntArray, rows: IntArray) -> Monolith:
    """Return the best single model on ``rows`` (out of fold where it was fitted on them); of equals the cheapest."""
    question = zoo.monoliths
    loss = zoo.stakes.losses(question.answer[rows], labels[rows][:, None]).mean(axis=0)
    costs = np.array([question.price[m] + zoo.bought(question.buys[m]) for m in range(len(question.models))])
    best = int(np.lexsort((costs, loss))[0])
    time = float(question.latency_us[best])
    return Monolith(best, question.models[best], question.answer[:, best], float(costs[best]), time)


def shortlist(front: PolicyFront, limit: int = POINTS) -> PolicyFront:
    """Return at most ``limit`` points of the front, evenly by loss, with both ends."""
    if len(front.policies) <= limit:
        return front
    wanted = np.linspace(front.loss[0], front.loss[-1], limit)
    chosen = np.unique([int(np.abs(front.loss - value).argmin()) for value in wanted])
    return PolicyFront(front.loss[chosen], front.cost[chosen], tuple(front.policies[point] for point in chosen))


def choose(
    zoo: Zoo,
    front: PolicyFront,
    base: Monolith,
    labels: IntArray,
    tune: IntArray,
    certify: IntArray,
    goal: Goal,
    names: Sequence[str] = (),
) -> Choice:
    """Choose a point of ``front``: certified within ``goal.max_loss``, or the most accurate within ``goal.budget``.

    Where the monolith itself is within the budget, and more accurate than any cascade that is, no cascade is chosen.

    The certificate is fixed-sequence testing (Learn then Test) on ``certify``, rows that took no part in the search;
    the order of points, the safest first, and the test of each come from ``tune`` alone. ``names`` (C,) are those of
    the labels, for ``goal.max_loss_of``.
    """
    if goal.budget is not None:
        return _within_budget(zoo, front, base, labels, tune, certify, goal)
    points = np.flatnonzero(front.cost < base.cost)
    if not len(points):
        return _refused(goal, units(zoo, certify), "no cascade is cheaper")
    told = list(_promises(zoo, front, points, base, labels, (tune, certify), goal, names))
    return _within_loss(points, front.cost[points], told, goal)


def _within_loss(points: IntArray, cost: FloatArray, promises: Sequence[Promise], goal: Goal) -> Choice:
    """Choose among (m,) points with their costs."""
    delta, n = 1 - goal.confidence, promises[0].units
    passed = certified(cost, promises, delta)
    if not passed:
        relaxed = relaxations(cost, promises, delta)
        least = dict(relaxed[0]).get("", goal.max_loss or 0.0)
        return Choice(None, 0.0, goal.confidence, n, least, "none", stopped=True, relaxed=relaxed)
    # every point that passed is certified, all together: the cheapest of them may be taken
    best, rule = min(passed, key=lambda test: cost[test[0]])
    stopped = len(passed) < len(points)
    promised = goal.max_loss or 0.0
    return Choice(int(points[best]), promised, goal.confidence, n, promised, rule.method, stopped=stopped)


def _promises(
    zoo: Zoo,
    front: PolicyFront,
    points: IntArray,
    base: Monolith,
    labels: IntArray,
    parts: tuple[IntArray, IntArray],
    goal: Goal,
    names: Sequence[str],
) -> Iterator[Promise]:
    """Yield what a goal promises: a loss of all cases, and those of the cases of some labels."""
    before, after = (differences_of(zoo, front, points, base, labels, rows) for rows in parts)
    yield Promise("", goal.max_loss or 0.0, before, after, zoo.stakes.largest)
    for label, allowed in (goal.max_loss_of or {}).items():
        number = number_of(label, names)
        own = [rows[labels[rows] == number] for rows in parts]
        if not all(map(len, own)):
            raise fail(f'no case of the label "{label}" to tune or to certify on', key=OF_LABEL)
        before, after = (differences_of(zoo, front, points, base, labels, rows, ALIKE) for rows in own)
        yield Promise(label, allowed, before, after)


def number_of(label: str, names: Sequence[str]) -> int:
    """Return the number of a label of ``goal.max_loss_of``.

    Raises:
        UnfoldError: the data have no such label.
    """
    if label not in names:
        raise fail(f'the data have no label "{label}"', key=OF_LABEL, hint=did_you_mean(label, names))
    return list(names).index(label)


def _within_budget(
    zoo: Zoo, front: PolicyFront, base: Monolith, labels: IntArray, tune: IntArray, certify: IntArray, goal: Goal
) -> Choice:
    budget, single = goal.budget or 0.0, float(zoo.stakes.losses(base.answer[tune], labels[tune]).mean())
    allowed = np.flatnonzero(front.cost <= budget)
    point = int(allowed[-1]) if len(allowed) else None
    if base.cost <= budget and (point is None or single < front.loss[point]):
        return _refused(goal, units(zoo, certify), NO_BETTER)
    if point is None:
        return _refused(goal, units(zoo, certify), "over the budget")
    d_tune = _differences(zoo, front.policies[point], base, labels, tune, zoo.stakes)
    # a wager for a loss too near the one that was seen wins nothing
    rule = certificate.choose_rule(d_tune, max(float(d_tune.mean()), 0.0) + 0.01, units(zoo, certify))
    d = _differences(zoo, front.policies[point], base, labels, certify, zoo.stakes)
    bound = certificate.upper_bound(d, goal.confidence, rule) * zoo.stakes.largest
    return Choice(point, bound, goal.confidence, len(d), bound, rule.method, stopped=False)


def _refused(goal: Goal, cases: int, reason: str) -> Choice:
    return Choice(None, 0.0, goal.confidence, cases, 1.0, "none", stopped=False, reason=reason)


def differences_of(
    zoo: Zoo,
    front: PolicyFront,
    points: IntArray,
    base: Monolith,
    labels: IntArray,
    rows: IntArray,
    stakes: Stakes | None = None,
) -> FloatArray:
    """Return (m, n) the losses of some points of a front more than the monolith's, as shares of the dearest error.

    Of rows in clusters there are as many columns as clusters, each the mean of its rows. ``stakes`` are those of the
    zoo unless others are given.
    """
    at = zoo.stakes if stakes is None else stakes
    return np.array([_differences(zoo, front.policies[point], base, labels, rows, at) for point in points])


def _differences(zoo: Zoo, policy: Policy, base: Monolith, labels: IntArray, rows: IntArray, at: Stakes) -> FloatArray:
    given = follow(zoo, policy, rows).answer, base.answer[rows]
    own, reference = (at.losses(answer, labels[rows]) for answer in given)
    differences: FloatArray = (own - reference) / at.largest
    return differences if zoo.clusters is None else certificate.per_cluster(differences, zoo.clusters[rows])


def units(zoo: Zoo, rows: IntArray) -> int:
    """Return how many independent draws some rows are: cases, or clusters of them."""
    return len(rows) if zoo.clusters is None else len(np.unique(zoo.clusters[rows]))
