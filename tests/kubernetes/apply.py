"""Manifests, created as ``kubectl apply`` would."""

from __future__ import annotations

from collections.abc import Iterable

from unfoldkit.kubernetes.api import Api, ApiError, Body

PLURALS = {
    "Namespace": "namespaces", "ServiceAccount": "serviceaccounts", "ConfigMap": "configmaps", "Role": "roles",
    "RoleBinding": "rolebindings", "ClusterRole": "clusterroles", "ClusterRoleBinding": "clusterrolebindings",
    "Deployment": "deployments", "DeviceClass": "deviceclasses", "ResourceClaim": "resourceclaims", "Pod": "pods",
    "PodDisruptionBudget": "poddisruptionbudgets", "HorizontalPodAutoscaler": "horizontalpodautoscalers",
    "Ingress": "ingresses", "NetworkPolicy": "networkpolicies", "Service": "services",
    "StatefulSet": "statefulsets",
    "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
}  # fmt: skip


def apply(api: Api, documents: Iterable[Body]) -> None:
    """Create some objects; what is there already stays."""
    for document in documents:
        group, _, version = document["apiVersion"].rpartition("/")
        root = f"/apis/{group}/{version}" if group else f"/api/{version}"
        space = document["metadata"].get("namespace")
        place = f"{root}/namespaces/{space}" if space else root
        try:
            api.post(f"{place}/{PLURALS[document['kind']]}", document)
        except ApiError as refused:
            if refused.reason != "AlreadyExists":
                raise
