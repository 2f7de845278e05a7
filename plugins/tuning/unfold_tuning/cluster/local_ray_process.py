"""A process beside the driver that holds a Ray cluster of this machine.

Ray leaves connections to a head in the process that started it and ends that process a minute after the head. It also
moves the process out of its process group, so that Ctrl-C would no longer reach it. The driver therefore only connects
and disconnects.
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

from unfold_tuning.cluster.marked_processes import marking_processes
from unfoldkit.api import internal_error
from unfoldkit.worker_process import blocking_interrupts, start_worker

OBJECT_STORE_BYTES = 80 * 2**20
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class NodeCommand:
    """A command to the supervisor: add a node with its CPUs, resources and mark, or remove it, by name."""

    action: Literal["add", "remove"]
    name: str
    cpus: int = 0
    resources: dict[str, float] = field(default_factory=dict)
    mark: str = ""


@dataclass(frozen=True, slots=True)
class RaySupervisor:
    """The driver's end of the supervisor: a head without accelerators at ``address``, and its nodes."""

    address: str
    process: SpawnProcess
    pipe: Connection

    def send(self, command: NodeCommand) -> None:
        """Send a command and wait until it is done.

        Raises:
            UnfoldError: Ray's processes could not be started or stopped.
        """
        self.pipe.send(command)
        _wait_for_reply(self.pipe, _do_nothing)

    def close(self) -> None:
        """Stop every node and the head, after the driver has left the cluster."""
        self.pipe.close()
        self.process.join()


def start_supervisor(watch: Callable[[], None]) -> RaySupervisor:
    """Start a supervisor process with a head.

    Args:
        watch: Called several times a second meanwhile.

    Raises:
        UnfoldError: Ray did not start.
    """
    driver_pipe, supervisor_pipe = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=run_supervisor, args=(os.getpid(), supervisor_pipe), daemon=True)
    with blocking_interrupts():
        process.start()
    supervisor_pipe.close()
    return RaySupervisor(_wait_for_reply(driver_pipe, watch), process, driver_pipe)


def _wait_for_reply(pipe: Connection, watch: Callable[[], None]) -> str:
    while not pipe.poll(POLL_S):
        watch()
    try:
        is_ok, text = pipe.recv()
    except EOFError:
        is_ok, text = False, "its process is gone"
    if not is_ok:
        raise internal_error(f"Ray did not start or stop its processes: {text}", hint="out of memory or disk space?")
    return str(text)


def run_supervisor(parent: int, pipe: Connection) -> None:
    """Hold a cluster until the pipe closes; Ray's processes end with this process, however it ends."""
    start_worker(parent)
    logging.getLogger("ray").setLevel(logging.ERROR)
    from ray.cluster_utils import Cluster

    nodes: dict[str, Any] = {}
    head = {"num_cpus": 0, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    try:
        cluster = Cluster(initialize_head=True, head_node_args=head)
    except Exception as error:  # noqa: BLE001 - Ray raises any type; the driver decides
        pipe.send((False, f"{type(error).__name__}: {error}"))
        return
    try:
        pipe.send((True, cluster.address))
        while True:
            pipe.send(_run_command(cluster, nodes, pipe.recv()))
    except (EOFError, OSError):
        return
    finally:
        cluster.shutdown()


def _run_command(cluster: Any, nodes: dict[str, Any], command: NodeCommand) -> tuple[bool, str]:
    try:
        if command.action == "add":
            size = {"num_cpus": command.cpus, "object_store_memory": OBJECT_STORE_BYTES}
            with marking_processes(command.mark):
                nodes[command.name] = cluster.add_node(wait=False, resources=command.resources, **size)
        elif command.name in nodes:
            # an abrupt end makes Ray print the raylet's last log lines into ours
            cluster.remove_node(nodes.pop(command.name), allow_graceful=True)
    except Exception as error:  # noqa: BLE001 - Ray raises any type; the driver decides
        return False, f"{type(error).__name__}: {error}"
    return True, ""


def _do_nothing() -> None:
    return None
