"""The tuner in charge of Deployments on a real kube-apiserver, with the rights of the exported role alone."""

from __future__ import annotations

import importlib.util
import json
import math
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from plugins.pipeline.tests.control.metrics_server import MetricsServer, metrics_server
from tests.kubernetes import build
from tests.kubernetes.apply import apply
from tests.kubernetes.cluster import ControlPlane, control_plane
from tests.served import serving, unfold

pytestmark = pytest.mark.kubernetes
LEASES = "/apis/coordination.k8s.io/v1/namespaces/unfold/leases"
ROLE = "/apis/rbac.authorization.k8s.io/v1/namespaces/unfold/roles/unfold-tuner"
DRY_RUN = ("plan.yaml", "--target", "kubernetes", "--dry-run")
SELECTOR = 'requests_total{app="video"}'
SPEC = """
version: 1
kind: pipeline
name: video
slo: {p99: 500 ms}
arrivals: {process: poisson, rate: 10/s, duration: 1 min}
hardware: {core: {price: $0.05/h}}
stages:
  detect: {latency: {core: {1: 60 ms, 4: 200 ms}}}
  face: {after: {detect: 50%}, latency: {core: {1: 60 ms, 4: 200 ms}}}
tuner: {policy: table, activation: 2 s, hold: 5 s}
control:
  prometheus: URL
  arrivals: 'requests_total{app="video"}'
  every: 1 s
  stale: 10 s
  add: 2
  kubernetes: {kubeconfig: KUBECONFIG, context: tuner, namespace: unfold, lease: 3 s}
  stages: {detect: {workload: deployment/detector}, face: {workload: statefulset/face, max: 6}}
"""


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A real control plane with the namespace of the workloads."""
    if importlib.util.find_spec("kubernetes") is None:
        pytest.skip("needs the extra kubernetes: nox -s kubernetes")
    if build.missing():
        pytest.skip(f"not built: {', '.join(build.missing())}: nox -s kubernetes")
    with control_plane() as made:
        apply(connect(made), [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "unfold"}}])
        yield made


def connect(plane: ControlPlane, context: str = "admin") -> Any:
    """Connect as an administrator, or by another context."""
    from unfoldkit.kubernetes.api import connect_api

    return connect_api(context, kubeconfig=str(plane.kubeconfig), namespace="unfold")


@pytest.fixture
def admin(plane: ControlPlane) -> Iterator[Any]:
    """An administrator, and two workloads with two replicas each."""
    api = connect(plane)
    workloads = [build_workload("Deployment", "detector"), build_workload("StatefulSet", "face")]
    apply(api, workloads)
    yield api
    for resource, name in (("deployments", "detector"), ("statefulsets", "face")):
        api.delete(f"/apis/apps/v1/namespaces/unfold/{resource}/{name}")


@pytest.fixture(scope="module")
def metrics() -> Iterator[MetricsServer]:
    """A counter that two replicas export, scraped every second, at a rate that a test may change."""
    with metrics_server() as state:
        yield state


@pytest.fixture(scope="module")
def folder(plane: ControlPlane, metrics: MetricsServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plan; the role that it exports is on the cluster."""
    folder = tmp_path_factory.mktemp("video")
    text = SPEC.replace("URL", metrics.url).replace("KUBECONFIG", str(plane.kubeconfig))
    (folder / "video.yaml").write_text(text, "utf-8")
    planned = unfold(folder, "plan", "video.yaml", "-o", "plan.yaml")
    assert planned.returncode == 0, planned.stderr
    exported = unfold(folder, "report", "plan.yaml", "--format", "tuner-roles")
    assert exported.returncode == 0, exported.stderr
    apply(connect(plane), yaml.safe_load_all(exported.stdout))
    return folder


def build_workload(kind: str, name: str) -> dict[str, Any]:
    """A workload as an operator of another project wrote it."""
    labels = {"app": name}
    spec: dict[str, Any] = {
        "replicas": 2,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}},
    }
    extra = {"serviceName": name} if kind == "StatefulSet" else {}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "unfold"},
        "spec": spec | extra,
    }


def set_traffic(metrics: MetricsServer, rate: float, since_s: float, before: float = 10.0) -> None:
    """Let the counter grow by ``before`` a second until ``since_s``, and by ``rate`` from then on."""

    def list_samples(selector: str) -> list[list[tuple[float, float]]] | None:
        if selector != SELECTOR:
            return None
        newest_s = math.floor(time.time())
        times_s = [float(newest_s - 120 + second) for second in range(121)]
        return [
            [(at, 1000 + (before * (at - since_s) if at < since_s else rate * (at - since_s)) / 2) for at in times_s]
        ] * 2

    metrics.live = list_samples


def read_desired(api: Any) -> tuple[int, int]:
    """Return the replicas that both workloads demand."""
    paths = ("deployments/detector", "statefulsets/face")
    counts = [api.get(f"/apis/apps/v1/namespaces/unfold/{path}")["spec"]["replicas"] for path in paths]
    return counts[0], counts[1]


def read_status(address: str, path: str = "/status") -> Any:
    """Return what the controller reports."""
    with urllib.request.urlopen(f"{address}{path}", timeout=10) as reply:
        text = reply.read().decode()
    return json.loads(text) if path == "/status" else text


def wait_until(is_done: Callable[[], object], seconds: float = 90.0) -> None:
    """Wait until a condition holds."""
    end_s = time.monotonic() + seconds
    while not is_done():
        assert time.monotonic() < end_s, "not in time"
        time.sleep(0.2)


def test_dry_run_then_control_then_handover(admin: Any, metrics: MetricsServer, folder: Path) -> None:
    """A dry run changes nothing; a step is followed in bounded steps; a second controller waits for the lease."""
    set_traffic(metrics, 120.0, time.time() - 30)
    for lease in admin.get(LEASES)["items"]:
        # of an earlier attempt on the same control plane
        admin.delete(f"{LEASES}/{lease['metadata']['name']}")
    before = read_desired(admin)
    command = ("plan.yaml", "--target", "kubernetes")
    preview = unfold(folder, "serve", *command, "--dry-run", "--run", "runs/none", "--format", "json")
    assert preview.returncode == 0, preview.stderr
    rows = {row[0]: row[1:] for row in json.loads(preview.stdout)["tables"][0]["rows"]}
    assert rows["detect"][0] == "deployments/detector"
    assert rows["detect"][1] == 2
    assert rows["detect"][3] == 4 < rows["detect"][2]
    assert read_desired(admin) == before == (2, 2)
    assert not admin.get(LEASES)["items"]
    assert not (folder / "runs/none").exists()

    with serving(folder, *command, "--run", "runs/one") as (first, one):
        wait_until(lambda: read_desired(admin)[0] >= 10)
        assert read_desired(admin)[1] == 6
        status = read_status(one)
        assert status["role"] == "leader"
        # without kubelets no replica exists, and the wish follows the queries all the same
        assert [stage["existing"] for stage in status["stages"]] == [0, 0]
        assert status["stages"][0]["wanted"] < 16
        assert len(admin.get(LEASES)["items"]) == 2
        text = read_status(one, "/metrics")
        assert "unfold_tuner_leader 1.0" in text
        assert 'unfold_tuner_replica_changes_total{direction="up",stage="detect"}' in text
        with serving(folder, *command, "--run", "runs/two") as (_, two):
            time.sleep(2)
            assert read_status(two)["role"] == "standby"
            began_s = time.monotonic()
            first.send_signal(signal.SIGTERM)
            assert first.wait(30) == 0
            wait_until(lambda: read_status(two)["role"] == "leader", 10)
            assert time.monotonic() - began_s < 10
            reached = read_desired(admin)[0]
            set_traffic(metrics, 240.0, time.time() - 30)
            wait_until(lambda: read_desired(admin)[0] > reached + 4)
            metrics.fault = "500"
            wait_until(lambda: read_status(two)["demand"]["error"])
            frozen = read_desired(admin)
            time.sleep(2)
            assert read_desired(admin) == frozen
            assert 'unfold_tuner_signal_failures_total{reason="refused"}' in read_status(two, "/metrics")
            metrics.fault = ""
            wait_until(lambda: not read_status(two)["demand"]["error"])


def test_role_allows_nothing_else(plane: ControlPlane, admin: Any, folder: Path) -> None:
    """The account cannot read pods, edit the Deployment, or scale another one."""
    from unfoldkit.kubernetes.api import MERGE, ApiError

    assert folder
    apply(admin, [build_workload("Deployment", "other")])
    tuner = connect(plane, "tuner")
    root = "/apis/apps/v1/namespaces/unfold/deployments"
    body = {"spec": {"replicas": 3}}
    tuner.patch(f"{root}/detector/scale", body, MERGE)
    for path in (f"{root}/other/scale", f"{root}/detector", f"{root}/detector/status"):
        with pytest.raises(ApiError, match="forbidden"):
            tuner.patch(path, body, MERGE)
    for path in ("/api/v1/namespaces/unfold/pods", "/api/v1/namespaces/unfold/secrets", f"{root}/detector"):
        with pytest.raises(ApiError, match="forbidden"):
            tuner.get(path)
    admin.delete(f"{root}/other")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("arrivals=sum(rate(a[1m]))", "ranges only allowed for vector selectors"),
        ("arrivals=nothing_total", "no series matches nothing_total"),
        ("kubernetes.namespace=elsewhere", "forbidden"),
        ("stages.detect.workload=deployment/other", "forbidden"),
    ],
)
def test_faults_of_the_spec_end_a_dry_run(setting: str, message: str, admin: Any, folder: Path) -> None:
    """Each is an error with exit code 2, before anything is scaled."""
    result = unfold(folder, "serve", *DRY_RUN, "--set", f"control.{setting}")
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert read_desired(admin) == (2, 2)


@pytest.mark.parametrize(
    ("resource", "verb", "denied"),
    [
        ("", "patch", "patch deployments/scale detector, patch statefulsets/scale face"),
        ("leases", "", "get leases unfold-tuner.deployments.detector"),
        ("leases", "create", "create leases"),
    ],
)
def test_missing_rights_end_a_dry_run(
    resource: str, verb: str, denied: str, admin: Any, metrics: MetricsServer, folder: Path
) -> None:
    """A controller with that account would start, and then scale nothing."""
    set_traffic(metrics, 120.0, time.time() - 30)
    for lease in admin.get(LEASES)["items"]:
        admin.delete(f"{LEASES}/{lease['metadata']['name']}")
    rules = admin.get(ROLE)["rules"]
    kept = [
        {**rule, "verbs": [name for name in rule["verbs"] if verb and name != verb]}
        if resource in ("", *rule["resources"])
        else rule
        for rule in rules
    ]
    admin.patch(ROLE, {"rules": [rule for rule in kept if rule["verbs"]]}, "application/merge-patch+json")
    try:
        # the server follows a changed role within moments
        wait_until(lambda: unfold(folder, "serve", *DRY_RUN).returncode == 2, 30)
        result = unfold(folder, "serve", *DRY_RUN)
    finally:
        admin.patch(ROLE, {"rules": rules}, "application/merge-patch+json")
    assert f"this account may not {denied}" in " ".join(result.stderr.split())
    assert "--format tuner-roles" in result.stderr
    assert read_desired(admin) == (2, 2)


def test_another_autoscaler_ends_a_dry_run(admin: Any, folder: Path) -> None:
    """A HorizontalPodAutoscaler of the workload would undo every step."""
    reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "detector"}
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "detector", "namespace": "unfold"},
        "spec": {"maxReplicas": 5, "scaleTargetRef": reference},
    }
    apply(admin, [scaler])
    result = unfold(folder, "serve", *DRY_RUN)
    admin.delete("/apis/autoscaling/v2/namespaces/unfold/horizontalpodautoscalers/detector")
    assert result.returncode == 2
    assert "is scaled by the HorizontalPodAutoscaler detector already" in result.stderr


def test_a_workload_may_be_created_after_the_controller(admin: Any, metrics: MetricsServer, folder: Path) -> None:
    """The other stage is scaled meanwhile, and the status names what is missing."""
    set_traffic(metrics, 120.0, time.time() - 30)
    path = "/apis/apps/v1/namespaces/unfold/deployments/detector"
    admin.delete(path)
    with serving(folder, "plan.yaml", "--target", "kubernetes", "--run", "runs/late") as (_, address):
        wait_until(lambda: "has no deployments/detector" in read_status(address)["error"])
        wait_until(lambda: admin.get("/apis/apps/v1/namespaces/unfold/statefulsets/face")["spec"]["replicas"] > 2)
        apply(admin, [build_workload("Deployment", "detector")])
        wait_until(lambda: read_desired(admin)[0] > 2)
        assert not read_status(address)["error"]
