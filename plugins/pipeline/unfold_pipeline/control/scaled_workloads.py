"""What a controller scales: the replica counts of existing workloads, and the lease that admits one controller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from unfold_pipeline.problem.exported_plan import assign_labels
from unfoldkit.api import UnfoldError, user_error
from unfoldkit.kubernetes.access_review import Access, list_denied
from unfoldkit.kubernetes.api import FORBIDDEN, Api, ApiError, Body
from unfoldkit.kubernetes.leader_election import API as LEASE_API
from unfoldkit.kubernetes.leader_election import LeaderElection
from unfoldkit.kubernetes.scale import (
    AbsentError,
    Scale,
    Workload,
    is_target,
    list_autoscalers,
    parse_workload,
    read_scale,
    require_workload,
    write_scale,
)

LEASE_PREFIX = "unfold-tuner"
WRITE_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class StageReplicas:
    """Replicas of a stage: those that its workload demands, and those that exist.

    Attributes:
        desired: Replicas that the workload demands; 0 where it cannot be read.
        existing: Replicas that exist.
        fault: Why the workload cannot be scaled now, such as that it was deleted; the others go on.
    """

    desired: int
    existing: int
    fault: UnfoldError | None = None


class ScalingTarget(Protocol):
    """An existing deployment. Its methods raise ``UnfoldError`` or ``ApiError`` if it does not respond or refuses."""

    @property
    def location(self) -> str:
        """Where it runs, in words."""

    @property
    def workloads(self) -> tuple[str, ...]:
        """The workload of each stage, in words."""

    @property
    def lease_s(self) -> float:
        """How long leadership lasts without a renewal."""

    @property
    def is_leader(self) -> bool:
        """Whether this process may scale now, by its own clock."""

    def renew(self) -> bool:
        """Become or stay the only controller; return whether it succeeded."""

    def release(self) -> None:
        """Let another controller take over at once."""

    def list_warnings(self) -> list[str]:
        """Return what cannot be checked about the workloads."""

    def list_denied(self) -> list[str]:
        """Return what this account may not do although scaling needs it, in words."""

    def read_replicas(self) -> tuple[StageReplicas, ...]:
        """Return the replicas of each stage, with a fault where the workload is absent or something else scales it."""

    def set_replicas(self, stage: int, count: int) -> bool:
        """Demand ``count`` replicas; return false if the workload changed since it was read."""


@dataclass(slots=True)
class KubernetesTarget:
    """Workloads of a namespace, scaled through their scale subresource, each under a Lease of its own.

    A lease per workload excludes every other controller of the workload, whatever the name of its spec.
    """

    api: Api
    items: tuple[Workload, ...]
    elections: tuple[LeaderElection, ...]
    holder: str
    lease_s: float
    scales: dict[int, Scale]

    @property
    def location(self) -> str:
        """Where the workloads run, in words."""
        return f"Kubernetes at {self.api.client.configuration.host}, namespace {self.api.namespace}"

    @property
    def workloads(self) -> tuple[str, ...]:
        """The workload of each stage, in words."""
        return tuple(map(str, self.items))

    @property
    def is_leader(self) -> bool:
        """Whether this process holds the lease of each workload, by its own clock."""
        return all(election.is_leader for election in self.elections)

    def renew(self) -> bool:
        """Take or renew all leases; where one is held by another controller, give up the others."""
        for index, election in enumerate(self.elections):
            if not election.lead(self.holder, self.lease_s):
                for earlier in self.elections[:index]:
                    earlier.resign()
                # otherwise the leases of a controller that died would end one after the other
                for later in self.elections[index + 1 :]:
                    later.observe(self.holder)
                return False
        return True

    def release(self) -> None:
        """Give up the leases that this process holds."""
        for election in self.elections:
            if election.is_leader:
                election.resign()

    def list_warnings(self) -> list[str]:
        """Return what cannot be checked about the workloads."""
        if list_autoscalers(self.api) is None:
            return ["this account may not list HorizontalPodAutoscalers: make sure that none scales the workloads"]
        return []

    def list_denied(self) -> list[str]:
        """Return what this account may not do although scaling needs it; a Lease that exists need not be created."""
        group = LEASE_API.partition("/")[0]
        scales = [Access("patch", item.group, f"{item.resource}/scale", item.name) for item in self.items]
        names = [election.name for election in self.elections]
        leases = [Access(verb, group, "leases", name) for name in names for verb in ("get", "update")]
        denied = list_denied(self.api, [*scales, *leases])
        if not any(access.verb == "get" for access in denied) and not all(item.exists() for item in self.elections):
            denied += list_denied(self.api, [Access("create", group, "leases")])
        return list(map(str, denied))

    def read_replicas(self) -> tuple[StageReplicas, ...]:
        """Return the replicas of each stage; see :class:`ScalingTarget`."""
        scalers = list_autoscalers(self.api) or {}
        return tuple(self._read_stage(stage, scalers) for stage in range(len(self.items)))

    def _read_stage(self, stage: int, scalers: Mapping[str, Body]) -> StageReplicas:
        workload = self.items[stage]
        try:
            scale = self.scales[stage] = read_scale(self.api, workload)
        except AbsentError as error:
            return StageReplicas(0, 0, error)
        except ApiError as error:
            if error.status != FORBIDDEN:
                raise
            return StageReplicas(
                0, 0, user_error(f"the cluster rejects the request: {error.message}", key=self.api.key)
            )
        names = [name for name, reference in scalers.items() if is_target(reference, workload)]
        if not names:
            return StageReplicas(scale.desired, scale.existing)
        message = f"{workload} is scaled by the HorizontalPodAutoscaler {names[0]} already"
        fault = user_error(message, key=self.api.key, hint=f"kubectl delete hpa {names[0]}; KEDA: pause it")
        return StageReplicas(scale.desired, scale.existing, fault)

    def set_replicas(self, stage: int, count: int) -> bool:
        """Demand ``count`` replicas, unless others were demanded since the replicas were read.

        A rollout changes the version of a workload several times a second, and its replicas not at all.
        """
        scale = self.scales[stage]
        for _ in range(WRITE_ATTEMPTS):
            if write_scale(self.api, self.items[stage], count, scale.version):
                return True
            scale = read_scale(self.api, self.items[stage])
            if scale.desired != self.scales[stage].desired:
                return False
        return False


def build_kubernetes_target(api: Api, workloads: Sequence[Workload], holder: str, lease_s: float) -> KubernetesTarget:
    """Return a target; all controllers take its leases in the same order, so that none waits for another in a circle.

    Args:
        api: The server.
        workloads: The workload of each stage.
        holder: Name of this process in the leases.
        lease_s: How long a lease lasts without a renewal.
    """
    names = sorted(name_lease(workload) for workload in workloads)
    return KubernetesTarget(
        api=api,
        items=tuple(workloads),
        elections=tuple(LeaderElection(api, name) for name in names),
        holder=holder,
        lease_s=lease_s,
        scales={},
    )


def find_workloads(stated: Mapping[str, str | None]) -> tuple[Workload, ...]:
    """Return the workload of each stage: the stated one, or the Deployment with its name.

    A name that Kubernetes does not accept is replaced by that which the exports give it.

    Raises:
        UnfoldError: A stated text names no workload.
    """
    labels = assign_labels(stated)
    defaults = {name: f"deployment/{name if parse_workload(name) else labels[name]}" for name in stated}
    return tuple(
        require_workload(text or defaults[name], f"control.stages.{name}.workload") for name, text in stated.items()
    )


def name_lease(workload: Workload) -> str:
    """Return the name of the Lease of a workload."""
    group = "" if workload.group == "apps" else f".{workload.group}"
    return f"{LEASE_PREFIX}.{workload.resource}{group}.{workload.name}"
