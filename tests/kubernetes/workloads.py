"""Jobs and JobSets with their real controllers: plain processes beside the control plane, and the objects they run."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from tests.kubernetes import build
from tests.kubernetes.cluster import PATIENCE, ControlPlane, running, still_there
from unfold_placement.kubernetes.objects.workloads import POLICY
from unfoldkit.kubernetes.api import Api, ApiError, connect_api

Body = dict[str, Any]
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
TASK = "placement.unfoldkit/task"
"""Annotation from which the stub of a kubelet reads how long (s) a pod runs."""
GPU = "nvidia.com/gpu"


def why_not() -> str:
    """Return why Jobs and JobSets cannot run here; empty if they can."""
    programs = build.workload_controllers()
    missing = [*build.missing(), *(name for name, path in programs.items() if not os.access(path, os.X_OK))]
    if missing:
        return f"not built: {', '.join(missing)} (python -m tests.kubernetes.build workloads)"
    return "" if build.jobset_module() else "the source of JobSet, which holds its CRD, is not in Go's module cache"


@contextlib.contextmanager
def workload_controllers(plane: ControlPlane) -> Iterator[Api]:
    """Define JobSets, run the controllers until the block ends, and return the administrator's connection.

    Raises:
        RuntimeError: one is not built, or ends; holds what it printed last.
    """
    if reason := why_not():
        raise RuntimeError(reason)
    api = connect_api("admin", kubeconfig=str(plane.kubeconfig))
    _define_jobsets(api)
    words = [f"--kubeconfig={plane.kubeconfig}"]
    with contextlib.ExitStack() as stack:
        processes = {
            name: stack.enter_context(running(plane.folder, name, words, program=program))
            for name, program in build.workload_controllers().items()
        }
        yield api
        still_there(plane.folder, processes)


def job(name: str, pods: int, run_s: float, labels: Mapping[str, str], *, suspend: bool = True) -> Body:
    """Return an indexed Job with pods that request one GPU each and run for ``run_s`` seconds."""
    meta = {"name": name, "namespace": "unfold", "labels": dict(labels)}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": _job_spec(pods, run_s, suspend=suspend)}


def jobset(name: str, workers: int, run_s: float, policy: str) -> Body:
    """Return a suspended JobSet of a policy: one driver and some workers, each of which requests one GPU."""
    roles = [
        {"name": role, "replicas": 1, "template": {"spec": _job_spec(pods, run_s)}}
        for role, pods in (("driver", 1), ("workers", workers))
    ]
    # what its webhook would write
    defaults = {
        "network": {"enableDNSHostnames": False, "publishNotReadyAddresses": True},
        "successPolicy": {"operator": "All"},
        "startupPolicy": {"startupPolicyOrder": "AnyOrder"},
    }
    meta = {"name": name, "namespace": "unfold", "labels": {POLICY: policy}}
    spec = {"suspend": True, "replicatedJobs": roles, **defaults}
    return {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": meta, "spec": spec}


def list_path(kind: str) -> str:
    """Return the path of the workloads of a kind."""
    root = "/apis/batch/v1" if kind == "Job" else "/apis/jobset.x-k8s.io/v1alpha2"
    return f"{root}/namespaces/unfold/{kind.lower()}s"


def _job_spec(pods: int, run_s: float, *, suspend: bool | None = None) -> Body:
    resources = {"requests": {GPU: "1"}, "limits": {GPU: "1"}}
    container = {"name": "task", "image": "none", "resources": resources}
    template = {
        "metadata": {"annotations": {TASK: json.dumps({"run": run_s})}},
        "spec": {"restartPolicy": "Never", "containers": [container]},
    }
    disrupted = [{"type": "DisruptionTarget", "status": "True"}]
    return {
        **({} if suspend is None else {"suspend": suspend}),
        "completionMode": "Indexed", "completions": pods, "parallelism": pods, "template": template,
        "podFailurePolicy": {"rules": [{"action": "Ignore", "onPodConditions": disrupted}]},
    }  # fmt: skip


def _define_jobsets(api: Api) -> None:
    module = build.jobset_module()
    assert module is not None
    text = (module / "config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml").read_text("utf-8")
    with contextlib.suppress(ApiError):
        api.post(CRDS, yaml.load(text, Loader=yaml.CSafeLoader))
    end = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(ApiError):
            api.get(list_path("JobSet"))
            return
        assert time.monotonic() < end, "the CRD of JobSets is not established"
        time.sleep(0.2)
