"""What the informer records of pods that no policy manages: needs no cluster."""

from __future__ import annotations

from typing import Any

import pytest

from plugins.placement.tests.kubernetes.stub_server import Body, node
from unfold_placement.kubernetes.codec import Scope
from unfold_placement.kubernetes.informer import ForeignPod, Informer
from unfold_placement.live.state_store import StateStore

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
