"""How many pods of a workload start together, read from its owner: needs no cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest

from unfold_placement.kubernetes.informer import Informer
from unfold_placement.kubernetes.objects.codec import Scope
from unfold_placement.kubernetes.objects.pods import POLICY, STARTED
from unfold_placement.kubernetes.objects.workloads import (
    ADMITTED,
    JOBSET_NAME,
    REPLICATED_JOB,
    Group,
    Owners,
    awaits_admission,
)
from unfold_placement.live import backend as kinds
from unfold_placement.live.state_store import StateStore
from unfoldkit.kubernetes.api import Api, ApiError, Body

pytestmark = pytest.mark.kubernetes
META = {"name": "w", "creationTimestamp": "1970-01-01T00:00:10Z"}


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to GET, by the last part of the path."""

    bodies: dict[str, Body]
    namespace: str = "unfold"

    def get(self, path: str, **_query: str) -> Body:
        """Return the answer, or that there is none."""
        name = path.rsplit("/", 1)[1]
        if name not in self.bodies:
            raise ApiError(404, "NotFound", path)
        return self.bodies[name]


def find_group(pod: Body, **bodies: Body) -> Group | None:
    """Return the group of a pod, given what the server has."""
    return Owners(cast("Api", Answers(bodies))).find_group({"metadata": pod})


def owned(kind: str, uid: str = "1") -> Body:
    """Return the metadata of a pod with an owner."""
    return {"name": "p", "ownerReferences": [{"kind": kind, "name": "w", "uid": uid, "controller": True}]}


@pytest.mark.parametrize(
    ("spec", "status", "size", "total", "succeeded"),
    [
        ({"parallelism": 4, "completions": 4}, {}, 4, 4, 0),
        ({"parallelism": 4, "completions": 10}, {"succeeded": 7}, 4, 10, 7),
        ({"parallelism": 4, "completions": 2}, {"uncountedTerminatedPods": {"succeeded": ["uid"]}}, 2, 2, 1),
        ({"parallelism": 3}, {"succeeded": 1, "uncountedTerminatedPods": {}}, 3, 3, 1),
        ({}, {"uncountedTerminatedPods": None}, 1, 1, 0),
    ],
)
def test_a_job_says_how_many_pods_are_left(
    spec: Body, status: dict[str, Any], size: int, total: int, succeeded: int
) -> None:
    """Its width, its completions, and those that succeeded, counted or not."""
    body = {"kind": "Job", "metadata": META, "spec": spec, "status": status}
    assert find_group(owned("Job"), w=body) == Group("job/w", size, "", 10.0, total, succeeded)


def test_a_jobset_adds_up_its_jobs() -> None:
    """The pods of all roles start together; what has succeeded is read from the Jobs."""
    roles = [
        {"name": "driver", "template": {"spec": {}}},
        {"name": "workers", "replicas": 2, "template": {"spec": {"parallelism": 3, "completions": 3}}},
    ]
    body = {"kind": "JobSet", "metadata": META, "spec": {"replicatedJobs": roles}}
    jobs = {"items": [{"status": {"succeeded": 3}}, {"status": {"succeeded": 1}}, {}]}
    labels = {JOBSET_NAME: "w", REPLICATED_JOB: "workers"}
    pod = {**owned("Job"), "labels": labels}
    assert find_group(pod, w=body, jobs=jobs) == Group("jobset/w", 7, "workers", 10.0, 7, 4)
    # the Jobs may not be readable
    assert find_group(pod, w=body) == Group("jobset/w", 7, "workers", 10.0, 7, 0)


def test_a_jobset_whose_jobs_come_one_after_another_forms_a_gang_of_each() -> None:
    """Pods that come once others are ready would never meet these in one gang."""
    workers = {"name": "workers", "replicas": 2, "template": {"spec": {"parallelism": 3, "completions": 3}}}
    roles: list[dict[str, Any]] = [{"name": "driver", "template": {"spec": {}}}, workers]
    jobs = {
        "items": [
            {"metadata": {"labels": {REPLICATED_JOB: "driver"}}, "status": {"succeeded": 1}},
            {"metadata": {"labels": {REPLICATED_JOB: "workers"}}, "status": {"succeeded": 2}},
        ]
    }
    ordered = {"replicatedJobs": roles, "startupPolicy": {"startupPolicyOrder": "InOrder"}}
    depends = {"replicatedJobs": [roles[0], {**workers, "dependsOn": [{"name": "driver", "status": "Complete"}]}]}
    for spec, driver in ((ordered, "jobset/w/driver"), (depends, "jobset/w")):
        body = {"kind": "JobSet", "metadata": META, "spec": spec}
        found = {
            role: find_group({**owned("Job"), "labels": {JOBSET_NAME: "w", REPLICATED_JOB: role}}, w=body, jobs=jobs)
            for role in ("driver", "workers")
        }
        assert found["workers"] == Group("jobset/w/workers", 6, "workers", 10.0, 6, 2)
        assert found["driver"] == Group(driver, 1, "driver", 10.0, 1, 1)


def test_replicas_run_on() -> None:
    """A ReplicaSet has no end, so no pod of it is the last."""
    body = {"kind": "ReplicaSet", "metadata": META, "spec": {"replicas": 3}}
    assert find_group(owned("ReplicaSet"), w=body) == Group("replicaset/w", 3, "", 10.0)


def test_a_ray_cluster_starts_with_its_head_and_workers() -> None:
    """Each group has its replicas within its bounds, of several hosts each; a suspended one has no pods."""
    groups = [
        {"groupName": "gpu", "replicas": 2, "maxReplicas": 4, "numOfHosts": 3},
        {"groupName": "cpu", "minReplicas": 1, "maxReplicas": 10},
        {"groupName": "few", "replicas": 5, "maxReplicas": 2},
        {"groupName": "off", "replicas": 9, "suspend": True},
    ]
    body = {"kind": "RayCluster", "metadata": META, "spec": {"workerGroupSpecs": groups}}
    pod = {**owned("RayCluster"), "labels": {"ray.io/group": "gpu"}}
    assert find_group(pod, w=body) == Group("raycluster/w", 1 + 6 + 1 + 2, "gpu", 10.0)
    body["spec"] = {"workerGroupSpecs": None}
    assert find_group(owned("RayCluster"), w=body) == Group("raycluster/w", 1, "", 10.0)


def ray(kind: str, **parts: Any) -> Body:
    """Return a suspended workload of Ray with the policy's label."""
    meta = {**META, "uid": "1", "labels": {POLICY: "mine"}, **parts.pop("metadata", {})}
    return {"kind": kind, "metadata": meta, "spec": {"suspend": True}, **parts}


@pytest.mark.parametrize(
    ("kind", "parts", "waits"),
    [
        ("RayJob", {}, True),
        # KubeRay notes a start before it sees the suspension
        ("RayJob", {"status": {"jobDeploymentStatus": "Suspended", "startTime": "1970-01-01T00:00:20Z"}}, True),
        ("RayJob", {"status": {"jobDeploymentStatus": "Suspending"}}, False),
        ("RayJob", {"status": {"jobDeploymentStatus": "Running"}}, False),
        ("RayCluster", {"status": {"state": "suspended"}}, True),
        ("RayCluster", {"status": {"state": "ready"}}, False),
        ("RayCluster", {"metadata": {"ownerReferences": [{"kind": "RayService", "controller": True}]}}, False),
        ("RayJob", {"metadata": {"annotations": {ADMITTED: "me"}}}, False),
        ("RayJob", {"metadata": {"labels": {}}}, False),
        ("RayJob", {"spec": {"suspend": False}}, False),
    ],
)
def test_workloads_of_ray_await_admission_while_they_have_no_pods(kind: str, parts: Body, waits: bool) -> None:
    """KubeRay may miss a suspension that is over before it looks; what has an owner is left to that."""
    assert awaits_admission(kind, ray(kind, **parts), Scope("mine", "unfold")) is waits


def test_a_ray_job_waits_since_it_was_created() -> None:
    """After a suspension it has another cluster, which must not go to the end of the queue."""
    reference = {"kind": "RayJob", "name": "job", "uid": "1", "controller": True}
    meta = {"name": "w", "creationTimestamp": "1970-01-01T00:01:00Z", "ownerReferences": [reference]}
    job = ray("RayJob", metadata={"name": "job", "annotations": {ADMITTED: "me"}})
    owners = Owners(cast("Api", Answers({"w": {"kind": "RayCluster", "metadata": meta, "spec": {}}, "job": job})))
    pod = {"metadata": owned("RayCluster")}
    assert owners.find_group(pod) == Group("raycluster/w", 1, "", 10.0)
    assert owners.find_admitted(pod) == ("RayJob", job)
    job["metadata"]["annotations"].clear()
    assert owners.find_admitted(pod) is None
    assert owners.find_admitted({"metadata": owned("Job")}) is None


def test_pods_without_a_known_owner_stand_alone() -> None:
    """The owner cannot be read, or forms no group."""
    assert find_group(owned("Job")) is None
    assert find_group(owned("StatefulSet")) is None
    assert find_group({"name": "p"}) is None


def test_a_job_that_is_followed_is_not_read_again() -> None:
    """Its watch shows it, until it is gone or a pod belongs to another Job of its name."""
    owners = Owners(cast("Api", Answers({})))
    job = {"kind": "Job", "metadata": {**META, "uid": "1"}, "spec": {"parallelism": 2}}
    mine, other = ({"metadata": owned("Job", uid)} for uid in ("1", "2"))
    owners.follow("Job", job, is_gone=False)
    assert owners.find_group(mine) == Group("job/w", 2, "", 10.0, 2, 0)
    assert owners.find_group(other) is None
    owners.follow("Job", job, is_gone=True)
    owners.bodies.clear()
    assert owners.find_group(mine) is None


def pod(name: str, version: int, *, is_open: bool = False, phase: str = "Pending", lost: bool = False) -> Body:
    """Return a pod of the Job in a state that the server may show."""
    scope = Scope("mine", "unfold")
    meta: Body = {**owned("Job"), "name": name, "namespace": "unfold", "labels": {POLICY: scope.name}}
    meta |= {"resourceVersion": str(version), "creationTimestamp": META["creationTimestamp"], "annotations": {}}
    spec: Body = {"containers": [{"name": "c"}], "schedulingGates": [{"name": scope.gate}]}
    status: Body = {"phase": phase}
    if is_open:
        meta["annotations"], spec["schedulingGates"], spec["nodeName"] = {STARTED: "11.0"}, [], "n0"
    if lost:
        meta["deletionTimestamp"] = "1970-01-01T00:00:20Z"
        status["conditions"] = [{"type": "DisruptionTarget", "status": "True"}]
    return {"metadata": meta, "spec": spec, "status": status}


def test_a_pod_that_replaces_the_last_one_is_the_rest_of_its_job() -> None:
    """It comes before the lost one is withdrawn, which waits no longer; those that succeeded may be gone."""
    scope, count = Scope("mine", "unfold"), {"parallelism": 3, "completions": 3}
    body = {"kind": "Job", "metadata": META, "spec": count, "status": {"succeeded": 1}}
    store = StateStore(lambda: 30.0)
    informer = Informer(cast("Api", Answers({"w": body})), scope, store, 0.0)
    informer.owners = Owners(informer.api)
    for index in range(3):
        informer.handle_pod(pod(f"w-{index}", 1))
        informer.handle_pod(pod(f"w-{index}", 2, is_open=True, phase="Running"))
    for index in range(2):
        informer.handle_pod(pod(f"w-{index}", 3, is_open=True, phase="Succeeded"))
        informer.handle_pod(pod(f"w-{index}", 4, is_open=True, phase="Succeeded"), is_gone=True)
    informer.handle_pod(pod("w-2", 5, is_open=True, phase="Running", lost=True))
    assert store.records["w-2"].state == kinds.WAITING
    informer.handle_pod(pod("w-2-again", 6))
    task = store.records["w-2-again"].task
    assert (task.job, task.size) == ("job/w/last-1", 1)


def test_a_job_of_a_list_has_the_name_of_one_that_was_read() -> None:
    """Items of a list do not repeat their kind: a gang of two names would wait for ever."""
    job = {"metadata": {**META, "uid": "1"}, "spec": {"parallelism": 2}}
    owners = Owners(cast("Api", Answers({"w": {**job, "kind": "Job"}})))
    read = owners.find_group({"metadata": owned("Job")})
    owners.follow("Job", job, is_gone=False)
    assert owners.find_group({"metadata": owned("Job")}) == read
    assert read is not None
    assert read.job == "job/w"
