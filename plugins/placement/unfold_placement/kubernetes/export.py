"""Exports a plan as Kubernetes manifests: the controller's permissions and the controller itself."""

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
LOCAL_KEYS = {"context", "kubeconfig"}
"""Settings that do not apply inside the cluster."""


def export_manifests(report: Report) -> str:
    """Return the manifests for ``kubectl apply``: namespace, account, roles, the spec, and two controllers.

    Raises:
        UnfoldError: the report is of another kind, or holds no spec.
    """
    if report.kind != "placement" or "spec" not in report.provenance:
        raise fail("there is no placement to export", hint="unfold plan SPEC --format kubernetes")
    spec = dict(report.provenance["spec"])
    settings: dict[str, Any] = spec.get("cluster", {}).get("kubernetes") or {}
    namespace = settings.get("namespace") or NAMESPACE
    served = served_spec(spec, {key: value for key, value in settings.items() if key not in LOCAL_KEYS})
    documents = [
        *build_roles(namespace),
        *(build_counter_roles(namespace) if settings.get("counters") == DRA else []),
        build_submitter_role(namespace),
        *build_deployment(report.name, str(to_yaml(served)), settings.get("image") or IMAGE, namespace),
    ]
    return "---\n".join(str(to_yaml(document)) for document in documents)


def served_spec(spec: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the spec that the controller serves: its cluster is the one it runs in, its workload are the pods."""
    policy_parts = {key: value for key, value in spec.items() if key not in {"cluster", "workload", "explain"}}
    return {**policy_parts, "cluster": {"kubernetes": settings}}
