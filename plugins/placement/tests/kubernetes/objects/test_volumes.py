"""The nodes that a pod's volume claims allow: needs no cluster."""

from __future__ import annotations

from typing import Any

import pytest

from plugins.placement.tests.kubernetes.objects.test_requests import SCOPE, pod
from unfold_placement.core.types import Node
from unfold_placement.kubernetes.objects.codec import Body
from unfold_placement.kubernetes.objects.node_rules import pod_filter
from unfold_placement.kubernetes.objects.volumes import (
    BOUND,
    CAPACITIES,
    CLAIMS,
    CLASSES,
    CSI_DRIVERS,
    CSI_NODES,
    SELECTED_NODE,
    VOLUMES,
    Volumes,
)
from unfold_placement.policies.affinity.node_filter import decode_filter

NODES = {zone: Node(f"n-{zone}", {}, {"zone": zone}) for zone in "abc"}


def claim(notes: Body | None = None, **spec: Any) -> Body:
    """Return a volume claim of five gibibytes."""
    stated = {"storageClassName": "late", "accessModes": ["ReadWriteOnce"], **spec}
    meta = {"name": "data", "namespace": "unfold", "uid": "u", "annotations": notes}
    return {"metadata": meta, "spec": {**stated, "resources": {"requests": {"storage": "5Gi"}}}}


def volume(name: str, zone: str = "", **spec: Any) -> Body:
    """Return an available volume of ten gibibytes, in a zone or in all of them."""
    term = {"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]}
    places = {"nodeAffinity": {"required": {"nodeSelectorTerms": [term]}}} if zone else {}
    stated = {"capacity": {"storage": "10Gi"}, "storageClassName": "late", "accessModes": ["ReadWriteOnce"], **spec}
    return {"metadata": {"name": name}, "spec": {**places, **stated}, "status": {"phase": "Available"}}


def storage_class(name: str, **more: Any) -> Body:
    """Return a storage class that binds when a pod has its node."""
    return {"metadata": {"name": name}, "volumeBindingMode": "WaitForFirstConsumer", **more}


CREATING = {"provisioner": "example.org/disk"}
IN_B = {"allowedTopologies": [{"matchLabelExpressions": [{"key": "zone", "values": ["b"]}]}]}


@pytest.mark.kubernetes
@pytest.mark.parametrize(
    ("claims", "volumes", "late", "reached", "awaits"),
    [
        ([], [], {}, "", "volume claim data, which does not exist"),
        ([claim({BOUND: "yes"}, volumeName="v")], [volume("v", "c")], {}, "c", ""),
        ([claim({BOUND: "yes"}, volumeName="v")], [volume("v")], {}, "abc", ""),
        ([claim({BOUND: "yes"}, volumeName="v")], [], {}, "", "volume v of claim data, which does not exist"),
        ([claim(volumeName="v")], [volume("v", "c")], CREATING, "", "volume claim data, which has no volume yet"),
        ([claim(storageClassName="now")], [], {}, "", "volume claim data, which has no volume yet"),
        ([claim()], [volume("v", "a"), volume("w", "c")], {}, "ac", ""),
        ([claim()], [volume("v", "a", capacity={"storage": "1Gi"})], {}, "", "a volume of class late for claim data"),
        ([claim()], [volume("v", "a", claimRef={"namespace": "x", "name": "y"})], CREATING, "abc", ""),
        ([claim()], [volume("v", "a", claimRef={"namespace": "unfold", "name": "data"})], {}, "a", ""),
        ([claim()], [volume("v", "a", accessModes=["ReadOnlyMany"])], {**CREATING, **IN_B}, "b", ""),
        ([claim()], [volume("v", "a")], {**CREATING, **IN_B}, "ab", ""),
        ([claim()], [volume("v", "a")], {"provisioner": "kubernetes.io/no-provisioner"}, "a", ""),
        ([claim({SELECTED_NODE: "n-b"})], [volume("v", "a")], CREATING, "b", ""),
        ([claim(selector={"matchLabels": {"x": "y"}})], [volume("v", "a")], {}, "", "a volume of class late for claim"),
    ],
)  # fmt: skip
def test_volumes_decide_where_a_pod_may_go(
    claims: list[Body], volumes: list[Body], late: Body, reached: str, awaits: str
) -> None:
    """As kube-scheduler's filter VolumeBinding: bound volumes, those that may be bound, and those that are created."""
    classes = [storage_class("late", **late), {**storage_class("now", **CREATING), "volumeBindingMode": "Immediate"}]
    lists = {CLAIMS: claims, VOLUMES: volumes, CLASSES: classes}
    known = Volumes({path: {body["metadata"]["name"]: body for body in bodies} for path, bodies in lists.items()})
    asking = pod(volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}, {"name": "e", "emptyDir": {}}])
    found = decode_filter(pod_filter(asking, SCOPE, known))
    assert "".join(zone for zone, node in NODES.items() if found.accepts(node)) == reached
    assert found.awaits.startswith(awaits)
    assert bool(found.awaits) is bool(awaits)


def test_volumes_that_may_not_be_read_restrict_nothing() -> None:
    """The account of an earlier installation has no right to list them: kube-scheduler alone decides then."""
    asking = pod(volumes=[{"name": "v", "ephemeral": {}}])
    assert decode_filter(pod_filter(asking, SCOPE, Volumes({CLAIMS: {}}))).awaits == ""
    found = decode_filter(pod_filter(asking, SCOPE, Volumes({CLAIMS: {}, VOLUMES: {}, CLASSES: {}})))
    assert found.awaits == "volume claim p-v, which does not exist"


def capacity(zone: str, size: str, **more: Any) -> Body:
    """Return what the driver of the class ``late`` can create in a zone."""
    meta = {"name": f"c-{zone}"}
    return {
        "metadata": meta,
        "storageClassName": "late",
        "nodeTopology": {"matchLabels": {"zone": zone}},
        "capacity": size,
        **more,
    }


@pytest.mark.kubernetes
@pytest.mark.parametrize(
    ("reports", "capacities", "late", "reached"),
    [
        (True, [capacity("a", "4Gi"), capacity("b", "6Gi")], {}, "b"),
        (True, [capacity("a", "9Gi", maximumVolumeSize="1Gi"), capacity("c", "9Gi")], {}, "c"),
        (True, [capacity("a", "9Gi"), capacity("b", "9Gi")], IN_B, "b"),
        (True, [capacity("a", "9Gi", nodeTopology={})], {}, "abc"),
        (True, [capacity("a", "9Gi", nodeTopology=None)], {}, ""),
        (True, [capacity("a", "9Gi", storageClassName="other")], {}, ""),
        (True, [], {}, ""),
        (False, [], {}, "abc"),
    ],
)
def test_volumes_are_created_where_storage_suffices(
    reports: bool, capacities: list[Body], late: Body, reached: str
) -> None:
    """As kube-scheduler's filter: a pod was opened for zones whose pool has too little left, over and over."""
    known = Volumes()
    driver = {"metadata": {"name": CREATING["provisioner"]}, "spec": {"storageCapacity": reports}}
    for path, bodies in {
        CLAIMS: [claim()],
        VOLUMES: [volume("v", "a", claimRef={"namespace": "x", "name": "y"})],
        CLASSES: [storage_class("late", **CREATING, **late)],
        CSI_DRIVERS: [driver],
        CAPACITIES: capacities,
    }.items():
        assert known.list_missing(path, set()) == []
        for body in bodies:
            known.put(path, body, is_gone=False)
    asking = pod(volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}])
    found = decode_filter(pod_filter(asking, SCOPE, known))
    assert "".join(zone for zone, node in NODES.items() if found.accepts(node)) == reached
    assert bool(found.awaits) is not bool(reached)


@pytest.mark.kubernetes
def test_a_claim_of_one_pod_at_a_time_keeps_others_waiting() -> None:
    """kube-scheduler finds no node for a second pod until the first has ended."""
    lists = {CLAIMS: [claim({BOUND: "yes"}, volumeName="v", accessModes=["ReadWriteOncePod"])], VOLUMES: [volume("v")]}
    known = Volumes({path: {body["metadata"]["name"]: body for body in found} for path, found in lists.items()})
    known.list_missing(CLASSES, set())
    asking = pod(volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}])
    other = {**asking, "metadata": {**asking["metadata"], "name": "q"}}
    assert known.follow_user(asking, is_open=True)
    assert not known.follow_user(asking, is_open=True)
    assert decode_filter(pod_filter(asking, SCOPE, known)).awaits == ""
    awaits = "volume claim data (ReadWriteOncePod), which pod p uses"
    assert decode_filter(pod_filter(other, SCOPE, known)).awaits == awaits
    known.follow_user(asking, is_open=False)
    assert decode_filter(pod_filter(other, SCOPE, known)).awaits == ""


@pytest.mark.kubernetes
@pytest.mark.parametrize(
    ("mode", "limit", "counted"),
    [("ReadWriteOnce", 2, 2000), ("ReadWriteOncePod", 2, 2000), ("ReadWriteMany", 2, 0), ("ReadWriteOnce", None, 0)],
)
def test_attached_volumes_are_counted_where_nodes_limit_them(mode: str, limit: int | None, counted: int) -> None:
    """One volume that exists, and one that the driver of its class creates; those that pods share are not counted."""
    known = Volumes()
    driver = {"name": "example.org/disk", "nodeID": "x", "allocatable": {"count": limit} if limit else None}
    bound = claim(accessModes=[mode])
    created = {**bound, "metadata": {**bound["metadata"], "name": "more"}}
    csi = {"driver": "example.org/disk", "volumeHandle": "h"}
    owner = {"namespace": "unfold", "name": "data"}
    known.put(CSI_NODES, {"metadata": {"name": "n0"}, "spec": {"drivers": [driver]}}, is_gone=False)
    known.put(VOLUMES, volume("v", csi=csi, claimRef=owner, accessModes=[mode]), is_gone=False)
    known.put(CLASSES, storage_class("late", **CREATING), is_gone=False)
    for body in (bound, created):
        known.put(CLAIMS, body, is_gone=False)
    names = [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in ("data", "more")]
    kind = "attachable-volumes-csi-example.org/disk"
    assert known.attachments(pod(volumes=names)).get(kind, 0) == counted
    assert (known.attachable("n0", {}).get(kind, 0), known.attachable("n1", {}).get(kind, 0) > 2000) == (
        (2000, True) if limit else (0, False)
    )
