"""A plan in the words of Kubernetes: what its controller may do there, and the controller."""

from __future__ import annotations

from typing import Any

from unfold_placement.kubernetes.codec import DRA
from unfold_placement.kubernetes.manifests import (
    NAMESPACE,
    build_counter_roles,
    build_deployment,
    build_roles,
    build_submitter_role,
)
from unfoldkit.api import Report, fail
from unfoldkit.io.yaml12 import to_yaml

IMAGE = "unfoldkit:latest"


def export_manifests(report: Report) -> str:
    """Return the manifests for ``kubectl apply``: namespace, account, roles, the spec, and two controllers.

    Raises:
        UnfoldError: the report is of another kind, or holds no spec.
    """
    if report.kind != "placement" or "spec" not in report.provenance:
        raise fail("there is no placement to export", hint="unfold plan SPEC --format kubernetes")
    spec = dict(report.provenance["spec"])
    given: dict[str, Any] = spec.get("cluster", {}).get("kubernetes") or {}
    namespace = given.get("namespace") or NAMESPACE
    served = served_spec(spec, {key: value for key, value in given.items() if key not in {"context", "kubeconfig"}})
    made = build_deployment(report.name, str(to_yaml(served)), given.get("image") or IMAGE, namespace)
    more = build_counter_roles(namespace) if given.get("counters") == DRA else []
    return "---\n".join(
        str(to_yaml(document)) for document in [*build_roles(namespace), *more, build_submitter_role(namespace), *made]
    )


def served_spec(spec: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return the spec that the controller serves: the cluster is the one that it runs in, its pods are the workload."""
    rest = {key: value for key, value in spec.items() if key not in {"cluster", "workload", "explain"}}
    return {**rest, "cluster": {"kubernetes": given}}
