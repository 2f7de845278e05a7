"""Measures the profile of a job: a few trials of the real trainable at every number of workers, on one node."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from unfold_tuning.cluster.interface import Cluster
from unfold_tuning.executor.messages import describe_timeout
from unfold_tuning.executor.monitor import Watchdog
from unfold_tuning.job.problem import TrainableConfig
from unfold_tuning.job.profile import LogNormal, Profile
from unfold_tuning.job.search_space import sample_config
from unfold_tuning.trial.worker import TrialJob, WorkerMessage
from unfoldkit.api import format_count, internal_error, user_error

TRIALS = 8
SPARE_TRIALS = 8
CHECKPOINTS = 3
POLL_S = 1.0
LOCAL_SYNC_S = 0.05
MEASURED_ERROR = 0.1
"""How wrong a profile may be that was measured on a few short trials."""


@dataclass(frozen=True, slots=True)
class ProfileSamples:
    """Measured seconds.

    Attributes:
        iterations: Seconds of an iteration by (workers, trial), one per checkpoint.
        startups: Seconds of starting a node.
        starts: Seconds that a trial takes besides its steps.
        saves: Seconds of writing a checkpoint.
        errors: The error of each failed configuration; spare configurations replace them.
    """

    iterations: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    startups: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    saves: list[float] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)

    @property
    def trials(self) -> int:
        """Number of configurations that were measured."""
        return len({trial for _, trial in self.iterations})

    def summarize(self) -> Profile:
        """Summarize the samples as a profile."""
        by_trial = [values for (workers, _), values in self.iterations.items() if workers == 1]
        means = np.array([np.mean(values) for values in by_trial])
        mean = float(means.mean())
        sizes = sorted({workers for workers, _ in self.iterations})
        return Profile(
            iteration=LogNormal(mean, float(np.mean([np.std(values) for values in by_trial]))),
            speedup=tuple((workers, mean / self._average_size(workers) if workers > 1 else 1.0) for workers in sizes),
            startup=LogNormal(float(np.mean(self.startups)), float(np.std(self.startups))),
            start=LogNormal(float(np.mean(self.starts)), float(np.std(self.starts))),
            sync=LogNormal(LOCAL_SYNC_S),
            trial_cv=float(means.std() / mean),
            error_cv=MEASURED_ERROR,
        )

    def _average_size(self, workers: int) -> float:
        return float(np.mean([np.mean(values) for (size, _), values in self.iterations.items() if size == workers]))


@dataclass(slots=True, kw_only=True)
class Profiler:
    """Measures trials on a cluster of one node.

    Attributes:
        trainable: What trials train.
        build_cluster: Builds a cluster that is not open yet.
        accelerators: Accelerators of its node.
        checkpoint_iters: Iterations between two checkpoints.
        seed: Seed of the configurations and trials.
        folder: Folder of the trials' states.
        clock: A monotonic clock.
        progress: Receives a step, and how much of it is done.
        log: Receives warnings.
        samples: What was measured.
    """

    trainable: TrainableConfig
    build_cluster: Callable[[], Cluster]
    accelerators: int
    checkpoint_iters: int
    seed: int
    folder: Path
    clock: Callable[[], float]
    progress: Callable[[str, int, int], None]
    log: logging.Logger
    samples: ProfileSamples = field(default_factory=ProfileSamples)

    def run(self) -> ProfileSamples:
        """Measure trials at every number of workers that a node allows, in powers of two.

        Raises:
            UnfoldError: The function failed for every configuration, hangs, or a worker died.
        """
        rng = np.random.default_rng([self.seed, 31])
        configs = [sample_config(self.trainable.space, rng) for _ in range(TRIALS + SPARE_TRIALS)]
        workers = 1
        while workers <= self.accelerators:
            cluster = self.build_cluster()
            try:
                cluster.open()
                began = self.clock()
                cluster.resize(1, _do_nothing)
                self.samples.startups.append(self.clock() - began)
                jobs = [
                    self._build_job(trial, config, workers)
                    for trial, config in enumerate(configs)
                    if trial not in self.samples.errors
                ]
                self._measure_jobs(cluster, jobs, workers)
            finally:
                cluster.close()
            self.progress("profile", workers, self.accelerators)
            workers *= 2
        return self.samples

    def _build_job(self, trial: int, config: dict[str, object], workers: int) -> TrialJob:
        return TrialJob(
            trial=trial,
            config=config,
            done=0,
            target=CHECKPOINTS * self.checkpoint_iters,
            checkpoint_iters=self.checkpoint_iters,
            workers=workers,
            seed=self.seed,
            folder=self.folder / f"{workers}-{trial}",
        )

    def _measure_jobs(self, cluster: Cluster, jobs: Sequence[TrialJob], workers: int) -> None:
        """Run the first jobs to their ends; spare jobs replace those that fail."""
        waiting, spare = list(jobs[:TRIALS]), list(jobs[TRIALS:])
        started_at: dict[int, float] = {}
        steps_s = dict.fromkeys((job.trial for job in jobs), 0.0)
        running: dict[int, TrialJob] = {}
        watchdog = Watchdog(self.clock)
        while waiting or running:
            while waiting and (node := cluster.find_node(waiting[0].workers)):
                job = waiting.pop(0)
                running[job.trial], started_at[job.trial] = job, self.clock()
                watchdog.record_progress(job.trial)
                cluster.start(node, job)
            self._check_timeout(watchdog, running)
            for event in cluster.poll_events(POLL_S):
                message = _require_message(event.message)
                job = running[message.trial]
                watchdog.record_progress(job.trial)
                if message.kind == "failed":
                    self._drop_config(job, message.error)
                    waiting += [spare.pop(0)] if spare else []
                else:
                    steps_s[job.trial] += message.seconds
                    self._record_step(job, message)
                if message.kind == "failed" or message.iters >= job.target:
                    cluster.free(job.trial)
                    del running[job.trial]
                if message.kind != "failed" and message.iters >= job.target:
                    start_s = self.clock() - started_at[job.trial] - steps_s[job.trial]
                    self.samples.starts.append(max(0.0, start_s))
        if not any(size == workers for size, _ in self.samples.iterations):
            count = format_count(len(self.samples.errors), "configuration")
            last = list(self.samples.errors.values())[-1]
            raise user_error(f"the trainable failed for all of {count}; the last error: {last}", key="trainable")

    def _check_timeout(self, watchdog: Watchdog, trials: Iterable[int]) -> None:
        timeout_s = self.trainable.timeout_s
        if timeout_s is not None and any(watchdog.measure_silence_s(trial) > timeout_s for trial in trials):
            raise user_error(f"a trial hangs: {describe_timeout(timeout_s)}", key="trainable.timeout")

    def _record_step(self, job: TrialJob, message: WorkerMessage) -> None:
        self.samples.saves.append(message.save_s)
        iteration_s = message.seconds / job.checkpoint_iters
        self.samples.iterations.setdefault((job.workers, job.trial), []).append(iteration_s)

    def _drop_config(self, job: TrialJob, error: str) -> None:
        """Drop a failed configuration with its samples: they are not those of a complete trial."""
        self.samples.errors[job.trial] = error
        self.samples.iterations.pop((job.workers, job.trial), None)
        self.log.warning("the profile continues without %s: %s", job.config, error)


def _require_message(message: WorkerMessage | None) -> WorkerMessage:
    if message is None:
        raise internal_error("a worker died during the measurement", hint="out of memory?")
    if message.kind == "unsaved":
        raise user_error(message.error)
    return message


def _do_nothing() -> None:
    return None
