"""Policies of a replay (adaptive ones over all subnets, fixed subnets, the fastest subnet) and their comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from unfold_supernet.scheduling.policies import (
    BatchChoice,
    Policy,
    SubnetProfile,
    make_cheapest,
    make_fitted,
    make_fixed,
    make_lookahead,
    make_shedding,
    make_slackfit,
    make_steady,
)
from unfold_supernet.scheduling.simulator import ReplayOutcome
from unfold_supernet.scheduling.speed import PolicyFactory

ADAPTIVE: dict[str, Callable[[Sequence[SubnetProfile], float], Policy]] = {
    "steady": make_steady,
    "fitted": lambda profiles, _slo: make_fitted(profiles),
    "slackfit": lambda profiles, _slo: make_slackfit(profiles),
}
"""By name: from subnets and the deadline in seconds to a policy."""
FIXED_PREFIXES = ("only ", "shedding ")
NEARLY_EQUAL = 0.001
"""Difference in attainment below which two policies are equal."""


@dataclass(frozen=True, slots=True)
class NamedPolicy:
    """A policy over some of the subnets.

    Attributes:
        name: For reports; fixed policies start with one of ``FIXED_PREFIXES``.
        indices: Its subnets, as indices into all of them.
        make_policy: Builds it from their profiles.
    """

    name: str
    indices: tuple[int, ...]
    make_policy: PolicyFactory

    def select_profiles(self, profiles: Sequence[SubnetProfile]) -> list[SubnetProfile]:
        """Select its subnets from all of them."""
        return [profiles[index] for index in self.indices]

    def build(self, profiles: Sequence[SubnetProfile]) -> Policy:
        """Build the policy; its decisions are indices into all subnets."""
        inner = self.make_policy(self.select_profiles(profiles))

        def choose(slack: float, queue_length: int) -> BatchChoice | None:
            choice = inner(slack, queue_length)
            return choice and BatchChoice(self.indices[choice.subnet], choice.batch)

        return choose


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """Outcome of a trace under a policy; ``accuracy`` is the mean of the requests served in time, in percent.

    ``loads`` counts the members that were loaded, where they do not all fit the memory.
    """

    name: str
    outcome: ReplayOutcome
    accuracy: float
    loads: int | None = None


@dataclass(frozen=True, slots=True)
class FixedComparison:
    """A policy against the best fixed subnet.

    Attributes:
        gain_points: Points of accuracy over the best fixed subnet with equal attainment; ``None`` if there is none.
        attainment_ratio: Ratio of attainment to the best fixed subnet that is as accurate; ``None`` if there is none.
    """

    gain_points: float | None
    attainment_ratio: float | None


def list_policies(
    profiles: Sequence[SubnetProfile], policy: str, slo: float, *, has_targets: bool = False
) -> list[NamedPolicy]:
    """List the policies to replay: the spec's own, the other adaptive ones, then the baselines.

    Args:
        profiles: Subnets and escalation pairs.
        policy: Name of the spec's policy.
        slo: Deadline in seconds from arrival.
        has_targets: Whether requests have deadlines of their own.
    """
    indices, factory = tuple(range(len(profiles))), make_adaptive if has_targets else _make_plain
    names = [policy, *(name for name in ADAPTIVE if name != policy)]
    adaptive = [NamedPolicy(name, indices, partial(factory, name, slo)) for name in names]
    single = [index for index in indices if profiles[index].fallback is None]
    only = [NamedPolicy(f"only {profiles[i].name}", (i,), partial(make_fixed, index=0)) for i in single]
    shedding = [
        NamedPolicy(f"shedding {profiles[i].name}", (i,), partial(make_shedding, index=0, slo=slo)) for i in single
    ]
    return [*adaptive, *only, *shedding, NamedPolicy("cheapest", indices, make_cheapest)]


def make_adaptive(name: str, slo: float, profiles: Sequence[SubnetProfile]) -> Policy:
    """Build an adaptive policy for requests with deadlines of their own: ``fitted`` looks beyond one batch."""
    policy = ADAPTIVE[name](profiles, slo)
    if name != "fitted":
        return policy
    return make_lookahead(policy, max(profile.max_batch for profile in profiles))


def _make_plain(name: str, slo: float, profiles: Sequence[SubnetProfile]) -> Policy:
    return ADAPTIVE[name](profiles, slo)


def compare_with_fixed(result: PolicyResult, fixed: Sequence[PolicyResult]) -> FixedComparison:
    """Compare a policy with fixed subnets; a request that misses its minimum accuracy does not count as in time."""
    level = result.outcome.satisfied_fraction
    equal_attainment = [other.accuracy for other in fixed if other.outcome.satisfied_fraction >= level - NEARLY_EQUAL]
    equal_accuracy = [other.outcome.satisfied_fraction for other in fixed if other.accuracy >= result.accuracy]
    gain = result.accuracy - max(equal_attainment) if equal_attainment else None
    has_ratio = equal_accuracy and max(equal_accuracy) > 0
    return FixedComparison(gain, level / max(equal_accuracy) if has_ratio else None)
