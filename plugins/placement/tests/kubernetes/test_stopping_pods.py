"""Pods that are being stopped: they occupy their nodes until they have ended, and no crash loses their tasks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from plugins.placement.tests.kubernetes.stub_server import Body, Fault, StubServer, node, stub_server
from plugins.placement.tests.kubernetes.test_hostile_server import NAMESPACE, await_true
from unfold_placement.core.types import Ask, Node, Task
from unfold_placement.kubernetes import gate_queue
from unfold_placement.kubernetes.backend import KubernetesBackend, open_backend
from unfold_placement.kubernetes.informer import Informer
from unfold_placement.kubernetes.objects import pods
from unfold_placement.kubernetes.objects.codec import HOSTNAME, Scope, annotation_key
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Record, Start
from unfold_placement.live.state_store import StateStore
from unfoldkit.kubernetes.api import Api

pytestmark = pytest.mark.kubernetes
SCOPE = Scope("g", NAMESPACE)
NOW = "2026-01-01T00:00:00Z"
DISRUPTED = [{"type": "DisruptionTarget", "status": "True"}]
ANTI_AFFINITY = {
    "podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": HOSTNAME, "labelSelector": {"matchLabels": {"app": "x"}}}
        ]
    }
}
PORT = {"name": "x", "image": "y", "ports": [{"containerPort": 80, "hostPort": 80}]}


def submit(server: StubServer, name: str, gpus: int, asks: tuple[Ask, ...] = (), **spec: Any) -> None:
    """Create a gated pod."""
    task = Task(name, {"gpu": 1000 * gpus}, run=1e4)
    template = {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "x", "image": "y"}], **spec}}
    server.put("pods", pods.gated_pod(task, asks, SCOPE, time.time(), template))


def change(server: StubServer, name: str, change_body: Callable[[Body], None]) -> Body:
    """Change a pod on the server."""
    body = next(item for item in server.list("pods") if item["metadata"]["name"] == name)
    change_body(body)
    return server.put("pods", body)


def bind(server: StubServer, name: str, host: str = "n0") -> None:
    """Do what kube-scheduler and the kubelet do."""
    change(server, name, lambda body: body["spec"].update(nodeName=host) or body.update(status={"phase": "Running"}))


def end(server: StubServer, name: str) -> None:
    """Let the containers of a pod end."""
    change(server, name, lambda body: body.update(status={"phase": "Failed"}))


def delete_gracefully(server: StubServer) -> Callable[[str, str, bool], Fault | None]:
    """Return what lets a deletion only mark a pod, as its grace period does."""

    def fault(method: str, path: str, _is_watch: bool) -> Fault | None:
        name = path.rpartition("/")[2]
        if method != "DELETE" or not any(body["metadata"]["name"] == name for body in server.list("pods")):
            return None
        body = change(server, name, lambda pod: pod["metadata"].setdefault("deletionTimestamp", NOW))
        return Fault(200, json.dumps(body).encode())

    return fault


def open_leader(api: Api) -> KubernetesBackend:
    """Return a leading handle that knows every pod."""
    backend = open_backend(api, "g")
    assert backend.lead("me", 60.0)
    return backend


def open_occupied(server: StubServer, api: Api) -> KubernetesBackend:
    """Return the leader of a node with four GPUs, on which ``low`` runs while ``high`` waits for all of them."""
    server.put("nodes", node("n0", **{HOSTNAME: "n0"}))
    submit(server, "low", 4)
    submit(server, "high", 4)
    backend = open_leader(api)
    backend.start([Start("low", "n0")])
    backend.flush()
    bind(server, "low-0")
    await_true(lambda: backend.informer.is_bound("low"))
    return backend


def names(server: StubServer) -> dict[str, bool]:
    """Return the pods of the server, and whether each is open."""
    return {body["metadata"]["name"]: not body["spec"].get("schedulingGates") for body in server.list("pods")}


@pytest.mark.parametrize(
    ("gpus", "spec", "asks"),
    [
        (3, {}, ()),
        (1, {"affinity": ANTI_AFFINITY}, ()),
        (1, {"containers": [PORT]}, ()),
        (1, {}, (Ask("slot"),)),
    ],
)
def test_a_pod_that_terminates_occupies_its_node(gpus: int, spec: dict[str, Any], asks: tuple[Ask, ...]) -> None:
    """The gate of the next pod opens when it has ended: GPUs, anti-affinity, a port and a slot count until then."""
    with stub_server() as (server, api):
        server.put("nodes", node("n0", **{HOSTNAME: "n0"}))
        submit(server, "low", gpus, asks, **spec)
        submit(server, "high", gpus, asks, **spec)
        submit(server, "small", 1)
        backend = open_leader(api)
        backend.start([Start("low", "n0", asks)])
        backend.flush()
        bind(server, "low-0")
        await_true(lambda: backend.informer.is_bound("low"))
        server.fault = delete_gracefully(server)
        backend.preempt("low")
        backend.start([Start("high", "n0", asks)])
        backend.start([Start("small", "n0")])
        backend.flush()
        backend.flush()
        assert names(server) == {"low-0": True, "low-1": False, "high-0": False, "small-0": not spec.get("affinity")}
        end(server, "low-0")
        await_true(lambda: not backend.informer.stopping)
        backend.flush()
        assert names(server)["high-0"]


def test_room_is_computed_while_nothing_changes() -> None:
    """The threads that follow the server wait while the pods on a node are added up."""
    has_lock: list[bool] = []

    class Bodies(dict[str, Body]):
        def items(self) -> Any:
            has_lock.append(backend.store.changed._is_owned())  # type: ignore[attr-defined]
            return super().items()

    with stub_server() as (server, api):
        backend = open_occupied(server, api)
        server.fault = delete_gracefully(server)
        backend.preempt("low")
        backend.start([Start("high", "n0")])
        backend.informer.bodies = Bodies(backend.informer.bodies)
        backend.flush()
        assert has_lock
        assert all(has_lock)


def test_a_unit_waits_until_its_stopped_pods_exist_again() -> None:
    """What the server refuses to create again is still on its node, and would count as the next attempt's pod."""
    informer = Informer(Api(None, NAMESPACE), SCOPE, StateStore(lambda: 0.0), 0.0)  # type: ignore[arg-type]
    queue = gate_queue.GateQueue(informer)
    for name in ("a-0", "b-0"):
        record = informer.store.records[name] = Record(Task(name, {}, 1.0), state=kinds.RUNNING, node="n0", attempt=2)
        body = pods.gated_pod(record.task, (), SCOPE, 0.0)
        body["spec"].update(schedulingGates=[], nodeName="n0")
        informer.bodies[f"{name}-0"], informer.current[name] = body, f"{name}-0"
        queue.add([Start(name, "n0")], [record])
    queue.held = frozenset({"a-0"})
    assert [request.first_task for request in queue.list_ready()] == ["b-0"]
    queue.take_ready()
    assert [request.first_task for request in queue.queue] == ["a-0"]
    queue.held = frozenset()
    assert queue.has_ready()


def test_the_cost_of_room_grows_with_the_pods_and_not_with_their_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A preempted gang of hundreds ends while as many tasks wait: each task is compared with the pods of its node."""
    looked_up: list[str] = []
    decode = gate_queue.decode_filter
    monkeypatch.setattr(gate_queue, "decode_filter", lambda text: looked_up.append(text) or decode(text))
    informer = Informer(Api(None, NAMESPACE), SCOPE, StateStore(lambda: 0.0), 0.0)  # type: ignore[arg-type]
    queue = gate_queue.GateQueue(informer)
    for index in range(40):
        name, host, task = f"low{index}-0", f"n{index}", Task(f"high{index}", {"gpu": 4000}, 1.0)
        informer.store.nodes[host] = Node(host, {"gpu": 4000})
        informer.nodes[host] = {"metadata": {"name": host, "labels": {HOSTNAME: host}}}
        body = pods.gated_pod(Task(f"low{index}", {"gpu": 4000}, 1.0), (), SCOPE, 0.0)
        body["spec"].update(schedulingGates=[], nodeName=host)
        informer.bodies[name], informer.stopping[name] = body, decode("")
        informer.store.records[task.name] = Record(task, state=kinds.RUNNING, node=host, attempt=1)
        queue.add([Start(task.name, host)], [informer.store.records[task.name]])
    assert queue.list_ready() == []
    assert len(looked_up) == 40
    informer.stopping.clear()
    assert len(queue.list_ready()) == 40


@pytest.mark.parametrize("is_read_later", [True, False])
def test_a_new_leader_finds_the_next_pod_of_one_that_terminates(is_read_later: bool) -> None:
    """The pod before is still there, and is listed first: the task waits in the new one."""
    with stub_server() as (server, api):
        submit(server, "low", 4)
        started = {pods.STARTED: "1", pods.STARTS: "1", pods.NODE: "n0"}
        change(server, "low-0", lambda body: body["metadata"]["annotations"].update(started))
        body = change(server, "low-0", lambda pod: pod["spec"].update(schedulingGates=[], nodeName="n0"))
        after = pods.next_attempt_pod(body, SCOPE.gate, kinds.PREEMPTED, "me")
        if is_read_later:
            server.put("pods", after)
        change(server, "low-0", lambda pod: pod["metadata"].update(deletionTimestamp=NOW))
        if not is_read_later:
            server.put("pods", after)
        backend = open_leader(api)
        assert backend.store.records["low"].state == kinds.WAITING
        assert backend.informer.current["low"] == "low-1"


def test_a_new_leader_creates_the_pod_of_an_evicted_task_again() -> None:
    """The process that was to do it ended before: the task is not lost."""
    with stub_server() as (server, api):
        server.put("nodes", node("n0", **{HOSTNAME: "n0"}))
        submit(server, "a", 4)
        change(
            server, "a-0", lambda body: body["metadata"]["annotations"].update({pods.STARTED: "1", pods.STARTS: "1"})
        )
        change(server, "a-0", lambda body: body["spec"].update(schedulingGates=[], nodeName="n0"))
        change(server, "a-0", lambda body: body["metadata"].update(deletionTimestamp=NOW))
        change(server, "a-0", lambda body: body.update(status={"phase": "Running", "conditions": DISRUPTED}))
        open_leader(api).flush()
        assert names(server)["a-1"] is False


def test_a_standby_stops_no_task_that_the_leader_had_created_again() -> None:
    """It saw the eviction, and later the next pod: when it leads, that pod runs on."""
    with stub_server() as (server, api):
        server.put("nodes", node("n0", **{HOSTNAME: "n0"}))
        submit(server, "a", 4)
        leader, standby = open_leader(api), open_backend(Api(api.client, NAMESPACE), "g")
        leader.start([Start("a", "n0")])
        leader.flush()
        bind(server, "a-0")
        await_true(lambda: leader.informer.is_bound("a") and standby.informer.is_bound("a"))
        change(server, "a-0", lambda body: body["status"].update(conditions=DISRUPTED))
        server.remove("pods", NAMESPACE, "a-0")
        await_true(lambda: bool(leader.informer.lost_tasks))
        leader.flush()
        leader.start([Start("a", "n0")])
        leader.flush()
        bind(server, "a-1")
        await_true(lambda: standby.informer.current["a"] == "a-1" and standby.informer.is_bound("a"))
        leader.resign()
        assert standby.lead("other", 60.0)
        standby.flush()
        assert names(server) == {"a-1": True}
        standby.close()


def test_a_full_quota_holds_up_no_preemption() -> None:
    """The pod ends before the next can be created; until then it is kept, so that a crash loses nothing."""
    with stub_server() as (server, api):
        backend = open_occupied(server, api)
        gracefully, full = delete_gracefully(server), json.dumps({"message": "exceeded quota: q, used: pods=2"})
        quota = [full]

        def fault(method: str, path: str, is_watch: bool) -> Fault | None:
            if method == "POST" and path.endswith("/pods") and quota:
                return Fault(403, full.encode())
            return gracefully(method, path, is_watch)

        server.fault = fault
        backend.preempt("low")
        backend.start([Start("high", "n0")])
        backend.flush()
        assert names(server) == {"low-0": True, "high-0": False}
        # another process goes on from here
        end(server, "low-0")
        await_true(lambda: not backend.informer.stopping)
        quota.clear()
        backend.resign()
        later = open_leader(Api(api.client, NAMESPACE))
        later.flush()
        assert names(server) == {"low-0": True, "low-1": False, "high-0": True}
        old = next(body for body in server.list("pods") if body["metadata"]["name"] == "low-0")
        assert old["metadata"]["finalizers"] == []
        assert later.store.records["low"].state == kinds.WAITING
        later.close()


def test_the_next_attempt_has_nothing_that_the_server_added() -> None:
    """A server rejects what it merged itself, debug containers, and amounts of a class that has changed."""
    revision = {"key": "rev", "operator": "In", "values": ["1"]}
    own = {"key": "tier", "operator": "In", "values": ["1"]}
    selecting = {
        "topologyKey": "zone",
        "matchLabelKeys": ["rev"],
        "labelSelector": {"matchExpressions": [own, revision]},
    }
    spec = {
        "containers": [{"name": "x", "image": "y"}],
        "ephemeralContainers": [{"name": "debugger", "image": "z"}],
        "priorityClassName": "high",
        "priority": 5,
        "runtimeClassName": "sandboxed",
        "overhead": {"cpu": "1"},
        "topologySpreadConstraints": [selecting],
        "affinity": {
            "podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": selecting}]
            }
        },
    }
    body = pods.gated_pod(Task("a", {}, 1.0), [], SCOPE, 1000.0, {"metadata": {"labels": {"rev": "1"}}, "spec": spec})
    body["metadata"] |= {"creationTimestamp": NOW, "finalizers": ["example.org/kept", pods.AWAITED]}
    made = pods.next_attempt_pod(body, SCOPE.gate, kinds.PREEMPTED, "me")
    assert made["metadata"]["finalizers"] == ["example.org/kept"]
    assert made["spec"].keys() & {"ephemeralContainers", "priority", "overhead"} == set()
    assert made["spec"]["topologySpreadConstraints"][0]["labelSelector"] == {"matchExpressions": [own]}
    preferred = made["spec"]["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred[0]["podAffinityTerm"]["labelSelector"] == {"matchExpressions": [own]}
    assert annotation_key("awaits-next-attempt") == pods.AWAITED


@pytest.mark.parametrize("is_preempted", [False, True])
def test_a_pod_that_does_not_end_is_waited_for_only_for_a_while(is_preempted: bool) -> None:
    """A container that hangs kept a gang behind its gate for ever, while other nodes were free."""
    with stub_server() as (server, api):
        backend = open_occupied(server, api)
        backend.bind_timeout_s = 0.3
        server.fault = delete_gracefully(server)
        if is_preempted:
            backend.preempt("low")
            backend.flush()
        else:
            api.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/low-0")
        await_true(lambda: "low-0" in backend.informer.stopping)
        backend.start([Start("high", "n0")])
        backend.flush()
        time.sleep(0.5)
        backend.check_openings()
        # who preempts a pod waits for its grace period, too
        assert backend.store.records["high"].state == (kinds.RUNNING if is_preempted else kinds.WAITING)
        assert backend.store.nodes["n0"].capacity["gpu"] == (4000 if is_preempted else 0)
        end(server, "low-0")
        await_true(lambda: not backend.informer.stopping)
        assert backend.store.nodes["n0"].capacity["gpu"] == 4000
        backend.start([Start("high", "n0")])
        await_true(lambda: (backend.flush(), names(server)["high-0"])[1])


@pytest.mark.parametrize("is_evicted", [False, True])
def test_the_end_of_a_stopped_pod_is_not_that_of_the_next_attempt(is_evicted: bool) -> None:
    """A webhook held up the next pod while the last one ended: the task counted as done, and its gang as complete."""
    with stub_server() as (server, api):
        backend = open_occupied(server, api)
        refused = Fault(403)
        server.fault = lambda method, path, _: refused if method == "POST" and path.endswith("/pods") else None
        if is_evicted:
            change(
                server,
                "low-0",
                lambda body: (
                    body["metadata"].update(deletionTimestamp=NOW),
                    body["status"].update(conditions=DISRUPTED),
                ),
            )
            await_true(lambda: backend.store.records["low"].state == kinds.WAITING)
        else:
            backend.preempt("low")
        backend.flush()
        backend.start([Start("low", "n0")])
        change(server, "low-0", lambda body: body["status"].update(phase="Failed"))
        await_true(lambda: not backend.informer.stopping)
        if is_evicted:
            server.remove("pods", NAMESPACE, "low-0")
        time.sleep(0.3)
        backend.flush()
        assert (backend.store.records["low"].state, backend.store.records["low"].attempt) == (kinds.RUNNING, 2)
        server.fault = lambda *_: None
        await_true(lambda: (backend.flush(), names(server).get("low-1", False))[1])
