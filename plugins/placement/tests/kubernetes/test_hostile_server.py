"""The controller against a server that refuses, lies and breaks off: it goes on, reports why, and keeps gangs whole."""

from __future__ import annotations

import copy
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from plugins.placement.tests.kubernetes.stub_server import Body, Fault, StubServer, node, stub_server
from unfold_placement.core.controller import collect_requests
from unfold_placement.core.policy import Policy
from unfold_placement.core.types import Task
from unfold_placement.kubernetes import informer, writer
from unfold_placement.kubernetes.backend import open_backend
from unfold_placement.kubernetes.connection import ClusterAccess, read_nodes
from unfold_placement.kubernetes.objects import pods, workloads
from unfold_placement.kubernetes.objects.codec import MAX_AMOUNT, Scope, annotation_key, parse_amount
from unfold_placement.kubernetes.shadow import open_shadow
from unfold_placement.kubernetes.writer import OpeningUnits, Writer
from unfold_placement.live import backend as kinds
from unfold_placement.live import control_loop, state_store
from unfold_placement.live.backend import Start
from unfold_placement.live.control_loop import ControlLoop
from unfold_placement.live.service import ControllerThread
from unfold_placement.live.status import read_status, status_to_json
from unfold_placement.policies.registry import PolicyRule, build_policies
from unfoldkit.api import UnfoldError
from unfoldkit.kubernetes import api as api_module
from unfoldkit.kubernetes.api import Api, ApiError

pytestmark = pytest.mark.kubernetes
NAMESPACE = "unfold"
WAIT_S = 20.0


GANG = (PolicyRule("gang", {"by": "job"}),)


def new_policies(rules: Sequence[PolicyRule] = GANG) -> list[Policy]:
    """Return the policies of the controller, without state."""
    return build_policies(rules)


def gated_pod(task: Task) -> Body:
    """Return the pod of a task behind its gate."""
    asks = [ask for ask, _ in collect_requests(new_policies(), task)]
    template = {"spec": {"containers": [{"name": "x", "image": "y"}]}}
    body = pods.gated_pod(task, asks, Scope("g", NAMESPACE), time.time(), template)
    body["metadata"]["namespace"] = NAMESPACE
    return body


@dataclass(slots=True)
class Cluster:
    """A server with four nodes, and a controller that follows it."""

    server: StubServer
    thread: ControllerThread

    def submit(self, job: str, size: int) -> None:
        """Create the gated pods of a gang."""
        for index in range(size):
            task = Task(f"{job}-{index}", {"cpu": 1000, "gpu": 1000}, run=1e4, job=job, size=size)
            self.server.put("pods", gated_pod(task))

    def count_open(self, job: str) -> int:
        """Count the pods of a gang without a gate."""
        bodies = [body for body in self.server.list("pods", NAMESPACE) if body["metadata"]["name"].startswith(job)]
        return sum(not (body.get("spec") or {}).get("schedulingGates") for body in bodies)

    def count_pods(self, job: str) -> int:
        """Count the pods of a gang."""
        return sum(body["metadata"]["name"].startswith(job) for body in self.server.list("pods", NAMESPACE))

    def await_open(self, job: str, size: int) -> None:
        """Wait until a gang is open."""
        await_true(lambda: self.count_open(job) == size)


def await_true(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def controlled(server: StubServer, api: Api, rules: Sequence[PolicyRule] = GANG) -> Iterator[Cluster]:
    """Run a controller on a server."""
    for index in range(4):
        server.put("nodes", node(f"n{index}", **{"kubernetes.io/hostname": f"n{index}"}))
    loop = ControlLoop(open_backend(api, "g", bind_timeout_s=60), lambda: new_policies(rules), "me", "g")
    thread = ControllerThread(loop)
    thread.start()
    try:
        yield Cluster(server, thread)
    finally:
        server.fault = lambda *_: None
        thread.stop()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Return a cluster on which a first gang has been opened."""
    with stub_server() as (server, api), controlled(server, api) as made:
        made.submit("first", 2)
        made.await_open("first", 2)
        yield made


def is_pod_patch(method: str, path: str, _is_watch: bool) -> bool:
    """Return whether a request opens a gate."""
    return method == "PATCH" and "/pods/" in path


def test_a_deployment_that_is_scaled_down_while_it_waits(cluster: Cluster) -> None:
    """Twenty replicas never fit; the two that are left after it was scaled down start, and wait for no others."""
    scale(cluster, 20)
    create_replicas(cluster, range(20))
    cluster.submit("second", 2)
    cluster.await_open("second", 2)
    assert cluster.count_open("web") == 0
    scale(cluster, 2)
    for index in range(2, 20):
        cluster.server.remove("pods", NAMESPACE, f"web-{index}")
    cluster.await_open("web", 2)


def test_a_deployment_that_is_scaled_up_while_it_waits(cluster: Cluster) -> None:
    """The replicas that came first wait for the later ones, and hold up no one for ever."""
    cluster.submit("filler", 14)
    cluster.await_open("filler", 14)
    scale(cluster, 2)
    create_replicas(cluster, range(2))
    await_true(lambda: "web-1" in cluster.thread.loop.backend.informer.bodies)  # type: ignore[attr-defined]
    time.sleep(workloads.CACHE_S)
    scale(cluster, 4)
    create_replicas(cluster, [2, 3])
    records = cluster.thread.loop.backend.store.records  # type: ignore[attr-defined]
    await_true(
        lambda: [records[f"web-{index}"].task.size for index in range(4) if f"web-{index}" in records] == [4] * 4
    )
    for index in range(14):
        cluster.server.remove("pods", NAMESPACE, f"filler-{index}-0")
    cluster.await_open("web", 4)


def test_a_pod_that_replaces_one_of_a_running_gang_passes_reserved_nodes(cluster: Cluster) -> None:
    """Nodes are kept free for a gang that waits for the running one, which would never end without its replacement."""
    scale(cluster, 3)
    create_replicas(cluster, range(3))
    cluster.await_open("web", 3)
    cluster.submit("second", 13)
    await_true(lambda: "second-12-0" in cluster.thread.loop.backend.informer.bodies)  # type: ignore[attr-defined]
    await_true(lambda: not cluster.thread.loop.backend.informer.opening)  # type: ignore[attr-defined]
    cluster.server.remove("pods", NAMESPACE, "web-0")
    create_replicas(cluster, [3])
    cluster.await_open("web", 3)
    # a replica more than there were waits behind the gang
    scale(cluster, 4)
    create_replicas(cluster, [4])
    time.sleep(0.5)
    assert (cluster.count_open("web"), cluster.count_open("second")) == (3, 0)


def test_a_new_controller_knows_what_started_together(cluster: Cluster) -> None:
    """It took all but one pod of a workload for replacements: a lost node stopped its own pods only."""
    scale(cluster, 2)
    create_replicas(cluster, range(2))
    cluster.await_open("web", 2)
    scale(cluster, 3)
    create_replicas(cluster, [2])
    cluster.await_open("web", 3)
    backend = open_backend(Api(cluster.thread.loop.backend.api.client, NAMESPACE), "g")  # type: ignore[attr-defined]
    tasks = [record.task for record in backend.store.records.values() if record.task.name.startswith("web")]
    backend.close()
    assert sorted((task.name, task.job, task.size) for task in tasks) == [
        ("web-0", "replicaset/web", 2),
        ("web-1", "replicaset/web", 2),
        ("web-2", "replicaset/web/web-2", 1),
    ]


def test_pods_that_replace_a_lost_gang_one_by_one_start_together(cluster: Cluster) -> None:
    """The first came while another pod of the gang still ran: it started alone, and the others waited for it."""
    scale(cluster, 2)
    create_replicas(cluster, range(2))
    cluster.await_open("web", 2)
    cluster.thread.stop()
    backend = open_backend(Api(cluster.thread.loop.backend.api.client, NAMESPACE), "g")  # type: ignore[attr-defined]
    for lost in range(2):
        cluster.server.remove("pods", NAMESPACE, f"web-{lost}")
        await_true(lambda lost=lost: backend.store.records[f"web-{lost}"].state == kinds.GONE)  # type: ignore[misc]
        create_replicas(cluster, [lost + 2])
        await_true(lambda lost=lost: f"web-{lost + 2}" in backend.store.records)  # type: ignore[misc]
    tasks = [backend.store.records[name].task for name in ("web-2", "web-3")]
    backend.close()
    assert [(task.job, task.size) for task in tasks] == [("replicaset/web", 2)] * 2


@pytest.mark.parametrize(("closed", "fails"), [(1, False), (1, True), (2, False)])
def test_a_half_opened_workload_waits_as_a_whole(cluster: Cluster, closed: int, fails: bool) -> None:
    """A new controller took its closed pods for replacements of the open one; one that failed first left it torn.

    The closed one was not opened yet, or its owner created it as the first was being taken back.
    """
    scale(cluster, 2)
    create_replicas(cluster, range(2))
    cluster.await_open("web", 2)
    cluster.thread.stop()
    cluster.server.remove("pods", NAMESPACE, "web-1")
    create_replicas(cluster, [closed])
    (config,) = cluster.server.list("configmaps", NAMESPACE)
    cluster.server.put("configmaps", config | {"data": {"names": "{}", "units": '{"web-0": {"web-0": 1, "web-1": 1}}'}})
    backend = open_backend(Api(cluster.thread.loop.backend.api.client, NAMESPACE), "g")  # type: ignore[attr-defined]
    if fails:
        cluster.server.fault = lambda _, path, __: Fault(403) if path.endswith("/configmaps/unfold-g") else None
        with pytest.raises(ApiError):
            backend.lead("next", 5.0)
    cluster.server.fault = lambda *_: None
    backend.lead("next", 5.0)
    records = [record for record in backend.store.records.values() if record.task.name.startswith("web")]
    backend.close()
    assert {(record.state, record.task.job, record.task.size) for record in records} == {
        (kinds.WAITING, "replicaset/web", 2)
    }


def scale(cluster: Cluster, replicas: int) -> None:
    """Set the number of replicas."""
    meta = {"name": "web", "namespace": NAMESPACE}
    cluster.server.put("replicasets", {"kind": "ReplicaSet", "metadata": meta, "spec": {"replicas": replicas}})


def create_replicas(cluster: Cluster, indices: Iterable[int]) -> None:
    """Create replicas, as their controller does."""
    owner: Body = {"kind": "ReplicaSet", "name": "web", "uid": "1", "controller": True}
    for index in indices:
        body = gated_pod(Task(f"web-{index}", {"cpu": 1000, "gpu": 1000}, run=1e4))
        for name in ("job", "name", "size", "task"):
            body["metadata"]["labels"].pop(annotation_key(name), None)
            body["metadata"]["annotations"].pop(annotation_key(name), None)
        body["metadata"] |= {"name": f"web-{index}", "ownerReferences": [owner]}
        cluster.server.put("pods", body)


def test_watches_that_end_at_once_do_not_spin(cluster: Cluster) -> None:
    """A proxy may end every watch at once: each list is followed once a second at most."""
    cluster.server.fault = lambda _method, _path, is_watch: Fault(200, b"") if is_watch else None
    cluster.server.send("pods", None)
    cluster.server.send("nodes", None)
    time.sleep(0.5)
    before = cluster.server.count("GET", "watch=1")
    time.sleep(2)
    assert cluster.server.count("GET", "watch=1") - before <= 8


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_refused_watch_is_logged_once_and_taken_up_again(
    cluster: Cluster, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing that the server refuses is silent, and a gang of the time between is opened later."""
    cluster.server.fault = lambda _method, path, _: Fault(status) if path.endswith("v1/pods") else None
    with caplog.at_level(logging.WARNING, "unfoldkit"):
        cluster.server.send("pods", None)
        cluster.submit("second", 4)
        # a server that starts may deny it three times
        time.sleep(4.0)
    assert [record.message for record in caplog.records if "/api/v1/pods cannot be followed" in record.message] == [
        f"/api/v1/pods cannot be followed: {status} Broken: the server is broken"
    ]
    assert cluster.count_open("second") == 0
    cluster.server.fault = lambda *_: None
    cluster.await_open("second", 4)


def test_a_denial_is_logged_only_if_it_persists(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that starts denies the Lease until it has read its roles; the process is not ready meanwhile."""
    loop = cluster.thread.loop
    with caplog.at_level(logging.WARNING, "unfoldkit"):
        cluster.server.fault = lambda _method, path, _: Fault(403) if "/leases/" in path else None
        await_true(lambda: "403" in loop.last_error and not cluster.thread.is_healthy)
        cluster.server.fault = lambda *_: None
        await_true(lambda: cluster.thread.is_healthy)
        assert "no decision" not in caplog.text
        monkeypatch.setattr(control_loop, "STARTING_S", 0.0)
        cluster.server.fault = lambda _method, path, _: Fault(403) if "/leases/" in path else None
        await_true(lambda: "no decision: 403" in caplog.text)


@pytest.mark.parametrize("body", [b"<html>sign in</html>", b"", b"[]", b"null"], ids=["page", "empty", "list", "null"])
def test_answers_that_are_no_objects_are_errors_of_the_server(
    cluster: Cluster, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A proxy that signs users in answers 200 with a page: the request is named, and there is no traceback."""
    with caplog.at_level(logging.WARNING, "unfoldkit"):
        cluster.server.fault = lambda _method, path, _: Fault(200, body) if "/leases/" in path else None
        await_true(lambda: "was answered with no object" in cluster.thread.loop.last_error)
    assert not any(record.exc_info for record in caplog.records)
    await_true(lambda: not cluster.thread.is_healthy)
    cluster.server.fault = lambda *_: None
    await_true(lambda: cluster.thread.is_healthy)


@pytest.mark.parametrize("after", ["3600", "-1", "Wed, 21 Oct 2026 07:28:00 GMT", "soon"])
def test_an_overloaded_server_is_asked_again_within_bounds(after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Retry-After is, the pause is between a tenth of a second and ten seconds, and the answer is taken."""
    pauses: list[float] = []
    with stub_server() as (server, api):
        answers = iter([Fault(429, headers=(("Retry-After", after),))])
        server.fault = lambda *_: next(answers, None)
        with monkeypatch.context() as context:
            own, sleep = threading.get_ident(), time.sleep
            # threads of earlier tests pause, too
            context.setattr(time, "sleep", lambda s: pauses.append(s) if threading.get_ident() == own else sleep(s))
            assert api.get("/api/v1/nodes")["items"] == []
    assert len(pauses) == 1
    assert 0.1 <= pauses[0] <= 10.0


def test_a_refused_gang_is_never_opened_in_part(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pod that may not be patched: the dry run finds it, with a pause in between; log and status say why."""
    cluster.server.fault = lambda method, path, _: Fault(403) if method == "PATCH" and "second-3" in path else None
    before = cluster.server.count("PATCH")
    with caplog.at_level(logging.WARNING, "unfoldkit"):
        cluster.submit("second", 4)
        ends = time.monotonic() + 3
        while time.monotonic() < ends:
            assert cluster.count_open("second") == 0
            time.sleep(0.01)
    assert cluster.server.count("PATCH", "second-3") >= 2
    assert cluster.server.count("PATCH") - before <= 60
    assert any("were not opened, the first because of 403" in record.message for record in caplog.records)
    await_true(lambda: "were not opened, the first because of 403" in read_status(cluster.thread.loop).error)
    cluster.server.fault = lambda *_: None
    cluster.await_open("second", 4)
    monkeypatch.setattr(writer, "REFUSAL_SHOWN_S", 0.0)
    await_true(lambda: not read_status(cluster.thread.loop).error)


def is_opening(method: str, path: str, name: str) -> bool:
    """Return whether a request opens the gate of a pod, and is not a dry run."""
    return method == "PATCH" and path.endswith(f"/pods/{name}")


def test_a_gang_refused_after_its_rehearsal_is_taken_back_before_it_is_tried_again(cluster: Cluster) -> None:
    """A rule that changed meanwhile: what was opened is created again behind its gate, and waits there."""
    cluster.server.fault = lambda method, path, _: Fault(403) if is_opening(method, path, "second-3-0") else None
    cluster.submit("second", 4)
    await_true(lambda: cluster.server.count("PATCH", "second-3-0") >= 4)
    await_true(lambda: cluster.count_open("second") == 0)
    await_true(lambda: "its gate was not opened: 403" in explain(cluster))
    cluster.server.fault = lambda *_: None
    cluster.await_open("second", 4)


def explain(cluster: Cluster) -> str:
    """Return what the status says of the tasks that wait."""
    return " ".join(row["why"] for row in status_to_json(read_status(cluster.thread.loop))["waits"])


def test_a_gang_that_is_refused_holds_up_no_other(cluster: Cluster) -> None:
    """Each refusal made the controller pause for up to a second, with all that waited for it."""
    cluster.server.fault = lambda method, path, _: Fault(403) if method == "PATCH" and "refused-1" in path else None
    cluster.submit("refused", 2)
    await_true(lambda: cluster.server.count("PATCH", "refused-1") >= 3)
    began_s = time.monotonic()
    for index in range(5):
        cluster.submit(f"other{index}", 2)
        cluster.await_open(f"other{index}", 2)
    assert time.monotonic() - began_s < 3.0


@pytest.mark.parametrize("method", ["PATCH", "POST"])
def test_a_silent_webhook_delays_neither_others_nor_the_lease(cluster: Cluster, method: str) -> None:
    """It holds up one gang for as long as it likes; the others were opened after it, by a leader without a Lease."""
    silence = threading.Event()

    def fault(used: str, path: str, _is_watch: bool) -> Fault | None:
        if used == method and "/pods" in path and ("slow" in path or method == "POST"):
            silence.wait(WAIT_S)
        return None

    cluster.server.fault = fault
    if method == "PATCH":
        cluster.submit("slow", 2)
        await_true(lambda: cluster.server.count("PATCH", "slow") > 0)
    else:
        bind_and_disrupt(cluster, "first-0-0")
        await_true(lambda: cluster.server.count("POST", "/pods") > 0)
    try:
        began_s = time.monotonic()
        for index in range(5):
            cluster.submit(f"other{index}", 2)
            cluster.await_open(f"other{index}", 2)
        assert time.monotonic() - began_s < 5.0
        backend = cluster.thread.loop.backend
        await_true(lambda: "the server has not answered the write of" in read_status(cluster.thread.loop).error)
        assert backend.election.is_leader  # type: ignore[attr-defined]
    finally:
        silence.set()
    await_true(lambda: cluster.count_open("slow" if method == "PATCH" else "first") == 2)


def test_the_lease_is_kept_while_a_node_is_written_slowly(cluster: Cluster) -> None:
    """The resources of nodes are written before gates open, and nothing decides meanwhile: one leader stays."""
    silence = threading.Event()

    def fault(method: str, path: str, _is_watch: bool) -> Fault | None:
        if method == "PATCH" and "/nodes/" in path:
            silence.wait(WAIT_S)
        return None

    cluster.server.fault = fault
    cluster.submit("second", 4)
    election = cluster.thread.loop.backend.election  # type: ignore[attr-defined]
    await_true(lambda: cluster.server.count("PATCH", "/nodes/") > 0)
    end = time.monotonic() + 1.5 * election.ttl_s
    try:
        while time.monotonic() < end:
            assert election.is_leader
            time.sleep(0.1)
    finally:
        silence.set()
    cluster.await_open("second", 4)


def bind_and_disrupt(cluster: Cluster, name: str) -> None:
    """Drain a pod that runs."""
    body = next(body for body in cluster.server.list("pods", NAMESPACE) if body["metadata"]["name"] == name)
    body = copy.deepcopy(body)
    body["spec"]["nodeName"] = "n0"
    body["status"] = {"conditions": [{"type": "DisruptionTarget", "status": "True"}]}
    cluster.server.put("pods", body)
    cluster.server.remove("pods", NAMESPACE, name)


def test_a_pod_that_could_not_be_deleted_is_deleted_later(cluster: Cluster) -> None:
    """Its task starts in a new pod: the old one would run beside it, and hold its node."""
    refusals, failures = iter([Fault(403)]), iter([Fault(500)] * 6)

    def fault(method: str, path: str, _is_watch: bool) -> Fault | None:
        if is_opening(method, path, "second-3-0"):
            return next(refusals, None)
        return next(failures, None) if method == "DELETE" and "/pods/" in path else None

    cluster.server.fault = fault
    cluster.submit("second", 4)
    await_true(lambda: cluster.count_open("second") == cluster.count_pods("second") == 4)


@pytest.mark.parametrize("status", [409, 500, 503])
def test_a_passing_failure_of_one_opening_is_tried_again(cluster: Cluster, status: int) -> None:
    """The gang is opened without a pod that is created again."""
    failures = iter([Fault(status), Fault(status)])

    def fault(method: str, path: str, _is_watch: bool) -> Fault | None:
        return next(failures, None) if is_opening(method, path, "second-3-0") else None

    cluster.server.fault = fault
    cluster.submit("second", 4)
    cluster.await_open("second", 4)
    assert cluster.server.count("POST", "/pods") == 0
    assert cluster.server.count("DELETE", "/pods") == 0


def test_an_opening_that_fails_slowly_is_not_repeated_at_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four tries at a webhook that is silent for five seconds took the leader its Lease, and held up all others."""
    monkeypatch.setattr(writer, "RETRY_WINDOW_S", 0.2)
    tries: list[str] = []
    tries_at_refusal: list[int] = []

    def fault(method: str, path: str, _is_watch: bool) -> Fault | None:
        if not is_opening(method, path, "second-0-0"):
            return None
        tries.append(path)
        time.sleep(0.3)
        return Fault(500)

    monkeypatch.setattr(Writer, "log_refusal", lambda *_: tries_at_refusal.append(len(tries)))
    cluster.server.fault = fault
    cluster.submit("second", 1)
    await_true(lambda: bool(tries_at_refusal))
    assert tries_at_refusal[0] == 1
    cluster.server.fault = lambda *_: None
    cluster.await_open("second", 1)


def test_an_opening_with_a_lost_answer_counts(cluster: Cluster) -> None:
    """The server opened the gate, and the answer did not arrive: the second try finds it open."""
    failures = iter([Fault(504, is_late=True)])

    def fault(method: str, path: str, _is_watch: bool) -> Fault | None:
        return next(failures, None) if is_opening(method, path, "second-3-0") else None

    cluster.server.fault = fault
    cluster.submit("second", 4)
    cluster.await_open("second", 4)
    time.sleep(1)
    assert cluster.count_open("second") == 4
    assert cluster.server.count("DELETE", "/pods") == 0


def test_a_webhook_without_rehearsals_keeps_no_gang_closed(cluster: Cluster) -> None:
    """The server refuses every trial then; the gang is opened without one."""
    message = b'{"reason": "BadRequest", "message": "admission webhook \\"w\\" does not support dry run"}'
    cluster.server.fault = lambda _method, path, _: Fault(400, message) if "dryRun" in path else None
    cluster.submit("second", 4)
    cluster.await_open("second", 4)


def test_resources_that_may_not_be_written_stop_the_opening(cluster: Cluster) -> None:
    """Without them a pod would never find a node: the status names what is denied, and nothing is opened."""
    cluster.server.fault = lambda method, path, _: Fault(403) if method == "PATCH" and "/nodes/" in path else None
    cluster.submit("second", 4)
    await_true(lambda: "cannot be written: the server is broken" in cluster.thread.loop.last_error)
    assert cluster.count_open("second") == 0
    cluster.server.fault = lambda *_: None
    cluster.await_open("second", 4)


def test_what_a_node_still_offers_is_withdrawn(cluster: Cluster) -> None:
    """A resource that no annotation lists, which a failed write has left, goes; what runs there keeps its own."""
    resource = Scope("g", NAMESPACE).resource("gang-old-")
    body = next(body for body in cluster.server.list("nodes") if body["metadata"]["name"] == "n3")
    for part in ("capacity", "allocatable"):
        body["status"][part][resource] = "2"
    cluster.server.put("nodes", body)
    assert any(resource in body["status"]["capacity"] for body in cluster.server.list("nodes"))
    await_true(lambda: not any(resource in body["status"]["capacity"] for body in cluster.server.list("nodes")))
    assert cluster.count_open("first") == 2


def test_resources_that_were_not_written_are_written_later(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error between a change and its writing loses no node: the next decision writes it as well."""
    write, seen = Writer.write_resources, []

    def write_later(writer: Writer, locations: set[str], units: OpeningUnits) -> None:
        seen.append(set(locations))
        if len(seen) == 1:
            raise ApiError(409, "Conflict", "try again")
        write(writer, locations, units)

    monkeypatch.setattr(Writer, "write_resources", write_later)
    store = cluster.thread.loop.backend.store  # type: ignore[attr-defined]
    with store.changed:
        store.record_change(kinds.ENDED, node="n3")
    cluster.submit("second", 4)
    cluster.await_open("second", 4)
    assert "n3" in seen[0]
    assert any("n3" in locations for locations in seen[1:])


def test_a_rehearsal_that_fails_loses_no_gang(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error of an opening gates its unit again, as a refusal does."""
    rehearse, calls = Writer._rehearse, []

    def rehearse_later(writer: Writer, start: Start, by: str) -> Body:
        calls.append(start)
        if len(calls) == 1:
            raise KeyError("second-0")
        return rehearse(writer, start, by)

    monkeypatch.setattr(Writer, "_rehearse", rehearse_later)
    cluster.submit("second", 4)
    cluster.await_open("second", 4)


def ray_cluster(template: Body) -> Body:
    """Return the spec of a cluster of Ray with a head and two workers."""
    workers = {"groupName": "w", "replicas": 2, "template": copy.deepcopy(template)}
    return {"headGroupSpec": {"template": copy.deepcopy(template)}, "workerGroupSpecs": [workers]}


def suspended(kind: str) -> Body:
    """Return a workload that waits to be resumed."""
    template = {"metadata": {}, "spec": {"containers": [{"name": "x", "image": "y"}]}}
    spec = {
        "Job": {"suspend": True, "parallelism": 2, "template": template},
        "JobSet": {"suspend": True, "replicatedJobs": [{"name": "r", "template": {"spec": {"template": template}}}]},
        "RayCluster": {"suspend": True, **ray_cluster(template)},
        "RayJob": {"suspend": True, "entrypoint": "x", "rayClusterSpec": ray_cluster(template)},
    }[kind]
    meta = {"name": "train", "namespace": NAMESPACE, "uid": "1", "generation": 1, "labels": {pods.POLICY: "g"}}
    return {"kind": kind, "metadata": {**meta, "annotations": {"x": "y"}}, "spec": spec}


@pytest.mark.parametrize("status", [403, 500])
def test_a_job_that_could_not_be_resumed_is_resumed_later(
    status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing reports it again: without another try it would stay suspended until the controller starts anew."""
    monkeypatch.setattr(writer, "WORKLOAD_RETRY_S", 0.1)
    with stub_server() as (server, api), controlled(server, api):
        server.fault = lambda method, path, _: Fault(status) if method == "PATCH" and "/jobs/" in path else None
        with caplog.at_level(logging.WARNING, "unfoldkit"):
            server.put("jobs", suspended("Job"))
            await_true(lambda: server.count("PATCH", "/jobs/train") >= 2)
        assert "a workload was not admitted, Job train: " in caplog.text
        server.fault = lambda *_: None
        await_true(lambda: not server.list("jobs")[0]["spec"]["suspend"])


def run_ray_cluster(server: StubServer, name: str, spec: Body, owner: Body | None = None, priority: int = 0) -> None:
    """Do what KubeRay does: create a cluster, unless somebody else has, and the pods of its templates."""
    meta: Body = {"name": name, "namespace": NAMESPACE, "uid": name}
    meta |= {"ownerReferences": [{**owner, "controller": True}]} if owner else {}
    if owner:
        server.put("rayclusters", {"kind": "RayCluster", "metadata": meta, "spec": spec})
    worker, run = spec["workerGroupSpecs"][0], server.version
    for index, template in enumerate([spec["headGroupSpec"]["template"], *[worker["template"]] * worker["replicas"]]):
        pod = copy.deepcopy(template)
        pod["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "1", "nvidia.com/gpu": "4"}}
        pod["spec"]["priority"] = priority
        reference = {"kind": "RayCluster", "name": name, "uid": name, "controller": True}
        own = {"name": f"{name}-{run}-{index}", "namespace": NAMESPACE, "ownerReferences": [reference]}
        pod["metadata"] |= {**own, "annotations": {annotation_key("task"): '{"run": 3600}'}}
        server.put("pods", pod)


@pytest.mark.parametrize("kind", ["RayJob", "RayCluster"])
def test_a_preempted_cluster_of_ray_is_suspended_until_there_is_room(kind: str) -> None:
    """As Kueue does: a Ray job fails with its head, so evicted pods would end it; resumed, it is a gang once more."""
    rules = [PolicyRule("priority", {"preempt": True}), PolicyRule("gang", {"by": "job"})]
    collection, field_name = f"{kind.lower()}s", "jobDeploymentStatus" if kind == "RayJob" else "state"

    def read() -> Body:
        return next(body for body in server.list(collection) if body["metadata"]["name"] == "train")

    def report_state(state: str) -> None:
        server.put(collection, {**read(), "status": {field_name: state}})

    def run_cluster(name: str) -> None:
        spec, owner = read()["spec"], {"kind": kind, "name": "train", "uid": "1"}
        run_ray_cluster(server, name, spec.get("rayClusterSpec", spec), owner if kind == "RayJob" else None)

    with stub_server() as (server, api), controlled(server, api, rules) as cluster:
        server.put(collection, suspended(kind))
        await_true(lambda: not read()["spec"]["suspend"])
        # the pods of a RayCluster belong to itself
        first, second = ("train-a", "train-b") if kind == "RayJob" else ("train", "train")
        server.put("rayclusters", {**read(), "kind": kind, "metadata": {**read()["metadata"], "uid": first}})
        run_cluster(first)
        cluster.await_open(first, 3)
        report_state("Running")
        other = ray_cluster(suspended("Job")["spec"]["template"])
        for template in (other["headGroupSpec"]["template"], other["workerGroupSpecs"][0]["template"]):
            template["metadata"] = {"labels": {pods.POLICY: "g"}}
            template["spec"]["schedulingGates"] = [{"name": Scope("g", NAMESPACE).gate}]
        run_ray_cluster(server, "urgent", other, {"kind": "RayService", "name": "s", "uid": "2"}, priority=10)
        cluster.await_open("urgent", 3)
        assert read()["spec"]["suspend"]
        assert cluster.count_pods(first) == 0
        # KubeRay must have seen it before it is resumed
        time.sleep(0.3)
        assert read()["spec"]["suspend"]
        report_state("Suspended" if kind == "RayJob" else "suspended")
        await_true(lambda: not read()["spec"]["suspend"])
        run_cluster(second)
        time.sleep(0.3)
        assert cluster.count_open(second) == 0
        for body in server.list("pods", NAMESPACE):
            if body["metadata"]["name"].startswith("urgent"):
                server.remove("pods", NAMESPACE, body["metadata"]["name"])
        cluster.await_open(second, 3)


def replaced(body: Body, uid: str) -> Body:
    """Return another pod of the same name."""
    body = copy.deepcopy(body)
    body["metadata"]["uid"] = uid
    return body


@pytest.mark.parametrize("is_seen", [True, False])
@pytest.mark.parametrize("fate", ["waits", "runs", "ended"])
def test_a_pod_that_comes_again_under_its_name_is_a_new_task(cluster: Cluster, fate: str, is_seen: bool) -> None:
    """A user corrects and applies it again, or a StatefulSet creates it: it does not stay gated for ever.

    The watch may have missed the deletion.
    """
    body = replaced(gated_pod(Task("again", {"cpu": 1000}, run=1e4)), "1")
    body["metadata"]["ownerReferences"] = [{"kind": "StatefulSet", "name": "again", "uid": "1", "controller": True}]
    blocked = copy.deepcopy(body)
    if fate == "waits":
        blocked["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "99"}}
    cluster.server.put("pods", blocked)
    if fate == "waits":
        await_true(lambda: "again" in cluster.thread.loop.backend.store.records)  # type: ignore[attr-defined]
    else:
        cluster.await_open("again", 1)
    if fate == "ended":
        cluster.server.put("pods", {**cluster.server.list("pods")[-1], "status": {"phase": "Succeeded"}})
    if is_seen:
        cluster.server.remove("pods", NAMESPACE, body["metadata"]["name"])
    cluster.server.put("pods", replaced(body, "2"))
    await_true(lambda: not cluster.server.list("pods")[-1]["spec"].get("schedulingGates"))
    record = cluster.thread.loop.backend.store.records["again"]  # type: ignore[attr-defined]
    assert (record.state, record.task.demand.get("gpu", 0)) == (kinds.RUNNING, 0)


def test_old_records_that_go_take_no_later_task_of_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store keeps a bounded number of ended tasks; one that came again, and maybe ended again, is another."""
    monkeypatch.setattr(state_store, "MAX_ENDED", 2)
    with stub_server() as (server, api):
        backend = open_backend(api, "g")
        for uid in ("1", "2", "3"):
            body = replaced(gated_pod(Task("again", {"cpu": 1000}, run=1e4)), uid)
            backend.informer.handle_pod(server.put("pods", body))
        for index in range(4):
            body = replaced(gated_pod(Task(f"other-{index}", {"cpu": 1000}, run=1e4)), "1")
            backend.informer.handle_pod(server.put("pods", body))
            backend.informer.handle_pod(body, is_gone=True)
        assert backend.store.records["again"].state == kinds.WAITING
        backend.close()


def test_a_shadow_takes_a_pod_that_comes_again_for_another_task() -> None:
    """A pod of a StatefulSet keeps its name; both of its lives are placed and compared."""
    container = {"name": "x", "image": "y", "resources": {"requests": {"cpu": "1"}}}
    with stub_server() as (server, api):
        server.put("nodes", node("n0"))
        backend = open_shadow(api, Scope("g", NAMESPACE))
        for uid in ("1", "2", "3"):
            meta = {"name": "web-0", "namespace": NAMESPACE, "uid": uid, "creationTimestamp": "2026-01-01T00:00:00Z"}
            waiting = {"metadata": meta, "spec": {"containers": [container]}}
            bound = {"metadata": meta, "spec": {"containers": [container], "nodeName": "n0"}}
            backend.handle_pod(waiting)
            assert backend.store.records["web-0"].state == kinds.WAITING
            assert not backend.agreement.placements["web-0"].bound_node
            backend.start([Start("web-0", "n0")])
            backend.handle_pod(bound)
            assert backend.agreement.placements["web-0"].outcome == "same node"
            if uid == "1":
                # of the second one, the watch misses the end
                backend.handle_pod(bound, is_gone=True)
        backend.close()


@pytest.mark.parametrize("status", [403, 404, 503])
def test_workloads_that_are_not_served_yet_are_followed_later(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A definition or role that comes later needs no new controller, and its lack keeps nothing else from starting."""
    monkeypatch.setattr(informer, "ABSENT_PAUSE_S", 0.1)
    with stub_server() as (server, api):
        server.fault = lambda _method, path, _: Fault(status) if "jobsets" in path else None
        with controlled(server, api) as cluster:
            cluster.submit("first", 2)
            cluster.await_open("first", 2)
            server.fault = lambda *_: None
            server.put("jobsets", suspended("JobSet"))
            await_true(lambda: not server.list("jobsets")[0]["spec"]["suspend"])


def test_a_deleted_record_is_created_again(cluster: Cluster) -> None:
    """Without it a gang would be torn for good if its controller died while it opened the gates."""
    cluster.server.remove("configmaps", NAMESPACE, "unfold-g")
    cluster.submit("second", 4)
    cluster.await_open("second", 4)
    (record,) = cluster.server.list("configmaps")
    assert "second-0" in record["data"]["units"]


def test_leadership_that_ran_out_is_named_as_such(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """No other controller exists; what waits is opened in the next term."""
    with caplog.at_level(logging.WARNING, "unfoldkit"):
        cluster.thread.loop.backend.election.leads_until_s = 0.0  # type: ignore[attr-defined]
        cluster.submit("second", 4)
        cluster.await_open("second", 4)
    assert any("leadership is lost: its Lease expired without renewal" in item.message for item in caplog.records)


EVENTS = {
    "half a line": b'{"type": "ADD',
    "no JSON": b"no JSON\n",
    "null": b'{"type": "ADDED", "object": null}\n',
    "a list": b"[]\n",
    "no metadata": b'{"type": "ADDED", "object": {"kind": "Pod"}}\n',
    "a bookmark without a version": b'{"type": "BOOKMARK", "object": {}}\n',
    "an error without a code": b'{"type": "ERROR", "object": {}}\n',
    "a version that is too old": b'{"type": "ERROR", "object": {"code": 410, "reason": "Expired"}}\n',
}


@pytest.mark.parametrize("event", EVENTS)
def test_broken_events_hold_up_no_later_one(cluster: Cluster, event: str) -> None:
    """The watch goes on, or is begun again."""
    cluster.server.send("pods", EVENTS[event])
    if event == "half a line":
        cluster.server.send("pods", None)
    cluster.submit("second", 4)
    cluster.await_open("second", 4)


def test_odd_quantities_are_left_out_or_bounded(cluster: Cluster) -> None:
    """No amount that somebody writes ends the controller."""
    quantities = ["1e3", "100m", "1Gi", "0.5", "abc", "", "-5", 5, None, [], "9" * 30, "1e999", "NaN", "Infinity"]
    for index, quantity in enumerate(quantities):
        container = {"resources": {"requests": {"cpu": quantity}}}
        meta = {"name": f"odd{index}", "namespace": "other"}
        spec = {"nodeName": "n3", "containers": [container]}
        cluster.server.put("pods", {"metadata": meta, "spec": spec, "status": {"phase": "Running"}})
        body = node(f"odd{index}")
        body["status"]["allocatable"]["cpu"] = quantity
        cluster.server.put("nodes", body)
    cluster.submit("second", 4)
    cluster.await_open("second", 4)
    assert parse_amount("cpu", "1e30") == MAX_AMOUNT
    assert parse_amount("cpu", "-5") == 0


ANNOTATIONS = [
    {"demand": {"cpu": 10**22}}, {"run": -5}, {"size": -1}, {"size": 10**20}, {"priority": 10**22},
    {"run_on": {"a": -1}}, {"demand": {"cpu": -5}}, {"job": "j" * 10_000}, {"after": ["absent"]}, {"types": ["absent"]},
]  # fmt: skip


def test_no_annotation_of_a_pod_ends_the_controller(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """What a task states is checked, and what is out of range is left out with its reason."""
    with caplog.at_level(logging.WARNING, "unfoldkit"):
        for index, fields in enumerate(ANNOTATIONS):
            body = gated_pod(Task(f"odd-{index}", {"cpu": 1000}, run=10.0, job=f"odd-{index}"))
            body["metadata"]["annotations"][annotation_key("task")] = json.dumps(fields)
            cluster.server.put("pods", body)
        cluster.submit("second", 4)
        cluster.await_open("second", 4)
    assert any("has a size of -1; it is left out" in record.message for record in caplog.records)


def test_null_fields_count_as_absent(cluster: Cluster) -> None:
    """A pod without status or labels, and nodes without any part, disturb no other."""
    for key in ("status", "spec"):
        cluster.server.put(
            "pods", {**gated_pod(Task(f"odd-{key}", {"cpu": 1000}, run=1.0, job=f"odd-{key}")), key: None}
        )
    for key in ("labels", "annotations"):
        body = gated_pod(Task(f"odd-{key}", {"cpu": 1000}, run=1.0, job=f"odd-{key}"))
        body["metadata"][key] = None
        cluster.server.put("pods", body)
        body = node(f"odd-{key}")
        body["metadata"][key] = None
        cluster.server.put("nodes", body)
    cluster.submit("second", 4)
    cluster.await_open("second", 4)


def test_a_lease_without_a_spec_has_no_holder(cluster: Cluster) -> None:
    """Somebody may create it by hand; the next election fills it in."""
    for lease in cluster.server.list("leases"):
        lease.pop("spec")
        cluster.server.put("leases", lease)
    cluster.submit("second", 4)
    cluster.await_open("second", 4)


def test_an_error_without_a_message_names_the_request() -> None:
    """A gateway answers with a page of its own."""
    with stub_server() as (server, api):
        server.fault = lambda *_: Fault(503, b"<html>bad gateway</html>")
        with pytest.raises(ApiError, match="503 : GET /api/v1/nodes: <html>bad gateway"):
            api.get("/api/v1/nodes")


def test_a_plan_only_reads_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may only read can plan: the nodes come without a write."""
    with stub_server() as (server, api):
        monkeypatch.setattr(ClusterAccess, "connect", lambda _: api)
        server.put("nodes", node("n0"))
        assert [found.name for found in read_nodes("p", ClusterAccess())] == ["n0"]
        assert {method for method, _ in server.requests} == {"GET"}


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (302, r"is not at this address \(302\): no .*redirects"),
        (401, "denies access: no .*has expired"),
        (403, "denies access: no .*writes the roles"),
        (404, "lacks what is needed: no .*writes the roles"),
        (503, r"fails for now \(503\): no .*/readyz"),
    ],
)
def test_a_refused_connection_says_what_to_do(monkeypatch: pytest.MonkeyPatch, status: int, text: str) -> None:
    """Only who lacks roles is sent to them; a redirection is an error, too."""
    with stub_server() as (server, api):
        monkeypatch.setattr(ClusterAccess, "connect", lambda _: api)
        server.fault = lambda *_: Fault(status, b'{"kind": "Status", "message": "no"}')
        with pytest.raises(UnfoldError, match=text):
            read_nodes("p", ClusterAccess())


def test_a_start_survives_a_broken_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is only read is read again, as client-go does: every first answer of a restarting server may fail."""
    with stub_server() as (server, api):
        monkeypatch.setattr(ClusterAccess, "connect", lambda _: api)
        server.put("nodes", node("n0"))
        broken = dict.fromkeys(("/api/v1/nodes", "/api/v1/pods"), 2)

        def fault(method: str, path: str, is_watch: bool) -> Fault | None:
            del method
            if is_watch or not broken.get(path):
                return None
            broken[path] -= 1
            return Fault(503)

        server.fault = fault
        assert [found.name for found in read_nodes("p", ClusterAccess())] == ["n0"]
        assert not any(broken.values())


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_first_start_survives_a_failed_creation(status: int, is_late: bool) -> None:
    """The creation is sent again; if the first one took effect in spite of its answer, the object is read."""
    with stub_server() as (server, api):
        failures = [Fault(status, headers=(("Retry-After", "0"),), is_late=is_late)]
        server.fault = lambda method, *_: failures.pop() if method == "POST" and failures else None
        assert open_backend(api, "g").writer.origin > 0
        assert server.count("POST", "/configmaps") == 2
        assert not failures


def test_a_creation_that_always_fails_ends_the_start() -> None:
    """It is sent a bounded number of times, and the error says that the server fails."""
    with stub_server() as (server, api):
        server.fault = lambda method, *_: Fault(503) if method == "POST" else None
        with pytest.raises(UnfoldError, match=r"fails for now \(503\)"):
            open_backend(api, "g")
        assert server.count("POST") == api.patience.tries


def test_a_silent_server_is_named_after_one_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start waits once for an answer, not four times; the message names the request."""
    with stub_server() as (server, api):
        api.patience = api_module.Patience(read_s=0.3, tries=5)
        monkeypatch.setattr(ClusterAccess, "connect", lambda _: api)
        server.fault = lambda *_: time.sleep(0.8)
        with pytest.raises(UnfoldError, match=r"did not answer GET /api/v1/nodes: .*timed out"):
            read_nodes("p", ClusterAccess())
        assert server.count("GET") == 1


@pytest.mark.parametrize(
    ("part", "waits_for"), [("/leases/", "did not answer GET"), ("/pods/", "has not answered PATCH")]
)
def test_a_frozen_server_is_named_while_a_step_waits(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, part: str, waits_for: str
) -> None:
    """An election waits no longer than its term; after a while the status names any other request, and is not ready."""
    monkeypatch.setattr(control_loop, "STALL_S", 0.5)
    monkeypatch.setattr(api_module, "LEASE_TIMEOUT_S", 0.5)
    loop, released = cluster.thread.loop, threading.Event()

    def freeze(_method: str, path: str, is_watch: bool) -> None:
        if part in path and not is_watch:
            released.wait(WAIT_S)

    cluster.server.fault = freeze
    cluster.submit("second", 2)
    await_true(lambda: waits_for in status_to_json(read_status(loop))["error"])
    assert not cluster.thread.is_healthy
    released.set()
    await_true(lambda: read_status(loop).is_leader and not read_status(loop).error)
