"""Branch and bound: the cheapest plan over hardware, batch size and replicas of every stage, best first.

A node fixes the first stages. Its value is their price plus, for each open stage, the least that the stage could cost
on its own, on full instances. The cheapest node is expanded first, and the last of its stages simulated on the
completions of the stages upstream. A node after which too many queries are late, whatever follows, is pruned. The first
complete plan that the simulation accepts is the cheapest one consistent with the bounds; with the fluid bound, which is
proven, it is the cheapest.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from operator import itemgetter

from unfold_pipeline.estimator.estimator import TIME_TOLERANCE_S
from unfold_pipeline.estimator.slo import SloChecker
from unfold_pipeline.planner.bounds import MAX_REPLICAS, ReplicaBounds, is_infeasible_prefix
from unfold_pipeline.problem.pipeline import (
    COST_TOLERANCE,
    Plan,
    StageConfig,
    UnavoidableTime,
    compute_unavoidable_time,
)
from unfoldkit.queueing.stage import Flow

OptionPrefix = tuple[int, ...]
"""Hardware options of the first stages."""
NODES_PER_PROGRESS = 64


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The end of a search.

    Attributes:
        plan: The cheapest plan; ``None`` if the search found none below its ceiling.
        bound: $/h below which no plan meets the SLO, within the bounds of the search.
        is_complete: Whether the search ended before its limits.
        nodes: Number of expanded nodes.
    """

    plan: Plan | None
    bound: float
    is_complete: bool
    nodes: int


@dataclass(slots=True)
class NodeQueue:
    """Open nodes, the cheapest first; among equals the node with most stages fixed."""

    heap: list[tuple[float, int, int, Plan]] = field(default_factory=list)
    pushed: int = 0
    expanded: int = 0

    def push(self, value: float, plan: Plan) -> None:
        """Add a node."""
        self.pushed += 1
        heapq.heappush(self.heap, (round(value, 9), -len(plan), self.pushed, plan))


@dataclass(frozen=True, slots=True)
class PrefixCache:
    """What depends on the hardware of the fixed stages only."""

    unavoidable: dict[OptionPrefix, UnavoidableTime] = field(default_factory=dict)
    offers: dict[OptionPrefix, dict[int, StageConfig]] = field(default_factory=dict)
    open_costs: dict[OptionPrefix, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Search:
    """The constants of a search.

    Attributes:
        checker: Pipeline, estimators and SLO.
        bounds: Least replicas of single stages.
        ceiling: $/h below which a plan is looked for.
        is_proof: Use the proven bound only: slower, and a proof.
        cache: Results by hardware of the fixed stages.
    """

    checker: SloChecker
    bounds: ReplicaBounds
    ceiling: float = float("inf")
    is_proof: bool = False
    cache: PrefixCache = field(default_factory=PrefixCache)

    def unavoidable_time(self, options: OptionPrefix) -> UnavoidableTime:
        """Return the unavoidable time around each stage, with the open stages on their fastest hardware."""
        if options not in self.cache.unavoidable:
            stages = self.checker.pipeline.stages
            fixed_s = [stage.options[option].min_latency_s for stage, option in zip(stages, options, strict=False)]
            open_s = [min(option.min_latency_s for option in stage.options) for stage in stages[len(options) :]]
            self.cache.unavoidable[options] = compute_unavoidable_time(self.checker.pipeline, [*fixed_s, *open_s])
        return self.cache.unavoidable[options]

    def tighten(self, plan: Plan) -> Plan:
        """Return the plan with the least replicas that its last stage needs, the plan itself if it has them."""
        options, config = _option_prefix(plan), plan[-1]
        count = self._bound_replicas(len(plan) - 1, self.unavoidable_time(options), config.option, config.batch)
        if count <= config.replicas:
            return plan
        offer = self.list_offers(options)[config.batch] = replace(config, replicas=count)
        return (*plan[:-1], offer)

    def bound_cost(self, plan: Plan) -> float:
        """Return $/h below which no plan that begins like this one is; the cost of a complete plan.

        Instances rented for the first stages may have room for the others, so only full instances add up.
        """
        pipeline, options = self.checker.pipeline, _option_prefix(plan)
        if options not in self.cache.open_costs:
            self.cache.open_costs[options] = self._bound_open_stages(options)
        return max(pipeline.cost(plan), pipeline.cost_lower_bound(plan) + self.cache.open_costs[options])

    def list_offers(self, options: OptionPrefix) -> dict[int, StageConfig]:
        """Return the configurations of the last stage of ``options`` by batch, with no more replicas than needed."""
        if options not in self.cache.offers:
            ranked = self._bound_by_load(len(options) - 1, self.unavoidable_time(options), options[-1:])
            self.cache.offers[options] = {config.batch: config for _, config in ranked}
        return self.cache.offers[options]

    def simulate_node(self, plan: Plan) -> list[Flow] | None:
        """Return the completions of the last stage on each sample, or ``None`` if too many queries are late."""
        index = len(plan) - 1
        downstream_s = self.unavoidable_time(_option_prefix(plan)).downstream_s[index]
        budget_s = self.checker.slo_s - downstream_s + TIME_TOLERANCE_S
        flows = [estimator.simulate_stage(index, plan, budget_s) for estimator in self.checker.estimators]
        complete = [flow for flow in flows if flow is not None]
        return complete if len(complete) == len(flows) else None

    def is_infeasible(self, plan: Plan) -> bool:
        """Return whether too many queries are late over all stages of ``plan``, or after a loss, whatever follows."""
        return any(
            loss is None
            or any(is_infeasible_prefix(item, loss, self.checker.slo_s) for item in self.checker.estimators)
            for loss in (plan, *self.checker.list_losses(plan))
        )

    def is_promising(self, plan: Plan, value: float) -> bool:
        """Return whether a node can lead to a plan below the ceiling and within the quotas."""
        is_below = value < self.ceiling - COST_TOLERANCE and plan[-1].replicas < MAX_REPLICAS
        return is_below and self.checker.pipeline.is_within_quotas(plan)

    def _bound_by_load(
        self, index: int, unavoidable: UnavoidableTime, options: Iterable[int]
    ) -> Iterator[tuple[float, StageConfig]]:
        """Yield the configurations of a stage with quick bounds on their replicas and $/h."""
        budget_s = self._stage_budget(index, unavoidable)
        for number in options:
            option = self.checker.pipeline.stages[index].options[number]
            for batch in option.batch_sizes:
                count = self.bounds.bound_load(index, number, batch, budget_s)
                yield count * option.usd_per_hour, StageConfig(number, batch, count)

    def _bound_replicas(self, index: int, unavoidable: UnavoidableTime, option: int, batch: int) -> int:
        bound = self.bounds.bound_proven if self.is_proof else self.bounds.bound_sharp
        return bound(index, option, batch, self._stage_budget(index, unavoidable))

    def _stage_budget(self, index: int, unavoidable: UnavoidableTime) -> float:
        budget_s = self.checker.slo_s - unavoidable.upstream_s[index] + TIME_TOLERANCE_S
        return budget_s - unavoidable.downstream_s[index] if self.is_proof else budget_s

    def _bound_open_stages(self, options: OptionPrefix) -> float:
        """Return the least $/h of the stages after ``options``."""
        unavoidable = self.unavoidable_time(options)
        open_stages = range(len(options), len(self.checker.pipeline.stages))
        return sum(self._bound_stage_cost(index, unavoidable) for index in open_stages)

    def _bound_stage_cost(self, index: int, unavoidable: UnavoidableTime) -> float:
        """Return the least $/h of an open stage; configurations too expensive by the quick bound are skipped."""
        stage, cheapest = self.checker.pipeline.stages[index], math.inf
        ranked = sorted(self._bound_by_load(index, unavoidable, range(len(stage.options))), key=itemgetter(0))
        for quick_bound, config in ranked:
            if quick_bound >= cheapest:
                break
            count = self._bound_replicas(index, unavoidable, config.option, config.batch)
            cheapest = min(cheapest, count * stage.options[config.option].usd_per_hour)
        return cheapest


def find_cheapest_plan(
    search: Search,
    *,
    max_simulated_queries: float,
    max_nodes: float = math.inf,
    progress: Callable[[int], None] = lambda _simulated: None,
) -> SearchResult:
    """Search for the cheapest plan below the ceiling.

    Args:
        search: What to search, and with which bounds.
        max_simulated_queries: Stop after so many simulated queries of a stage.
        max_nodes: Stop after so many expanded nodes.
        progress: Receives the number of simulated queries.
    """
    queue = NodeQueue()
    simulated_before = search.checker.simulated_items
    _push_next_stage(search, queue, ())
    while queue.heap:
        value, _, _, plan = heapq.heappop(queue.heap)
        simulated = search.checker.simulated_items - simulated_before
        if simulated <= max_simulated_queries and (tightened := search.tighten(plan)) is not plan:
            _push_node(search, queue, tightened)
            continue
        if simulated > max_simulated_queries or queue.expanded >= max_nodes:
            return SearchResult(None, value, is_complete=False, nodes=queue.expanded)
        queue.expanded += 1
        if queue.expanded % NODES_PER_PROGRESS == 0:
            progress(simulated)
        if _expand_node(search, queue, plan):
            return SearchResult(plan, value, is_complete=True, nodes=queue.expanded)
    return SearchResult(None, search.ceiling, is_complete=True, nodes=queue.expanded)


def _expand_node(search: Search, queue: NodeQueue, plan: Plan) -> bool:
    """Simulate a node and push its successors; return whether it is a complete plan that meets the SLO."""
    flows = search.simulate_node(plan)
    is_complete = len(plan) == len(search.checker.pipeline.stages)
    if flows is not None and _has_spare_replica(search, plan, flows):
        return False
    is_feasible = flows is not None and not search.is_infeasible(plan)
    if is_feasible and is_complete and search.checker.meets_slo(plan):
        return True
    _push_extra_replica(search, queue, plan)
    if is_feasible and not is_complete:
        _push_next_stage(search, queue, plan)
    return False


def _has_spare_replica(search: Search, plan: Plan, flows: list[Flow]) -> bool:
    """Return whether the last replica changes nothing: then a cheaper node has the same completions."""
    config = plan[-1]
    if config.replicas == 1:
        return False
    smaller = (*plan[:-1], replace(config, replicas=config.replicas - 1))
    cached = [estimator.cached_flow(len(plan) - 1, smaller) for estimator in search.checker.estimators]
    is_spare = all(old is not None and _is_same_flow(old, new) for old, new in zip(cached, flows, strict=True))
    return is_spare and _has_spare_after_losses(search, plan, smaller)


def _has_spare_after_losses(search: Search, plan: Plan, smaller: Plan) -> bool:
    """Return whether a plan's last stage completes alike with a replica less after each loss that it must survive."""
    index = len(plan) - 1
    losses = zip(search.checker.list_losses(plan), search.checker.list_losses(smaller), strict=True)
    return all(
        loss is not None
        and smaller_loss is not None
        and all(
            _is_same_flow(estimator.complete_flow(index, smaller_loss), estimator.complete_flow(index, loss))
            for estimator in search.checker.estimators
        )
        for loss, smaller_loss in losses
    )


def _is_same_flow(flow: Flow, reference: Flow) -> bool:
    return bool((flow.times == reference.times).all() and (flow.items == reference.items).all())


def _push_next_stage(search: Search, queue: NodeQueue, plan: Plan) -> None:
    """Push the configurations of the next stage; their replicas are bounded when a node is popped."""
    upstream = _option_prefix(plan)
    for option in range(len(search.checker.pipeline.stages[len(plan)].options)):
        for config in search.list_offers((*upstream, option)).values():
            _push_node(search, queue, (*plan, config))


def _push_node(search: Search, queue: NodeQueue, plan: Plan) -> None:
    if search.is_promising(plan, value := search.bound_cost(plan)):
        queue.push(value, plan)


def _push_extra_replica(search: Search, queue: NodeQueue, plan: Plan) -> None:
    """Push the node with another replica of its last stage, unless replicas are not what makes it late."""
    if any(estimator.is_unconstrained(len(plan) - 1, plan) for estimator in search.checker.estimators):
        return
    _push_node(search, queue, (*plan[:-1], replace(plan[-1], replicas=plan[-1].replicas + 1)))


def _option_prefix(plan: Plan) -> OptionPrefix:
    return tuple([config.option for config in plan])
