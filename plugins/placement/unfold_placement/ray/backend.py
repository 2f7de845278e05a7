"""The Ray backend: a handle on the steward of a spec."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from unfold_placement.core.types import ANYWHERE, EphemeralResource, Node, Task
from unfold_placement.live.backend import Change, Snapshot, Start
from unfold_placement.ray.coordinator import RESERVATION_TIMEOUT_S, Coordinator
from unfold_placement.ray.placement_groups import BUDGET
from unfoldkit.api import UnfoldError, fail

SPACE = "unfold"
THREADS = 64
"""Calls that a steward answers at once: each client and each controller waits in one or two."""


@dataclass(slots=True)
class RayBackend:
    """One controller's or client's handle. ``ahead`` is the steward's time less that of ``clock``, in s."""

    coordinator: Any
    holder: str = ""
    term: int = 0
    clock_offset_s: float = math.nan
    clock: Callable[[], float] = time.monotonic

    def now(self) -> float:
        """Return the steward's time, in seconds, by the clock here: set anew with every lease of the lead."""
        if math.isnan(self.clock_offset_s):
            began = self.clock()
            told = float(self._ask("now"))
            self.clock_offset_s = told - (began + self.clock()) / 2
        return self.clock() + self.clock_offset_s

    def snapshot(self) -> Snapshot:
        """Return everything."""
        found: Snapshot = self._ask("snapshot")
        return found

    def watch(self, after: int, timeout: float) -> Sequence[Change] | None:
        """Wait for changes."""
        found: Sequence[Change] | None = self._ask("watch", after, timeout)
        return found

    def lead(self, who: str, ttl: float) -> bool:
        """Become or stay the leader."""
        self.clock_offset_s = math.nan
        term = int(self._ask("lead", who, ttl))
        self.holder, self.term = who, term or self.term
        return term > 0

    def resign(self) -> None:
        """Lead no longer."""
        self._ask("resign", self.term)

    def create(
        self, name: str, node: str = ANYWHERE, amount: int = 1, *, owner: str = "", ttl: float = math.inf,
        until: str = "",
    ) -> EphemeralResource:  # fmt: skip
        """Create a name: a placement group that is pinned to the node."""
        made: EphemeralResource = self._ask("create", self.term, name, node, amount, owner, ttl, until)
        return made

    def resize(
        self, name: str, node: str = ANYWHERE, amount: int = 1, *, epoch: int | None = None
    ) -> EphemeralResource:
        """Set the amount of a name."""
        made: EphemeralResource = self._ask("resize", self.term, name, node, amount, epoch)
        return made

    def delete(
        self, name: str, node: str = ANYWHERE, *, force: bool = False, epoch: int | None = None
    ) -> tuple[str, ...]:
        """Delete a name."""
        found: tuple[str, ...] = self._ask("delete", self.term, self.holder, name, node, force, epoch)
        return found

    def renew(self, owner: str, ttl: float) -> int:
        """Let an owner's names live on."""
        return int(self._ask("renew", owner, ttl))

    def submit(self, task: Task) -> None:
        """Take a task into the queue that sleeps for as long as it says, run by this process."""
        from unfold_placement.ray.client import get_client

        get_client(self.coordinator).sleep(task)

    def start(self, unit: Sequence[Start]) -> None:
        """Let a unit run, each task inside a group of its own on its node."""
        self._ask("start", self.term, self.holder, unit)

    def preempt(self, task: str) -> None:
        """Stop a running task by removing its group, and gate it again."""
        self._ask("preempt", self.term, self.holder, task)

    def refuse(self, task: str, reason: str) -> None:
        """Take a waiting task out of the queue for good."""
        self._ask("refuse", self.term, self.holder, task, reason)

    def withdraw(self, task: str) -> None:
        """Take a task back."""
        self._ask("withdraw", task)

    def _ask(self, name: str, *args: Any) -> Any:
        return call_coordinator(self.coordinator, name, *args)


def call_coordinator(steward: Any, name: str, *args: Any) -> Any:
    """Ask a steward and return its answer.

    Raises:
        UnfoldError: it says no, or it is being started again.
    """
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    try:
        return ray.get(getattr(steward, name).remote(*args))
    except RayTaskError as error:
        if isinstance(error.cause, UnfoldError):
            raise error.cause from None
        raise
    except RayActorError as error:
        raise fail("the steward of the cluster is gone", hint="Ray starts it again") from error


def connect_ray(address: str, name: str, described: Sequence[Node] = ()) -> RayBackend:
    """Return a handle on a spec's steward on a Ray cluster, which is started where there is none.

    Raises:
        UnfoldError: no cluster answers, or none of its nodes has the budget that names are carved from.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise fail("a Ray cluster needs Ray, which is not installed", hint="pip install 'unfoldkit[ray]'") from error
    try:
        ray.init(address=address, namespace=SPACE, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        hint = "ray start --head --resources='{\"eph\": 100000}'"
        raise fail(f"no Ray cluster answers at {address}", key="cluster.ray", hint=hint) from error
    if not ray.cluster_resources().get(BUDGET):
        hint = f"start every node with --resources='{{\"{BUDGET}\": 100000}}'"
        raise fail(f"no node of the cluster has the resource {BUDGET!r}", key="cluster.ray", hint=hint)
    return RayBackend(start_coordinator(name, described))


def start_coordinator(
    name: str,
    described: Sequence[Node] = (),
    *,
    clock: Callable[[], float] = time.monotonic,
    patience: float = RESERVATION_TIMEOUT_S,
) -> Any:
    """Return a spec's steward; it outlives whoever starts it. All but its name counts for the one that starts it."""
    import ray

    kind = ray.remote(num_cpus=0, max_concurrency=THREADS, max_restarts=-1)(Coordinator)
    named = kind.options(name=f"steward-{name}", lifetime="detached", get_if_exists=True)
    return named.remote(described, clock, patience)
