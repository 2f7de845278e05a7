"""The paces of a run's trials, stage by stage, from the checkpoints in its ledger."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig
from unfold_tuning.executor.ranking import list_entrants
from unfold_tuning.job.schedule import Group, Stage
from unfold_tuning.planner.pace_posterior import GroupPaces
from unfold_tuning.planner.slowdown import Slowdown, find_slowdown
from unfold_tuning.simulator.execution_model import compute_slowest_factor
from unfold_tuning.trial.ledger import Checkpoint, Ledger

Steps = dict[int, list[Checkpoint]]


def measure_stage(
    config: ExecutionConfig,
    ledger: Ledger,
    stage: Stage,
    slowdown: Slowdown | None = None,
    *,
    is_running: bool = False,
) -> list[GroupPaces]:
    """Measure the log paces of every group of a stage: those of its trials in it, and in the stage before.

    A pace is in seconds per iteration on one accelerator of the profiled kind, whatever the trial ran on.

    Args:
        config: The run.
        ledger: Its ledger.
        stage: The stage.
        slowdown: The slow-down of all trials so far.
        is_running: Count the trials that have a checkpoint in the stage, not only those that have run all of it: of
            those alone, the quick ones would end first.
    """
    steps = _list_steps(ledger, slowdown)
    return [_measure_group(config, ledger, steps, group, is_running=is_running) for group in stage.groups]


def measure_entrants(
    config: ExecutionConfig, ledger: Ledger, stage: Stage, slowdown: Slowdown | None = None
) -> list[float]:
    """Measure the last log pace of each trial that enters a stage of one group, best first; empty if any is unknown."""
    group = stage.groups[0]
    if len(stage.groups) != 1 or not group.done:
        return []
    before = _find_previous_target(config, group)
    steps = _list_steps(ledger, slowdown)
    trials = [trial.id for trial in list_entrants(config, ledger, group)]
    paces = [_measure_pace(config, steps.get(trial, ()), before, group.done) for trial in trials]
    known = [pace for pace in paces if pace is not None]
    return known if len(known) == group.trials else []


def _measure_group(
    config: ExecutionConfig, ledger: Ledger, steps: Steps, group: Group, *, is_running: bool
) -> GroupPaces:
    target = group.done + group.iters
    before = _find_previous_target(config, group)
    last, earlier = [], []
    for trial in ledger.list_trials(group.bracket):
        own = steps.get(trial.id, ())
        end = min(target, own[-1].iters) if is_running and own else target
        pace = _measure_pace(config, own, group.done, end)
        if pace is None:
            continue
        previous = _measure_pace(config, steps.get(trial.id, ()), before, group.done) if group.done else None
        last.append(pace)
        if previous is not None:
            earlier.append(previous)
    return GroupPaces(last=tuple(last), earlier=tuple(earlier) if len(earlier) == len(last) else ())


def _find_previous_target(config: ExecutionConfig, group: Group) -> int:
    """Find where the group began from which the trials of a group come."""
    groups = [item for stage in config.stages for item in stage.groups if item.bracket == group.bracket]
    return next((item.done for item in groups if item.done + item.iters == group.done), 0)


def list_current_checkpoints(ledger: Ledger, slowdown: Slowdown | None) -> list[Checkpoint]:
    """List every checkpoint, by trial and iterations; those from before a slow-down take as long as they would now."""
    checkpoints = ledger.list_checkpoints()
    if slowdown is None:
        return checkpoints
    earlier = {(step.trial, step.iters) for step in ledger.list_reported()[: slowdown.onset]}
    return [
        step._replace(seconds=step.seconds * slowdown.factor) if (step.trial, step.iters) in earlier else step
        for step in checkpoints
    ]


def measure_slowdown(config: ExecutionConfig, ledger: Ledger) -> Slowdown | None:
    """Measure whether all trials have become slower, and lastingly, since they began."""
    begins, paces = dict[tuple[int, int], int](), []
    for before, step in itertools.pairwise(ledger.list_checkpoints()):
        begins[step.trial, step.iters] = before.iters if before.trial == step.trial else 0
    reported = ledger.list_reported()
    for step in reported:
        iters = step.iters - begins.get((step.trial, step.iters), 0)
        paces.append(math.log(max(_scale_seconds(config, step) / iters, 1e-9)))
    return find_slowdown(np.array(paces), np.array([step.trial for step in reported], dtype=np.int64))


def _scale_seconds(config: ExecutionConfig, step: Checkpoint) -> float:
    """Scale the seconds of a checkpoint to one accelerator of the profiled kind."""
    profile, machine = config.profile, config.machine
    speed = profile.get_speedup(step.workers, machine.accelerators) * machine.speed
    return step.seconds * speed / compute_slowest_factor(profile.worker_cv, step.workers)


def _measure_pace(config: ExecutionConfig, steps: Sequence[Checkpoint], done: int, target: int) -> float | None:
    """Measure a trial's mean log pace over a range of iterations; ``None`` unless it has run all of them."""
    seconds, iters, before = 0.0, 0, 0
    for step in steps:
        if done < step.iters <= target:
            seconds += _scale_seconds(config, step)
            iters += step.iters - max(before, done)
        before = step.iters
    if not steps or steps[-1].iters < target or iters <= 0 or seconds <= 0:
        return None
    return math.log(seconds / iters)


def _list_steps(ledger: Ledger, slowdown: Slowdown | None) -> Steps:
    steps: Steps = {}
    for step in list_current_checkpoints(ledger, slowdown):
        steps.setdefault(step.trial, []).append(step)
    return steps
