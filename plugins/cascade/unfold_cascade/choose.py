"""From the front to one cascade: the goal, and the certificate that it holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfold_cascade import certificate
from unfold_cascade.arrays import FloatArray, IntArray
from unfold_cascade.combine import PolicyFront
from unfold_cascade.goals import Goal
from unfold_cascade.policy import Policy, follow
from unfold_cascade.questions import Zoo

POINTS = 64
GRID = 1000
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
    ``stopped`` whether a point was refused.
    """

    point: int | None
    certified: float
    confidence: float
    cases: int
    least: float
    method: str
    stopped: bool
    reason: str = ""


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
    zoo: Zoo, front: PolicyFront, base: Monolith, labels: IntArray, tune: IntArray, certify: IntArray, goal: Goal
) -> Choice:
    """Choose a point of ``front``: certified within ``goal.max_loss``, or the most accurate within ``goal.budget``.

    Where the monolith itself is within the budget, and more accurate than any cascade that is, no cascade is chosen.

    The certificate is fixed-sequence testing (Learn then Test) on ``certify``, rows that took no part in the search;
    the order of points, the safest first, and the test of each come from ``tune`` alone.
    """
    if goal.budget is not None:
        return _within_budget(zoo, front, base, labels, tune, certify, goal)
    return _within_loss(zoo, front, base, labels, tune, certify, goal)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Points of a front with their (m,) cost and (m, n) differences to the monolith, on tuning and certifying rows.

    Differences are shares of the dearest error, so that they are in [-1, 1].
    """

    points: IntArray
    cost: FloatArray
    tune: FloatArray
    certify: FloatArray


def _within_loss(
    zoo: Zoo, front: PolicyFront, base: Monolith, labels: IntArray, tune: IntArray, certify: IntArray, goal: Goal
) -> Choice:
    epsilon, n = (goal.max_loss or 0.0) / zoo.stakes.largest, units(zoo, certify)
    points = np.flatnonzero(front.cost < base.cost)
    if not len(points):
        return _refused(goal, n, "no cascade is cheaper")
    before, after = (differences_of(zoo, front, points, base, labels, rows) for rows in (tune, certify))
    evidence = Evidence(points, front.cost[points], before, after)
    passed = certified(evidence, epsilon, 1 - goal.confidence)
    if not passed:
        least = _least_certified(evidence, goal.max_loss or 0.0, 1 - goal.confidence, zoo.stakes.largest)
        return Choice(None, 0.0, goal.confidence, n, least, "none", stopped=True)
    # every point that passed is certified, all together: the cheapest of them may be taken
    best, rule = min(passed, key=lambda test: evidence.cost[test[0]])
    stopped = len(passed) < len(points)
    promised = goal.max_loss or 0.0
    return Choice(int(points[best]), promised, goal.confidence, n, promised, rule.method, stopped=stopped)


def certified(evidence: Evidence, epsilon: float, delta: float) -> list[tuple[int, certificate.Rule]]:
    """Return the points that passed, each with its test; their order and the tests come from the tuning rows alone.

    With probability 1 - delta every point that passed loses at most ``epsilon``.
    """
    cases = evidence.certify.shape[1]
    rules = [certificate.choose_rule(d, epsilon, cases) for d in evidence.tune]
    hopes = np.array([certificate.p_value(d, epsilon, rule) for d, rule in zip(evidence.tune, rules, strict=True)])
    order = np.lexsort((-evidence.cost, hopes))
    tests = [(int(point), rules[point]) for point in order]
    last = certificate.fixed_sequence(evidence.certify[order], epsilon, delta, [rule for _, rule in tests])
    return [] if last is None else tests[: last + 1]


def _least_certified(evidence: Evidence, refused: float, delta: float, largest: float) -> float:
    """Return the smallest loss, in tenths of a point, for which some cascade would have been certified."""
    low, high = int(refused * GRID), GRID - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if certified(evidence, middle / GRID / largest, delta) else (middle, high)
    return high / GRID


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
    d_tune = _differences(zoo, front.policies[point], base, labels, tune)
    # a wager for a loss too near the one that was seen wins nothing
    rule = certificate.choose_rule(d_tune, max(float(d_tune.mean()), 0.0) + 0.01, units(zoo, certify))
    d = _differences(zoo, front.policies[point], base, labels, certify)
    bound = certificate.upper_bound(d, goal.confidence, rule) * zoo.stakes.largest
    return Choice(point, bound, goal.confidence, len(d), bound, rule.method, stopped=False)


def _refused(goal: Goal, cases: int, reason: str) -> Choice:
    return Choice(None, 0.0, goal.confidence, cases, 1.0, "none", stopped=False, reason=reason)


def differences_of(
    zoo: Zoo, front: PolicyFront, points: IntArray, base: Monolith, labels: IntArray, rows: IntArray
) -> FloatArray:
    """Return (m, n) the losses of some points of a front more than the monolith's, as shares of the dearest error.

    Of rows in clusters there are as many columns as clusters, each the mean of its rows.
    """
    return np.array([_differences(zoo, front.policies[point], base, labels, rows) for point in points])


def _differences(zoo: Zoo, policy: Policy, base: Monolith, labels: IntArray, rows: IntArray) -> FloatArray:
    given = follow(zoo, policy, rows).answer, base.answer[rows]
    own, reference = (zoo.stakes.losses(answer, labels[rows]) for answer in given)
    differences: FloatArray = (own - reference) / zoo.stakes.largest
    return differences if zoo.clusters is None else certificate.per_cluster(differences, zoo.clusters[rows])


def units(zoo: Zoo, rows: IntArray) -> int:
    """Return how many independent draws some rows are: cases, or clusters of them."""
    return len(rows) if zoo.clusters is None else len(np.unique(zoo.clusters[rows]))
