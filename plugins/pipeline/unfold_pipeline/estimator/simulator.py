"""Play a trace through a pipeline whose replica counts change: exact, by orders known ahead or by a rule that looks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline.estimator.estimator import _passed_on, inputs, server
from unfold_pipeline.estimator.replica_schedule import TICK, Ledger, Targets, carried_out, rented
from unfold_pipeline.problem.pipeline import Choice, Pipeline, Plan, depths
from unfold_pipeline.problem.sample import Sample
from unfoldkit.queueing import kernel
from unfoldkit.queueing.stage import Flow, Goal, Schedule, Server, State, serve, start

Times = NDArray[np.float64]
UNCHANGED = Schedule(np.empty(0), np.empty(0, dtype=np.int64))
Look = Callable[[float, Sequence[int], Sequence[int]], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Played:
    """How a trace went: seconds of each query (inf: shed), $ an hour over the trace, orders given, ledgers by stage."""

    latencies: Times
    cost: float
    ledgers: tuple[Ledger, ...]

    @property
    def orders(self) -> int:
        """How often a replica count was changed."""
        return sum(ledger.orders for ledger in self.ledgers)

    def missed(self, limit: float) -> float:
        """Return the share of queries that took longer than ``limit`` seconds, those that were shed among them."""
        return float((self.latencies > limit).mean())

    @property
    def shed(self) -> float:
        """The share of queries that were shed."""
        return float(np.isinf(self.latencies).mean())

    def tail(self, percentile: float = 0.99) -> float:
        """Return the percentile of the seconds of the queries that were answered, by nearest rank."""
        answered = self.latencies[np.isfinite(self.latencies)]
        if answered.size == 0:
            return math.inf
        place = answered.size - 1 - int((1 - percentile) * answered.size + 1e-9)
        return float(np.partition(answered, place)[place])


def play(
    pipeline: Pipeline,
    sample: Sample,
    plan: Plan,
    targets: Targets,
    delay: float,
    factors: Sequence[Times] | None = None,
    patience: Sequence[float] | None = None,
) -> Played:
    """Return how a trace goes if stage ``m`` is to have ``targets.counts[m][i]`` replicas at second ``i``.

    ``factors`` make the batches of a stage take longer or shorter in turn, as measured (see ``Server.factor``); with
    ``patience`` (see :func:`patience_of`) queries that cannot be in time are shed.
    """
    end = length(sample)
    sizes = targets.batches or (None,) * len(plan)
    ledgers = [
        carried_out(choice.replicas, counts, delay, end, size)
        for choice, counts, size in zip(plan, targets.counts, sizes, strict=True)
    ]
    return carried(pipeline, sample, plan, ledgers, factors, patience)


def carried(
    pipeline: Pipeline,
    sample: Sample,
    plan: Plan,
    ledgers: Sequence[Ledger],
    factors: Sequence[Times] | None = None,
    patience: Sequence[float] | None = None,
) -> Played:
    """Return how a trace goes under orders that are known, a ledger a stage; see :func:`play`."""
    flows: list[Flow] = []
    for index, choice in enumerate(plan):
        parents = {edge.parent: flows[edge.parent] for edge in pipeline.stages[index].parents}
        times, items = inputs(sample, index, parents)
        goal = Goal(sample.visits[index].origin)
        how = sized(pipeline, index, choice, ledgers[index])
        how = how if factors is None else replace(how, factor=factors[index])
        if patience is not None:
            how = replace(how, patience=patience[index])
            times, items = _whole(sample, index, parents, times, items)
        flows.append(serve(times, items, how, goal, ledgers[index].schedule()))
    cost = _cost(pipeline, plan, ledgers, [flow.drained for flow in flows], length(sample))
    return Played(_latencies(pipeline, sample, flows), cost, tuple(ledgers))


def sized(pipeline: Pipeline, index: int, choice: Choice, ledger: Ledger) -> Server:
    """Return how a stage serves at first, with the latencies of all batches that it will ever make."""
    return replace(server(pipeline, index, replace(choice, batch=ledger.largest(choice.batch))), full=choice.batch)


def needs_of(pipeline: Pipeline, plan: Plan) -> tuple[float, ...]:
    """Return the least seconds that a query still takes from each stage on: alone in its batch, never waiting again."""
    return _ways(pipeline, [option.quickest for option in pipeline.options(plan)])


def patience_of(pipeline: Pipeline, plan: Plan, limit: float) -> tuple[float, ...]:
    """Return how long after its arrival a query may at most be taken at each stage to be answered in ``limit`` s.

    In the full batches that come where many wait: those who are taken then are the oldest of all, and alone in a batch
    is nobody. Half of what a query alone has at the very least is waited for, however long full batches take.
    """
    full = _ways(pipeline, [float(o.latency[c.batch]) for o, c in zip(pipeline.options(plan), plan, strict=True)])
    quick = needs_of(pipeline, plan)
    return tuple(max(limit - slow, (limit - need) / 2) for slow, need in zip(full, quick, strict=True))


def _ways(pipeline: Pipeline, seconds: Sequence[float]) -> tuple[float, ...]:
    below = depths(pipeline, seconds).below
    return tuple(own + rest for own, rest in zip(seconds, below, strict=True))


def refusals_of(pipeline: Pipeline, plan: Plan, worth: float) -> tuple[float, ...]:
    """Return the patience of each stage that stands for a service which refuses what it would answer after ``worth`` s.

    The service refuses at its door, by the pace at which queries end; in a replay a stage drops what has waited so long
    that with full batches on the longest way it ends later. Both let through what the slowest stage can serve.
    """
    full = [float(o.latency[c.batch]) for o, c in zip(pipeline.options(plan), plan, strict=True)]
    ends: list[float] = []
    for stage, own in zip(pipeline.stages, full, strict=True):
        ends.append(max((ends[edge.parent] for edge in stage.parents), default=0.0) + own)
    return tuple(max(0.0, worth - max(ends) + end - own) for end, own in zip(ends, full, strict=True))


def _whole(
    sample: Sample, index: int, parents: Mapping[int, Flow], times: Times, items: NDArray[np.int32]
) -> tuple[Times, NDArray[np.int32]]:
    """Leave out the joined items of which a flow was shed."""
    visits = sample.visits[index]
    if len(parents) < 2:
        return times, items
    owed = np.zeros(visits.owner.size, dtype=np.int32)
    for parent, flow in parents.items():
        goes = visits.count[parent] > 0
        np.add.at(owed, visits.first[parent][goes], 1)
        np.add.at(owed, visits.first[parent][flow.items[goes[flow.items]]], -1)
    kept = owed[items] == 0
    return times[kept], items[kept]


def constant(plan: Plan, sample: Sample) -> Targets:
    """Return the targets of a plan that never changes."""
    seconds = int(length(sample) / TICK) + 1
    return Targets(tuple(np.full(seconds, choice.replicas, dtype=np.int64) for choice in plan))


def length(sample: Sample) -> float:
    """Return the seconds of a trace that are paid for: up to its last arrival."""
    return max(float(sample.arrivals[-1]), TICK)


@dataclass(slots=True)
class Inlet:
    """What has come to a stage so far, in queueing order; ``owed`` counts the flows that a joined item waits for."""

    times: Times
    items: NDArray[np.int32]
    known: int = 0
    seen: dict[int, int] = field(default_factory=dict)
    owed: NDArray[np.int32] | None = None
    ready: Times | None = None


def follow(
    pipeline: Pipeline,
    sample: Sample,
    plan: Plan,
    look: Look,
    delay: float,
    patience: Sequence[float] | None = None,
) -> Played:
    """Return how a trace goes under a rule that looks at the queues once a second.

    ``look(now, inside, ordered)`` is told, a stage, the queries waiting or being served and the replicas ordered, and
    returns the replicas that there should be.
    """
    servers = [server(pipeline, index, choice) for index, choice in enumerate(plan)]
    if patience is not None:
        servers = [replace(how, patience=most) for how, most in zip(servers, patience, strict=True)]
    states = [start(how, sample.visits[i].owner.size, most=8192) for i, how in enumerate(servers)]
    inlets = [_inlet(pipeline, sample, index) for index in range(len(plan))]
    ledgers = [Ledger(choice.replicas, delay) for choice in plan]
    drained = [0.0] * len(plan)
    end = length(sample)
    for tick in range(int(end / TICK) + 1):
        now = tick * TICK
        if tick:
            _slice(pipeline, sample, states, inlets, ledgers, drained, now)
        inside = [inlet.known - state.done - state.shed for inlet, state in zip(inlets, states, strict=True)]
        wanted = look(now, inside, [ledger.ordered for ledger in ledgers])
        for ledger, count in zip(ledgers, wanted, strict=True):
            ledger.want(now, count)
    for ledger in ledgers:
        ledger.settle(end)
    _slice(pipeline, sample, states, inlets, ledgers, drained, np.inf)
    flows = [Flow(state.times[: state.done], state.items[: state.done]) for state in states]
    cost = _cost(pipeline, plan, ledgers, drained, end)
    return Played(_latencies(pipeline, sample, flows), cost, tuple(ledgers))


def _slice(
    pipeline: Pipeline,
    sample: Sample,
    states: Sequence[State],
    inlets: Sequence[Inlet],
    ledgers: Sequence[Ledger],
    drained: list[float],
    until: float,
) -> None:
    for index, (state, inlet) in enumerate(zip(states, inlets, strict=True)):
        idle = inlet.known == state.done + state.shed
        _let_in(pipeline, sample, states, inlet, index, until)
        if idle and inlet.known == state.done + state.shed and until < np.inf:
            continue  # nothing to serve: changes of the count wait until there is, and come to the same
        schedule = _dated(ledgers[index], until)
        goal = Goal(sample.visits[index].origin)
        drained[index] += state.advance(inlet.times, inlet.items, inlet.known, goal, schedule, float(until))


def _dated(ledger: Ledger, until: float) -> Schedule:
    if not ledger.changes:
        return UNCHANGED
    # orders that lie in the future may still be taken back, so the stage must not see them yet
    when = [time for time, _ in ledger.changes if time < until]
    return Schedule(np.array(when), np.array([c for _, c in ledger.changes[: len(when)]], dtype=np.int64))


def _inlet(pipeline: Pipeline, sample: Sample, index: int) -> Inlet:
    visits = sample.visits[index]
    size = visits.owner.size
    if not pipeline.stages[index].parents:
        return Inlet(visits.origin, np.arange(size, dtype=np.int32))
    inlet = Inlet(np.empty(size), np.empty(size, dtype=np.int32))
    if len(visits.first) > 1:
        inlet.owed = np.zeros(size, dtype=np.int32)
        inlet.ready = np.full(size, -np.inf)
        for parent, count in visits.count.items():
            np.add.at(inlet.owed, visits.first[parent][count > 0], 1)
    return inlet


def _let_in(
    pipeline: Pipeline, sample: Sample, states: Sequence[State], inlet: Inlet, index: int, until: float
) -> None:
    parents = [edge.parent for edge in pipeline.stages[index].parents]
    if not parents:
        inlet.known = int(np.searchsorted(inlet.times, until))
    elif all(states[parent].done == inlet.seen.get(parent, 0) for parent in parents):
        return
    elif inlet.owed is None:
        inlet.known += _take(sample, states[parents[0]], inlet, index, parents[0])
    else:
        _meet(sample, states, inlet, index, parents)


def _take(sample: Sample, above: State, inlet: Inlet, index: int, parent: int) -> int:
    visits, low, high = sample.visits[index], inlet.seen.get(parent, 0), above.done
    inlet.seen[parent] = high
    return kernel.follow(
        above.times[low:high],
        above.items[low:high],
        high - low,
        visits.first[parent],
        visits.count[parent],
        inlet.times[inlet.known :],
        inlet.items[inlet.known :],
    )


def _meet(sample: Sample, states: Sequence[State], inlet: Inlet, index: int, parents: Sequence[int]) -> None:
    """Items come in when the last of their flows has; all of one slice are sorted by time, then by query."""
    owed, ready = inlet.owed, inlet.ready
    if owed is None or ready is None:
        return
    visits = sample.visits[index]
    touched = []
    for parent in parents:
        low, high = inlet.seen.get(parent, 0), states[parent].done
        inlet.seen[parent] = high
        times, items = states[parent].times[low:high], states[parent].items[low:high]
        goes = visits.count[parent][items] > 0
        children = visits.first[parent][items[goes]]
        ready[children] = np.maximum(ready[children], times[goes])
        # several items of one flow may meet in one
        np.subtract.at(owed, children, 1)
        touched.append(children)
    whole = np.unique(np.concatenate(touched))
    whole = whole[owed[whole] == 0]
    order = np.argsort(ready[whole], kind="stable")
    inlet.times[inlet.known : inlet.known + whole.size] = ready[whole][order]
    inlet.items[inlet.known : inlet.known + whole.size] = whole[order]
    inlet.known += whole.size


def _latencies(pipeline: Pipeline, sample: Sample, flows: Sequence[Flow]) -> Times:
    finish = sample.arrivals.copy()
    for index, flow in enumerate(flows):
        if not _passed_on(pipeline, sample, index):
            kernel.latest(flow.times, flow.items, flow.times.size, sample.visits[index].owner, finish)
        if flow.items.size < sample.visits[index].owner.size:
            ended = np.zeros(sample.visits[index].owner.size, dtype=np.bool_)
            ended[flow.items] = True
            finish[sample.visits[index].owner[~ended]] = np.inf
    latencies: Times = finish - sample.arrivals
    return latencies


def _cost(pipeline: Pipeline, plan: Plan, ledgers: Sequence[Ledger], drained: Sequence[float], end: float) -> float:
    """Return the $ an hour over a trace; replicas that end their last batch are paid by their share of an instance."""
    total, together = 0.0, dict[str, list[int]]()
    for index, option in enumerate(pipeline.options(plan)):
        alone = option.shared == 1
        total += option.price * ((ledgers[index].paid if alone else 0.0) + drained[index])
        if not alone:
            together.setdefault(option.hardware, []).append(index)
    for places in together.values():
        option = pipeline.options(plan)[places[0]]
        seconds = rented([plan[i].replicas for i in places], [ledgers[i] for i in places], option.shared, end)
        total += seconds * option.shared * option.price
    return total / end
