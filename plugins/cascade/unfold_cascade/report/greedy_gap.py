"""What the paper's greedy search (Algorithm 1, HARDGATING) would have paid for the same loss."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.data.dataset import group_of_label
from unfold_cascade.gates.exact import exact_front
from unfold_cascade.gates.hard_gating import greedy_for_loss
from unfold_cascade.planner.planner import Plan
from unfold_cascade.planner.policy import Step, answers, exits, marginal, places
from unfold_cascade.planner.score_tables import Question


def lines(plan: Plan) -> list[tuple[str, str]]:
    """Return one line a report: greedy beside exact, on the chain of each question, at its loss."""
    if plan.policy is None:
        return []
    told = [f"{name} {gap:+.0f} %" if gap is not None else f"{name}: never reaches it" for name, gap in gaps(plan)]
    return [("greedy", f"would pay, for the same loss on the same chain: {', '.join(told)}")] if told else []


def gaps(plan: Plan) -> Iterator[tuple[str, float | None]]:
    """Yield each question's name and how many percent greedy is dearer than the exact gates; ``None`` if it fails."""
    at = plan.zoo.stakes
    for name, question, step, rows, truth in _questions(plan):
        if len(step.chain) > 1 and len(rows) > 1 and not step.curves:
            wrong = at.losses(question.answer[np.ix_(rows, places(step.chain))], truth[:, None])
            reached = float(at.losses(answers(question, step, rows, exits(question, step, rows)), truth).mean())
            cost = marginal(plan.zoo, question, step.chain, rows)
            yield name, _gap(question.score[np.ix_(rows, places(step.chain[:-1]))], wrong, cost, reached)


def _gap(score: FloatArray, loss: FloatArray, cost: FloatArray, reached: float) -> float | None:
    front = exact_front(score, loss, cost)
    within = np.flatnonzero(front.loss <= max(reached, float(front.loss[-1])) + 1e-12)
    best = int(within[0])
    found = greedy_for_loss(score, loss, cost, float(front.loss[best]) + 1e-12)
    if found is None or found.cost == front.cost[best]:
        return None if found is None else 0.0
    return 100 * (found.cost / float(front.cost[best]) - 1) if front.cost[best] > 0 else math.inf


def _questions(plan: Plan) -> Iterator[tuple[str, Question, Step, IntArray, IntArray]]:
    policy, tables, labels = plan.policy, plan.zoo, plan.given.labels
    if policy is None:
        return
    rows = plan.given.rows.train
    truth = group_of_label(plan.spec, plan.given.names)[labels] if tables.then else labels
    said = answers(tables.first, policy.first, rows, exits(tables.first, policy.first, rows))
    yield tables.first.stage, tables.first, policy.first, rows, truth[rows]
    for group, step in policy.then.items():
        own = rows[said == group]
        yield tables.then[group].group, tables.then[group], step, own, labels[own]
