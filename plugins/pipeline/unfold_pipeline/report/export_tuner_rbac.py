"""The rights of the tuner on Kubernetes: the scale of the workloads that a spec names, their leases, and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unfold_pipeline.control.scaled_workloads import find_workloads, name_lease
from unfoldkit.api import Report, user_error
from unfoldkit.io.yaml12 import to_yaml
from unfoldkit.kubernetes.api import Body
from unfoldkit.kubernetes.leader_election import API as LEASE_API
from unfoldkit.kubernetes.scale import Workload

ACCOUNT = "unfold-tuner"
RBAC = "rbac.authorization.k8s.io"


def export_tuner_roles(report: Report) -> str:
    """Return service account, role and binding for ``unfold serve --target kubernetes``.

    Raises:
        UnfoldError: The report is no plan of a pipeline with stages, or a stage has no workload on Kubernetes.
    """
    spec = report.provenance.get("spec", {})
    stages = (report.decision or {}).get("stages")
    if report.kind != "pipeline" or not isinstance(stages, Mapping):
        hint = "unfold plan SPEC --format tuner-roles, for a spec without engines"
        raise user_error("there is no plan of stages to scale", hint=hint)
    control = spec.get("control") or {}
    keys = control.get("stages") or {}
    workloads = find_workloads({name: (keys.get(name) or {}).get("workload") for name in stages})
    namespace = (control.get("kubernetes") or {}).get("namespace") or "default"
    return "---\n".join(str(to_yaml(document)) for document in build_tuner_roles(namespace, workloads))


def build_tuner_roles(namespace: str, workloads: Sequence[Workload]) -> list[Body]:
    """Return the account of the tuner with what it needs to scale ``workloads``, by name."""
    resources: dict[tuple[str, str], list[str]] = {}
    for workload in workloads:
        resources.setdefault((workload.group, workload.resource), []).append(workload.name)
    leases = LEASE_API.partition("/")[0]
    rules = [
        *(
            _rule(group, f"{resource}/scale", ["get", "patch"], sorted(names))
            for (group, resource), names in sorted(resources.items())
        ),
        _rule(leases, "leases", ["get", "update"], sorted(name_lease(workload) for workload in workloads)),
        # Kubernetes cannot restrict this to names
        _rule(leases, "leases", ["create"]),
        _rule("autoscaling", "horizontalpodautoscalers", ["list"]),
    ]
    account = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}
    role = {"apiGroup": RBAC, "kind": "Role", "name": ACCOUNT}
    return [
        _object("v1", "ServiceAccount", namespace),
        _object(f"{RBAC}/v1", "Role", namespace) | {"rules": rules},
        _object(f"{RBAC}/v1", "RoleBinding", namespace) | {"roleRef": role, "subjects": [account]},
    ]


def _rule(group: str, resource: str, verbs: list[str], names: Sequence[str] = ()) -> Body:
    rule: Body = {"apiGroups": [group], "resources": [resource], "verbs": verbs}
    return rule | ({"resourceNames": list(names)} if names else {})


def _object(version: str, kind: str, namespace: str) -> Body:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": ACCOUNT, "namespace": namespace}}
