"""``unfold serve`` on a real Ray cluster, killed while gangs compete: real processes, real tasks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from plugins.placement.tests.cases import cluster, job, policy
from plugins.placement.tests.live.ray_world import QUIET, RayWorld
from plugins.placement.tests.live.scenarios import Scenario
from plugins.placement.tests.live.stage import outcome
from unfold_placement.live import backend as kinds
from unfold_placement.ray import api as placement
from unfold_placement.ray.api import submit
from unfold_placement.ray.backend import RayBackend, start_coordinator
from unfold_placement.ray.client import get_client
from unfold_placement.simulation.audit import find_violations

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
LEASE = 6.0
WAIT = 240.0
POLICY = {"gang": {"by": "job"}, "anti-affinity": {"by": "job", "density": 2}}
SPEC = """version: 1
kind: placement
name: NAME
cluster: {ray: "ADDRESS", lease: LEASE s}
policy: {gang: {by: job}, anti-affinity: {by: job, density: 2}}
"""


@contextmanager
def controller(folder: Path, name: str, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """Serve the spec in a process of its own."""
    folder.mkdir()
    text = SPEC.replace("NAME", name).replace("ADDRESS", address).replace("LEASE", f"{LEASE:g}")
    (folder / "spec.yaml").write_text(text, "utf-8")
    words = [sys.executable, "-m", "unfoldkit", "serve", "spec.yaml", "--port", "0"]
    with subprocess.Popen(
        words, cwd=folder, env={**os.environ, **QUIET}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def spec(ray_cluster: str) -> Iterator[tuple[str, RayBackend, str]]:
    """The name of a spec of one's own, a handle on its steward, and the cluster's address."""
    import ray

    name = f"k{uuid.uuid4().hex[:8]}"
    handle = RayBackend(start_coordinator(name))
    yield name, handle, ray_cluster
    get_client(handle.coordinator).close()
    ray.kill(handle.coordinator)


def until(handle: RayBackend, *states: str) -> None:
    """Wait until every task is in one of some states."""
    end = time.monotonic() + WAIT
    while not all(record.state in states for record in handle.snapshot().records):
        assert time.monotonic() < end, [(r.task.name, r.state) for r in handle.snapshot().records]
        time.sleep(0.05)


def leads(handle: RayBackend, after: int, count: int) -> None:
    """Wait until so many gangs have started since a change."""
    end = time.monotonic() + WAIT
    while sum(c.kind == kinds.STARTED for c in handle.watch(after, 0.1) or ()) < count:
        assert time.monotonic() < end


def test_gangs_stay_complete_while_controllers_are_killed(spec: tuple[str, RayBackend, str], tmp_path: Path) -> None:
    """Kill -9, again and again, with another controller in waiting: all end, no gang in part, no name or group left."""
    name, handle, address = spec
    after = handle.snapshot().after
    tasks = [task for index in range(8) for task in job(f"g{index}", 6, run=1.0)]
    world = RayWorld(handle.coordinator)
    for task in tasks:
        world.submit(task)
    with (
        controller(tmp_path / "first", name, address) as first,
        controller(tmp_path / "second", name, address) as other,
    ):
        leads(handle, after, 6)
        first.send_signal(signal.SIGKILL)
        leads(handle, after, 18)
        with controller(tmp_path / "third", name, address):
            other.send_signal(signal.SIGKILL)
            until(handle, kinds.DONE)
    scenario = Scenario(tasks, POLICY, cluster(4))
    found = outcome(scenario, handle.watch(after, 0.0) or (), 0.0)
    assert list(find_violations(found, policy(**POLICY))) == []
    end = time.monotonic() + WAIT
    while handle.snapshot().names or groups():
        assert time.monotonic() < end, (handle.snapshot().names, groups())
        time.sleep(0.2)


def test_a_killed_coordinator_restarts_with_the_unfinished_tasks_of_clients(
    spec: tuple[str, RayBackend, str], tmp_path: Path
) -> None:
    """Its books and groups go with it; what has not ended is submitted anew, runs and answers, and nothing leaks."""
    import ray

    name, handle, address = spec
    # half of the gangs run as it dies, the others wait
    results = [submit(_sleepy, gang, policy=name, job=f"g{gang}", size=6, gpu=1) for gang in range(4) for _ in range(6)]
    with controller(tmp_path / "one", name, address):
        leads(handle, handle.snapshot().after, 6)
        ray.kill(handle.coordinator, no_restart=False)
        assert [result.result(WAIT) for result in results] == [gang for gang in range(4) for _ in range(6)]
    end = time.monotonic() + WAIT
    while handle.snapshot().names or groups():
        assert time.monotonic() < end, (handle.snapshot().names, groups())
        time.sleep(0.2)
    placement.close(name)


def groups() -> list[str]:
    """Return the placement groups that are there."""
    from ray.util import placement_group_table

    return [item["name"] for item in placement_group_table().values() if item["state"] != "REMOVED"]


def test_a_submitted_function_returns_its_result(spec: tuple[str, RayBackend, str], tmp_path: Path) -> None:
    """What is submitted runs once, gives back what it returns or raises, and may be taken back while it waits."""
    name, handle, address = spec
    slow = submit(time.sleep, 0.1, policy=name, cpu=0, gpu=0, size=2, job="half")
    with controller(tmp_path / "one", name, address):
        assert submit(_double, 21, policy=name).result(WAIT) == 42
        with pytest.raises(ZeroDivisionError):
            submit(_divide, policy=name, job="b").result(WAIT)
        assert slow.cancel()
        until(handle, kinds.DONE, kinds.GONE)
    import ray

    assert all(node["Alive"] for node in ray.nodes())


def _sleepy(value: int) -> int:
    time.sleep(2.0)
    return value


def _double(value: int) -> int:
    return 2 * value


def _divide() -> float:
    return 1 / 0
