"""The report of a cascade: the answer, the reasons, the next command."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from unfold_cascade.data import error_costs
from unfold_cascade.planner.planner import Plan
from unfold_cascade.planner.policy import Outcome, Policy, Step, follow, path_cost
from unfold_cascade.planner.score_tables import Question, Zoo
from unfold_cascade.planner.select import NO_BETTER
from unfold_cascade.report import certificate, class_skew, greedy_gap
from unfold_cascade.report import saving as saved
from unfold_cascade.report.quality import (
    accuracy,
    base_accuracy,
    base_worth,
    lost,
    lost_by_group,
    weighted,
    weights,
    worth,
)
from unfold_cascade.report.threshold_tables import gates_of, spelled
from unfold_cascade.report.threshold_tables import tables as trust_tables
from unfoldkit.api import Cell, Column, Figure, Metric, Report, Run, Series, Table, Verdict

MEASURED = "latency"
MOST_DIGITS = 12


def tell(plan: Plan, run: Run, verb: str) -> Report:
    """Return the report of a plan on the test rows, which nothing before has looked at."""
    outcome = _outcome(plan, plan.policy)
    tables = (_policies(plan, run), *certificate.tables(plan, outcome), *_stage_tables(plan, outcome), _monoliths(plan))
    return Report(
        kind="cascade",
        verb=verb,
        name=plan.spec.name,
        verdict=_verdict(plan),
        headline=_headline(plan, outcome, run),
        subtitle=_subtitle(plan),
        metrics=_metrics(plan, outcome),
        tables=tables,
        figures=(_figure(plan),),
        lines=_lines(plan, outcome),
        next=_next(plan, run, verb),
        decision=_decision(plan),
        provenance={"inputs": {"data": plan.given.digest}},
    )


def _verdict(plan: Plan) -> Verdict:
    return Verdict.NO if plan.policy is None else Verdict.YES


def _outcome(plan: Plan, policy: Policy | None) -> Outcome:
    """Return what happens to the test rows; without a cascade the monolith answers them."""
    rows = plan.given.rows.test
    if policy is not None:
        return follow(plan.zoo, policy, rows)
    ones = np.ones(len(rows))
    base = plan.base
    nobody = np.full(len(rows), -1, dtype=np.int64)
    return Outcome(base.answer[rows], ones * _base_cost(plan), ones * base.latency_us, nobody, nobody, nobody)


def _base_cost(plan: Plan) -> float:
    """Return the mean cost of the best single model on the test rows."""
    paid = plan.zoo.monoliths.paid
    return plan.base.cost if paid is None else float(paid[plan.given.rows.test, plan.base.index].mean())


def _metrics(plan: Plan, outcome: Outcome) -> dict[str, Metric]:
    timed = plan.spec.cost.by == MEASURED
    goal, unit = plan.spec.goal, plan.zoo.unit
    target = f"≤ {goal.max_loss * 100:g}" if goal.max_loss is not None else None
    certified = _promised(plan)
    return {
        "saving": Metric(saved.times(_base_cost(plan), float(outcome.cost.mean())), "x", timed=timed),
        "loss_points": Metric(round(lost(plan, outcome), 9), "points", timed=timed),
        "certified_loss_points": Metric(
            None if certified is None else round(certified * 100, 9),
            "points",
            target=target,
            ok=None if target is None else plan.policy is not None,
            timed=timed,
        ),
        "baseline_accuracy": Metric(base_accuracy(plan), timed=False),
        "cascade_accuracy": Metric(accuracy(plan, outcome), timed=timed),
        "baseline_cost": Metric(_base_cost(plan), unit, timed=timed),
        "cascade_cost": Metric(float(outcome.cost.mean()), unit, timed=timed),
        "front_points": Metric(len(plan.front.policies), timed=timed),
        **_latency(plan, outcome),
        **weights(plan, outcome, timed=timed),
    }


def _promised(plan: Plan) -> float | None:
    """Return the loss that is certified; of a plan that is refused the least that would have been."""
    if plan.policy is not None:
        return plan.choice.certified
    return None if plan.spec.goal.max_loss is None or plan.choice.reason else plan.choice.least


def _latency(plan: Plan, outcome: Outcome) -> dict[str, Metric]:
    if np.isnan(plan.base.latency_us):
        return {}
    saving = plan.base.latency_us / float(outcome.latency_us.mean())
    return {"latency_saving": Metric(saving, "x", timed=True)}


def _policies(plan: Plan, run: Run) -> Table:
    del run
    timed, unit = plan.spec.cost.by == MEASURED, plan.zoo.unit
    columns = (
        Column("policy"),
        Column("accuracy", "%", 1, timed=timed),
        *([Column("weighted", "%", 1, timed=timed)] if weighted(plan) else []),
        Column("cost", unit, _digits(_base_cost(plan), float(plan.front.cost[0])), timed=timed),
        Column("saving", "x", 1, timed=timed),
        Column("stops at first", "%", 0, timed=timed),
        Column("time", "µs", 1, timed=True),
    )
    rows: list[tuple[Any, ...]] = [
        (
            f"best single model ({plan.base.name})",
            base_accuracy(plan) * 100,
            *([base_worth(plan) * 100] if weighted(plan) else []),
            _base_cost(plan),
            1.0,
            None,
            plan.base.latency_us,
        )
    ]
    chosen = None
    for label, policy in _named(plan):
        outcome = _outcome(plan, policy)
        first = float((outcome.exit_first == 0).mean()) * 100
        cost = float(outcome.cost.mean())
        row = (
            label,
            accuracy(plan, outcome) * 100,
            *([worth(plan, outcome.answer) * 100] if weighted(plan) else []),
            cost,
            saved.cell(_base_cost(plan), cost),
            first,
            float(outcome.latency_us.mean()),
        )
        chosen = len(rows) if policy is plan.policy else chosen
        rows.append(row)
    return Table("policies", columns, tuple(rows), chosen)


def _named(plan: Plan) -> list[tuple[str, Policy]]:
    policies = plan.front.policies
    named = (
        []
        if plan.policy is None
        else [
            ("cascade, " + ("certified" if plan.spec.goal.max_loss is not None else "within the budget"), plan.policy)
        ]
    )
    others = [("cascade, most accurate", policies[-1]), ("cascade, cheapest", policies[0])]
    return named + [(label, policy) for label, policy in others if policy is not plan.policy]


def _stage_tables(plan: Plan, outcome: Outcome) -> list[Table]:
    if plan.policy is None:
        return []
    timed = plan.spec.cost.by == MEASURED
    gates = list(gates_of(plan.spec, plan.given, plan.zoo, plan.policy))
    calibrated = any(one.trusts for one in gates)
    columns = (
        Column("stage"),
        Column("group"),
        Column("model"),
        Column("asked", "%", 1, timed=timed),
        Column("sure", "%", 1, timed=timed),
        Column("calibrated" if calibrated else "answers from", "", 3, timed=timed),
    )
    zoo, n = plan.zoo, len(outcome.answer)
    rows = _chain_rows(zoo, zoo.first, plan.policy.first, outcome.exit_first, n, frozenset())
    owned = zoo.first.buys[plan.policy.first.chain[0]]
    for group, step in plan.policy.then.items():
        here = outcome.group == group
        rows += _chain_rows(zoo, zoo.then[group], step, outcome.exit_then[here], n, owned)
    call = Column("a call", zoo.unit, _digits(*(row[-1] for row in rows)), timed=timed)
    return [Table("route", (*columns, call), tuple(rows)), *trust_tables(gates)]


def _chain_rows(
    zoo: Zoo, question: Question, step: Step, exit_: Any, n: int, owned: frozenset[str]
) -> list[tuple[Any, ...]]:
    """Return a row a model; a call is told with what it must buy that the chain, or ``owned``, has not."""
    rows, calls = [], np.diff(path_cost(zoo, question, step.chain, owned), prepend=0.0)
    for position, model in enumerate(step.chain):
        asked, sure = int((exit_ >= position).sum()), int((exit_ == position).sum())
        cut = step.cuts[position] if position < len(step.cuts) else None
        shown = None if cut is None or not np.isfinite(cut) else cut
        share = 100 * sure / asked if asked else None
        rows.append(
            (
                question.stage,
                question.group,
                question.models[model],
                100 * asked / n,
                share,
                shown,
                float(calls[position]),
            )
        )
    return rows


def _monoliths(plan: Plan) -> Table:
    question, given = plan.zoo.monoliths, plan.given
    losses = plan.zoo.stakes.losses(question.answer, given.labels[:, None])
    timed = plan.spec.cost.by == MEASURED
    call = question.price if question.paid is None else question.paid[given.rows.test].mean(axis=0)
    costs = [float(call[m] + plan.zoo.bought(question.buys[m])) for m in range(len(question.models))]
    columns = (
        Column("single model tried"),
        *(Column(f"{part} {'weighted' if weighted(plan) else 'accuracy'}", "%", 1) for part in ("train", "test")),
        Column("cost", plan.zoo.unit, _digits(*costs), timed=timed),
        Column("time", "µs", 1, timed=True),
    )
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            name,
            *(100 * (1 - float(losses[rows, m].mean())) for rows in (given.rows.train, given.rows.test)),
            costs[m],
            float(question.latency_us[m]),
        )
        for m, name in enumerate(question.models)
    )
    return Table("single models", columns, rows, plan.base.index)


def _figure(plan: Plan) -> Figure:
    outcomes = [_outcome(plan, policy) for policy in plan.front.policies]
    cost = tuple(float(outcome.cost.mean()) for outcome in outcomes)
    tuned = tuple(float(100 * (1 - loss)) for loss in plan.front.loss)
    tested = tuple(100 * worth(plan, outcome.answer) for outcome in outcomes)
    series = [
        Series("on the tuning rows", tuple(map(float, plan.front.cost)), tuned, "steps"),
        Series("on the test rows", cost, tested, "line"),
        Series(f"best single model ({plan.base.name})", (_base_cost(plan),), (100 * base_worth(plan),), "points"),
    ]
    if plan.choice.point is not None:
        point = plan.choice.point
        series.append(Series("chosen", (cost[point],), (tested[point],), "points"))
    measure = "weighted accuracy" if weighted(plan) else "accuracy"
    title = f"{plan.spec.name}: {measure} and cost of {_cascades(plan)}"
    unit = f"mean cost of a case, {plan.zoo.unit}"
    return Figure("front", title, unit, f"{measure} %", tuple(series), log_x=True, timed=plan.spec.cost.by == MEASURED)


def _lines(plan: Plan, outcome: Outcome) -> tuple[tuple[str, str], ...]:
    errors = plan.spec.goal.errors
    least, most = (saved.short(plan.base.cost, float(plan.front.cost[end])) for end in (-1, 0))
    lines = [
        ("certificate", certificate.line(plan, lost_by_group(plan, outcome))),
        (
            "front",
            f"{_cascades(plan)} from {least} to {most}; plot: --out report.html",
        ),
        *greedy_gap.lines(plan),
        *class_skew.lines(plan, outcome),
        *([("errors", f"{error_costs.told(errors)}; losses are in points of the worst")] if errors is not None else []),
        ("split", _split(plan)),
    ]
    return tuple(lines)


def _cascades(plan: Plan) -> str:
    count = len(plan.front.cost)
    return "1 cascade" if count == 1 else f"{count} cascades"


def _split(plan: Plan) -> str:
    rows = plan.given.rows
    how = "" if plan.spec.data.source == "recorded" else ", out of fold"
    tuned = f"gates tuned on {len(rows.train)} cases{how}"
    return f"{tuned}; certified on {len(rows.calibrate)}; figures from {len(rows.test)} more"


def _headline(plan: Plan, outcome: Outcome, run: Run) -> str:
    if plan.policy is not None:
        cheaper = saved.in_words(_base_cost(plan), float(outcome.cost.mean()), plan.zoo.unit)
        return f"{cheaper} at {certificate.shown(lost(plan, outcome))} points · saved in {run.directory.path}"
    goal = plan.spec.goal
    if goal.budget is not None and plan.choice.reason == NO_BETTER:
        right = f"{100 * base_accuracy(plan):.1f} % right for {plan.base.cost:.4g} {plan.zoo.unit} a case"
        return f"no cascade within the budget is as accurate as {plan.base.name} alone, which is within it: {right}"
    if goal.budget is not None:
        return f"no cascade costs ≤ {goal.budget:g} {plan.zoo.unit} a case; the cheapest needs {plan.front.cost[0]:.4g}"
    if plan.choice.reason:
        return f"no cascade is cheaper than {plan.base.name}"
    relaxation = certificate.relaxation(plan)
    return f"no cascade is certified within {certificate.allowed(plan)}; smallest relaxation: {relaxation}"


def _subtitle(plan: Plan) -> tuple[str, ...]:
    spec = plan.spec
    models = sum(len(stage.models) for stage in spec.stages)
    return (
        f"{len(spec.stages)} stages" if len(spec.stages) > 1 else "1 stage",
        f"{models} models",
        f"{len(plan.given.labels):,} cases",
    )


def _next(plan: Plan, run: Run, verb: str) -> str:
    if plan.policy is None and plan.spec.goal.budget is None and not plan.choice.reason:
        return f"unfold plan {run.directory.word} {certificate.settings(plan)}"
    if verb == "plan":
        return f"unfold plan {run.directory.word} --out plan.yaml"
    if plan.spec.data.source != "recorded":
        return f"unfold serve {run.directory.word}"
    goal = "goal.max_loss=1%" if plan.spec.goal.budget is None else "'goal.budget=1000 per case'"
    return f"unfold plan {run.directory.word} --set {goal} --out front.html"


def _decision(plan: Plan) -> dict[str, Any]:
    """Return the plan: which models in which order with which cuts; measured times are no part of it."""
    common = {"baseline": plan.base.name, "goal": plan.spec.goal.model_dump(mode="json", exclude_none=True)}
    if plan.policy is None:
        return common | {"cascade": None}
    return common | {"cascade": spelled(plan.spec, plan.given, plan.zoo, plan.policy)}


def _digits(*costs: float) -> int:
    """Return the digits after the point that show the smallest of some costs, of tiny ones two that count."""
    least = min((cost for cost in costs if cost > 0), default=1.0)
    if least < 0.01:
        return min(max(5, 1 - math.floor(math.log10(least))), MOST_DIGITS)
    return 0 if least >= 100 else 1 if least >= 10 else 2
