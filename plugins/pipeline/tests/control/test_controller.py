"""The control loop: the decisions of the replay, in bounded steps, and nothing at all where the demand is unknown."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from plugins.pipeline.tests.helpers import chain, option
from tests.http_server import serve_handler
from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.control.app import ControlCollector, describe_control
from unfold_pipeline.control.controller import DeploymentController, ObservedTuner, StepLimits
from unfold_pipeline.control.demand import Demand, SignalError
from unfold_pipeline.control.scaled_workloads import StageReplicas, build_kubernetes_target, find_workloads
from unfold_pipeline.estimator.slo import build_slo_checker
from unfold_pipeline.problem.exported_plan import assign_labels
from unfold_pipeline.problem.pipeline import StageConfig
from unfold_pipeline.problem.problem import TunerSettings
from unfold_pipeline.problem.quotas import build_quota_limits
from unfold_pipeline.problem.sample import draw_sample
from unfold_pipeline.runtime.live_tuner import LiveTuner
from unfold_pipeline.schema.control import ControlSpec, KubernetesAccess
from unfold_pipeline.tuner.calibration import build_live_rule
from unfold_pipeline.tuner.envelope_rule import build_scaling_context
from unfold_pipeline.tuner.replica_table import build_fixed_batch_table
from unfold_pipeline.tuner.table_rule import compute_table_targets
from unfold_pipeline.verbs import serve_target
from unfoldkit.api import UnfoldError, user_error
from unfoldkit.kubernetes.api import CONFLICT, FORBIDDEN, INVALID, NOT_FOUND, Api, ApiError, Body, Patience
from unfoldkit.kubernetes.leader_election import PRECISE_DURATION, read_duration_s
from unfoldkit.kubernetes.scale import require_workload

SILENCE_S = 4.0
KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: a
clusters: [{name: a, cluster: {server: "http://127.0.0.1:PORT"}}]
users: [{name: a, user: {token: t}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
"""
CPU = (option("cpu", 0.05, 0.02, 0.02),)
GRAPH = chain(CPU, CPU)
PLAN = (StageConfig(0, 4, 2), StageConfig(0, 4, 2))
SLO_S = 0.5
SETTINGS = TunerSettings(delay_s=5.0, hold_s=30.0, max_replicas=40)
ORIGIN_S = 1.7e9
FREE = StepLimits(add=100, remove=100, minimum=(1, 1), maximum=(40, 40))


class SilentHandler(BaseHTTPRequestHandler):
    """A server that accepts requests and answers none for longer than a decision may take."""

    def do_GET(self) -> None:
        time.sleep(SILENCE_S)


@dataclass(slots=True)
class Deployment:
    """Two workloads in memory."""

    desired: list[int] = field(default_factory=lambda: [2, 2])
    capacity: int = 1000
    leads: bool = True
    fault: str = ""
    writes: list[tuple[int, int]] = field(default_factory=list)
    location: str = "memory"
    workloads: tuple[str, ...] = ("a", "b")
    lease_s: float = 15.0
    released: bool = False
    policy_limit: int = 1000
    policy_status: int = INVALID

    @property
    def is_leader(self) -> bool:
        """Whether the lease is held."""
        return self.leads

    def renew(self) -> bool:
        """Return whether the lease is held."""
        return self.leads

    def release(self) -> None:
        """Give the lease up."""
        self.released = True

    def list_warnings(self) -> list[str]:
        """Return no warnings."""
        return []

    def list_denied(self) -> list[str]:
        """Return nothing."""
        return []

    def read_replicas(self) -> tuple[StageReplicas, ...]:
        """Return the replicas."""
        if self.fault == "read":
            raise user_error("no route to host")
        replicas = [StageReplicas(count, min(count, self.capacity)) for count in self.desired]
        if self.fault == "autoscaler":
            replicas[0] = replace(replicas[0], fault=user_error("a is scaled by the HorizontalPodAutoscaler a already"))
        if self.fault == "absent":
            replicas[0] = StageReplicas(0, 0, user_error("there is no a"))
        return tuple(replicas)

    def set_replicas(self, stage: int, count: int) -> bool:
        """Set the replicas."""
        if self.fault == "write" and stage == 0:
            raise user_error("forbidden")
        if count > self.policy_limit:
            raise ApiError(self.policy_status, "Invalid", f"at most {self.policy_limit} replicas")
        self.desired[stage] = count
        self.writes.append((stage, count))
        return True


@dataclass(slots=True)
class Script:
    """Demand by the second: arrivals of a trace, or an error."""

    arrivals_s: FloatArray
    now_s: float = 0.0
    age_s: float = 0.0
    error: SignalError | None = None
    gap: str = ""
    since_s: float = -math.inf
    queued: float = math.nan
    location: str = "a script"

    def read(self) -> Demand:
        """Return what arrived until now."""
        if self.error is not None:
            raise self.error
        until_s = self.now_s - self.age_s
        arrivals = self.arrivals_s[slice(*np.searchsorted(self.arrivals_s, [self.since_s, until_s], "right"))]
        return Demand(
            arrivals_s=ORIGIN_S + arrivals,
            until_s=ORIGIN_S + until_s,
            age_s=self.age_s,
            queued=np.array([self.queued] * 2),
            since_s=ORIGIN_S + self.since_s,
            gap=self.gap,
        )


def even_trace(rates: Sequence[float], seconds: float) -> FloatArray:
    """Evenly spaced arrivals in parts of some rates."""
    parts = [index * seconds + (np.arange(int(rate * seconds)) + 0.5) / rate for index, rate in enumerate(rates)]
    return np.concatenate(parts)


def build_factory(policy: str = "table") -> Callable[[CountArray], ObservedTuner]:
    """Return what makes the rule of a small pipeline."""
    sample = draw_sample(GRAPH, even_trace([20.0], 60.0), np.random.default_rng(0))
    context = build_scaling_context(GRAPH, PLAN, (sample,), SLO_S)
    table = build_fixed_batch_table(build_slo_checker(GRAPH, [sample], SLO_S), PLAN, 40)

    def build(replicas: CountArray) -> ObservedTuner:
        rule = build_live_rule(policy, context, SETTINGS, table)
        rule.begin(replicas)
        tuner = LiveTuner(rule=rule, limits=build_quota_limits(GRAPH, PLAN), set_delay=rule.set_delay)
        return ObservedTuner(tuner=tuner, observe=rule.observe, activation_s=5.0, expected_s=5.0)

    return build


def build_controller(
    source: Script, target: Deployment, limits: StepLimits = FREE, policy: str = "table"
) -> DeploymentController:
    """Return a controller of a deployment in memory."""
    return DeploymentController(
        names=("s0", "s1"), build_tuner=build_factory(policy), source=source, target=target, limits=limits
    )


def run_until(controller: DeploymentController, source: Script, end_s: int, every_s: int = 1) -> list[tuple[int, ...]]:
    """Step through a trace and return the replicas after each step."""
    assert isinstance(controller.target, Deployment)
    history = []
    for now_s in range(0, end_s, every_s):
        source.now_s = now_s
        controller.step()
        history.append(tuple(controller.target.desired))
    return history


def test_controller_decides_as_the_replay() -> None:
    """Under the same trace, each second has the replicas of the replay."""
    trace = even_trace([20.0, 80.0, 20.0], 60.0)
    source, target = Script(trace), Deployment()
    live = run_until(build_controller(source, target), source, 179)
    sample = draw_sample(GRAPH, even_trace([20.0], 60.0), np.random.default_rng(0))
    context = build_scaling_context(GRAPH, PLAN, (sample,), SLO_S)
    table = build_fixed_batch_table(build_slo_checker(GRAPH, [sample], SLO_S), PLAN, 40)
    replayed = compute_table_targets(
        context, draw_sample(GRAPH, trace, np.random.default_rng(1)), SETTINGS, table
    ).replicas
    assert live == list(zip(*(stage[: len(live)].tolist() for stage in replayed), strict=True))
    assert max(live) > (4, 4)


def test_late_samples_delay_decisions_and_lose_none() -> None:
    """Samples that arrive 15 s late lead to the same largest counts, only later, and more often read ahead."""
    trace = even_trace([20.0, 80.0, 80.0], 60.0)
    fresh_source, late_source = Script(trace), Script(trace, age_s=15.0)
    fresh = run_until(build_controller(fresh_source, fresh_target := Deployment()), fresh_source, 170)
    late = run_until(build_controller(late_source, late_target := Deployment()), late_source, 170)
    assert min(late_target.desired) >= min(fresh_target.desired)
    assert next(index for index, counts in enumerate(late) if counts > (4, 4)) <= 15 + next(
        index for index, counts in enumerate(fresh) if counts > (4, 4)
    )


@pytest.mark.parametrize("policy", ["table", "ratio", "paper"])
@pytest.mark.parametrize("every_s", [1, 5])
def test_steps_stay_within_their_bounds(policy: str, every_s: int) -> None:
    """No decision adds or removes more than it may, nor leaves the limits of a stage."""
    source, target = Script(even_trace([20.0, 160.0, 2.0, 2.0], 60.0)), Deployment()
    limits = StepLimits(add=3, remove=1, minimum=(2, 1), maximum=(7, 40))
    history = run_until(build_controller(source, target, limits, policy), source, 238, every_s)
    steps = np.diff(np.array([(2, 2), *history]), axis=0)
    assert steps.max() == 3
    assert steps.min() == -1
    assert min(counts[0] for counts in history) >= 2
    assert max(counts[0] for counts in history) == 7


@pytest.mark.parametrize("reason", ["unreachable", "no data", "stale"])
def test_unknown_demand_changes_nothing(reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """Replicas stay for as long as the demand is unknown; one message when that begins, one when it ends."""
    source, target = Script(even_trace([80.0], 300.0)), Deployment()
    controller = build_controller(source, target)
    run_until(controller, source, 60)
    held = list(target.desired)
    source.error = SignalError(reason, "no samples")
    writes = len(target.writes)
    with caplog.at_level(logging.WARNING, "unfoldkit"):
        for _ in range(40):
            controller.step()
        assert target.desired == held
        assert len(target.writes) == writes
        assert controller.record.failures[reason] == 40
        assert not controller.record.is_ready
        source.error, source.now_s = None, 290.0
        controller.step()
    assert controller.record.is_ready
    assert [record.message for record in caplog.records] == [
        "no samples; replica counts stay as they are",
        "the demand is known again",
    ]


def test_a_gap_in_the_demand_removes_no_replica(caplog: pytest.LogCaptureFixture) -> None:
    """Replicas are added while arrivals are missing; none are removed then, nor while the rule looks back on it."""
    source, target = Script(even_trace([80.0, 10.0, 160.0, 10.0, 10.0], 60.0)), Deployment()
    controller = build_controller(source, target)
    before = run_until(controller, source, 60)[-1]
    with caplog.at_level(logging.WARNING, "unfoldkit"):
        source.gap = "1 of 2 targets are down"
        counts = [first for first, _ in run_until(controller, source, 240)[60:]]
        assert counts == sorted(counts)
        assert counts[55] == before[0] < counts[-1]
        assert (controller.record.is_ready, controller.record.failures["incomplete"]) == (False, 240)
        source.gap, source.now_s = "", 240.0
        controller.step()
    assert target.desired[0] == counts[-1]
    assert controller.record.is_ready
    assert [record.message for record in caplog.records] == [
        "1 of 2 targets are down; no replicas are removed",
        "the demand is known again",
    ]
    assert run_until(controller, source, 290)[-1][0] < counts[-1]


@pytest.mark.parametrize("since_s", [100.0, 130.0])
def test_forgotten_samples_are_neither_lull_nor_growth(since_s: float) -> None:
    """Where another server answers, which knows a few seconds only, the replicas stay as they are."""
    source, target = Script(even_trace([80.0], 300.0)), Deployment()
    controller = build_controller(source, target)
    before = run_until(controller, source, 100)[-1]
    source.since_s = since_s
    for now_s in range(int(since_s) + 1, 250):
        source.now_s = now_s
        controller.step()
        assert tuple(target.desired) == before


def test_a_deployment_that_does_not_respond_is_no_end() -> None:
    """The controller goes on, and scales as soon as the deployment responds."""
    source, target = Script(even_trace([80.0], 100.0)), Deployment(fault="read")
    controller = build_controller(source, target)
    run_until(controller, source, 30)
    assert not target.writes
    assert not controller.record.is_ready
    target.fault, source.now_s = "", 31.0
    controller.step()
    assert target.writes
    assert controller.record.is_ready


@pytest.mark.parametrize(
    ("fault", "text"), [("write", "forbidden"), ("autoscaler", "Autoscaler a"), ("absent", "there is no a")]
)
def test_a_stage_that_cannot_be_scaled_stops_no_other(fault: str, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """The other stage follows the demand; one message when the fault begins, one when the stage is scaled again."""
    source, target = Script(even_trace([80.0], 100.0)), Deployment(fault=fault)
    controller = build_controller(source, target)
    with caplog.at_level(logging.WARNING, "unfoldkit"):
        run_until(controller, source, 30)
        assert target.desired[0] == 2
        assert target.desired[1] > 2
        assert text in controller.record.error
        assert not controller.record.is_ready
        target.fault, source.now_s = "", 31.0
        controller.step()
    assert target.desired[0] > 2
    assert controller.record.is_ready
    assert len(caplog.records) == 2
    assert text in caplog.records[0].message


@pytest.mark.parametrize("status", [400, FORBIDDEN, INVALID])
def test_a_policy_that_limits_replicas_is_met(status: int, caplog: pytest.LogCaptureFixture) -> None:
    """An increase beyond the limit is refused as a whole, and a part of it is better than none."""
    deployment, source = Deployment(policy_limit=5, policy_status=status), Script(even_trace([400.0], 60.0))
    controller = build_controller(source, deployment)
    with caplog.at_level(logging.WARNING):
        run_until(controller, source, 60)
    assert deployment.desired == [5, 5]
    assert "a cannot be scaled to " in controller.record.error
    assert "at most 5 replicas" in controller.record.error
    assert not controller.record.is_ready
    assert controller.record.changes["s0", "up"] == 3
    assert len(caplog.records) == 2


def test_a_server_that_fails_is_not_asked_for_less() -> None:
    """Its refusal says nothing about the count."""
    deployment = Deployment(policy_limit=5, policy_status=503)
    source = Script(even_trace([400.0], 60.0))
    run_until(build_controller(source, deployment), source, 60)
    assert deployment.desired == [2, 2]


def test_an_absent_workload_is_reported_although_the_demand_is_unknown() -> None:
    """What was never deployed exports no counters either, and the name is what an operator has to see."""
    error = SignalError("no data", "no series matches a_total")
    source, target = Script(even_trace([80.0], 100.0), error=error), Deployment(fault="absent")
    controller = build_controller(source, target)
    controller.step()
    assert "there is no a" in controller.record.error
    assert [step.next for step in controller.record.steps] == [0, 2]
    assert not target.writes


def test_a_workload_that_is_created_later_is_scaled_then() -> None:
    """A controller that started before one of its workloads goes on from the replicas that this one has."""
    source, target = Script(even_trace([80.0], 200.0)), Deployment(fault="absent")
    controller = build_controller(source, target)
    run_until(controller, source, 60)
    reached = target.desired[1]
    target.fault = ""
    for source.now_s in range(60, 100):
        controller.step()
    assert target.desired[0] == target.desired[1] == reached > 2
    assert controller.record.is_ready


def test_a_workload_that_was_deleted_keeps_the_replicas_of_its_return() -> None:
    """Without the workload few queries came; the other stage keeps its replicas for the time of hold, too."""
    trace = np.concatenate([even_trace([80.0], 60.0), 260.0 + even_trace([80.0], 60.0)])
    source, target = Script(trace), Deployment()
    controller = build_controller(source, target)
    run_until(controller, source, 60)
    target.fault = "absent"
    for source.now_s in range(60, 250):
        controller.step()
    target.fault, target.desired = "", [12, 9]
    for source.now_s in range(250, 270):
        controller.step()
    assert target.desired == [12, 9]


def test_the_role_is_that_of_the_lease() -> None:
    """A step that waits for a silent server outlasts the lease, and another controller leads meanwhile."""
    source, target = Script(even_trace([80.0], 100.0), now_s=20.0), Deployment()
    controller = build_controller(source, target)
    controller.step()
    assert describe_control(controller)["role"] == "leader"
    target.leads = False
    assert describe_control(controller)["role"] == "standby"
    metrics = {family.name: family.samples for family in ControlCollector(controller).collect()}
    assert metrics["unfold_tuner_leader"][0].value == 0.0


@pytest.mark.kubernetes
def test_a_silent_cluster_is_reported_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller that waits a minute for an answer would seem to lead and to be well, and scale nothing."""
    assert serve_target.PATIENCE.read_s <= 10
    monkeypatch.setattr(serve_target, "PATIENCE", Patience(read_s=0.3, tries=1))
    config = tmp_path / "config"
    with serve_handler(SilentHandler) as port:
        config.write_text(KUBECONFIG.replace("PORT", str(port)), "utf-8")
        control = ControlSpec(prometheus="http://127.0.0.1:9", kubernetes=KubernetesAccess(kubeconfig=str(config)))
        target, _ = serve_target.open_kubernetes("video", control, ("detect",))
        began_s = time.monotonic()
        with pytest.raises(UnfoldError, match="did not answer"):
            target.read_replicas()
        assert time.monotonic() - began_s < SILENCE_S


def test_a_former_leader_reports_no_stage() -> None:
    """What it saw as the leader is another controller's concern, and no reason to be unready."""
    source, target = Script(even_trace([80.0], 100.0)), Deployment(fault="absent")
    controller = build_controller(source, target)
    run_until(controller, source, 5)
    target.leads = False
    controller.step()
    assert controller.record.is_ready
    assert not controller.record.steps


def test_standby_writes_nothing_and_starts_from_what_it_finds() -> None:
    """Without the lease nothing is scaled; a new leader keeps a larger deployment for the time of hold."""
    source, target = Script(even_trace([20.0], 200.0)), Deployment(desired=[12, 9], leads=False)
    controller = build_controller(source, target)
    run_until(controller, source, 20)
    assert not target.writes
    assert controller.role == "standby"
    target.leads = True
    held = []
    for now_s in range(20, 120):
        source.now_s = now_s
        controller.step()
        held.append(tuple(target.desired))
    assert held[: int(SETTINGS.hold_s) - 1] == [(12, 9)] * (int(SETTINGS.hold_s) - 1)
    assert held[-1] < (4, 4)


def test_a_paused_workload_stays_paused() -> None:
    """Zero replicas are left alone, as by a HorizontalPodAutoscaler."""
    source, target = Script(even_trace([80.0], 60.0)), Deployment(desired=[0, 2])
    run_until(build_controller(source, target), source, 50)
    assert target.desired[0] == 0
    assert target.desired[1] > 2


@pytest.mark.parametrize("capacity", [0, 1])
@pytest.mark.parametrize("queued", [math.nan, 500.0])
def test_missing_replicas_do_not_raise_the_target(capacity: int, queued: float) -> None:
    """Where no capacity comes, the target follows the queries, and a queue that nothing can serve only at first."""
    source, full = Script(even_trace([20.0, 60.0], 60.0), queued=queued), Deployment(capacity=capacity)
    follows = Script(even_trace([20.0, 60.0], 60.0))
    history = run_until(build_controller(source, full), source, 118)
    wanted = run_until(build_controller(follows, Deployment()), follows, 118)
    start = 0 if math.isnan(queued) else int(SETTINGS.delay_s + SETTINGS.hold_s) + 5
    assert history[start:] == wanted[start:]


def test_a_clock_that_was_set_back_stops_no_decision() -> None:
    """Decisions do not wait for the hour that the samples were ahead."""
    source, target = Script(even_trace([20.0, 80.0], 60.0)), Deployment()
    controller = build_controller(source, target)
    source.now_s, source.arrivals_s = 3600.0, source.arrivals_s + 3600.0
    controller.step()
    assert target.desired == [2, 2]
    source.arrivals_s -= 3600.0
    assert run_until(controller, source, 90)[-1] > (4, 4)


def test_a_measured_queue_raises_the_target() -> None:
    """Items that wait are served too, although the counters show no more arrivals than planned."""
    source, target = Script(even_trace([20.0], 100.0)), Deployment()
    controller = build_controller(source, target)
    run_until(controller, source, 40)
    assert target.desired == [2, 2]
    read = source.read

    @dataclass
    class Queued:
        location: str = "a script"

        def read(self) -> Demand:
            return replace(read(), queued=np.array([np.nan, 2000.0]))

    controller.source = Queued()
    source.now_s = 45.0
    controller.step()
    assert target.desired[0] == 2
    assert target.desired[1] > 5


@dataclass(slots=True)
class LeaseStore:
    """The Leases of a namespace in memory."""

    namespace: str = "unfold"
    leases: dict[str, Body] = field(default_factory=dict)
    writes: int = 0

    def now(self) -> float:
        """Return Unix time."""
        return time.time()

    def get(self, path: str) -> Body:
        """Return a Lease."""
        if path not in self.leases:
            raise ApiError(NOT_FOUND, "NotFound", path)
        return self.leases[path]

    def post(self, path: str, body: Body) -> Body:
        """Create a Lease."""
        return self.put(f"{path}/{body['metadata']['name']}", body)

    def put(self, path: str, body: Body) -> Body:
        """Replace a Lease by a new version."""
        self.writes += 1
        self.leases[path] = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.writes)}}
        return self.leases[path]


def test_a_stage_has_the_workload_that_exports_name() -> None:
    """A name that Kubernetes accepts is kept, any other is that of the exports, and what the spec states wins."""
    stated = {"2nd.v1": None, "Face ID": None, "face-id": None, "Übersetzer": None, "other": "statefulset/x"}
    labels = assign_labels(stated)
    workloads = find_workloads(stated)
    assert [str(workload) for workload in workloads] == [
        "deployments/2nd.v1",
        "deployments/face-id-2",
        "deployments/face-id",
        f"deployments/{labels['Übersetzer']}",
        "statefulsets/x",
    ]
    with pytest.raises(UnfoldError, match="is not a workload"):
        find_workloads({"a": "pod/x/y"})


@dataclass(slots=True)
class BusyScale:
    """The scale of a workload that others change before each of the first writes."""

    replicas: Sequence[int]
    namespace: str = "unfold"
    version: int = 0
    written: int = 0

    def get(self, path: str) -> Body:
        """Return the scale, or no autoscalers."""
        if path.endswith("autoscalers"):
            return {"items": []}
        replicas = self.replicas[min(self.version, len(self.replicas) - 1)]
        return {
            "metadata": {"resourceVersion": str(self.version)},
            "spec": {"replicas": replicas},
            "status": {"replicas": replicas},
        }

    def patch(self, _path: str, body: Body, _kind: str) -> Body:
        """Set the replicas, if the version is the current one."""
        self.version = min(self.version + 1, len(self.replicas))
        if body["metadata"]["resourceVersion"] != str(self.version):
            raise ApiError(CONFLICT, "Conflict", "the object has been modified")
        self.written = body["spec"]["replicas"]
        return body


@pytest.mark.parametrize(("replicas", "written"), [([2, 2, 2], 5), ([2, 2, 3], 0)])
def test_a_rollout_does_not_prevent_a_step(replicas: Sequence[int], written: int) -> None:
    """A conflict with another change than that of the replicas is tried again."""
    busy = BusyScale(replicas)
    target = build_kubernetes_target(cast("Api", busy), [require_workload("deployment/a", "")], "me", 15.0)
    assert target.read_replicas() == (StageReplicas(2, 2),)
    assert target.set_replicas(0, 5) is bool(written)
    assert busy.written == written


@dataclass(slots=True)
class PartlyBroken:
    """A namespace without ``gone``, in which ``denied`` is forbidden and an autoscaler scales ``rival``."""

    namespace: str = "unfold"
    key: str = "control.kubernetes"

    def get(self, path: str) -> Body:
        """Return a scale or the autoscalers."""
        if path.endswith("autoscalers"):
            return {"items": [{"metadata": {"name": "hpa"}, "spec": {"scaleTargetRef": RIVAL}}]}
        if "/gone/" in path:
            raise ApiError(NOT_FOUND, "NotFound", path)
        if "/denied/" in path:
            raise ApiError(FORBIDDEN, "Forbidden", "no rights")
        return {"metadata": {"resourceVersion": "1"}, "spec": {"replicas": 3}, "status": {"replicas": 2}}


RIVAL = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "rival"}


def test_each_workload_has_a_fault_of_its_own() -> None:
    """One that is gone, forbidden or scaled by others leaves the replicas of the others known."""
    names = ("gone", "denied", "rival", "sound")
    workloads = [require_workload(f"deployment/{name}", "") for name in names]
    target = build_kubernetes_target(cast("Api", PartlyBroken()), workloads, "me", 15.0)
    gone, denied, rival, sound = target.read_replicas()
    assert "has no deployments/gone" in str(gone.fault)
    assert "no rights" in str(denied.fault)
    assert "HorizontalPodAutoscaler hpa" in str(rival.fault)
    assert (rival.desired, sound) == (3, StageReplicas(3, 2))


def test_leases_of_a_dead_controller_end_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another controller takes over one lease time after the last renewal, however many stages there are."""
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    store = cast("Api", LeaseStore())
    workloads = [require_workload(f"deployment/{name}", "") for name in "abc"]
    first, second = (build_kubernetes_target(store, workloads, holder, 15.0) for holder in ("first", "second"))
    assert first.renew()
    assert not second.renew()
    now_s += 14.9
    assert first.is_leader
    assert not second.renew()
    now_s += 0.2
    assert not first.is_leader
    assert second.renew()
    assert not first.renew()


@pytest.mark.parametrize(
    ("annotation", "stated_s", "expected_s"), [("2.5", 3, 2.5), ("15.0", 60, 60), ("soon", 20, 20), (None, None, 15)]
)
def test_an_edited_duration_of_a_lease_counts(annotation: str | None, stated_s: int | None, expected_s: float) -> None:
    """The annotation only makes the field more precise; what an operator writes into the field holds."""
    notes = {} if annotation is None else {PRECISE_DURATION: annotation}
    lease: Body = {"metadata": {"annotations": notes}, "spec": {"leaseDurationSeconds": stated_s}}
    assert read_duration_s(lease) == expected_s
