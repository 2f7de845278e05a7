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
from unfold_placement.kubernetes.objects.volumes import (
    BOUND,
    CLAIMS,
    CLASSES,
    CSI_DRIVERS,
    CSI_NODES,
    LATE_BINDING,
    SELECTED_NODE,
    VOLUMES,
)
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


def add_claim(admin: Api, name: str, class_name: str, volume: str = "", mode: str = "ReadWriteOnce") -> Body:
    """Add a claim, bound to a volume where one is named."""
    meta = {"name": name, "annotations": {BOUND: "yes"} if volume else {}}
    spec = {"accessModes": [mode], "storageClassName": class_name}
    spec |= {"resources": {"requests": {"storage": "5Gi"}}, **({"volumeName": volume} if volume else {})}
    body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}
    return admin.post(OWN_CLAIMS, body)


def add_volume(admin: Api, name: str, zones: str, claim: Body) -> None:
    """Add the volume of a claim, which exists in some zones, a letter each."""
    term = {"matchExpressions": [{"key": ZONE, "operator": "In", "values": list(zones)}]}
    spec = {
        "capacity": {"storage": "5Gi"},
        "accessModes": claim["spec"]["accessModes"],
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


def add_driver_limits(admin: Api, limits: dict[str, int]) -> None:
    """Let nodes attach so many volumes of the driver."""
    for node, count in limits.items():
        driver = {"name": "disk.example.org", "nodeID": node, "allocatable": {"count": count}}
        meta = {"name": node}
        body = {"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": meta, "spec": {"drivers": [driver]}}
        admin.post(CSI_NODES, body)


@pytest.fixture
def drivers(admin: Api) -> Iterator[None]:
    """Leave nothing of drivers and their capacities at the end."""
    try:
        yield
    finally:
        for path in (CSI_NODES, CSI_DRIVERS, f"/apis/storage.k8s.io/v1/{SPACE}/csistoragecapacities"):
            for body in admin.get(path)["items"]:
                delete(admin, f"{path}/{body['metadata']['name']}")


@pytest.mark.usefixtures("zones", "drivers")
def test_pods_go_where_their_volumes_can_be_attached(kube: KubeWorld, admin: Api) -> None:
    """The first node was chosen for each, which attaches one volume: all but one were taken back over and over."""
    add_driver_limits(admin, {"n0": 1, "n1": 2, "n2": 1})
    live = controller(kube, fifo={})
    add_class(admin, "disk")
    for index in range(4):
        claim = add_claim(admin, f"data-{index}", "disk", f"disk-{index}")
        add_volume(admin, f"disk-{index}", "abc", claim)
        admin.post(PODS, with_claim(kube, f"p{index}", f"data-{index}"))
    work(live, lambda: all(node_of(admin, f"p{index}") for index in range(4)))
    assert sorted(node_of(admin, f"p{index}") for index in range(4)) == ["n0", "n1", "n1", "n2"]
    add_volume(admin, "disk-4", "abc", add_claim(admin, "data-4", "disk", "disk-4"))
    admin.post(PODS, with_claim(kube, "p4", "data-4"))
    work(live, lambda: "attachable-volumes-csi-disk.example.org" in waits(live))
    delete(admin, f"{PODS}/p0")
    work(live, lambda: bool(node_of(admin, "p4")))


@pytest.mark.usefixtures("zones", "drivers")
def test_a_volume_is_created_where_its_driver_has_room(kube: KubeWorld, admin: Api) -> None:
    """Only the pool of zone c is large enough; until it is, the pod keeps its gate and the status says why."""
    spec = {"storageCapacity": True, "attachRequired": False}
    meta = {"name": "disk.example.org"}
    admin.post(CSI_DRIVERS, {"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": meta, "spec": spec})
    add_class(admin, "pool", provisioner=meta["name"])
    path = f"/apis/storage.k8s.io/v1/{SPACE}/csistoragecapacities"

    def add_capacity(zone: str, size: str) -> None:
        topology = {"matchLabels": {ZONE: zone}}
        body = {"metadata": {"name": f"pool-{zone}"}, "storageClassName": "pool", "capacity": size}
        kind = {"apiVersion": "storage.k8s.io/v1", "kind": "CSIStorageCapacity"}
        admin.post(path, {**kind, **body, "nodeTopology": topology})

    add_capacity("a", "1Gi")
    live = controller(kube, fifo={})
    add_claim(admin, "data", "pool")
    admin.post(PODS, with_claim(kube, "pooled", "data"))
    work(live, lambda: "waits for a volume of class pool for claim data" in waits(live))
    add_capacity("c", "8Gi")
    chosen = f"{OWN_CLAIMS}/data"
    work(live, lambda: (admin.get(chosen)["metadata"].get("annotations") or {}).get(SELECTED_NODE) == "n2")


@pytest.mark.usefixtures("zones")
def test_a_second_pod_waits_for_a_claim_of_one_pod_at_a_time(kube: KubeWorld, admin: Api) -> None:
    """It keeps its gate while the first uses the claim, and starts when that is gone."""
    live = controller(kube, fifo={})
    claim = add_claim(admin, "data", "any", "disk-a", mode="ReadWriteOncePod")
    add_volume(admin, "disk-a", "abc", claim)
    admin.post(PODS, with_claim(kube, "one", "data"))
    work(live, lambda: bool(node_of(admin, "one")))
    admin.post(PODS, with_claim(kube, "two", "data"))
    work(live, lambda: "(ReadWriteOncePod), which pod one uses" in waits(live))
    assert admin.get(f"{PODS}/two")["spec"]["schedulingGates"]
    delete(admin, f"{PODS}/one")
    work(live, lambda: bool(node_of(admin, "two")))


@pytest.mark.usefixtures("zones")
def test_a_gang_cannot_share_a_claim_of_one_pod_at_a_time(kube: KubeWorld, admin: Api) -> None:
    """One of its pods was opened in vain over and over, while the other held its node; now it is set aside, and why."""
    live = controller(kube, fifo={}, gang={})
    add_volume(admin, "disk-a", "abc", add_claim(admin, "data", "any", "disk-a", mode="ReadWriteOncePod"))
    for name in ("g0", "g1"):
        body = with_claim(kube, name, "data", 4)
        body["metadata"]["labels"]["placement.unfoldkit/job"] = "g"
        body["metadata"]["annotations"]["placement.unfoldkit/size"] = "2"
        admin.post(PODS, body)
    reason = "set aside: it needs 2 of volume claim data of one pod at a time, of which there is 1"
    work(live, lambda: reason in waits(live))
    for index in range(3):
        admin.post(PODS, gated(kube, f"other-{index}", 4))
    work(live, lambda: all(node_of(admin, f"other-{index}") for index in range(3)))
    assert all(admin.get(f"{PODS}/{name}")["spec"]["schedulingGates"] for name in ("g0", "g1"))
