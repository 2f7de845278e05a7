"""Two gangs on four real Ray nodes, of which one raylet is killed: prints what became of the gangs, as JSON."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from plugins.placement.tests.cases import job, policy
from plugins.placement.tests.live.ray_head import BARE, NODE, TRIES, started
from unfold_placement.live import backend as kinds
from unfold_placement.live.control_loop import ControlLoop, run_until_stopped
from unfold_placement.policies.registry import build_policies
from unfold_placement.ray.backend import SPACE, RayBackend, start_coordinator
from unfold_placement.ray.placement_groups import NAME_LABEL

WAIT = 120.0
SIZE = 8


@dataclass(slots=True)
class Watched:
    """The gangs as their records show them, and how long (s) one was in parts."""

    handle: RayBackend
    since: float | None = None
    longest: float = 0.0
    places: dict[str, set[str]] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Return how many tasks of each gang run."""
        records = [record for record in self.handle.snapshot().records if record.state == kinds.RUNNING]
        self.places = {name: {item.node for item in records if item.task.job == name} for name in ("a", "b")}
        counts = Counter(record.task.job for record in records)
        now = time.monotonic()
        is_partial = any(0 < counts[name] < SIZE for name in ("a", "b"))
        self.since = (self.since or now) if is_partial else None
        self.longest = max(self.longest, now - self.since if self.since else 0.0)
        return {name: counts[name] for name in ("a", "b")}

    def until(self, holds: Callable[[dict[str, int]], bool]) -> dict[str, int]:
        """Wait until the counts are as wanted, and return them; those of the last look if they never are."""
        end = time.monotonic() + WAIT
        while not holds(counts := self.counts()) and time.monotonic() < end:
            time.sleep(0.1)
        return counts


def main() -> None:
    """Start, kill, look, add a node, look again."""
    import ray

    cluster = started()
    ray.init(address=cluster.address, namespace=SPACE, log_to_driver=False, logging_level="error")
    seen = Watched(RayBackend(start_coordinator("loss")))
    rules = policy(gang={})
    live = ControlLoop(seen.handle, lambda: build_policies(rules), "me", "loss", 4.0, 12.0)
    stopped = threading.Event()
    thread = threading.Thread(target=run_until_stopped, args=(live, stopped.is_set, stopped.wait), daemon=True)
    thread.start()
    for task in [*job("a", SIZE, run=900.0), *job("b", SIZE, run=900.0)]:
        seen.handle.submit(task)
    result: dict[str, Any] = {"before": seen.until(lambda counts: set(counts.values()) == {SIZE})}
    gang, lost = choose_node(seen.places)
    result["gang"] = gang
    kill_raylet(cluster, lost)
    result["after"] = seen.until(lambda counts: sorted(counts.values()) == [0, SIZE] and lost not in _up(seen))
    result["on_lost_node"] = any(lost in nodes for nodes in seen.places.values())
    join_node(cluster, "n4")
    result["returned"] = seen.until(lambda counts: set(counts.values()) == {SIZE})
    result["longest_partial_s"] = seen.longest
    stopped.set()
    # a thread that calls Ray while it shuts down may bring the process down
    thread.join(WAIT)
    # a pipe that is read to its end must not wait for Ray's processes
    sys.stdout.write(f"{json.dumps(result)}\n")
    sys.stdout.flush()
    ray.shutdown()
    # the head refuses to end while it believes that this driver is connected
    with contextlib.suppress(ValueError):
        cluster.shutdown()


def join_node(cluster: Any, name: str) -> None:
    """Add a node; Ray gives it thirty seconds, which a busy machine may exceed."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(Exception):
            cluster.add_node(wait=True, **NODE, **BARE_NODE, labels={NAME_LABEL: name})
            return
    cluster.add_node(wait=True, **NODE, **BARE_NODE, labels={NAME_LABEL: name})


BARE_NODE = {key: value for key, value in BARE.items() if key != "no_monitor"}


def _up(seen: Watched) -> set[str]:
    return {node.name for node in seen.handle.snapshot().nodes}


def choose_node(places: dict[str, set[str]]) -> tuple[str, str]:
    """Choose a gang and one of its nodes: not the head, nor the home of the coordinator with its records."""
    import ray
    from ray._private.state import actors

    homes = {actor["Address"]["NodeID"] for actor in actors().values() if actor["State"] == "ALIVE"}
    kept = {"n0"} | {node["Labels"].get(NAME_LABEL) for node in ray.nodes() if node["NodeID"] in homes}
    return next((gang, name) for gang in sorted(places) for name in sorted(places[gang] - kept))


def kill_raylet(cluster: Any, name: str) -> None:
    """Kill the raylet of a node with SIGKILL."""
    import ray

    address = next(
        node["NodeManagerPort"] for node in ray.nodes() if node["Alive"] and node["Labels"].get(NAME_LABEL) == name
    )
    node = next(node for node in cluster.list_all_nodes() if node.node_manager_port == address)
    node.all_processes["raylet"][0].process.kill()


if __name__ == "__main__":
    main()
