"""Pods, Jobs, JobSets and ReplicaSets of others on a real apiserver: placed as groups, where kube-scheduler agrees."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from plugins.placement.tests.cases import job, policy
from plugins.placement.tests.live.kube_world import KubeWorld
from plugins.placement.tests.live.test_kubernetes import node_of, other, soon
from tests.kubernetes.kubelet import add_node
from unfold_placement.kubernetes.objects.codec import Scope
from unfold_placement.kubernetes.objects.pods import POLICY, REFUSED
from unfold_placement.kubernetes.objects.workloads import ADMITTED, resume_workload
from unfold_placement.live.backend import Change
from unfold_placement.live.control_loop import ControlLoop
from unfold_placement.live.status import read_status, status_to_json
from unfold_placement.policies.registry import build_policies
from unfoldkit.api import UnfoldError
from unfoldkit.kubernetes.api import MERGE, Api, ApiError, Body

pytestmark = pytest.mark.kubernetes
SPACE = "namespaces/unfold"
PODS, JOBS = f"/api/v1/{SPACE}/pods", f"/apis/batch/v1/{SPACE}/jobs"
REPLICA_SETS = f"/apis/apps/v1/{SPACE}/replicasets"
LASTING = {"placement.unfoldkit/task": '{"run": 3600}'}
"""Without it the stub of a kubelet would end a pod at once."""
JOBSETS = "/apis/jobset.x-k8s.io/v1alpha2"


def controller(kube: KubeWorld, **parts: Any) -> ControlLoop:
    """Return a leading controller of the world's scope."""
    handle = kube.handle()
    handle.bind_timeout_s = 5.0
    return ControlLoop(handle, lambda: build_policies(policy(**parts)), "me", kube.scope, 10.0, 30.0)


def work(live: ControlLoop, holds: Callable[[], bool], most: float = 15.0) -> None:
    """Let the controller work until something holds."""
    end = time.monotonic() + most
    while not holds():
        assert time.monotonic() < end, waits(live)
        live.step(0.2)


def waits(live: ControlLoop) -> str:
    """Return what waits and why, for a test that fails."""
    status = status_to_json(read_status(live))
    return f"it never came: {status['waits']} {status['runs']}"


def work_for(live: ControlLoop, seconds: float) -> None:
    """Let the controller work for some time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        live.step(0.2)


def gated(kube: KubeWorld, name: str, gpus: int = 1, labels: dict[str, str] | None = None, **spec: Any) -> Body:
    """Return a pod of another program behind the policy's gate."""
    body = other(
        name, {"nvidia.com/gpu": str(gpus)}, schedulingGates=[{"name": f"placement.unfoldkit/{kube.scope}"}], **spec
    )
    body["metadata"] |= {"labels": {POLICY: kube.scope, **(labels or {})}, "annotations": dict(LASTING)}
    return body


def create_pods(admin: Api, template: Body, owner: Body, names: list[str], labels: dict[str, str]) -> None:
    """Do what a workload's own controller does: create pods of its template."""
    meta = owner["metadata"]
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": meta["name"], "uid": meta["uid"]}
    for name in names:
        own = {
            "name": name,
            "labels": {**template["metadata"].get("labels", {}), **labels},
            "annotations": template["metadata"].get("annotations", {}),
            "ownerReferences": [{**reference, "controller": True}],
        }
        admin.post(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": own, "spec": template["spec"]})


def job_body(kube: KubeWorld, name: str, width: int, gpus: int = 1) -> Body:
    """Return a suspended indexed Job with the policy's label."""
    resources = {"requests": {"nvidia.com/gpu": str(gpus)}, "limits": {"nvidia.com/gpu": str(gpus)}}
    spec = {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x", "resources": resources}]}
    indexed = {"completionMode": "Indexed", "parallelism": width, "completions": width}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": {POLICY: kube.scope}},
        "spec": {"suspend": True, **indexed, "template": {"metadata": {"annotations": LASTING}, "spec": spec}},
    }


@contextlib.contextmanager
def cleaned(admin: Api, *paths: str) -> Iterator[None]:
    """Delete some objects at the end."""
    try:
        yield
    finally:
        for path in paths:
            with contextlib.suppress(ApiError):
                admin.delete(path, {"propagationPolicy": "Background"})


def test_a_suspended_job_is_placed_as_a_gang(kube: KubeWorld, admin: Api) -> None:
    """The controller resumes it behind its gate; its pods start together or not at all, and replacements alone."""
    live = controller(kube, gang={})
    with cleaned(admin, f"{JOBS}/train", f"{JOBS}/large"):
        for name, width, gpus in (("train", 3, 3), ("large", 6, 3)):
            admin.post(JOBS, job_body(kube, name, width, gpus))
        work(live, lambda: not any(admin.get(f"{JOBS}/{name}")["spec"]["suspend"] for name in ("train", "large")))
        bodies = {name: admin.get(f"{JOBS}/{name}") for name in ("train", "large")}
        for name, body in bodies.items():
            template = body["spec"]["template"]
            assert template["spec"]["schedulingGates"] == [{"name": live.backend.scope.gate}]  # type: ignore[attr-defined]
            indices = range(body["spec"]["parallelism"])
            labels = {"batch.kubernetes.io/job-name": name}
            create_pods(admin, template, body, [f"{name}-{index}" for index in indices], labels)
        work(live, lambda: all(node_of(admin, f"train-{index}") for index in range(3)))
        work_for(live, 1.0)
        assert len({node_of(admin, f"train-{index}") for index in range(3)}) == 3
        # six pods of three GPUs do not fit on three nodes of four: none of them may start
        assert not any(node_of(admin, f"large-{index}") for index in range(6))
        admin.delete(f"{PODS}/train-1", {"gracePeriodSeconds": 0})
        create_pods(admin, bodies["train"]["spec"]["template"], bodies["train"], ["train-1b"], {})
        work(live, lambda: bool(node_of(admin, "train-1b")))


@pytest.mark.parametrize("notes", [None, {"example.org/team": "a/b"}])
def test_a_status_does_not_delay_the_admission_of_a_job(
    kube: KubeWorld, admin: Api, notes: dict[str, str] | None
) -> None:
    """Kubernetes' own controller writes the status of a new Job at once; a changed spec is looked at again."""
    scope, api = Scope(kube.scope, "unfold"), kube.handle().api
    body = job_body(kube, "noted", 2)
    if notes:
        body["metadata"]["annotations"] = notes
    with cleaned(admin, f"{JOBS}/noted"):
        seen = admin.post(JOBS, body)
        admin.patch(f"{JOBS}/noted", {"spec": {"parallelism": 1}}, MERGE)
        with pytest.raises(ApiError) as refused:
            resume_workload(api, "Job", seen, scope, "me")
        assert refused.value.is_conflict
        seen = admin.get(f"{JOBS}/noted")
        condition = {"type": "Suspended", "status": "True", "reason": "JobSuspended"}
        admin.patch(f"{JOBS}/noted/status", {"status": {"conditions": [condition]}}, MERGE)
        resume_workload(api, "Job", seen, scope, "me")
        resumed = admin.get(f"{JOBS}/noted")
        assert not resumed["spec"]["suspend"]
        assert resumed["metadata"]["annotations"] == {**(notes or {}), ADMITTED: "me"}
        assert resumed["spec"]["template"]["metadata"]["annotations"] == LASTING
        assert resumed["spec"]["template"]["spec"]["schedulingGates"] == [{"name": scope.gate}]


@pytest.mark.parametrize(("made", "settle_s", "waits"), [(3, 20.0, False), (2, 1.0, True)])
def test_a_whole_gang_does_not_wait_for_more(
    kube: KubeWorld, admin: Api, made: int, settle_s: float, waits: bool
) -> None:
    """Pods that come one by one are reported together; once a gang is whole, nothing else of it can come."""
    handle = kube.handle()
    handle.settle_s = settle_s
    after = handle.snapshot().after
    with cleaned(admin, f"{JOBS}/whole"):
        owner = admin.post(JOBS, job_body(kube, "whole", 3))
        began_s = time.monotonic()
        create_pods(admin, gated(kube, "whole"), owner, [f"whole-{index}" for index in range(made)], {})
        seen: list[Change] = []
        while len(seen) < made:
            seen += handle.watch(seen[-1].number if seen else after, 5.0) or ()
        assert [change.task for change in seen] == [f"whole-{index}" for index in range(made)]
        assert (time.monotonic() - began_s >= settle_s) is waits


def test_a_job_that_its_user_suspends_stays_suspended(kube: KubeWorld, admin: Api) -> None:
    """Only the first suspension waits for admission."""
    live = controller(kube, gang={})
    with cleaned(admin, f"{JOBS}/paused"):
        admin.post(JOBS, job_body(kube, "paused", 1))
        work(live, lambda: not admin.get(f"{JOBS}/paused")["spec"]["suspend"])
        admin.patch(f"{JOBS}/paused", {"spec": {"suspend": True}}, MERGE)
        work_for(live, 1.5)
        assert admin.get(f"{JOBS}/paused")["spec"]["suspend"]


def test_a_preempted_job_is_evicted_and_comes_back_as_a_gang(kube: KubeWorld, admin: Api) -> None:
    """Pods of an owner are evicted rather than created again: their controller makes new ones, gated as the first."""
    live = controller(kube, priority={"preempt": True}, gang={})
    with cleaned(admin, f"{JOBS}/low"):
        admin.post(JOBS, job_body(kube, "low", 3, 4))
        work(live, lambda: not admin.get(f"{JOBS}/low")["spec"]["suspend"])
        body = admin.get(f"{JOBS}/low")
        create_pods(admin, body["spec"]["template"], body, ["low-0", "low-1", "low-2"], {})
        work(live, lambda: all(node_of(admin, f"low-{index}") for index in range(3)))
        urgent = gated(kube, "urgent", 4)
        urgent["metadata"]["annotations"] = {"placement.unfoldkit/task": '{"priority": 9, "run": 3600}'}
        admin.post(PODS, urgent)
        evicted = {"low-0", "low-1", "low-2"}
        work(live, lambda: not evicted & {item["metadata"]["name"] for item in admin.get(PODS)["items"]})
        create_pods(admin, body["spec"]["template"], body, ["low-3", "low-4", "low-5"], {})
        work(live, lambda: bool(node_of(admin, "urgent")))
        work_for(live, 1.0)
        assert not any(node_of(admin, f"low-{index}") for index in (3, 4, 5))
        admin.delete(f"{PODS}/urgent", {"gracePeriodSeconds": 0})
        work(live, lambda: all(node_of(admin, f"low-{index}") for index in (3, 4, 5)))


def test_what_replaces_the_last_pods_of_a_job_starts(kube: KubeWorld, admin: Api) -> None:
    """Some pods of a Job have succeeded, the others are lost: those that replace these start, and not before."""
    live = controller(kube, gang={})
    with cleaned(admin, f"{JOBS}/tail"):
        admin.post(JOBS, job_body(kube, "tail", 4, 1))
        work(live, lambda: not admin.get(f"{JOBS}/tail")["spec"]["suspend"])
        body = admin.get(f"{JOBS}/tail")
        template = body["spec"]["template"]
        notes = {"placement.unfoldkit/task": '{"run": 0.5}'}
        brief = {**template, "metadata": {**template["metadata"], "annotations": notes}}
        create_pods(admin, brief, body, ["tail-0", "tail-1"], {})
        create_pods(admin, template, body, ["tail-2", "tail-3"], {})
        ended = [f"{PODS}/tail-{index}" for index in range(2)]
        work(live, lambda: all(admin.get(path)["status"].get("phase") == "Succeeded" for path in ended))
        for name in ("tail-2", "tail-3"):
            admin.delete(f"{PODS}/{name}", {"gracePeriodSeconds": 0})
        work_for(live, 0.5)
        create_pods(admin, template, body, ["tail-4"], {})
        work_for(live, 1.0)
        assert not node_of(admin, "tail-4")
        create_pods(admin, template, body, ["tail-5"], {})
        work(live, lambda: bool(node_of(admin, "tail-4") and node_of(admin, "tail-5")))


def test_the_pods_of_a_replica_set_start_together(kube: KubeWorld, admin: Api) -> None:
    """A Deployment's first replicas are a group; one that replaces another later starts alone."""
    live = controller(kube, gang={})
    template = gated(kube, "x", 3, {"app": "web"})
    spec = {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}}
    body = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web"}}
    with cleaned(admin, f"{REPLICA_SETS}/web"):
        pod = {"metadata": template["metadata"], "spec": template["spec"]}
        owner = admin.post(REPLICA_SETS, {**body, "spec": {**spec, "template": pod}})
        create_pods(admin, pod, owner, ["web-0", "web-1"], {})
        work_for(live, 1.5)
        assert not node_of(admin, "web-0")
        create_pods(admin, pod, owner, ["web-2"], {})
        work(live, lambda: all(node_of(admin, f"web-{index}") for index in range(3)))
        admin.delete(f"{PODS}/web-2", {"gracePeriodSeconds": 0})
        create_pods(admin, pod, owner, ["web-3"], {})
        work(live, lambda: bool(node_of(admin, "web-3")))


def test_a_suspended_jobset_is_one_gang(kube: KubeWorld, admin: Api) -> None:
    """All replicated jobs of a JobSet start together; their names are the roles."""
    with cleaned(admin, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/jobsets.jobset.x-k8s.io"):
        define_jobsets(admin)
        live = controller(kube, gang={})
        template = job_body(kube, "x", 1, 2)["spec"]["template"]
        roles = [
            {"name": name, "replicas": replicas, "template": {"spec": {"parallelism": width, "template": template}}}
            for name, replicas, width in (("driver", 1, 1), ("workers", 2, 2))
        ]
        body = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": {"name": "mpi"}}
        body["metadata"]["labels"] = {POLICY: kube.scope}  # type: ignore[index]
        admin.post(f"{JOBSETS}/{SPACE}/jobsets", {**body, "spec": {"suspend": True, "replicatedJobs": roles}})
        path = f"{JOBSETS}/{SPACE}/jobsets/mpi"
        work(live, lambda: not admin.get(path)["spec"]["suspend"])
        resumed = admin.get(path)
        names = []
        for role in resumed["spec"]["replicatedJobs"]:
            labels = {"jobset.sigs.k8s.io/jobset-name": "mpi", "jobset.sigs.k8s.io/replicatedjob-name": role["name"]}
            count = role["replicas"] * role["template"]["spec"]["parallelism"]
            names += [f"mpi-{role['name']}-{index}" for index in range(count)]
            if role["name"] == "workers":
                work_for(live, 1.0)
                assert not node_of(admin, "mpi-driver-0")
            create_pods(admin, role["template"]["spec"]["template"], resumed, names[-count:], labels)
        work(live, lambda: all(node_of(admin, name) for name in names))
        roles_by_task = {record.task.name: record.task.role for record in live.backend.snapshot().records}
        assert {roles_by_task[name] for name in names} == {"driver", "workers"}


def define_jobsets(admin: Api) -> None:
    """Define the resource of JobSets; its fields are not checked."""
    names = {"kind": "JobSet", "plural": "jobsets", "singular": "jobset"}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1alpha2", "served": True, "storage": True, "schema": schema}
    meta = {"name": "jobsets.jobset.x-k8s.io"}
    spec = {"group": "jobset.x-k8s.io", "scope": "Namespaced", "names": names, "versions": [version]}
    body = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": meta, "spec": spec}
    admin.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", body)
    soon(lambda: serves_jobsets(admin))


def serves_jobsets(admin: Api) -> bool:
    """Return whether the server lists JobSets by now."""
    with contextlib.suppress(ApiError, UnfoldError):
        return "items" in admin.get(f"{JOBSETS}/{SPACE}/jobsets")
    return False


def test_pods_with_fields_that_no_policy_sees_are_set_aside(kube: KubeWorld, admin: Api) -> None:
    """A pod with a resource claim keeps its gate and shows the reason, and others pass it."""
    live = controller(kube, fifo={})
    admin.post(PODS, gated(kube, "claims", resourceClaims=[{"name": "device", "resourceClaimName": "c"}]))
    term = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}}
    near = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    admin.post(PODS, gated(kube, "near", affinity=near))
    admin.post(PODS, gated(kube, "plain"))
    work(live, lambda: bool(node_of(admin, "plain")))
    work(
        live,
        lambda: all(
            REFUSED in admin.get(f"{PODS}/{name}")["metadata"].get("annotations", {}) for name in ("claims", "near")
        ),
    )
    assert "resource claim device" in admin.get(f"{PODS}/claims")["metadata"]["annotations"][REFUSED]


def test_a_changed_taint_or_label_changes_where_pods_go(kube: KubeWorld, admin: Api) -> None:
    """A task waits for a label and starts when a node gets it; a cordon keeps new ones away and stops none."""
    live = controller(kube, fifo={})
    admin.post(PODS, gated(kube, "picky", nodeSelector={"disk": "ssd"}))
    work_for(live, 1.5)
    assert not node_of(admin, "picky")
    admin.patch("/api/v1/nodes/n2", {"metadata": {"labels": {"disk": "ssd"}}}, MERGE)
    work(live, lambda: node_of(admin, "picky") == "n2")
    admin.patch("/api/v1/nodes/n2", {"spec": {"unschedulable": True}}, MERGE)
    admin.post(PODS, gated(kube, "second", nodeSelector={"disk": "ssd"}))
    work_for(live, 2.0)
    assert (node_of(admin, "picky"), node_of(admin, "second")) == ("n2", "")
    admin.patch("/api/v1/nodes/n2", {"spec": {"unschedulable": None}}, MERGE)
    work(live, lambda: node_of(admin, "second") == "n2")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", range(1))
def test_kube_scheduler_accepts_every_chosen_node(kube: KubeWorld, admin: Api, seed: int) -> None:
    """Pods with random constraints are bound where the policy put them, and the opened ones at the first attempt."""
    rng = random.Random(seed)  # noqa: S311 - of pods
    names = []
    for index in range(6):
        name = f"z{index}"
        names.append(name)
        labels = {"zone": f"zone-{index % 2}", "disk": rng.choice(["ssd", "hdd"])}
        add_node(admin, name, {"nvidia.com/gpu": "4", "cpu": "8", "memory": "16Gi"}, labels)
        taints = [{"key": "nvidia.com/gpu", "value": "x", "effect": "NoSchedule"}] if index in {1, 4} else []
        admin.patch(f"/api/v1/nodes/{name}", {"spec": {"taints": taints}}, MERGE)
    try:
        live = controller(kube, fifo={})
        pods = [f"p{index}" for index in range(24)]
        for name in pods:
            admin.post(PODS, random_pod(kube, name, rng))
        work(live, lambda: len(bound_pods(admin)) >= 12, 60.0)
        work_for(live, 6.0)
        bodies = {item["metadata"]["name"]: item for item in admin.get(PODS)["items"]}
        # a pod that kube-scheduler rejects is gated again, as the next attempt
        assert not [name for name in bodies if name not in pods]
        opened = [body for body in bodies.values() if not body["spec"].get("schedulingGates")]
        assert all(body["spec"].get("nodeName") for body in opened)
        assert len(Counter(body["spec"]["nodeName"] for body in opened)) > 3
    finally:
        for name in names:
            admin.delete(f"/api/v1/nodes/{name}")


def test_kube_scheduler_accepts_ports_foreign_rules_and_least_domains(kube: KubeWorld, admin: Api) -> None:
    """What it would reject stays gated, and no pod is opened a second time."""
    live = controller(kube, fifo={})
    for index in range(3):
        admin.patch(f"/api/v1/nodes/n{index}", {"metadata": {"labels": {"zone": f"z{index % 2}"}}}, MERGE)
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    rule = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "kept"}}}
    keeper = other("keeper", {"cpu": "1"}, nodeName="n0", affinity={"podAntiAffinity": {required: [rule]}})
    admin.post(PODS, keeper)
    work_for(live, 1.0)
    spread = {"maxSkew": 1, "minDomains": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    bodies = [gated(kube, f"kept{index}", 1, {"app": "kept"}) for index in range(2)]
    selector = {"labelSelector": {"matchLabels": {"app": "spread"}}}
    constraints = [{**spread, **selector}]
    bodies += [
        gated(kube, f"spread{index}", 1, {"app": "spread"}, topologySpreadConstraints=constraints) for index in range(3)
    ]
    for index in range(4):
        body = gated(kube, f"port{index}")
        body["spec"]["containers"][0]["ports"] = [{"containerPort": 80, "hostPort": 8080}]
        bodies.append(body)
    for body in bodies:
        admin.post(PODS, body)
    work(live, lambda: len(bound_pods(admin)) == 8, 30.0)
    work_for(live, 6.0)
    bound = bound_pods(admin)
    assert len(bound) == 8
    assert not [name for name in bound if "-" in name]
    assert "n0" not in {node_of(admin, f"kept{index}") for index in range(2)}
    assert len({node_of(admin, name) for name in bound if name.startswith("port")}) == 3


def random_pod(kube: KubeWorld, name: str, rng: random.Random) -> Body:
    """Return a pod with random constraints and containers."""
    app = rng.choice(["x", "y"])
    selector = {"matchLabels": {"app": app}}
    spec: dict[str, Any] = {}
    if rng.random() < 0.4:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    if rng.random() < 0.3:
        spec["nodeSelector"] = {"disk": rng.choice(["ssd", "hdd"])}
    if rng.random() < 0.3:
        term = {"matchExpressions": [{"key": "zone", "operator": "In", "values": [f"zone-{rng.randint(0, 1)}"]}]}
        required = {"nodeSelectorTerms": [term]}
        spec["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    if rng.random() < 0.5:
        key = rng.choice(["zone", "kubernetes.io/hostname"])
        spread = {"maxSkew": rng.randint(1, 2), "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule"}
        spec["topologySpreadConstraints"] = [{**spread, "labelSelector": selector}]
    elif rng.random() < 0.3:
        rule = [{"topologyKey": "kubernetes.io/hostname", "labelSelector": selector}]
        spec.setdefault("affinity", {})["podAntiAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": rule}
    if rng.random() < 0.4:
        requests = {"cpu": rng.choice(["2", "5"])}
        sidecar = {"restartPolicy": "Always"} if rng.random() < 0.5 else {}
        spec["initContainers"] = [{"name": "i", "image": "x", "resources": {"requests": requests}, **sidecar}]
    body = gated(kube, name, rng.randint(1, 2), {"app": app}, **spec)
    body["spec"]["containers"][0]["resources"]["requests"]["cpu"] = rng.choice(["500m", "2"])
    return body


def test_a_changed_policy_places_the_pods_that_wait(kube: KubeWorld, admin: Api) -> None:
    """Pods that request what the earlier policy offered are created again, in their order, when they start."""
    kube.policies = build_policies(policy(types={}, gang={}))
    first = controller(kube, types={}, gang={})
    for index in range(2):
        task = replace(job("a", 2, run=3600)[index], types=("none",))
        first.backend.submit(task)
    work_for(first, 1.0)
    first.stop()
    second = controller(kube, fifo={})
    work(second, lambda: bound_pods(admin) == {"a-0-1", "a-1-1"})
    requests = admin.get(f"{PODS}/a-0-1")["spec"]["containers"][0]["resources"]["requests"]
    assert requests.keys() == {"nvidia.com/gpu"}
    assert not [item for item in admin.get(PODS)["items"] if item["metadata"]["name"].endswith("-0")]


def bound_pods(admin: Api) -> set[str]:
    """Return the names of the pods that have a node."""
    return {item["metadata"]["name"] for item in admin.get(PODS)["items"] if item["spec"].get("nodeName")}
