"""The nodes that a pod's fields allow, as kube-scheduler would filter them: needs no cluster."""

from __future__ import annotations

from typing import Any

import pytest

from plugins.placement.tests.kubernetes.objects.test_requests import SCOPE, pod
from unfold_placement.core.types import Node
from unfold_placement.kubernetes.objects.codec import REQUIRED, Body, decode_node
from unfold_placement.kubernetes.objects.node_rules import pod_filter, repelling_filter
from unfold_placement.policies.affinity.node_filter import HostPort, decode_filter

GPU_TAINT = ("nvidia.com/gpu", "present", "NoSchedule")


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
