"""The scale subresource: replica counts of any workload that has one, such as a Deployment or a custom resource."""

from __future__ import annotations

import re
from dataclasses import dataclass

from unfoldkit.errors import Diagnostic, UnfoldError, user_error
from unfoldkit.kubernetes.api import CONFLICT, FORBIDDEN, MERGE, NOT_FOUND, Api, ApiError, Body

WORKLOAD_HINT = "deployment/NAME, statefulset/NAME or RESOURCE.VERSION.GROUP/NAME"
APPS = {"deployment": "deployments", "statefulset": "statefulsets", "replicaset": "replicasets"}
"""Resources of the group ``apps`` by the names that kubectl takes."""
AUTOSCALERS = "/apis/autoscaling/v2/namespaces/{}/horizontalpodautoscalers"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_RESOURCE = re.compile(r"([a-z]+)\.(v[a-z0-9]+)\.([a-z0-9][-a-z0-9.]*[a-z0-9])")


class AbsentError(UnfoldError):
    """There is no such workload, or it has no scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A workload of a namespace, by its resource.

    Attributes:
        group: API group, such as ``apps``.
        version: Version of the group.
        resource: Plural name of the resource, such as ``deployments``.
        name: Name of the object.
    """

    group: str
    version: str
    resource: str
    name: str

    def __str__(self) -> str:
        prefix = self.resource if self.group == "apps" else f"{self.resource}.{self.version}.{self.group}"
        return f"{prefix}/{self.name}"

    def scale_path(self, namespace: str) -> str:
        """Return the path of the scale subresource."""
        return f"/apis/{self.group}/{self.version}/namespaces/{namespace}/{self.resource}/{self.name}/scale"


@dataclass(frozen=True, slots=True)
class Scale:
    """Replicas of a workload: those that its spec demands, those that exist, and the version of the object."""

    desired: int
    existing: int
    version: str


def parse_workload(text: str) -> Workload | None:
    """Return the workload that ``deployment/NAME`` or ``RESOURCE.VERSION.GROUP/NAME`` names, ``None`` if none."""
    resource, _, name = text.rpartition("/")
    if _NAME.fullmatch(name) is None:
        return None
    short = resource or "deployment"
    plural = APPS.get(short, short if short in APPS.values() else "")
    if plural:
        return Workload(group="apps", version="v1", resource=plural, name=name)
    match = _RESOURCE.fullmatch(resource)
    if match is None:
        return None
    return Workload(group=match[3], version=match[2], resource=match[1], name=name)


def require_workload(text: str, key: str) -> Workload:
    """Return the workload that a text names.

    Raises:
        UnfoldError: It names none; the error has ``key``.
    """
    workload = parse_workload(text)
    if workload is None:
        raise user_error(f"{text} is not a workload", key=key, hint=WORKLOAD_HINT)
    return workload


def read_scale(api: Api, workload: Workload) -> Scale:
    """Return the replicas of a workload.

    Raises:
        AbsentError: There is no such workload, or it has no scale.
        ApiError: The server refused otherwise.
    """
    try:
        return _parse_scale(api.get(workload.scale_path(api.namespace)))
    except ApiError as error:
        if error.status != NOT_FOUND:
            raise
        message = f"namespace {api.namespace} has no {workload} with a scale subresource"
        raise AbsentError(Diagnostic(message, key=api.key, hint="kubectl get deployments lists them")) from error


def write_scale(api: Api, workload: Workload, replicas: int, version: str) -> bool:
    """Demand ``replicas``; return false, and change nothing, if the workload is no longer at ``version``.

    Raises:
        ApiError: The server refused otherwise.
    """
    body = {"metadata": {"resourceVersion": version}, "spec": {"replicas": replicas}}
    try:
        api.patch(workload.scale_path(api.namespace), body, MERGE)
    except ApiError as error:
        if error.status == CONFLICT:
            return False
        raise
    return True


def list_autoscalers(api: Api) -> dict[str, Body] | None:
    """Return by name what each HorizontalPodAutoscaler scales; ``None`` if this account may not list them.

    KEDA's ScaledObjects create such an autoscaler too.
    """
    try:
        items = api.get(AUTOSCALERS.format(api.namespace))["items"]
    except ApiError as error:
        if error.status in (FORBIDDEN, NOT_FOUND):
            return None
        raise
    return {item["metadata"]["name"]: item["spec"]["scaleTargetRef"] for item in items}


def is_target(reference: Body, workload: Workload) -> bool:
    """Return whether the reference of an autoscaler names a workload."""
    group = reference.get("apiVersion", "apps/v1").partition("/")[0]
    is_same_resource = workload.resource.startswith(reference["kind"].lower())
    return is_same_resource and (reference["name"], group) == (workload.name, workload.group)


def _parse_scale(body: Body) -> Scale:
    # the API leaves out zeros
    desired, existing = (body.get(part, {}).get("replicas", 0) for part in ("spec", "status"))
    return Scale(desired, existing, body["metadata"]["resourceVersion"])
