"""Measures the profile of a job: a few trials of the real trainable at every number of workers.

Trials run on one node, and on several for the speed-up across nodes if they may span them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from unfold_tuning.cluster.interface import Cluster
from unfold_tuning.executor.messages import describe_timeout
from unfold_tuning.executor.monitor import Watchdog
from unfold_tuning.job.problem import ProfiledTrial, TrainableConfig
from unfold_tuning.job.profile import LogNormal, Profile
from unfold_tuning.job.search_space import sample_bracket_configs
from unfold_tuning.trial.worker import TrialJob, WorkerMessage, get_state_path, name_trial_folder
from unfoldkit.api import format_count, user_error

TRIALS = 8
SPARE_TRIALS = 8
ITERS = 12
"""Iterations of a profiled trial: from the fifth on they resemble the later ones."""
CHECKPOINTS = 3
"""Checkpoints that a trial runs at least, and on several accelerators at most."""
WARM_UP_FACTOR = 2.0
"""A first checkpoint that takes more than this many times the median of the others holds a warm-up."""
POLL_S = 1.0
LOCAL_SYNC_S = 0.05
MEASURED_ERROR = 0.1
"""How wrong a profile may be that was measured on a few short trials."""


@dataclass(frozen=True, slots=True)
class ProfileSamples:
    """Measured seconds.

    Attributes:
        iterations: Seconds of an iteration by (workers, trial), one per checkpoint, without the warm-up.
        metrics: Ranking scores, like ``iterations``.
        configs: The measured configurations by trial.
        checkpoint_iters: Iterations between two checkpoints.
        accelerators: Accelerators of a node.
        warm_ups: Seconds by which the first checkpoint of each trial exceeds the others: compilation, caches.
        startups: Seconds of starting a node.
        starts: Seconds that a trial takes besides its steps.
        saves: Seconds of writing a checkpoint.
        errors: The error of each failed configuration; spare configurations replace them.
        resumed: Measurements that are those of an attempt that was stopped.
    """

    iterations: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    metrics: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    configs: dict[int, dict[str, object]] = field(default_factory=dict)
    checkpoint_iters: int = 1
    accelerators: int = 1
    warm_ups: list[float] = field(default_factory=list)
    startups: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    saves: list[float] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    resumed: int = 0

    @property
    def trials(self) -> int:
        """Number of configurations that were measured."""
        return len({trial for _, trial in self.iterations})

    @property
    def warm_up_s(self) -> float:
        """Mean warm-up of a trial; it counts as part of the trial's start, whenever its process starts."""
        return float(np.mean(self.warm_ups)) if self.warm_ups else 0.0

    @property
    def iters(self) -> int:
        """Iterations that the longest measured trial ran."""
        return self.checkpoint_iters * max(len(values) for values in self.iterations.values())

    def summarize(self) -> Profile:
        """Summarize the samples as a profile."""
        by_trial = {trial: values for (workers, trial), values in self.iterations.items() if workers == 1}
        means = np.array([np.mean(values) for values in by_trial.values()])
        mean = float(means.mean())
        sizes = sorted({workers for workers, _ in self.iterations})
        starts = np.array(self.starts) + self.warm_up_s
        speedups = [(workers, self._measure_speedup(workers)) for workers in sizes]
        return Profile(
            iteration=LogNormal(mean, float(np.mean([np.std(values) for values in by_trial.values()]))),
            speedup=tuple(item for item in speedups if item[0] <= self.accelerators),
            across=tuple(item for item in speedups if item[0] > self.accelerators),
            startup=LogNormal(float(np.mean(self.startups)), float(np.std(self.startups))),
            start=LogNormal(float(np.mean(starts)), float(np.std(starts))),
            sync=LogNormal(LOCAL_SYNC_S),
            trial_cv=float(means.std() / mean),
            error_cv=MEASURED_ERROR,
        )

    def list_trials(self) -> list[ProfiledTrial]:
        """List the trials on one accelerator, in the order in which they were drawn."""
        step = self.checkpoint_iters
        return [
            ProfiledTrial(
                ends=tuple(step * (index + 1) for index in range(len(values))),
                seconds=tuple(values),
                metrics=tuple(self.metrics[workers, trial]),
                config=self.configs.get(trial, {}),
            )
            for (workers, trial), values in sorted(self.iterations.items())
            if workers == 1
        ]

    def encode(self) -> dict[str, object]:
        """Encode the finished measurements for JSON. Failures are left out: a profile that continues tries again."""
        measured = [
            {"workers": workers, "trial": trial, "seconds": values, "metrics": self.metrics[workers, trial]}
            for (workers, trial), values in self.iterations.items()
        ]
        return {"measured": measured, "startups": self.startups, "starts": self.starts, "saves": self.saves}

    @classmethod
    def decode(cls, stored: Mapping[str, Any]) -> ProfileSamples:
        """Decode the measurements of an attempt that was stopped."""
        measured = {(int(item["workers"]), int(item["trial"])): item for item in stored["measured"]}
        return cls(
            iterations={key: [float(value) for value in item["seconds"]] for key, item in measured.items()},
            metrics={key: [float(value) for value in item["metrics"]] for key, item in measured.items()},
            startups=[float(value) for value in stored["startups"]],
            starts=[float(value) for value in stored["starts"]],
            saves=[float(value) for value in stored["saves"]],
            resumed=len(measured),
        )

    def _measure_speedup(self, workers: int) -> float:
        """Measure the speed-up over one accelerator on the same iterations of the same trials."""
        pairs = [
            (self.iterations[1, trial], values)
            for (size, trial), values in self.iterations.items()
            if size == workers and (1, trial) in self.iterations
        ]
        if workers == 1 or not pairs:
            return 1.0
        return sum(sum(single[: len(values)]) for single, values in pairs) / sum(sum(values) for _, values in pairs)


@dataclass(slots=True, kw_only=True)
class Profiler:
    """Measures trials on a cluster of one node, or of as many as a trial may span.

    Attributes:
        trainable: What trials train.
        build_cluster: Builds a cluster that is not open yet.
        accelerators: Accelerators of its node.
        checkpoint_iters: Iterations between two checkpoints.
        seed: Seed of the configurations and trials.
        bracket: The bracket of the first trials that are measured: they belong to the search.
        rungs: Iterations at which the search ranks the trials of the bracket.
        folder: Folder of the trials' states.
        clock: A monotonic clock.
        progress: Receives a step, and how much of it is done.
        log: Receives warnings.
        watch: Called several times a second.
        store: Receives the samples whenever a trial has reached its last iteration.
        samples: What was measured, perhaps by an attempt that was stopped.
        earlier_states: States that were there before, to which a search that has begun may refer.
    """

    trainable: TrainableConfig
    build_cluster: Callable[[], Cluster]
    accelerators: int
    checkpoint_iters: int
    seed: int
    bracket: int
    rungs: Sequence[int]
    folder: Path
    clock: Callable[[], float]
    progress: Callable[[str, int, int], None]
    log: logging.Logger
    watch: Callable[[], None]
    store: Callable[[ProfileSamples], None]
    samples: ProfileSamples
    earlier_states: frozenset[Path] = frozenset()

    def run(self) -> ProfileSamples:
        """Measure trials at every number of workers in powers of two: within a node, then on whole nodes.

        Raises:
            UnfoldError: The function failed for every configuration, too few nodes started, or a checkpoint could not
                be written.
        """
        self.earlier_states = frozenset(self.folder.resolve().glob("*/*.state"))
        configs = sample_bracket_configs(self.trainable.space, self.seed, self.bracket, TRIALS + SPARE_TRIALS)
        self.samples = replace(
            self.samples,
            configs=dict(enumerate(configs)),
            checkpoint_iters=self.checkpoint_iters,
            accelerators=self.accelerators,
        )
        sizes = self._list_sizes()
        for index, workers in enumerate(sizes):
            jobs = [self._build_job(trial, config, workers) for trial, config in enumerate(configs)]
            jobs = [job for job in jobs if job.trial not in self.samples.errors]
            missing = [job for job in jobs if (workers, job.trial) not in self.samples.iterations]
            if len(jobs) - len(missing) >= TRIALS:
                continue
            cluster = self.build_cluster()
            try:
                cluster.open()
                began = self.clock()
                cluster.resize(max(1, workers // self.accelerators), self.watch)
                self.samples.startups.append(self.clock() - began)
                _require_node(cluster, workers)
                self._measure_jobs(cluster, missing, TRIALS - len(jobs) + len(missing))
            finally:
                cluster.close()
            self.progress("profile", index + 1, len(sizes))
        self._separate_warm_ups()
        return self.samples

    def _list_sizes(self) -> list[int]:
        """List the numbers of workers to measure, ascending."""
        within = [1 << power for power in range(self.accelerators.bit_length())]
        nodes = [1 << power for power in range(1, self.trainable.span.bit_length())]
        return within + [self.accelerators * count for count in nodes]

    def _separate_warm_ups(self) -> None:
        """Move what the first checkpoint of a trial takes longer than the others to its warm-up, if that is much."""
        for values in self.samples.iterations.values():
            if len(values) < CHECKPOINTS:
                continue
            usual_s = float(np.median(values[1:]))
            is_warm_up = values[0] > WARM_UP_FACTOR * usual_s
            self.samples.warm_ups.append((values[0] - usual_s) * self.checkpoint_iters if is_warm_up else 0.0)
            if is_warm_up:
                values[0] = usual_s

    def _count_iters(self, workers: int) -> int:
        """Count the iterations of a measured trial: whole checkpoints, and no more than the search ever runs."""
        step = self.checkpoint_iters
        wanted = CHECKPOINTS * step if workers > 1 else max(CHECKPOINTS * step, -(-ITERS // step) * step)
        return max(step, min(wanted, max(self.rungs) // step * step))

    def _build_job(self, trial: int, config: dict[str, object], workers: int) -> TrialJob:
        # the state on one accelerator is where the search continues
        folder = name_trial_folder(trial + 1) if workers == 1 else f"profile-{workers}-{trial}"
        return TrialJob(
            trial=trial,
            config=config,
            done=0,
            target=self._count_iters(workers),
            checkpoint_iters=self.checkpoint_iters,
            workers=workers,
            seed=self.seed,
            folder=(self.folder / folder).resolve(),
            mode=self.trainable.mode,
        )

    def _measure_jobs(self, cluster: Cluster, jobs: Sequence[TrialJob], wanted: int) -> None:
        """Run the first jobs to their ends; spare jobs replace those that fail."""
        waiting, spare = list(jobs[:wanted]), list(jobs[wanted:])
        workers = jobs[0].workers
        started_at: dict[int, float] = {}
        steps: dict[int, list[WorkerMessage]] = {}
        running: dict[int, TrialJob] = {}
        watchdog = Watchdog(self.clock)
        while waiting or running:
            while waiting and (node := cluster.find_node(waiting[0].workers)):
                job = waiting.pop(0)
                running[job.trial], started_at[job.trial], steps[job.trial] = job, self.clock(), []
                watchdog.record_progress(job.trial)
                cluster.start(node, job)
            if waiting and not running:
                # a node was lost with its trials
                cluster.resize(max(1, workers // self.accelerators), self.watch)
                _require_node(cluster, workers)
            self.watch()
            self._kill_hanging(cluster, watchdog, running)
            for event in cluster.poll_events(POLL_S):
                message = _require_saved(event.message)
                if event.trial not in running:
                    continue
                job = running[event.trial]
                if message is not None and message.kind == "step":
                    watchdog.record_progress(job.trial)
                    self._delete_state_before(job, message.iters)
                    steps[job.trial].append(message)
                    if message.iters < job.target:
                        continue
                    self._record_trial(job, steps[job.trial], self.clock() - started_at[job.trial])
                elif not event.is_own_process:
                    waiting.insert(0, job)
                else:
                    reason = watchdog.kill_reasons.get(job.trial) or (message.error if message else event.reason)
                    self.samples.errors[job.trial] = reason
                    self.log.warning("the profile continues without %s: %s", job.config, reason)
                    waiting += [spare.pop(0)] if spare else []
                watchdog.forget(job.trial)
                cluster.free(job.trial)
                del running[job.trial]
        self._require_measurement(workers)

    def _require_measurement(self, workers: int) -> None:
        if self.samples.errors and not any(size == workers for size, _ in self.samples.iterations):
            count = format_count(len(self.samples.errors), "configuration")
            last = list(self.samples.errors.values())[-1]
            raise user_error(f"the trainable failed for all of {count}; the last error: {last}", key="trainable")

    def _kill_hanging(self, cluster: Cluster, watchdog: Watchdog, trials: Iterable[int]) -> None:
        timeout_s = self.trainable.timeout_s
        for trial in trials:
            if timeout_s is not None and watchdog.measure_silence_s(trial) > timeout_s:
                watchdog.kill_reasons[trial] = describe_timeout(timeout_s)
                cluster.kill(trial)

    def _delete_state_before(self, job: TrialJob, iters: int) -> None:
        """Delete the state before a checkpoint, unless the search continues there: a rung between them has no score."""
        before = iters - self.checkpoint_iters
        state = get_state_path(job.folder, before)
        if state not in self.earlier_states and not any(before < rung < iters for rung in self.rungs):
            state.unlink(missing_ok=True)

    def _record_trial(self, job: TrialJob, steps: Sequence[WorkerMessage], total_s: float) -> None:
        key = job.workers, job.trial
        self.samples.iterations[key] = [step.seconds / job.checkpoint_iters for step in steps]
        self.samples.metrics[key] = [step.metric for step in steps]
        self.samples.saves.extend(step.save_s for step in steps)
        self.samples.starts.append(max(0.0, total_s - sum(step.seconds for step in steps)))
        self.store(self.samples)


def _require_node(cluster: Cluster, workers: int) -> None:
    """Require room for a trial: a profile without one of its sizes would be taken for a complete one."""
    if cluster.find_node(workers) is None:
        hint = "the same command continues the profile when there are more; trainable.span: 1 measures within a node"
        raise user_error(f"fewer nodes started than a trial of {workers} accelerators needs", key="cloud", hint=hint)


def _require_saved(message: WorkerMessage | None) -> WorkerMessage | None:
    if message is not None and message.kind == "unsaved":
        raise user_error(message.error)
    return message
