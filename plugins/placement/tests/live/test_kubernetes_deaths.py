"""Controllers that die at any moment on a real control plane: gangs stay whole, names go, one of several leads."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from plugins.placement.tests.cases import cluster, job, policy
from plugins.placement.tests.live.kube_world import KubeWorld
from plugins.placement.tests.live.test_kubernetes import folder, left_over, soon
from plugins.placement.tests.live.worlds import Open
from tests.served import serving
from unfold_placement.core.types import ANYWHERE
from unfold_placement.kubernetes.backend import KubernetesBackend, open_backend
from unfold_placement.kubernetes.objects import pods
from unfold_placement.live import backend as kinds
from unfold_placement.live.control_loop import ControlLoop
from unfold_placement.policies.registry import build_policies
from unfoldkit.kubernetes.api import Api, Body, connect_api

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(600)]
LEASE = 6.0
WAIT = 120.0
SIZE = 6
POLICY = {"gang": {"by": "job"}}


class Death(BaseException):
    """The process is gone."""


@dataclass(slots=True)
class Mortal(Api):
    """A connection with a process that dies before its ``left``-th write, or just after it: nothing more is written."""

    left: int = 0
    after: bool = False

    def call(self, method: str, path: str, body: Any = None, **options: Any) -> Body:
        if method == "GET" or "/leases" in path:
            return Api.call(self, method, path, body, **options)
        self.left -= 1
        if self.left < 0 or (self.left == 0 and not self.after):
            raise Death
        found = Api.call(self, method, path, body, **options)
        if self.left == 0:
            raise Death
        return found


@dataclass(slots=True)
class Watcher:
    """Watches a scope from outside, and notes how long (s) a gang was partly open while no process was dying."""

    eye: KubernetesBackend
    since: dict[str, float] = field(default_factory=dict)
    longest: float = 0.0

    def look(self) -> None:
        """Look once."""
        now = time.monotonic()
        with self.eye.store.changed:
            half = {name for name, count in self.opened().items() if 0 < count < SIZE}
        self.since = {name: self.since.get(name, now) for name in half}
        self.longest = max([self.longest, *(now - since for since in self.since.values())])

    def opened(self) -> dict[str, int]:
        """Return how many tasks of each gang run or have ended."""
        count: dict[str, int] = {}
        for record in self.eye.store.records.values():
            body = self.eye.informer.body(record.task.name)
            gone = body is None or body["metadata"].get("deletionTimestamp")
            runs = record.state == kinds.DONE or (not gone and pods.task_state(body or {}) != kinds.WAITING)
            count[record.task.job] = count.get(record.task.job, 0) + runs
        return count

    def over(self) -> bool:
        """Look once; return whether every task has ended."""
        self.look()
        return {record.state for record in self.eye.store.records.values()} == {kinds.DONE}


@contextmanager
def watched(kubernetes_: Open, gangs: int) -> Iterator[tuple[KubeWorld, Watcher]]:
    """Let some gangs wait for three nodes on which two of them fit at a time."""
    with kubernetes_(cluster(3)) as kube:
        assert isinstance(kube, KubeWorld)
        kube.policies = build_policies(policy(**POLICY))
        eye = kube.handle()
        for index in range(gangs):
            for task in job(f"g{index}", SIZE, run=1.0):
                kube.submit(task)
        yield kube, Watcher(eye)


def controller(kube: KubeWorld, who: str, left: int, *, after: bool) -> ControlLoop:
    """Return a controller that dies at its ``left``-th write."""
    api = connect_api("controller", kubeconfig=str(kube.plane.kubeconfig), namespace="unfold")
    made = open_backend(Mortal(api.client, api.namespace, left=left, after=after), kube.scope, asks=kube.asks)
    kube.handles.append(made)
    return ControlLoop(made, lambda: build_policies(policy(**POLICY)), who, "spec", LEASE / 3, LEASE)


@pytest.mark.parametrize("seed", range(3))
def test_gangs_stay_complete_whenever_a_controller_dies(kubernetes: Open, seed: int) -> None:
    """Killed before or after any write, again and again: no gang stays opened in part for longer than the lease."""
    rng = random.Random(seed)  # noqa: S311 - of moments
    with watched(kubernetes, 10) as (kube, seen):
        for number in range(5):
            live = controller(kube, f"c{number}", rng.randint(1, 15), after=rng.random() < 0.5)
            with pytest.raises(Death):
                work(live, seen)
            kube.handles.pop().close()
            seen.since.clear()
        live = controller(kube, "last", 1_000_000, after=False)
        work(live, seen)
        admin = connect_api("admin", kubeconfig=str(kube.plane.kubeconfig))
        soon(lambda: live.step(0.1) and not left_over(admin, seen.eye))
        assert [item for item in live.backend.snapshot().names if item.node != ANYWHERE] == []
    assert seen.longest <= LEASE


def work(live: ControlLoop, seen: Watcher) -> None:
    """Step until everything has ended."""
    end = time.monotonic() + WAIT
    while not seen.over():
        assert time.monotonic() < end, seen.opened()
        live.step(0.1)


def test_killed_processes_are_replaced_by_others(kubernetes: Open, tmp_path: Path) -> None:
    """Of two controllers one leads; the leader is killed with -9 four times, one comes after it, and all gangs end."""
    rng = random.Random(7)  # noqa: S311 - of moments
    with watched(kubernetes, 14) as (kube, seen), ExitStack() as stack:
        started = (stack.enter_context(serving(folder(tmp_path, kube, f"c{n}"), "spec.yaml"))[0] for n in range(6))
        alive = [next(started), next(started)]
        admin = connect_api("admin", kubeconfig=str(kube.plane.kubeconfig))
        lease = f"/apis/coordination.k8s.io/v1/namespaces/unfold/leases/{seen.eye.scope.record}"
        for _ in range(4):
            pause(seen, rng.uniform(0.0, 1.5))
            leader = leading(admin, lease, alive)
            leader.kill()
            seen.since.clear()
            alive = [*(one for one in alive if one is not leader), next(started)]
        soon(seen.over, WAIT)
        soon(lambda: not left_over(admin, seen.eye))
        assert admin.get(lease)["spec"]["leaseTransitions"] >= 4
    assert seen.longest <= LEASE


def leading(admin: Api, lease: str, alive: Sequence[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """Wait until one of some processes leads, and return it."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        holder = admin.get(lease)["spec"]["holderIdentity"]
        if found := [one for one in alive if holder.endswith(f"-{one.pid}")]:
            return found[0]
        time.sleep(0.05)
    raise AssertionError("none of them leads")


def pause(seen: Watcher, seconds: float) -> None:
    """Look on for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        seen.look()
        time.sleep(0.02)
