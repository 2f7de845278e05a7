"""Where the raylets of a Ray cluster run: started on this machine, or joining from rented instances."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from unfold_tuning.cluster.local_ray_process import NodeCommand, RaySupervisor, start_supervisor
from unfold_tuning.cluster.marked_processes import kill_marked
from unfoldkit.api import ExitCode, format_count, format_duration, format_names, require_packages, user_error
from unfoldkit.engines.ray import keeping_signal_handlers, require_listener

JOIN_TIMEOUT_S = 900.0
HEAD_TIMEOUT_S = 15.0
JOIN_WARNING_S = 120.0
"""A warning names the nodes that have not joined Ray after this long: they are billed meanwhile."""
REMOTE_HINT = (
    "does the image have the driver's version of Ray, can it reach the head, and has it the head's token if any?"
)
LOCAL_HINT = "Ray logs to /tmp/ray/session_latest/logs"
ENDED_PERIOD_S = 15.0
POLL_S = 0.05
MAX_SHOWN = 4
INIT_OPTIONS = {"log_to_driver": False, "logging_level": "ERROR"}


@dataclass(frozen=True, slots=True)
class Reservation:
    """A node of a shared cluster: a placement group holds all its accelerators, the resource ``device``."""

    node_id: str
    group: Any
    device: str


FindEnded = Callable[[Collection[str]], set[str]]


class RayNodes(Protocol):
    """Adds nodes of a provider to Ray; each offers its :func:`name_node_resource`, one unit per accelerator."""

    @property
    def starts_together(self) -> bool:
        """Whether nodes start side by side, or one after another."""

    def open(self) -> None:
        """Connect before anything is rented, so that nothing is billed if Ray is unreachable."""

    def start(self, names: Sequence[str], watch: Callable[[], None], find_ended: FindEnded) -> set[str]:
        """Wait for nodes to join unless their provider has ended them, and return those that did."""

    def stop(self, name: str) -> None:
        """Stop a node's raylet, whatever runs on it."""

    def close(self) -> None:
        """Leave the cluster."""


@dataclass(slots=True)
class LocalRayNodes:
    """Raylets of this machine, each with its own processes, around a head without accelerators.

    What trials start ends with its raylet; ``mark`` begins the marks of all, see
    :class:`~unfold_tuning.cluster.local.LocalCluster`.
    """

    accelerators: int
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    supervisor: RaySupervisor | None = None
    names: set[str] = field(default_factory=set)
    starts_together: bool = False

    def open(self) -> None:
        """See :class:`RayNodes`."""
        ray = import_ray()
        if self.supervisor is None:
            if ray.is_initialized():
                raise user_error("this process is connected to another Ray cluster", hint="ray.shutdown() first")
            kill_marked(self.mark)
            self.supervisor = start_supervisor(_do_nothing)
            with keeping_signal_handlers():
                ray.init(address=self.supervisor.address, **INIT_OPTIONS)

    def start(self, names: Sequence[str], watch: Callable[[], None], find_ended: FindEnded) -> set[str]:
        """See :class:`RayNodes`."""
        for name in names:
            self.names.add(name)
            resources = {name_node_resource(name): float(self.accelerators)}
            self._send(NodeCommand("add", name, self.accelerators, resources, f"{self.mark}-{name}"))
            watch()
        return wait_for_nodes(names, watch, LOCAL_HINT, find_ended)

    def stop(self, name: str) -> None:
        """See :class:`RayNodes`."""
        if name in self.names:
            self.names.remove(name)
            self._send(NodeCommand("remove", name))
            kill_marked(f"{self.mark}-{name}")

    def close(self) -> None:
        """See :class:`RayNodes`."""
        # disconnect while the head runs: Ray ends a driver that loses its head
        _leave_cluster()
        if self.supervisor is not None:
            self.supervisor.close()
            self.supervisor = None

    def _send(self, command: NodeCommand) -> None:
        if self.supervisor is not None:
            self.supervisor.send(command)


@dataclass(slots=True)
class RemoteRayNodes:
    """Nodes that run a raylet already; ``address`` is that of the head, next to which this process runs."""

    address: str
    reservations: Mapping[str, Reservation] = field(default_factory=dict)
    starts_together: bool = True

    def open(self) -> None:
        """See :class:`RayNodes`."""
        ray = import_ray()
        if not ray.is_initialized():
            try:
                require_listener(self.address)
                with keeping_signal_handlers():
                    ray.init(address=self.address, **INIT_OPTIONS)
            except ConnectionError as error:
                hint = "ray start --head; if it requires a token: RAY_AUTH_MODE=token unfold ..."
                raise user_error(f"no Ray cluster responds at {self.address}", hint=hint) from error

    def start(self, names: Sequence[str], watch: Callable[[], None], find_ended: FindEnded) -> set[str]:
        """See :class:`RayNodes`."""
        # a reserved node has joined before
        awaited = [name for name in names if name not in self.reservations]
        joined = wait_for_nodes(awaited, watch, REMOTE_HINT, find_ended)
        return joined | (set(names) & self.reservations.keys())

    def stop(self, name: str) -> None:
        """See :class:`RayNodes`: the raylet ends with its instance, or is that of a shared cluster."""

    def close(self) -> None:
        """See :class:`RayNodes`."""
        _leave_cluster()


def wait_for_nodes(names: Sequence[str], watch: Callable[[], None], hint: str, find_ended: FindEnded) -> set[str]:
    """Wait until nodes are part of the cluster, and return those that joined in time; warnings name late and lost ones.

    Args:
        names: The nodes.
        watch: Is called while they are awaited.
        hint: Why they may not join.
        find_ended: Finds nodes that have ended, such as spot instances that are lost while they boot.

    Raises:
        UnfoldError: None of them does, and no other node is part of it.
    """
    began, checked_s, is_named, ended = time.monotonic(), 0.0, False, set[str]()
    while missing := sorted(set(names) - ended - list_alive_nodes()):
        waited_s = time.monotonic() - began
        if waited_s - checked_s > ENDED_PERIOD_S:
            checked_s = waited_s
            if lost := find_ended(missing):
                ended |= lost
                shown = format_names(sorted(lost), MAX_SHOWN)
                logging.getLogger("unfoldkit").warning("ended before they joined Ray: %s", shown)
                continue
        if waited_s > JOIN_WARNING_S and not is_named:
            is_named = True
            shown = format_names(missing, MAX_SHOWN)
            logging.getLogger("unfoldkit").warning(
                "billed, but not in Ray after %s: %s (%s)", format_duration(waited_s), shown, hint
            )
        if waited_s > JOIN_TIMEOUT_S:
            if not list_alive_nodes():
                message = f"{format_count(len(missing), 'node')} did not join Ray in {format_duration(JOIN_TIMEOUT_S)}"
                raise user_error(message, key="cloud", hint=hint)
            break
        watch()
        time.sleep(POLL_S)
    return set(names) & list_alive_nodes()


def list_alive_nodes(reservations: Mapping[str, Reservation] = MappingProxyType({})) -> set[str]:
    """List the names of the provider's nodes that Ray considers alive."""
    return set(read_addresses(reservations))


def read_addresses(reservations: Mapping[str, Reservation] = MappingProxyType({})) -> dict[str, str]:
    """Read the address of each alive node of the provider, by its name."""
    prefix, alive = name_node_resource(""), _query_alive_nodes()
    addresses = {node["NodeID"]: str(node["NodeManagerAddress"]) for node in alive}
    reserved = {name: addresses[held.node_id] for name, held in reservations.items() if held.node_id in addresses}
    joined = {
        key.removeprefix(prefix): addresses[node["NodeID"]]
        for node in alive
        for key in node["Resources"]
        if key.startswith(prefix)
    }
    return joined | reserved


def detect_device(name: str) -> str:
    """Detect which resource a trial uses on a node besides the node's own: GPUs, or CPUs if it has none."""
    offers = [node["Resources"] for node in _query_alive_nodes() if name_node_resource(name) in node["Resources"]]
    return "GPU" if any(resources.get("GPU") for resources in offers) else "CPU"


def _query_alive_nodes() -> list[Any]:
    require_head()
    return [node for node in import_ray().nodes() if node["Alive"]]


def require_head() -> None:
    """Require that the head of the cluster listens, or does so again soon, before a call that needs it.

    Without it such a call blocks, until Ray ends this process after a minute with exit code 1, whatever is rented.

    Raises:
        UnfoldError: The head is gone.
    """
    address, began = import_ray().get_runtime_context().gcs_address, time.monotonic()
    while True:
        try:
            return require_listener(address)
        except ConnectionError as error:
            if time.monotonic() - began > HEAD_TIMEOUT_S:
                hint = "the same command continues the run on another head"
                raise user_error(f"the Ray head at {address} is gone", hint=hint) from error
        time.sleep(POLL_S)


def _leave_cluster() -> None:
    """Leave the cluster; without its head, Ray would block here and at exit, and end this process with code 1."""
    ray = import_ray()
    if ray.is_initialized():
        try:
            require_listener(ray.get_runtime_context().gcs_address)
        except ConnectionError:
            atexit.register(_exit_at_once)
            return
    # it takes them away, and the signal that ends a run is repeated until the run has cleaned up
    with keeping_signal_handlers():
        ray.shutdown()


def _exit_at_once() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(ExitCode.USAGE)


def name_node_resource(name: str) -> str:
    """Return the name of the resource that only the node of this name offers."""
    return f"unfold-{name}"


def _do_nothing() -> None:
    return None


def import_ray() -> Any:
    """Import Ray, which the core and other engines do without.

    Raises:
        UnfoldError: Ray is not installed; the hint names the extra.
    """
    require_packages("--engine ray", "ray")
    import ray

    return ray
