"""Which trials enter a stage, how they rank, and which one wins: all of it read from the ledger."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig
from unfold_tuning.job.problem import ProfiledTrial
from unfold_tuning.job.schedule import Group, Stage
from unfold_tuning.job.search_space import sample_bracket_configs
from unfold_tuning.trial.ledger import Ledger, Trial
from unfold_tuning.trial.worker import TrialJob, get_state_path, name_trial_folder


def list_open_jobs(config: ExecutionConfig, ledger: Ledger, stage: Stage, workers: int) -> list[TrialJob]:
    """List the jobs of a stage that have not reached their target, longest first.

    Args:
        config: The run.
        ledger: Its ledger.
        stage: The stage.
        workers: Accelerators per trial.
    """
    jobs = [
        _build_job(config, trial, group, workers)
        for group in stage.groups
        for trial in list_entrants(config, ledger, group)
    ]
    stopped = {*ledger.list_early_stops(), *ledger.list_stragglers()}
    is_open = [job for job in jobs if job.done < job.target and job.trial not in stopped]
    return sorted(is_open, key=lambda job: (job.done - job.target, job.trial))


def list_entrants(config: ExecutionConfig, ledger: Ledger, group: Group) -> list[Trial]:
    """List the trials that enter a group: new ones with random configurations, or the best of the stage before."""
    if group.done > 0:
        return rank_trials(config, ledger, group.bracket, group.done)[: group.trials]
    configs = sample_bracket_configs(config.trainable.space, config.seed, group.bracket, group.trials)
    ledger.record_trials(group.bracket, configs)
    return [trial for trial in ledger.list_trials(group.bracket) if not ledger.is_failed(trial.id)]


def adopt_profiled_trials(config: ExecutionConfig, ledger: Ledger, profiled: Sequence[ProfiledTrial]) -> None:
    """Adopt the trials of the profile as the first ones of the search, with their checkpoints, if none has begun.

    A trial is adopted up to its last checkpoint before a rung at which the profile has no score, and only if its state
    is still there.
    """
    group = config.stages[0].groups[0]
    if ledger.read_fact("began") is not None:
        return
    trials = list_entrants(config, ledger, group)
    rungs = [
        item.done + item.iters for stage in config.stages for item in stage.groups if item.bracket == group.bracket
    ]
    for item in profiled:
        limit = min((rung for rung in rungs if rung not in item.ends), default=max(rungs) + 1)
        ends = [end for end in item.ends if end < limit]
        # a small space gives several trials the same configuration
        trial = next((trial for trial in trials if ends and _is_profiled(config, trial, item, ends[-1])), None)
        if trial is None:
            continue
        trials.remove(trial)
        begins = [0, *ends[:-1]]
        for begin, end, seconds, metric in zip(begins, ends, item.seconds, item.metrics, strict=False):
            ledger.record_checkpoint(trial.id, end, metric, seconds * (end - begin), 1)


def _is_profiled(config: ExecutionConfig, trial: Trial, profiled: ProfiledTrial, iters: int) -> bool:
    texts = [json.dumps(dict(item.config), sort_keys=True) for item in (trial, profiled)]
    return texts[0] == texts[1] and get_state_path(config.folder / name_trial_folder(trial.id), iters).exists()


def rank_trials(config: ExecutionConfig, ledger: Ledger, bracket: int, iters: int) -> list[Trial]:
    """Rank the trials of a bracket by their score after ``iters`` iterations, best first.

    A trial that has ended early keeps its last score in the stages that it entered.
    """
    scores = {step.trial: step.metric for step in ledger.list_checkpoints() if step.iters == iters}
    stopped = ledger.list_early_stops()
    if stopped:
        groups = [group for stage in config.stages for group in stage.groups if group.bracket == bracket]
        entered = [group for group in groups if group.done < iters <= group.done + group.iters]
        entrants = [trial for group in entered for trial in list_entrants(config, ledger, group)]
        scores |= {
            trial.id: trial.metric
            for trial in entrants
            if trial.id in stopped and trial.iters < iters and trial.metric is not None
        }
    trials = [trial for trial in ledger.list_trials(bracket) if trial.id in scores and not ledger.is_failed(trial.id)]
    return sorted(trials, key=lambda trial: (-scores[trial.id], trial.id))


def has_plateaued(config: ExecutionConfig, ledger: Ledger, trial: int) -> bool:
    """Return whether a trial's score has not become better for as many iterations as the early-stop rule allows."""
    rules = config.trainable.early_stop
    if rules.patience is None:
        return False
    best, improved_at, iters = -math.inf, 0, 0
    for step in ledger.list_checkpoints():
        if step.trial != trial:
            continue
        iters = step.iters
        if step.metric > best + rules.min_delta or not improved_at:
            best, improved_at = step.metric, step.iters
    return iters - improved_at >= rules.patience


def has_reached_target(config: ExecutionConfig, ledger: Ledger) -> bool:
    """Return whether the score of any trial is at least that with which the search ends."""
    target = config.trainable.early_stop.target_score
    return target is not None and any(
        trial.metric is not None and trial.metric >= target for trial in _list_finite(ledger)
    )


def select_winner(config: ExecutionConfig, ledger: Ledger) -> Trial | None:
    """Select the best of the trials that ran furthest, among those with a finite metric.

    A trial that has ended early counts up to the last stage that it entered. Where a target ended the search, the best
    trial of all wins.
    """
    trials = _list_finite(ledger)
    if not has_reached_target(config, ledger):
        reached = {trial.id: _count_reached_iters(config, ledger, trial) for trial in trials}
        trials = [trial for trial in trials if reached[trial.id] == max(reached.values())]
    return max(trials, key=lambda trial: (trial.metric or 0.0, -trial.id), default=None)


def _list_finite(ledger: Ledger) -> list[Trial]:
    return [trial for trial in ledger.list_trials() if trial.has_finite_metric and not ledger.is_failed(trial.id)]


def _count_reached_iters(config: ExecutionConfig, ledger: Ledger, trial: Trial) -> int:
    """Count the iterations of a trial, or those at the end of the last stage that ranked it after it ended early."""
    if trial.id not in ledger.list_early_stops():
        return trial.iters
    targets = [
        group.done + group.iters
        for stage in ledger.list_finished_stages()
        for group in config.stages[stage.stage].groups
        if group.bracket == trial.bracket and trial.id in stage.survivors
    ]
    return max([trial.iters, *targets])


def _build_job(config: ExecutionConfig, trial: Trial, group: Group, workers: int) -> TrialJob:
    return TrialJob(
        trial=trial.id,
        config=dict(trial.config),
        done=trial.iters,
        target=group.done + group.iters,
        checkpoint_iters=config.checkpoint_iters,
        workers=workers,
        seed=config.seed,
        # a trial may change its working directory
        folder=(config.folder / name_trial_folder(trial.id)).resolve(),
        mode=config.trainable.mode,
    )
