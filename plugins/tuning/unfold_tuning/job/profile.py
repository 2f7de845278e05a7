"""The profile of a training job, and the instance types that it may run on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from unfold_tuning.job.availability import AvailabilityLog
from unfoldkit.catalog.billing import Billing

Speedups = tuple[tuple[int, float], ...]
"""``(accelerators per trial, speed-up over one accelerator)``, ascending."""


@dataclass(frozen=True, slots=True)
class LogNormal:
    """A positive random quantity by mean and standard deviation, modelled as a log-normal."""

    mean: float
    std: float = 0.0

    @property
    def sigma(self) -> float:
        """The standard deviation of the logarithm: ``sqrt(ln(1 + (std/mean)^2))``."""
        return compute_log_sigma(self.std / self.mean) if self.mean > 0 else 0.0

    @property
    def mu(self) -> float:
        """The mean of the logarithm."""
        return math.log(self.mean) - self.sigma**2 / 2 if self.mean > 0 else -math.inf


@dataclass(frozen=True, slots=True)
class Profile:
    """Timings of a training job, all in seconds.

    Attributes:
        iteration: One iteration on one accelerator.
        speedup: Speed-ups of a trial within one instance.
        across: Speed-ups of a trial that spans several instances; those within one never stand for them.
        provision: From the request to a running instance; not billed.
        startup: From a running to a ready instance; billed.
        start: Start of a trial's workers with its checkpoint.
        sync: The barrier between two stages.
        trial_cv: Coefficient of variation of speed between trials; it lasts for the whole trial.
        worker_cv: Coefficient of variation of speed between the workers of one trial.
        error_cv: Coefficient of variation of the profile itself: one factor for the whole run.
    """

    iteration: LogNormal
    speedup: Speedups = ((1, 1.0),)
    across: Speedups = ()
    provision: LogNormal = LogNormal(0.0)
    startup: LogNormal = LogNormal(0.0)
    start: LogNormal = LogNormal(0.0)
    sync: LogNormal = LogNormal(0.0)
    trial_cv: float = 0.0
    worker_cv: float = 0.0
    error_cv: float = 0.0

    def get_speedup(self, workers: int, accelerators: int) -> float:
        """Return the speed-up of ``workers`` accelerators on instances that have ``accelerators`` each."""
        return self._select_speedups(workers, accelerators)[workers]

    def has_speedup(self, workers: int, accelerators: int) -> bool:
        """Return whether the speed-up of ``workers`` accelerators was measured on such instances."""
        return workers in self._select_speedups(workers, accelerators)

    def _select_speedups(self, workers: int, accelerators: int) -> dict[int, float]:
        return dict(self.across if workers > accelerators else self.speedup)

    def list_worker_counts(self, accelerators: int) -> tuple[int, ...]:
        """List the measured numbers of workers per trial on instances that have ``accelerators`` each, ascending."""
        measured = sorted({workers for workers, _ in (*self.speedup, *self.across)})
        return tuple(workers for workers in measured if self.has_speedup(workers, accelerators))

    def list_unmeasured_spans(self, accelerators: int) -> tuple[int, ...]:
        """List the sizes of ``speedup`` that would span instances and have no speed-up for that, ascending."""
        return tuple(
            workers
            for workers, _ in self.speedup
            if workers > accelerators and not self.has_speedup(workers, accelerators)
        )


@dataclass(frozen=True, slots=True)
class SpotTerms:
    """The spot market of a machine: its price, its hazard, and a log of its availability if there is one."""

    usd_per_hour: float
    interruptions_per_hour: float
    log: AvailabilityLog | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """An instance type on one market, as the planner sees it.

    Attributes:
        name: The provider's name of the type.
        accelerators: Accelerators of one instance.
        usd_per_hour: Price of one instance.
        speed: Speed of an accelerator relative to the profile's.
        max_instances: How many may run at once.
        billing: Minimum charge, increment and unit of the bill.
        ingress_usd: Cost of copying the data to a new instance.
        head_usd_per_hour: Price of the head node.
        interruptions_per_hour: Spot interruptions per instance; 0 on demand.
        checkpoint_iters: Iterations between two checkpoints.
        price_source: Where the price comes from.
        market: ``on-demand``, ``spot``, or ``thrifty``: spot while there is slack, on demand when it runs out.
        spot: The spot side of a thrifty machine; the price of the machine is that on demand.
    """

    name: str
    accelerators: int
    usd_per_hour: float
    speed: float = 1.0
    max_instances: int = 64
    billing: Billing = field(default_factory=Billing)
    ingress_usd: float = 0.0
    head_usd_per_hour: float = 0.0
    interruptions_per_hour: float = 0.0
    checkpoint_iters: int = 1
    price_source: str = ""
    market: str = "on-demand"
    spot: SpotTerms | None = None

    @property
    def has_coarse_billing(self) -> bool:
        """Whether bills round up to more than a second, which an additive label search cannot represent."""
        return self.billing.per == "instance" and self.billing.increment > 1.0

    @property
    def usd_per_second(self) -> float:
        """Price of one instance per second."""
        return self.usd_per_hour / 3600.0

    @property
    def head_usd_per_second(self) -> float:
        """Price of the head node per second."""
        return self.head_usd_per_hour / 3600.0


def compute_log_sigma(cv: float) -> float:
    """Compute the log-standard deviation of a log-normal with coefficient of variation ``cv``."""
    return math.sqrt(math.log1p(cv * cv))
