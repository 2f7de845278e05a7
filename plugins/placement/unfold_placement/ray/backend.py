"""The Ray backend: a handle on the coordinator of a policy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from unfold_placement.core.policy import Policy
from unfold_placement.core.types import ANYWHERE, EphemeralResource, Node, Task
from unfold_placement.live.backend import Change, Snapshot, Start
from unfold_placement.ray.client import get_client
from unfold_placement.ray.connection import SPACE, call_coordinator, start_coordinator
from unfold_placement.ray.placement_groups import BUDGET
from unfoldkit.api import require_packages, user_error


@dataclass(slots=True)
class RayBackend:
    """One controller's or client's handle.

    Attributes:
        coordinator: The actor.
        holder: Name of this process once it stood for leadership.
        term: Its last term, 0 if it never led.
        clock_offset_s: The coordinator's time less that of ``clock``, NaN while unknown.
        clock: Returns seconds of this process.
    """

    coordinator: Any
    holder: str = ""
    term: int = 0
    clock_offset_s: float = math.nan
    clock: Callable[[], float] = time.monotonic

    def now(self) -> float:
        """Return the coordinator's time (s), by the local clock and an offset measured again with every election."""
        if math.isnan(self.clock_offset_s):
            began = self.clock()
            remote = float(self._call("now"))
            self.clock_offset_s = remote - (began + self.clock()) / 2
        return self.clock() + self.clock_offset_s

    def describe_wait(self) -> str:
        """Return nothing: every call has a limit and names what it awaited."""
        return ""

    def describe_refusal(self) -> str:
        """Return nothing: the coordinator raises what it refuses."""
        return ""

    def constraints(self, tasks: Sequence[Task]) -> Sequence[Policy]:
        """Return nothing: the cluster has no rules besides the policies."""
        del tasks
        return ()

    def snapshot(self) -> Snapshot:
        """Return the cluster."""
        snapshot: Snapshot = self._call("snapshot")
        return snapshot

    def has_node(self, name: str) -> bool:
        """Return whether a node is in the cluster."""
        return bool(self._call("has_node", name))

    def watch(self, after: int, timeout: float) -> Sequence[Change] | None:
        """Wait for changes."""
        changes: Sequence[Change] | None = self._call("watch", after, timeout)
        return changes

    def lead(self, holder: str, ttl: float) -> bool:
        """Become or stay leader."""
        self.clock_offset_s = math.nan
        term = int(self._call("lead", holder, ttl))
        self.holder, self.term = holder, term or self.term
        return term > 0

    def resign(self) -> None:
        """Give up leadership."""
        self._call("resign", self.term)

    def create(
        self, name: str, node: str = ANYWHERE, amount: int = 1, *, owner: str = "", ttl: float = math.inf,
        until: str = "",
    ) -> EphemeralResource:  # fmt: skip
        """Create a resource: a placement group that is pinned to the node."""
        resource: EphemeralResource = self._call("create", self.term, name, node, amount, owner, ttl, until)
        return resource

    def resize(
        self, name: str, node: str = ANYWHERE, amount: int = 1, *, epoch: int | None = None
    ) -> EphemeralResource:
        """Set the amount of a resource."""
        resource: EphemeralResource = self._call("resize", self.term, name, node, amount, epoch)
        return resource

    def delete(
        self, name: str, node: str = ANYWHERE, *, force: bool = False, epoch: int | None = None
    ) -> tuple[str, ...]:
        """Delete a resource."""
        holders: tuple[str, ...] = self._call("delete", self.term, self.holder, name, node, force, epoch)
        return holders

    def renew(self, owner: str, ttl: float) -> int:
        """Extend the leases of an owner's resources."""
        return int(self._call("renew", owner, ttl))

    def submit(self, task: Task) -> None:
        """Enqueue a task that sleeps for its run time, run by this process."""
        get_client(self.coordinator).sleep(task)

    def start(self, unit: Sequence[Start]) -> None:
        """Start a unit, each task inside a reservation on its node."""
        self._call("start", self.term, self.holder, unit)

    def preempt(self, task: str) -> None:
        """Stop a running task by removing its reservation, and gate it again."""
        self._call("preempt", self.term, self.holder, task)

    def refuse(self, task: str, reason: str) -> None:
        """Reject a waiting task for good."""
        self._call("refuse", self.term, self.holder, task, reason)

    def withdraw(self, task: str) -> None:
        """Withdraw a task."""
        self._call("withdraw", task)

    def _call(self, method: str, *args: Any) -> Any:
        return call_coordinator(self.coordinator, method, *args)


def connect_ray(address: str, name: str, described: Sequence[Node] = ()) -> RayBackend:
    """Connect to a Ray cluster and return a handle on a policy's coordinator, which is started if there is none.

    Args:
        address: Address of the cluster, or ``auto``.
        name: Name of the policy's spec.
        described: Descriptions of nodes that Ray does not know.

    Raises:
        UnfoldError: Ray is not installed, no cluster answers, or no node has the budget of ephemeral resources.
    """
    require_packages("a Ray cluster", "ray")
    import ray

    try:
        ray.init(address=address, namespace=SPACE, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        hint = "ray start --head --resources='{\"eph\": 100000}'"
        raise user_error(f"no Ray cluster answers at {address}", key="cluster.ray", hint=hint) from error
    if not ray.cluster_resources().get(BUDGET):
        hint = f"start every node with --resources='{{\"{BUDGET}\": 100000}}'"
        raise user_error(f"no node of the cluster has the resource {BUDGET!r}", key="cluster.ray", hint=hint)
    return RayBackend(start_coordinator(name, described))
