"""The processes of a Ray cluster of this machine, held by a process beside the driver.

Ray leaves connections to a head in the process that has started it, and ends that process a minute after the head; it
also moves it out of its process group, so that Ctrl-C would no longer reach it. So the driver only connects and leaves.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Literal

from unfoldkit.api import broken
from unfoldkit.engines.local import start_worker

STORE_BYTES = 80 * 2**20
PAUSE = 0.05


@dataclass(frozen=True, slots=True)
class Order:
    """What the keeper is asked for: a node more, with its CPUs and resources, or one less, by name."""

    what: Literal["add", "remove"]
    name: str
    cpus: int = 0
    resources: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Keeper:
    """A head without accelerators, at ``address``, and the nodes around it."""

    address: str
    process: SpawnProcess
    pipe: Connection

    def tell(self, order: Order) -> None:
        """Have an order carried out.

        Raises:
            UnfoldError: Ray's processes could not be started or ended.
        """
        self.pipe.send(order)
        answer(self.pipe, _nothing)

    def close(self) -> None:
        """End every node and the head; call it after the driver has left the cluster."""
        self.pipe.close()
        self.process.join()


def started(watch: Callable[[], None]) -> Keeper:
    """Start a head in a process of its own; ``watch`` is called several times a second meanwhile.

    Raises:
        UnfoldError: it did not come up.
    """
    here, there = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=hold, args=(os.getpid(), there), daemon=True)
    process.start()
    there.close()
    return Keeper(answer(here, watch), process, here)


def answer(pipe: Connection, watch: Callable[[], None]) -> str:
    """Wait for what the keeper says."""
    while not pipe.poll(PAUSE):
        watch()
    try:
        fine, text = pipe.recv()
    except EOFError:
        fine, text = False, "its process is gone"
    if not fine:
        raise broken(f"Ray did not start or end its processes: {text}", hint="out of memory or of disk?")
    return str(text)


def hold(parent: int, pipe: Connection) -> None:
    """Hold a cluster until the pipe closes; what is left of it ends with this process, however that ends."""
    start_worker(parent)
    logging.getLogger("ray").setLevel(logging.ERROR)
    from ray.cluster_utils import Cluster

    nodes: dict[str, Any] = {}
    head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    try:
        cluster = Cluster(initialize_head=True, head_node_args=head)
    except Exception as error:  # noqa: BLE001 - Ray raises what it likes; the driver decides
        pipe.send((False, f"{type(error).__name__}: {error}"))
        return
    try:
        pipe.send((True, cluster.address))
        while True:
            pipe.send(_done(cluster, nodes, pipe.recv()))
    except (EOFError, OSError):
        return
    finally:
        cluster.shutdown()


def _done(cluster: Any, nodes: dict[str, Any], order: Order) -> tuple[bool, str]:
    try:
        if order.what == "add":
            nodes[order.name] = cluster.add_node(
                wait=False, num_cpus=order.cpus, resources=order.resources, object_store_memory=STORE_BYTES
            )
        elif order.name in nodes:
            # a raylet that ends without a word makes Ray print its last log lines into ours
            cluster.remove_node(nodes.pop(order.name), allow_graceful=True)
    except Exception as error:  # noqa: BLE001 - Ray raises what it likes; the driver decides
        return False, f"{type(error).__name__}: {error}"
    return True, ""


def _nothing() -> None:
    return None
