"""What a plan is made from: the profile of a training job and the machine that it runs on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from unfoldkit.catalog.billing import Billing

Speedups = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Spread:
    """A positive random quantity by mean and standard deviation, drawn as a log-normal."""

    mean: float
    std: float = 0.0

    @property
    def sigma(self) -> float:
        """The standard deviation of the logarithm: ``sqrt(ln(1 + (std/mean)^2))``."""
        return log_sigma(self.std / self.mean) if self.mean > 0 else 0.0

    @property
    def mu(self) -> float:
        """The mean of the logarithm."""
        return math.log(self.mean) - self.sigma**2 / 2 if self.mean > 0 else -math.inf


@dataclass(frozen=True, slots=True)
class Profile:
    """Timings of a training job; all in seconds.

    ``iteration`` is one iteration on one accelerator; ``speedup`` pairs (accelerators, speed-up over one), within an
    instance, ``across`` the same over several instances, where it is another. ``provision`` is the wait from request to
    running (not billed), ``startup`` from running to ready (billed), ``start`` the start of a trial's workers with its
    checkpoint, ``sync`` the barrier between two stages. ``trial_cv`` and ``worker_cv`` are the coefficients of
    variation of a trial's and of a worker's speed, ``error_cv`` that of the profile itself: one factor for the whole
    run.
    """

    iteration: Spread
    speedup: Speedups = ((1, 1.0),)
    across: Speedups = ()
    provision: Spread = Spread(0.0)
    startup: Spread = Spread(0.0)
    start: Spread = Spread(0.0)
    sync: Spread = Spread(0.0)
    trial_cv: float = 0.0
    worker_cv: float = 0.0
    error_cv: float = 0.0

    def gain(self, gang: int, accelerators: int) -> float:
        """Return the speed-up of ``gang`` accelerators on instances that have ``accelerators`` each."""
        return self._speedups(gang, accelerators)[gang]

    def knows(self, gang: int, accelerators: int) -> bool:
        """Return whether the speed-up of ``gang`` accelerators was measured."""
        return gang in self._speedups(gang, accelerators)

    def _speedups(self, gang: int, accelerators: int) -> dict[int, float]:
        return dict(self.speedup) | (dict(self.across) if gang > accelerators else {})

    @property
    def gangs(self) -> tuple[int, ...]:
        """The sizes of a trial that were measured, within an instance or over several."""
        return tuple(sorted(dict(self.speedup) | dict(self.across)))

    def fitting(self, accelerators: int) -> tuple[int, ...]:
        """Return the sizes of a trial that are known on instances that have ``accelerators`` each."""
        return tuple(gang for gang in self.gangs if self.knows(gang, accelerators))


@dataclass(frozen=True, slots=True)
class Machine:
    """An instance type as the planner sees it.

    ``price`` is dollars per hour of one instance, ``speed`` that of its accelerators relative to the profile's,
    ``ingress`` dollars per new instance for its copy of the data, ``head`` dollars per hour of the head node.
    ``hazard`` are interruptions per hour and instance (0 on demand); ``origin`` says where the price is from.
    """

    name: str
    accelerators: int
    price: float
    speed: float = 1.0
    limit: int = 64
    billing: Billing = field(default_factory=Billing)
    ingress: float = 0.0
    head: float = 0.0
    hazard: float = 0.0
    checkpoint_iters: int = 1
    origin: str = ""
    market: str = "on-demand"

    @property
    def by_steps(self) -> bool:
        """Whether lives are billed in steps of more than a second, which no label of a search can add up."""
        return self.billing.per == "instance" and self.billing.increment > 1.0

    @property
    def per_second(self) -> float:
        """Dollars per second of one instance."""
        return self.price / 3600.0


def log_sigma(cv: float) -> float:
    """Return the standard deviation of the logarithm of a log-normal with coefficient of variation ``cv``."""
    return math.sqrt(math.log1p(cv * cv))
