"""Nodes of a running Ray cluster, which its own autoscaler adds and removes: KubeRay, ``ray up``, Anyscale.

A request to Ray's autoscaler is the only one of its cluster, outlives its driver, and counts nodes on which others
work. Therefore it stands only while nodes are awaited, and it asks for room beside those others. A placement group then
reserves each node as a whole: others cannot move in between two trials, the autoscaler does not consider the node idle,
and Ray frees it when this driver ends, however that happens.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from unfold_tuning.cluster.ray_nodes import Reservation, import_ray, require_head
from unfold_tuning.trial.ledger import Ledger
from unfoldkit.api import format_count, user_error

START_TIMEOUT_S = 600.0
RETRY_TIMEOUT_S = 60.0
RETRY_PERIOD_S = 300.0
POLL_S = 0.2
RESERVE_TIMEOUT_S = 2.0
HEAD_RESOURCE = "node:__internal_head__"


@dataclass(frozen=True, slots=True)
class SharedNode:
    """An alive node of the cluster, and how much of the accelerators' resource it has and is free."""

    id: str
    total: float
    available: float
    is_head: bool = False


class RayClient(Protocol):
    """What the provider needs of Ray."""

    def list_nodes(self, resource: str) -> list[SharedNode]:
        """List the alive nodes."""

    def request(self, bundles: Sequence[dict[str, float]]) -> None:
        """Replace the request to the autoscaler; no bundles withdraw it."""

    def reserve(self, node_id: str, bundle: dict[str, float]) -> Any:
        """Reserve resources of a node by a placement group; ``None`` if other work was faster."""

    def free(self, group: Any) -> None:
        """Remove a placement group, whatever runs in it."""


@dataclass(slots=True)
class RayProvider:
    """Whole nodes of a shared cluster; see :class:`~unfold_tuning.cluster.provider.NodeProvider`.

    Attributes:
        usd_per_hour: Price of a node.
        accelerators: How many a node has; nodes with another number are never used.
        resource: Which resource of Ray an accelerator is: ``GPU`` or ``CPU``.
        ledger: The ledger of the run.
        client: The cluster.
        reservations: The nodes that are held.
        sleeps_until: Time of the clock before which a node that was not granted is not requested again.
        wall: The wall clock.
        clock: A monotonic clock.
        sleep: Waits for some seconds.
        log: Receives warnings.
    """

    usd_per_hour: float
    accelerators: int
    resource: str
    ledger: Ledger
    client: RayClient
    reservations: dict[str, Reservation] = field(default_factory=dict)
    sleeps_until: float | None = None
    wall: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("unfoldkit"))

    def can_rent(self) -> bool:
        """See :class:`~unfold_tuning.cluster.provider.NodeProvider`."""
        return self.sleeps_until is None or self.clock() >= self.sleeps_until

    def allow_on_demand(self) -> None:
        """See :class:`~unfold_tuning.cluster.provider.NodeProvider`: there is no market."""

    def rent(self, count: int, watch: Callable[[], None], *, is_required: bool = True) -> list[str]:
        """See :class:`~unfold_tuning.cluster.provider.NodeProvider`.

        Trials wait meanwhile. Therefore a node that was not granted within ten minutes is awaited for one minute later.

        Raises:
            UnfoldError: No node is held, and none was granted.
        """
        names: list[str] = []
        is_retry = self.sleeps_until is not None and not is_required
        timeout_s = RETRY_TIMEOUT_S if is_retry else START_TIMEOUT_S
        try:
            self._await_nodes(names, count, timeout_s, watch)
        except BaseException:
            for name in names:
                self.release(name)
            raise
        if len(names) < count:
            self.sleeps_until = self.clock() + RETRY_PERIOD_S
            self.log.warning("%d of %d nodes granted in %g s", len(names), count, timeout_s)
        else:
            self.sleeps_until = None
        if is_required and count and not names:
            raise self._describe_missing(timeout_s)
        return names

    def _await_nodes(self, names: list[str], count: int, timeout_s: float, watch: Callable[[], None]) -> None:
        """Reserve nodes as they become free, and append their names; the request stands only meanwhile."""
        began, requested = self.clock(), 0
        try:
            while True:
                nodes = self.client.list_nodes(self.resource)
                names += self._reserve_unused(nodes, count - len(names), watch)
                if len(names) >= count or self.clock() - began > timeout_s:
                    return
                # the autoscaler counts what all nodes could hold, not what is free
                occupied = sum(int(node.total // self.accelerators) for node in nodes)
                if occupied + count - len(names) != requested:
                    requested = occupied + count - len(names)
                    self.ledger.record_order(uuid.uuid4().hex, requested, self.wall())
                    self.client.request([self._build_bundle()] * requested)
                watch()
                self.sleep(POLL_S)
        finally:
            # even if nothing was requested now: an earlier attempt may have been killed while it waited
            if self.ledger.list_orders():
                self.client.request([])

    def _reserve_unused(self, nodes: Sequence[SharedNode], count: int, watch: Callable[[], None]) -> list[str]:
        names: list[str] = []
        for node in nodes:
            is_unused = node.total == node.available == self.accelerators and not node.is_head
            if len(names) == count or not is_unused:
                continue
            watch()
            group = self.client.reserve(node.id, self._build_bundle())
            if group is not None:
                name = f"ray-{node.id[-8:]}-{uuid.uuid4().hex[:8]}"
                self.reservations[name] = Reservation(node.id, group, self.resource)
                self.ledger.record_node_start(name, self.usd_per_hour, self.wall())
                names.append(name)
        return names

    def _build_bundle(self) -> dict[str, float]:
        return {self.resource: float(self.accelerators)}

    def _describe_missing(self, timeout_s: float) -> Exception:
        """Describe that no node was granted, and which nodes there are."""
        nodes = self.client.list_nodes(self.resource)
        totals = sorted({node.total for node in nodes if node.total and not node.is_head})
        wanted = f"{self.accelerators} {self.resource}"
        others = f"; its nodes have {', '.join(f'{total:g}' for total in totals)}" if totals else ""
        message = f"the Ray cluster had no unused node with {wanted} in {format_count(round(timeout_s / 60), 'minute')}"
        hint = f"can its autoscaler add a node with exactly {wanted}? check ray status; the same command continues"
        return user_error(f"{message}{others}", key="cloud.instances", hint=hint)

    def find_ended(self, names: Collection[str]) -> set[str]:  # noqa: ARG002 - all of them have joined
        """See :class:`~unfold_tuning.cluster.provider.NodeProvider`: no node is awaited."""
        return set()

    def release(self, name: str) -> None:
        """See :class:`~unfold_tuning.cluster.provider.NodeProvider`; the autoscaler removes the node when it likes."""
        reservation = self.reservations.pop(name, None)
        if reservation is not None:
            self.ledger.record_node_end(name, self.wall())
            self.client.free(reservation.group)

    def recover(self) -> None:
        """See :class:`~unfold_tuning.cluster.provider.NodeProvider`: Ray has freed the nodes; their bill ends."""
        self.ledger.close_open_lifetimes()

    def close(self) -> None:
        """See :class:`~unfold_tuning.cluster.provider.NodeProvider`."""
        for name in list(self.reservations):
            self.release(name)


@dataclass(frozen=True, slots=True)
class ConnectedRay:
    """The cluster to which this process is connected; see :class:`RayClient`."""

    def list_nodes(self, resource: str) -> list[SharedNode]:
        """See :class:`RayClient`."""
        require_head()
        ray = import_ray()
        from ray._private.state import available_resources_per_node

        available = available_resources_per_node()
        return [
            SharedNode(
                node["NodeID"],
                float(node["Resources"].get(resource, 0.0)),
                float(available.get(node["NodeID"], {}).get(resource, 0.0)),
                HEAD_RESOURCE in node["Resources"],
            )
            for node in ray.nodes()
            if node["Alive"]
        ]

    def request(self, bundles: Sequence[dict[str, float]]) -> None:
        """See :class:`RayClient`."""
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=list(bundles))

    def reserve(self, node_id: str, bundle: dict[str, float]) -> Any:
        """See :class:`RayClient`."""
        from ray.util.placement_group import placement_group, placement_group_table

        group = placement_group([bundle], strategy="STRICT_PACK", _soft_target_node_id=node_id)
        # the target is a preference: where others were faster, Ray takes another node or waits
        if group.wait(RESERVE_TIMEOUT_S) and placement_group_table(group)["bundles_to_node_id"][0] == node_id:
            return group
        self.free(group)
        return None

    def free(self, group: Any) -> None:
        """See :class:`RayClient`."""
        from ray.util.placement_group import remove_placement_group

        require_head()
        remove_placement_group(group)
