"""What a change of quotas changes: when each workload starts with it and without it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from unfold_placement.kueue.objects import ClusterQueue, Cohort, FlavorResource, QueueSnapshot, Quota
from unfold_placement.kueue.replay import Admission, replay_queues
from unfoldkit.api import did_you_mean, user_error

MIN_CHANGE_S = 1.0
"""Starts that differ by less are the same."""


@dataclass(frozen=True, slots=True)
class StartChange:
    """A workload with the change of quotas, and without it."""

    before: Admission
    after: Admission

    @property
    def shift_s(self) -> float:
        """By how much it starts later; negative for earlier, infinite where one of both never starts, 0 for neither."""
        if self.before.start_s == self.after.start_s:
            return 0.0
        return self.after.start_s - self.before.start_s

    @property
    def is_earlier(self) -> bool:
        """Whether it starts earlier."""
        return self.shift_s <= -MIN_CHANGE_S

    @property
    def is_later(self) -> bool:
        """Whether it starts later."""
        return self.shift_s >= MIN_CHANGE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueProblem:
    """A quota system to replay, and one with other quotas to compare it with.

    Attributes:
        name: Name of the spec.
        before: The quota system of the file.
        after: The quota system with the change; equal to ``before`` without one.
        explained: Workload that the report explains; empty for none.
        notes: What the replay assumes.
    """

    name: str
    before: QueueSnapshot
    after: QueueSnapshot
    explained: str = ""
    notes: tuple[str, ...] = ()

    @property
    def has_change(self) -> bool:
        """Whether anything differs."""
        return self.before != self.after


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueChange:
    """What changes for the workloads of a ClusterQueue; waits and shifts in seconds, of workloads that start."""

    queue: str
    workloads: int
    earlier: int
    later: int
    never: int
    shift_s: float
    wait_before_s: float
    wait_after_s: float


def compare_starts(problem: QueueProblem, on_step: Callable[[int], None] = lambda _count: None) -> list[StartChange]:
    """Replay the workloads with and without the change, and pair them by name, in the order of the file."""
    after = replay_queues(problem.after, on_step)
    before = replay_queues(problem.before, on_step) if problem.has_change else after
    by_name = {admission.workload.name: admission for admission in before}
    return [StartChange(by_name.get(item.workload.name, Admission(workload=item.workload)), item) for item in after]


def summarize_queues(changes: Sequence[StartChange]) -> list[QueueChange]:
    """Summarize the changes of each ClusterQueue, by name."""
    by_queue: dict[str, list[StartChange]] = {}
    for change in changes:
        by_queue.setdefault(change.after.workload.queue, []).append(change)
    return [_summarize(queue, by_queue[queue]) for queue in sorted(by_queue)]


def _summarize(queue: str, changes: Sequence[StartChange]) -> QueueChange:
    both = [change for change in changes if math.isfinite(change.before.end_s) and math.isfinite(change.after.end_s)]
    return QueueChange(
        queue=queue,
        workloads=len(changes),
        earlier=sum(change.is_earlier for change in changes),
        later=sum(change.is_later for change in changes),
        never=sum(math.isinf(change.after.end_s) for change in changes),
        shift_s=fmean(change.shift_s for change in both) if both else 0.0,
        wait_before_s=fmean(change.before.wait_s for change in both) if both else 0.0,
        wait_after_s=fmean(change.after.wait_s for change in both) if both else 0.0,
    )


def change_quotas(snapshot: QueueSnapshot, amounts: Mapping[str, int], resource: str) -> QueueSnapshot:
    """Set nominal quotas of ClusterQueues and cohorts.

    Args:
        snapshot: The quota system.
        amounts: Nominal quota by name, or by name and flavor as ``team-a/spot``, in Kueue's integer units.
        resource: The resource.

    Raises:
        UnfoldError: There is no such ClusterQueue or cohort, it has no or several quotas of the resource, or a
            ClusterQueue lends more than its new quota.
    """
    queues, cohorts = dict(snapshot.queues), dict(snapshot.cohorts)
    for label, amount in amounts.items():
        name, _, flavor = label.partition("/")
        holder: ClusterQueue | Cohort | None = queues.get(name) or cohorts.get(name)
        if holder is None:
            names = [*queues, *cohorts]
            hint = did_you_mean(name, names) or f"write one of {', '.join(sorted(names))}"
            raise user_error(f"no ClusterQueue or cohort {name}", key=f"policy.quota.{label}", hint=hint)
        key = _find_key(holder, label, flavor, resource)
        quota = replace(holder.quotas[key], nominal=amount)
        # a cohort also lends what its children have
        if isinstance(holder, ClusterQueue) and quota.lending_limit is not None and quota.lending_limit > amount:
            hint = "a manifest changes both: workload.replay.apply: new.yaml"
            raise user_error("Kueue refuses a quota below the lendingLimit", key=f"policy.quota.{label}", hint=hint)
        quotas = {**holder.quotas, key: quota}
        if isinstance(holder, ClusterQueue):
            queues[name] = replace(holder, quotas=quotas)
        else:
            cohorts[name] = replace(holder, quotas=quotas)
    return replace(snapshot, queues=queues, cohorts=cohorts)


def _find_key(holder: ClusterQueue | Cohort, label: str, flavor: str, resource: str) -> FlavorResource:
    keys = [key for key in holder.quotas if key[1] == resource and flavor in {"", key[0]}]
    if len(keys) == 1:
        return keys[0]
    where = f"policy.quota.{label}"
    if keys:
        options = " or ".join(f"{holder.name}/{key[0]}" for key in keys)
        raise user_error(f"{holder.name} has {len(keys)} flavors of {resource}", key=where, hint=f"write {options}")
    resources = ", ".join(sorted({key[1] for key in holder.quotas}))
    in_flavor = f" in flavor {flavor}" if flavor else ""
    hint = f"it has quota of {resources}; policy.quota.resource selects one"
    if not resources:
        hint = "it has no quota at all; a manifest adds one: workload.replay.apply: new.yaml"
    raise user_error(f"{holder.name} has no quota of {resource}{in_flavor}", key=where, hint=hint)


def list_quota_changes(before: QueueSnapshot, after: QueueSnapshot) -> list[tuple[str, FlavorResource, Quota, Quota]]:
    """Return the quotas that differ: name, flavor and resource, quota before and after."""
    earlier = {(type(holder), holder.name): holder.quotas for holder in _list_holders(before)}
    changes = []
    for holder in _list_holders(after):
        quotas = earlier.get((type(holder), holder.name), {})
        for key, quota in holder.quotas.items():
            if quotas.get(key) != quota:
                changes.append((holder.name, key, quotas.get(key, Quota(0)), quota))
    return changes


def sum_nominal(snapshot: QueueSnapshot) -> dict[str, int]:
    """Return the nominal quotas of all ClusterQueues and cohorts by resource, all flavors together."""
    total: dict[str, int] = {}
    for holder in _list_holders(snapshot):
        for (_, resource), quota in holder.quotas.items():
            total[resource] = total.get(resource, 0) + quota.nominal
    return total


def _list_holders(snapshot: QueueSnapshot) -> list[ClusterQueue | Cohort]:
    holders: list[ClusterQueue | Cohort] = list(snapshot.queues.values())
    return [*holders, *snapshot.cohorts.values()]
