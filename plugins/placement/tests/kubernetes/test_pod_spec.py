"""What a pod needs of a node, as kube-scheduler would add it up and filter: needs no cluster."""

from __future__ import annotations

from typing import Any

import pytest

from unfold_placement.core.types import Node
from unfold_placement.kubernetes.codec import Body, Scope, decode_node
from unfold_placement.kubernetes.pod_spec import (
    BOUND,
    CLAIMS,
    CLASSES,
    REQUIRED,
    SELECTED_NODE,
    VOLUMES,
    Volumes,
    decode_task,
    pod_demand,
    pod_filter,
    repelling_filter,
)
from unfold_placement.kubernetes.workloads import Group
from unfold_placement.policies.affinity.node_filter import HostPort, decode_filter

SCOPE = Scope("mine", "unfold")
GPU_TAINT = ("nvidia.com/gpu", "present", "NoSchedule")


def pod(**spec: Any) -> Body:
    """Return a pod of another program."""
    meta = {"name": "p", "namespace": "unfold", "labels": {"app": "x"}, "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"metadata": meta, "spec": {"containers": [{"name": "c"}], **spec}}


def asks(cpu: str, **more: Any) -> Body:
    """Return a container that requests so many cores."""
    return {"name": "c", "resources": {"requests": {"cpu": cpu}}, **more}


@pytest.mark.kubernetes
@pytest.mark.parametrize(
    ("spec", "cpu"),
    [
        ({"containers": [asks("1"), asks("500m")]}, 1500),
        ({"containers": [asks("1")], "initContainers": [asks("3")]}, 3000),
        ({"containers": [asks("1")], "initContainers": [asks("3", restartPolicy="Always")]}, 4000),
        ({"containers": [asks("1")], "initContainers": [asks("1", restartPolicy="Always"), asks("3")]}, 4000),
        ({"containers": [asks("1")], "initContainers": [asks("3"), asks("1", restartPolicy="Always")]}, 3000),
        ({"containers": [asks("1")], "overhead": {"cpu": "250m"}}, 1250),
        ({"containers": [asks("1")], "resources": {"requests": {"cpu": "2"}}, "overhead": {"cpu": "1"}}, 3000),
        ({"containers": [{"name": "c", "resources": {"limits": {"cpu": "2"}}}]}, 2000),
        ({"containers": [asks("1n")]}, 1),
    ],
)
def test_demand_counts_init_containers_sidecars_and_overhead(spec: Body, cpu: int) -> None:
    """An init container runs beside the sidecars before it, sidecars beside the containers; overhead comes on top."""
    assert pod_demand(pod(**spec), SCOPE)["cpu"] == cpu


def sizes(allocated: str, actual: str, reason: str = "") -> Body:
    """Return the status of a pod of which the container ``c`` is being resized."""
    container = {"name": "c", "allocatedResources": {"cpu": allocated}, "resources": {"requests": {"cpu": actual}}}
    pending = {"type": "PodResizePending", "status": "True", "reason": reason}
    return {"containerStatuses": [container], "conditions": [pending] if reason else []}


@pytest.mark.kubernetes
@pytest.mark.parametrize(
    ("status", "cpu"),
    [
        ({}, 2000), (sizes("2", "2"), 2000), (sizes("2", "5"), 5000), (sizes("4", "1"), 4000),
        (sizes("1", "1", "Deferred"), 2000), (sizes("1", "1", "Infeasible"), 1000), ({"containerStatuses": None}, 2000),
    ],
    ids=["new", "done", "shrinking", "granted", "growing", "impossible", "null"],
)  # fmt: skip
def test_demand_counts_what_a_resized_container_still_holds(status: Body, cpu: int) -> None:
    """A smaller request counted at once, so that gates opened for room which kube-scheduler still counts as used."""
    assert pod_demand({**pod(containers=[asks("2")]), "status": status}, SCOPE)["cpu"] == cpu


def selects(node: Node, **spec: Any) -> bool:
    """Return whether a pod accepts a node by its fields."""
    node_filter = decode_filter(pod_filter(pod(**spec), SCOPE))
    return node_filter.selects(node) and node_filter.tolerates(node)


def affinity(*terms: Body) -> Body:
    """Return a required node affinity."""
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}}


def expression(key: str, operator: str, *values: str) -> Body:
    """Return a term of one expression."""
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


@pytest.mark.parametrize(
    ("spec", "accepts"),
    [
        ({}, True),
        ({"nodeSelector": {"disk": "ssd"}}, True),
        ({"nodeSelector": {"disk": "ssd", "zone": "b"}}, False),
        ({"affinity": affinity(expression("zone", "In", "b", "a"))}, True),
        ({"affinity": affinity(expression("zone", "NotIn", "a"))}, False),
        ({"affinity": affinity(expression("rack", "NotIn", "r1"))}, True),
        ({"affinity": affinity(expression("rack", "Exists"), expression("zone", "Exists"))}, True),
        ({"affinity": affinity(expression("disk", "DoesNotExist"))}, False),
        ({"affinity": affinity(expression("gpus", "Gt", "7"))}, True),
        ({"affinity": affinity(expression("gpus", "Lt", "8"))}, False),
        ({"affinity": affinity(expression("disk", "Gt", "1"))}, False),
        ({"affinity": affinity({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]})}, True),
        ({"affinity": affinity({})}, False),
        ({"nodeSelector": {"disk": "ssd"}, "affinity": affinity(expression("zone", "In", "b"))}, False),
    ],
)
def test_selector_and_affinity(spec: Body, accepts: bool) -> None:
    """The selector and one term of the affinity must hold; an empty term matches nothing."""
    assert selects(Node("n", {}, {"disk": "ssd", "zone": "a", "gpus": "8"}), **spec) is accepts


@pytest.mark.parametrize(
    ("toleration", "accepts"),
    [
        (None, False),
        ({"operator": "Exists"}, True),
        ({"key": "nvidia.com/gpu", "operator": "Exists"}, True),
        ({"key": "nvidia.com/gpu", "value": "present"}, True),
        ({"key": "nvidia.com/gpu", "value": "absent"}, False),
        ({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "nvidia.com/gpu", "operator": "Equal", "value": "present", "effect": "NoSchedule"}, True),
        ({"key": "other", "operator": "Exists"}, False),
    ],
)
def test_tolerations(toleration: Body | None, accepts: bool) -> None:
    """A tainted node is a node of the pods that tolerate its taint; a preference keeps none away."""
    node = Node("n", {}, {}, taints=(GPU_TAINT, ("soft", "", "PreferNoSchedule")))
    assert selects(node, tolerations=[toleration] if toleration else []) is accepts


def test_a_cordoned_node_has_a_taint() -> None:
    """Its tasks go on, and no other starts there, as kube-scheduler sees it."""
    body = {"metadata": {"name": "n"}, "spec": {"unschedulable": True, "taints": [{"key": "a", "effect": "NoExecute"}]}}
    node = decode_node(body, SCOPE, {})
    assert node.taints == (("a", "", "NoExecute"), ("node.kubernetes.io/unschedulable", "", "NoSchedule"))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"resourceClaims": [{"name": "gpu"}]}, "resource claim gpu"),
        (
            {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{}]}}},
            "affinity to other pods",
        ),
        ({"schedulingGroup": {"podGroupName": "x"}}, "PodGroup"),
    ],
)
def test_fields_that_no_policy_sees_are_named(spec: Body, reason: str) -> None:
    """A pod with such a field is set aside with the reason rather than placed wrongly."""
    assert reason in decode_filter(pod_filter(pod(**spec), SCOPE)).unsupported


def test_anti_affinity_that_names_the_own_namespace_is_read() -> None:
    """It is that of a pod without namespaces."""
    term = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}}
    body = pod(affinity={"podAntiAffinity": {REQUIRED: [{**term, "namespaces": ["team"]}]}})
    body["metadata"]["namespace"] = "team"
    found = decode_filter(pod_filter(body, SCOPE))
    assert (found.unsupported, [limit.key for limit in found.limits]) == ("", ["zone"])


def test_ports_of_the_node_are_those_of_containers_and_sidecars() -> None:
    """An init container's are not; every address is none."""
    ports = [{"containerPort": 80, "hostPort": 80, "hostIP": "0.0.0.0"}, {"containerPort": 81}]  # noqa: S104
    sidecar = {"name": "s", "restartPolicy": "Always", "ports": [{"hostPort": 53, "protocol": "UDP"}]}
    before = {"name": "i", "ports": [{"hostPort": 99}]}
    found = decode_filter(pod_filter(pod(containers=[{"ports": ports}], initContainers=[sidecar, before]), SCOPE))
    assert found.ports == (HostPort("UDP", 53), HostPort("TCP", 80))


@pytest.mark.parametrize(
    ("namespace", "term", "repels"),
    [
        (SCOPE.namespace, {}, True),
        ("other", {}, False),
        ("other", {"namespaces": [SCOPE.namespace]}, True),
        ("other", {"namespaceSelector": {}}, True),
        (SCOPE.namespace, {"namespaces": ["other"]}, False),
    ],
)
def test_the_anti_affinity_of_other_pods_concerns_their_namespaces(namespace: str, term: Body, repels: bool) -> None:
    """That of a pod of another namespace only where it names the policy's."""
    rule = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}, **term}
    body = pod(affinity={"podAntiAffinity": {REQUIRED: [rule]}})
    body["metadata"]["namespace"] = namespace
    assert bool(repelling_filter(body, SCOPE)) == repels


def test_a_foreign_pod_becomes_a_task_of_its_group() -> None:
    """Priority comes from its class, job and size from its owner, the arrival from the owner's creation."""
    body = pod(priority=500)
    body["metadata"]["annotations"] = {"placement.unfoldkit/size": "7"}
    assert (decode_task(body, SCOPE, 0.0).size, decode_task(body, SCOPE, 0.0).priority) == (7, 500)
    task = decode_task(body, SCOPE, 100.0, Group("job/j", 4, "worker", created_s=150.0))
    assert (task.job, task.size, task.role, task.arrival) == ("job/j", 4, "worker", 50.0)
    assert (task.preempts, decode_task(pod(preemptionPolicy="Never"), SCOPE, 0.0).preempts) == (True, False)


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
