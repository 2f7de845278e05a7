"""A resolved replay: serving options, candidate subnets, and the trace with its targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unfold_supernet._types import FloatArray, Task
from unfold_supernet.accelerator.hardware import Accelerator
from unfold_supernet.accelerator.layers import Family
from unfold_supernet.family.artifacts import SupernetRecord
from unfold_supernet.replay import load
from unfold_supernet.replay.baselines import NamedPolicy, PolicyResult, list_policies
from unfold_supernet.scheduling.engines import EngineCosts, EnginePlan, Request, plan_engines
from unfold_supernet.scheduling.escalation import SubnetPredictions, build_pairs
from unfold_supernet.scheduling.policies import SubnetProfile, scale_latencies
from unfold_supernet.scheduling.requests import RequestTargets
from unfold_supernet.scheduling.residency import MemberCost
from unfoldkit.api import user_error


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """How requests are served.

    Attributes:
        slo_s: Deadline in seconds from arrival.
        policy: ``steady``, ``fitted`` or ``slackfit``.
        backend: Where latencies come from: ``cpu`` or ``accelerator``.
        load: Fraction of the fastest subnet's throughput that the trace is scaled to; ``None`` leaves it as it is.
        min_attainment: Required fraction of requests in time.
        escalate_below: Confidence below which the most accurate subnet recomputes a result; ``None`` disables it.
        guard: Minimum sensitivity by class.
        engine: Which engine runs the subnets of a space; ``auto`` decides by measurement.
        memory_bytes: Memory for all members or subnets together; ``None`` for as much as they need.
    """

    slo_s: float
    policy: str
    backend: str
    load: float | None
    min_attainment: float
    escalate_below: float | None
    guard: Mapping[str, float]
    engine: Request = "auto"
    memory_bytes: int | None = None

    def plan_engines(self, costs: Mapping[str, EngineCosts], shared_bytes: int) -> EnginePlan:
        """Plan the engines of a run's subnets within the memory of the spec.

        Args:
            costs: What was measured of each subnet.
            shared_bytes: Memory of the shared weights.

        Raises:
            UnfoldError: The memory does not hold what the spec demands.
        """
        try:
            return plan_engines(costs, shared_bytes, self.engine, self.memory_bytes)
        except ValueError as error:
            hint = "raise memory, or remove serving.engine"
            raise user_error(str(error), key="serving.memory", hint=hint) from error


@dataclass(frozen=True, slots=True)
class AcceleratorTarget:
    """The accelerator that serves a replay: the family's layers, the machine, and the words of the decision."""

    family: Family
    machine: Accelerator
    query_policy: str
    keep: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayProblem:
    """A resolved replay.

    Attributes:
        name: Name of the spec.
        options: How requests are served.
        arrivals: Arrival times in seconds.
        profiles: Candidates: subnets and escalation pairs that meet the guard.
        switch_s: Seconds of a model switch by loading, for the baseline without shared weights; ``None`` without one.
        seed: Of the scaled trace.
        targets: Targets of the requests, if they have their own.
        rate_factor: Factor by which the rate of the trace was scaled.
        accelerator: Set if requests are served by the simulated accelerator.
        costs: Memory and load time of each member, if the profiles are a list of members.
        memory_bytes: Memory for all of them together; ``None`` for as much as they need.
        delayed: Members with a measurement that other programs delayed.
        engines: The engine of each subnet, where there is a choice.
        task: What the subnets predict; their accuracy is the score of this task.
    """

    name: str
    options: ServingOptions
    arrivals: FloatArray
    profiles: tuple[SubnetProfile, ...]
    switch_s: float | None
    seed: int
    targets: RequestTargets | None = None
    rate_factor: float = 1.0
    accelerator: AcceleratorTarget | None = None
    costs: tuple[MemberCost, ...] = ()
    memory_bytes: int | None = None
    delayed: tuple[str, ...] = ()
    engines: EnginePlan | None = None
    task: Task = "classes"

    @property
    def is_memory_short(self) -> bool:
        """Whether the members do not all fit the memory."""
        return self.memory_bytes is not None and sum(cost.bytes for cost in self.costs) > self.memory_bytes

    @property
    def policies(self) -> list[NamedPolicy]:
        """Policies to replay, the spec's own first."""
        options = self.options
        return list_policies(self.profiles, options.policy, options.slo_s, has_targets=self.targets is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredReplay:
    """Outcome of a trace in real time.

    Attributes:
        problem: The replay as measured: scaled to the machine's present speed.
        results: By policy, the spec's own first.
        predicted: The spec's policy as simulated from the latencies of training.
        slowdowns: Ratio of measured to profiled latency, by batch of the spec's policy.
    """

    problem: ReplayProblem
    results: tuple[PolicyResult, ...]
    predicted: PolicyResult
    slowdowns: tuple[float, ...]


def scale_trace(problem: ReplayProblem, slowdown: float = 1.0) -> ReplayProblem:
    """Scale the trace to the load that the spec demands of its subnets.

    Args:
        problem: The replay.
        slowdown: Ratio of actual to profiled latencies.

    Raises:
        UnfoldError: The scaled trace has too many requests, or fewer than two.
    """
    options = problem.options
    profiles = scale_latencies(problem.profiles, slowdown)
    factor = load.compute_rate_factor(problem.arrivals, profiles, options.slo_s, options.load)
    scaled = load.scale_arrivals(problem.arrivals, factor, problem.seed)
    targets = problem.targets and problem.targets.select(scaled.origins)
    return replace(problem, arrivals=scaled.arrivals, rate_factor=factor, targets=targets)


def select_candidates(
    options: ServingOptions, record: SupernetRecord, tested: SubnetPredictions | None
) -> tuple[SubnetProfile, ...]:
    """Select the subnets, and with escalation their pairs, that meet the guard.

    Args:
        options: How requests are served.
        record: Measurements of the supernet.
        tested: Predictions on the test rows; required for escalation.

    Raises:
        UnfoldError: No candidate meets the guard, or it names an unknown class.
    """
    for name in options.guard:
        if name not in record.classes:
            hint = f"one of: {', '.join(record.classes)}"
            raise user_error(f"no such class: {name!r}", key="serving.guard", hint=hint)
    sensitivities: dict[SubnetProfile, Mapping[int, float | None]] = {
        subnet.profile: dict(enumerate(subnet.sensitivity)) for subnet in record.subnets
    }
    if options.escalate_below is not None and tested is not None and len(sensitivities) > 1:
        sensitivities |= build_pairs(list(sensitivities), tested, options.escalate_below)
    candidates = tuple(
        profile for profile, by_class in sensitivities.items() if _meets_guard(by_class, record.classes, options.guard)
    )
    if not candidates:
        hint = "lower the sensitivity, or train larger subnets"
        raise user_error("no subnet meets the guard", key="serving.guard", hint=hint)
    return candidates


def _meets_guard(by_class: Mapping[int, float | None], classes: Sequence[str], guard: Mapping[str, float]) -> bool:
    return all((by_class.get(classes.index(name)) or 0.0) >= minimum for name, minimum in guard.items())
