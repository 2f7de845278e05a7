"""The shipped manifests on a real apiserver: the restricted level of pod security, and who may open a gate."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from plugins.placement.tests.live.kube_world import KubeWorld
from plugins.placement.tests.live.test_kubernetes import other, soon
from tests.kubernetes.apply import PLURALS, apply
from tests.support import ROOT
from unfold_placement.kubernetes.manifests import build_deployment, build_gate_guard, build_roles
from unfold_placement.kubernetes.objects.codec import DOMAIN
from unfold_placement.kubernetes.objects.pods import POLICY
from unfoldkit.kubernetes.api import MERGE, Api, ApiError, connect_api

pytestmark = pytest.mark.kubernetes
GUARDS = "/apis/admissionregistration.k8s.io/v1"
PODS = "/api/v1/namespaces/unfold/pods"


def test_controllers_pass_the_restricted_level(kube: KubeWorld, admin: Api) -> None:
    """A namespace that enforces the restricted level takes the controller's pod; a plain pod is refused there."""
    assert kube.scope
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "locked", "labels": labels}}
    apply(admin, [space, *build_roles("locked")])
    documents = build_deployment("mine", "version: 1\n", "x:1", "locked")
    apply(admin, documents)
    template = next(item for item in documents if item["kind"] == "Deployment")["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "c"}, "spec": template["spec"]}
    created = admin.post("/api/v1/namespaces/locked/pods", pod)
    assert created["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
    with pytest.raises(ApiError, match="violates PodSecurity"):
        admin.post("/api/v1/namespaces/locked/pods", other("plain", {"cpu": "1"}))
    budgets = admin.get("/apis/policy/v1/namespaces/locked/poddisruptionbudgets")["items"]
    assert [item["spec"]["minAvailable"] for item in budgets] == [1]
    admin.delete("/api/v1/namespaces/locked/pods/c", {"gracePeriodSeconds": 0})


def test_the_ingress_of_a_service_is_accepted(kube: KubeWorld, admin: Api) -> None:
    """The apiserver stores base and Ingress as they are written; their backends are ports of the service."""
    assert kube.scope
    documents = list(read_manifests("kustomize", "ingress"))
    # the world has this namespace already
    apply(admin, documents)
    root = "/apis/networking.k8s.io/v1/namespaces/unfold"
    stored = {item["metadata"]["name"]: item for item in admin.get(f"{root}/ingresses")["items"]}
    written = {item["metadata"]["name"]: item for item in documents if item["kind"] == "Ingress"}
    assert {name: item["spec"] for name, item in stored.items()} == {
        name: item["spec"] for name, item in written.items()
    }
    ports = {port["name"] for port in admin.get("/api/v1/namespaces/unfold/services/unfold-serve")["spec"]["ports"]}
    backends = [path["backend"] for item in stored.values() for path in item["spec"]["rules"][0]["http"]["paths"]]
    assert {backend["service"]["port"]["name"] for backend in backends} == ports
    assert len(admin.get(f"{root}/networkpolicies")["items"]) == 2
    for document in documents:
        if document["kind"] != "Namespace":
            group, _, version = document["apiVersion"].rpartition("/")
            plural, name = PLURALS[document["kind"]], document["metadata"]["name"]
            admin.delete(f"{f'/apis/{group}' if group else '/api'}/{version}/namespaces/unfold/{plural}/{name}")


def read_manifests(*folders: str) -> Iterator[Any]:
    """Yield the documents of the shipped folders; labels and selectors are what kustomize would add."""
    labels = {"app.kubernetes.io/name": "unfold-serve"}
    for folder in folders:
        for path in sorted((ROOT / "deploy" / folder).glob("*.yaml")):
            document = yaml.safe_load(path.read_text("utf-8"))
            if document["kind"] == "Deployment":
                document["spec"]["selector"] = {"matchLabels": labels}
                document["spec"]["template"]["metadata"] = {"labels": labels}
            if document["kind"] != "Kustomization":
                yield document


@contextlib.contextmanager
def guarded(admin: Api) -> Iterator[None]:
    """Guard the gates of the namespace until the end of the block."""
    documents = build_gate_guard()
    apply(admin, documents)
    try:
        yield
    finally:
        for document, plural in zip(documents, ("policies", "policybindings"), strict=True):
            admin.delete(f"{GUARDS}/validatingadmission{plural}/{document['metadata']['name']}")


def test_only_the_controller_removes_a_gate(kube: KubeWorld, admin: Api) -> None:
    """Even an administrator cannot open a gate or drop the label; the controller can; other changes are free."""
    controller = connect_api("controller", kubeconfig=str(kube.plane.kubeconfig), namespace="unfold")
    with guarded(admin):
        for name in ("probe", "guarded"):
            pod = other(name, {"cpu": "1"}, schedulingGates=[{"name": f"{DOMAIN}/none"}])
            pod["metadata"]["labels"] = {POLICY: "none"}
            admin.post(PODS, pod)
        # the server compiles a policy some time after it was created
        soon(lambda: is_denied(admin, "probe"))
        opened = [{"op": "remove", "path": "/spec/schedulingGates"}]
        with pytest.raises(ApiError, match="only the placement controller removes its scheduling gate"):
            admin.patch(f"{PODS}/guarded", opened)
        with pytest.raises(ApiError, match="cannot be changed"):
            admin.patch(f"{PODS}/guarded", {"metadata": {"labels": {POLICY: None}}}, MERGE)
        admin.patch(f"{PODS}/guarded", {"metadata": {"labels": {"a": "b"}}}, MERGE)
        assert "schedulingGates" not in controller.patch(f"{PODS}/guarded", opened)["spec"]


def is_denied(admin: Api, name: str) -> bool:
    """Return whether the server denies another policy's label on a pod."""
    try:
        admin.patch(f"{PODS}/{name}", {"metadata": {"labels": {POLICY: f"x{time.monotonic_ns()}"}}}, MERGE)
    except ApiError:
        return True
    return False
