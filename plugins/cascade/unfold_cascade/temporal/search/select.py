"""From the front to one cascade: the goal, and the certificate that holds for the average patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.planner import certificate
from unfold_cascade.planner.certificate import Rule
from unfold_cascade.schema.goals import Goal
from unfold_cascade.schema.temporal import Moves
from unfold_cascade.temporal.models.study import Part, Study
from unfold_cascade.temporal.search.compose import Front, Point, parallel
from unfold_cascade.temporal.simulation.policy import Policy, ladder
from unfold_cascade.temporal.simulation.trajectories import walk
from unfoldkit.api import fail


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and why.

    ``promised`` says that the certificate for the goal holds; ``certified`` is the loss of the average patient that
    the chosen cascade is certified for, by so many ``cases``.
    """

    point: Point
    promised: bool
    certified: float
    cases: int
    method: str


@dataclass(frozen=True, slots=True)
class Reference:
    """A monolith's (n,) answers on the tuning and the certifying patients."""

    train: IntArray
    calibrate: IntArray


def choose(study: Study, front: Front, base: Reference, goal: Goal, by: str) -> Choice:
    """Choose the cheapest cascade that is certified within ``goal.max_loss``, or the best within ``goal.budget``.

    The certificate is fixed-sequence testing (Learn then Test) on the certifying patients, who took no part in the
    search; the order of the points (``sequence``) and the test of each come from the tuning patients. Each
    patient counts once, by the mean of their hours. Where nothing can be certified, the cascade with the strongest
    evidence on the tuning patients is returned, with the loss that it *is* certified for and ``promised`` unset.
    """
    if goal.budget is not None:
        return _within_budget(study, front, base, goal, by)
    epsilon = goal.max_loss or 0.0
    own = float((base.train != study.train.highest).mean())
    within = [point for point in front.points if point.loss <= own + epsilon] or [
        min(front.points, key=lambda point: point.loss)
    ]
    before, after = (
        np.array([differences(study, part, point.policy, base) for point in within])
        for part in (study.train, study.calibrate)
    )
    cost = np.array([point.cost for point in within])
    tested, rules, last = certified(cost, before, after, epsilon, 1 - goal.confidence)
    if last is not None:
        return Choice(within[tested[last]], True, epsilon, after.shape[1], rules[last].method)
    return _refused(within[tested[0]], before[tested[0]], after[tested[0]], goal)


def certified(
    cost: FloatArray, before: FloatArray, after: FloatArray, epsilon: float, delta: float
) -> tuple[list[int], list[Rule], int | None]:
    """Return the points tested, in order, the test of each, and the place of the last that passed in a row.

    With probability 1 - delta that point loses at most ``epsilon``: order and tests come from ``before`` alone.

    Args:
        cost: (m,) costs of the points.
        before: (m, P) differences of the tuning patients.
        after: (m, Q) differences of the certifying patients.
        epsilon: Loss allowed.
        delta: Chance of a false certificate.
    """
    tested = sequence(cost, before, epsilon)
    rules = [certificate.choose_rule(before[place], epsilon, after.shape[1]) for place in tested]
    return tested, rules, certificate.fixed_sequence(after[tested], epsilon, delta, rules)


def sequence(cost: FloatArray, seen: FloatArray, epsilon: float) -> list[int]:
    """Return the order of testing: from the strongest evidence on the tuning patients on, each point cheaper.

    A point that is dearer than one with stronger evidence is left out: it could only end the walk early.

    Args:
        cost: (m,) costs of the points.
        seen: (m, P) differences of the tuning patients.
        epsilon: Loss allowed.
    """
    evidence = (epsilon - seen.mean(axis=1)) / np.maximum(seen.std(axis=1), 1e-9)
    order = np.lexsort((cost, -evidence))
    least = np.minimum.accumulate(cost[order])
    cheaper = np.concatenate(([True], cost[order][1:] < least[:-1]))
    return [int(place) for place in order[cheaper]]


def _refused(point: Point, before: FloatArray, after: FloatArray, goal: Goal) -> Choice:
    rule = _rule(before, len(after))
    bound = certificate.upper_bound(after, goal.confidence, rule)
    return Choice(point, False, bound, len(after), rule.method)


def _rule(before: FloatArray, cases: int) -> Rule:
    """Return the test that promises the smallest bound: its wager is best a little above the mean seen in tuning."""
    spread = float(before.std()) / np.sqrt(cases)
    epsilon = min(max(float(before.mean()) + 2 * spread, 0.0) + 1e-6, 0.99)
    return Rule("betting", certificate.best_wager(before, epsilon))


def _within_budget(study: Study, front: Front, base: Reference, goal: Goal, by: str) -> Choice:
    allowed = [point for point in front.points if _spent(point, by) <= (goal.budget or 0.0)]
    if not allowed:
        least = min(_spent(point, by) for point in front.points)
        hint = f"goal: {{budget: {np.ceil(least * 100) / 100:g} per case-hour}}"
        raise fail(
            f"no cascade costs so little; the cheapest needs {least:.4g} per case-hour", key="goal.budget", hint=hint
        )
    point = min(allowed, key=lambda one: one.loss)
    before, after = (differences(study, part, point.policy, base) for part in (study.train, study.calibrate))
    rule = _rule(before, len(after))
    return Choice(point, True, certificate.upper_bound(after, goal.confidence, rule), len(after), rule.method)


def _spent(point: Point, by: str) -> float:
    return point.cost if "+" in by else point.bill[by]


def differences(study: Study, part: Part, policy: Policy, base: Reference) -> FloatArray:
    """Return (P,) what a policy loses more than the monolith, by tuning or certifying patient."""
    return against(study, part, policy, base.train if part is study.train else base.calibrate)


def against(study: Study, part: Part, policy: Policy, other: IntArray) -> FloatArray:
    """Return (P,) for each patient the mean over their hours of wrong answers more than those of ``other`` (n,)."""
    went = walk(part.clock, part.zoo, ladder(policy, parallel(study)), study.spec.moves or Moves())
    return patient_means(went.answer.astype(np.int64), other, part.highest, part.entity)


def patient_means(answer: IntArray, other: IntArray, truth: IntArray, entity: IntArray) -> FloatArray:
    """Return (P,) the mean difference of the two losses of each patient, in [-1, 1]."""
    d = (answer != truth).astype(np.float64) - (other != truth)
    return certificate.per_cluster(d, entity)


def savings(base: dict[str, float], own: dict[str, float], notions: Sequence[str]) -> dict[str, float]:
    """Return how many times less the cascade costs, by notion."""
    return {notion: base[notion] / own[notion] for notion in notions if own[notion] > 0}
