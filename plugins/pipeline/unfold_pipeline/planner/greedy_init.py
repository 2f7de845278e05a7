"""Where the greedy planner starts: quick hardware that the quotas allow, and replicas at the bottleneck.

InferLine starts with batch 1 on the quickest hardware. Where that needs more than a quota, some stages take larger
batches or other hardware; of what carries the mean load within the quotas, the quickest is tried first.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from unfold_pipeline.estimator.slo import Judge
from unfold_pipeline.planner.bounds import MOST, least
from unfold_pipeline.problem.pipeline import Choice, Plan, needed, service_time

TRIES = 16
LOOKS = 256
ROOM = 16
BUSY = 0.7
PLENTY = 4096
Rank = tuple[int, float, float]


@dataclass(slots=True)
class Heads:
    """Plans of one replica a stage that wait to be tried, the best first; none comes twice."""

    heap: list[tuple[Rank, int, Plan]] = field(default_factory=list)
    seen: set[Plan] = field(default_factory=set)

    def push(self, judge: Judge, head: Plan) -> None:
        """Add a head that did not come before."""
        if head not in self.seen:
            self.seen.add(head)
            heapq.heappush(self.heap, (_rank(judge, head), len(self.seen), head))


def start(judge: Judge) -> Plan | None:
    """Return a plan that meets the limit within the quotas, or ``None`` if none of those that are tried does."""
    begin = tuple(Choice(stage.quickest_option, 1, 1) for stage in judge.pipeline.stages)
    if _too_slow(judge, begin):
        return None
    heads = Heads()
    heads.push(judge, begin)
    tries = looks = 0
    while heads.heap and tries < TRIES and looks < LOOKS:
        (over, _, _), _, head = heapq.heappop(heads.heap)
        looks += 1
        tries += over == 0
        found = _grown(judge, head) if over == 0 or head == begin else None
        if found is not None:
            return found
        for other in _beside(judge, head):
            heads.push(judge, other)
    return None


def _too_slow(judge: Judge, begin: Plan) -> bool:
    """Whether the quickest hardware is late even without queues; a flow that few queries take may be long."""
    if judge.single(begin) <= judge.limit:
        return False
    free = replace(judge, pipeline=replace(judge.pipeline, quotas=()))
    return not free.meets(tuple(replace(choice, replicas=PLENTY) for choice in begin))


def _rank(judge: Judge, head: Plan) -> Rank:
    """Return what to try first: no replica above a quota, then limited hardware that is not busy, then quickness."""
    loads = [judge.load(index) / _capacity(judge, index, choice) for index, choice in enumerate(head)]
    covering = tuple(replace(c, replicas=needed(load, 1.0)) for c, load in zip(head, loads, strict=True))
    over = sum(used - most for _, used, most in judge.pipeline.over_quotas(covering))
    busy = max((_busy(judge, head, loads, name) / most for name, most in judge.pipeline.quotas if most), default=0.0)
    options = [stage.options[choice.option] for stage, choice in zip(judge.pipeline.stages, head, strict=True)]
    seconds = [float(option.latency[choice.batch]) for option, choice in zip(options, head, strict=True)]
    return over, max(busy, BUSY), service_time(judge.pipeline, seconds)


def _busy(judge: Judge, head: Plan, loads: list[float], name: str) -> float:
    return sum(load for index, load in enumerate(loads) if _hardware(judge, index, head[index]) == name)


def _beside(judge: Judge, head: Plan) -> Iterator[Plan]:
    """Yield the heads with a larger batch or other hardware at one stage that now takes limited hardware."""
    limited = {name for name, _ in judge.pipeline.quotas}
    for index, choice in enumerate(head):
        if _hardware(judge, index, choice) not in limited:
            continue
        options = judge.pipeline.stages[index].options
        for batch in options[choice.option].batches:
            if batch > choice.batch:
                yield _with(head, index, replace(choice, batch=batch))
        for place in range(len(options)):
            if place != choice.option:
                yield _with(head, index, Choice(place, 1, 1))


def _grown(judge: Judge, head: Plan) -> Plan | None:
    """Return the head with replicas at the bottleneck until it is in time.

    The order in which bottlenecks get replicas is fixed, so the least number of steps is found by bisection.
    """
    plans = [head]

    def after(steps: int) -> Plan:
        while len(plans) <= min(steps, most):
            plans.append(_widened(judge, plans[-1]))
        return plans[min(steps, most)]

    begin = _covering(judge, head)
    # where a quota may be what is in the way, many more replicas elsewhere are not worth their simulation
    most = min(MOST, ROOM * (begin + len(head))) if judge.pipeline.quotas else MOST
    count = least(lambda steps: judge.meets(after(steps - 1)), begin + 1)
    return after(count - 1) if count < MOST else None


def _covering(judge: Judge, head: Plan) -> int:
    """Return the steps until each stage can carry its mean load: fewer are not worth a simulation on long samples."""
    steps, current = 0, head
    while steps < MOST and (index := _bottleneck(judge, current)) is not None:
        if _capacity(judge, index, current[index]) >= judge.load(index):
            break
        steps, current = steps + 1, _wider(current, index)
    return steps


def _widened(judge: Judge, current: Plan) -> Plan:
    index = _bottleneck(judge, current)
    return current if index is None else _wider(current, index)


def _wider(current: Plan, index: int) -> Plan:
    return _with(current, index, replace(current[index], replicas=current[index].replicas + 1))


def _bottleneck(judge: Judge, current: Plan) -> int | None:
    """Return the stage that carries the least of its load, of those whose hardware is not used up."""
    scores = [
        _capacity(judge, index, choice) / max(judge.load(index), 1e-12)
        if judge.pipeline.within_quotas(_wider(current, index))
        else math.inf
        for index, choice in enumerate(current)
    ]
    least_score = min(scores)
    return scores.index(least_score) if least_score < math.inf else None


def _capacity(judge: Judge, index: int, choice: Choice) -> float:
    return choice.replicas * judge.pipeline.stages[index].options[choice.option].throughput(choice.batch)


def _hardware(judge: Judge, index: int, choice: Choice) -> str:
    return judge.pipeline.stages[index].options[choice.option].hardware


def _with(current: Plan, index: int, choice: Choice) -> Plan:
    return (*current[:index], choice, *current[index + 1 :])
