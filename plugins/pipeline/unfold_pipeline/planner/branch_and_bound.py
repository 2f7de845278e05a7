"""The cheapest plan over hardware, batch and replicas of every stage: best-first search over per-stage bounds.

A node fixes the first stages. Its value is their price plus, for each stage to come, the least that the stage could
cost alone (on full instances, as stages share them). The cheapest node is taken first and the last of its stages
simulated on what leaves the stages above; a stage after which too many queries are late whatever follows (each needs at
least the quickest hardware on its own way) ends the branch with all that would have come below it. The first whole plan
that the simulation accepts is the cheapest that is consistent with the bounds; with the fluid bound, which is proven,
it is the cheapest.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from operator import itemgetter

from unfold_pipeline.estimator.estimator import SLACK
from unfold_pipeline.estimator.remaining_work import hopeless
from unfold_pipeline.estimator.slo import Judge
from unfold_pipeline.planner.bounds import MOST, Bounds
from unfold_pipeline.problem.pipeline import Choice, Depth, Plan
from unfoldkit.queueing.stage import Flow

CENT = 1e-9
Flows = tuple[Flow, ...]
Options = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """The end of a search: the cheapest plan (``None``: none below the ceiling), and a bound on what is cheaper.

    ``bound`` is in $ an hour; ``complete`` is false if the search stopped at its limit of simulated queries.
    """

    plan: Plan | None
    bound: float
    complete: bool
    nodes: int


@dataclass(slots=True)
class Frontier:
    """The nodes that wait, cheapest first; among equals the one with most stages fixed."""

    heap: list[tuple[float, int, int, Plan]] = field(default_factory=list)
    count: int = 0
    nodes: int = 0

    def push(self, value: float, plan: Plan) -> None:
        """Add a node."""
        self.count += 1
        heapq.heappush(self.heap, (round(value, 9), -len(plan), self.count, plan))


@dataclass(frozen=True, slots=True)
class Known:
    """What depends on the hardware alone, remembered by the options of the stages that are fixed."""

    depths: dict[Options, Depth] = field(default_factory=dict)
    offers: dict[Options, dict[int, Choice]] = field(default_factory=dict)
    rests: dict[Options, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Search:
    """What stays the same during a search. ``fluid`` uses the proven bound only: slower, and a proof."""

    judge: Judge
    bounds: Bounds
    ceiling: float = float("inf")
    fluid: bool = False
    memory: Known = field(default_factory=Known)

    def depth(self, options: Options) -> Depth:
        """Return the seconds that cannot be avoided around each stage, the open ones on their quickest hardware."""
        if options not in self.memory.depths:
            stages = self.judge.pipeline.stages
            chosen = [stage.options[option].quickest for stage, option in zip(stages, options, strict=False)]
            open_stages = [min(item.quickest for item in stage.options) for stage in stages[len(options) :]]
            self.memory.depths[options] = self.bounds.depth([*chosen, *open_stages])
        return self.memory.depths[options]

    def raised(self, plan: Plan) -> Plan:
        """Return the plan with as many replicas of its last stage as it needs at least, ``MOST`` if none will do."""
        options, last = tuple([choice.option for choice in plan]), plan[-1]
        count = self._bound(len(plan) - 1, self.depth(options), last.option, last.batch)
        if count <= last.replicas:
            return plan
        offer = self.offers(options)[last.batch] = replace(last, replicas=count)
        return (*plan[:-1], offer)

    def value(self, plan: Plan) -> float:
        """Return $ an hour below which no plan that begins like this one is; the cost of a whole plan.

        What is rented for the first stages may have room for the rest, so only full instances add up.
        """
        pipeline, options = self.judge.pipeline, tuple([choice.option for choice in plan])
        if options not in self.memory.rests:
            self.memory.rests[options] = self._rest(options)
        return max(pipeline.cost(plan), pipeline.floor(plan) + self.memory.rests[options])

    def offers(self, options: Options) -> dict[int, Choice]:
        """Return the choices of the last stage of ``options`` by batch, none with more replicas than it needs."""
        if options not in self.memory.offers:
            found = self._carrying(len(options) - 1, self.depth(options), options[-1:])
            self.memory.offers[options] = {choice.batch: choice for _, choice in found}
        return self.memory.offers[options]

    def _carrying(self, index: int, depth: Depth, options: Iterable[int]) -> Iterator[tuple[float, Choice]]:
        """Yield quick bounds on the choices of a stage, with their $ an hour."""
        budget = self._budget(index, depth)
        for place in options:
            option = self.judge.pipeline.stages[index].options[place]
            for batch in option.batches:
                count = self.bounds.carrying(index, place, batch, budget)
                yield count * option.price, Choice(place, batch, count)

    def _bound(self, index: int, depth: Depth, option: int, batch: int) -> int:
        bound = self.bounds.fluid if self.fluid else self.bounds.alone
        return bound(index, option, batch, self._budget(index, depth))

    def _budget(self, index: int, depth: Depth) -> float:
        budget = self.judge.limit - depth.above[index] + SLACK
        return budget - depth.below[index] if self.fluid else budget

    def _rest(self, options: Options) -> float:
        """Return the least $ an hour of the stages below ``options``."""
        depth = self.depth(options)
        return sum(self._cheapest(index, depth) for index in range(len(options), len(self.judge.pipeline.stages)))

    def _cheapest(self, index: int, depth: Depth) -> float:
        """Return the least $ an hour of an open stage; what is dearer by the quick bound is not looked at."""
        stage, best = self.judge.pipeline.stages[index], math.inf
        for quick, choice in sorted(self._carrying(index, depth, range(len(stage.options))), key=itemgetter(0)):
            if quick >= best:
                break
            count = self._bound(index, depth, choice.option, choice.batch)
            best = min(best, count * stage.options[choice.option].price)
        return best

    def flows(self, plan: Plan) -> Flows | None:
        """Return what leaves the last stage on each sample, or ``None`` if too many are late whatever follows."""
        budget = self.judge.limit - self.depth(tuple([choice.option for choice in plan])).below[len(plan) - 1] + SLACK
        found = [estimator.flow(len(plan) - 1, plan, budget) for estimator in self.judge.estimators]
        return tuple(flow for flow in found if flow is not None) if None not in found else None

    def hopeless(self, plan: Plan) -> bool:
        """Whether too many queries are late on a sample, counted over all stages of ``plan``, whatever follows."""
        return any(hopeless(estimator, plan, self.judge.limit) for estimator in self.judge.estimators)

    def admits(self, plan: Plan, value: float) -> bool:
        """Whether a node is worth a look."""
        within = value < self.ceiling - CENT and plan[-1].replicas < MOST
        return within and self.judge.pipeline.within_quotas(plan)


def cheapest(
    search: Search,
    *,
    most_items: float,
    most_nodes: float = math.inf,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Found:
    """Return the cheapest plan below the ceiling; stops after so many simulated queries of a stage, or nodes."""
    frontier = Frontier()
    begun = search.judge.items
    _open(search, frontier, ())
    while frontier.heap:
        value, _, _, plan = heapq.heappop(frontier.heap)
        used = search.judge.items - begun
        if used <= most_items and (more := search.raised(plan)) is not plan:
            _push(search, frontier, more)
            continue
        if used > most_items or frontier.nodes >= most_nodes:
            return Found(None, value, complete=False, nodes=frontier.nodes)
        frontier.nodes += 1
        if frontier.nodes % 64 == 0:
            progress(used, int(most_items))
        if _passes(search, frontier, plan):
            return Found(plan, value, complete=True, nodes=frontier.nodes)
    return Found(None, search.ceiling, complete=True, nodes=frontier.nodes)


def _passes(search: Search, frontier: Frontier, plan: Plan) -> bool:
    """Simulate a node; return whether it is a whole plan that meets the limit, else push what follows from it."""
    flows = search.flows(plan)
    whole = len(plan) == len(search.judge.pipeline.stages)
    if flows is not None and _same_as_less(search, plan, flows):
        return False
    alive = flows is not None and not search.hopeless(plan)
    if alive and whole and search.judge.meets(plan):
        return True
    _more(search, frontier, plan)
    if alive and not whole:
        _open(search, frontier, plan)
    return False


def _same_as_less(search: Search, plan: Plan, flows: Flows) -> bool:
    """Whether the last replica changes nothing: then the node is the one without it, only dearer."""
    last = plan[-1]
    if last.replicas == 1:
        return False
    less = (*plan[:-1], Choice(last.option, last.batch, last.replicas - 1))
    known = [estimator.known(len(plan) - 1, less) for estimator in search.judge.estimators]
    return all(old is not None and _equal(old, new) for old, new in zip(known, flows, strict=True))


def _equal(one: Flow, other: Flow) -> bool:
    return bool((one.times == other.times).all() and (one.items == other.items).all())


def _open(search: Search, frontier: Frontier, plan: Plan) -> None:
    """Push the choices of the next stage; how many replicas they need is asked once their turn comes."""
    above = tuple([choice.option for choice in plan])
    for place in range(len(search.judge.pipeline.stages[len(plan)].options)):
        for choice in search.offers((*above, place)).values():
            _push(search, frontier, (*plan, choice))


def _push(search: Search, frontier: Frontier, node: Plan) -> None:
    if search.admits(node, value := search.value(node)):
        frontier.push(value, node)


def _more(search: Search, frontier: Frontier, plan: Plan) -> None:
    """Push the node with one replica more of its last stage, unless it is late though it had replicas to spare."""
    if any(estimator.ample(len(plan) - 1, plan) for estimator in search.judge.estimators):
        return
    last = plan[-1]
    _push(search, frontier, (*plan[:-1], replace(last, replicas=last.replicas + 1)))
