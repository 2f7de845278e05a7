"""A real control plane as a world: etcd, kube-apiserver and kube-scheduler, nodes and a kubelet that are stubs."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from plugins.placement.tests.live.worlds import Open
from tests.kubernetes.cluster import ControlPlane
from tests.kubernetes.kubelet import add_node, kubelet
from unfold_placement.core.controller import collect_requests
from unfold_placement.core.policy import Policy
from unfold_placement.core.types import Ask, Node, Task
from unfold_placement.kubernetes.backend import KubernetesBackend, open_backend
from unfold_placement.kubernetes.objects.codec import DOMAIN, GATES, UNITS, Body, Scope
from unfold_placement.kubernetes.objects.pods import POLICY, STARTED
from unfold_placement.kubernetes.objects.tasks import decode_task
from unfold_placement.live.control_loop import ControlLoop
from unfoldkit.kubernetes.api import Api, connect_api

PACE = 0.6


@dataclass(slots=True)
class KubeWorld:
    """A scope of its own on a control plane that several tests share."""

    plane: ControlPlane
    scope: str
    pace: float = PACE
    stepped: bool = False
    policies: Sequence[Policy] = ()
    counters: str = GATES
    handles: list[KubernetesBackend] = field(default_factory=list)

    def handle(self) -> KubernetesBackend:
        """Return a further handle with a connection of its own, who may do what the shipped roles let it do."""
        api = connect_api("controller", kubeconfig=str(self.plane.kubeconfig), namespace="unfold")
        made = open_backend(api, self.scope, asks=self.asks, counters=self.counters)
        # changes that are simultaneous in the simulator must arrive together here, on a slow machine too
        made.settle_s = 0.2 * self.pace
        self.handles.append(made)
        return made

    def asks(self, task: Task) -> Iterable[Ask]:
        """Return the names that a task's pod asks for."""
        return [ask for ask, _ in collect_requests(self.policies, task)]

    def submit(self, task: Task) -> None:
        """Submit a task through the first handle."""
        (self.handles[0] if self.handles else self.handle()).submit(task)

    def step(self, live: ControlLoop, until: float) -> None:
        """Let the controller work, until something happened or it is time."""
        left = until - live.backend.now()
        live.step(max(0.0, min(left, 1.0)))


@contextlib.contextmanager
def kube_world(plane: ControlPlane, nodes: Sequence[Node], number: int) -> Iterator[KubeWorld]:
    """Open a world on a control plane: its nodes come first, and nothing of it is left at the end."""
    admin = connect_api("admin", kubeconfig=str(plane.kubeconfig))
    world = KubeWorld(plane, f"test-{number}")
    for node in nodes:
        add_node(admin, node.name, resources(node), node.labels, {f"{DOMAIN}/data": ",".join(sorted(node.data))})
    try:
        with kubelet(connect_api("admin", kubeconfig=str(plane.kubeconfig)), seconds):
            yield world
    finally:
        for handle in world.handles:
            handle.close()
        clear(admin, nodes)


def clear(admin: Api, nodes: Iterable[Node]) -> None:
    """Delete every pod and the nodes, and wait until they are gone."""
    path = "/api/v1/namespaces/unfold/pods"
    for pod in admin.get(path)["items"]:
        admin.delete(f"{path}/{pod['metadata']['name']}", {"gracePeriodSeconds": 0})
    for node in nodes:
        admin.delete(f"/api/v1/nodes/{node.name}")


def seconds(pod: Body) -> float:
    """Return how long the stub lets a pod run: as its task says, from the moment at which its whole unit started."""
    scope, notes = Scope(pod["metadata"].get("labels", {}).get(POLICY, ""), ""), pod["metadata"].get("annotations", {})
    if STARTED not in notes:
        # none of ours
        return math.inf
    return max(0.0, float(notes[STARTED]) + decode_task(pod, scope, 0.0).run - time.time())


def resources(node: Node) -> dict[str, str]:
    """Return what a node has in the words of Kubernetes."""
    return {UNITS.get(kind, kind): f"{amount // 1000}" for kind, amount in node.capacity.items()}


def opener(plane: ControlPlane) -> Open:
    """Return what opens worlds on a control plane, each with a number of its own."""

    def opened(nodes: Sequence[Node]) -> AbstractContextManager[KubeWorld]:
        return kube_world(plane, nodes, time.monotonic_ns())

    return opened
