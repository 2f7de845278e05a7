"""Pods that are being stopped: they occupy their nodes until they have ended, and no crash loses their tasks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from plugins.placement.tests.kubernetes.stub_server import Body, Fault, StubServer, node, stub_server
from plugins.placement.tests.kubernetes.test_hostile_server import NAMESPACE, await_true
from unfold_placement.core.types import Ask, Task
from unfold_placement.kubernetes import pods
from unfold_placement.kubernetes.backend import KubernetesBackend, open_backend
from unfold_placement.kubernetes.codec import HOSTNAME, Scope
from unfold_placement.live.backend import Start
from unfoldkit.kubernetes.api import Api

pytestmark = pytest.mark.kubernetes
SCOPE = Scope("g", NAMESPACE)
NOW = "2026-01-01T00:00:00Z"
DISRUPTED = [{"type": "DisruptionTarget", "status": "True"}]
ANTI_AFFINITY = {
    "podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": HOSTNAME, "labelSelector": {"matchLabels": {"app": "x"}}}
        ]
    }
}
PORT = {"name": "x", "image": "y", "ports": [{"containerPort": 80, "hostPort": 80}]}


def submit(server: StubServer, name: str, gpus: int, asks: tuple[Ask, ...] = (), **spec: Any) -> None:
    """Create a gated pod."""
    task = Task(name, {"gpu": 1000 * gpus}, run=1e4)
    template = {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "x", "image": "y"}], **spec}}
    server.put("pods", pods.gated_pod(task, asks, SCOPE, time.time(), template))


def change(server: StubServer, name: str, change_body: Callable[[Body], None]) -> Body:
    """Change a pod on the server."""
    body = next(item for item in server.list("pods") if item["metadata"]["name"] == name)
    change_body(body)
    return server.put("pods", body)


def bind(server: StubServer, name: str, host: str = "n0") -> None:
    """Do what kube-scheduler and the kubelet do."""
    change(server, name, lambda body: body["spec"].update(nodeName=host) or body.update(status={"phase": "Running"}))


def end(server: StubServer, name: str) -> None:
    """Let the containers of a pod end."""
    change(server, name, lambda body: body.update(status={"phase": "Failed"}))


def delete_gracefully(server: StubServer) -> Callable[[str, str, bool], Fault | None]:
    """Return what lets a deletion only mark a pod, as its grace period does."""

    def fault(method: str, path: str, _is_watch: bool) -> Fault | None:
        name = path.rpartition("/")[2]
        if method != "DELETE" or not any(body["metadata"]["name"] == name for body in server.list("pods")):
            return None
        body = change(server, name, lambda pod: pod["metadata"].setdefault("deletionTimestamp", NOW))
        return Fault(200, json.dumps(body).encode())

    return fault


def open_leader(api: Api) -> KubernetesBackend:
    """Return a leading handle that knows every pod."""
    backend = open_backend(api, "g")
    assert backend.lead("me", 60.0)
    return backend


def names(server: StubServer) -> dict[str, bool]:
    """Return the pods of the server, and whether each is open."""
    return {body["metadata"]["name"]: not body["spec"].get("schedulingGates") for body in server.list("pods")}


@pytest.mark.parametrize(
    ("gpus", "spec", "asks"),
    [
        (3, {}, ()),
        (1, {"affinity": ANTI_AFFINITY}, ()),
        (1, {"containers": [PORT]}, ()),
        (1, {}, (Ask("slot"),)),
    ],
)
def test_a_pod_that_terminates_occupies_its_node(gpus: int, spec: dict[str, Any], asks: tuple[Ask, ...]) -> None:
    """The gate of the next pod opens when it has ended: GPUs, anti-affinity, a host port and a slot count until then."""
    with stub_server() as (server, api):
        server.put("nodes", node("n0", **{HOSTNAME: "n0"}))
        submit(server, "low", gpus, asks, **spec)
        submit(server, "high", gpus, asks, **spec)
        submit(server, "small", 1)
        backend = open_leader(api)
        backend.start([Start("low", "n0", asks)])
        backend.flush()
        bind(server, "low-0")
        await_true(lambda: backend.informer.is_bound("low"))
        server.fault = delete_gracefully(server)
        backend.preempt("low")
        backend.start([Start("high", "n0", asks)])
        backend.start([Start("small", "n0")])
        backend.flush()
        backend.flush()
        assert names(server) == {"low-0": True, "low-1": False, "high-0": False, "small-0": not spec.get("affinity")}
        end(server, "low-0")
        await_true(lambda: not backend.informer.stopping)
        backend.flush()
        assert names(server)["high-0"]
