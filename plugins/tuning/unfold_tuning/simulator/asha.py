"""Asynchronous successive halving (ASHA) on fixed clusters, simulated: what a search without barriers takes and costs.

A trial that reaches a rung continues at once if its score is in the best 1/eta of those seen there so far, as in Ray
Tune's ``AsyncHyperBandScheduler`` (Li et al., MLSys 2020, stopping variant); the first one always does. Without
barriers there are no stages to plan, and time and bill depend on the order of the scores: this is a comparison, not a
promise.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_tuning._types import FloatArray
from unfold_tuning.job.profile import Machine
from unfold_tuning.job.schedule import Stage
from unfold_tuning.simulator.execution_model import ExecutionModel, build_execution_model

SAMPLES = 200
MAX_EVENTS = 400_000
"""Trials times rungs times runs that are simulated for each size of the cluster; fewer runs of larger searches."""
MIN_SAMPLES = 50
IDLE_S = 60.0
"""A node without a trial is released after so long, as autoscalers do."""
SEED_STREAM = 1 << 23


@dataclass(frozen=True, slots=True, kw_only=True)
class AshaRuns:
    """Simulated runs of ASHA on a cluster of one size.

    Attributes:
        instances: Instances at the start.
        seconds: When each run ended: [samples].
        cost_usd: Its bill, idle nodes released: [samples].
        trial_iterations: Iterations of all trials: [samples].
    """

    instances: int
    seconds: FloatArray
    cost_usd: FloatArray
    trial_iterations: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class AshaRun:
    """One run: its end, when each node had its last trial, and what the trials did.

    Attributes:
        ended_s: The end of the last trial.
        node_ends_s: The end of the last trial of each node.
        busy_s: Accelerator-seconds in which trials ran.
        reached: Rungs that each trial has run, in the order in which trials began.
    """

    ended_s: float
    node_ends_s: tuple[float, ...]
    busy_s: float
    reached: tuple[int, ...]


def is_one_ladder(stages: Sequence[Stage]) -> bool:
    """Return whether stages are one successive halving: the same search exists without barriers."""
    groups = [stage.groups[0] for stage in stages if len(stage.groups) == 1]
    ends = [0, *(group.done + group.iters for group in groups)]
    is_continued = all(group.done == end for group, end in zip(groups, ends, strict=False))
    return len(groups) == len(stages) > 1 and is_continued and len({group.bracket for group in groups}) == 1


def simulate_asha(model: ExecutionModel, seed: int) -> list[AshaRuns]:
    """Simulate ASHA with one accelerator a trial on clusters of a doubling number of instances.

    Paces and delays are those of the model of the plan. Scores are independent of paces and keep their order from rung
    to rung.

    Args:
        model: The job as successive halving, of one bracket.
        seed: Seed of the draws.

    Returns:
        One item per size of the cluster; none if a search is too large to simulate.
    """
    first = model.stages[0].groups[0]
    trials, rungs = first.trials, len(model.stages)
    samples = min(SAMPLES, model.samples, MAX_EVENTS // (trials * rungs))
    if samples < min(MIN_SAMPLES, model.samples):
        return []
    seconds = _sample_rung_seconds(model, samples, seed)
    scores = np.random.default_rng([seed, SEED_STREAM]).random((samples, trials))
    eta = max(2, round(first.trials / max(1, model.stages[1].trials)))
    most = min(model.machine.max_instances, -(-trials // model.machine.accelerators))
    counts = sorted({min(1 << power, most) for power in range(most.bit_length() + 1)})
    provision = model.sample_provision_seconds(0)[:samples]
    iters = np.cumsum([0, *(stage.groups[0].iters for stage in model.stages)])
    results = []
    for count in counts:
        ready = provision + model.sample_startup_seconds(0, count)[:samples]
        runs = [
            run_asha(seconds[:, sample], scores[sample], float(ready[sample]), (count, model.machine.accelerators), eta)
            for sample in range(samples)
        ]
        results.append(
            AshaRuns(
                instances=count,
                seconds=np.array([run.ended_s for run in runs]),
                cost_usd=np.array(
                    [_bill(model.machine, run, float(begin)) for run, begin in zip(runs, provision, strict=True)]
                ),
                trial_iterations=np.array([float(iters[list(run.reached)].sum()) for run in runs]),
            )
        )
    return results


def run_asha(seconds: FloatArray, scores: FloatArray, ready_s: float, cluster: tuple[int, int], eta: int) -> AshaRun:
    """Run one search.

    Args:
        seconds: Seconds of each rung of each trial: [rungs, trials].
        scores: Score of each trial, more is better: [trials].
        ready_s: When the nodes accept trials.
        cluster: Nodes, and trials that a node runs at once.
        eta: The best 1/eta of the trials seen so far continue.
    """
    rungs, trials = seconds.shape
    nodes, lanes = cluster
    seen: list[list[float]] = [[] for _ in range(rungs)]
    reached = [0] * trials
    node_ends, busy_s = [ready_s] * nodes, 0.0
    events: list[tuple[float, int, int, int]] = []
    waiting = iter(range(trials))
    # the fullest node first, so that some nodes may stay without a trial
    for lane, trial in zip(range(nodes * lanes), waiting, strict=False):
        heapq.heappush(events, (ready_s + float(seconds[0, trial]), lane, trial, 0))
    while events:
        now, lane, trial, rung = heapq.heappop(events)
        node_ends[lane // lanes] = now
        busy_s += float(seconds[rung, trial])
        reached[trial] = rung + 1
        is_promoted = _is_promoted(seen[rung], float(scores[trial]), eta)
        insort(seen[rung], float(scores[trial]))
        if is_promoted and rung + 1 < rungs:
            heapq.heappush(events, (now + float(seconds[rung + 1, trial]), lane, trial, rung + 1))
            continue
        following = next(waiting, None)
        if following is not None:
            heapq.heappush(events, (now + float(seconds[0, following]), lane, following, 0))
    return AshaRun(ended_s=max(node_ends), node_ends_s=tuple(node_ends), busy_s=busy_s, reached=tuple(reached))


def _is_promoted(seen: Sequence[float], score: float, eta: int) -> bool:
    """Return whether a score is at least the percentile 1 - 1/eta of the scores seen before; true for the first."""
    if not seen:
        return True
    position = (len(seen) - 1) * (1 - 1 / eta)
    below = int(position)
    above = min(below + 1, len(seen) - 1)
    return score >= seen[below] + (position - below) * (seen[above] - seen[below])


def _sample_rung_seconds(model: ExecutionModel, samples: int, seed: int) -> FloatArray:
    """Sample the seconds of every rung for all trials, as if all of them ran to the end: [rungs, samples, trials]."""
    trials = model.stages[0].trials
    stages = [Stage((replace(stage.groups[0], trials=trials),)) for stage in model.stages]
    complete = build_execution_model(stages, model.profile, model.machine, samples, seed)
    if model.paces is not None:
        complete = complete.with_drawn_paces(tuple(stage.select(slice(0, samples)) for stage in model.paces))
    return np.stack([complete.sample_trial_seconds(index, 1) for index in range(len(stages))])


def _bill(machine: Machine, run: AshaRun, began_s: float) -> float:
    """Compute the bill of a run with nodes that are billed from ``began_s`` until they are released."""
    fixed_usd = len(run.node_ends_s) * machine.ingress_usd + run.ended_s * machine.head_usd_per_second
    if machine.billing.per == "function":
        return fixed_usd + run.busy_s * machine.usd_per_second / machine.accelerators
    lifetimes = np.array([min(end + IDLE_S, run.ended_s) - began_s for end in run.node_ends_s])
    return fixed_usd + float(machine.billing.cost(lifetimes, machine.usd_per_hour).sum())
