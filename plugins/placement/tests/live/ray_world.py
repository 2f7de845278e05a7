"""A real Ray cluster as a world: each has a steward of its own on the four nodes that all tests share."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfold_placement.core.types import Node, Task
from unfold_placement.live.control_loop import ControlLoop
from unfold_placement.ray.backend import SPACE, RayBackend, start_coordinator
from unfold_placement.ray.client import get_client

HEAD = Path(__file__).with_name("ray_head.py")
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "PYTHONWARNINGS": "ignore",
    # Ray's workers step back for everything else on a machine, which on a busy one stops them altogether
    "RAY_worker_niceness": "0",
    # a process that starts takes a second of a core: those that are there stay for the next task
    "RAY_num_workers_soft_limit": "16", "RAY_idle_worker_killing_time_threshold_ms": "600000",
}  # fmt: skip


@dataclass(slots=True)
class RayWorld:
    """A steward on a real cluster, in real time."""

    steward: Any
    pace: float = 0.4
    stepped: bool = False

    def handle(self) -> RayBackend:
        """Return a further handle."""
        return RayBackend(self.steward)

    def submit(self, task: Task) -> None:
        """Submit a task that sleeps, run by this process."""
        self.handle().submit(task)

    def step(self, live: ControlLoop, until: float) -> None:
        """Work for as long as it takes."""
        live.step(max(0.0, min(0.1, until - live.backend.now())))


@contextmanager
def head() -> Iterator[str]:
    """Start the nodes in a process of their own; yield their address."""
    with subprocess.Popen(
        [sys.executable, str(HEAD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env={**os.environ, **QUIET},
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect this process, and leave before the cluster ends: Ray ends who stays on."""
    import ray

    ray.init(address=address, namespace=SPACE, log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def ray_world(nodes: Sequence[Node]) -> Iterator[RayWorld]:
    """Open a world on the cluster that this process is connected to."""
    import ray

    steward = start_coordinator(uuid.uuid4().hex, list(nodes))
    try:
        yield RayWorld(steward)
    finally:
        get_client(steward).close()
        ray.kill(steward)
