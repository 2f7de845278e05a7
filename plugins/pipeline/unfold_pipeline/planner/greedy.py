"""The greedy planner of InferLine: initialise for latency, then take the cheapest single step that still is in time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from unfold_pipeline.estimator.slo import Judge
from unfold_pipeline.planner.bounds import MOST
from unfold_pipeline.planner.greedy_init import start
from unfold_pipeline.problem.pipeline import Choice, Plan, counted

CENT = 1e-9


@dataclass(frozen=True, slots=True)
class Step:
    """A step that was taken: what was done at which stage, and what the plan cost then."""

    stage: str
    move: str
    cost: float


@dataclass(frozen=True, slots=True)
class Greedy:
    """The end of the greedy planner: the plan (``None``: nothing meets the limit) and the steps that led to it."""

    plan: Plan | None
    steps: tuple[Step, ...] = ()


def plan(judge: Judge, *, compound: bool = False) -> Greedy:
    """Return the greedy plan; ``compound`` also tries to double a batch and remove replicas in one step."""
    current = start(judge)
    if current is None:
        return Greedy(None)
    steps: list[Step] = []
    while True:
        found = _best(judge, current, compound=compound)
        if found is None:
            return Greedy(current, tuple(steps))
        index, move, after = found
        plans = [after, *_again(judge, after, index)] if move == "replica" else [after]
        steps += [Step(judge.pipeline.stages[index].name, move, judge.pipeline.cost(item)) for item in plans]
        current = plans[-1]


def _again(judge: Judge, current: Plan, index: int) -> Iterator[Plan]:
    """Yield the plans of the steps that follow the removal of a replica, as long as more can go at the same stage.

    No other step gets cheaper by it, so that the same one would be chosen again: how often is found by bisection.
    """
    choice = current[index]
    whole = judge.pipeline.options(current)[index].shared == 1
    count = _enough(judge, current, index, choice) if whole and judge.pipeline.price(index, choice) else None
    for replicas in range(choice.replicas - 1, (count or choice.replicas) - 1, -1):
        yield _with(current, index, replace(choice, replicas=replicas))


def _best(judge: Judge, current: Plan, *, compound: bool) -> tuple[int, str, Plan] | None:
    """Return the feasible step of least cost, or the equal-cost doubling of a batch that gains most."""
    now = _price(judge, current)
    best: tuple[tuple[float, float, float, int], int, str, Plan] | None = None
    for index in range(len(current)):
        for move, candidate, gain in _moves(judge, current, index, compound=compound):
            price = _price(judge, candidate)
            better = price < now or (move == "batch" and price == now)
            rank = (*price, -gain, index)
            if better and (best is None or rank < best[0]) and judge.meets(candidate):
                best = (rank, index, move, candidate)
    return None if best is None else best[1:]


def _price(judge: Judge, plan: Plan) -> tuple[float, float]:
    """Return the $ an hour, then what it would be with full instances: a replica less may be a step to one less."""
    return round(judge.pipeline.cost(plan), 9), round(judge.pipeline.floor(plan), 9)


def _moves(judge: Judge, current: Plan, index: int, *, compound: bool) -> Iterator[tuple[str, Plan, float]]:
    choice = current[index]
    option = judge.pipeline.stages[index].options[choice.option]
    if choice.replicas > 1:
        yield "replica", _with(current, index, replace(choice, replicas=choice.replicas - 1)), 0.0
    larger = [batch for batch in option.batches if batch > choice.batch]
    if larger:
        gain = option.price * choice.replicas * (1 - option.throughput(choice.batch) / option.throughput(larger[0]))
        for fewer in (0, 1, 2) if compound else (0,):
            if choice.replicas > fewer:
                moved = Choice(choice.option, larger[0], choice.replicas - fewer)
                yield "batch and replica" if fewer else "batch", _with(current, index, moved), gain
    for place, other in enumerate(judge.pipeline.stages[index].options):
        if other.price < option.price or other.price * other.shared < option.price * option.shared:
            moved_to = _downgraded(judge, current, index, place)
            if moved_to is not None:
                yield f"hardware {other.hardware}", moved_to, 0.0


def _downgraded(judge: Judge, current: Plan, index: int, place: int) -> Plan | None:
    """Return the plan with one stage on cheaper hardware, its batch and replicas chosen anew, if it is cheaper."""
    option = judge.pipeline.stages[index].options[place]
    most = _affordable(judge, current, index, place)
    best: Plan | None = None
    for batch in option.batches:
        count = _enough(judge, current, index, Choice(place, batch, most))
        if count is not None:
            best, most = _with(current, index, Choice(place, batch, count)), count - 1
    return best


def _affordable(judge: Judge, current: Plan, index: int, place: int) -> int:
    """Return the most replicas of a stage on other hardware with which the plan is cheaper than now."""
    pipeline = judge.pipeline
    option = pipeline.stages[index].options[place]
    if not option.price:
        return MOST
    without = _with(current, index, Choice(place, 1, 0))
    used = counted(pipeline.options(without), [choice.replicas for choice in without])[option.hardware]
    room = (pipeline.cost(current) - pipeline.cost(without)) / (option.price * option.shared)
    return int(room - CENT) * option.shared + -used % option.shared


def _enough(judge: Judge, current: Plan, index: int, top: Choice) -> int | None:
    """Return the least replicas, up to those of ``top``, with which the plan is in time."""
    if top.replicas < 1 or not judge.meets(_with(current, index, top)):
        return None
    low, high = 0, top.replicas
    while high - low > 1:
        middle = (low + high) // 2
        good = judge.meets(_with(current, index, replace(top, replicas=middle)))
        low, high = (low, middle) if good else (middle, high)
    return high


def _with(current: Plan, index: int, choice: Choice) -> Plan:
    return (*current[:index], choice, *current[index + 1 :])
