"""What a person sees of a plan: tables, figures and sentences."""

from __future__ import annotations

from collections.abc import Sequence

from unfold_pipeline.estimator.slo import Judge
from unfold_pipeline.planner.diagnostics import Refused, StageTime
from unfold_pipeline.planner.frontier import Point
from unfold_pipeline.planner.planner import Baseline, Outcome
from unfold_pipeline.problem.pipeline import Plan, counted
from unfoldkit.api import Cell, Column, Figure, Series, Table


def milliseconds(seconds: float) -> str:
    """Return seconds as text, in ms below ten seconds, with as many digits as matter."""
    value = seconds * 1e3
    if value >= 1e4:
        return f"{seconds:,.1f} s"
    if 0 < value < 0.1:
        return f"{value * 1e3:,.3g} µs"
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.1f} ms"


def stage_table(judge: Judge, plan: Plan, times: Sequence[StageTime]) -> Table:
    """Return one row a stage: what it runs on, how full it is, how long it takes, what it costs."""
    # stages of a cascade may take microseconds, which would all be 0.0 ms
    unit, each = ("ms", 1e3) if max(time.tail for time in times) >= 1e-3 else ("µs", 1e6)
    columns = (
        Column("stage"),
        Column("hardware"),
        Column("batch"),
        Column("replicas"),
        Column("load", "%", 0),
        Column("p99", unit, 1),
        Column("waiting", unit, 1),
        Column("price", "$/h", 2),
    )
    rows: list[tuple[Cell, ...]] = []
    bills = judge.pipeline.bills(plan)
    for stage, choice, time, price in zip(judge.pipeline.stages, plan, times, bills, strict=True):
        shown = (time.load * 100, time.tail * each, time.waiting * each, price)
        rows.append((stage.name, stage.options[choice.option].hardware, choice.batch, choice.replicas, *shown))
    return Table("stages", columns, tuple(rows))


def plan_table(outcome: Outcome, tail: float, coarse: tuple[Baseline, Baseline] | None) -> Table:
    """Return this plan beside greedy, the coarse-grained plans and the proven bound."""
    digits = 0 if tail >= 0.01 else 3
    columns = (Column("plan"), Column("price", "$/h", 2), Column("p99", "ms", digits), Column("against this plan"))
    cost, limit = outcome.cost, outcome.judge.limit
    rows: list[tuple[Cell, ...]] = [("this plan", cost, tail * 1e3, "")]
    if outcome.greedy.plan is not None:
        other = outcome.judge.pipeline.cost(outcome.greedy.plan)
        against = _against(other, cost, late=False)
        rows.append(("greedy (InferLine)", other, outcome.judge.tail(outcome.greedy.plan) * 1e3, against))
    for name, item in zip(("coarse-grained, peak", "coarse-grained, mean"), coarse or (), strict=False):
        rows.append((name, item.cost, item.tail * 1e3, _against(item.cost, cost, late=item.tail > limit)))
    gap = "reached: nothing is cheaper" if outcome.proven else f"gap at most {outcome.gap * 100:.1f} %"
    rows.append(("lower bound, proven", outcome.bound, None, gap))
    return Table("plans", columns, tuple(rows), accent=0)


def _against(other: float, cost: float, *, late: bool) -> str:
    if not cost:
        return "free too" if not other else "not free"
    change = (other / cost - 1) * 100
    told = "the same price" if abs(change) < 0.05 else f"{'+' if change > 0 else '−'} {abs(change):.0f} %"
    return f"misses the target ({told})" if late else told


def frontier_figure(points: Sequence[Point], outcome: Outcome) -> Figure:
    """Return the price against the target, and the target and price of the plan that was chosen."""
    known = [(point.limit * 1e3, point.cost) for point in points if point.cost is not None]
    name = "cheapest plan" if all(point.exact for point in points) else "cheapest plan found"
    series = Series(name, tuple(x for x, _ in known), tuple(y for _, y in known), "steps")
    mine = Series("this plan, at its target", (outcome.judge.limit * 1e3,), (outcome.cost,), "points")
    return Figure("frontier", "Price of the cheapest plan by target", "p99 target ms", "price $/h", (series, mine))


def stage_figures(judge: Judge, times: Sequence[StageTime], plan: Plan) -> tuple[Figure, Figure]:
    """Return waiting against service, and the price, stage by stage."""
    names = tuple(stage.name for stage in judge.pipeline.stages)
    at = tuple(float(index + 1) for index in range(len(times)))
    service = Series("service", at, tuple((time.mean - time.waiting) * 1e3 for time in times), "bars")
    waiting = Series("waiting", at, tuple(time.waiting * 1e3 for time in times), "bars")
    price = Series("price", at, judge.pipeline.bills(plan), "bars")
    return (
        Figure("stages", "Where the time goes", "stage", "mean ms", (service, waiting), names=names),
        Figure("prices", "Where the money goes", "stage", "price $/h", (price,), names=names),
    )


def frontier_line(points: Sequence[Point]) -> str:
    """Return the frontier as one line; ``≤`` where the search stopped at its limit, so that less may do."""
    return " · ".join(f"{milliseconds(point.limit)} {_price(point)}" for point in points)


def _price(point: Point) -> str:
    if point.cost is None:
        return "none" if point.exact else "none found"
    return f"{'' if point.exact else '≤ '}${point.cost:,.2f}"


def slack_line(judge: Judge, tail: float, times: Sequence[StageTime]) -> str:
    """Return the slack at the percentile, and the stage that the slowest queries wait for most."""
    index = max(range(len(times)), key=lambda place: times[place].path)
    name = judge.pipeline.stages[index].name
    share = times[index].path * 100
    return (
        f"{milliseconds(judge.limit - tail)} at p99; {name} takes most of the time of {share:.0f} % of the slowest 1 %"
    )


def overload_line(judge: Judge, plan: Plan) -> str:
    """Return the stages that get more on average than they can serve, which the end of the sample hides; or nothing."""
    parts = []
    for index, (choice, option) in enumerate(zip(plan, judge.pipeline.options(plan), strict=True)):
        share = judge.load(index) / (choice.replicas * option.best_throughput(choice.batch))
        if share > 1:
            parts.append(f"{judge.pipeline.stages[index].name} gets {share * 100:,.0f} % of what it can serve")
    told = "so its queue grows as long as the traffic lasts: the target is met because the sample ends"
    return f"{', '.join(parts)}, {told}" if parts else ""


def refused_line(judge: Judge, plan: Plan, refused: Sequence[Refused]) -> str:
    """Return the largest saving that was refused, and by how much."""
    late = [item for item in refused if item.tail > judge.limit]
    if not late:
        return "nothing to take away: one replica a stage"
    item = late[0]
    stage = judge.pipeline.stages[item.stage]
    hardware = stage.options[plan[item.stage].option].hardware
    over = milliseconds(item.tail - judge.limit)
    return f"one {hardware} less at {stage.name}: p99 {milliseconds(item.tail)} (refused by {over})"


def loss_line(judge: Judge, plan: Plan, tails: Sequence[float | None]) -> str:
    """Return what the loss of one replica does at the stage where it hurts most."""
    single = [judge.pipeline.stages[index].name for index, tail in enumerate(tails) if tail is None]
    known = {index: tail for index, tail in enumerate(tails) if tail is not None}
    parts = []
    if known:
        worst = max(known, key=lambda index: known[index])
        stage = judge.pipeline.stages[worst]
        told = "still in time" if known[worst] <= judge.limit else "misses the target"
        hardware = stage.options[plan[worst].option].hardware
        parts.append(f"one {hardware} lost at {stage.name}: p99 {milliseconds(known[worst])} ({told})")
    if single:
        parts.append(f"an outage at {', '.join(single)} (one replica)")
    return "; ".join(parts)


def instances_line(judge: Judge, plan: Plan) -> str:
    """Return the instances that must be rented where several replicas are on one; empty where none are."""
    options = judge.pipeline.options(plan)
    used = counted(options, [choice.replicas for choice in plan])
    shared = {option.hardware: option for option in options if option.shared > 1}
    return " · ".join(
        f"{option.instances(used[name])} {name} for {used[name]} replicas, {option.shared} on each"
        for name, option in shared.items()
    )


def certainty(outcome: Outcome) -> str:
    """Return how good the plan is known to be, in the words that are due."""
    if outcome.proven:
        return "optimal, proven"
    if outcome.searched:
        return f"optimal within the per-stage bounds; proven gap at most {outcome.gap * 100:.1f} %"
    return f"search stopped at its limit; gap at most {outcome.gap * 100:.1f} %"
