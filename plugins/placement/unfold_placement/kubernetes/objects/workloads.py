"""Workloads that own pods: all pods of a Job, JobSet, ReplicaSet or RayCluster are admitted together.

A suspended Job, JobSet, RayJob or RayCluster with the policy's label is resumed behind the policy's gate: its
controller then creates gated pods, which the policy places one by one. Pods that an owner creates later replace others,
and are placed alone. A preempted cluster of Ray that was resumed so is suspended again: a Ray job fails with its head.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from unfold_placement.kubernetes.objects.codec import Body, Scope, annotation_key, json_pointer, parse_time
from unfoldkit.kubernetes.api import MERGE, Api, ApiError

POLICY = annotation_key("policy")
ADMITTED = annotation_key("admitted")
"""Annotation of a workload that was resumed: one that its user suspends later stays suspended."""
JOBSET_NAME, REPLICATED_JOB = "jobset.sigs.k8s.io/jobset-name", "jobset.sigs.k8s.io/replicatedjob-name"
RAY_GROUP = "ray.io/group"
JOB_API, JOBSET_API, APPS_API = "/apis/batch/v1", "/apis/jobset.x-k8s.io/v1alpha2", "/apis/apps/v1"
RAY_API = "/apis/ray.io/v1"
WORKLOAD_LISTS: Mapping[str, str] = {
    "Job": f"{JOB_API}/{{}}/jobs",
    "JobSet": f"{JOBSET_API}/{{}}/jobsets",
    "RayJob": f"{RAY_API}/{{}}/rayjobs",
    "RayCluster": f"{RAY_API}/{{}}/rayclusters",
}
"""Paths of the lists of workloads that can be suspended, by kind."""
IDLE_STATES: Mapping[str, tuple[str, frozenset[str]]] = {
    "RayJob": ("jobDeploymentStatus", frozenset({"", "Suspended"})),
    "RayCluster": ("state", frozenset({"", "suspended"})),
}
"""Fields of the status of Ray's workloads, and their values without pods: KubeRay may miss a short suspension."""
CACHE_S = 2.0


@dataclass(frozen=True, slots=True)
class Group:
    """The pods of a workload that start together.

    Attributes:
        job: Name of the group.
        size: Number of its pods.
        role: Role of the pod in it.
        created_s: Unix time of the workload's creation, from which its pods wait.
        total: Number of pods that are to succeed; 0 where pods run on.
        succeeded: Number of pods that have succeeded.
        completes: Its pod replaces one of a group that runs.
    """

    job: str
    size: int
    role: str = ""
    created_s: float = 0.0
    total: int = 0
    succeeded: int = 0
    completes: bool = False


@dataclass(slots=True)
class Owners:
    """Reads the owners of pods, each at most once in two seconds; workloads that are followed need not be read.

    Attributes:
        api: The server.
        bodies: Answer and time of reading (s), by path; None where it does not exist or may not be read.
        followed: Workloads as their watch last showed them, by path.
    """

    api: Api
    bodies: dict[str, tuple[Body | None, float]] = field(default_factory=dict)
    followed: dict[str, Body] = field(default_factory=dict)

    def follow(self, kind: str, workload: Body, *, is_gone: bool) -> None:
        """Record the current state of a workload."""
        path = self._path(kind, workload["metadata"]["name"])
        if is_gone:
            self.followed.pop(path, None)
        else:
            # the items of a list do not repeat their kind
            self.followed[path] = {**workload, "kind": kind}

    def find_admitted(self, pod: Body) -> tuple[str, Body] | None:
        """Return the workload of Ray that was resumed behind the gate and runs a pod, and its kind; None for none."""
        owner = controller_of(pod)
        if owner is None or owner.get("kind") != "RayCluster":
            return None
        cluster = self._read_owner(owner)
        parent = controller_of(cluster) if cluster is not None else None
        kind, body = ("RayCluster", cluster) if parent is None else (parent["kind"], self._read_owner(parent))
        is_admitted = body is not None and ADMITTED in body["metadata"].get("annotations", {})
        return (kind, body) if body is not None and is_admitted and kind in WORKLOAD_LISTS else None

    def find_group(self, pod: Body) -> Group | None:
        """Return the group of a pod by its owner; None if the owner forms none, or cannot be read.

        StatefulSets create their pods one after the other, so these form no group.
        """
        meta = pod["metadata"]
        labels, notes = meta.get("labels", {}), meta.get("annotations", {})
        if annotation_key("job") in labels or annotation_key("name") in notes:
            return None
        if JOBSET_NAME in labels:
            return self._find_jobset_group(labels[JOBSET_NAME], labels.get(REPLICATED_JOB, ""))
        owner: Body = next((item for item in meta.get("ownerReferences", ()) if item.get("controller")), {})
        if owner.get("kind") == "Job":
            body = self._read_owner(owner)
            spec = (body or {}).get("spec", {})
            return _group(body, _job_width(spec), "", _completions(spec), _count_succeeded(body or {}))
        if owner.get("kind") == "ReplicaSet":
            body = self._read(f"{APPS_API}/{self._namespace}/replicasets/{owner['name']}")
            return _group(body, int((body or {}).get("spec", {}).get("replicas", 1)))
        if owner.get("kind") == "RayCluster":
            return self._find_ray_group(owner, labels.get(RAY_GROUP, ""))
        return None

    def _find_jobset_group(self, name: str, role: str) -> Group | None:
        """Return the group of the pods of a JobSet that exist together: of a role that waits for others, its own."""
        body = self._read(f"{JOBSET_API}/{self._namespace}/jobsets/{name}")
        spec = (body or {}).get("spec", {})
        roles = spec.get("replicatedJobs", ())
        own = [item for item in roles if item["name"] == role and _awaits_others(spec, item)]
        stage = own or [item for item in roles if not _awaits_others(spec, item)]
        size = sum(int(item.get("replicas", 1)) * _job_width(item["template"]["spec"]) for item in stage)
        total = sum(int(item.get("replicas", 1)) * _completions(item["template"]["spec"]) for item in stage)
        jobs = self._read(f"{JOB_API}/{self._namespace}/jobs", labelSelector=f"{JOBSET_NAME}={name}")
        names = {item["name"] for item in stage}
        succeeded = sum(
            _count_succeeded(job)
            for job in (jobs or {}).get("items", ())
            if job.get("metadata", {}).get("labels", {}).get(REPLICATED_JOB, role) in names
        )
        group = _group(body, size, role, total, succeeded)
        return replace(group, job=f"{group.job}/{role}") if group is not None and own else group

    def _find_ray_group(self, owner: Body, role: str) -> Group | None:
        """Return the group of the pods of a cluster of Ray.

        A RayJob that was suspended has another cluster than before; it waits since it was created itself.
        """
        body = self._read_owner(owner)
        workers = (body or {}).get("spec", {}).get("workerGroupSpecs") or ()
        group = _group(body, 1 + sum(map(_count_workers, workers)), role)
        parent = controller_of(body) if body is not None else None
        job = self._read_owner(parent) if parent is not None and parent["kind"] == "RayJob" else None
        if group is None or job is None:
            return group
        return replace(group, created_s=parse_time(job["metadata"]["creationTimestamp"]))

    @property
    def _namespace(self) -> str:
        return f"namespaces/{self.api.namespace}"

    def _path(self, kind: str, name: str) -> str:
        return f"{WORKLOAD_LISTS[kind].format(self._namespace)}/{name}"

    def _read_owner(self, owner: Body) -> Body | None:
        """Return a workload to which a reference points; None if it cannot be read."""
        if owner["kind"] not in WORKLOAD_LISTS:
            return None
        path = self._path(owner["kind"], owner["name"])
        body = self.followed.get(path)
        if body is None or body["metadata"].get("uid") != owner.get("uid"):
            # it has no label of the policy, or another of its name was there before
            body = self._read(path)
        return body

    def _read(self, path: str, **query: str) -> Body | None:
        key = f"{path}?{query}" if query else path
        body, read_s = self.bodies.get(key, (None, -CACHE_S))
        if time.monotonic() - read_s < CACHE_S:
            return body
        if len(self.bodies) > 10_000:
            self.bodies.clear()
        try:
            body = self.api.get(path, **query)
        except ApiError:
            # without its owner a pod is placed alone
            body = None
        self.bodies[key] = body, time.monotonic()
        return body


def awaits_admission(kind: str, workload: Body, scope: Scope) -> bool:
    """Return whether a workload is suspended, has the policy's label, and was neither started nor resumed before."""
    meta, status = workload["metadata"], workload.get("status", {})
    field_name, idle_states = IDLE_STATES.get(kind, ("startTime", frozenset({""})))
    return (
        meta.get("labels", {}).get(POLICY) == scope.name
        and workload["spec"].get("suspend") is True
        and ADMITTED not in meta.get("annotations", {})
        and (status.get(field_name) or "") in idle_states
        and not meta.get("deletionTimestamp")
        # what a RayJob or RayService owns, it suspends and resumes itself
        and not (kind == "RayCluster" and controller_of(workload))
    )


def resume_workload(api: Api, kind: str, workload: Body, scope: Scope, by: str) -> None:
    """Let a suspended workload create its pods behind the policy's gate.

    Raises:
        ApiError: The server refused, or the workload changed meanwhile.
    """
    meta = workload["metadata"]
    # its status may change meanwhile, its spec may not
    patch: list[Body] = [
        {"op": "test", "path": "/metadata/uid", "value": meta["uid"]},
        {"op": "test", "path": "/metadata/generation", "value": meta["generation"]},
        *_first_note(meta),
        {"op": "add", "path": f"/metadata/annotations/{json_pointer(ADMITTED)}", "value": by},
        {"op": "add", "path": "/spec/suspend", "value": False},
    ]
    for path, template in _list_templates(kind, copy.deepcopy(workload["spec"])):
        _gate_template(template, scope)
        gates = template["spec"]["schedulingGates"]
        patch.append({"op": "add", "path": f"{path}/metadata", "value": template["metadata"]})
        patch.append({"op": "add", "path": f"{path}/spec/schedulingGates", "value": gates})
    api.patch(_workload_path(api, kind, meta["name"]), patch)


def suspend_workload(api: Api, kind: str, workload: Body) -> None:
    """Suspend a workload that was resumed, and let it await admission again.

    Raises:
        ApiError: The server refused.
    """
    patch = {"metadata": {"annotations": {ADMITTED: None}}, "spec": {"suspend": True}}
    try:
        api.patch(_workload_path(api, kind, workload["metadata"]["name"]), patch, MERGE)
    except ApiError as error:
        if not error.is_absent:
            raise


def controller_of(pod: Body) -> Body | None:
    """Return the reference to the controller that creates a pod again when it is deleted; None for none."""
    owners = pod["metadata"].get("ownerReferences", ())
    return next((owner for owner in owners if owner.get("controller")), None)


def parse_count(notes: Mapping[str, str], name: str) -> int:
    """Return a count from an annotation of this program; 0 if there is none."""
    text = notes.get(annotation_key(name), "")
    return int(text) if text.isdecimal() else 0


def _first_note(meta: Body) -> list[Body]:
    """Return the operations that give an object annotations, unless it has some by now."""
    if meta.get("annotations"):
        return []
    path = "/metadata/annotations"
    return [{"op": "test", "path": path, "value": None}, {"op": "add", "path": path, "value": {}}]


def _workload_path(api: Api, kind: str, name: str) -> str:
    return f"{WORKLOAD_LISTS[kind].format(f'namespaces/{api.namespace}')}/{name}"


def _list_templates(kind: str, spec: Body) -> Iterator[tuple[str, Body]]:
    """Yield the pod templates of a workload with their paths."""
    if kind == "Job":
        yield "/spec/template", spec["template"]
    elif kind == "JobSet":
        for index, role in enumerate(spec["replicatedJobs"]):
            yield f"/spec/replicatedJobs/{index}/template/spec/template", role["template"]["spec"]["template"]
    else:
        # a RayJob that selects an existing cluster has none of its own
        path, cluster = (
            ("/spec", spec) if kind == "RayCluster" else ("/spec/rayClusterSpec", spec.get("rayClusterSpec"))
        )
        if cluster:
            yield f"{path}/headGroupSpec/template", cluster["headGroupSpec"]["template"]
            for index, group in enumerate(cluster.get("workerGroupSpecs") or ()):
                yield f"{path}/workerGroupSpecs/{index}/template", group["template"]


def _gate_template(template: Body, scope: Scope) -> None:
    labels = template.setdefault("metadata", {}).setdefault("labels", {})
    labels[POLICY] = scope.name
    gates = [gate for gate in template["spec"].get("schedulingGates", ()) if gate["name"] != scope.gate]
    template["spec"]["schedulingGates"] = [*gates, {"name": scope.gate}]


def _awaits_others(spec: Body, role: Body) -> bool:
    """Return whether pods of a replicated job come only once others are ready or complete."""
    is_ordered = (spec.get("startupPolicy") or {}).get("startupPolicyOrder") == "InOrder"
    return is_ordered or bool(role.get("dependsOn"))


def _job_width(spec: Mapping[str, Any]) -> int:
    """Return how many pods of a Job run at a time."""
    parallelism = int(spec.get("parallelism", 1))
    return min(parallelism, int(spec.get("completions") or parallelism))


def _count_workers(group: Mapping[str, Any]) -> int:
    """Return how many pods KubeRay creates at first for a group of workers."""
    least, most = int(group.get("minReplicas") or 0), group.get("maxReplicas")
    replicas = max(int(group.get("replicas") or 0), least)
    replicas = replicas if most is None else min(replicas, int(most))
    return 0 if group.get("suspend") else replicas * int(group.get("numOfHosts") or 1)


def _completions(spec: Mapping[str, Any]) -> int:
    """Return how many pods of a Job are to succeed."""
    return int(spec.get("completions") or spec.get("parallelism", 1))


def _count_succeeded(job: Body) -> int:
    """Return how many pods of a Job have succeeded, those included that its controller has yet to count."""
    status = job.get("status", {})
    uncounted = status.get("uncountedTerminatedPods") or {}
    return int(status.get("succeeded") or 0) + len(uncounted.get("succeeded") or ())


def _group(body: Body | None, size: int, role: str = "", total: int = 0, succeeded: int = 0) -> Group | None:
    if body is None or size < 1:
        return None
    meta = body["metadata"]
    created_s = parse_time(meta["creationTimestamp"])
    return Group(f"{body.get('kind', '').lower()}/{meta['name']}", size, role, created_s, total, succeeded)
