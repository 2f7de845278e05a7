"""What is promised of a cascade, in the words of its report: the certificate, or why there is none."""

from __future__ import annotations

import json
import math
import shlex

import numpy as np

from unfold_cascade._types import IntArray
from unfold_cascade.planner import certificate
from unfold_cascade.planner.planner import Plan
from unfold_cascade.planner.policy import Outcome
from unfold_cascade.planner.select import number_of, units
from unfold_cascade.report.quality import base_worth
from unfoldkit.api import Cell, Column, Table


def line(plan: Plan, loss: float) -> str:
    """Return the certificate of a plan, whose cascade loses so many points on the test rows."""
    choice = plan.choice
    if choice.point is None:
        return _refusal(plan)
    if plan.spec.goal.budget is not None and choice.certified >= base_worth(plan):
        few = f"{choice.cases} {_units(plan)} rule out no loss against {plan.base.name}"
        return f"none: {few} with {choice.confidence:.0%} confidence ({shown(loss)} on test)"
    whose = "" if plan.spec.group is None else f" for the average {plan.spec.group}"
    text = f"loss against {plan.base.name}{whose} ≤ {_points_up(choice.certified)} points"
    text += "".join(f', of "{label}" ≤ {100 * most:g}' for label, most in (plan.spec.goal.max_loss_of or {}).items())
    text += f" with {choice.confidence:.0%} confidence"
    text += f" ({choice.cases} {_units(plan)}, {choice.method} test; {shown(loss)} on test)"
    return text + ("; cheaper ones were not certified, so a costlier one was taken" if choice.stopped else "")


def shown(loss: float) -> str:
    """Return a loss in points as it is printed; one that rounds to nothing has no sign."""
    return f"{round(loss, 1) + 0.0:.1f}"


def allowed(plan: Plan) -> str:
    """Return the losses that a goal allows."""
    goal = plan.spec.goal
    of = [f'{100 * loss:g} of "{label}"' for label, loss in (goal.max_loss_of or {}).items()]
    return " and ".join([f"{100 * (goal.max_loss or 0):g} points", *of])


def relaxation(plan: Plan) -> str:
    """Return the smallest losses that would have to be allowed: any of them, or where none alone helps, all."""
    ways = [[f"{_key(label)}: {100 * least:g}%" for label, least in way] for way in plan.choice.relaxed]
    return ", or ".join(" and ".join(told) for told in ways)


def settings(plan: Plan) -> str:
    """Return the options of a command that allows the first of them."""
    relaxed = dict(plan.choice.relaxed[0])
    told = [f"goal.max_loss={100 * relaxed['']:g}%"] if "" in relaxed else []
    losses = (plan.spec.goal.max_loss_of or {}) | {label: least for label, least in relaxed.items() if label}
    if set(relaxed) - {""}:
        of = ", ".join(f"{json.dumps(label, ensure_ascii=False)}: {100 * loss:g}%" for label, loss in losses.items())
        told.append(shlex.quote(f"goal.max_loss_of={{{of}}}"))
    return " ".join(f"--set {one}" for one in told)


def tables(plan: Plan, outcome: Outcome) -> list[Table]:
    """Return what is promised of labels beside what the test rows show, if something is."""
    told = plan.spec.goal.max_loss_of
    if plan.policy is None or not told:
        return []
    columns = (
        Column("label"),
        Column(f"certified on, {_units(plan)}"),
        Column("loss ≤", "points", 1),
        Column("test cases"),
        Column(f"right, {plan.base.name}", "%", 1),
        Column("right, cascade", "%", 1),
    )
    return [Table("labels", columns, tuple(_label(plan, outcome, *one) for one in told.items()))]


def _label(plan: Plan, outcome: Outcome, label: str, most: float) -> tuple[Cell, ...]:
    given, number = plan.given, number_of(label, plan.given.names)
    here = np.flatnonzero(given.labels[given.rows.test] == number)
    certifying = given.rows.calibrate[given.labels[given.rows.calibrate] == number]
    base = plan.base.answer[given.rows.test]
    right = [_share(answer[here] == number) for answer in (base, outcome.answer)]
    return label, units(plan.zoo, certifying), 100 * most, len(here), *right


def _share(right: IntArray | np.ndarray) -> float | None:
    return 100 * float(right.mean()) if right.size else None


def _key(label: str) -> str:
    return f'max_loss_of "{label}"' if label else "max_loss"


def _points_up(loss: float) -> str:
    """Return a loss in points, rounded up: a promise must not be printed smaller than it is."""
    return f"{math.ceil(round(loss * 10_000, 6)) / 100:g}"


def _units(plan: Plan) -> str:
    """Return what is counted as independent."""
    return "cases" if plan.spec.group is None else f"groups by {plan.spec.group}"


def _refusal(plan: Plan) -> str:
    choice, goal = plan.choice, plan.spec.goal
    if choice.reason or goal.max_loss is None:
        return f"none: {choice.reason}"
    confidence = f"with {goal.confidence:.0%} confidence"
    if goal.max_loss_of:
        return f"{choice.cases} {_units(plan)} cannot certify ≤ {allowed(plan)} {confidence}"
    largest = plan.zoo.stakes.largest
    least = certificate.smallest_certifiable(choice.cases, 1 - goal.confidence) * largest
    text = f"{choice.cases} {_units(plan)} cannot certify ≤ {allowed(plan)} {confidence}"
    needed = certificate.cases_needed(goal.max_loss / largest, 1 - goal.confidence) if goal.max_loss > 0 else None
    if needed and choice.least >= least > goal.max_loss:
        return f"{text}: even without a single error they reach {least * 100:.2f}; {needed:,} {_units(plan)} are needed"
    return f"{text}: the least that they certify is {choice.least * 100:g}"
