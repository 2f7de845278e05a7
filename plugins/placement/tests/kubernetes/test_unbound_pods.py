"""Opened pods that kube-scheduler has no node for: needs no cluster."""

from __future__ import annotations

import time

import pytest

from plugins.placement.tests.cases import policy
from plugins.placement.tests.kubernetes.stub_server import Body, node, stub_server
from plugins.placement.tests.kubernetes.test_hostile_server import await_true
from plugins.placement.tests.kubernetes.test_stopping_pods import bind, change, open_leader, submit
from unfold_placement.kubernetes.objects import pods
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Start
from unfold_placement.live.control_loop import ControlLoop
from unfold_placement.live.postponed import postpone
from unfold_placement.live.status import read_status, status_to_json
from unfold_placement.policies.registry import build_policies

pytestmark = pytest.mark.kubernetes
REASON = '0/1 nodes are available: persistentvolumeclaim "data" not found'


def reject(body: Body) -> None:
    """Do what kube-scheduler does with a pod that it has no node for."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": REASON}
    body["status"] = {"phase": "Pending", "conditions": [condition]}


def test_the_reason_of_kube_scheduler_is_logged_once_for_each_pod(caplog: pytest.LogCaptureFixture) -> None:
    """A pod with a claim that does not exist is taken back over and over: who runs the policy must learn why."""
    with stub_server() as (server, api):
        server.put("nodes", node("n0"))
        submit(server, "a", 1)
        backend = open_leader(api)
        backend.bind_timeout_s = 0.0
        for attempt in range(2):
            backend.start([Start("a", "n0")])
            backend.flush()
            change(server, f"a-{attempt}", reject)
            await_true(lambda: pods.unschedulable_reason(backend.informer.body("a")) == REASON)
            backend.check_openings()
            backend.flush()
            assert backend.store.records["a"].state == kinds.WAITING
        assert [record.message for record in caplog.records if "kube-scheduler" in record.message] == [
            f"a has stayed without a node for 0 s and is gated again; kube-scheduler: {REASON}"
        ]


def test_a_reason_is_logged_once_for_all_pods_of_a_gang(caplog: pytest.LogCaptureFixture) -> None:
    """While kube-scheduler is down, a gang of a thousand pods must not log a thousand lines."""
    with stub_server() as (server, api):
        server.put("nodes", node("n0"))
        for name in ("a", "b", "c"):
            submit(server, name, 1)
        backend = open_leader(api)
        backend.bind_timeout_s = 0.0
        backend.start([Start(name, "n0") for name in ("a", "b", "c")])
        backend.flush()
        change(server, "c-0", reject)
        await_true(lambda: pods.unschedulable_reason(backend.informer.body("c")) == REASON)
        backend.check_openings()
        assert [record.message.partition("; ")[::2] for record in caplog.records] == [
            (
                "a and 1 more of its gang have stayed without a node for 0 s and are gated again",
                "kube-scheduler: it has not looked at it",
            ),
            ("c has stayed without a node for 0 s and is gated again", f"kube-scheduler: {REASON}"),
        ]


def test_a_pod_that_is_rejected_again_leaves_its_room_to_others() -> None:
    """It is kept back for longer each time, and the status repeats what kube-scheduler says of it."""
    with stub_server() as (server, api):
        server.put("nodes", node("n0"))
        submit(server, "a", 4)
        backend = open_leader(api)
        backend.bind_timeout_s = 0.5
        rules = policy(priority={"preempt": True}, gang={})
        live = ControlLoop(backend, lambda: build_policies(rules), "me", "g", 60.0, 60.0)

        def explain() -> str:
            live.step(0.05)
            for body in server.list("pods"):
                if not body["spec"].get("schedulingGates") and not body.get("status"):
                    change(server, body["metadata"]["name"], reject)
            return " ".join(row["why"] for row in status_to_json(read_status(live))["waits"])

        await_true(lambda: REASON in explain())
        assert "is tried again in" in explain()
        submit(server, "b", 4)
        await_true(lambda: bool(explain()) and backend.store.records["b"].state == kinds.RUNNING)


def test_no_pod_is_stopped_again_for_one_that_is_rejected_again() -> None:
    """A pod of a higher class with a missing volume claim would end a run of others at each try, for ever."""
    with stub_server() as (server, api):
        server.put("nodes", node("n0"))
        submit(server, "low", 4)
        backend = open_leader(api)
        backend.bind_timeout_s = 0.2
        live = ControlLoop(backend, lambda: build_policies(policy(priority={})), "me", "g", 60.0, 60.0)

        def step() -> None:
            live.step(0.05)
            for body in server.list("pods"):
                if not body["spec"].get("schedulingGates") and not body.get("status"):
                    name = body["metadata"]["name"]
                    bind(server, name) if name.startswith("low") else change(server, name, reject)

        def tries() -> int:
            step()
            return backend.postponed["high"].tries if "high" in backend.postponed else 0

        await_true(lambda: tries() == 0 and backend.store.records["low"].state == kinds.RUNNING)
        submit(server, "high", 4, priority=5)
        await_true(lambda: tries() == 2 and backend.store.records["low"].state == kinds.RUNNING)
        attempts = backend.store.records["low"].attempt
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            assert tries() == 2
        assert (backend.store.records["low"].state, backend.store.records["low"].attempt) == (kinds.RUNNING, attempts)


def test_postponements_grow_up_to_a_limit() -> None:
    """The first try after a rejection comes at once: the room may have gone to the pod of another program."""
    item, delays = None, []
    for _ in range(8):
        item = postpone(item, REASON, 100.0, 10.0)
        delays.append(item.until_s - 100.0)
    assert delays == [0.0, 20.0, 40.0, 80.0, 120.0, 120.0, 120.0, 120.0]
