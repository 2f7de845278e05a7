"""A client for applications: submits their pods behind the gate of a served policy, with the requested resources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unfold_placement.core.controller import collect_requests
from unfold_placement.core.policy import Policy
from unfold_placement.core.types import Task
from unfold_placement.kubernetes.objects import pods
from unfold_placement.kubernetes.objects.codec import GATES, UNITS, Body, Scope
from unfoldkit.api import user_error
from unfoldkit.kubernetes.api import Api, ApiError, connect_api


@dataclass(frozen=True, slots=True)
class Client:
    """Submits tasks to one policy; it only needs permission to create and delete pods in its namespace."""

    api: Api
    scope: Scope
    policies: Sequence[Policy] = ()

    def pod(self, task: Task, template: Mapping[str, Any] | None = None) -> Body:
        """Return the manifest of a task's pod: ``template`` (``metadata``, ``spec``) with gate, labels and requests.

        Raises:
            UnfoldError: The task demands a fraction of what Kubernetes allocates as a whole.
        """
        asks = [ask for ask, _ in collect_requests(self.policies, task)]
        return pods.gated_pod(task, asks, self.scope, self.api.now(), template)

    def submit(self, task: Task, template: Mapping[str, Any] | None = None) -> str:
        """Create the pod and return its name; a deadline counts from now.

        Raises:
            UnfoldError: The task exists, or the server rejects the pod.
        """
        body = self.pod(task, template)
        try:
            created = self.api.post(self._pods_path(), body)
        except ApiError as error:
            raise user_error(f"the cluster rejects task {task.name}: {error.message}") from error
        return str(created["metadata"]["name"])

    def withdraw(self, task: str) -> None:
        """Withdraw a task, waiting or running."""
        selector = f"{pods.POLICY}={self.scope.name},{pods.TASK}={pods.task_label(task)}"
        for pod in self.api.get(self._pods_path(), labelSelector=selector)["items"]:
            try:
                self.api.delete(f"{self._pods_path()}/{pod['metadata']['name']}")
            except ApiError as error:
                if not error.is_absent:
                    raise

    def _pods_path(self) -> str:
        return f"/api/v1/namespaces/{self.scope.namespace}/pods"


def connect_client(
    name: str,
    policies: Sequence[Policy] = (),
    *,
    context: str = "",
    kubeconfig: str = "",
    namespace: str = "unfold",
    units: Mapping[str, str] | None = None,
    counters: str = GATES,
) -> Client:
    """Connect a client to the policy that the spec ``name`` serves.

    Args:
        name: Name of the spec.
        policies: The spec's policies, built by ``policies.registry.build_policies``.
        context: Context of the kubeconfig.
        kubeconfig: Path of the kubeconfig.
        namespace: Namespace of the pods.
        units: The spec's ``cluster.kubernetes.resources``.
        counters: The spec's ``cluster.kubernetes.counters``.

    Raises:
        UnfoldError: There is no such context.
    """
    api = connect_api(context, kubeconfig=kubeconfig, namespace=namespace)
    return Client(api, Scope(name, namespace, dict(units or UNITS), counters), policies)
