"""What every engine guarantees for a running pipeline; Ray Serve where Ray is installed."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.pipeline.tests.helpers import ignore_progress, plan_stages
from unfold_pipeline.problem.build import build_placement
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.pipeline import Edge, HardwareOption, Pipeline, Stage, StageConfig, interpolate_latency
from unfold_pipeline.problem.problem import TunerSettings
from unfold_pipeline.problem.quotas import QuotaLimits
from unfold_pipeline.problem.routing import build_routes
from unfold_pipeline.problem.sample import Sample, draw_sample
from unfold_pipeline.replay.load_generator import MeasuredTrace, replay_trace
from unfold_pipeline.runtime.live_tuner import LiveTuner
from unfold_pipeline.runtime.local import LocalRuntime, PipelineRuntime
from unfold_pipeline.runtime.ray_serve import RayRuntime
from unfold_pipeline.runtime.stage import Query, StageRuntime
from unfold_pipeline.schema.hardware import Placement
from unfold_pipeline.tuner import envelope_rule
from unfold_pipeline.tuner.replica_table import ReplicaTable
from unfold_pipeline.tuner.table_rule import build_table_rule
from unfoldkit.api import UnfoldError
from unfoldkit.engines.ray import connect_ray

CODE = """import os, time

def nap(rows):
    time.sleep(0.01 + 0.005 * len(rows))
    return rows.sum(axis=1)

def fail(rows):
    raise ValueError("not today")

def stuck(rows):
    if (rows > 99).any():
        time.sleep(600)
    return rows.sum(axis=1)

def deadly(rows):
    time.sleep(0.02)
    if (rows > 99).any():
        os._exit(9)
    return rows.sum(axis=1)

def together(rows):
    time.sleep(0.05)
    return [len(rows)] * len(rows)
"""
CPU = HardwareOption("core", 0.05, interpolate_latency([(1, 0.015), (4, 0.03)]))
PIPE = Pipeline((Stage("a", (), (CPU,)), Stage("b", (Edge(0, 0.5),), (CPU,))))
PLAN = (StageConfig(0, 4, 1), StageConfig(0, 4, 1))
SHARED = QuotaLimits(np.zeros(2, np.int64), np.array([3]), np.ones(2, np.int64))
ROWS = np.ones((3, 2), dtype=np.float32)
Make = Callable[..., PipelineRuntime]
# Ray's own modules use what others have deprecated, and its sockets are closed at the end of the process
ON_RAY = [
    pytest.mark.ray,
    *(
        pytest.mark.filterwarnings(f"ignore::{name}")
        for name in ("DeprecationWarning", "FutureWarning", "ResourceWarning")
    ),
]


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One Ray of three nodes for all tests: a process that has closed one and opens another may be ended by Ray."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from ray import serve
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        for _ in range(2):
            made.add_node(num_cpus=2)
        connect_ray(made.address)
        yield
        serve.shutdown()
        ray.shutdown()
    finally:
        made.shutdown()


@pytest.fixture(params=["local", pytest.param("ray", marks=ON_RAY)])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Return what makes the running pipeline of each engine."""
    (tmp_path / "served.py").write_text(CODE)
    if request.param == "ray":
        request.getfixturevalue("cluster")

    def made(*names: str, patience: float = math.inf) -> PipelineRuntime:
        sources = [ModelSource(code=f"served:{name}", folder=str(tmp_path)) for name in names or ("nap", "nap")]
        if request.param == "ray":
            return RayRuntime(plan_stages(["a", "b"], sources, PLAN, hang_timeout_s=patience), None)
        return LocalRuntime(plan_stages(["a", "b"], sources, PLAN, hang_timeout_s=patience))

    return made


def trace(rate: float, seconds: float) -> Sample:
    """A steady trace."""
    return draw_sample(PIPE, np.arange(int(rate * seconds)) / rate, np.random.default_rng(0))


def played(
    running: PipelineRuntime, sample: Sample, tuner: LiveTuner | None = None, beside: Any = None
) -> MeasuredTrace:
    """Replay a trace with ``beside(running)`` going on at the same time."""

    async def scene() -> MeasuredTrace:
        await running.start()
        try:
            other = asyncio.create_task(beside(running)) if beside else None
            measured = await replay_trace(running, PIPE, sample, ROWS, tuner, ignore_progress)
            if other is not None:
                await asyncio.wait_for(other, 60)
            return measured
        finally:
            await running.stop()

    return asyncio.run(asyncio.wait_for(scene(), 200))


async def until(futures: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until something is so."""
    for _ in range(int(seconds / 0.05)):
        if futures():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not become so in time")


def pids(running: PipelineRuntime) -> list[int]:
    """Return the processes of the replicas of the first stage."""
    if isinstance(running, LocalRuntime):
        return [worker.replica.process.pid or 0 for worker in running.stages[0].workers if worker.is_ready]
    from ray.serve.context import _get_global_client

    assert isinstance(running, RayRuntime)
    found = _get_global_client().get_serve_details()["applications"][running.stages[0].app]["deployments"]["a"]
    return [replica["pid"] for replica in found["replicas"] if replica["state"] == "RUNNING"]


def test_query_is_answered_by_the_stages_of_its_route(make: Make) -> None:
    """Each query gets the answers of the stages on its route, and of no other."""

    async def scene() -> list[dict[str, Any] | None]:
        running = make()
        await running.start()
        sample = trace(1000.0, 0.04)
        way = build_routes(PIPE, sample)
        futures: list[asyncio.Future[Any]] = [asyncio.get_running_loop().create_future() for _ in range(sample.size)]
        for number, future in enumerate(futures):
            running.submit(Query(np.full(2, number, dtype=np.float32), way, number, future.set_result))
        found = await asyncio.wait_for(asyncio.gather(*futures), 60)
        await running.stop()
        return list(found)

    found = asyncio.run(scene())
    second = set(trace(1000.0, 0.04).visits[1].query.tolist())
    for number, answers in enumerate(found):
        assert answers == dict.fromkeys(("a", "b") if number in second else ("a",), 2.0 * number)
    assert 0 < len(second) < len(found)


@pytest.mark.e2e
def test_replicas_change_under_traffic_without_loss(make: Make) -> None:
    """Replicas are added and removed under traffic, and every query is answered."""

    async def change(running: PipelineRuntime) -> None:
        running.set_target(0, 3)
        await until(lambda: running.serving_replicas()[0] == 3)
        running.set_target(0, 1)
        await until(lambda: running.serving_replicas()[0] == 1)

    measured = played(make(), trace(20.0, 10.0), beside=change)
    assert measured.lost == 0
    assert measured.replaced == 0


@pytest.mark.e2e
def test_batch_size_changes_under_traffic(make: Make) -> None:
    """A replica serves batches of four as planned, and of up to eight once set, without a restart."""

    async def crowd(running: PipelineRuntime) -> int:
        way = build_routes(PIPE, trace(1000.0, 0.04))
        futures: list[asyncio.Future[Any]] = [asyncio.get_running_loop().create_future() for _ in range(40)]
        for number, future in enumerate(futures):
            running.submit(Query(ROWS[0], way, number, future.set_result))
        found = await asyncio.wait_for(asyncio.gather(*futures), 60)
        return max(int(answers["a"]) for answers in found)

    async def largest(running: PipelineRuntime, hoped: int) -> int:
        # on a busy machine a crowd comes to its replica in dribs
        found = 0
        for _ in range(60):
            found = max(found, await crowd(running))
            if found >= hoped:
                break
            await asyncio.sleep(0.1)
        return found

    async def scene() -> tuple[int, int, int]:
        running = make("together", "nap")
        await running.start()
        try:
            before = await largest(running, 4)
            running.set_target(0, 1, 8)
            return before, await largest(running, 5), running.count_replaced()
        finally:
            await running.stop()

    before, after, replaced = asyncio.run(asyncio.wait_for(scene(), 200))
    assert before == 4 < after <= 8
    assert replaced == 0


@pytest.mark.e2e
def test_killed_replica_is_replaced_without_loss(make: Make) -> None:
    """A replica that is killed under traffic is replaced, and every admitted query is answered."""

    async def murder(running: PipelineRuntime) -> None:
        await until(lambda: running.serving_replicas() == (1, 1))
        victim = (await asyncio.to_thread(pids, running))[0]
        await asyncio.sleep(0.5)
        os.kill(victim, signal.SIGKILL)
        await until(lambda: running.count_replaced() == 1 and running.serving_replicas()[0] == 1)
        assert victim not in await asyncio.to_thread(pids, running)

    measured = played(make(), trace(40.0, 3.0), beside=murder)
    assert measured.lost == 0


@pytest.mark.e2e
def test_rule_scales_with_the_traffic(make: Make) -> None:
    """Traffic ten times as dense as planned makes the rule add replicas."""
    planned = trace(5.0, 20.0)
    brief = envelope_rule.build_scaling_context(PIPE, PLAN, [planned], 0.2)
    steps = ReplicaTable((1.0, 4.0, 16.0), ((1, 1), (2, 1), (3, 2)), ((2, 2), (4, 2), (8, 2)))
    setting = TunerSettings(hold_s=2.0)
    tuner = LiveTuner(rule=build_table_rule(brief, setting, steps), limits=SHARED)
    measured = played(make(), trace(50.0, 6.0), tuner, beside=until_two)
    assert measured.lost == 0
    assert measured.timeline[0][1].replicas[0] == 1
    assert max(step.batches for _, step in measured.timeline) == (8, 2)
    # the rule wants 3 + 2, and both stages share a quota of 3
    assert max(sum(step.replicas) for _, step in measured.timeline) <= 3


async def until_two(running: PipelineRuntime) -> None:
    """Wait until the first stage has two replicas."""
    await until(lambda: running.serving_replicas()[0] == 2)


def test_query_at_a_failing_model_ends(make: Make) -> None:
    """Queries at a stage with a model that keeps failing end without an answer and do not hang."""

    async def scene() -> object:
        running = make("fail", "nap")
        await running.start()
        futures: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        way = build_routes(PIPE, draw_sample(PIPE, np.zeros(1), np.random.default_rng(0)))
        running.submit(Query(ROWS[0], way, 0, futures.set_result))
        answer = await asyncio.wait_for(futures, 120)
        await running.stop()
        return answer

    assert asyncio.run(scene()) is None


@pytest.mark.e2e
@pytest.mark.parametrize("how", ["stuck", "deadly"])
def test_hung_replica_is_replaced(make: Make, how: str) -> None:
    """Of the rows in a batch, only the one on which the model hangs or dies fails; the others are answered."""

    async def scene() -> tuple[list[Any], list[str], int]:
        running = make(how, "nap", patience=2.0)
        await running.start()
        way = build_routes(PIPE, trace(1000.0, 0.004))
        futures: list[asyncio.Future[Any]] = [asyncio.get_running_loop().create_future() for _ in range(4)]
        rows = [ROWS[0] if number != 2 else ROWS[0] * 1e9 for number in range(4)]
        queries = [Query(row, way, number, futures[number].set_result) for number, row in enumerate(rows)]
        for query in queries:
            running.submit(query)
        found = await asyncio.wait_for(asyncio.gather(*futures), 60)
        await until(lambda: running.serving_replicas() == (1, 1) and running.count_replaced() > 0)
        await running.stop()
        return list(found), [query.failed_stage for query in queries], running.count_replaced()

    found, failed, replaced = asyncio.run(asyncio.wait_for(scene(), 120))
    assert [answers is not None for answers in found] == [True, True, False, True]
    assert failed == ["", "", "a", ""]
    assert 1 <= replaced <= 3


async def lived(running: RayRuntime, check: Callable[[], None]) -> None:
    """Start, check, and stop."""
    await running.start()
    try:
        await asyncio.to_thread(check)
    finally:
        await running.stop()


def nodes_of(running: RayRuntime) -> list[str]:
    """Return the nodes on which the replicas of the first stage run."""
    from ray.serve.context import _get_global_client

    found = _get_global_client().get_serve_details()["applications"][running.stages[0].app]["deployments"]["a"]
    return [replica["node_id"] for replica in found["replicas"] if replica["state"] == "RUNNING"]


@pytest.fixture(params=[pytest.param("ray", marks=ON_RAY)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[dict[str, Any], int], RayRuntime]:
    """Return what makes a pipeline on three nodes of Ray, its first stage with some replicas under a policy."""
    (tmp_path / "served.py").write_text(CODE)
    request.getfixturevalue("cluster")
    sources = [ModelSource(code="served:nap", folder=str(tmp_path))] * 2

    def made(policy: dict[str, Any], replicas: int) -> RayRuntime:
        plan = (StageConfig(0, 4, replicas), StageConfig(0, 4, 1))
        placement = build_placement(Placement.model_validate(policy))
        return RayRuntime(plan_stages(["a", "b"], sources, plan), None, placement=placement)

    return made


@pytest.mark.parametrize(
    ("policy", "replicas", "nodes"),
    [({"pack": "node"}, 2, 1), ({"gang": "stage", "spread": "node"}, 3, 3), ({"spread": {"most": 1}}, 3, 3)],
)
def test_replicas_follow_the_placement_policy(
    place: Callable[[dict[str, Any], int], RayRuntime], policy: dict[str, Any], replicas: int, nodes: int
) -> None:
    """Packed replicas run on one node, spread ones on as many nodes as there are replicas."""
    running = place(policy, replicas)
    found: list[str] = []
    asyncio.run(asyncio.wait_for(lived(running, lambda: found.extend(nodes_of(running))), 120))
    assert (len(found), len(set(found))) == (replicas, nodes)


def test_target_beyond_the_nodes_is_limited(place: Callable[[dict[str, Any], int], RayRuntime]) -> None:
    """A target beyond the nodes' capacity is limited, and can be lowered again."""

    async def scene() -> None:
        running = place({"spread": {"most": 1}}, 1)
        await running.start()
        try:
            running.set_target(0, 9)
            await until(lambda: running.serving_replicas()[0] == 3)
            running.set_target(0, 1)
            await until(lambda: running.serving_replicas()[0] == 1)
        finally:
            await running.stop()

    asyncio.run(asyncio.wait_for(scene(), 150))


def test_plan_beyond_the_nodes_is_rejected(place: Callable[[dict[str, Any], int], RayRuntime]) -> None:
    """A limit per node that the cluster cannot satisfy is rejected at once."""
    with pytest.raises(UnfoldError, match="do not fit on 3 nodes"):
        asyncio.run(asyncio.wait_for(place({"spread": {"most": 1}}, 4).start(), 60))


def test_restart_replaces_the_time_of_common_starts(tmp_path: Path) -> None:
    """Replicas that start together compete for cores: the first later start replaces their activation time."""
    (tmp_path / "served.py").write_text(CODE)
    source = ModelSource(code="served:nap", folder=str(tmp_path))
    running = LocalRuntime(plan_stages(["a"], [source], (StageConfig(0, 1, 1),)))
    stage = running.stages[0]

    async def scene() -> None:
        await running.start()
        stage.activation.seconds = 400.0
        os.kill(stage.workers[0].replica.process.pid or 0, signal.SIGKILL)
        await until(lambda: running.count_replaced() == 1 and running.serving_replicas() == (1,))
        await running.stop()

    asyncio.run(asyncio.wait_for(scene(), 120))
    assert 0.0 < stage.activation.seconds < 60.0


def test_batch_that_becomes_due_during_a_dispatch_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The timer of a delayed batch may fire early, and the rest of the delay may pass while it is looked at."""
    (tmp_path / "served.py").write_text(CODE)
    (planned,) = plan_stages(["a"], [ModelSource(code="served:nap", folder=str(tmp_path))], PLAN[:1])
    running = LocalRuntime([replace(planned, max_wait_s=0.05)])
    pipe = Pipeline((Stage("a", (), (CPU,)),))
    routes = build_routes(pipe, draw_sample(pipe, np.zeros(1), np.random.default_rng(0)))
    readings = list[float]()

    def next_batch_delay(stage: StageRuntime) -> float:
        # due a microsecond after the first look
        readings.append(math.inf if not stage.queue else 1e-6 if len(readings) % 2 else 0.0)
        return readings[-1]

    async def scene() -> Any:
        await running.start()
        try:
            readings.append(0.0)
            monkeypatch.setattr(StageRuntime, "next_batch_delay", next_batch_delay)
            answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            running.submit(Query(ROWS[0], routes, 0, answer.set_result))
            return await asyncio.wait_for(answer, 10)
        finally:
            await running.stop()

    assert asyncio.run(scene()) == {"a": 2.0}
