"""What only Kubernetes has: extended resources, gates, roles, others' pods, and a controller in its own process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plugins.placement.tests.cases import job
from plugins.placement.tests.live.kube_world import KubeWorld
from plugins.placement.tests.live.test_contract import record, until
from tests.kubernetes.apply import apply
from tests.served import serving
from unfold_placement.core.types import Ask, Task
from unfold_placement.kubernetes.backend import KubernetesBackend
from unfold_placement.kubernetes.client import connect_client
from unfold_placement.kubernetes.connection import ClusterAccess
from unfold_placement.kubernetes.manifests import build_deployment, build_roles, build_submitter_role
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Start
from unfold_placement.policies.registry import build_policies
from unfold_placement.schema.policies import PolicySpec
from unfold_placement.verbs.check_cluster import check_cluster
from unfold_placement.workload.build import policy_rules
from unfoldkit.kubernetes.api import MERGE, Api, ApiError

pytestmark = pytest.mark.kubernetes
PODS = "/api/v1/namespaces/unfold/pods"


def node_has(admin: Api, node: str, resource: str) -> dict[str, str | None]:
    """Return a node's amount of an extended resource."""
    status = admin.get(f"/api/v1/nodes/{node}")["status"]
    return {part: status[part].get(resource) for part in ("capacity", "allocatable")}


def soon(holds: Callable[[], bool], most: float = 30.0) -> None:
    """Poll until something holds: the server sends no notice of this."""
    end = time.monotonic() + most
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def other(name: str, asks: dict[str, str], **spec: Any) -> dict[str, Any]:
    """Return a pod of somebody else."""
    container = {"name": "x", "image": "x", "resources": {"requests": asks, "limits": asks}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [container], **spec}}


def node_of(admin: Api, pod: str) -> str:
    """Return where a pod is bound, or nothing."""
    return str(admin.get(f"{PODS}/{pod}")["spec"].get("nodeName", ""))


def test_a_created_extended_resource_starts_waiting_pods(kube: KubeWorld, admin: Api) -> None:
    """A pod that requests a name waits, and is bound to the node on which the name is created; both parts report it."""
    one = kube.handle()
    resource = one.scope.resource("gang a/7")
    admin.post(PODS, other("waits", {resource: "1"}))
    assert node_of(admin, "waits") == ""
    one.create("gang a/7", "n2", 1)
    soon(lambda: node_of(admin, "waits") == "n2")
    assert node_has(admin, "n2", resource) == {"capacity": "1", "allocatable": "1"}
    one.delete("gang a/7", "n2")
    assert node_has(admin, "n2", resource) == {"capacity": None, "allocatable": None}


def test_a_resource_deleted_while_held_matches_nothing_new(kube: KubeWorld, admin: Api) -> None:
    """Its holder goes on; what is left of it goes with the holder."""
    one = kube.handle()
    kube.policies = [Holding()]
    resource = one.scope.resource("held")
    one.lead("me", 60.0)
    one.create("held", "n0", 2)
    kube.submit(job("a", 1, run=3600)[0])
    one.start([Start("a-0", "n0", (Ask("held"),))])
    one.flush()
    soon(lambda: one.informer.is_bound("a-0"))
    one.delete("held", "n0")
    one.flush()
    assert node_has(admin, "n0", resource)["allocatable"] == "1"
    one.withdraw("a-0")
    one.flush()
    assert node_has(admin, "n0", resource)["allocatable"] is None


class Holding:
    """Asks for one name."""

    phase = 0
    watches: frozenset[str] = frozenset()

    def request(self, task: Task) -> list[Ask]:
        return [Ask("held")]

    def react(self, event: object, view: object) -> Iterator[list[Any]]:
        yield from ()


def test_resources_that_a_node_lost_are_restored(kube: KubeWorld, admin: Api) -> None:
    """A kubelet that starts again drops extended resources: the leader sees it and mends it."""
    one = kube.handle()
    one.lead("me", 60.0)
    one.create("x", "n1", 3)
    one.flush()
    resource = one.scope.resource("x")
    none = {"status": {"capacity": {resource: None}, "allocatable": {resource: None}}}
    admin.patch("/api/v1/nodes/n1/status", none, MERGE)
    soon(lambda: bool(one.informer.drifted))
    one.flush()
    assert node_has(admin, "n1", resource) == {"capacity": "3", "allocatable": "3"}


def test_a_gang_that_loses_its_room_is_gated_again_completely(kube: KubeWorld, admin: Api) -> None:
    """Another's pod is in the way of one task: after a while all of the gang wait again, none stays half placed."""
    one = kube.handle()
    one.bind_timeout_s = 1.0
    one.lead("me", 60.0)
    admin.post(PODS, other("thief", {"nvidia.com/gpu": "4"}, nodeName="n1"))
    for task in job("a", 2, run=3600):
        kube.submit(task)
    one.start([Start("a-0", "n0"), Start("a-1", "n1")])
    until(one, lambda: {record(one, f"a-{index}").state for index in range(2)} == {kinds.WAITING})
    one.flush()
    assert [node_of(admin, f"a-{index}-1") for index in range(2)] == ["", ""]


def test_pods_of_other_programs_occupy_capacity(kube: KubeWorld, admin: Api) -> None:
    """The GPUs of a pod that no policy knows are taken off its node, and come back with its end."""
    one = kube.handle()
    admin.post(PODS, other("theirs", {"nvidia.com/gpu": "3"}, nodeName="n0"))
    free = {node.name: node.capacity["gpu"] for node in one.snapshot().nodes if "gpu" in node.capacity}
    soon(lambda: {n.name: n.capacity.get("gpu", 0) for n in one.snapshot().nodes}["n0"] == 1000)
    assert free.keys() == {"n0", "n1", "n2"}
    admin.delete(f"{PODS}/theirs", {"gracePeriodSeconds": 0})
    soon(lambda: {n.name: n.capacity.get("gpu", 0) for n in one.snapshot().nodes}["n0"] == 4000)


def test_a_disrupted_pod_waits_again(kube: KubeWorld, admin: Api) -> None:
    """Drained or evicted: its task is gated again under the same name, as one that was never started."""
    one = kube.handle()
    one.lead("me", 60.0)
    kube.submit(job("a", 1, run=3600)[0])
    one.start([Start("a-0", "n0")])
    one.flush()
    soon(lambda: one.informer.is_bound("a-0"))
    gone = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "drained"}
    admin.patch(f"{PODS}/a-0-0/status", {"status": {"conditions": [gone]}}, MERGE)
    admin.delete(f"{PODS}/a-0-0")
    until(one, lambda: record(one, "a-0").state == kinds.WAITING)
    one.flush()
    assert admin.get(f"{PODS}/a-0-1")["spec"]["schedulingGates"] == [{"name": one.scope.gate}]


def test_roles_permit_what_is_needed_and_no_more(kube: KubeWorld, admin: Api) -> None:
    """The controller may not touch nodes beyond their status; an application makes pods, and reads no node."""
    apply(admin, [build_submitter_role()])
    subject = {"kind": "User", "name": "application", "apiGroup": "rbac.authorization.k8s.io"}
    role = {"kind": "Role", "name": "unfold-submit", "apiGroup": "rbac.authorization.k8s.io"}
    bound = {"metadata": {"name": "unfold-submit", "namespace": "unfold"}, "roleRef": role, "subjects": [subject]}
    apply(admin, [{"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", **bound}])
    one = kube.handle()
    with pytest.raises(ApiError, match="403"):
        one.api.patch("/api/v1/nodes/n0", {"metadata": {"labels": {"x": "y"}}}, MERGE)
    theirs = connect_client(kube.scope, context="application", kubeconfig=str(kube.plane.kubeconfig))
    template = {"spec": {"containers": [{"name": "train", "image": "mine", "env": [{"name": "A", "value": "b"}]}]}}
    assert theirs.submit(replace(job("a", 1)[0], deadline=60.0), template) == "a-0-0"
    until(one, lambda: any(item.task.name == "a-0" for item in one.snapshot().records))
    assert admin.get(f"{PODS}/a-0-0")["spec"]["containers"][0]["image"] == "mine"
    with pytest.raises(ApiError, match="403"):
        theirs.api.get("/api/v1/nodes")
    theirs.withdraw("a-0")
    until(one, lambda: record(one, "a-0").state == kinds.GONE)


def test_the_server_accepts_exported_manifests(kube: KubeWorld, admin: Api) -> None:
    """Roles and Deployment, as exported, pass the server's own validation."""
    apply(
        admin,
        [
            *build_roles("elsewhere"),
            build_submitter_role("elsewhere"),
            *build_deployment("mine", "version: 1\n", "x:1", "elsewhere"),
        ],
    )
    made = admin.get("/apis/apps/v1/namespaces/elsewhere/deployments/unfold-placement-mine")
    assert made["spec"]["replicas"] == 2


SPEC = """
version: 1
kind: placement
name: {name}
cluster: {{kubernetes: {{context: controller, kubeconfig: {config}, namespace: unfold}}, lease: 6 s}}
policy: {{gang: {{by: job}}}}
"""


def test_another_controller_continues_after_a_kill(kube: KubeWorld, admin: Api, tmp_path: Path) -> None:
    """Of two controllers one leads; killed with -9 among gangs, the other adopts, and every gang runs as a whole."""
    eye = kube.handle()
    kube.policies = build_policies(policy_rules(PolicySpec.model_validate({"gang": {"by": "job"}})))
    lease = f"/apis/coordination.k8s.io/v1/namespaces/unfold/leases/{eye.scope.record}"
    with ExitStack() as stack:
        processes = [stack.enter_context(serving(folder(tmp_path, kube, name), "spec.yaml"))[0] for name in ("x", "y")]
        for name in "abcd":
            for task in job(name, 8, run=1.5):
                kube.submit(task)
        until(eye, lambda: any(item.state == kinds.RUNNING for item in eye.snapshot().records))
        led = admin.get(lease)["spec"]
        (leader,) = [item for item in processes if led["holderIdentity"].endswith(f"-{item.pid}")]
        leader.kill()
        until(eye, lambda: {item.state for item in eye.snapshot().records} == {kinds.DONE}, 60.0)
        soon(lambda: not left_over(admin, eye))
        now = admin.get(lease)["spec"]
    assert now["holderIdentity"] != led["holderIdentity"]
    assert now["leaseTransitions"] == led["leaseTransitions"] + 1
    starts = {item.task.name: item for item in eye.snapshot().records}
    for name in "abcd":
        assert len({starts[f"{name}-{index}"].started for index in range(8)}) == 1


def folder(place: Path, kube: KubeWorld, name: str) -> Path:
    """Return a folder with the spec of a controller."""
    made = place / name
    made.mkdir()
    text = SPEC.format(name=kube.scope, config=kube.plane.kubeconfig)
    (made / "spec.yaml").write_text(text, encoding="utf-8")
    return made


def left_over(admin: Api, eye: KubernetesBackend) -> list[str]:
    """Return the names of a scope that nodes still have."""
    nodes = admin.get("/api/v1/nodes")["items"]
    return [name for node in nodes for name in node["status"]["allocatable"] if name.startswith(eye.scope.prefix)]


def test_doctor_asks_for_what_the_shipped_roles_permit(
    kube: KubeWorld, admin: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a real cluster with the roles applied, the controller's account has every permission that is checked."""
    monkeypatch.setattr(ClusterAccess, "connect", lambda _access: replace(admin, namespace="unfold"))
    found = check_cluster()
    assert kube.plane
    assert found["permissions"].ok, found["permissions"]
    assert found["permissions"].message.startswith("system:serviceaccount:unfold:unfold-placement has all")
    assert found["nodes"].message == "3 of 3 nodes ready, nvidia.com/gpu 12"
    assert found["cluster"].ok
