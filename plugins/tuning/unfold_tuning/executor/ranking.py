"""Which trials enter a stage, how they rank, and which one wins: all of it read from the ledger."""

from __future__ import annotations

import json
from collections.abc import Sequence

from unfold_tuning.executor.execution import ExecutionConfig
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
    return sorted((job for job in jobs if job.done < job.target), key=lambda job: (job.done - job.target, job.trial))


def list_entrants(config: ExecutionConfig, ledger: Ledger, group: Group) -> list[Trial]:
    """List the trials that enter a group: new ones with random configurations, or the best of the stage before."""
    if group.done > 0:
        return rank_trials(ledger, group.bracket, group.done)[: group.trials]
    configs = sample_bracket_configs(config.trainable.space, config.seed, group.bracket, group.trials)
    ledger.record_trials(group.bracket, configs)
    return [trial for trial in ledger.list_trials(group.bracket) if not ledger.is_failed(trial.id)]


def adopt_profiled_trials(config: ExecutionConfig, ledger: Ledger, profiled: Sequence[ProfiledTrial]) -> None:
    """Adopt the trials of the profile as the first ones of the search, with their checkpoints, if none has begun.

    A trial is adopted up to its last checkpoint before a rung at which the profile has no score, and only if its state
    is still there.
    """
    group = config.stages[0].groups[0]
    if ledger.list_trials():
        return
    trials = list_entrants(config, ledger, group)
    rungs = [
        item.done + item.iters for stage in config.stages for item in stage.groups if item.bracket == group.bracket
    ]
    by_config = {json.dumps(trial.config, sort_keys=True): trial for trial in trials}
    for item in profiled:
        trial = by_config.get(json.dumps(dict(item.config), sort_keys=True))
        limit = min((rung for rung in rungs if rung not in item.ends), default=max(rungs) + 1)
        ends = [end for end in item.ends if end < limit]
        if (
            trial is None
            or not ends
            or not get_state_path(config.folder / name_trial_folder(trial.id), ends[-1]).exists()
        ):
            continue
        begins = [0, *ends[:-1]]
        for begin, end, seconds, metric in zip(begins, ends, item.seconds, item.metrics, strict=False):
            ledger.record_checkpoint(trial.id, end, metric, seconds * (end - begin), 1)


def rank_trials(ledger: Ledger, bracket: int, iters: int) -> list[Trial]:
    """Rank the trials of a bracket by their metric after ``iters`` iterations, best first."""
    metrics = {step.trial: step.metric for step in ledger.list_checkpoints() if step.iters == iters}
    trials = [trial for trial in ledger.list_trials(bracket) if trial.id in metrics and not ledger.is_failed(trial.id)]
    return sorted(trials, key=lambda trial: (-metrics[trial.id], trial.id))


def select_winner(ledger: Ledger) -> Trial | None:
    """Select the best of the trials that ran furthest, among those with a finite metric."""
    trials = [trial for trial in ledger.list_trials() if trial.has_finite_metric and not ledger.is_failed(trial.id)]
    max_iters = max((trial.iters for trial in trials), default=0)
    furthest = (trial for trial in trials if trial.iters == max_iters)
    return max(furthest, key=lambda trial: (trial.metric or 0.0, -trial.id), default=None)


def _build_job(config: ExecutionConfig, trial: Trial, group: Group, workers: int) -> TrialJob:
    return TrialJob(
        trial=trial.id,
        config=dict(trial.config),
        done=trial.iters,
        target=group.done + group.iters,
        checkpoint_iters=config.checkpoint_iters,
        workers=workers,
        seed=config.seed,
        folder=config.folder / name_trial_folder(trial.id),
    )
