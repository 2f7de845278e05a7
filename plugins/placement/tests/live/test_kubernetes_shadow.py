"""Shadow mode on a real apiserver and scheduler: the policies decide, and not one write reaches the server."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from plugins.placement.tests.cases import policy
from plugins.placement.tests.live.kube_world import KubeWorld
from plugins.placement.tests.live.test_kubernetes import other
from plugins.placement.tests.live.test_kubernetes_node_loss import restore
from unfold_placement.core.shadow_agreement import LATER, SAME_NODE, count_outcomes
from unfold_placement.kubernetes.objects.codec import Scope
from unfold_placement.kubernetes.shadow import ShadowBackend, open_shadow
from unfold_placement.live.control_loop import ControlLoop
from unfold_placement.live.status import agreement_to_json
from unfold_placement.policies.registry import build_policies
from unfold_placement.report.shadow_agreement import agreement_report
from unfoldkit.kubernetes.api import Api, Body, connect_api

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(300)]
PODS = "/api/v1/namespaces/unfold/pods"


@dataclass(slots=True)
class ReadOnly(Api):
    """A connection that notes every request that is no reading."""

    writes: list[str] = field(default_factory=list)

    def call(self, method: str, path: str, body: Any = None, **options: Any) -> Body:
        if method != "GET":
            self.writes.append(f"{method} {path}")
        return Api.call(self, method, path, body, **options)


def shadow(kube: KubeWorld, **parts: Any) -> tuple[ControlLoop, ShadowBackend]:
    """Return a controller of a shadow of the world, which may do no more than the shipped controller."""
    plain = connect_api("controller", kubeconfig=str(kube.plane.kubeconfig), namespace="unfold")
    api = ReadOnly(plain.client, plain.namespace)
    backend = open_shadow(api, Scope("shade", "unfold"))
    rules = policy(**parts)
    return ControlLoop(backend, lambda: build_policies(rules), "me", "shade", 60.0, 90.0), backend


def work(live: ControlLoop, holds: Callable[[], bool]) -> None:
    """Let a controller work until something holds."""
    end = time.monotonic() + 60.0
    while not holds():
        assert time.monotonic() < end, live.last_error
        live.step(0.2)


def gpus(name: str, count: int) -> Body:
    """Return a pod of somebody else, which asks for GPUs."""
    return other(name, {"nvidia.com/gpu": str(count)})


def test_decisions_stand_next_to_those_of_the_scheduler(kube: KubeWorld, admin: Api) -> None:
    """A limit of one at a time lets the second pod wait, which kube-scheduler binds; the report says both."""
    admin.post(PODS, gpus("before", 1))
    live, backend = shadow(kube, limit={"most": 1, "by": ""})
    try:
        work(live, lambda: live.actuator is not None)
        for name in ("first", "second"):
            admin.post(PODS, {**gpus(name, 4), "metadata": {"name": name, "annotations": {"x": "y"}}})
        found = backend.agreement
        work(live, lambda: sum(bool(item.bound_node) for item in found.list_placements()) == 2)
        time.sleep(2.5)
        live.step(0.2)
        # the one that ran before holds the limit
        assert count_outcomes(found.list_placements()) == {LATER: 2}
        admin.delete(f"{PODS}/before", {"gracePeriodSeconds": 0})
        work(live, lambda: any(item.decided_node for item in found.list_placements()))
        report = agreement_report("shade", "limit", found)
        assert report.headline == "0 of 2 tasks got the node that kube-scheduler chose; 2 would have waited"
        assert report.metrics["would_have_waited"].value == 2
        status = agreement_to_json(found)
        assert status["outcomes"] == {LATER: 2}
        assert {row["scheduler_node"] for row in status["latest"]} <= {"n0", "n1", "n2"}
        assert getattr(backend.api, "writes", None) == []
        assert live.last_error == ""
    finally:
        backend.close()


def test_a_shadow_follows_the_cluster(kube: KubeWorld, admin: Api) -> None:
    """Pods that end leave room in the shadow too, and a lost node takes no more tasks."""
    live, backend = shadow(kube, fifo={})
    try:
        work(live, lambda: live.actuator is not None)
        admin.delete("/api/v1/nodes/n0")
        work(live, lambda: sorted(node.name for node in backend.store.nodes.values()) == ["n1", "n2"])
        for index in range(2):
            admin.post(PODS, gpus(f"full-{index}", 4))
        found = backend.agreement
        work(live, lambda: all(item.decided_node and item.bound_node for item in found.list_placements()))
        work(live, lambda: len(found.list_placements()) == 2)
        assert {item.decided_node for item in found.list_placements()} == {"n1", "n2"}
        admin.post(PODS, gpus("next", 4))
        work(live, lambda: len(found.list_placements()) == 3)
        live.step(0.5)
        assert not found.list_placements()[-1].decided_node
        admin.delete(f"{PODS}/full-0", {"gracePeriodSeconds": 0})
        work(live, lambda: bool(found.list_placements()[-1].decided_node))
        work(live, lambda: bool(found.list_placements()[-1].bound_node))
        last = found.list_placements()[-1]
        assert (last.decided_node == last.bound_node) == (last.outcome == SAME_NODE)
        assert getattr(backend.api, "writes", None) == []
    finally:
        backend.close()
        # the world deletes the nodes that it made
        restore(admin, "n0")
