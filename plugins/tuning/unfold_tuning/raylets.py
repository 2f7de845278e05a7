"""Where the raylets of a Ray cluster are from: started here, or joining from rented instances."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from unfoldkit.api import broken, fail

LONGEST_JOIN = 900.0
PAUSE = 0.05
STORE_BYTES = 80 * 2**20
QUIET = {"log_to_driver": False, "logging_level": "ERROR"}


class Raylets(Protocol):
    """Brings nodes of a fleet into Ray; each offers the resource :func:`place` of its name, a unit an accelerator."""

    def open(self) -> None:
        """Be connected: before anything is rented, so that nothing is paid for a cluster that is not there."""

    def start(self, names: Sequence[str], watch: Callable[[], None]) -> None:
        """Return when every node has joined."""

    def stop(self, name: str) -> None:
        """End a node's raylet, whatever runs on it."""

    def close(self) -> None:
        """Leave the cluster."""


@dataclass(slots=True)
class Here:
    """Raylets of this machine, each with processes of its own, around a head without accelerators."""

    accelerators: int
    cluster: Any = None
    nodes: dict[str, Any] = field(default_factory=dict)

    def open(self) -> None:
        """See :class:`Raylets`."""
        if self.cluster is None:
            self._head()

    def start(self, names: Sequence[str], watch: Callable[[], None]) -> None:
        """See :class:`Raylets`."""
        for name in names:
            resources = {place(name): float(self.accelerators)}
            self.nodes[name] = self.cluster.add_node(
                wait=False, num_cpus=self.accelerators, resources=resources, object_store_memory=STORE_BYTES
            )
            watch()
        joined(names, watch)

    def stop(self, name: str) -> None:
        """See :class:`Raylets`."""
        node = self.nodes.pop(name, None)
        if node is not None:
            # a raylet that ends without a word makes Ray print its last log lines into ours
            self.cluster.remove_node(node, allow_graceful=True)

    def close(self) -> None:
        """See :class:`Raylets`."""
        ray = imported()
        ray.shutdown()
        if self.cluster is not None:
            self.cluster.shutdown()
            self.cluster = None

    def _head(self) -> None:
        ray = imported()
        if ray.is_initialized():
            raise fail("this process is connected to another Ray cluster", hint="ray.shutdown() first")
        from ray.cluster_utils import Cluster

        arguments = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=arguments)
        ray.init(address=self.cluster.address, **QUIET)


@dataclass(slots=True)
class Joining:
    """Instances that start a raylet by themselves; ``address`` is that of the head, where this process runs."""

    address: str

    def open(self) -> None:
        """See :class:`Raylets`."""
        ray = imported()
        if not ray.is_initialized():
            try:
                ray.init(address=self.address, **QUIET)
            except ConnectionError as error:
                raise fail(f"no Ray cluster answers at {self.address}", hint="ray start --head") from error

    def start(self, names: Sequence[str], watch: Callable[[], None]) -> None:
        """See :class:`Raylets`."""
        joined(names, watch)

    def stop(self, name: str) -> None:
        """See :class:`Raylets`: it ends with its instance."""

    def close(self) -> None:
        """See :class:`Raylets`."""
        imported().shutdown()


def joined(names: Sequence[str], watch: Callable[[], None]) -> None:
    """Wait until nodes are part of the cluster.

    Raises:
        UnfoldError: they do not come.
    """
    began = time.monotonic()
    while missing := _absent(names):
        if time.monotonic() - began > LONGEST_JOIN:
            hint = "does the image have Ray, in the version of this driver? may it reach the head?"
            raise broken(f"{len(missing)} nodes have not joined Ray in {LONGEST_JOIN:g} s", hint=hint)
        watch()
        time.sleep(PAUSE)


def _absent(names: Sequence[str]) -> set[str]:
    return set(names) - alive()


def alive() -> set[str]:
    """Return the names of our nodes that Ray holds for alive."""
    mark = place("")
    return {key.removeprefix(mark) for node in living() for key in node["Resources"] if key.startswith(mark)}


def devices(name: str) -> str:
    """Return what a trial takes on a node beside the node's own resource: GPUs, or CPUs where there are none."""
    offered = [node["Resources"] for node in living() if place(name) in node["Resources"]]
    return "GPU" if any(item.get("GPU") for item in offered) else "CPU"


def living() -> list[Any]:
    """Return the nodes of the cluster that are alive."""
    return [node for node in imported().nodes() if node["Alive"]]


def place(name: str) -> str:
    """Return the name of the resource that only a node of this name has."""
    return f"unfold-{name}"


def imported() -> Any:
    """Return Ray.

    Raises:
        UnfoldError: it is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise fail("--engine ray needs Ray, which is not installed", hint="pip install 'unfoldkit[ray]'") from error
    return ray
