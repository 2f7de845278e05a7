"""Kueue's manager as a plain process beside the control plane, with its CRDs and without its webhooks.

Jobs are made suspended, as its webhook would make them. Its certificates are files that are never read: no webhook
is registered, and objects are read and written in the version in which they are stored.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.kubernetes import build
from tests.kubernetes.cluster import PATIENCE, ControlPlane, free_ports, running, still_there
from unfoldkit.kubernetes.api import Api, ApiError, connect_api

Body = dict[str, Any]
NAMESPACE = "kueue-system"
SECRET = "kueue-webhook-server-cert"  # noqa: S105 - the name of a secret
API = "/apis/kueue.x-k8s.io/v1beta2"
CONVERTED = frozenset({"localqueues", "clusterqueues", "workloads", "cohorts", "multikueueclusters"})
"""CRDs for which the manager writes the authority of its conversion webhook."""
PLURALS = {
    "ResourceFlavor": "resourceflavors", "ClusterQueue": "clusterqueues", "LocalQueue": "localqueues",
    "Cohort": "cohorts", "Workload": "workloads", "WorkloadPriorityClass": "workloadpriorityclasses",
    "AdmissionCheck": "admissionchecks",
}  # fmt: skip


def why_not() -> str:
    """Return why Kueue cannot run here; empty if it can."""
    if missing := build.missing():
        return f"not built: {', '.join(missing)} (python -m tests.kubernetes.build)"
    if not os.access(build.kueue(), os.X_OK):
        return "Kueue is not built (python -m tests.kubernetes.build kueue)"
    return "" if build.kueue_module() else "the source of Kueue is not in Go's module cache, and its CRDs are there"


@contextlib.contextmanager
def kueue_manager(plane: ControlPlane) -> Iterator[Api]:
    """Install the CRDs, run the manager until the block ends, and return the administrator's connection.

    Raises:
        RuntimeError: it is not built, ends, or is not ready in time; holds what it printed last.
    """
    if reason := why_not():
        raise RuntimeError(reason)
    api = connect_api("admin", kubeconfig=str(plane.kubeconfig))
    _install(api)
    health, webhook = free_ports(2)
    config = plane.folder / "kueue.json"
    config.write_text(json.dumps(_configuration(plane.folder, health, webhook)), encoding="utf-8")
    words = [f"--config={config}", "--feature-gates=VisibilityOnDemand=false", "--zap-log-level=3"]
    variables = {**os.environ, "KUBECONFIG": str(plane.kubeconfig)}
    with running(plane.folder, "kueue", words, program=build.kueue(), variables=variables) as process:
        _wait_until_ready(plane.folder, process, health)
        yield api
        still_there(plane.folder, {"kueue": process})


def create(api: Api, body: Body) -> Body:
    """Create one of Kueue's objects, a namespace or a Job."""
    kind, space = body["kind"], body["metadata"].get("namespace")
    roots = {"Namespace": "/api/v1/namespaces", "Job": f"/apis/batch/v1/namespaces/{space}/jobs"}
    if kind in PLURALS:
        roots[kind] = f"{API}/namespaces/{space}/{PLURALS[kind]}" if space else f"{API}/{PLURALS[kind]}"
    return api.post(roots[kind], body)


def list_objects(api: Api, kind: str) -> list[Body]:
    """Return all objects of one of Kueue's kinds, with their kind."""
    listed = api.get(f"{API}/{PLURALS[kind]}")
    return [{"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": kind, **item} for item in listed["items"]]


def _install(api: Api) -> None:
    module = build.kueue_module()
    assert module is not None
    root = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    names = []
    for path in sorted((module / "config/components/crd/bases").glob("*.yaml")):
        body = yaml.load(path.read_text("utf-8"), Loader=yaml.CSafeLoader)
        if body["spec"]["names"]["plural"] in CONVERTED:
            client = {"url": "https://127.0.0.1:1/convert"}
            body["spec"]["conversion"] = {
                "strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": client},
            }  # fmt: skip
        with contextlib.suppress(ApiError):
            api.post(root, body)
        names.append(body["metadata"]["name"])
    end = time.monotonic() + PATIENCE
    while not all(_is_established(api.get(f"{root}/{name}")) for name in names):
        assert time.monotonic() < end, "the CRDs of Kueue are not established"
        time.sleep(0.2)
    for body in (
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": NAMESPACE}},
    ):
        place = "/api/v1/namespaces" if body["kind"] == "Namespace" else f"/api/v1/namespaces/{NAMESPACE}/secrets"
        with contextlib.suppress(ApiError):
            api.post(place, body)


def _is_established(body: Body) -> bool:
    conditions = body.get("status", {}).get("conditions") or ()
    return any(item["type"] == "Established" and item["status"] == "True" for item in conditions)


def _configuration(folder: Path, health: int, webhook: int) -> Body:
    certificates = folder / "kueue-certificates"
    certificates.mkdir(exist_ok=True)
    shutil.copy(folder / "server.crt", certificates / "tls.crt")
    shutil.copy(folder / "server.key", certificates / "tls.key")
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": NAMESPACE,
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": "127.0.0.1", "port": webhook, "certDir": str(certificates)},
        "leaderElection": {"leaderElect": False},
        "clientConnection": {"qps": 500, "burst": 1000},
        "integrations": {"frameworks": ["batch/job"]},
    }


def _wait_until_ready(folder: Path, process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + 2 * PATIENCE
    log = folder / "kueue.log"
    # a manager that only makes certificates starts workers, too
    while "Scheduling cycle starts" not in log.read_text("utf-8", errors="replace"):
        still_there(folder, {"kueue": process})
        if time.monotonic() > end:
            last = log.read_text("utf-8", errors="replace")[-3000:]
            raise RuntimeError(f"Kueue is not ready after {2 * PATIENCE:.0f} s (port {port}): {last}")
        time.sleep(0.2)
