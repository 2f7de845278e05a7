"""Answers to Kueue's admission checks, against a server of this process that compares versions as a real one does."""

from __future__ import annotations

import copy
import json
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from plugins.placement.tests.cases import policy
from unfold_placement.kubernetes.admission_check import AdmissionCheckBackend
from unfold_placement.kubernetes.objects.codec import Scope
from unfold_placement.live.control_loop import ControlLoop
from unfold_placement.live.state_store import StateStore
from unfold_placement.live.status import read_status, status_to_json
from unfold_placement.policies.registry import PolicyRule, build_policies
from unfoldkit.kubernetes.api import Api, ApiError, Body

pytestmark = pytest.mark.kubernetes

CHECK, OTHER = "unfold-mine", "someone-elses"
OWN_CHECK: Body = {
    "metadata": {"name": CHECK},
    "spec": {"controllerName": "placement.unfoldkit/mine"},
    "status": {"conditions": [{"type": "Active", "status": "True"}]},
}
RESERVED_S = datetime(2026, 3, 1, 10, tzinfo=UTC).timestamp()
"""When the quota of workloads is reserved."""


@dataclass
class Server:
    """Objects by path, and the writes; ``before_write`` may change one first, as another client would."""

    objects: dict[str, Body] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)
    version: int = 0
    before_write: Any = None
    namespace: str = "unfold"

    def now(self) -> float:
        """Return Unix time."""
        return time.time()

    def put_object(self, path: str, body: Body) -> Body:
        """Store an object under a new version."""
        self.version += 1
        body = copy.deepcopy(body)
        body["metadata"]["resourceVersion"] = str(self.version)
        self.objects[path] = body
        return body

    def get(self, path: str, **_query: str) -> Body:
        """Return an object or a list."""
        if path.endswith("/workloads"):
            return {"items": [copy.deepcopy(body) for key, body in self.objects.items() if "/workloads/" in key]}
        if path not in self.objects:
            raise ApiError(404, "NotFound", path)
        return copy.deepcopy(self.objects[path])

    def post(self, path: str, body: Body, **_query: str) -> Body:
        """Create an object."""
        return self.put_object(f"{path}/{body['metadata']['name']}", body)

    def put(self, path: str, body: Body) -> Body:
        """Replace an object."""
        if self.objects[path]["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", path)
        return self.put_object(path, body)

    def patch(self, path: str, body: Body, _kind: str = "") -> Body:
        """Merge the status of an object; a version in the patch is compared."""
        path = path.removesuffix("/status")
        if self.before_write is not None:
            hook, self.before_write = self.before_write, None
            hook()
        current = self.get(path)
        version = body.get("metadata", {}).get("resourceVersion")
        if version is not None and version != current["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", path)
        current.setdefault("status", {}).update(body["status"])
        self.writes.append(path)
        return self.put_object(path, current)


def node(name: str, gpus: int = 4, **labels: str) -> Body:
    """Return a node."""
    status = {
        "allocatable": {"cpu": "64", "memory": "256Gi", "nvidia.com/gpu": str(gpus), "pods": "110"},
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}},
        "spec": {},
        "status": status,
    }


def workload(name: str, count: int, gpus: int = 1, **spec: Any) -> Body:
    """Return a workload with a reserved quota and a pending check."""
    container = {"name": "c", "resources": {"requests": {"nvidia.com/gpu": str(gpus)}}}
    pod_set = {"name": "main", "count": count, "template": {"spec": {"containers": [container], **spec}}}
    reserved = {"type": "QuotaReserved", "status": "True", "lastTransitionTime": "2026-03-01T10:00:00Z"}
    checks = [{"name": check, "state": "Pending", "message": ""} for check in (OTHER, CHECK)]
    assignment = {"name": "main", "count": count, "flavors": {"nvidia.com/gpu": "a100"}}
    return {
        "metadata": {"name": name, "namespace": "team", "uid": name},
        "spec": {"queueName": "main", "podSets": [pod_set]},
        "status": {
            "conditions": [reserved],
            "admission": {"podSetAssignments": [assignment]},
            "admissionChecks": checks,
        },
    }


@dataclass(slots=True)
class Controller:
    """A controller of a server, fed with what changed."""

    server: Server
    now_s: float = 0.0
    patience_s: float = 60.0
    backend: AdmissionCheckBackend = field(init=False)
    loop: ControlLoop = field(init=False)

    def begin(self, *rules: PolicyRule, holder: str = "me") -> Controller:
        """Begin, or begin again after a kill: read everything from the server."""
        store = StateStore(lambda: self.now_s)
        self.backend = AdmissionCheckBackend(
            store, api=cast("Api", self.server), scope=Scope("mine", "unfold"), patience_s=self.patience_s,
            wall_clock=lambda: RESERVED_S + self.now_s,
        )  # fmt: skip
        self.feed()
        self.backend.handle_check(OWN_CHECK)
        chosen = rules or policy(fifo={"backfill": True}, gang={})
        self.loop = ControlLoop(self.backend, lambda: build_policies(chosen), holder, "mine", 60.0, 90.0)
        return self

    def feed(self) -> None:
        """Pass every object of the server to the backend."""
        for path, body in list(self.server.objects.items()):
            kind = path.split("/")[-2]
            handlers = {
                "resourceflavors": self.backend.handle_flavor, "nodes": self.backend.handle_node,
                "workloads": self.backend.handle_workload, "pods": self.backend.handle_pod,
            }  # fmt: skip
            if kind in handlers:
                handlers[kind](copy.deepcopy(body))

    def work(self, steps: int = 4) -> None:
        """Let it decide."""
        for _ in range(steps):
            self.loop.step(0.0)

    def answer(self, name: str) -> Body:
        """Return the state of its check of a workload."""
        body = self.server.objects[path_of(name)]
        (other,) = [item for item in body["status"]["admissionChecks"] if item["name"] == OTHER]
        assert other["state"] == "Pending"
        return next(item for item in body["status"]["admissionChecks"] if item["name"] == CHECK)


def path_of(name: str) -> str:
    """Return the path of a workload."""
    return f"/apis/kueue.x-k8s.io/v1beta2/namespaces/team/workloads/{name}"


def world(*workloads: Body, nodes: int = 2) -> Server:
    """Return a server with some nodes and workloads."""
    server = Server()
    server.put_object("/flavors/resourceflavors/a100", {"metadata": {"name": "a100"}, "spec": {}})
    for index in range(nodes):
        server.put_object(f"/api/v1/nodes/n{index}", node(f"n{index}"))
    for body in workloads:
        server.put_object(path_of(body["metadata"]["name"]), body)
    return server


def test_a_workload_is_answered_as_a_whole() -> None:
    """Six pods on two nodes of four GPUs are ready with their placement; the next six wait, and nothing is written."""
    controller = Controller(world(workload("a", 6), workload("b", 6))).begin()
    controller.work()
    first, second = controller.answer("a"), controller.answer("b")
    assert (first["state"], second["state"]) == ("Ready", "Pending")
    assert first["message"] == "placed on n0, n1"
    (update,) = first["podSetUpdates"]
    assert sum(json.loads(update["annotations"]["placement.unfoldkit/placement"]).values()) == 6
    assert update["labels"] == {"placement.unfoldkit/workload": "team.a"}
    assert "nodeSelector" not in update
    assert controller.server.writes == [path_of("a")]


def test_a_check_that_is_deleted_and_returns() -> None:
    """Workloads of a deleted check block no decision; those that changed meanwhile are answered once it is back."""
    server = world(workload("a", 2), workload("b", 2))
    body = workload("c", 2)
    body["status"]["admissionChecks"][1]["name"] = "second"
    controller = Controller(server).begin()
    controller.backend.handle_check({**OWN_CHECK, "metadata": {"name": "second"}})
    controller.backend.handle_check(OWN_CHECK, is_gone=True)
    for own in (server.put_object(path_of("c"), body), server.put_object(path_of("b"), workload("b", 2))):
        controller.backend.handle_workload(own)
    controller.work()
    assert server.writes == [path_of("c")]
    controller.backend.handle_check(OWN_CHECK)
    controller.work()
    assert [controller.answer(name)["state"] for name in ("a", "b")] == ["Ready", "Ready"]


def test_pods_that_share_a_node_are_pinned() -> None:
    """A selector, the flavor's labels and the node's room choose the node, and the answer pins the pods to it."""
    server = world(workload("a", 2, nodeSelector={"disk": "ssd"}))
    server.put_object("/api/v1/nodes/n2", node("n2", disk="ssd", pool="x"))
    server.put_object("/api/v1/nodes/n3", node("n3", disk="ssd"))
    server.put_object(
        "/flavors/resourceflavors/a100", {"metadata": {"name": "a100"}, "spec": {"nodeLabels": {"pool": "x"}}}
    )
    controller = Controller(server).begin()
    controller.work()
    assert controller.answer("a")["podSetUpdates"][0]["nodeSelector"] == {"kubernetes.io/hostname": "n2"}


@pytest.mark.parametrize("kill_before_write", [True, False])
def test_a_killed_controller_loses_nothing_and_admits_nothing_twice(kill_before_write: bool) -> None:
    """Killed before a write, the workload is answered by the next controller; killed after it, its room stays taken."""
    server = world(workload("a", 8), workload("b", 8))
    controller = Controller(server).begin()

    def die() -> None:
        raise KeyboardInterrupt

    if kill_before_write:
        server.before_write = die
        with pytest.raises(KeyboardInterrupt):
            controller.work()
        assert controller.answer("a")["state"] == "Pending"
    else:
        controller.work()
    # the leader's lease is not renewed any more
    server.objects = {path: body for path, body in server.objects.items() if "leases" not in path}
    again = Controller(server, now_s=5.0).begin(holder="other")
    again.work()
    assert [again.answer(name)["state"] for name in ("a", "b")] == ["Ready", "Pending"]
    assert server.writes == [path_of("a")]


def test_an_overtaken_answer_is_compared_and_repeated() -> None:
    """Another writer changes the workload first: the answer is repeated on the newer version, and keeps its change."""
    server = world(workload("a", 2))
    controller = Controller(server).begin()

    def relabel() -> None:
        body = server.get(path_of("a"))
        body["metadata"]["labels"] = {"x": "y"}
        server.put_object(path_of("a"), body)

    server.before_write = relabel
    controller.work()
    assert controller.answer("a")["state"] == "Ready"
    assert server.objects[path_of("a")]["metadata"]["labels"] == {"x": "y"}


@pytest.mark.parametrize("was_taken", [True, False])
def test_an_answer_without_a_response_is_found_out(was_taken: bool) -> None:
    """The server fails while it is answered: an answer that it took holds, one that it did not is given again."""
    server = world(workload("a", 8), workload("b", 8))
    controller = Controller(server).begin()
    patch = server.patch

    def fail_once(path: str, body: Body, kind: str = "") -> Body:
        server.patch = patch  # type: ignore[method-assign]
        if was_taken:
            patch(path, body, kind)
        raise ApiError(500, "InternalError", "the connection was lost")

    server.patch = fail_once  # type: ignore[method-assign]
    controller.loop.step(0.0)
    controller.feed()
    controller.work(6)
    assert [controller.answer(name)["state"] for name in ("a", "b")] == ["Ready", "Pending"]
    assert server.writes == [path_of("a")]


@pytest.mark.parametrize("change", ["evicted", "deleted", "reserved again"])
def test_an_answer_to_an_old_reservation_is_never_written(change: str) -> None:
    """Evicted, deleted or reserved anew meanwhile: nothing is written for the old reservation, and its room is free."""
    server = world(workload("a", 8))
    controller = Controller(server).begin()

    def interfere() -> None:
        body = server.get(path_of("a"))
        if change == "deleted":
            del server.objects[path_of("a")]
            return
        if change == "evicted":
            body["status"]["conditions"].append({"type": "Evicted", "status": "True", "lastTransitionTime": "x"})
        else:
            body["status"]["conditions"][0]["lastTransitionTime"] = "2026-03-01T11:00:00Z"
        server.put_object(path_of("a"), body)

    server.before_write = interfere
    controller.loop.step(0.0)
    controller.loop.step(0.0)
    assert server.writes == []
    if change == "deleted":
        gone = {"metadata": {"name": "a", "namespace": "team"}, "spec": {}}
        controller.backend.handle_workload(gone, is_gone=True)
    server.put_object(path_of("b"), workload("b", 8))
    controller.feed()
    controller.work()
    if change == "reserved again":
        assert [controller.answer(name)["state"] for name in ("a", "b")] == ["Ready", "Pending"]
    else:
        assert controller.answer("b")["state"] == "Ready"


def test_a_workload_without_room_gives_its_quota_back() -> None:
    """After its patience the answer is Retry with the reason and a delay; a smaller one passes it meanwhile."""
    controller = Controller(world(workload("huge", 9), workload("small", 2))).begin()
    controller.work()
    assert controller.answer("small")["state"] == "Ready"
    controller.now_s = 61.0
    controller.loop.next_election_s = 0.0
    controller.work()
    answer = controller.answer("huge")
    assert (answer["state"], answer["requeueAfterSeconds"]) == ("Retry", 60)
    assert answer["message"] == "no placement on 2 nodes within 60 s"


def test_patience_counts_from_the_reservation_whoever_was_the_controller() -> None:
    """A controller that comes late tries first, then gives up what has held its quota too long; it starts no new count.

    An eviction and a new reservation start it anew; of a clock that is behind the server's, the first sight counts.
    """
    server = world(workload("huge", 9), workload("small", 2))
    late = Controller(server, now_s=500.0).begin()
    late.work()
    assert [late.answer(name)["state"] for name in ("huge", "small")] == ["Pending", "Ready"]
    late.now_s, late.loop.next_election_s = 506.0, 0.0
    late.work()
    assert late.answer("huge")["state"] == "Retry"
    again = workload("huge", 9)
    again["status"]["conditions"][0]["lastTransitionTime"] = "2026-03-01T10:09:00Z"
    server.put_object(path_of("huge"), again)
    for now_s, state in ((530.0, "Pending"), (589.0, "Pending"), (591.0, "Retry")):
        late.now_s, late.loop.next_election_s = now_s, 0.0
        late.feed()
        late.work()
        assert late.answer("huge")["state"] == state, now_s


def test_pods_of_others_take_room_and_those_of_answered_workloads_do_not_twice() -> None:
    """A foreign pod's GPUs are not offered; a pod with the workload's label counts through its answer."""
    server = world(workload("a", 4), nodes=2)
    foreign: Body = {
        "metadata": {"name": "p", "namespace": "x"},
        "spec": {"nodeName": "n0", "containers": [{"name": "c", "resources": {"requests": {"nvidia.com/gpu": "3"}}}]},
    }
    server.put_object("/api/v1/pods/p", foreign)
    controller = Controller(server).begin(*policy(fifo={}, gang={}, pack={"level": "node"}))
    controller.work()
    assert controller.answer("a")["message"] == "placed on n1"
    own = copy.deepcopy(foreign)
    own["metadata"] = {"name": "q", "namespace": "team", "labels": {"placement.unfoldkit/workload": "team.a"}}
    own["spec"]["nodeName"] = "n1"
    server.put_object("/api/v1/pods/q", own)
    server.put_object(path_of("b"), workload("b", 1))
    controller.feed()
    controller.work()
    assert controller.answer("b")["message"] == "placed on n0"


def test_a_finished_workload_frees_its_nodes() -> None:
    """The next workload is answered once the first has finished."""
    server = world(workload("a", 8), workload("b", 8))
    controller = Controller(server).begin()
    controller.work()
    body = server.get(path_of("a"))
    body["status"]["conditions"].append({"type": "Finished", "status": "True", "lastTransitionTime": "x"})
    server.put_object(path_of("a"), body)
    controller.feed()
    controller.work()
    assert controller.answer("b")["state"] == "Ready"


def test_a_rejecting_policy_rejects_with_its_reason() -> None:
    """What a policy refuses is rejected for good."""
    controller = Controller(world(workload("a", 1))).begin()
    controller.work(1)
    server = controller.server
    server.put_object(path_of("b"), workload("b", 8))
    controller.feed()
    controller.work()
    task = next(iter(controller.backend.workloads["team/b"].tasks))
    controller.backend.refuse(task, "too late")
    controller.work(1)
    assert controller.answer("b") | {"lastTransitionTime": ""} == {
        "name": CHECK, "state": "Rejected", "message": "too late", "lastTransitionTime": "",
    }  # fmt: skip


def test_a_silent_answer_holds_up_no_other() -> None:
    """A webhook that does not answer held up every workload, and the Lease ran out meanwhile."""
    server = world(workload("a", 4), workload("b", 4))
    controller, patch, released = Controller(server).begin(), server.patch, threading.Event()

    def wait(path: str, body: Body, kind: str = "") -> Body:
        if path.startswith(path_of("a")):
            released.wait(60)
        return patch(path, body, kind)

    server.patch = wait  # type: ignore[method-assign]
    began_s = time.monotonic()
    try:
        controller.work(3)
        assert time.monotonic() - began_s < 10.0
        assert [controller.answer(name)["state"] for name in ("a", "b")] == ["Pending", "Ready"]
        assert "has not answered the write of workload team/a" in controller.backend.describe_refusal()
    finally:
        released.set()
    while controller.backend.background.busy:
        controller.work(1)
    assert controller.answer("a")["state"] == "Ready"
    assert controller.backend.describe_refusal() == ""
    assert sorted(server.writes) == [path_of("a"), path_of("b")]


def test_a_refused_answer_is_tried_less_and_less_often() -> None:
    """After twenty refusals of one workload the controller gave up all of them."""
    server = world(workload("a", 4), workload("b", 4))
    controller, patch, refused = Controller(server).begin(), server.patch, 0

    def refuse(path: str, body: Body, kind: str = "") -> Body:
        nonlocal refused
        if path.startswith(path_of("a")):
            refused += 1
            raise ApiError(403, "Forbidden", "a policy denies it")
        return patch(path, body, kind)

    server.patch = refuse  # type: ignore[method-assign]
    controller.work(30)
    assert controller.answer("b")["state"] == "Ready"
    assert refused == 2
    (wait,) = {item["why"].partition(" s: ")[2] for item in status_to_json(read_status(controller.loop))["waits"]}
    assert wait == "its answer was not written: 403 Forbidden: a policy denies it"
    server.patch, controller.now_s = patch, 3.0  # type: ignore[method-assign]
    controller.loop.next_election_s = 0.0
    controller.work()
    assert controller.answer("a")["state"] == "Ready"


def test_a_late_answer_that_fails_is_given_later() -> None:
    """A workload that is to give its quota back waits on if the server refuses that, and is placed where it can be."""
    server = world(workload("huge", 9))
    controller, patch = Controller(server).begin(), server.patch

    def fail(path: str, body: Body, kind: str = "") -> Body:
        raise ApiError(500, "InternalError", "no leader")

    controller.work()
    server.patch, controller.now_s = fail, 61.0  # type: ignore[method-assign]
    controller.loop.next_election_s = 0.0
    controller.work()
    server.patch = patch  # type: ignore[method-assign]
    server.put_object("/api/v1/nodes/n2", node("n2"))
    controller.feed()
    controller.work()
    assert controller.answer("huge")["state"] == "Ready"


def test_a_node_of_an_answer_leaves_while_no_controller_runs() -> None:
    """The next one placed the workload again and again in vain, once a step: its answer had been given."""
    server = world(workload("a", 1))
    first = Controller(server).begin()
    first.work()
    gone = first.answer("a")["podSetUpdates"][0]["nodeSelector"]["kubernetes.io/hostname"]
    server.objects = {path: body for path, body in server.objects.items() if "leases" not in path}
    del server.objects[f"/api/v1/nodes/{gone}"]
    controller = Controller(server, now_s=5.0).begin(holder="other")
    controller.work()
    answer = controller.answer("a")
    assert (answer["state"], answer["message"]) == ("Retry", "a node of its placement has left")
    last_number = controller.backend.store.last_number
    controller.work(10)
    assert controller.backend.store.last_number == last_number
