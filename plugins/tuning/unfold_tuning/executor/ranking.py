"""Which trials enter a stage, how they rank, and which one wins: all of it read from the ledger."""

from __future__ import annotations

import numpy as np

from unfold_tuning.executor.execution import ExecutionConfig
from unfold_tuning.job.schedule import Group, Stage
from unfold_tuning.job.search_space import sample_config
from unfold_tuning.trial.ledger import Ledger, Trial
from unfold_tuning.trial.worker import TrialJob


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
    rng = np.random.default_rng([config.seed, 1000 + group.bracket])
    configs = [sample_config(config.trainable.space, rng) for _ in range(group.trials)]
    ledger.record_trials(group.bracket, configs)
    return [trial for trial in ledger.list_trials(group.bracket) if not ledger.is_failed(trial.id)]


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
        folder=config.folder / f"trial-{trial.id:05d}",
    )
