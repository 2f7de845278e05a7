"""Volume claims on a real apiserver and scheduler: pods go where their volumes are, and say what they wait for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from plugins.placement.tests.live.kube_world import KubeWorld
from plugins.placement.tests.live.test_kubernetes import node_of
from plugins.placement.tests.live.test_kubernetes_workloads import (
    PODS,
    SPACE,
    controller,
    gated,
    waits,
    work,
    work_for,
)
from unfold_placement.kubernetes.objects.volumes import BOUND, CLAIMS, CLASSES, LATE_BINDING, SELECTED_NODE, VOLUMES
from unfoldkit.kubernetes.api import MERGE, Api, ApiError, Body

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(180)]
OWN_CLAIMS = CLAIMS.format(SPACE)
ZONE = "topology.kubernetes.io/zone"


@pytest.fixture
def zones(kube: KubeWorld, admin: Api) -> Iterator[None]:
    """Each of the three nodes in a zone of its own: a, b and c; nothing of volumes is left at the end."""
    assert kube
    for index, zone in enumerate("abc"):
        admin.patch(f"/api/v1/nodes/n{index}", {"metadata": {"labels": {ZONE: zone}}}, MERGE)
    try:
        yield
    finally:
        for path in (OWN_CLAIMS, VOLUMES, CLASSES):
            for body in admin.get(path)["items"]:
                delete(admin, f"{path}/{body['metadata']['name']}")


def delete(admin: Api, path: str) -> None:
    """Delete an object at once, although no controller that runs here takes its finalizer away."""
    with contextlib.suppress(ApiError):
        admin.patch(path, {"metadata": {"finalizers": None}}, MERGE)
        admin.delete(path)
        admin.patch(path, {"metadata": {"finalizers": None}}, MERGE)


def add_class(admin: Api, name: str, **more: Any) -> None:
    """Add a storage class of which volumes are bound once a pod has its node."""
    meta, rule = {"name": name}, {"provisioner": "example.org/disk", "volumeBindingMode": LATE_BINDING, **more}
    admin.post(CLASSES, {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": meta, **rule})


def add_claim(admin: Api, name: str, class_name: str, volume: str = "") -> Body:
    """Add a claim, bound to a volume where one is named."""
    meta = {"name": name, "annotations": {BOUND: "yes"} if volume else {}}
    spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": class_name}
    spec |= {"resources": {"requests": {"storage": "5Gi"}}, **({"volumeName": volume} if volume else {})}
    body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}
    return admin.post(OWN_CLAIMS, body)


def add_volume(admin: Api, name: str, zone: str, claim: Body) -> None:
    """Add the volume of a claim, which exists in one zone."""
    term = {"matchExpressions": [{"key": ZONE, "operator": "In", "values": [zone]}]}
    spec = {
        "capacity": {"storage": "5Gi"},
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": claim["spec"]["storageClassName"],
        "csi": {"driver": "disk.example.org", "volumeHandle": name},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}},
        "claimRef": {key: claim["metadata"][key] for key in ("namespace", "name", "uid")},
    }
    admin.post(VOLUMES, {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec})


def with_claim(kube: KubeWorld, name: str, claim: str, gpus: int = 1) -> Body:
    """Return a gated pod with a volume claim."""
    return gated(kube, name, gpus, volumes=[{"name": "data", "persistentVolumeClaim": {"claimName": claim}}])


@pytest.mark.usefixtures("zones")
def test_a_pod_goes_where_its_volume_is(kube: KubeWorld, admin: Api) -> None:
    """It was opened for another zone over and over, and never ran although a node of its zone was free."""
    live = controller(kube, fifo={})
    add_volume(admin, "disk-c", "c", add_claim(admin, "data", "any", "disk-c"))
    admin.post(PODS, with_claim(kube, "zonal", "data"))
    work(live, lambda: node_of(admin, "zonal") == "n2")


@pytest.mark.usefixtures("zones")
def test_a_pod_waits_for_its_claim_and_blocks_no_other(kube: KubeWorld, admin: Api) -> None:
    """It keeps its gate, the status names the claim, and it starts as soon as the claim has a volume."""
    live = controller(kube, fifo={})
    admin.post(PODS, with_claim(kube, "early", "late", 4))
    work(live, lambda: "waits for volume claim late, which does not exist" in waits(live))
    admin.post(PODS, gated(kube, "plain", 4))
    work(live, lambda: bool(node_of(admin, "plain")))
    delete(admin, f"{PODS}/plain")
    add_class(admin, "now", volumeBindingMode="Immediate")
    claim = add_claim(admin, "late", "now")
    work(live, lambda: "waits for volume claim late, which has no volume yet" in waits(live))
    add_volume(admin, "disk-b", "b", claim)
    admin.patch(
        f"{OWN_CLAIMS}/late", {"metadata": {"annotations": {BOUND: "yes"}}, "spec": {"volumeName": "disk-b"}}, MERGE
    )
    work(live, lambda: node_of(admin, "early") == "n1")


@pytest.mark.usefixtures("zones")
def test_a_pod_is_not_taken_back_while_its_volume_is_created(kube: KubeWorld, admin: Api) -> None:
    """Cloud disks take longer than the patience; the node is one for which the class creates volumes."""
    live = controller(kube, fifo={})
    live.backend.bind_timeout_s = 3.0  # type: ignore[attr-defined]
    topology = [{"matchLabelExpressions": [{"key": ZONE, "values": ["b"]}]}]
    add_class(admin, "zonal", allowedTopologies=topology)
    claim = add_claim(admin, "data", "zonal")
    admin.post(PODS, with_claim(kube, "slow", "data"))
    work(live, lambda: SELECTED_NODE in (admin.get(f"{OWN_CLAIMS}/data")["metadata"].get("annotations") or {}))
    work_for(live, 5.0)
    assert [item["metadata"]["name"] for item in admin.get(PODS)["items"]] == ["slow"]
    add_volume(admin, "disk-b", "b", claim)
    admin.patch(
        f"{OWN_CLAIMS}/data", {"metadata": {"annotations": {BOUND: "yes"}}, "spec": {"volumeName": "disk-b"}}, MERGE
    )
    work(live, lambda: node_of(admin, "slow") == "n1")
