"""The backend of a spec that is served on Kubernetes."""

from __future__ import annotations

from collections.abc import Sequence

from unfold_placement.core.controller import collect_requests
from unfold_placement.core.types import Node, Task
from unfold_placement.kubernetes.api import connect_api
from unfold_placement.kubernetes.backend import KubernetesBackend, open_backend
from unfold_placement.kubernetes.codec import UNITS
from unfold_placement.schema.models import KubernetesSpec
from unfold_placement.schema.policies import PolicySpec, build_policies


def backend(
    name: str, cluster: KubernetesSpec, policy: PolicySpec, *, allow_code: bool
) -> tuple[KubernetesBackend, Sequence[Task], str]:
    """Return a handle on a spec's scope, no tasks of its own, and where it is in words.

    Raises:
        UnfoldError: there is no such cluster, it does not answer, or refuses.
    """
    api = connect_api(cluster.context, kubeconfig=cluster.kubeconfig, namespace=cluster.namespace)
    policies = build_policies(policy, allow_code=allow_code)
    made = open_backend(
        api, name, asks=lambda task: [ask for ask, _ in collect_requests(policies, task)],
        units={**UNITS, **cluster.resources}, patience=cluster.patience, in_flight=cluster.in_flight,
        counters=cluster.counters,
    )  # fmt: skip
    return made, (), f"Kubernetes at {api.client.configuration.host}, namespace {cluster.namespace}"


def nodes(name: str, cluster: KubernetesSpec) -> list[Node]:
    """Return the nodes of the cluster as they are now, for a plan."""
    api = connect_api(cluster.context, kubeconfig=cluster.kubeconfig, namespace=cluster.namespace)
    made = open_backend(api, name, units={**UNITS, **cluster.resources})
    try:
        return sorted(made.snapshot().nodes, key=lambda node: node.name)
    finally:
        made.close()
