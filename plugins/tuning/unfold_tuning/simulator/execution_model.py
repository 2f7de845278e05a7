"""The sampled execution model: every random quantity is drawn once and shared by all plans that are compared.

Each stage of a run is SCALE (wait for new instances), INIT (they start up; the stage waits for the slowest), TRAIN (one
per trial, list scheduling if there are fewer slots than trials) and SYNC (barrier). A run takes as long as the longest
path through this graph (RubberBand, EuroSys 2021); because of the barriers that is a sum over stages. Common random
numbers make two plans differ by what they do, not by chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.special import log_ndtr, ndtri

from unfold_tuning._types import FloatArray
from unfold_tuning.job.allocation import Allocation
from unfold_tuning.job.profile import LogNormal, Machine, Profile, compute_log_sigma
from unfold_tuning.job.schedule import Stage
from unfold_tuning.simulator.kernels import schedule_slots, schedule_trials
from unfold_tuning.simulator.spot_preemptions import sample_delay
from unfold_tuning.simulator.stage_paces import PaceDraws, StagePaces, draw_paces, list_trial_groups

TRIAL_CACHE_SIZE = 4
QUADRATURE_NODES = np.arange(0.5, 512) / 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """Draws of one stage, standard normal except as noted; those of trials are [samples, trials], others [samples].

    Attributes:
        iterations: Iterations of each trial, longest first: [trials]; not random.
        lasting: A trial's lasting speed, the same in every stage of its bracket.
        noise: Noise of a trial's iterations in this stage.
        start: Start of a trial.
        worker: The slowest worker of a trial.
        preemption: Preemptions of a trial; uniform.
        provision: Wait for new instances.
        startup: Start-up of the slowest new instance.
        sync: The barrier.
    """

    iterations: FloatArray
    lasting: FloatArray
    noise: FloatArray
    start: FloatArray
    worker: FloatArray
    preemption: FloatArray
    provision: FloatArray
    startup: FloatArray
    sync: FloatArray


@dataclass(frozen=True, slots=True)
class TrialSlowdowns:
    """Measured slowdowns of the trials that continue, relative to the profile, best trial first.

    Configurations differ lastingly (batch size, width); once a trial has run, its own slowdown is known up to
    ``log_std``.
    """

    factors: tuple[float, ...]
    log_std: float = 0.0

    def sample(self, samples: int, trials: int) -> FloatArray:
        """Return the slowdowns of ``trials`` survivors: [samples, trials]; every call draws the same survivors."""
        factors = np.asarray(self.factors)
        if trials == len(factors):
            return np.broadcast_to(factors, (samples, trials))
        order = np.random.default_rng(len(factors)).random((samples, len(factors))).argsort(axis=1)
        return np.asarray(factors[order[:, :trials]])


@dataclass(frozen=True, slots=True)
class ExecutionModel:
    """A job on a machine, with its draws and the results that planners request again and again.

    Attributes:
        stages: The stage table.
        profile: Timings of the job.
        machine: The instance type.
        draws: Draws of each stage.
        profile_error: Factor by which the profile is wrong in each run: [samples].
        running_instances: Instances that run when the first stage begins, if a remaining job is planned again.
        slowdowns: Slowdowns of the trials that continue, if they are known.
        paces: Pace of each group of trials, one item per stage; it replaces the variation between trials and the error
            that the profile states.
        stage_cache: Stage durations by (stage, workers, slots); with 0 slots, busy accelerator-seconds.
        trial_cache: The last few trial times, which are large, by (stage, workers).
        startup_cache: Start-up times by (stage, new instances).
        allocation_cache: Tables of :mod:`unfold_tuning.simulator.allocation_table`.
    """

    stages: tuple[Stage, ...]
    profile: Profile
    machine: Machine
    draws: tuple[Draws, ...]
    profile_error: FloatArray
    running_instances: int = 0
    slowdowns: TrialSlowdowns | None = None
    paces: tuple[PaceDraws, ...] | None = None
    stage_cache: dict[tuple[int, int, int], FloatArray] = field(default_factory=dict, compare=False, repr=False)
    trial_cache: dict[tuple[int, int], FloatArray] = field(default_factory=dict, compare=False, repr=False)
    startup_cache: dict[tuple[int, int], FloatArray] = field(default_factory=dict, compare=False, repr=False)
    allocation_cache: dict[tuple[int, tuple[int, ...]], tuple[tuple[Allocation, ...], ...]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def samples(self) -> int:
        """Number of simulated runs."""
        return len(self.profile_error)

    @property
    def is_stochastic(self) -> bool:
        """Whether the trials of a stage differ by chance."""
        profile, machine = self.profile, self.machine
        spreads = (profile.iteration.std, profile.start.std, profile.trial_cv, profile.worker_cv)
        return any(spreads) or bool(machine.interruptions_per_hour) or self._has_sampled_paces

    @property
    def _has_sampled_paces(self) -> bool:
        return self.slowdowns is not None or self.paces is not None

    def with_machine(self, machine: Machine) -> ExecutionModel:
        """Return the same runs on another machine; caches that do not depend on it are kept."""
        if _build_speed_key(machine) == _build_speed_key(self.machine):
            return replace(self, machine=machine)
        return self._replace(machine=machine, startup_cache=self.startup_cache)

    def with_machines(self, machines: Sequence[Machine]) -> list[ExecutionModel]:
        """Return the same runs on each machine; machines on which trials take equally long share their caches."""
        models: list[ExecutionModel] = []
        for machine in machines:
            equal = [model for model in models if _build_speed_key(model.machine) == _build_speed_key(machine)]
            models.append((equal or [self])[0].with_machine(machine))
        return models

    def select_remaining(self, index: int, running_instances: int) -> ExecutionModel:
        """Return the job from stage ``index`` on, with the instances that run already."""
        paces = self.paces[index:] if self.paces is not None else None
        return self._replace(
            stages=self.stages[index:], draws=self.draws[index:], paces=paces, running_instances=running_instances
        )

    def with_slowdowns(self, slowdowns: TrialSlowdowns | None) -> ExecutionModel:
        """Return the same runs with known slowdowns of the trials."""
        return self._replace(slowdowns=slowdowns)

    def with_paces(self, paces: StagePaces | None, seed: int) -> ExecutionModel:
        """Return the same runs with other paces of their stages."""
        drawn = None if paces is None else draw_paces(self.stages, paces, self.samples, seed)
        return self._replace(paces=drawn)

    def with_drawn_paces(self, paces: tuple[PaceDraws, ...]) -> ExecutionModel:
        """Return the same runs with paces that are drawn already, one item per stage."""
        return self._replace(paces=paces)

    def with_profile(self, profile: Profile) -> ExecutionModel:
        """Return the same draws under another profile; the profile's error is redrawn from the same normals."""
        sigma = compute_log_sigma(profile.error_cv)
        normal = _to_normal(self.profile_error, compute_log_sigma(self.profile.error_cv))
        return self._replace(profile=profile, profile_error=np.exp(sigma * normal - sigma**2 / 2))

    def select_run(self, sample: int) -> ExecutionModel:
        """Return the model of a single run."""
        return self._select_samples(slice(sample, sample + 1))

    def select_first_runs(self, count: int) -> ExecutionModel:
        """Return the model of the first ``count`` runs."""
        return self._select_samples(slice(0, count))

    def _select_samples(self, rows: slice) -> ExecutionModel:
        names = ("lasting", "noise", "start", "worker", "preemption", "provision", "startup", "sync")
        draws = tuple(replace(stage, **{name: getattr(stage, name)[rows] for name in names}) for stage in self.draws)
        paces = None if self.paces is None else tuple(stage.select(rows) for stage in self.paces)
        return self._replace(draws=draws, profile_error=self.profile_error[rows], paces=paces)

    def _replace(self, **changes: Any) -> ExecutionModel:
        """Return the model with other facts and empty caches."""
        empty: dict[str, Any] = {"stage_cache": {}, "trial_cache": {}, "startup_cache": {}, "allocation_cache": {}}
        return replace(self, **(empty | changes))

    def sample_stage_seconds(self, index: int, allocation: Allocation) -> FloatArray:
        """Compute the duration of a stage under an allocation, barrier included: [samples] seconds."""
        slots = min(allocation.slots, self.stages[index].trials)
        key = (index, allocation.workers, slots)
        if key not in self.stage_cache:
            trials = self.sample_trial_seconds(index, allocation.workers)
            ends = trials.max(axis=1) if slots == trials.shape[1] else schedule_trials(trials, slots)
            self.stage_cache[key] = ends + self.sample_sync_seconds(index)
        return self.stage_cache[key]

    def sample_trial_seconds(self, index: int, workers: int) -> FloatArray:
        """Compute the duration of each trial of a stage on ``workers`` accelerators: [samples, trials] seconds."""
        if (index, workers) not in self.trial_cache:
            seconds = self._sample_trials(index, workers)
            if len(self.trial_cache) >= TRIAL_CACHE_SIZE:
                self.trial_cache.pop(next(iter(self.trial_cache)))
            self.trial_cache[index, workers] = seconds
        return self.trial_cache[index, workers]

    def sample_busy_accelerator_seconds(self, index: int, allocation: Allocation) -> FloatArray:
        """Compute the accelerator-seconds in which trials of a stage run: [samples]."""
        key = (index, allocation.workers, 0)
        if key not in self.stage_cache:
            trials = self.sample_trial_seconds(index, allocation.workers)
            self.stage_cache[key] = np.asarray(trials.sum(axis=1) * allocation.workers)
        return self.stage_cache[key]

    def sample_idle_seconds(self, index: int, allocation: Allocation) -> FloatArray:
        """Compute how long before the end of a stage each instance has run its last trial.

        Trials fill one instance after another; one that spans several keeps all of them.

        Returns:
            [samples, instances] seconds, longest first.
        """
        trials = self.sample_trial_seconds(index, allocation.workers)
        slots = min(allocation.slots, trials.shape[1])
        slot_ends = trials if slots == trials.shape[1] else schedule_slots(trials, slots)
        hosts = max(1, -(-allocation.workers // self.machine.accelerators))
        per_instance = max(1, self.machine.accelerators // allocation.workers)
        ends = np.zeros((len(trials), max(allocation.instances, -(-slots // per_instance) * hosts)))
        for begin in range(0, slots, per_instance):
            first = begin // per_instance * hosts
            ends[:, first : first + hosts] = slot_ends[:, begin : begin + per_instance].max(axis=1, keepdims=True)
        ends.sort(axis=1)
        return np.asarray(ends[:, -1:] - ends[:, : allocation.instances])

    def sample_sync_seconds(self, index: int) -> FloatArray:
        """Compute the duration of the barrier before a stage, which the first stage of a job lacks: [samples]."""
        has_barrier = bool(index or self.running_instances)
        return to_lognormal(self.profile.sync, self.draws[index].sync) * (1.0 if has_barrier else 0.0)

    def sample_provision_seconds(self, index: int) -> FloatArray:
        """Compute the wait for new instances before a stage: [samples] seconds."""
        return to_lognormal(self.profile.provision, self.draws[index].provision)

    def sample_startup_seconds(self, index: int, new_instances: int) -> FloatArray:
        """Compute the start-up time of the slowest new instance: [samples] seconds."""
        # the maximum of k draws has the distribution function F**k, so one draw serves every k
        key = (index, new_instances)
        if key not in self.startup_cache:
            normal = to_slowest(self.draws[index].startup, new_instances)
            self.startup_cache[key] = to_lognormal(self.profile.startup, normal)
        return self.startup_cache[key]

    def _sample_trials(self, index: int, workers: int) -> FloatArray:
        draws, profile = self.draws[index], self.profile
        speed = profile.get_speedup(workers, self.machine.accelerators) * self.machine.speed
        seconds = draws.iterations * (profile.iteration.mean / speed) * self._sample_trial_factors(index)
        if profile.worker_cv:
            sigma = compute_log_sigma(profile.worker_cv)
            seconds = seconds * np.exp(sigma * to_slowest(draws.worker, workers) - sigma**2 / 2)
        if self.paces is None:
            seconds = seconds * self.profile_error[:, None]
        if profile.start.mean:
            seconds = seconds + to_lognormal(profile.start, draws.start)
        if self.machine.interruptions_per_hour:
            seconds = seconds + self._sample_preemption_delay(index, workers, seconds)
        return seconds

    def _sample_trial_factors(self, index: int) -> FloatArray:
        """Sample a trial's lasting factor times that of the mean of its iterations: a log-normal of mean 1."""
        if self.paces is not None:
            return self._sample_paced_factors(index, self.paces[index])
        draws, iteration = self.draws[index], self.profile.iteration
        cv = iteration.std / iteration.mean
        slowdowns = self.slowdowns if self.slowdowns and self._has_known_trials(index) else None
        lasting = slowdowns.log_std if slowdowns else compute_log_sigma(self.profile.trial_cv)
        noise = np.log1p(cv * cv / np.maximum(draws.iterations, 1))
        factor = np.asarray(np.exp(lasting * draws.lasting + np.sqrt(noise) * draws.noise - (lasting**2 + noise) / 2))
        return factor * slowdowns.sample(self.samples, factor.shape[1]) if slowdowns else factor

    def _sample_paced_factors(self, index: int, paces: PaceDraws) -> FloatArray:
        """Sample the factors of trials from the pace and the spread of their groups, and their own known pace."""
        groups = list_trial_groups(self.stages[index])
        factor = np.exp(paces.shift[:, groups] + paces.spread[:, groups] * self.draws[index].noise)
        if self.slowdowns is None or not self._has_known_trials(index):
            return np.asarray(factor)
        return np.asarray(factor * self.slowdowns.sample(self.samples, factor.shape[1]))

    def _has_known_trials(self, index: int) -> bool:
        """Return whether the trials of a stage are among those with known slowdowns: no new bracket began by then."""
        max_trials = len(self.slowdowns.factors) if self.slowdowns else 0
        stages = self.stages[: index + 1]
        return all(
            len(stage.groups) == 1 and stage.groups[0].done > 0 and stage.trials <= max_trials for stage in stages
        )

    def _sample_preemption_delay(self, index: int, workers: int, seconds: FloatArray) -> FloatArray:
        """Sample the delay by preemptions; a trial of several instances is preempted with any of them."""
        hosts = max(1, -(-workers // self.machine.accelerators))
        draws = self.draws[index]
        intervals = np.maximum(draws.iterations / self.machine.checkpoint_iters, 1.0)
        rate_per_s = self.machine.interruptions_per_hour * hosts / 3600.0
        return sample_delay(draws.preemption, seconds, intervals, rate_per_s, self.profile)


def build_execution_model(
    stages: Sequence[Stage],
    profile: Profile,
    machine: Machine,
    samples: int,
    seed: int,
    paces: StagePaces | None = None,
) -> ExecutionModel:
    """Draw all random quantities of ``samples`` runs of a job; equal seeds give equal draws."""
    sigma = compute_log_sigma(profile.error_cv)
    normal = np.random.default_rng([seed, 1 << 20]).standard_normal(samples)
    profile_error = np.exp(sigma * normal - sigma**2 / 2)
    lasting = _draw_lasting_speeds(stages, samples, seed)
    draws = tuple(
        _draw_stage(stage, lasting, samples, np.random.default_rng([seed, index])) for index, stage in enumerate(stages)
    )
    drawn = None if paces is None else draw_paces(stages, paces, samples, seed)
    return ExecutionModel(tuple(stages), profile, machine, draws, profile_error, paces=drawn)


def _build_speed_key(machine: Machine) -> tuple[float, ...]:
    """Return what determines how long trials take on a machine."""
    return machine.accelerators, machine.speed, machine.interruptions_per_hour, machine.checkpoint_iters


def _draw_lasting_speeds(stages: Sequence[Stage], samples: int, seed: int) -> dict[int, FloatArray]:
    """Draw the lasting speeds of each bracket's trials: [samples, trials]; the first of them survive."""
    max_trials: dict[int, int] = {}
    for stage in stages:
        by_bracket = Counter[int]()
        for group in stage.groups:
            by_bracket[group.bracket] += group.trials
        max_trials |= {bracket: max(count, max_trials.get(bracket, 0)) for bracket, count in by_bracket.items()}
    rngs = {bracket: np.random.default_rng([seed, 1 << 21, bracket]) for bracket in max_trials}
    return {bracket: rngs[bracket].standard_normal((samples, count)) for bracket, count in max_trials.items()}


def _select_lasting_speeds(stage: Stage, lasting: dict[int, FloatArray]) -> FloatArray:
    """Select the lasting speeds of a stage's trials, longest first; groups of one bracket follow each other."""
    used = Counter[int]()
    columns = []
    for group in sorted(stage.groups, key=lambda group: -group.iters):
        begin = used[group.bracket]
        used[group.bracket] += group.trials
        columns.append(lasting[group.bracket][:, begin : begin + group.trials])
    return columns[0] if len(columns) == 1 else np.hstack(columns)


def _draw_stage(stage: Stage, lasting: dict[int, FloatArray], samples: int, rng: np.random.Generator) -> Draws:
    per_trial = (samples, stage.trials)
    return Draws(
        iterations=np.asarray(stage.list_iterations(), dtype=float),
        lasting=_select_lasting_speeds(stage, lasting),
        noise=rng.standard_normal(per_trial),
        start=rng.standard_normal(per_trial),
        worker=rng.standard_normal(per_trial),
        preemption=rng.random(per_trial),
        provision=rng.standard_normal((samples,)),
        startup=rng.standard_normal((samples,)),
        sync=rng.standard_normal((samples,)),
    )


def to_lognormal(quantity: LogNormal, normal: FloatArray) -> FloatArray:
    """Transform standard normals into draws of a quantity."""
    if quantity.mean <= 0:
        return np.zeros_like(normal)
    return np.exp(quantity.mu + quantity.sigma * normal)


def to_slowest(normal: FloatArray, count: int) -> FloatArray:
    """Transform one standard normal each into the largest of ``count`` standard normals."""
    if count == 1:
        return normal
    return np.asarray(ndtri(np.exp(log_ndtr(normal) / count)))


def _to_normal(profile_error: FloatArray, sigma: float) -> FloatArray:
    return (np.log(profile_error) + sigma**2 / 2) / sigma if sigma > 0 else np.zeros_like(profile_error)


def compute_mean_startup_s(profile: Profile, new_instances: int) -> float:
    """Compute the expected start-up time of the slowest of some new instances, in seconds."""
    if not profile.startup.mean:
        return 0.0
    return float(to_lognormal(profile.startup, to_slowest(ndtri(QUADRATURE_NODES), new_instances)).mean())


def compute_slowest_factor(cv: float, workers: int) -> float:
    """Compute the expected time of the slowest of ``workers`` over that of one, for speeds that vary by ``cv``."""
    if not cv or workers <= 1:
        return 1.0
    sigma = compute_log_sigma(cv)
    return float(np.exp(sigma * to_slowest(ndtri(QUADRATURE_NODES), workers) - sigma**2 / 2).mean())


def scale_iteration(profile: Profile, factor: float) -> Profile:
    """Return the profile with iterations longer by a factor, their relative spread unchanged."""
    iteration = profile.iteration
    return replace(profile, iteration=LogNormal(iteration.mean * factor, iteration.std * factor))
