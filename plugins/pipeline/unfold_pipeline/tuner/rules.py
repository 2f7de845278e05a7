"""Rules that read arrivals only, so that a whole trace is decided before it is simulated.

``paper`` and ``ratio`` follow InferLine's tuner (its section on high-frequency tuning; the readings that it leaves open
are said where they are taken). ``table`` and ``calibrated`` are this project's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline.estimator.replica_schedule import TICK, Counts, Step, Targets, held
from unfold_pipeline.estimator.simulator import constant, length, play
from unfold_pipeline.problem.pipeline import Choice, Pipeline, Plan, service_time
from unfold_pipeline.problem.quotas import Fluid, limits
from unfold_pipeline.problem.sample import Sample
from unfold_pipeline.tuner.replica_table import Ladder, ladder
from unfoldkit.arrivals import envelope

Rates = NDArray[np.float64]
STEADY_S = 15.0
LOOK_BACK_S = 30
STEP_S = 5
PATIENCE = 0.003
MARGINS = (1.0, 1.15, 1.3, 1.5)
HOLDS = (60.0, 120.0)


@dataclass(frozen=True, slots=True)
class Setting:
    """How a rule is set: ``floor`` keeps the plan at least, ``margin`` multiplies need, ``hold`` delays removal.

    ``shed`` says that queries which cannot be in time are refused in the replay; the table rule does not look at
    windows of less than ``shortest`` s.
    """

    delay: float = 5.0
    floor: bool = True
    margin: float = 1.15
    hold: float = 60.0
    most: int = 100
    shed: bool = False
    shortest: float = 0.0


@dataclass(frozen=True, slots=True)
class Brief:
    """What the planner hands over: the plan, the envelope of its samples, rates, throughputs and loads of the stages.

    ``windows`` in s, ``rates`` the most queries a second in any window of each length, ``mean`` the mean rate;
    ``shares`` items of a stage a query, ``mu`` items a second of a replica with full batches, ``rho`` planned loads.
    Of several samples each is the largest, as the plan was made for all of them.
    """

    pipeline: Pipeline
    plan: Plan
    samples: tuple[Sample, ...]
    limit: float
    windows: Rates
    rates: Rates
    mean: float
    shares: tuple[float, ...]
    mu: tuple[float, ...]
    rho: tuple[float, ...]


def brief(pipeline: Pipeline, plan: Plan, samples: Sequence[Sample], limit: float) -> Brief:
    """Return the hand-over for a plan made on ``samples``; ``rho`` with the mean rate, as its text suggests."""
    options = [stage.options[choice.option] for stage, choice in zip(pipeline.stages, plan, strict=True)]
    windows = envelope.windows(service_time(pipeline, [float(o.latency[1]) for o in options]))
    rates = np.max([envelope.envelope(sample.arrivals, windows) for sample in samples], axis=0) / windows
    shares = tuple(max(sample.share(index) for sample in samples) for index in range(len(plan)))
    mu = tuple(option.throughput(choice.batch) for option, choice in zip(options, plan, strict=True))
    mean = max(sample.rate for sample in samples)
    loads = [max(sample.rate * sample.share(index) for sample in samples) for index in range(len(plan))]
    rho = tuple(load / (c.replicas * m) for load, c, m in zip(loads, plan, mu, strict=True))
    return Brief(pipeline, plan, tuple(samples), limit, windows, rates, mean, shares, mu, rho)


def instants(sample: Sample) -> Rates:
    """Return the seconds at which a rule decides."""
    return np.arange(int(length(sample) / TICK) + 1).astype(np.float64) * TICK


def paper(plan: Brief, live: Sample, setting: Setting) -> Targets:
    """Return the targets of the literal formula: ``k = ceil(r_max s / (mu rho))``, r_max the largest rate in excess."""
    return _triggered(plan, live, setting, literal=True)


def ratio(plan: Brief, live: Sample, setting: Setting) -> Targets:
    """Return the targets of ``k = ceil(k_plan max_i r_i(now) / r_i(sample))``: equal if only the mean rate changes."""
    return _triggered(plan, live, setting, literal=False)


def _triggered(plan: Brief, live: Sample, setting: Setting, *, literal: bool) -> Targets:
    """Scale up at once when a window exceeds the planned envelope, down slowly by the rate of 5-s windows."""
    trigger = Trigger(plan, setting, literal, walks(plan))
    counts = np.array(trigger.follow(live.arrivals, instants(live)), dtype=np.int64)
    return Targets(tuple(limits(plan.pipeline, plan.plan).held(counts).T))


@dataclass(slots=True)
class Walk:
    """Where a stage stands under a trigger: its count, and the second at which that changed last."""

    current: int
    changed: float = 0.0


def walks(plan: Brief) -> tuple[Walk, ...]:
    """Return where the stages of a plan stand at its beginning."""
    return tuple(Walk(choice.replicas) for choice in plan.plan)


@dataclass(frozen=True, slots=True)
class Trigger:
    """``paper`` (``literal``) or ``ratio`` in charge. It remembers what it did last: one for each trace or service."""

    plan: Brief
    setting: Setting
    literal: bool
    walks: tuple[Walk, ...]

    def __call__(self, arrivals: Rates, now: float) -> Step:
        """Return what is wanted at one instant, from the arrivals so far; a running service asks once a second."""
        recent = arrivals[np.searchsorted(arrivals, now - 2 * envelope.LONGEST_S) :]
        # a reading tells the most since the one before
        counts = self._stepped(self._signals(recent, np.array([now - TICK, now]))[-1])
        return Step(counts, tuple(choice.batch for choice in self.plan.plan))

    def follow(self, arrivals: Rates, now: Rates) -> list[tuple[int, ...]]:
        """Return what is wanted at each of some instants, one after the other."""
        return [self._stepped(signal) for signal in self._signals(arrivals, now)]

    def _signals(self, arrivals: Rates, now: Rates) -> list[tuple[float, float, float]]:
        rates = envelope.live(arrivals, self.plan.windows, now) / self.plan.windows
        seen = rates if self.literal else rates / self.plan.rates
        raised = np.where(rates > self.plan.rates, seen, 0.0).max(axis=1)
        return list(zip(now.tolist(), raised.tolist(), _recent(arrivals, now).tolist(), strict=True))

    def _stepped(self, signal: tuple[float, float, float]) -> tuple[int, ...]:
        return tuple(self._step(index, *signal) for index in range(len(self.walks)))

    def _step(self, index: int, now: float, raised: float, lull: float) -> int:
        walk, planned = self.walks[index], self.plan.plan[index].replicas
        per_rate = self.plan.shares[index] / self.plan.mu[index]
        up = raised * per_rate / max(self.plan.rho[index], 1e-12) if self.literal else raised * planned
        low = max(1, math.ceil(lull * per_rate / max(min(self.plan.rho), 1e-12) - 1e-9))
        wanted = walk.current
        if up > walk.current:
            wanted = min(self.setting.most, math.ceil(up - 1e-9))
        elif now - walk.changed >= STEADY_S and low < walk.current:
            wanted = max(planned if self.setting.floor else 1, low)
        walk.changed = now if wanted != walk.current else walk.changed
        walk.current = wanted
        return wanted


def _recent(arrivals: Rates, now: Rates) -> Rates:
    """Return the largest rate of the 5-s windows of the last 30 s, a second."""
    edges = np.searchsorted(arrivals, now[:, None] - np.arange(0, LOOK_BACK_S + 1, STEP_S), "right")
    rates = -np.diff(edges, axis=1) / STEP_S
    # before 30 s are over, windows that began before the trace are empty and do not count as a lull
    result: Rates = rates.max(axis=1)
    return result


def table(plan: Brief, live: Sample, setting: Setting, steps: Ladder | None = None) -> Targets:
    """Return the targets of the project's own rule.

    The need is the largest ratio of a live window to that of the sample, with no trigger; where the rate climbs, the
    need of the time when an order would serve; ``margin`` on it; replicas and largest batches from the ladder; and
    enough to empty what a fluid queue says is waiting. Replicas go after ``hold`` seconds of lower need. Stages that
    want more of a hardware than its quota share it by what they want.
    """
    steps = steps or climbed(plan, setting)
    need = needs(plan, live.arrivals, instants(live), setting)
    counts, sizes = _wanted(plan, steps, need, setting), steps.sizes(held(need, setting.hold, 1.0))
    kept = [held(wanted, setting.hold, choice.replicas) for wanted, choice in zip(counts.T, plan.plan, strict=True)]
    return Targets(tuple(_drained(plan, live, setting, np.stack(kept, axis=1), sizes).T), tuple(sizes.T))


def climbed(plan: Brief, setting: Setting) -> Ladder:
    """Return the ladder of a plan."""
    return ladder(plan.pipeline, plan.plan, plan.samples, plan.limit, setting.most)


def decide(plan: Brief, arrivals: Rates, now: float, setting: Setting, steps: Ladder) -> Step:
    """Return what ``table`` wants at one instant, from the arrivals so far; a running service asks once a second.

    The fluid queue is left out, as a service sees its queues.
    """
    begin = now - max(1, round(setting.hold / TICK)) * TICK
    seconds = np.arange(max(-TICK, begin), now + TICK / 2, TICK)
    recent = arrivals[np.searchsorted(arrivals, begin - 2 * envelope.LONGEST_S) :]
    # a reading tells the most since the one before, so that the first tells of too long a time
    need = needs(plan, recent, seconds, setting)[1:].max(keepdims=True)
    if begin >= -TICK:
        return Step(_row(_wanted(plan, steps, need, setting)), _row(steps.sizes(need)))
    counts = np.maximum(_wanted(plan, steps, need, setting), [choice.replicas for choice in plan.plan])
    return Step(_row(counts), _row(steps.sizes(np.maximum(need, 1.0))))


def _row(counts: Counts) -> tuple[int, ...]:
    return tuple(counts[0].tolist())


def needs(plan: Brief, arrivals: Rates, now: Rates, setting: Setting) -> Rates:
    """Return how many times the sample's rate ``table`` prepares for at each instant, before that is held."""
    seen = plan.windows >= min(setting.shortest, float(plan.windows[-1]))
    rates = envelope.live(arrivals, plan.windows[seen], now) / plan.windows[seen]
    need: Rates = (rates / plan.rates[seen]).max(axis=1) * _slope(arrivals, now, setting.delay) * setting.margin
    return need


def _wanted(plan: Brief, steps: Ladder, need: Rates, setting: Setting) -> Counts:
    counts: Counts = np.minimum(steps.rows(need), setting.most)
    return np.maximum(counts, [choice.replicas for choice in plan.plan]) if setting.floor else counts


def _slope(arrivals: Rates, now: Rates, delay: float) -> Rates:
    """Return the growth until ``delay`` + 7 s from now, where the last 10 s are above the 10 s before by 3 sigma."""
    edges = np.searchsorted(arrivals, now[:, None] - np.array([0.0, 10.0, 20.0]), "right")
    late, early = edges[:, 0] - edges[:, 1], edges[:, 1] - edges[:, 2]
    sure = (late - early > 3 * np.sqrt(late + early)) & (now >= 20.0)
    growth = 1 + (late - early) / np.maximum(late, 1) * (delay + 7.0) / 10.0
    result: Rates = np.where(sure, growth, 1.0)
    return result


def _drained(plan: Brief, live: Sample, setting: Setting, wanted: Counts, sizes: Counts) -> Counts:
    """Raise targets so that fluid queues of the stages are empty two seconds after an order serves."""
    options = plan.pipeline.options(plan.plan)
    mu = np.stack([np.take(option.throughputs, size) for option, size in zip(options, sizes.T, strict=True)], axis=1)
    counts = np.searchsorted(live.arrivals, np.arange(len(wanted)) * TICK, "right")
    came = np.diff(counts, prepend=0)[:, None] * np.array(plan.shares)
    start = np.array([choice.replicas for choice in plan.plan], dtype=np.int64)
    steps = max(1, round(setting.delay / TICK))
    fluid = Fluid(came, mu, start, steps, setting.most)
    return fluid.raised(wanted, limits(plan.pipeline, plan.plan))


def calibrate(plan: Brief, setting: Setting, steps: Ladder) -> Setting:
    """Return the cheapest setting with at most 0.3 % misses on each sample, or the one with the fewest misses."""
    tried: list[tuple[float, float, Setting]] = []
    for floor in (False, True):
        for hold in HOLDS:
            for margin in MARGINS:
                own = replace(setting, floor=floor, hold=hold, margin=margin)
                tried.append((*_tried(plan, own, steps), own))
    good = [item for item in tried if item[0] <= PATIENCE]
    return min(good, key=lambda item: item[1])[2] if good else min(tried, key=lambda item: item[:2])[2]


def _tried(plan: Brief, setting: Setting, steps: Ladder) -> tuple[float, float]:
    """Return the largest share of misses and the mean $ an hour of ``table`` on the samples."""
    played = [
        play(plan.pipeline, sample, plan.plan, table(plan, sample, setting, steps), setting.delay)
        for sample in plan.samples
    ]
    return max(item.missed(plan.limit) for item in played), sum(item.cost for item in played) / len(played)


def in_charge(policy: str, plan: Brief, setting: Setting) -> Callable[[Rates, float], Step]:
    """Return a rule by its name as a service asks it: with all arrivals so far and the second."""
    if policy in ("paper", "ratio"):
        return Trigger(plan, setting, policy == "paper", walks(plan))
    steps = climbed(plan, setting)
    how = calibrate(plan, setting, steps) if policy == "calibrated" else setting
    return lambda arrivals, now: decide(plan, arrivals, now, how, steps)


def fixed(plan: Brief, live: Sample, _setting: Setting) -> Targets:
    """Return the targets of a plan that never changes."""
    return constant(plan.plan, live)


def units(
    throughput: float, live: Sample, start: int, *, window: float, headroom: float, hold: float, most: int
) -> Counts:
    """Return the units of AutoScale's rule: mean rate of the last ``window`` s, removal after ``hold`` s.

    ``start`` units were there before the trace.
    """
    now = instants(live)
    edges = np.searchsorted(live.arrivals, np.stack([now, now - window]), "right")
    seen = np.minimum(np.maximum(now, TICK), window)
    rate = (edges[0] - edges[1]) / seen
    need = np.maximum(1, np.ceil(rate * headroom / throughput - 1e-9)).astype(np.int64)
    return held(np.minimum(need, most), hold, start)


def same(targets: Counts, stages: Sequence[Choice]) -> Targets:
    """Return the targets of a unit for each of its stages."""
    return Targets(tuple(targets for _ in stages))
