"""What the paper's greedy search (Algorithm 1, HARDGATING) would have paid for the same loss."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from unfold_cascade.arrays import FloatArray, IntArray
from unfold_cascade.cases import group_of_label
from unfold_cascade.gates.greedy import greedy_for_loss
from unfold_cascade.gates.search import exact_front
from unfold_cascade.plan import Plan
from unfold_cascade.policy import answers, exits, places
from unfold_cascade.questions import Question

MAX_CHAIN = 4


def lines(plan: Plan) -> list[tuple[str, str]]:
    """Return one line a report: greedy beside exact, on the whole chain of each question, at the loss of the plan."""
    if plan.policy is None:
        return []
    told = [f"{name} {gap:+.0f} %" if gap is not None else f"{name}: never reaches it" for name, gap in gaps(plan)]
    return [("greedy", f"would pay, for the same loss on the same chain: {', '.join(told)}")] if told else []


def gaps(plan: Plan) -> Iterator[tuple[str, float | None]]:
    """Yield each question's name and how many percent greedy is dearer than the exact gates; ``None`` if it fails."""
    for name, question, rows, truth, reached in _questions(plan):
        order = [int(m) for m in np.argsort(question.price, kind="stable")][:MAX_CHAIN]
        if len(order) > 1 and len(rows) > 1:
            loss = (question.answer[np.ix_(rows, places(order))] != truth[:, None]).astype(np.float64)
            yield name, _gap(question.score[np.ix_(rows, places(order[:-1]))], loss, question.price[order], reached)


def _gap(score: FloatArray, loss: FloatArray, cost: FloatArray, reached: float) -> float | None:
    front = exact_front(score, loss, cost)
    within = np.flatnonzero(front.loss <= max(reached, float(front.loss[-1])) + 1e-12)
    best = int(within[0])
    found = greedy_for_loss(score, loss, cost, float(front.loss[best]) + 1e-12)
    return None if found is None else 100 * (found.cost / float(front.cost[best]) - 1)


def _questions(plan: Plan) -> Iterator[tuple[str, Question, IntArray, IntArray, float]]:
    policy, tables, labels = plan.policy, plan.zoo, plan.given.labels
    if policy is None:
        return
    rows = plan.given.rows.train
    truth = group_of_label(plan.spec, plan.given.names)[labels] if tables.then else labels
    exit_ = exits(tables.first, policy.first, rows)
    said = answers(tables.first, policy.first, rows, exit_)
    yield tables.first.stage, tables.first, rows, truth[rows], float((said != truth[rows]).mean())
    for group, step in policy.then.items():
        own, question = rows[said == group], tables.then[group]
        answer = answers(question, step, own, exits(question, step, own))
        yield question.group, question, own, labels[own], float((answer != labels[own]).mean()) if len(own) else 0.0
