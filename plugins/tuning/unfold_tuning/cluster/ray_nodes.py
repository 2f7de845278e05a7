"""Where the raylets of a Ray cluster are from: started here, or joining from rented instances."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from unfold_tuning.cluster.ray_supervisor import Keeper, Order, started
from unfoldkit.api import broken, fail

LONGEST_JOIN = 900.0
PAUSE = 0.05
QUIET = {"log_to_driver": False, "logging_level": "ERROR"}


class Raylets(Protocol):
    """Brings nodes of a fleet into Ray; each offers the resource :func:`place` of its name, a unit an accelerator.

    ``together`` tells whether nodes start side by side, or one after the other.
    """

    @property
    def together(self) -> bool:
        """See the class."""

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
    keeper: Keeper | None = None
    names: set[str] = field(default_factory=set)
    together: bool = False

    def open(self) -> None:
        """See :class:`Raylets`."""
        ray = imported()
        if self.keeper is None:
            if ray.is_initialized():
                raise fail("this process is connected to another Ray cluster", hint="ray.shutdown() first")
            self.keeper = started(_nothing)
            ray.init(address=self.keeper.address, **QUIET)

    def start(self, names: Sequence[str], watch: Callable[[], None]) -> None:
        """See :class:`Raylets`."""
        for name in names:
            self.names.add(name)
            self._tell(Order("add", name, self.accelerators, {place(name): float(self.accelerators)}))
            watch()
        joined(names, watch)

    def stop(self, name: str) -> None:
        """See :class:`Raylets`."""
        if name in self.names:
            self.names.remove(name)
            self._tell(Order("remove", name))

    def close(self) -> None:
        """See :class:`Raylets`."""
        # while the head is there: a driver that loses it first is ended by Ray
        imported().shutdown()
        if self.keeper is not None:
            self.keeper.close()
            self.keeper = None

    def _tell(self, order: Order) -> None:
        if self.keeper is not None:
            self.keeper.tell(order)


@dataclass(slots=True)
class Joining:
    """Instances that start a raylet by themselves; ``address`` is that of the head, where this process runs."""

    address: str
    together: bool = True

    def open(self) -> None:
        """See :class:`Raylets`."""
        ray = imported()
        if not ray.is_initialized():
            try:
                ray.init(address=self.address, **QUIET)
            except ConnectionError as error:
                hint = "ray start --head; of one that asks for a token: RAY_AUTH_MODE=token unfold ..."
                raise fail(f"no Ray cluster answers at {self.address}", hint=hint) from error

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


def _nothing() -> None:
    return None


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
