"""Manifests for a controller: its account, permissions and Deployment, and their export from a plan."""

from __future__ import annotations

import hashlib
from typing import Any

from unfold_placement.kubernetes.objects import dra
from unfold_placement.kubernetes.objects.codec import DOMAIN, DRA, HOSTNAME, Body, annotation_key
from unfold_placement.kubernetes.objects.pods import POLICY
from unfoldkit.api import Report, user_error
from unfoldkit.io.yaml12 import to_yaml

ACCOUNT = "unfold-placement"
NAMESPACE = "unfold"
RBAC = "rbac.authorization.k8s.io"
READ_VERBS = ["get", "list", "watch"]
REPLICAS = 2
PORT = 8080
USER_ID = 65532
"""A user without a name or rights on the node, as in images without a distribution."""

STORAGE = ["storageclasses", "csinodes", "csidrivers", "csistoragecapacities"]
"""What says where volumes may be created, and how many a node may attach."""


def build_roles(namespace: str = NAMESPACE) -> list[Body]:
    """Build the controller's account and the permissions that the backend uses.

    In the whole cluster it reads nodes and pods, since pods of other programs occupy capacity, volumes, storage classes
    and CSI drivers, since a volume may be in one zone and nodes attach only so many, and patches the status of nodes,
    which lists ephemeral resources. In its namespace it creates, opens, evicts and deletes pods, resumes and suspends
    workloads, and keeps records.
    """
    cluster_rules = [
        _rule([""], ["nodes", "pods"], READ_VERBS),
        _rule([""], ["nodes/status"], ["patch"]),
        _rule([""], ["persistentvolumes"], ["list", "watch"]),
        _rule(["storage.k8s.io"], STORAGE, ["list", "watch"]),
    ]
    namespace_rules = [
        _rule([""], ["persistentvolumeclaims"], ["list", "watch"]),
        _rule([""], ["pods"], [*READ_VERBS, "create", "patch", "delete"]),
        _rule([""], ["pods/eviction"], ["create"]),
        _rule(["batch"], ["jobs"], [*READ_VERBS, "patch"]),
        _rule(["jobset.x-k8s.io"], ["jobsets"], [*READ_VERBS, "patch"]),
        _rule(["apps"], ["replicasets"], ["get"]),
        _rule(["ray.io"], ["rayclusters", "rayjobs"], [*READ_VERBS, "patch"]),
        _rule([""], ["configmaps"], ["get", "create", "patch"]),
        _rule(["coordination.k8s.io"], ["leases"], ["get", "list", "create", "update", "patch"]),
    ]
    return [
        _object("v1", "Namespace", namespace),
        _object("v1", "ServiceAccount", ACCOUNT, namespace),
        *_bind_rules(ACCOUNT, namespace, cluster_rules, namespace_rules),
    ]


def build_counter_roles(namespace: str = NAMESPACE) -> list[Body]:
    """Build what ``counters: dra`` needs: the device class, and permissions for slices and claims."""
    cluster_rules = [
        _rule([dra.GROUP], ["resourceslices"], ["get", "list", "create", "update", "delete"]),
        _rule([dra.GROUP], ["deviceclasses"], ["get"]),
    ]
    namespace_rules = [_rule([dra.GROUP], ["resourceclaims"], ["get", "list", "create", "delete"])]
    bindings = _bind_rules(f"{ACCOUNT}-counters", namespace, cluster_rules, namespace_rules)
    return [dra.build_device_class(), *bindings]


def build_check_roles(namespace: str = NAMESPACE) -> list[Body]:
    """Build the account and the permissions of a controller that answers Kueue's admission checks.

    It reads nodes, pods, flavors, checks and workloads, and writes nothing but the status of workloads and checks, and
    its Lease. It replaces ``build_roles``: it neither creates, changes nor deletes any pod.
    """
    kueue = ["kueue.x-k8s.io"]
    cluster_rules = [
        _rule([""], ["nodes", "pods"], ["list", "watch"]),
        _rule(kueue, ["resourceflavors", "admissionchecks"], ["list", "watch"]),
        _rule(kueue, ["workloads"], READ_VERBS),
        _rule(kueue, ["workloads/status", "admissionchecks/status"], ["patch"]),
    ]
    namespace_rules = [_rule(["coordination.k8s.io"], ["leases"], ["get", "create", "update"])]
    return [
        _object("v1", "Namespace", namespace),
        _object("v1", "ServiceAccount", ACCOUNT, namespace),
        *_bind_rules(ACCOUNT, namespace, cluster_rules, namespace_rules),
    ]


def build_admission_check(name: str) -> Body:
    """Build the AdmissionCheck that this controller answers; a ClusterQueue refers to it by its name."""
    check = _object("kueue.x-k8s.io/v1beta2", "AdmissionCheck", f"unfold-{name}")
    return check | {"spec": {"controllerName": f"{DOMAIN}/{name}"}}


def build_submitter_role(namespace: str = NAMESPACE) -> Body:
    """Build the role of an application that submits tasks: it creates and deletes pods."""
    rules = [_rule([""], ["pods"], [*READ_VERBS, "create", "delete"])]
    return _object(f"{RBAC}/v1", "Role", "unfold-submit", namespace) | {"rules": rules}


def build_deployment(name: str, spec: str, image: str, namespace: str = NAMESPACE) -> list[Body]:
    """Build the spec as a ConfigMap, the controllers that serve it, and their disruption budget.

    One of the controllers leads. Their pods pass the ``restricted`` level of pod security.
    """
    labels = {"app.kubernetes.io/name": ACCOUNT, "app.kubernetes.io/instance": name}
    title = f"{ACCOUNT}-{name}"
    command = ["unfold", "serve", "/etc/unfold/spec.yaml", "--run", "/tmp/run", "--port", str(PORT)]  # noqa: S108 - of the container
    container: dict[str, Any] = {
        "name": "controller",
        "image": image,
        "command": command,
        "env": [{"name": "OMP_NUM_THREADS", "value": "1"}, {"name": "HOME", "value": "/tmp"}],  # noqa: S108
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
        "volumeMounts": [{"name": "spec", "mountPath": "/etc/unfold"}, {"name": "run", "mountPath": "/tmp"}],  # noqa: S108
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # a first start compiles for minutes on a busy node
        "startupProbe": _probe("ready", 2, 300),
        "readinessProbe": _probe("ready", 10, 3),
        "livenessProbe": _probe("live", 20, 3),
    }
    spread = {"maxSkew": 1, "topologyKey": HOSTNAME, "whenUnsatisfiable": "ScheduleAnyway"}
    pod = {
        "serviceAccountName": ACCOUNT,
        "securityContext": {"runAsNonRoot": True, "runAsUser": USER_ID, "seccompProfile": {"type": "RuntimeDefault"}},
        "topologySpreadConstraints": [{**spread, "labelSelector": {"matchLabels": labels}}],
        "containers": [container],
        "volumes": [
            {"name": "spec", "configMap": {"name": title}},
            {"name": "run", "emptyDir": {"sizeLimit": "1Gi"}},
        ],
    }
    # a changed policy restarts the controllers
    notes = {annotation_key("spec"): hashlib.sha256(spec.encode()).hexdigest()[:16]}
    template = {"metadata": {"labels": labels, "annotations": notes}, "spec": pod}
    deployment = {"replicas": REPLICAS, "selector": {"matchLabels": labels}, "template": template}
    budget = {"minAvailable": 1, "selector": {"matchLabels": labels}}
    return [
        _object("v1", "ConfigMap", title, namespace) | {"data": {"spec.yaml": spec}},
        _object("apps/v1", "Deployment", title, namespace) | {"spec": deployment},
        _object("policy/v1", "PodDisruptionBudget", title, namespace) | {"spec": budget},
    ]


def build_gate_guard(namespace: str = NAMESPACE) -> list[Body]:
    """Build the admission policy by which only the controller removes a policy's gate or label from a pod.

    Without it, whoever may update pods of the namespace can start them past the policy.
    """
    name, user = f"{ACCOUNT}-{namespace}", f"system:serviceaccount:{namespace}:{ACCOUNT}"
    gates = (
        "has({0}.spec.schedulingGates) && {0}.spec.schedulingGates.exists(gate, gate.name.startsWith('"
        + DOMAIN
        + "/'))"
    )
    label = "has({0}.metadata.labels) && '" + POLICY + "' in {0}.metadata.labels"
    kept_gate = f"!({gates.format('oldObject')}) || ({gates.format('object')})"
    kept_label = (
        f"!({label.format('oldObject')}) || (({label.format('object')}) && "
        f"object.metadata.labels['{POLICY}'] == oldObject.metadata.labels['{POLICY}'])"
    )
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["pods"]}
    policy = {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": [rule]},
        "matchConditions": [{"name": "others", "expression": f"request.userInfo.username != '{user}'"}],
        "validations": [
            {"expression": kept_gate, "message": "only the placement controller removes its scheduling gate"},
            {"expression": kept_label, "message": f"the label {POLICY} of a pod cannot be changed"},
        ],
    }
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    binding = {
        "policyName": name,
        "validationActions": ["Deny"],
        "matchResources": {"namespaceSelector": selector},
    }
    api = "admissionregistration.k8s.io/v1"
    return [
        _object(api, "ValidatingAdmissionPolicy", name) | {"spec": policy},
        _object(api, "ValidatingAdmissionPolicyBinding", name) | {"spec": binding},
    ]


def _probe(path: str, period_s: int, failures: int) -> Body:
    """Return a probe that runs inside the container, since the service listens on loopback only."""
    code = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{PORT}/v2/health/{path}', timeout=3)"
    command = {"command": ["python", "-c", code]}
    return {"exec": command, "periodSeconds": period_s, "failureThreshold": failures, "timeoutSeconds": 5}


def _bind_rules(title: str, namespace: str, cluster_rules: list[Body], namespace_rules: list[Body]) -> list[Body]:
    """Return roles of a title with these rules, bound to the controller's account."""
    return [
        _object(f"{RBAC}/v1", "ClusterRole", title) | {"rules": cluster_rules},
        _object(f"{RBAC}/v1", "ClusterRoleBinding", title) | _binding("ClusterRole", title, namespace),
        _object(f"{RBAC}/v1", "Role", title, namespace) | {"rules": namespace_rules},
        _object(f"{RBAC}/v1", "RoleBinding", title, namespace) | _binding("Role", title, namespace),
    ]


def _object(api: str, kind: str, name: str, namespace: str = "") -> Body:
    meta = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": api, "kind": kind, "metadata": meta}


def _rule(groups: list[str], resources: list[str], verbs: list[str]) -> Body:
    return {"apiGroups": groups, "resources": resources, "verbs": verbs}


def _binding(kind: str, role: str, namespace: str) -> Body:
    account = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}
    return {"roleRef": {"apiGroup": RBAC, "kind": kind, "name": role}, "subjects": [account]}


IMAGE = "unfoldkit:latest"
LOCAL_KEYS = {"context", "kubeconfig"}
"""Settings that do not apply inside the cluster."""


def export_manifests(report: Report) -> str:
    """Return the manifests for ``kubectl apply``: namespace, account, roles, the spec, and two controllers.

    Raises:
        UnfoldError: The report is of another kind, or holds no spec.
    """
    if report.kind != "placement" or "spec" not in report.provenance:
        raise user_error("there is no placement to export", hint="unfold plan SPEC --format kubernetes")
    spec = dict(report.provenance["spec"])
    settings: dict[str, Any] = spec.get("cluster", {}).get("kubernetes") or {}
    namespace = settings.get("namespace") or NAMESPACE
    served = served_spec(spec, {key: value for key, value in settings.items() if key not in LOCAL_KEYS})
    deployment = build_deployment(report.name, str(to_yaml(served)), settings.get("image") or IMAGE, namespace)
    if settings.get("kueue"):
        documents = [*build_check_roles(namespace), build_admission_check(report.name), *deployment]
        return "---\n".join(str(to_yaml(document)) for document in documents)
    documents = [
        *build_roles(namespace),
        *(build_counter_roles(namespace) if settings.get("counters") == DRA else []),
        build_submitter_role(namespace),
        *build_gate_guard(namespace),
        *deployment,
    ]
    return "---\n".join(str(to_yaml(document)) for document in documents)


def served_spec(spec: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the spec that the controller serves: its cluster is the one it runs in, its workload are the pods."""
    policy_parts = {key: value for key, value in spec.items() if key not in {"cluster", "workload", "explain"}}
    return {**policy_parts, "cluster": {"kubernetes": settings}}
