"""Opens the Kubernetes backend of a policy and reads the nodes of a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from unfold_placement.core.types import Ask, Node, Task
from unfold_placement.kubernetes.admission_check import AdmissionCheckBackend, open_admission_check
from unfold_placement.kubernetes.backend import (
    BIND_TIMEOUT_S,
    ROLES_HINT,
    KubernetesBackend,
    access_error,
    open_backend,
)
from unfold_placement.kubernetes.gate_queue import MAX_IN_FLIGHT
from unfold_placement.kubernetes.informer import Informer
from unfold_placement.kubernetes.objects.codec import GATES, UNITS, Scope
from unfold_placement.kubernetes.shadow import ShadowBackend, open_shadow
from unfold_placement.live.state_store import StateStore
from unfoldkit.kubernetes.api import Api, ApiError, connect_api


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterAccess:
    """How to reach and use a Kubernetes cluster.

    Attributes:
        context: Context of the kubeconfig; empty for the current one.
        kubeconfig: Path of the kubeconfig; empty for the default.
        namespace: Namespace of the pods.
        resource_names: The cluster's names of resources, by name in the spec.
        bind_timeout_s: How long (s) a released pod may stay without a node.
        max_in_flight: Released pods that may be without a node at a time.
        counters: ``gates`` or ``dra``.
    """

    context: str = ""
    kubeconfig: str = ""
    namespace: str = "unfold"
    resource_names: Mapping[str, str] = field(default_factory=dict)
    bind_timeout_s: float = BIND_TIMEOUT_S
    max_in_flight: int = MAX_IN_FLIGHT
    counters: str = GATES

    def connect(self) -> Api:
        """Connect to the API server.

        Raises:
            UnfoldError: There is no such context, or the extra is not installed.
        """
        return connect_api(self.context, kubeconfig=self.kubeconfig, namespace=self.namespace)

    @property
    def units(self) -> Mapping[str, str]:
        """The cluster's names of all resources, defaults included."""
        return {**UNITS, **self.resource_names}


def open_cluster(
    scope_name: str, access: ClusterAccess, requests: Callable[[Task], Iterable[Ask]]
) -> tuple[KubernetesBackend, str]:
    """Open the backend of a policy; return it and a description of its location.

    Args:
        scope_name: Name of the policy's spec.
        access: The cluster.
        requests: Returns the ephemeral resources that a task requests.

    Raises:
        UnfoldError: The cluster does not answer, or refuses access.
    """
    api = access.connect()
    backend = open_backend(
        api,
        scope_name,
        asks=requests,
        units=access.units,
        bind_timeout_s=access.bind_timeout_s,
        max_in_flight=access.max_in_flight,
        counters=access.counters,
    )
    return backend, f"Kubernetes at {api.client.configuration.host}, namespace {access.namespace}"


def open_cluster_shadow(scope_name: str, access: ClusterAccess) -> tuple[ShadowBackend, str]:
    """Open a shadow of a cluster, which is only read; return it and a description of its location.

    Raises:
        UnfoldError: The cluster does not answer, or refuses access.
    """
    api = access.connect()
    try:
        backend = open_shadow(api, Scope(scope_name, api.namespace, access.units, GATES))
    except ApiError as error:
        raise access_error(error, "shadow mode needs to list and watch nodes and pods") from error
    location = f"Kubernetes at {api.client.configuration.host}, namespace {access.namespace}"
    return backend, f"shadow of {location}: nothing is written"


def open_cluster_checks(scope_name: str, access: ClusterAccess, patience_s: float) -> tuple[AdmissionCheckBackend, str]:
    """Open what answers Kueue's admission checks; return it and a description of its location.

    Raises:
        UnfoldError: The cluster does not answer, refuses access, or has no Kueue.
    """
    api = access.connect()
    scope = Scope(scope_name, api.namespace, access.units, GATES)
    try:
        backend = open_admission_check(api, scope, patience_s)
    except ApiError as error:
        hint = "it needs Kueue (v1beta2) and the roles of unfold plan SPEC --format kubernetes"
        raise access_error(error, hint) from error
    location = f"Kubernetes at {api.client.configuration.host}"
    return backend, f"admission checks with controllerName {scope.gate} of Kueue on {location}"


def read_nodes(scope_name: str, access: ClusterAccess) -> list[Node]:
    """Read the current nodes of a cluster, for a plan, which writes nothing.

    Raises:
        UnfoldError: The cluster does not answer, or refuses access.
    """
    api, origin = access.connect(), time.time()
    store = StateStore(lambda: time.time() - origin)
    try:
        Informer(api, Scope(scope_name, api.namespace, access.units), store, origin).start()
        return sorted(store.snapshot().nodes, key=lambda node: node.name)
    except ApiError as error:
        raise access_error(error, ROLES_HINT) from error
    finally:
        api.close()
