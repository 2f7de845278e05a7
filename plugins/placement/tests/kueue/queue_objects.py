"""Kueue's objects as kubectl prints them, for tests."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

Body = dict[str, Any]
BEGAN = dt.datetime(2026, 3, 1, 10, tzinfo=dt.UTC)
GPU = "nvidia.com/gpu"


def at(seconds: float) -> str:
    """Return a timestamp so many seconds after the beginning."""
    return (BEGAN + dt.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def cluster_queue(name: str, quota: int, **spec: Any) -> Body:
    """Return a ClusterQueue with a quota of GPUs in the flavor ``default``."""
    limits = {key: str(spec.pop(key)) for key in ("borrowingLimit", "lendingLimit") if key in spec}
    resource = {"name": GPU, "nominalQuota": str(quota), **limits}
    group = {"coveredResources": [GPU], "flavors": [{"name": "default", "resources": [resource]}]}
    body = {"namespaceSelector": {}, "resourceGroups": [group], **spec}
    return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ClusterQueue", "metadata": {"name": name}, "spec": body}


def local_queue(queue: str, namespace: str = "") -> Body:
    """Return the LocalQueue ``main`` of a namespace."""
    meta = {"name": "main", "namespace": namespace or queue}
    return {
        "apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "LocalQueue", "metadata": meta, "spec": {"clusterQueue": queue},
    }  # fmt: skip


def flavor(name: str = "default", **spec: Any) -> Body:
    """Return a ResourceFlavor."""
    return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor", "metadata": {"name": name}, "spec": spec}


def workload(name: str, created_s: float, gpus: int, **more: Any) -> Body:
    """Return a workload of one pod set; ``team/name`` is its namespace and name.

    Args:
        name: Namespace and name.
        created_s: Its creation.
        gpus: Pods of one GPU each.
        more: ``admitted`` and ``finished`` in seconds, and fields of the spec.
    """
    namespace, _, own = name.partition("/")
    admitted, finished = more.pop("admitted", None), more.pop("finished", None)
    container = {"name": "c", "resources": {"requests": {GPU: "1"}}}
    pod_set = {"name": "main", "count": gpus, "template": {"spec": {"containers": [container]}}}
    # as Kueue writes it for every Job
    pod_set["topologyRequest"] = {"podIndexLabel": "batch.kubernetes.io/job-completion-index"}
    pod_set.update(more.pop("pod_set", {}))
    status: Body = {}
    if admitted is not None:
        assignment = {
            "name": "main", "count": gpus, "flavors": {GPU: "default"}, "resourceUsage": {GPU: str(gpus)},
        }  # fmt: skip
        status["admission"] = {"clusterQueue": namespace, "podSetAssignments": [assignment]}
        status["conditions"] = [condition(kind, admitted) for kind in ("QuotaReserved", "Admitted")]
    if finished is not None:
        status["conditions"] = [*status.get("conditions", ()), condition("Finished", finished)]
    meta = {"name": own, "namespace": namespace, "creationTimestamp": at(created_s), "uid": name}
    spec = {"queueName": "main", "podSets": [pod_set], **more}
    return {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "Workload",
        "metadata": meta,
        "spec": spec,
        "status": status,
    }


def condition(kind: str, seconds: float, status: str = "True") -> Body:
    """Return a condition that changed at a time."""
    return {"type": kind, "status": status, "reason": kind, "lastTransitionTime": at(seconds)}


def write_list(folder: Path, items: list[Body], name: str = "kueue.json") -> Path:
    """Write a list as kubectl does."""
    path = folder / name
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}), "utf-8")
    return path
