"""What a cluster needs for a controller: its account, what that may do, and the controller as a Deployment."""

from __future__ import annotations

from typing import Any

from unfold_placement.kubernetes import dra
from unfold_placement.kubernetes.codec import Body

ACCOUNT = "unfold-placement"
NAMESPACE = "unfold"
RBAC = "rbac.authorization.k8s.io"
LOOK = ["get", "list", "watch"]


def build_roles(namespace: str = NAMESPACE) -> list[Body]:
    """Return the controller's account and what it may do: no more than the backend uses.

    On the whole cluster it reads nodes and pods (what others hold counts) and patches the status of nodes, where names
    are; in its own namespace it makes, opens and deletes pods, and keeps its books.
    """
    everywhere = [
        _rule([""], ["nodes", "pods"], LOOK),
        _rule([""], ["nodes/status"], ["patch"]),
    ]
    here = [
        _rule([""], ["pods"], [*LOOK, "create", "patch", "delete"]),
        _rule([""], ["configmaps"], ["get", "create", "patch"]),
        _rule(["coordination.k8s.io"], ["leases"], ["get", "list", "create", "update", "patch"]),
    ]
    account = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}
    return [
        _object("v1", "Namespace", namespace),
        _object("v1", "ServiceAccount", ACCOUNT, namespace),
        _object(f"{RBAC}/v1", "ClusterRole", ACCOUNT) | {"rules": everywhere},
        _object(f"{RBAC}/v1", "ClusterRoleBinding", ACCOUNT) | _bound("ClusterRole", account),
        _object(f"{RBAC}/v1", "Role", ACCOUNT, namespace) | {"rules": here},
        _object(f"{RBAC}/v1", "RoleBinding", ACCOUNT, namespace) | _bound("Role", account),
    ]


def build_counter_roles(namespace: str = NAMESPACE) -> list[Body]:
    """Return what names that kube-scheduler counts need (``counters: dra``): a device class, and more for the account.

    On the whole cluster it keeps the slices in which such names are, in its own namespace it makes and deletes claims.
    """
    title = f"{ACCOUNT}-counters"
    everywhere = [
        _rule([dra.GROUP], ["resourceslices"], ["get", "list", "create", "update", "delete"]),
        _rule([dra.GROUP], ["deviceclasses"], ["get"]),
    ]
    here = [_rule([dra.GROUP], ["resourceclaims"], ["get", "list", "create", "delete"])]
    account = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}
    return [
        dra.build_device_class(),
        _object(f"{RBAC}/v1", "ClusterRole", title) | {"rules": everywhere},
        _object(f"{RBAC}/v1", "ClusterRoleBinding", title) | _bound("ClusterRole", account, title),
        _object(f"{RBAC}/v1", "Role", title, namespace) | {"rules": here},
        _object(f"{RBAC}/v1", "RoleBinding", title, namespace) | _bound("Role", account, title),
    ]


def build_submitter_role(namespace: str = NAMESPACE) -> Body:
    """Return the role of an application that submits tasks: it makes pods, and needs nothing else."""
    rules = [_rule([""], ["pods"], [*LOOK, "create", "delete"])]
    return _object(f"{RBAC}/v1", "Role", "unfold-submit", namespace) | {"rules": rules}


def build_deployment(name: str, spec: str, image: str, namespace: str = NAMESPACE) -> list[Body]:
    """Return the spec as a ConfigMap and two controllers that serve it; one of them leads."""
    labels = {"app.kubernetes.io/name": ACCOUNT, "app.kubernetes.io/instance": name}
    title = f"{ACCOUNT}-{name}"
    command = ["unfold", "serve", "/etc/unfold/spec.yaml", "--run", "/tmp/run"]  # noqa: S108 - of the container
    container: dict[str, Any] = {
        "name": "controller",
        "image": image,
        "command": command,
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}},
        "volumeMounts": [{"name": "spec", "mountPath": "/etc/unfold"}, {"name": "run", "mountPath": "/tmp"}],  # noqa: S108
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True},
    }
    pod = {
        "serviceAccountName": ACCOUNT,
        "containers": [container],
        "volumes": [{"name": "spec", "configMap": {"name": title}}, {"name": "run", "emptyDir": {}}],
    }
    template = {"metadata": {"labels": labels}, "spec": pod}
    wanted = {"replicas": 2, "selector": {"matchLabels": labels}, "template": template}
    return [
        _object("v1", "ConfigMap", title, namespace) | {"data": {"spec.yaml": spec}},
        _object("apps/v1", "Deployment", title, namespace) | {"spec": wanted},
    ]


def _object(api: str, kind: str, name: str, namespace: str = "") -> Body:
    meta = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": api, "kind": kind, "metadata": meta}


def _rule(groups: list[str], resources: list[str], verbs: list[str]) -> Body:
    return {"apiGroups": groups, "resources": resources, "verbs": verbs}


def _bound(kind: str, account: Body, role_name: str = ACCOUNT) -> Body:
    role = {"apiGroup": RBAC, "kind": kind, "name": role_name}
    return {"roleRef": role, "subjects": [account]}
