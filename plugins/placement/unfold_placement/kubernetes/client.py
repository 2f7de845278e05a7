"""A client: pods of an application's own, behind the gate of a policy, with the names that the policy wants."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unfold_placement.core.controller import collect_requests
from unfold_placement.core.policy import Policy
from unfold_placement.core.types import Task
from unfold_placement.kubernetes import pods
from unfold_placement.kubernetes.api import Api, ApiError, connect_api
from unfold_placement.kubernetes.codec import GATES, UNITS, Body, Scope
from unfoldkit.api import fail


@dataclass(frozen=True, slots=True)
class Client:
    """Submits to one policy; needs no right but to make and delete pods in its namespace."""

    api: Api
    scope: Scope
    policies: Sequence[Policy] = ()

    def pod(self, task: Task, template: Mapping[str, Any] | None = None) -> Body:
        """Return the manifest of a task's pod: ``template`` (``metadata``, ``spec``) with gate, labels and names.

        Raises:
            UnfoldError: the task asks for a part of what Kubernetes gives whole.
        """
        asks = [ask for ask, _ in collect_requests(self.policies, task)]
        return pods.gated_pod(task, asks, self.scope, time.time(), template)

    def submit(self, task: Task, template: Mapping[str, Any] | None = None) -> str:
        """Make the pod, and return its name; a deadline counts from now.

        Raises:
            UnfoldError: there is such a task, or the server refuses the pod.
        """
        body = self.pod(task, template)
        try:
            made = self.api.post(f"/api/v1/namespaces/{self.scope.namespace}/pods", body)
        except ApiError as refused:
            raise fail(f"task {task.name} is refused: {refused.message}") from refused
        return str(made["metadata"]["name"])

    def withdraw(self, task: str) -> None:
        """Take a task back, waiting or running."""
        path = f"/api/v1/namespaces/{self.scope.namespace}/pods"
        chosen = f"{pods.POLICY}={self.scope.name},{pods.TASK}={pods.task_label(task)}"
        for found in self.api.get(path, labelSelector=chosen)["items"]:
            try:
                self.api.delete(f"{path}/{found['metadata']['name']}")
            except ApiError as refused:
                if not refused.is_absent:
                    raise


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
    """Return a client of the policy that the spec ``name`` serves; ``policies`` are what ``options.build`` makes of it.

    ``units`` and ``counters`` are what the spec says under ``cluster.kubernetes`` (``resources`` and ``counters``).

    Raises:
        UnfoldError: there is no such context.
    """
    api = connect_api(context, kubeconfig=kubeconfig, namespace=namespace)
    return Client(api, Scope(name, namespace, dict(units or UNITS), counters), policies)
