"""What the benchmark of placement on Kubernetes drives: watched bindings, a controller here, native gangs."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.kubernetes.apply import apply
from tests.kubernetes.cluster import ControlPlane
from unfold_placement.core.types import Ask, Task
from unfold_placement.kubernetes.client import Client, connect_client
from unfold_placement.kubernetes.manifests import build_roles
from unfold_placement.kubernetes.objects import dra
from unfold_placement.kubernetes.objects.codec import Body, Scope, annotation_key
from unfold_placement.policies.registry import build_policies
from unfold_placement.schema.policies import PolicySpec
from unfold_placement.workload.build import policy_rules
from unfoldkit.api import UnfoldError
from unfoldkit.kubernetes.api import Api, ApiError, call_all, connect_api

WAIT = 120.0
DEFAULT = "/api/v1/namespaces/default/pods"


def pod(name: str, asks: Mapping[str, str], more: Mapping[str, Any] | None = None, job: str = "") -> Body:
    """Return a small pod that asks for some resources."""
    sizes = {"requests": {"cpu": "10m", **asks}, "limits": dict(asks)}
    meta = {"name": name, "labels": {"job": job}}
    spec = {"containers": [{"name": "task", "image": "none", "resources": sizes}], **(more or {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def claiming(body: Body, name: str, scope: Scope) -> Body:
    """Let somebody's pod need one of a name that kube-scheduler counts; return the claim, which is its own to make."""
    body["metadata"]["annotations"] = {}
    dra.add_claim(body, [Ask(name, counted=True)])
    made = dra.build_claim({**body, "metadata": {**body["metadata"], "uid": ""}}, scope)
    assert made is not None
    del made["metadata"]["ownerReferences"], made["metadata"]["labels"]
    return made


@dataclass(slots=True)
class Bindings:
    """When each pod was seen to be bound, or to be unschedulable, by a watch."""

    api: Api
    path: str = DEFAULT
    bound: dict[str, float] = field(default_factory=dict)
    stuck: set[str] = field(default_factory=set)
    jobs: dict[str, str] = field(default_factory=dict)
    news: threading.Condition = field(default_factory=threading.Condition)

    def listen(self, version: str) -> None:
        """Follow the pods; where the server cuts the watch, read the list again."""
        while not self.api.closed:
            with contextlib.suppress(UnfoldError, ApiError):
                for change in self.api.watch(self.path, version):
                    version = change.body["metadata"]["resourceVersion"]
                    if change.kind != "BOOKMARK":
                        self._take(change.kind, change.body)
            version = "" if self.api.closed else self._again()

    def _again(self) -> str:
        found = self.api.get(self.path)
        there = {item["metadata"]["name"] for item in found["items"]}
        for item in [*found["items"], *({"metadata": {"name": name}} for name in set(self.bound) - there)]:
            self._take("MODIFIED" if "spec" in item else "DELETED", item)
        return str(found["metadata"]["resourceVersion"])

    def _take(self, kind: str, item: Body) -> None:
        now = time.monotonic()
        with self.news:
            self._note(kind, item, now)
            self.news.notify_all()

    def until(self, name: str) -> float:
        """Wait until a pod is bound; return when it was."""
        with self.news:
            assert self.news.wait_for(lambda: name in self.bound, WAIT), f"{name} is not bound"
            return self.bound[name]

    def unschedulable(self, name: str) -> None:
        """Wait until the scheduler has given up on a pod for now."""
        with self.news:
            assert self.news.wait_for(lambda: name in self.stuck, WAIT), f"{name} is not looked at"

    def placed(self, job: str) -> int:
        """Return how many pods of a job are bound."""
        return sum(self.jobs[name] == job for name in list(self.bound))

    def whole(self, names: Sequence[str], size: int) -> str:
        """Wait until all pods of one of some jobs are bound; return which."""
        with self.news:
            assert self.news.wait_for(lambda: any(self.placed(name) >= size for name in names), WAIT), "none is bound"
            return next(name for name in names if self.placed(name) >= size)

    def gone(self, names: Sequence[str]) -> None:
        """Wait until no pod of some jobs is bound any more."""
        with self.news:
            assert self.news.wait_for(lambda: not any(self.placed(name) for name in names), WAIT), "some never go"

    def _note(self, kind: str, item: Body, now: float) -> None:
        name, labels = item["metadata"]["name"], item["metadata"].get("labels", {})
        if kind == "DELETED":
            self.bound.pop(name, None)
            self.stuck.discard(name)
        elif item["spec"].get("nodeName"):
            self.jobs[name] = labels.get("job") or labels.get(annotation_key("job"), "")
            self.bound.setdefault(name, now)
        elif any(one.get("reason") == "Unschedulable" for one in item.get("status", {}).get("conditions", ())):
            self.stuck.add(name)


@contextlib.contextmanager
def bindings(api: Api, path: str = DEFAULT) -> Iterator[Bindings]:
    """Follow the pods of a namespace with a connection of its own."""
    own = Api(api.client, api.namespace)
    made = Bindings(own, path)
    version = own.get(path)["metadata"]["resourceVersion"]
    thread = threading.Thread(target=made.listen, args=(version,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        own.close()
        thread.join(10)


@dataclass(slots=True)
class Controlled:
    """A controller with a policy in a process of its own, and an application's client."""

    client: Client
    seen: Bindings

    def throughput(self, count: int, job: str = "s") -> float:
        """Return the seconds in which ``count`` tasks are submitted, decided on, opened and bound."""
        began = time.monotonic()
        self._submit(Task(f"{job}-{index}", {"cpu": 10}, 3600.0, job=job) for index in range(count))
        last = max(self.seen.until(f"{job}-{index}-0") for index in range(count))
        self.clear([job], count)
        return last - began

    def submit(self, jobs: Sequence[str], size: int) -> None:
        """Submit gangs, their tasks in turn."""
        self._submit(
            Task(f"{job}-{index}", {"gpu": 1000}, 3600.0, job=job, size=size) for index in range(size) for job in jobs
        )

    def first_whole(self, jobs: Sequence[str], size: int) -> str:
        """Wait until one of the gangs is bound."""
        return self.seen.whole(jobs, size)

    def placed(self, job: str) -> int:
        """Return how many tasks of a gang are bound."""
        return self.seen.placed(job)

    def clear(self, jobs: Sequence[str], size: int) -> None:
        """Take the gangs back: who waits first, so that it does not come in between."""
        order = sorted(jobs, key=self.placed)
        for job in order:
            call_all([partial(self.client.withdraw, f"{job}-{index}") for index in range(size)])
        self.seen.gone(jobs)

    def _submit(self, tasks: Iterable[Task]) -> None:
        call_all([partial(self.client.submit, task) for task in tasks])


@contextlib.contextmanager
def controlled(plane: ControlPlane, name: str, policy: Mapping[str, Any]) -> Iterator[Controlled]:
    """Run ``unfold serve`` with the rights of the shipped roles, and wait until it decides."""
    apply(connect_api("admin", kubeconfig=str(plane.kubeconfig)), build_roles())
    policies = build_policies(policy_rules(PolicySpec.model_validate(policy, strict=False)))
    made = connect_client(name, policies, context="controller", kubeconfig=str(plane.kubeconfig))
    with _served(plane, name, policy), bindings(made.api, "/api/v1/namespaces/unfold/pods") as seen:
        world = Controlled(made, seen)
        world.throughput(1, "warm")
        yield world


@contextlib.contextmanager
def _served(plane: ControlPlane, name: str, policy: Mapping[str, Any]) -> Iterator[None]:
    """Serve a policy by the command, until the block ends."""
    cluster = {"context": "controller", "kubeconfig": str(plane.kubeconfig), "namespace": "unfold"}
    spec = {"version": 1, "kind": "placement", "name": name, "policy": policy, "cluster": {"kubernetes": cluster}}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "spec.yaml"
        place.write_text(json.dumps(spec), encoding="utf-8")
        words = [sys.executable, "-m", "unfoldkit", "serve", str(place), "--port", "0", "--run", f"{folder}/run"]
        with subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            try:
                yield
            finally:
                process.terminate()
                process.wait(30)


@dataclass(slots=True)
class Native:
    """Gangs as kube-scheduler itself knows them: a PodGroup, and pods that belong to it."""

    api: Api
    seen: Bindings

    def submit(self, jobs: Sequence[str], size: int) -> None:
        """Make the groups, then their pods in turn."""
        groups = "/apis/scheduling.k8s.io/v1alpha2/namespaces/default/podgroups"
        call_all([partial(self.api.post, groups, _group(job, size)) for job in jobs])
        pods = [
            pod(f"{job}-{index}", {"nvidia.com/gpu": "1"}, {"schedulingGroup": {"podGroupName": job}}, job)
            for index in range(size)
            for job in jobs
        ]
        call_all([partial(self.api.post, DEFAULT, body) for body in pods])

    def first_whole(self, jobs: Sequence[str], size: int) -> str:
        """Wait until one of the gangs is bound."""
        return self.seen.whole(jobs, size)

    def placed(self, job: str) -> int:
        """Return how many pods of a gang are bound."""
        return self.seen.placed(job)

    def clear(self, jobs: Sequence[str], size: int) -> None:
        """Delete the gangs: who waits first, so that it does not come in between."""
        now = {"gracePeriodSeconds": 0}
        for job in sorted(jobs, key=self.placed):
            call_all([partial(self.api.delete, f"{DEFAULT}/{job}-{index}", now) for index in range(size)])
        self.seen.gone(jobs)


@contextlib.contextmanager
def native(api: Api) -> Iterator[Native]:
    """Watch native gangs."""
    with bindings(api) as seen:
        yield Native(api, seen)


def _group(name: str, size: int) -> Body:
    spec = {"schedulingPolicy": {"gang": {"minCount": size}}}
    return {
        "apiVersion": "scheduling.k8s.io/v1alpha2", "kind": "PodGroup", "metadata": {"name": name}, "spec": spec,
    }  # fmt: skip
