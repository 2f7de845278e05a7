"""Trace simulation: a trace through a pipeline with changing replica counts.

The counts follow either schedules that are known in advance or a reactive rule that observes the queues each second.
Results are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from unfold_pipeline._types import FloatArray, IndexArray
from unfold_pipeline.estimator.admission import ADMITTED_FRACTION
from unfold_pipeline.estimator.estimator import build_server, feeds_one_child, queue_arrivals
from unfold_pipeline.estimator.replica_schedule import (
    TICK_S,
    ReplicaSchedule,
    ScalingTargets,
    build_target_schedule,
    compute_instance_seconds,
)
from unfold_pipeline.problem.pipeline import Pipeline, Plan, StageConfig, compute_unavoidable_time
from unfold_pipeline.problem.problem import compute_wait_bound
from unfold_pipeline.problem.routing import count_flows
from unfold_pipeline.problem.sample import Sample
from unfoldkit.queueing import kernel
from unfoldkit.queueing.stage import Flow, Goal, Schedule, Server, State, serve, start

UNCHANGED = Schedule(np.empty(0), np.empty(0, dtype=np.int64))
MAX_REPLICAS = 8192
REST_TICKS = 900
"""Longer than a rule remembers: Ray Serve by default looks back 30 s, and waits for 600 s before it scales down."""
ReactiveRule = Callable[[float, Sequence[int], Sequence[int]], Sequence[int]]
"""Takes the time in seconds, and per stage the queries in flight and the replicas ordered; returns target replicas."""


@dataclass(frozen=True, slots=True)
class SimulatedTrace:
    """A simulated trace: seconds of each query (infinite: shed), mean $/h, and the schedule of each stage."""

    latencies: FloatArray
    hourly_cost: float
    schedules: tuple[ReplicaSchedule, ...]

    @property
    def orders(self) -> int:
        """How often a replica count was changed."""
        return sum(schedule.orders for schedule in self.schedules)

    @property
    def shed_rate(self) -> float:
        """Fraction of the queries that were shed."""
        return float(np.isinf(self.latencies).mean())

    def miss_rate(self, slo_s: float) -> float:
        """Return the fraction of queries that took longer than ``slo_s`` seconds, shed ones included."""
        return float((self.latencies > slo_s).mean())

    def tail_latency(self, percentile: float = 0.99) -> float:
        """Return the percentile of the seconds of the answered queries (nearest rank)."""
        answered = self.latencies[np.isfinite(self.latencies)]
        if answered.size == 0:
            return math.inf
        rank = answered.size - 1 - int((1 - percentile) * answered.size + 1e-9)
        return float(np.partition(answered, rank)[rank])


def simulate_targets(
    pipeline: Pipeline,
    sample: Sample,
    plan: Plan,
    targets: ScalingTargets,
    delay_s: float,
    factors: Sequence[FloatArray] | None = None,
    deadlines_s: Sequence[float] | None = None,
) -> SimulatedTrace:
    """Simulate a trace under the targets of a scaling rule.

    Args:
        pipeline: The stages.
        sample: Arrivals and routes.
        plan: Configurations at the start of the trace.
        targets: Replicas and batch sizes of each stage, second by second.
        delay_s: From ordering a replica until it serves.
        factors: Measured service-time factors of each stage (see ``Server.factor``).
        deadlines_s: Time since arrival after which a query is dropped at each stage (see
            :func:`compute_queueing_deadlines`).
    """
    end_s = get_trace_duration(sample)
    batch_sizes = targets.batches or (None,) * len(plan)
    schedules = [
        build_target_schedule(config.replicas, counts, delay_s, end_s, sizes)
        for config, counts, sizes in zip(plan, targets.replicas, batch_sizes, strict=True)
    ]
    return simulate_schedules(pipeline, sample, plan, schedules, factors, deadlines_s)


def simulate_schedules(
    pipeline: Pipeline,
    sample: Sample,
    plan: Plan,
    schedules: Sequence[ReplicaSchedule],
    factors: Sequence[FloatArray] | None = None,
    deadlines_s: Sequence[float] | None = None,
) -> SimulatedTrace:
    """Simulate a trace under a known schedule per stage; the other arguments are those of :func:`simulate_targets`."""
    flows: list[Flow] = []
    for index, config in enumerate(plan):
        parents = {edge.parent: flows[edge.parent] for edge in pipeline.stages[index].parents}
        times, items = queue_arrivals(sample, index, parents)
        server = build_scaled_server(pipeline, index, config, schedules[index])
        if factors is not None:
            server = replace(server, factor=factors[index])
        if deadlines_s is not None:
            server = replace(server, patience=deadlines_s[index])
            times, items = _drop_incomplete_joins(sample, index, parents, times, items)
        goal = Goal(sample.visits[index].origin_s)
        flows.append(serve(times, items, server, goal, schedules[index].to_queue_schedule()))
    drained = [flow.drained for flow in flows]
    cost = _compute_cost(pipeline, plan, schedules, drained, get_trace_duration(sample))
    return SimulatedTrace(_compute_latencies(pipeline, sample, flows), cost, tuple(schedules))


def build_scaled_server(pipeline: Pipeline, index: int, config: StageConfig, schedule: ReplicaSchedule) -> Server:
    """Return a stage at its start, with the latencies of all batch sizes that its schedule ever allows."""
    largest = replace(config, batch=schedule.max_batch(config.batch))
    return replace(build_server(pipeline, index, largest), full=config.batch)


def compute_min_remaining_times(pipeline: Pipeline, plan: Plan) -> tuple[float, ...]:
    """Return the least seconds that a query still takes from each stage on: alone in its batch, without waiting."""
    return _add_downstream_time(pipeline, [option.min_latency_s for option in pipeline.chosen_options(plan)])


def compute_queueing_deadlines(pipeline: Pipeline, plan: Plan, slo_s: float) -> tuple[float, ...]:
    """Return the time since its arrival after which a query is dropped at each stage, in seconds.

    Under backlog the oldest queries are served first and always in full batches, so the deadline leaves time for full
    batches. It leaves at least half of the slack of a query that is served alone, however long full batches take.
    """
    options = pipeline.chosen_options(plan)
    batch_s = [float(option.latency_s[config.batch]) for option, config in zip(options, plan, strict=True)]
    loaded_s = _add_downstream_time(pipeline, batch_s)
    min_s = compute_min_remaining_times(pipeline, plan)
    return tuple(max(slo_s - loaded, (slo_s - least) / 2) for loaded, least in zip(loaded_s, min_s, strict=True))


def compute_admission_deadlines(pipeline: Pipeline, plan: Plan, max_wait_s: float) -> tuple[float, ...]:
    """Return the deadline of each stage that stands for a service with admission control.

    The service refuses queries on arrival that it would answer after nearly ``max_wait_s`` seconds. Here a stage drops
    a query that would complete later, with full batches on the longest path. Both admit what the slowest stage can
    serve.
    """
    useful_wait_s = ADMITTED_FRACTION * max_wait_s
    options = pipeline.chosen_options(plan)
    batch_s = [float(option.latency_s[config.batch]) for option, config in zip(options, plan, strict=True)]
    ends: list[float] = []
    for stage, seconds in zip(pipeline.stages, batch_s, strict=True):
        ends.append(max((ends[edge.parent] for edge in stage.parents), default=0.0) + seconds)
    longest = max(ends)
    return tuple(max(0.0, useful_wait_s - longest + end - seconds) for end, seconds in zip(ends, batch_s, strict=True))


def compute_service_deadlines(pipeline: Pipeline, plan: Plan, slo_s: float, *, sheds: bool) -> tuple[float, ...]:
    """Return the time since its arrival after which a service drops a query at each stage, in seconds.

    With ``sheds`` that is when the query can no longer meet the SLO, otherwise when it could not be answered within the
    waiting bound.
    """
    if sheds:
        return compute_queueing_deadlines(pipeline, plan, slo_s)
    return compute_admission_deadlines(pipeline, plan, compute_wait_bound(slo_s))


def build_constant_targets(plan: Plan, sample: Sample) -> ScalingTargets:
    """Return the targets of a plan that never changes."""
    ticks = int(get_trace_duration(sample) / TICK_S) + 1
    return ScalingTargets(tuple(np.full(ticks, config.replicas, dtype=np.int64) for config in plan))


def get_trace_duration(sample: Sample) -> float:
    """Return the billed seconds of a trace: up to its last arrival."""
    return max(float(sample.arrivals[-1]), TICK_S)


def simulate_reactive_rule(
    pipeline: Pipeline,
    sample: Sample,
    plan: Plan,
    rule: ReactiveRule,
    delay_s: float,
    deadlines_s: Sequence[float] | None = None,
) -> SimulatedTrace:
    """Simulate a trace under a rule that observes the queues once a second.

    Args:
        pipeline: The stages.
        sample: Arrivals and routes.
        plan: Configurations at the start of the trace.
        rule: Computes the target replicas of each stage. What it orders after ``REST_TICKS`` without a query, it orders
            until the next one.
        delay_s: From ordering a replica until it serves.
        deadlines_s: Time since arrival after which a query is dropped at each stage.
    """
    servers = [build_server(pipeline, index, config) for index, config in enumerate(plan)]
    if deadlines_s is not None:
        servers = [replace(server, patience=limit) for server, limit in zip(servers, deadlines_s, strict=True)]
    states = [start(s, sample.visits[i].query.size, most=MAX_REPLICAS) for i, s in enumerate(servers)]
    run = _ReactiveRun(
        pipeline=pipeline,
        sample=sample,
        states=states,
        inputs=[_build_input(pipeline, sample, index) for index in range(len(plan))],
        schedules=[ReplicaSchedule(config.replicas, delay_s) for config in plan],
        drained=[0.0] * len(plan),
        past=[UNCHANGED] * len(plan),
    )
    end_s = get_trace_duration(sample)
    tick = rest_ticks = 0
    while tick <= int(end_s / TICK_S):
        now_s = tick * TICK_S
        if tick:
            run.advance_until(now_s)
        in_flight, ordered = run.count_in_flight(), [schedule.ordered for schedule in run.schedules]
        targets = rule(now_s, in_flight, ordered)
        for schedule, count in zip(run.schedules, targets, strict=True):
            schedule.set_target(now_s, count)
        is_resting = not any(in_flight) and [schedule.ordered for schedule in run.schedules] == ordered
        rest_ticks = rest_ticks + 1 if is_resting else 0
        tick += 1
        if rest_ticks > REST_TICKS:
            tick = max(tick, _find_next_arrival_tick(sample, now_s))
    for schedule in run.schedules:
        schedule.settle_until(end_s)
    run.advance_until(np.inf)
    flows = [Flow(state.times[: state.done], state.items[: state.done]) for state in states]
    cost = _compute_cost(pipeline, plan, run.schedules, run.drained, end_s)
    return SimulatedTrace(_compute_latencies(pipeline, sample, flows), cost, tuple(run.schedules))


def _find_next_arrival_tick(sample: Sample, now_s: float) -> int:
    """Return the tick at or before the first arrival from ``now_s`` on, or the last arrival of all."""
    index = min(int(np.searchsorted(sample.arrivals, now_s)), sample.arrivals.size - 1)
    return int(sample.arrivals[index] / TICK_S)


@dataclass(slots=True, kw_only=True)
class _StageInput:
    """What has reached a stage so far, in queueing order.

    Attributes:
        times, items: Arrival times and items, shape (items,); valid up to ``arrived``.
        arrived: Number of items that have arrived.
        consumed: Completions of each parent that were taken over.
        pending_flows: Flows that each item of a join still waits for.
        ready_s: Time of the last flow of each item of a join.
    """

    times: FloatArray
    items: IndexArray
    arrived: int = 0
    consumed: dict[int, int] = field(default_factory=dict)
    pending_flows: IndexArray | None = None
    ready_s: FloatArray | None = None


@dataclass(slots=True, kw_only=True)
class _ReactiveRun:
    """The state of all stages while a reactive rule is simulated, in slices of a second.

    Attributes:
        pipeline: The stages.
        sample: Arrivals and routes.
        states: By stage, its replicas and completions.
        inputs: By stage, what has reached it.
        schedules: By stage, the orders.
        drained: By stage, the seconds for which removed replicas finished their batch.
        past: By stage, the changes of replicas that it has observed.
    """

    pipeline: Pipeline
    sample: Sample
    states: Sequence[State]
    inputs: Sequence[_StageInput]
    schedules: Sequence[ReplicaSchedule]
    drained: list[float]
    past: list[Schedule]

    def count_in_flight(self) -> list[int]:
        """Return the queries that wait or are in service at each stage."""
        return [
            stage_input.arrived - state.done - state.shed
            for stage_input, state in zip(self.inputs, self.states, strict=True)
        ]

    def advance_until(self, until_s: float) -> None:
        """Simulate all stages up to ``until_s``."""
        for index, (state, stage_input) in enumerate(zip(self.states, self.inputs, strict=True)):
            left = state.done + state.shed
            was_idle = stage_input.arrived == left
            self._take_arrivals(index, until_s)
            if was_idle and stage_input.arrived == left and until_s < np.inf:
                continue  # nothing to serve: changes of the count can wait until there is, with the same result
            goal, schedule = Goal(self.sample.visits[index].origin_s), self._observe_changes(index, until_s)
            self.drained[index] += state.advance(
                stage_input.times, stage_input.items, stage_input.arrived, goal, schedule, float(until_s)
            )

    def _observe_changes(self, index: int, until_s: float) -> Schedule:
        """Return the changes before ``until_s``: later orders may still be cancelled, earlier ones may not."""
        changes, seen = self.schedules[index].changes, self.past[index].when.size
        count = seen
        while count < len(changes) and changes[count][0] < until_s:
            count += 1
        if count > seen:
            times, added = zip(*changes[:count], strict=True)
            self.past[index] = Schedule(np.array(times), np.array(added, dtype=np.int64))
        return self.past[index]

    def _take_arrivals(self, index: int, until_s: float) -> None:
        stage_input = self.inputs[index]
        parents = [edge.parent for edge in self.pipeline.stages[index].parents]
        if not parents:
            stage_input.arrived = int(np.searchsorted(stage_input.times, until_s))
        elif all(self.states[parent].done == stage_input.consumed.get(parent, 0) for parent in parents):
            return
        elif stage_input.pending_flows is None:
            stage_input.arrived += self._follow_parent(index, parents[0])
        else:
            self._join_parents(index, parents)

    def _follow_parent(self, index: int, parent: int) -> int:
        visits, stage_input, upstream = self.sample.visits[index], self.inputs[index], self.states[parent]
        begin, end = stage_input.consumed.get(parent, 0), upstream.done
        stage_input.consumed[parent] = end
        return kernel.list_children(
            upstream.times[begin:end],
            upstream.items[begin:end],
            end - begin,
            visits.first_child[parent],
            visits.child_count[parent],
            stage_input.times[stage_input.arrived :],
            stage_input.items[stage_input.arrived :],
        )

    def _join_parents(self, index: int, parents: Sequence[int]) -> None:
        """Let items in when their last flow has arrived; those of one slice are sorted by time, then by query."""
        stage_input, visits = self.inputs[index], self.sample.visits[index]
        pending, ready_s = stage_input.pending_flows, stage_input.ready_s
        if pending is None or ready_s is None:
            return
        touched = []
        for parent in parents:
            begin, end = stage_input.consumed.get(parent, 0), self.states[parent].done
            stage_input.consumed[parent] = end
            times, items = self.states[parent].times[begin:end], self.states[parent].items[begin:end]
            continues = visits.child_count[parent][items] > 0
            children = visits.first_child[parent][items[continues]]
            ready_s[children] = np.maximum(ready_s[children], times[continues])
            # several items of one flow may meet in one
            np.subtract.at(pending, children, 1)
            touched.append(children)
        complete = np.unique(np.concatenate(touched))
        complete = complete[pending[complete] == 0]
        order = np.argsort(ready_s[complete], kind="stable")
        window = slice(stage_input.arrived, stage_input.arrived + complete.size)
        stage_input.times[window] = ready_s[complete][order]
        stage_input.items[window] = complete[order]
        stage_input.arrived += complete.size


def _build_input(pipeline: Pipeline, sample: Sample, index: int) -> _StageInput:
    visits = sample.visits[index]
    size = visits.query.size
    if not pipeline.stages[index].parents:
        return _StageInput(times=visits.origin_s, items=np.arange(size, dtype=np.int32))
    stage_input = _StageInput(times=np.empty(size), items=np.empty(size, dtype=np.int32))
    if len(visits.first_child) > 1:
        stage_input.pending_flows = count_flows(visits)
        stage_input.ready_s = np.full(size, -np.inf)
    return stage_input


def _drop_incomplete_joins(
    sample: Sample, index: int, flows: Mapping[int, Flow], times: FloatArray, items: IndexArray
) -> tuple[FloatArray, IndexArray]:
    """Remove the items of a join that wait for a flow that was shed."""
    visits = sample.visits[index]
    if len(flows) < 2:
        return times, items
    pending = count_flows(visits)
    for parent, flow in flows.items():
        continues = visits.child_count[parent] > 0
        np.add.at(pending, visits.first_child[parent][flow.items[continues[flow.items]]], -1)
    is_complete = pending[items] == 0
    return times[is_complete], items[is_complete]


def _add_downstream_time(pipeline: Pipeline, stage_s: Sequence[float]) -> tuple[float, ...]:
    downstream_s = compute_unavoidable_time(pipeline, stage_s).downstream_s
    return tuple(seconds + remaining for seconds, remaining in zip(stage_s, downstream_s, strict=True))


def _compute_latencies(pipeline: Pipeline, sample: Sample, flows: Sequence[Flow]) -> FloatArray:
    finish = sample.arrivals.copy()
    for index, flow in enumerate(flows):
        query = sample.visits[index].query
        if not feeds_one_child(pipeline, sample, index):
            kernel.record_completions(flow.times, flow.items, flow.times.size, query, finish)
        if flow.items.size < query.size:
            is_served = np.zeros(query.size, dtype=np.bool_)
            is_served[flow.items] = True
            finish[query[~is_served]] = np.inf
    latencies: FloatArray = finish - sample.arrivals
    return latencies


def _compute_cost(
    pipeline: Pipeline,
    plan: Plan,
    schedules: Sequence[ReplicaSchedule],
    drained: Sequence[float],
    end_s: float,
) -> float:
    """Return the mean $/h over a trace; replicas that drain their last batch cost their fraction of an instance."""
    total, sharing = 0.0, dict[str, list[int]]()
    options = pipeline.chosen_options(plan)
    for index, option in enumerate(options):
        is_dedicated = option.replicas_per_instance == 1
        total += option.usd_per_hour * ((schedules[index].billed_s if is_dedicated else 0.0) + drained[index])
        if not is_dedicated:
            sharing.setdefault(option.hardware, []).append(index)
    for stages in sharing.values():
        option = options[stages[0]]
        starts = [plan[index].replicas for index in stages]
        instance_s = compute_instance_seconds(
            starts, [schedules[index] for index in stages], option.replicas_per_instance, end_s
        )
        total += instance_s * option.replicas_per_instance * option.usd_per_hour
    return total / end_s
