"""The cheapest LLM engines together with the stages before and after them, under targets of the joint pipeline.

How much of the targets each stage takes is a result: plans of the other stages are enumerated by price, and engines are
searched for each on the requests as that plan delivers them. What is skipped has a proof that it costs more or misses.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from unfold_pipeline._types import FloatArray, IndexArray
from unfold_pipeline.engine.planner.problem import EngineProblem, EngineStages, Surroundings, count_allowed_misses
from unfold_pipeline.engine.planner.search import COST_TOLERANCE, EngineSolution, Progress, find_cheapest_engines
from unfold_pipeline.estimator.estimator import build_server
from unfold_pipeline.problem.pipeline import Pipeline, Plan, StageConfig
from unfoldkit.queueing.stage import Goal, serve


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlans:
    """Plans of the stages before and after an engine."""

    upstream: Plan
    downstream: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Completions:
    """Requests that leave a line of stages, in order.

    Attributes:
        time_s: (n,) completion times.
        request: (n,) index of each request.
        waited: (stages,) whether a batch of the stage waited for a replica.
    """

    time_s: FloatArray
    request: IndexArray
    waited: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JointSolution:
    """The cheapest engines and stages.

    Attributes:
        solution: The engines, on the requests that the stages before them deliver.
        plans: The stages; ``None`` if nothing meets the targets.
        is_complete: Whether no plan is cheaper; otherwise the search ended at its limit.
    """

    solution: EngineSolution
    plans: StagePlans | None
    is_complete: bool


def pass_stages(pipeline: Pipeline, plan: Plan, arrival_s: FloatArray) -> Completions:
    """Simulate a line of stages.

    Args:
        pipeline: The stages.
        plan: Their configurations.
        arrival_s: (n,) sorted arrivals at the first of them.
    """
    time_s, request = arrival_s, np.arange(arrival_s.size, dtype=np.int32)
    waited = []
    for index, config in enumerate(plan):
        flow = serve(time_s, request, build_server(pipeline, index, config), Goal(arrival_s))
        time_s, request = flow.times, flow.items
        waited.append(flow.short)
    return Completions(time_s=time_s, request=request, waited=tuple(waited))


def attach_stages(problem: EngineProblem, stages: EngineStages, plans: StagePlans) -> EngineProblem:
    """Return the problem of the engine between stages with given plans."""
    arrived = pass_stages(stages.upstream, plans.upstream, problem.requests.arrival_s)
    return _attach(problem, stages, plans, arrived)


def _attach(
    problem: EngineProblem, stages: EngineStages, plans: StagePlans | None, arrived: Completions, cost: float = 0.0
) -> EngineProblem:
    """Return the problem behind simulated stages; without plans, those after it take their least time."""
    least_s = sum(min(option.min_latency_s for option in stage.options) for stage in stages.downstream.stages)
    if plans is not None:
        cost = stages.upstream.cost(plans.upstream) + stages.downstream.cost(plans.downstream)

    def finish(last_s: FloatArray) -> FloatArray:
        if plans is None:
            return last_s + least_s
        order = np.argsort(last_s, kind="stable")
        done = pass_stages(stages.downstream, plans.downstream, last_s[order])
        end_s = np.empty_like(last_s)
        end_s[order[done.request]] = done.time_s
        return end_s

    origin_s = problem.requests.arrival_s[arrived.request]
    around = Surroundings(usd_per_hour=cost, before_s=arrived.time_s - origin_s, least_after_s=least_s, finish=finish)
    requests = problem.requests.reorder(arrived.request, arrived.time_s)
    return replace(problem, requests=requests, surroundings=around)


def list_plans_by_price(pipeline: Pipeline, max_replicas: int, saturated: set[tuple[int, ...]]) -> Iterator[Plan]:
    """Yield every plan of a line of stages, the cheapest first.

    Args:
        pipeline: The stages.
        max_replicas: Maximum replicas of a stage.
        saturated: The caller adds (stage, option and replicas of all stages up to it), of which more replicas of that
            stage change nothing, and more of them are then left out.
    """
    heap: list[tuple[float, tuple[int, ...], tuple[int, ...], int]] = []

    def push(options: tuple[int, ...], replicas: tuple[int, ...], position: int) -> None:
        plan = tuple(StageConfig(option, 1, count) for option, count in zip(options, replicas, strict=True))
        if max(replicas, default=0) <= max_replicas and pipeline.is_within_quotas(plan):
            heapq.heappush(heap, (pipeline.cost(plan), options, replicas, position))

    for options in itertools.product(*(range(len(stage.options)) for stage in pipeline.stages)):
        push(options, (1,) * len(options), 0)
    while heap:
        _, options, replicas, position = heapq.heappop(heap)
        sizes = [stage.options[option].batch_sizes for stage, option in zip(pipeline.stages, options, strict=True)]
        for batches in itertools.product(*sizes):
            yield tuple(itertools.starmap(StageConfig, zip(options, batches, replicas, strict=True)))
        for stage in range(position, len(options)):
            if (stage, *options[: stage + 1], *replicas[: stage + 1]) not in saturated:
                scaled = tuple(count + (index == stage) for index, count in enumerate(replicas))
                push(options, scaled, stage)


def find_cheapest_pipeline(
    problem: EngineProblem, stages: EngineStages, progress: Progress | None = None
) -> JointSolution:
    """Return the cheapest engines and stages that meet the targets together.

    Args:
        problem: The engine and its requests as they arrive at the pipeline.
        stages: The stages around it.
        progress: Receives progress.
    """
    search = _Search(problem, stages, _find_least_price(stages.downstream, stages.max_replicas))
    saturation = _Saturation()
    plans = list_plans_by_price(stages.upstream, stages.max_replicas, saturation.closed)
    for index, upstream in enumerate(plans):
        if search.is_over(stages.upstream.cost(upstream) + search.least_after_usd):
            break
        arrived = search.pass_upstream(upstream)
        saturation.observe(upstream, arrived)
        search.try_upstream(upstream, arrived)
        if progress is not None:
            progress("stages", index + 1, 0)
    return search.conclude()


@dataclass(slots=True)
class _Saturation:
    """The stages before an engine that gain nothing from more replicas, whatever their batch sizes.

    Attributes:
        closed: The stages, as :func:`list_plans_by_price` takes them.
        has_waited: By stage with its hardware and replicas, whether a batch waited for a replica.
        hardware: The hardware and the replicas that are tried.
    """

    closed: set[tuple[int, ...]] = field(default_factory=set)
    has_waited: dict[tuple[int, ...], bool] = field(default_factory=dict)
    hardware: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def observe(self, plan: Plan, arrived: Completions) -> None:
        """Record whether more replicas would have been used."""
        current = tuple(config.option for config in plan), tuple(config.replicas for config in plan)
        if current != self.hardware:
            self.has_waited, self.hardware = {}, current
        for stage, has_waited in enumerate(arrived.waited):
            key = (stage, *current[0][: stage + 1], *current[1][: stage + 1])
            self.has_waited[key] = self.has_waited.get(key, False) or has_waited
            (self.closed.discard if self.has_waited[key] else self.closed.add)(key)


@dataclass(slots=True)
class _Search:
    """The state of a search: the best plan so far, its price, and the effort.

    Attributes:
        problem: The engine and its requests as they arrive at the pipeline.
        stages: The stages around it.
        least_after_usd: Price of the cheapest plan of the stages after the engine.
        best_usd: Price of the best plan.
        best: Its engines.
        plans: Its stages.
        missed: A search of engines without a plan, with bounds that explain why there is none.
        simulations: Simulations of engines.
        simulated: Requests that were simulated.
        is_complete: Whether the effort has stayed within its limit.
        deliveries: What the stages before the engine delivered so far.
    """

    problem: EngineProblem
    stages: EngineStages
    least_after_usd: float
    best_usd: float = math.inf
    best: EngineSolution | None = None
    plans: StagePlans | None = None
    missed: EngineSolution | None = None
    simulations: int = 0
    simulated: int = 0
    is_complete: bool = True
    deliveries: set[bytes] = field(default_factory=set)

    def is_over(self, least_usd: float) -> bool:
        """Return whether plans from a price on are of no interest, or the effort is spent."""
        if least_usd >= self.best_usd - COST_TOLERANCE:
            return True
        self.is_complete = self.is_complete and self.simulated <= self.stages.max_requests
        return not self.is_complete

    def pass_upstream(self, plan: Plan) -> Completions:
        """Simulate the stages before the engine."""
        self.simulated += len(self.problem.requests) * len(plan)
        return pass_stages(self.stages.upstream, plan, self.problem.requests.arrival_s)

    def try_upstream(self, upstream: Plan, arrived: Completions) -> None:
        """Search engines and stages after them behind a plan of the stages before them.

        What an earlier plan delivered is not searched again, as that plan is no more expensive. The stages after the
        engine are searched only if it meets the targets where they take their least time.
        """
        upstream_usd = self.stages.upstream.cost(upstream)
        relaxed = _attach(self.problem, self.stages, None, arrived, upstream_usd + self.least_after_usd)
        delivery = hashlib.sha256(arrived.time_s.tobytes() + arrived.request.tobytes()).digest()
        if _misses_before(relaxed) or delivery in self.deliveries:
            return
        self.deliveries.add(delivery)
        bound = self._search_engines(relaxed, upstream_usd + self.least_after_usd)
        if bound.config is None:
            self.missed = self.missed or bound
            return
        engine_usd = self.problem.options[bound.config.option].cost(bound.config.replicas)
        joint = Pipeline((*self.stages.upstream.stages, *self.stages.downstream.stages), self.stages.upstream.quotas)
        for downstream in list_plans_by_price(self.stages.downstream, self.stages.max_replicas, set()):
            around_usd = upstream_usd + self.stages.downstream.cost(downstream)
            if self.is_over(around_usd + engine_usd):
                break
            if joint.is_within_quotas((*upstream, *downstream)):
                plans = StagePlans(upstream=upstream, downstream=downstream)
                case = _attach(self.problem, self.stages, plans, arrived)
                self._keep_cheaper(
                    bound if not downstream else self._search_engines(case, around_usd), plans, around_usd
                )

    def _search_engines(self, case: EngineProblem, around_usd: float) -> EngineSolution:
        solution = find_cheapest_engines(case, None, self.best_usd - around_usd)
        self.simulations += solution.simulations
        self.simulated += solution.simulated_requests
        return solution

    def _keep_cheaper(self, solution: EngineSolution, plans: StagePlans, around_usd: float) -> None:
        if solution.config is None:
            return
        usd = around_usd + self.problem.options[solution.config.option].cost(solution.config.replicas)
        if usd < self.best_usd - COST_TOLERANCE:
            self.best_usd, self.plans = usd, plans
            self.best = replace(solution, around_usd_per_hour=around_usd)

    def conclude(self) -> JointSolution:
        """Return the best plan with the effort of the joint search."""
        best = self.best or self.missed
        if best is None:
            best = replace(find_cheapest_engines(self.problem), outcome=None)
        effort = replace(best, simulations=self.simulations, simulated_requests=self.simulated)
        return JointSolution(solution=effort, plans=self.plans, is_complete=self.is_complete)


def _find_least_price(pipeline: Pipeline, max_replicas: int) -> float:
    """Return the price of the cheapest plan; infinite if quotas allow none."""
    return next((pipeline.cost(plan) for plan in list_plans_by_price(pipeline, max_replicas, set())), math.inf)


def _misses_before(problem: EngineProblem) -> bool:
    """Return whether too many requests miss a target before the engine begins."""
    around, targets = problem.surroundings, problem.targets
    if around is None:
        return False
    limit_s = min(targets.ttft_s, targets.latency_s - around.least_after_s) - problem.settings.front_s
    return int((around.before_s > limit_s).sum()) > count_allowed_misses(len(problem.requests))
