"""Opened pods that kube-scheduler has no node for: needs no cluster."""

from __future__ import annotations

import pytest

from plugins.placement.tests.kubernetes.stub_server import Body, node, stub_server
from plugins.placement.tests.kubernetes.test_hostile_server import await_true
from plugins.placement.tests.kubernetes.test_stopping_pods import change, open_leader, submit
from unfold_placement.kubernetes import pods
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Start

pytestmark = pytest.mark.kubernetes
REASON = '0/1 nodes are available: persistentvolumeclaim "data" not found'


def test_the_reason_of_kube_scheduler_is_logged_once_for_each_pod(caplog: pytest.LogCaptureFixture) -> None:
    """A pod with a claim that does not exist is taken back over and over: who runs the policy must learn why."""

    def reject(body: Body) -> None:
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": REASON}
        body["status"] = {"phase": "Pending", "conditions": [condition]}

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
