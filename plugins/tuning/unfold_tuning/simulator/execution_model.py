"""The execution model, sampled: every random quantity is drawn once and shared by all plans that are compared.

One run is SCALE (wait for new instances), INIT (they start up, the stage waits for the slowest), TRAIN (one per trial,
list scheduling where there are fewer places than trials) and SYNC (barrier) per stage; its time is the longest path
through that graph, which for barriers is a sum over stages. Common random numbers make two plans differ by what they
do, not by luck.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr, ndtri

from unfold_tuning.job.allocation import Deal
from unfold_tuning.job.profile import Machine, Profile, Spread, log_sigma
from unfold_tuning.job.schedule import Stage
from unfold_tuning.simulator.kernels import schedule
from unfold_tuning.simulator.preemption import delay

Floats = npt.NDArray[np.float64]
RECENT = 4


@dataclass(frozen=True, slots=True)
class Draws:
    """Uniform and normal draws of one stage: those of trials are [samples, trials], the others [samples].

    ``own`` is a trial's lasting speed, the same in each stage of its bracket; ``trial`` the luck of its iterations.
    """

    lengths: Floats
    own: Floats
    trial: Floats
    start: Floats
    worker: Floats
    hit: Floats
    provision: Floats
    startup: Floats
    sync: Floats


@dataclass(frozen=True, slots=True)
class Paces:
    """How slow the trials are that go on, relative to the profile, best trial first; ``doubt`` as log-deviation.

    Configurations differ lastingly (batch size, width); once a trial has run its own pace is known.
    """

    factors: tuple[float, ...]
    doubt: float = 0.0

    def drawn(self, samples: int, trials: int) -> Floats:
        """Return the factors of ``trials`` of them, [samples, trials]; who survives is drawn, each time the same."""
        known = np.asarray(self.factors)
        if trials == len(known):
            return np.broadcast_to(known, (samples, trials))
        order = np.random.default_rng(len(known)).random((samples, len(known))).argsort(axis=1)
        return np.asarray(known[order[:, :trials]])


@dataclass(frozen=True, slots=True)
class Model:
    """A job on a machine, with its draws. ``common`` [samples] is the factor by which the profile may be wrong.

    ``held`` instances run already when the first stage begins, as where the rest of a job is planned again; ``paces``
    are then those of the trials that go on.
    ``memory`` keeps stage durations by deal, and of 0 places what is busy in them, since planners ask for the same ones
    again and again; ``recent`` the last few trial times, which are large, by stage and gang; ``ready`` start-up times,
    which are those of any machine; ``ladders`` what :mod:`unfold_tuning.simulator.allocation_table` has found.
    """

    stages: tuple[Stage, ...]
    profile: Profile
    machine: Machine
    draws: tuple[Draws, ...]
    common: Floats
    held: int = 0
    paces: Paces | None = None
    memory: dict[tuple[int, int, int], Floats] = field(default_factory=dict, compare=False, repr=False)
    recent: dict[tuple[int, int], Floats] = field(default_factory=dict, compare=False, repr=False)
    ready: dict[tuple[int, int], Floats] = field(default_factory=dict, compare=False, repr=False)
    ladders: dict[tuple[int, tuple[int, ...]], tuple[tuple[Deal, ...], ...]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def samples(self) -> int:
        """The number of simulated runs."""
        return len(self.common)

    def on(self, machine: Machine) -> Model:
        """Return the same runs on another machine."""
        alike = _shape(machine) == _shape(self.machine)
        return replace(self, machine=machine) if alike else self._changed(machine=machine, ready=self.ready)

    def among(self, machines: Sequence[Machine]) -> list[Model]:
        """Return the same runs on each machine; those on which trials take as long share what is remembered."""
        made: list[Model] = []
        for machine in machines:
            alike = [item for item in made if _shape(item.machine) == _shape(machine)]
            made.append((alike or [self])[0].on(machine))
        return made

    def rest(self, index: int, held: int) -> Model:
        """Return the job from stage ``index`` on, with instances that it holds already."""
        return self._changed(stages=self.stages[index:], draws=self.draws[index:], held=held)

    def paced(self, paces: Paces | None) -> Model:
        """Return the same runs with trials whose pace is known."""
        return self._changed(paces=paces)

    def one(self, sample: int) -> Model:
        """Return the one run with this number."""
        return self._some(slice(sample, sample + 1))

    def first(self, count: int) -> Model:
        """Return the first ``count`` runs."""
        return self._some(slice(0, count))

    def _some(self, rows: slice) -> Model:
        names = ("own", "trial", "start", "worker", "hit", "provision", "startup", "sync")
        draws = tuple(replace(drawn, **{name: getattr(drawn, name)[rows] for name in names}) for drawn in self.draws)
        return self._changed(draws=draws, common=self.common[rows])

    def _changed(self, **changes: Any) -> Model:
        """Return the model with other facts, and nothing remembered of the old ones."""
        return replace(self, **({"memory": {}, "recent": {}, "ready": {}, "ladders": {}} | changes))

    @property
    def varies(self) -> bool:
        """Whether chance makes the trials of a stage differ."""
        profile = self.profile
        spread = (profile.iteration.std, profile.start.std, profile.trial_cv, profile.worker_cv, self.machine.hazard)
        return any(spread) or self.paces is not None

    def with_profile(self, profile: Profile) -> Model:
        """Return the same luck under another profile; the common factor is drawn again from the same normals."""
        sigma = log_sigma(profile.error_cv)
        normal = _normal_of(self.common, log_sigma(self.profile.error_cv))
        return self._changed(profile=profile, common=np.exp(sigma * normal - sigma**2 / 2))

    def seconds(self, index: int, deal: Deal) -> Floats:
        """Return the duration of stage ``index`` under a deal, barrier included: [samples] seconds."""
        places = min(deal.slots, self.stages[index].trials)
        key = (index, deal.gang, places)
        if key not in self.memory:
            trials = self.trials(index, deal.gang)
            ends = trials.max(axis=1) if places == trials.shape[1] else schedule(trials, places)
            self.memory[key] = ends + self.sync(index)
        return self.memory[key]

    def trials(self, index: int, gang: int) -> Floats:
        """Return the seconds of each trial of a stage on ``gang`` accelerators: [samples, trials], longest first."""
        if (index, gang) not in self.recent:
            found = self._trials(index, gang)
            if len(self.recent) >= RECENT:
                self.recent.pop(next(iter(self.recent)))
            self.recent[index, gang] = found
        return self.recent[index, gang]

    def busy(self, index: int, deal: Deal) -> Floats:
        """Return the accelerator-seconds in which trials run in a stage: [samples]."""
        key = (index, deal.gang, 0)
        if key not in self.memory:
            self.memory[key] = np.asarray(self.trials(index, deal.gang).sum(axis=1) * deal.gang)
        return self.memory[key]

    def sync(self, index: int) -> Floats:
        """Return the time of the barrier before a stage; the first of a job has none."""
        return lognormal(self.profile.sync, self.draws[index].sync) * (1.0 if index or self.held else 0.0)

    def provision(self, index: int) -> Floats:
        """Return the wait for new instances before a stage: [samples]."""
        return lognormal(self.profile.provision, self.draws[index].provision)

    def startup(self, index: int, new: int) -> Floats:
        """Return the start-up time of the slowest of ``new`` instances: [samples]."""
        # the maximum of k draws has the distribution function F**k, so one uniform serves every k
        if (index, new) not in self.ready:
            self.ready[index, new] = lognormal(self.profile.startup, slowest(self.draws[index].startup, new))
        return self.ready[index, new]

    def _trials(self, index: int, gang: int) -> Floats:
        drawn, profile = self.draws[index], self.profile
        speed = profile.gain(gang, self.machine.accelerators) * self.machine.speed
        seconds = drawn.lengths * (profile.iteration.mean / speed) * self._factor(index)
        if profile.worker_cv:
            sigma = log_sigma(profile.worker_cv)
            seconds = seconds * np.exp(sigma * slowest(drawn.worker, gang) - sigma**2 / 2)
        seconds = seconds * self.common[:, None]
        if profile.start.mean:
            seconds = seconds + lognormal(profile.start, drawn.start)
        return seconds + self._interrupted(index, gang, seconds) if self.machine.hazard else seconds

    def _factor(self, index: int) -> Floats:
        """A trial's own factor times that of the mean of its iterations, together a log-normal of mean 1."""
        drawn, iteration = self.draws[index], self.profile.iteration
        cv = iteration.std / iteration.mean
        known = self.paces if self.paces and self._goes_on(index, len(self.paces.factors)) else None
        own = known.doubt if known else log_sigma(self.profile.trial_cv)
        luck = np.log1p(cv * cv / np.maximum(drawn.lengths, 1))
        factor = np.asarray(np.exp(own * drawn.own + np.sqrt(luck) * drawn.trial - (own**2 + luck) / 2))
        return factor * known.drawn(self.samples, factor.shape[1]) if known else factor

    def _goes_on(self, index: int, most: int) -> bool:
        """Whether a stage's trials are among ``most`` that have run: no fresh bracket has begun by then."""
        so_far = self.stages[: index + 1]
        return all(len(stage.groups) == 1 and stage.groups[0].done > 0 and stage.trials <= most for stage in so_far)

    def _interrupted(self, index: int, gang: int, seconds: Floats) -> Floats:
        """What losing spot instances costs a trial; one of several instances is lost with any of them."""
        hosts = max(1, -(-gang // self.machine.accelerators))
        drawn = self.draws[index]
        pieces = np.maximum(drawn.lengths / self.machine.checkpoint_iters, 1.0)
        return delay(drawn.hit, seconds, pieces, self.machine.hazard * hosts / 3600.0, self.profile)


def model(stages: Sequence[Stage], profile: Profile, machine: Machine, samples: int, seed: int) -> Model:
    """Draw everything that chance decides in ``samples`` runs of a job; equal seeds give equal luck."""
    sigma = log_sigma(profile.error_cv)
    common = np.exp(sigma * np.random.default_rng([seed, 1 << 20]).standard_normal(samples) - sigma**2 / 2)
    lasting = _lasting(stages, samples, seed)
    drawn = tuple(
        _draws(stage, lasting, samples, np.random.default_rng([seed, index])) for index, stage in enumerate(stages)
    )
    return Model(tuple(stages), profile, machine, drawn, common)


def _shape(machine: Machine) -> tuple[float, ...]:
    """What of a machine decides how long trials take."""
    return machine.accelerators, machine.speed, machine.hazard, machine.checkpoint_iters


def lognormal(spread: Spread, normal: Floats) -> Floats:
    """Return draws of a quantity from standard normals."""
    if spread.mean <= 0:
        return np.zeros_like(normal)
    return np.exp(spread.mu + spread.sigma * normal)


def slowest(normal: Floats, count: int) -> Floats:
    """Return, from one standard normal each, the largest of ``count`` standard normals."""
    if count == 1:
        return normal
    return np.asarray(ndtri(np.exp(log_ndtr(normal) / count)))


def _lasting(stages: Sequence[Stage], samples: int, seed: int) -> dict[int, Floats]:
    """Draw the lasting speeds of each bracket's trials: [samples, trials], of which the first go on."""
    most: dict[int, int] = {}
    for stage in stages:
        here = Counter[int]()
        for group in stage.groups:
            here[group.bracket] += group.trials
        most |= {bracket: max(count, most.get(bracket, 0)) for bracket, count in here.items()}
    rngs = {bracket: np.random.default_rng([seed, 1 << 21, bracket]) for bracket in most}
    return {bracket: rngs[bracket].standard_normal((samples, count)) for bracket, count in most.items()}


def _own(stage: Stage, lasting: dict[int, Floats]) -> Floats:
    """Return the lasting speeds of a stage's trials, longest first; groups of one bracket follow each other."""
    taken = Counter[int]()
    parts = []
    for group in sorted(stage.groups, key=lambda group: -group.iters):
        begin = taken[group.bracket]
        taken[group.bracket] += group.trials
        parts.append(lasting[group.bracket][:, begin : begin + group.trials])
    return parts[0] if len(parts) == 1 else np.hstack(parts)


def _draws(stage: Stage, lasting: dict[int, Floats], samples: int, rng: np.random.Generator) -> Draws:
    trials = stage.trials
    one, many = (samples,), (samples, trials)
    return Draws(
        lengths=np.asarray(stage.lengths(), dtype=float),
        own=_own(stage, lasting),
        trial=rng.standard_normal(many),
        start=rng.standard_normal(many),
        worker=rng.standard_normal(many),
        hit=rng.random(many),
        provision=rng.standard_normal(one),
        startup=rng.standard_normal(one),
        sync=rng.standard_normal(one),
    )


def _normal_of(common: Floats, sigma: float) -> Floats:
    return (np.log(common) + sigma**2 / 2) / sigma if sigma > 0 else np.zeros_like(common)


def mean_startup(profile: Profile, new: int) -> float:
    """Return the expected start-up time of the slowest of ``new`` instances."""
    nodes = np.arange(0.5, 512) / 512
    return float(lognormal(profile.startup, slowest(ndtri(nodes), new)).mean()) if profile.startup.mean else 0.0


def mean_slowest(cv: float, workers: int) -> float:
    """Return the expected time of the slowest of ``workers`` over that of one, if their speeds vary by ``cv``."""
    nodes = np.arange(0.5, 512) / 512
    sigma = log_sigma(cv)
    return float(np.exp(sigma * slowest(ndtri(nodes), workers) - sigma**2 / 2).mean()) if cv and workers > 1 else 1.0


def slower(profile: Profile, factor: float) -> Profile:
    """Return the profile with iterations longer by a factor, their relative spread unchanged."""
    spread = profile.iteration
    return replace(profile, iteration=Spread(spread.mean * factor, spread.std * factor))
