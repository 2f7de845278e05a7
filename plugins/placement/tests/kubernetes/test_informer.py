"""What the informer records of pods that no policy manages, or that others change: needs no cluster."""

from __future__ import annotations

from typing import Any

import pytest

from plugins.placement.tests.kubernetes.stub_server import Body, node
from unfold_placement.core.types import Task
from unfold_placement.kubernetes.informer import ForeignPod, Informer
from unfold_placement.kubernetes.objects.codec import Scope
from unfold_placement.kubernetes.objects.pods import gated_pod
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Start
from unfold_placement.live.state_store import StateStore
from unfold_placement.policies.affinity.node_filter import decode_filter

pytestmark = pytest.mark.kubernetes


class Unread(dict[str, ForeignPod]):
    """Pods that no code may go through one by one."""

    def values(self) -> Any:
        raise AssertionError


def pod(name: str, host: str, version: int) -> Body:
    """Return a running pod of another program that requests a core."""
    container = {"name": "c", "resources": {"requests": {"cpu": "1"}}}
    meta = {"name": name, "namespace": "other", "resourceVersion": str(version)}
    return {"metadata": meta, "spec": {"nodeName": host, "containers": [container]}, "status": {"phase": "Running"}}


def test_a_pod_of_another_program_changes_its_node_alone() -> None:
    """A change costs the same however many pods the cluster has, and what a node has left follows each of them."""
    informer = Informer(None, Scope("g", "unfold"), StateStore(lambda: 0.0), 0.0)  # type: ignore[arg-type]
    informer.foreign_pods = Unread()
    for host in ("n0", "n1"):
        body = node(host)
        body["metadata"]["resourceVersion"] = "1"
        informer.handle_node(body)

    def free() -> list[int]:
        return [informer.store.nodes[host].capacity["cpu"] // 1000 for host in ("n0", "n1")]

    for index in range(4):
        informer.handle_pod(pod(f"p{index}", f"n{index % 2}", 1))
    assert free() == [14, 14]
    informer.handle_pod(pod("p0", "n0", 2), is_gone=True)
    informer.handle_pod(pod("p1", "n1", 2) | {"status": {"phase": "Succeeded"}})
    informer.handle_pod(pod("p2", "n1", 2))
    assert free() == [16, 14]
    # kube-scheduler preempts others for it there
    promised = pod("p4", "", 1) | {"status": {"phase": "Pending", "nominatedNodeName": "n0"}}
    informer.handle_pod(promised)
    assert free() == [15, 14]
    informer.handle_pod(pod("p4", "n1", 2))
    assert free() == [16, 13]


def waiting(version: int, **spec: Any) -> Body:
    """Return a pod behind the policy's gate, or what others have made of it."""
    body = gated_pod(Task("a", {"gpu": 1000}, 60.0), (), Scope("g", "unfold"), 0.0)
    body["metadata"] |= {"uid": "u", "resourceVersion": str(version), "creationTimestamp": "2026-01-01T00:00:00Z"}
    body["spec"] |= spec
    return body


def test_a_waiting_pod_goes_where_it_may_by_now() -> None:
    """Others may restrict the nodes of a gated pod: it was opened for one that it no longer accepts, for ever."""
    informer = Informer(None, Scope("g", "unfold"), StateStore(lambda: 0.0), 0.0)  # type: ignore[arg-type]
    informer.handle_pod(waiting(1))
    informer.handle_pod(waiting(2, nodeSelector={"disk": "ssd"}))
    record = informer.store.records["a"]
    assert (record.state, decode_filter(record.task.node_filter).selector) == (kinds.WAITING, {"disk": "ssd"})
    submissions = [change for change in informer.store.log if change.kind == kinds.SUBMITTED]
    informer.handle_pod(waiting(3, nodeSelector={"disk": "ssd"}))
    assert [change for change in informer.store.log if change.kind == kinds.SUBMITTED] == submissions


def test_a_pod_without_its_gate_is_no_task_any_more() -> None:
    """Others removed the gate by hand: the task waited on, kept nodes free, and its gate was opened for ever."""
    informer = Informer(None, Scope("g", "unfold"), StateStore(lambda: 0.0), 0.0)  # type: ignore[arg-type]
    informer.handle_pod(waiting(1))
    informer.handle_pod(waiting(2, schedulingGates=[]))
    assert informer.store.records["a"].state == kinds.GONE
    body = node("n0")
    body["metadata"]["resourceVersion"] = "1"
    informer.handle_node(body)
    informer.handle_pod(waiting(3, schedulingGates=[], nodeName="n0"))
    assert informer.used("n0")["gpu"] == 1000


def test_a_pod_that_is_resized_behind_its_gate_demands_what_it_requests_by_now() -> None:
    """A pod that was too large for every node, and was made smaller there, waited for ever."""
    informer = Informer(None, Scope("g", "unfold"), StateStore(lambda: 0.0), 0.0)  # type: ignore[arg-type]
    for version, cores in ((1, "30"), (2, "2")):
        body = waiting(version, containers=[{"name": "c", "resources": {"requests": {"cpu": cores}}}])
        body["metadata"]["annotations"].pop("placement.unfoldkit/task")
        informer.handle_pod(body)
    assert informer.store.records["a"].task.demand["cpu"] == 2000


def test_a_task_counts_on_the_node_that_it_runs_on(caplog: pytest.LogCaptureFixture) -> None:
    """A webhook that replaces the pin moved a pod: its real node was filled twice, the other stayed empty."""
    informer = Informer(None, Scope("g", "unfold"), StateStore(lambda: 0.0), 0.0)  # type: ignore[arg-type]
    for index in range(2):
        body = node(f"n{index}")
        body["metadata"]["resourceVersion"] = "1"
        informer.handle_node(body)
    informer.handle_pod(waiting(1))
    informer.store.start([Start("a", "n0")])
    opened = waiting(2, schedulingGates=[])
    opened["metadata"]["annotations"] |= {"placement.unfoldkit/started": "1.0", "placement.unfoldkit/starts": "1"}
    opened["spec"]["nodeName"] = "n1"
    informer.nodes_changed = False
    informer.handle_pod(opened)
    assert (informer.store.records["a"].node, informer.nodes_changed) == ("n1", True)
    assert "a runs on n1 although it was opened for n0" in caplog.text
