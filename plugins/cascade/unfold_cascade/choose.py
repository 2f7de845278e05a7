"""From the front to one cascade: the goal, and the certificate that it holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfold_cascade import certificate
from unfold_cascade.arrays import FloatArray, IntArray
from unfold_cascade.combine import PolicyFront
from unfold_cascade.policy import Outcome, Policy, follow
from unfold_cascade.questions import Zoo
from unfold_cascade.spec import Goal

POINTS = 64


@dataclass(frozen=True, slots=True)
class Monolith:
    """The reference: the candidate with the best accuracy on the tuning rows, and its (n,) answers."""

    index: int
    name: str
    answer: IntArray
    cost: float
    latency_us: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and why.

    ``point`` is an index into the front; ``None`` means that only the monolith itself keeps the promise. ``certified``
    is the loss that is promised with ``confidence``; ``first_bound`` the smallest loss that the safest cascade could
    have been certified for; ``stopped`` whether a cheaper point was refused.
    """

    point: int | None
    certified: float
    confidence: float
    cases: int
    first_bound: float
    method: str
    stopped: bool
    reason: str = ""


def monolith(zoo: Zoo, labels: IntArray, rows: IntArray) -> Monolith:
    """Return the best single model on ``rows`` (out of fold where it was fitted on them); of equals the cheapest."""
    question = zoo.monoliths
    accuracy = (question.answer[rows] == labels[rows][:, None]).mean(axis=0)
    costs = np.array([question.price[m] + zoo.bought(question.buys[m]) for m in range(len(question.models))])
    best = int(np.lexsort((costs, -accuracy))[0])
    time = float(question.latency_us[best])
    return Monolith(best, question.models[best], question.answer[:, best], float(costs[best]), time)


def losses(outcome: Outcome, labels: IntArray, rows: IntArray) -> FloatArray:
    """Return (n,) 1 where the answer is wrong."""
    wrong: FloatArray = (outcome.answer != labels[rows]).astype(np.float64)
    return wrong


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

    The certificate is fixed-sequence testing (Learn then Test) on ``certify``, rows that took no part in the search;
    the order of points, the safest first, and the test of each come from ``tune`` alone.
    """
    if goal.budget is not None:
        return _within_budget(zoo, front, base, labels, tune, certify, goal)
    return _within_loss(zoo, front, base, labels, tune, certify, goal)


def _within_loss(
    zoo: Zoo, front: PolicyFront, base: Monolith, labels: IntArray, tune: IntArray, certify: IntArray, goal: Goal
) -> Choice:
    epsilon, delta = goal.max_loss or 0.0, 1 - goal.confidence
    cheaper = [point for point in range(len(front.policies)) if front.cost[point] < base.cost]
    if not cheaper:
        return Choice(
            None, 0.0, goal.confidence, len(certify), 1.0, "none", stopped=False, reason="no cascade is cheaper"
        )
    tests = _safest_first(zoo, front, cheaper, base, labels, tune, epsilon, len(certify))
    after = np.array([_differences(zoo, front.policies[point], base, labels, certify) for point, _ in tests])
    rules = [rule for _, rule in tests]
    last = certificate.fixed_sequence(after, epsilon, delta, rules)
    bound = certificate.upper_bound(after[0], goal.confidence, rules[0])
    if last is None:
        return Choice(None, 0.0, goal.confidence, len(certify), bound, rules[0].method, stopped=True)
    # every point that passed is certified, all together: the cheapest of them may be taken
    point, rule = min(tests[: last + 1], key=lambda test: front.cost[test[0]])
    stopped = last + 1 < len(tests)
    return Choice(point, epsilon, goal.confidence, len(certify), bound, rule.method, stopped=stopped)


def _safest_first(
    zoo: Zoo,
    front: PolicyFront,
    points: list[int],
    base: Monolith,
    labels: IntArray,
    tune: IntArray,
    epsilon: float,
    cases: int,
) -> list[tuple[int, certificate.Rule]]:
    """Return the points in the order in which they are tested, each with its test; both come from ``tune`` alone."""
    ranked = []
    for point in points:
        d = _differences(zoo, front.policies[point], base, labels, tune)
        rule = certificate.choose_rule(d, epsilon, cases)
        ranked.append((certificate.p_value(d, epsilon, rule), -float(front.cost[point]), point, rule))
    return [(point, rule) for _, _, point, rule in sorted(ranked, key=lambda item: item[:3])]


def _within_budget(
    zoo: Zoo, front: PolicyFront, base: Monolith, labels: IntArray, tune: IntArray, certify: IntArray, goal: Goal
) -> Choice:
    allowed = np.flatnonzero(front.cost <= (goal.budget or 0.0))
    if not len(allowed):
        return Choice(None, 0.0, goal.confidence, len(certify), 1.0, "none", stopped=False, reason="over the budget")
    point = int(allowed[-1])
    d_tune = _differences(zoo, front.policies[point], base, labels, tune)
    rule = certificate.choose_rule(d_tune, max(float(d_tune.mean()), 0.0) + 0.01, len(certify))
    d = _differences(zoo, front.policies[point], base, labels, certify)
    bound = certificate.upper_bound(d, goal.confidence, rule)
    return Choice(point, bound, goal.confidence, len(certify), bound, rule.method, stopped=False)


def _differences(zoo: Zoo, policy: Policy, base: Monolith, labels: IntArray, rows: IntArray) -> FloatArray:
    own = losses(follow(zoo, policy, rows), labels, rows)
    differences: FloatArray = own - (base.answer[rows] != labels[rows])
    return differences
