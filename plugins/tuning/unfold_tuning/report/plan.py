"""The plan's reports, in words and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unfold_tuning.format import against, counted, dollars, share, span
from unfold_tuning.job.profile import Machine
from unfold_tuning.job.schedule import Stage
from unfold_tuning.planner.baselines import Goal, static_scores
from unfold_tuning.planner.planner import Offer, Rivals
from unfold_tuning.planner.sensitivity import Point, curve_points, doubts, frontier, lost_together
from unfold_tuning.schema.models import TuningSpec
from unfold_tuning.simulator.plan_cost import Score
from unfoldkit.api import Cell, Column, Figure, Metric, Report, Series, Table, Verdict, time_axis

STAGE_COLUMNS = (
    Column("stage"),
    Column("trials", digits=0),
    Column("iterations", digits=0),
    Column("instances"),
    Column("per trial", "accel."),
    Column("waves"),
    Column("mean", "s", 0),
    Column("cost", "$", 2),
)
PLAN_COLUMNS = (
    Column("plan"),
    Column("cost", "$", 2),
    Column("mean", "s", 0),
    Column("promised", "s", 0),
    Column("on time"),
    Column("against this plan"),
)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Everything about a plan that was found."""

    found: Sequence[Offer]
    item: Offer
    plan: Score
    goal: Goal
    others: Rivals
    floor: float
    seed: int


def subtitle(spec: TuningSpec, stages: Sequence[Stage]) -> tuple[str, ...]:
    """Return the facts beside the title."""
    work = sum(stage.work for stage in stages)
    goal = f"≤ {span(spec.deadline)}" if spec.deadline is not None else f"≤ {dollars(spec.budget or 0)}"
    return (counted(len(stages), "stage"), f"{work:,} trial-iterations", f"{goal} with {share(spec.on_time)}")


def prices(machines: Sequence[Machine]) -> str:
    """Return each machine's price and where it is from."""
    parts = [f"{m.name} {m.market} ${m.price:g}/h ({m.origin})" for m in machines]
    return " · ".join(parts)


def chosen(spec: TuningSpec, what: Chosen) -> Report:
    """Return the report of a plan that keeps its promise."""
    gap = _gap(what)
    points = curve_points(what.found, what.goal, what.seed)
    machine = what.item.model.machine
    headline = (
        f"{dollars(what.plan.cost)} on {machine.name}{_market(machine)} ends within {span(what.goal.deadline)} "
        f"with {share(what.plan.on_time(what.goal.deadline))}"
    )
    return Report(
        kind="tuning",
        verb="plan",
        name=spec.name,
        verdict=Verdict.YES,
        headline=headline,
        metrics=_metrics(spec, what, gap),
        tables=(_stage_table(what), _plan_table(what)),
        figures=(_curve_figure(what, points), _cluster_figure(what)),
        lines=(*_lines(what, points, gap),),
        next="unfold train SPEC" if spec.trainable else "unfold plan SPEC --out plan.yaml",
    )


def too_late(spec: TuningSpec, found: Sequence[Offer], first: tuple[Offer, Score, float]) -> Report:
    """Return the answer to a deadline that no plan can promise."""
    deadline = spec.deadline or 0.0
    item, plan, promised = first
    fastest = min((score for offer in found for score in offer.scores), key=lambda score: score.mean_seconds)
    chance = max(score.on_time(deadline) for offer in found for score in offer.scores)
    metrics = {
        "on_time_probability": Metric(chance, target=f"≥ {spec.on_time:g}", ok=False),
        "fastest_seconds": Metric(fastest.mean_seconds, "s"),
        "fastest_cost_usd": Metric(fastest.cost, "$"),
        "shortest_promise_seconds": Metric(promised, "s"),
        "shortest_promise_cost_usd": Metric(plan.cost, "$"),
    }
    lines = (
        ("binding", _binding(item, fastest)),
        ("fastest", f"{span(fastest.mean_seconds)} on average, for {dollars(fastest.cost)}"),
        ("on time", f"no plan has more than {share(chance)}"),
        ("relaxation", f"deadline {span(promised, up=True)} for {dollars(plan.cost)} on {item.model.machine.name}"),
    )
    soonest = span(promised, up=True)
    headline = f"no plan ends within {span(deadline)} with {share(spec.on_time)}; the soonest promise is {soonest}"
    return Report("tuning", "plan", spec.name, Verdict.NO, headline, (), metrics, lines=lines)


def too_dear(spec: TuningSpec, picked: tuple[Offer, Score], other: tuple[Offer, Score] | None) -> Report:
    """Return the answer when the cheapest plan that is on time exceeds the budget."""
    budget, deadline = spec.budget or 0.0, spec.deadline or 0.0
    plan = picked[1]
    metrics = {
        "cost_usd": Metric(plan.cost, "$", target=f"≤ {budget:g}", ok=False),
        "within_budget_probability": Metric(plan.within(budget), target=f"≥ {spec.on_time:g}", ok=False),
    }
    late = (
        f"{dollars(budget)} is enough for a deadline of {span(other[1].promise(spec.on_time), up=True)}"
        if other
        else ""
    )
    lines = (
        ("binding", f"the budget: {dollars(plan.cost)} on average to end within {span(deadline)}"),
        ("relaxation", " · ".join(filter(None, (f"budget {dollars(_sure(plan, spec.on_time))}", late)))),
    )
    headline = f"no plan ends within {span(deadline)} for {dollars(budget)}, each with {share(spec.on_time)}"
    return Report("tuning", "plan", spec.name, Verdict.NO, headline, (), metrics, lines=lines)


def too_poor(spec: TuningSpec, least: Score) -> Report:
    """Return the answer to a budget that pays for no plan at all."""
    budget = spec.budget or 0.0
    metrics = {"cost_usd": Metric(least.cost, "$", target=f"≤ {budget:g}", ok=False)}
    lines = (("relaxation", f"budget {dollars(_sure(least, spec.on_time))}: {span(least.mean_seconds)} on average"),)
    headline = f"no plan costs at most {dollars(budget)} with {share(spec.on_time)}"
    return Report("tuning", "plan", spec.name, Verdict.NO, headline, (), metrics, lines=lines)


def _sure(plan: Score, level: float) -> float:
    return float(np.quantile(plan.dollars, level, method="higher"))


def _market(machine: Machine) -> str:
    return "" if machine.market == "on-demand" else f" {machine.market}"


def _gap(what: Chosen) -> float | None:
    if not np.isfinite(what.floor):
        return None
    return max(0.0, (what.plan.cost / what.floor - 1) * 100) if what.floor > 0 else 0.0


def _metrics(spec: TuningSpec, what: Chosen, gap: float | None) -> dict[str, Metric]:
    plan, static, lowered = what.plan, what.others.static.best, what.others.greedy.best
    on_time = plan.on_time(what.goal.deadline)
    target = f"≤ {spec.budget:g}" if spec.budget is not None else None
    return {
        "cost_usd": Metric(plan.cost, "$", target=target, ok=True if target else None),
        "on_time_probability": Metric(on_time, target=f"≥ {spec.on_time:g}", ok=what.goal.met(plan)),
        "static_ratio": Metric(static.cost / plan.cost if static else None, "x"),
        "greedy_excess_percent": Metric((lowered.cost / plan.cost - 1) * 100 if lowered else None, "%"),
        "gap_percent": Metric(gap, "%"),
        "mean_seconds": Metric(plan.mean_seconds, "s"),
        "promised_seconds": Metric(plan.promise(what.goal.share), "s"),
        "cost_usd_p90": Metric(_sure(plan, 0.9), "$"),
    }


def _stage_table(what: Chosen) -> Table:
    stages, machine = what.item.model.stages, what.item.model.machine
    lengths = np.diff(what.plan.ends.mean(axis=1), prepend=0.0)
    rows: list[tuple[Cell, ...]] = []
    for index, (stage, deal) in enumerate(zip(stages, what.plan.plan, strict=True)):
        iters = " + ".join(str(group.iters) for group in stage.groups)
        trials = " + ".join(str(group.trials) for group in stage.groups)
        waves = deal.waves(stage.trials)
        cost = _stage_cost(what, index, float(lengths[index])) if machine.billing.per == "instance" else None
        rows.append((index + 1, trials, iters, deal.instances, deal.gang, waves, float(lengths[index]), cost))
    return Table("stages", STAGE_COLUMNS, tuple(rows))


def _stage_cost(what: Chosen, index: int, length: float) -> float:
    plan, item = what.plan.plan, what.item
    before = plan[index - 1].instances if index else 0
    new = max(0, plan[index].instances - before)
    # new instances are not paid while they are waited for
    waiting = float(item.model.provision(index).mean()) * new if new else 0.0
    return (plan[index].instances * length - waiting) * item.model.machine.per_second


def _plan_table(what: Chosen) -> Table:
    others = (
        ("greedy (RubberBand)", what.others.greedy.best),
        ("naive elastic", what.others.naive.best),
        ("best static", what.others.static.best),
    )
    rows = [_plan_row("this plan", what.plan, what, "")]
    for name, found in others:
        if found is None:
            rows.append((name, None, None, None, None, "misses the deadline"))
        else:
            rows.append(_plan_row(name, found, what, against(found.cost, what.plan.cost)))
    gap = _gap(what)
    if gap is not None:
        rows.append(("lower bound", what.floor, None, None, None, f"gap at most {gap:.1f} %"))
    return Table("plans", PLAN_COLUMNS, tuple(rows), accent=0)


def _plan_row(name: str, found: Score, what: Chosen, compared: str) -> tuple[Cell, ...]:
    goal = what.goal
    return (
        name, found.cost, found.mean_seconds, found.promise(goal.share), share(found.on_time(goal.deadline)), compared,
    )  # fmt: skip


def _lines(what: Chosen, points: Sequence[Point], gap: float | None) -> list[tuple[str, str]]:
    goal, plan = what.goal, what.plan
    fastest = min(score.mean_seconds for offer in what.found for score in offer.scores)
    first = min(float(offer.promised.min()) for offer in what.found)
    lines = [("slack", f"{span(max(0.0, goal.deadline - plan.promise(goal.share)))} at {share(goal.share)}")]
    cheaper = _cheaper(what)
    lines += [("cheaper", cheaper)] if cheaper else []
    lines.append(
        ("soonest", f"{span(first, up=True)} can be promised; the fastest plan takes {span(fastest)} on average")
    )
    lines.append(("curve", " · ".join(_steps(points))))
    told = [f"{name}: {share(value)}" for name, value in doubts(what.item.model, plan.plan, goal)]
    lines.append(("if wrong", " · ".join(told)))
    if what.item.model.machine.hazard:
        chance = share(lost_together(what.item, plan.plan, goal))
        lines.append(("spot", f"all instances lost at once, half-way: {chance} on time"))
    if what.item.model.machine.by_steps:
        step = span(what.item.model.machine.billing.increment)
        lines.append(
            ("search", f"the bill rounds up to {step}: the cheapest plan found, not proven to be the cheapest")
        )
    lines += [("options", text) for text in [_options(what)] if text]
    if gap is not None and gap > 0.05:
        floor = f"nothing that keeps the promise costs less than {dollars(what.floor)}"
        lines.append(("bound", f"{floor} (proven for the deals that were searched; whether it can be reached is open)"))
    return lines


def _steps(points: Sequence[Point]) -> list[str]:
    """The deadlines of the curve from which on less is paid."""
    least: dict[str, str] = {}
    for point in points:
        if point.exact:
            least.setdefault(dollars(point.exact), span(point.deadline, up=True))
    return [f"{deadline} {cost}" for cost, deadline in least.items()]


def _cheaper(what: Chosen) -> str:
    below = [item for item in what.item.scores if item.cost < what.plan.cost - 1e-9]
    if not below:
        return ""
    item = max(below, key=lambda found: found.on_time(what.goal.deadline))
    chance = share(math.floor(item.on_time(what.goal.deadline) * 1000) / 1000)
    late = span(item.promise(what.goal.share), up=True)
    return f"{dollars(item.cost)} would be on time with {chance} only, or by {late}"


def _options(what: Chosen) -> str:
    if len(what.found) == 1:
        return ""
    parts = []
    for offer in what.found:
        best = what.plan if offer is what.item else offer.pick(what.goal.deadline)
        machine = offer.model.machine
        parts.append(f"{machine.name}{_market(machine)} {dollars(best.cost) if best else 'too slow'}")
    return " · ".join(parts)


def _binding(item: Offer, fastest: Score) -> str:
    lengths = np.diff(fastest.ends.mean(axis=1), prepend=0.0)
    index = int(lengths.argmax())
    stage, deal = item.model.stages[index], fastest.plan[index]
    iters = max(group.iters for group in stage.groups)
    return (
        f"stage {index + 1}: {counted(stage.trials, 'trial')} of {counted(iters, 'iteration')} on "
        f"{counted(deal.gang, 'accelerator')} each, "
        f"{span(float(lengths[index]))} of {span(fastest.mean_seconds)}"
    )


def _curve_figure(what: Chosen, points: Sequence[Point]) -> Figure:
    level = what.goal.share
    exact = frontier([what.plan, *(item for offer in what.found for item in offer.scores)], level)
    static = frontier([item for offer in what.found for item in static_scores(offer.model)], level)
    lowered = [(point.greedy.promise(level), point.greedy.cost) for point in points if point.greedy]
    last = max(seconds for seconds, _ in (*exact, *static, *lowered))
    unit, each = time_axis(last)
    series = (
        _series("best static", _until(static, last), "steps", each),
        _series("greedy (RubberBand)", lowered, "points", each),
        _series("cheapest found" if what.item.model.machine.by_steps else "exact", _until(exact, last), "steps", each),
        _series("this plan, at its deadline", [(what.goal.deadline, what.plan.cost)], "points", each),
    )
    title = f"Cost by deadline, promised with {share(level)}"
    return Figure("curve", title, f"deadline {unit}", "cost $", series, log_x=True, log_y=True)


def _until(steps: Sequence[tuple[float, float]], last: float) -> list[tuple[float, float]]:
    return [*steps, (last, steps[-1][1])] if steps else []


def _series(name: str, pairs: Sequence[tuple[float, float]], style: Literal["steps", "points"], each: float) -> Series:
    return Series(name, tuple(x / each for x, _ in pairs), tuple(y for _, y in pairs), style)


def _cluster_figure(what: Chosen) -> Figure:
    ends = [0.0, *what.plan.ends.mean(axis=1).tolist()]
    held = [float(deal.instances) for deal in what.plan.plan]
    unit, each = time_axis(ends[-1])
    series = Series("instances", tuple(end / each for end in ends), (*held, held[-1]), "steps")
    return Figure("cluster", "Instances held over time", unit, "instances", (series,))
