"""What a replay should take by the simulator: as profiled, and at the pace at which its own batches were served."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline.estimator import batch_jitter
from unfold_pipeline.estimator.contention import Speed, crowded
from unfold_pipeline.estimator.replica_schedule import Ledger, Step, as_seen
from unfold_pipeline.estimator.simulator import carried, length, sized
from unfold_pipeline.problem import latency_profile
from unfold_pipeline.problem.pipeline import Pipeline, Plan
from unfold_pipeline.problem.sample import Sample
from unfold_pipeline.runtime.affinity import dealt
from unfold_pipeline.runtime.stage import Batch
from unfoldkit.api import Run
from unfoldkit.engines.local import available_cores
from unfoldkit.queueing.stage import STEADY, Server

Times = NDArray[np.float64]
Seen = Sequence[tuple[float, Step]]
SAME = 0.05


@dataclass(frozen=True, slots=True)
class Replay:
    """What was replayed: pipeline, plan, sample, the ``patience`` of each stage (None: all wait), pinned replicas.

    ``seen`` are the replicas that served from each time on; empty if those of the plan did.
    """

    pipeline: Pipeline
    plan: Plan
    sample: Sample
    patience: tuple[float, ...] | None = None
    pinned: bool = False
    seen: Seen = ()

    @property
    def most(self) -> int:
        """The most replicas that served at a time."""
        planned = sum(choice.replicas for choice in self.plan)
        return max([planned, *(sum(step.counts) for _, step in self.seen)])

    @property
    def ledgers(self) -> list[Ledger]:
        """The replicas and batches of each stage over time."""
        end = length(self.sample)
        return [as_seen(choice.replicas, self.seen, index, end) for index, choice in enumerate(self.plan)]


def estimate(replay: Replay, run: Run) -> Times:
    """Return the seconds of each query by the simulator.

    Batches are as uneven as they were when measured; more local replicas than cores share them as their profiles say.
    """
    factors = [batch_jitter.factors(points, index, run) for index, points in enumerate(_points(replay, run))]
    if is_crowd(replay, run):
        return _crowded(replay, _servers(replay, factors), _shares(replay, run), available_cores())
    return carried(replay.pipeline, replay.sample, replay.plan, replay.ledgers, factors, replay.patience).latencies


def at_its_pace(replay: Replay, speeds: Sequence[Speed], run: Run) -> Times:
    """Return the seconds of each query by the simulator, with batches that take as long as those of the run did then.

    How near this comes to what was measured tells of the simulator, how far it is from the estimate of the machine.
    """
    # what a batch took longer on a replica that stood idle is among its times
    servers = [replace(item, wake=0.0) for item in _servers(replay, [STEADY] * len(replay.plan))]
    if is_crowd(replay, run):
        return _crowded(replay, servers, _shares(replay, run), available_cores(), speeds)
    # a core for each, so that none waits for one
    return _crowded(replace(replay, pinned=False), servers, [0.0] * len(replay.plan), replay.most, speeds)


def speeds_of(replay: Replay, batches: Sequence[Batch], *, crowd: bool) -> list[Speed]:
    """Return how many times its latency each batch took, by stage; empty where the engine tells of no batch.

    A stage where no query came keeps its latency. In a crowd the time is without that in which a replica waited for a
    core, which is simulated.
    """
    if not batches:
        return []
    options, found = replay.pipeline.options(replay.plan), []
    for stage, option in zip(replay.pipeline.stages, options, strict=True):
        own = sorted((item for item in batches if item.stage == stage.name), key=lambda item: item.began)
        if not own:
            found.append(Speed(np.zeros(1), np.ones(1)))
            continue
        took = [item.total - (item.waited if crowd else 0.0) for item in own]
        latency = [float(option.latency[min(item.rows, option.latency.size - 1)]) for item in own]
        found.append(Speed(np.array([item.began for item in own]), np.array(took) / np.array(latency)))
    return found


def slower(replay: Replay, speeds: Sequence[Speed]) -> str:
    """Return in words how much longer batches took than in the plan; empty if those of each stage are within 5 %."""
    means = [float(speed.factor.mean()) for speed in speeds]
    if all(abs(mean - 1) <= SAME for mean in means):
        return ""
    named = zip(replay.pipeline.stages, means, strict=True)
    return "time of a batch over that in the plan: " + " · ".join(f"{stage.name} {mean:.2f}" for stage, mean in named)


def _points(replay: Replay, run: Run) -> list[list[latency_profile.Point] | None]:
    return [latency_profile.stored(stage.name, run) for stage in replay.pipeline.stages]


def _shares(replay: Replay, run: Run) -> list[float]:
    """Return the share of its time in which each stage keeps a core busy, as profiled."""
    return [points[0].cpu if points else 1.0 for points in _points(replay, run)]


def is_crowd(replay: Replay, run: Run) -> bool:
    """Whether more replicas served on this machine than it has cores."""
    return run.engine.name == "local" and replay.most > available_cores()


def _servers(replay: Replay, factors: Sequence[Times]) -> list[Server]:
    """Return how each stage serves, as uneven as some factors say."""
    waits = replay.patience or [math.inf] * len(replay.plan)
    return [
        replace(sized(replay.pipeline, index, choice, ledger), factor=factor, patience=wait)
        for index, (choice, ledger, factor, wait) in enumerate(
            zip(replay.plan, replay.ledgers, factors, waits, strict=True)
        )
    ]


def _crowded(
    replay: Replay, servers: Sequence[Server], shares: Sequence[float], cores: int, speeds: Sequence[Speed] = ()
) -> Times:
    if replay.pinned:
        kept = dealt([choice.replicas for choice in replay.plan], cores)
        return crowded(replay.pipeline, replay.sample, servers, shares, cores, kept, speeds=speeds)
    changes = sorted(
        (when, at, more, size) for at, item in enumerate(replay.ledgers) for when, more, size in item.rows()
    )
    return crowded(replay.pipeline, replay.sample, servers, shares, cores, changes=changes, speeds=speeds)
