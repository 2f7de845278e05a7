"""``unfold doctor --target kubernetes`` on a server that is described here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from unfold_placement.kubernetes.connection import ClusterAccess
from unfold_placement.kubernetes.manifests import build_deployment
from unfold_placement.verbs.check_cluster import check_cluster
from unfoldkit.api import CheckResult, user_error
from unfoldkit.kubernetes.api import ApiError

CONFIG = "/api/v1/namespaces/unfold/configmaps/unfold-placement-train"
POLICY = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolic"


class Server:
    """Answers as an API server: objects by path, and permissions."""

    namespace = "unfold"
    client = SimpleNamespace(configuration=SimpleNamespace(host="https://10.0.0.1"))

    def __init__(self, objects: dict[str, Any], denied: tuple[str, ...] = ()) -> None:
        self.objects, self.denied, self.users = objects, denied, set[str]()

    def get(self, path: str, **_query: str) -> Any:
        if path in self.objects:
            return self.objects[path]
        raise ApiError(404, "NotFound", f"no {path}")

    def call(self, _method: str, path: str, **_options: Any) -> Any:
        return self.get(path)

    def post(self, _path: str, body: Any) -> Any:
        asked = body["spec"]["resourceAttributes"]
        self.users.add(body["spec"].get("user", ""))
        return {"status": {"allowed": f"{asked['verb']} {asked['group']}/{asked['resource']}" not in self.denied}}

    def close(self) -> None:
        """End nothing."""


def node(*, ready: bool, gpus: int, tainted: bool = False) -> dict[str, Any]:
    """Return a node with GPUs."""
    conditions = [{"type": "Ready", "status": "True" if ready else "Unknown"}]
    taints = [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}] if tainted else []
    allocatable = {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": str(gpus), "g.placement.unfoldkit/gang-a": "1"}
    return {"spec": {"taints": taints}, "status": {"conditions": conditions, "allocatable": allocatable}}


def describe_server(version: str = "v1.33.1") -> dict[str, Any]:
    """Return the objects of a cluster with everything."""
    nodes = [node(ready=True, gpus=8), node(ready=True, gpus=4, tainted=True), node(ready=False, gpus=8)]
    deployments = "/apis/apps/v1/namespaces/unfold/deployments"
    return {
        "/version": {"gitVersion": version},
        "/api/v1/nodes": {"items": nodes},
        "/apis": {"groups": [{"name": "apps"}, {"name": "kueue.x-k8s.io"}]},
        "/api/v1/namespaces/unfold/serviceaccounts/unfold-placement": {},
        f"{POLICY}ies/unfold-placement-unfold": {},
        f"{POLICY}ybindings/unfold-placement-unfold": {},
        deployments: {"items": [*deploy("policy: {gang: {}}"), {"spec": {"selector": {}}}]},
        CONFIG: deploy("policy: {gang: {}}", "ConfigMap")[0],
    }


def deploy(spec: str, kind: str = "Deployment") -> list[dict[str, Any]]:
    """Return what is deployed for a spec, of a kind."""
    bodies = build_deployment("train", spec, "unfoldkit:latest")
    return [{**body, "status": {"readyReplicas": 2}} for body in bodies if body["kind"] == kind]


def check(monkeypatch: pytest.MonkeyPatch, server: Server) -> dict[str, CheckResult]:
    """Check a server."""
    monkeypatch.setattr(ClusterAccess, "connect", lambda _access: server)
    return dict(check_cluster())


def test_a_cluster_with_everything_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(describe_server())
    found = check(monkeypatch, server)
    assert all(item.ok for item in found.values()), found
    assert server.users == {"system:serviceaccount:unfold:unfold-placement"}
    assert found["cluster"].message == "Kubernetes v1.33.1 at https://10.0.0.1"
    assert found["nodes"].message == "2 of 3 nodes ready, nvidia.com/gpu 12, 1 with taints"
    assert found["workloads"].message == "Job, Deployment and pods, Kueue; not installed: JobSet, KubeRay"
    assert found["controller"].message == "unfold-placement-train: 2 replicas ready"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the account, the permissions of the caller count."""
    objects = describe_server()
    del objects["/api/v1/namespaces/unfold/serviceaccounts/unfold-placement"]
    del objects[f"{POLICY}ybindings/unfold-placement-unfold"]
    objects["/api/v1/nodes"]["items"] = [node(ready=False, gpus=8)]
    objects["/apis/apps/v1/namespaces/unfold/deployments"]["items"][0]["status"] = {}
    server = Server(objects, denied=("patch batch/jobs", "watch /nodes"))
    found = check(monkeypatch, server)
    assert server.users == {""}
    assert {name for name, item in found.items() if not item.ok} == {"permissions", "nodes", "gate guard", "controller"}
    assert found["permissions"].message == "this identity may not watch nodes, patch jobs in unfold"
    assert found["permissions"].hint.startswith("unfold plan SPEC --format kubernetes")
    assert "no ValidatingAdmissionPolicyBinding unfold-placement-unfold" in found["gate guard"].message
    assert found["controller"].message == "unfold-placement-train: 0 replicas ready"


@pytest.mark.parametrize(
    ("setting", "denied", "missing"),
    [
        ("counters: dra", "delete resource.k8s.io/resourceclaims", "delete resourceclaims in unfold"),
        ("kueue: true", "patch kueue.x-k8s.io/workloads", "patch workloads/status"),
        ("kueue: true", "patch /pods", ""),
        ("counters: gates", "delete resource.k8s.io/resourceclaims", ""),
    ],
)
def test_the_permissions_are_those_of_the_deployed_spec(
    setting: str, denied: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counters and admission checks need others than a controller that places pods; the latter need no gate guard."""
    objects = describe_server()
    objects[CONFIG] = deploy(f"cluster: {{kubernetes: {{{setting}}}}}", "ConfigMap")[0]
    for name in (f"{POLICY}ies/unfold-placement-unfold", f"{POLICY}ybindings/unfold-placement-unfold"):
        del objects[name]
    found = check(monkeypatch, Server(objects, denied=(denied,)))
    assert found["permissions"].ok == (not missing)
    assert found["permissions"].message.endswith(f"may not {missing}" if missing else "that a controller needs")
    assert found["gate guard"].ok == (setting == "kueue: true")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", ":1:1: the file is empty"),
        ("cluster: {kubernetes: }", ""),
        ("cluster: {kubernetes: train}", 'its spec has "train" instead of the mapping cluster.kubernetes'),
        ("cluster: [kubernetes]", 'its spec has ["kubernetes"] instead of the mapping cluster.kubernetes'),
        ("just words", 'its spec has "just words" instead of the mapping cluster.kubernetes'),
        ("cluster: {kubernetes: [", ":2:1: "),
    ],
)
def test_a_spec_that_was_edited_by_hand_is_named(spec: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself ended with an AttributeError, or sent the user to ``kubectl cluster-info``."""
    objects = describe_server()
    objects[CONFIG] = {"data": {"spec.yaml": spec}}
    found = check(monkeypatch, Server(objects))
    assert found["permissions"].ok == found["gate guard"].ok == (not message)
    assert found["controller"].ok
    if message:
        assert found["permissions"].message.startswith("ConfigMap unfold-placement-train:")
        assert message in found["permissions"].message
        assert found["permissions"].hint == "kubectl -n unfold edit configmap unfold-placement-train"


@pytest.mark.parametrize("version", ["v1.29.14", "v1.27.3-eks-a5565ad", "unknown"])
def test_an_old_cluster_is_not_checked_further(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    found = check(monkeypatch, Server(describe_server(version)))
    assert list(found) == ["cluster"]
    assert not found["cluster"].ok
    assert found["cluster"].hint == "1.30 or later is needed"


def test_a_server_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Server):
        def call(self, _method: str, path: str, **_options: Any) -> Any:
            raise user_error(f"https://10.0.0.1 did not answer GET {path}: timed out", key="cluster.kubernetes")

    found = check(monkeypatch, Silent({}))
    assert found == {
        "cluster": CheckResult(
            ok=False,
            message="https://10.0.0.1 did not answer GET /version: timed out",
            hint="kubectl cluster-info shows whether the server responds",
        )
    }
