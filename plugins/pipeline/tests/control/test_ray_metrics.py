"""The Ray target without a cluster: a dashboard that answers as Ray's does, and pages as its nodes export them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from tests.http_server import serve_handler
from unfold_pipeline.control import ray_serve
from unfold_pipeline.control.demand import SignalError
from unfold_pipeline.control.http import open_client
from unfold_pipeline.control.ray_serve import RayMetricsSource, RayServeTarget
from unfold_pipeline.control.scaled_workloads import StageReplicas
from unfoldkit.api import UnfoldError

PAGE = """# TYPE ray_serve_num_router_requests_total counter
ray_serve_num_router_requests_total{{application="shop",deployment="Detect",handle="h1",WorkerId="w"}} {detect}
ray_serve_num_router_requests_total{{application="shop",deployment="Face",handle="h2",route="/"}} 7.0
ray_serve_num_router_requests_total{{application="other",deployment="Detect",handle="h3",route="/"}} 9000.0
ray_serve_deployment_queued_queries{{application="shop",deployment="Face",handle="h2"}} 5.0
ray_node_cpu_count 8.0
"""
REFUSED = """# TYPE ray_serve_num_http_error_requests_total counter
ray_serve_num_http_error_requests_total{{application="shop",error_code="{code}",route="/",WorkerId="w"}} {refused}
ray_serve_num_http_error_requests_total{{application="shop",error_code="500",route="/"}} {refused}
ray_serve_num_http_error_requests_total{{application="other",error_code="503",route="/"}} {refused}
"""


@dataclass(slots=True)
class Dashboard:
    """What the servers answer, and the scale requests that came."""

    port: int = 0
    detect: float = 0.0
    refused: float = 0.0
    code: int = 503
    is_down: bool = False
    admits: bool = True
    autoscaled: bool = False
    scaled: list[tuple[str, int]] = field(default_factory=list)

    def list_applications(self) -> dict[str, Any]:
        """Return the parts of Ray's ``ServeInstanceDetails`` that a scaler needs."""
        config = {"autoscaling_config": {"min_replicas": 1}} if self.autoscaled else {"num_replicas": 2}
        replicas = [{"state": "RUNNING"}, {"state": "STARTING"}]
        deployments = {
            name: {
                "target_num_replicas": 2,
                "replicas": replicas,
                "deployment_config": {**config, "backpressure_config": {"status_code": self.code}},
            }
            for name in ("Detect", "Face")
        }
        return {"applications": {"shop": {"deployments": deployments, "external_scaler_enabled": self.admits}}}

    def list_metrics(self) -> str:
        """Return a page; a counter is on it from its first query on."""
        page = PAGE.format(detect=self.detect)
        return page + (REFUSED.format(code=self.code, refused=self.refused) if self.refused else "")


@contextmanager
def serving() -> Iterator[Dashboard]:
    """Serve dashboard and metrics on one port."""
    state = Dashboard()

    class Handler(BaseHTTPRequestHandler):
        def reply(self, status: int, text: str) -> None:
            self.send_response(503 if state.is_down else status)
            self.end_headers()
            self.wfile.write(b"" if state.is_down else text.encode())

        def do_GET(self) -> None:
            is_page = self.path == "/metrics"
            self.reply(200, state.list_metrics() if is_page else json.dumps(state.list_applications()))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.scaled.append((self.path, body["target_num_replicas"]))
            self.reply(200 if state.admits else 412, json.dumps({"message": "Scaling request received."}))

    with serve_handler(Handler) as state.port:
        yield state


def connect(state: Dashboard) -> Any:
    """Return the part of the module ``ray`` that lists nodes."""
    node = {"Alive": True, "NodeManagerAddress": "127.0.0.1", "MetricsExportPort": state.port, "NodeID": "a"}
    return SimpleNamespace(nodes=lambda: [node, {"Alive": False}])


def build_target(state: Dashboard) -> RayServeTarget:
    """Return a target of two deployments."""
    return RayServeTarget(
        ray=connect(state),
        client=open_client(),
        dashboard=f"http://127.0.0.1:{state.port}",
        application="shop",
        workloads=("Detect", "Face"),
    )


def test_replicas_are_read_and_scaled() -> None:
    """Only replicas that run exist, and counts go to the scale endpoint of the application."""
    with serving() as state:
        target = build_target(state)
        assert target.read_replicas() == (StageReplicas(2, 1), StageReplicas(2, 1))
        assert target.set_replicas(1, 5)
        assert state.scaled == [("/api/v1/applications/shop/deployments/Face/scale", 5)]


def raise_fault(target: RayServeTarget) -> None:
    """Raise the first fault of a stage."""
    for replicas in target.read_replicas():
        if replicas.fault is not None:
            raise replicas.fault


def test_a_deployment_that_is_gone_hides_no_other() -> None:
    """The stage has a fault that lists what there is, and the replicas of the other are known."""
    with serving() as state:
        target = replace(build_target(state), workloads=("Nose", "Face"))
        nose, face = target.read_replicas()
        assert "no deployment Nose" in str(nose.fault)
        assert "Detect, Face" in str(nose.fault)
        assert face == StageReplicas(2, 1)


@pytest.mark.parametrize(("error", "leads"), [("ActorDiedError", False), ("GetTimeoutError", True)])
def test_leadership_ends_with_the_actor_of_the_lease(error: str, *, leads: bool) -> None:
    """A name that is free admits another controller at once; an answer that is late does not."""
    errors = {name: type(name, (Exception,), {}) for name in ("RayError",)}
    errors |= {name: type(name, (errors["RayError"],), {}) for name in ("ActorDiedError", "GetTimeoutError")}
    outcomes: list[type[Exception] | None] = [None, errors[error]]

    def get(_reference: object, timeout: float) -> bool:
        assert timeout
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome
        return True

    actor = SimpleNamespace(is_held=SimpleNamespace(remote=lambda: None))
    options = SimpleNamespace(remote=lambda: actor)
    ray = SimpleNamespace(
        get=get,
        exceptions=SimpleNamespace(**errors),
        remote=lambda _class: SimpleNamespace(options=lambda **_words: options),
    )
    target = RayServeTarget(
        ray=cast("ModuleType", ray), client=open_client(), dashboard="", application="shop", workloads=()
    )
    assert target.renew()
    with pytest.raises(UnfoldError, match=error):
        target.renew()
    assert target.is_leader is leads


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"admits": False}, "admits no external scaler"),
        ({"autoscaled": True}, "scales the deployment Detect itself"),
        ({"is_down": True}, "status 503"),
    ],
)
def test_what_ray_would_refuse_is_an_error_first(change: dict[str, bool], message: str) -> None:
    """The controller does not start on an application that others scale, or that cannot be read."""
    with serving() as state:
        for name, value in change.items():
            setattr(state, name, value)
        with pytest.raises(UnfoldError, match=message):
            raise_fault(build_target(state))


def build_source(state: Dashboard, **options: Any) -> RayMetricsSource:
    """Return the demand of the application, as its servers report it."""
    options = {"share": 1.0, "stale_s": 60.0, **options}
    ray = connect(state)
    return RayMetricsSource(ray=ray, client=open_client(), application="shop", workloads=("Detect", "Face"), **options)


def test_counters_of_the_entrance_are_the_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray reports every ten seconds: a jump is spread over the time since the report before."""
    now_s = [1.7e9]
    monkeypatch.setattr(ray_serve.time, "time", lambda: now_s[0])
    with serving() as state:
        source = build_source(state, share=0.5)
        with pytest.raises(SignalError, match="two samples"):
            source.read()
        for second in range(1, 61):
            now_s[0] = 1.7e9 + second
            state.detect = 20.0 * (second // 10)
            if second >= 10:
                demand = source.read()
        # half of the queries enter at this stage
        assert demand.arrivals_s.size == 2 * 120
        assert np.diff(demand.arrivals_s).max() < 1
        assert demand.queued[1] == 5
        assert np.isnan(demand.queued[0])
        # a proxy on a node that does not respond may count queries too
        lost = {"Alive": True, "NodeManagerAddress": "127.0.0.1", "MetricsExportPort": 1, "NodeID": "b"}
        source.ray = SimpleNamespace(nodes=lambda: [*connect(state).nodes(), lost])
        assert demand.gap == ""
        assert "127.0.0.1:1/metrics does not respond" in source.read().gap
        state.is_down = True
        with pytest.raises(SignalError, match="status 503"):
            source.read()


@pytest.mark.parametrize("code", [503, 429])
def test_what_a_full_queue_refuses_is_demand(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router does not count what ``max_queued_requests`` refuses; the first report of refusals counts in full."""
    now_s = [1.7e9]
    monkeypatch.setattr(ray_serve.time, "time", lambda: now_s[0])
    with serving() as state:
        state.code = code
        source = build_source(state, refusal_codes=build_target(state).read_refusal_codes())
        for second in range(61):
            now_s[0] = 1.7e9 + second
            state.detect = 100.0 + 50.0 * (second // 10)
            # from the 30th second on, three of four are refused
            state.refused = 150.0 * max(0, second // 10 - 3)
            with pytest.raises(SignalError) if second < 10 else nullcontext():
                demand = source.read()
        assert demand.arrivals_s.size == 6 * 50 + 3 * 150
        # each refusal lies in the ten seconds before its report, also the first ones
        rates = np.histogram(demand.arrivals_s - 1.7e9, bins=np.arange(0, 61, 10))[0] / 10
        assert rates == pytest.approx([5, 5, 5, 20, 20, 20], abs=0.2)
        assert demand.age_s == 0


@pytest.mark.parametrize("start_s", [1, 5, 9])
@pytest.mark.parametrize("every_s", [1, 3])
def test_the_first_report_is_no_burst(start_s: int, every_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that starts shortly before a report sees ten seconds of queries arrive at once."""
    now_s = [1.7e9]
    monkeypatch.setattr(ray_serve.time, "time", lambda: now_s[0])
    with serving() as state:
        source = build_source(state)
        for second in range(start_s, 40, every_s):
            now_s[0] = 1.7e9 + second
            state.detect = 50.0 * (second // 10)
            with pytest.raises(SignalError) if second < 10 else nullcontext():
                demand = source.read()
            if second >= 10:
                assert demand.mean_rate(30.0) == pytest.approx(5.0, rel=0.35)


def test_a_counter_that_stands_still_is_as_new_as_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process reports all of its counters at once, at times that the reader does not know."""
    now_s = [1.7e9]
    monkeypatch.setattr(ray_serve.time, "time", lambda: now_s[0])
    with serving() as state:
        state.refused = 7.0
        source = build_source(state)
        for second in range(3, 31):
            now_s[0] = 1.7e9 + second
            state.detect = 50.0 * (second // 10)
            with pytest.raises(SignalError) if second < 10 else nullcontext():
                demand = source.read()
        assert demand.age_s == 0
        assert demand.arrivals_s.size == 150


def test_what_a_silent_node_counted_is_no_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter that began while its node did not respond has no known start."""
    now_s = [1.7e9]
    monkeypatch.setattr(ray_serve.time, "time", lambda: now_s[0])
    with serving() as state:
        source = build_source(state)
        for second in (0, 10, 100, 110):
            now_s[0] = 1.7e9 + second
            state.is_down, state.refused = second == 10, 9000.0 * (second > 10)
            with pytest.raises(SignalError) if second <= 10 else nullcontext():
                demand = source.read()
        assert demand.arrivals_s.size == 0
