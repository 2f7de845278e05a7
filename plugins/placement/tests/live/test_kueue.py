"""Next to real Kueue: the controller answers its admission checks, with the rights of the shipped roles alone."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.apply import apply
from tests.kubernetes.cluster import ControlPlane, control_plane
from tests.kubernetes.kubelet import add_nodes
from tests.kubernetes.kueue import create, kueue_manager, list_objects, why_not
from tests.kubernetes.kueue_jobs import RESOURCE, build_job, run_jobs
from unfold_placement.kubernetes.manifests import build_admission_check, build_check_roles
from unfold_placement.workload.kueue_objects import read_queue_snapshot
from unfoldkit.kubernetes.api import Api, Body

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(600)]
WAIT_S = 60.0


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[ControlPlane, Api]]:
    """Kueue on a control plane of its own: two nodes of four GPUs, quota of sixteen, one check."""
    if reason := why_not():
        pytest.skip(reason)
    with control_plane() as plane, kueue_manager(plane) as api:
        apply(api, build_check_roles())
        create(api, build_admission_check("training"))
        add_nodes(api, 2, {"cpu": "64", "memory": "256Gi", RESOURCE: "4"})
        group = {
            "coveredResources": [RESOURCE],
            "flavors": [{"name": "default", "resources": [{"name": RESOURCE, "nominalQuota": "16"}]}],
        }
        checks = {"admissionChecks": [{"name": "unfold-training"}]}
        spec = {"namespaceSelector": {}, "resourceGroups": [group], "admissionChecksStrategy": checks}
        version = "kueue.x-k8s.io/v1beta2"
        create(api, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}})
        create(api, {"apiVersion": version, "kind": "ResourceFlavor", "metadata": {"name": "default"}, "spec": {}})
        create(api, {"apiVersion": version, "kind": "ClusterQueue", "metadata": {"name": "team"}, "spec": spec})
        meta = {"name": "main", "namespace": "team"}
        create(api, {"apiVersion": version, "kind": "LocalQueue", "metadata": meta, "spec": {"clusterQueue": "team"}})
        yield plane, api


@contextlib.contextmanager
def serving(plane: ControlPlane, folder: Path, **kubernetes: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``unfold serve`` as the controller's account."""
    cluster = {
        "context": "controller", "kubeconfig": str(plane.kubeconfig), "kueue": True,
        "resources": {"gpu": RESOURCE}, **kubernetes,
    }  # fmt: skip
    spec = {
        "version": 1, "kind": "placement", "name": "training", "policy": {"fifo": {"backfill": True}},
        "cluster": {"kubernetes": cluster, "lease": "9 s"},
    }  # fmt: skip
    path = folder / "spec.yaml"
    path.write_text(json.dumps(spec), encoding="utf-8")
    words = [sys.executable, "-m", "unfoldkit", "serve", str(path), "--port", "0", "--run", str(folder / "run")]
    with (folder / "log").open("ab") as log, subprocess.Popen(words, stdout=log, stderr=log) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


def states(api: Api) -> dict[str, str]:
    """Return the state of the check of each workload, by the name of its Job."""
    found = {}
    for body in list_objects(api, "Workload"):
        name = body["metadata"]["name"].removeprefix("job-").rpartition("-")[0]
        checks = body.get("status", {}).get("admissionChecks") or [{"state": ""}]
        found[name] = checks[0]["state"]
    return found


def is_active(api: Api) -> bool:
    """Return whether the check is active: only then does its ClusterQueue reserve quota."""
    (check,) = list_objects(api, "AdmissionCheck")
    conditions = check.get("status", {}).get("conditions", ())
    return any(item["type"] == "Active" and item["status"] == "True" for item in conditions)


def resumed(api: Api) -> set[str]:
    """Return the Jobs that Kueue has resumed."""
    jobs = api.get("/apis/batch/v1/namespaces/team/jobs")["items"]
    return {body["metadata"]["name"] for body in jobs if not body["spec"]["suspend"]}


def until(holds: Callable[[], bool], log: Path) -> None:
    """Wait until something holds."""
    end_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end_s, log.read_text("utf-8")[-2000:]
        time.sleep(0.2)


def delete_jobs(api: Api) -> None:
    """Delete all Jobs and their workloads."""
    for body in api.get("/apis/batch/v1/namespaces/team/jobs")["items"]:
        path = f"/apis/batch/v1/namespaces/team/jobs/{body['metadata']['name']}"
        api.delete(path, {"propagationPolicy": "Background"})
    for body in list_objects(api, "Workload"):
        meta = body["metadata"]
        path = f"/apis/kueue.x-k8s.io/v1beta2/namespaces/team/workloads/{meta['name']}"
        with contextlib.suppress(Exception):
            api.patch(path, {"metadata": {"finalizers": None}}, "application/merge-patch+json")
            api.delete(path)


def test_kueue_keeps_quota_and_the_policies_decide(world: tuple[ControlPlane, Api], tmp_path: Path) -> None:
    """Quota for 16 pods on nodes for 8: two of four Jobs are resumed, the others hold quota until one has ended.

    The controller is killed again and again meanwhile; every Job runs once, and never more than the nodes hold.
    """
    plane, api = world
    names = [f"j{number}" for number in range(4)]
    runs_s = {f"team/{name}": 6.0 for name in names}
    with serving(plane, tmp_path) as process:
        until(lambda: is_active(api), tmp_path / "log")
        process.kill()
    with run_jobs(api, runs_s) as runner:
        for name in names:
            create(api, build_job(name, "team", 4))
        until(lambda: sorted(states(api).values()) == ["Pending"] * 4, plane.folder / "kueue.log")
        assert resumed(api) == set()
        deaths = largest = 0
        end_s = time.monotonic() + 4 * WAIT_S
        while len(runner.ended) < len(names):
            with serving(plane, tmp_path) as process:
                starts = len(runner.starts)
                # it dies at once after its first answer, and the next one carries on
                while len(runner.ended) < len(names) and len(runner.starts) in {starts, len(names)}:
                    assert time.monotonic() < end_s, (tmp_path / "log").read_text("utf-8")[-3000:]
                    active = resumed(api) - {name.partition("/")[2] for name in runner.ended}
                    largest = max(largest, len(active))
                    time.sleep(0.1)
                process.send_signal(signal.SIGKILL)
                deaths += 1
    assert deaths >= 2
    assert largest == 2
    assert {name: len(starts) for name, starts in runner.starts.items()} == dict.fromkeys(runs_s, 1)
    delete_jobs(api)


def test_the_answer_places_and_pins(world: tuple[ControlPlane, Api], tmp_path: Path) -> None:
    """A Job that fits one node is pinned to it by Kueue."""
    plane, api = world
    until(lambda: not list_objects(api, "Workload"), plane.folder / "kueue.log")
    with serving(plane, tmp_path):
        create(api, build_job("pinned", "team", 3))
        until(lambda: resumed(api) == {"pinned"}, tmp_path / "log")
        job: Body = api.get("/apis/batch/v1/namespaces/team/jobs/pinned")
        template = job["spec"]["template"]
        assert template["spec"]["nodeSelector"]["kubernetes.io/hostname"] in {"n0", "n1"}
        assert template["metadata"]["labels"]["placement.unfoldkit/workload"].startswith("team.job-pinned")
    path = tmp_path / "kueue.json"
    kinds = ("ResourceFlavor", "ClusterQueue", "LocalQueue", "Workload")
    path.write_text(json.dumps({"kind": "List", "items": [item for kind in kinds for item in list_objects(api, kind)]}))
    snapshot = read_queue_snapshot(path, 60.0)
    assert snapshot is not None
    assert any("admission checks" in note for note in snapshot.notes)
    delete_jobs(api)
