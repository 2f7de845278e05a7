"""Retries on Ray Serve after a replica died, without a cluster: the replica is simulated."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from plugins.pipeline.tests.helpers import plan_stages
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.pipeline import HardwareOption, Pipeline, Stage, StageConfig, interpolate_latency
from unfold_pipeline.problem.routing import build_routes
from unfold_pipeline.problem.sample import draw_sample
from unfold_pipeline.runtime import ray_serve
from unfold_pipeline.runtime.ray_replica import RowAnswer
from unfold_pipeline.runtime.ray_serve import RayRuntime
from unfold_pipeline.runtime.stage import Query
from unfoldkit.api import UnfoldError, internal_error

CPU = HardwareOption("core", 0.05, interpolate_latency([(1, 0.015), (4, 0.03)]))
PIPE = Pipeline((Stage("a", (), (CPU,)),))
POISON = 1e9


@dataclass(slots=True)
class Mortal:
    """A replica that dies of poison, with all that it has in its charge, and is replaced at once."""

    error: type[Exception]
    deaths: int = 0
    inside: list[asyncio.Future[float]] = field(default_factory=list)

    def remote(self, row: Any, _batch: int, _alone: bool) -> asyncio.Task[RowAnswer]:
        """Answer a row, some milliseconds after it came."""
        return asyncio.create_task(self._serve(row))

    async def _serve(self, row: Any) -> RowAnswer:
        futures: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.inside.append(futures)
        asyncio.get_running_loop().call_later(0.01, self._answer, futures, float(row[0]))
        return RowAnswer(await futures, 1, 0.01)

    def _answer(self, futures: asyncio.Future[float], value: float) -> None:
        if futures.done():
            return
        self.deaths += value == POISON
        for other in self.inside if value == POISON else [futures]:
            if value == POISON:
                other.set_exception(self.error())
            else:
                other.set_result(value)
        self.inside = [other for other in self.inside if not other.done()]


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_row_that_kills_replicas_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Ray Serve, a row that kills two replicas fails, and no other row does."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setattr(ray_serve, "POLL_INTERVAL_S", 0.01)
    replica = Mortal(ray.exceptions.ActorDiedError)

    async def scene() -> tuple[list[Any], list[str]]:
        running = RayRuntime(plan_stages(["a"], [ModelSource()], (StageConfig(0, 4, 1),)), None)
        running._ray, running.stages[0].handle = ray, replica
        way = build_routes(PIPE, draw_sample(PIPE, np.arange(8) / 1000, np.random.default_rng(0)))
        futures: list[asyncio.Future[Any]] = [asyncio.get_running_loop().create_future() for _ in range(8)]
        values = [POISON if number in (2, 5) else float(number) for number in range(8)]
        queries = [Query(np.array([value]), way, n, futures[n].set_result) for n, value in enumerate(values)]
        for query in queries:
            running.submit(query)
        found = await asyncio.wait_for(asyncio.gather(*futures), 20)
        return list(found), [query.failed_stage for query in queries]

    found, failed = asyncio.run(scene())
    assert found == [None if number in (2, 5) else {"a": float(number)} for number in range(8)]
    assert failed == ["a" if number in (2, 5) else "" for number in range(8)]
    assert replica.deaths <= 6


@dataclass(slots=True)
class Overloaded:
    """A handle that answers nothing; a request that is withdrawn ends with an error."""

    error: type[Exception]
    sent: list[asyncio.Future[RowAnswer]] = field(default_factory=list)

    def remote(self, _row: Any, _batch: int, _alone: bool) -> Any:
        """Queue a request."""
        request: asyncio.Future[RowAnswer] = asyncio.get_running_loop().create_future()
        self.sent.append(request)

        class Response:
            def __await__(self) -> Generator[Any, None, RowAnswer]:
                return request.__await__()

            def cancel(response) -> None:  # noqa: N805
                request.set_exception(self.error("withdrawn"))

        return Response()


@pytest.mark.e2e
def test_a_query_that_ends_is_withdrawn_from_ray() -> None:
    """What waits in Ray beyond the bound would delay fresh queries, and nothing waits for its answer."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    handle = Overloaded(ray.exceptions.TaskCancelledError)

    async def scene() -> list[Any]:
        running = RayRuntime(plan_stages(["a"], [ModelSource()], (StageConfig(0, 4, 1),)), None)
        running._ray, running.stages[0].handle = ray, handle
        way = build_routes(PIPE, draw_sample(PIPE, np.zeros(1), np.random.default_rng(0)))
        ends: list[Any] = []
        query = Query(np.zeros(1), way, 0, ends.append)
        running.submit(query)
        await asyncio.sleep(0)
        assert running.stages[0].open == len(handle.sent) == 1
        query.shed()
        await asyncio.sleep(0.05)
        assert running.stages[0].open == 0
        assert not query.has_lost_replica
        assert not query.failed_stage
        return ends

    assert set(asyncio.run(asyncio.wait_for(scene(), 10))) == {None}
    assert len(handle.sent) == 1


@pytest.mark.e2e
def test_queries_that_no_replica_can_take_wait_here() -> None:
    """Ray gets two batches; the others follow one for one, in their order, and those that were shed never."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    handle = Overloaded(ray.exceptions.TaskCancelledError)

    async def scene() -> list[Any]:
        running = RayRuntime(plan_stages(["a"], [ModelSource()], (StageConfig(0, 2, 1),)), None)
        running._ray, running.stages[0].handle = ray, handle
        running.stages[0].update_replicas({"r0"})
        way = build_routes(PIPE, draw_sample(PIPE, np.zeros(8), np.random.default_rng(0)))
        ends: list[Any] = []
        queries = [Query(np.zeros(1), way, number, ends.append) for number in range(8)]
        for query in queries:
            running.submit(query)
        await asyncio.sleep(0.05)
        assert (len(handle.sent), running.stages[0].open) == (4, 8)
        queries[4].shed()
        handle.sent[0].set_result(RowAnswer(0.0, 1, 0.01))
        await asyncio.sleep(0.05)
        assert (len(handle.sent), running.stages[0].open) == (5, 6)
        running.stages[0].update_replicas({"r0", "r1"})
        await asyncio.sleep(0.05)
        assert len(handle.sent) == 7
        for request in handle.sent[1:]:
            request.set_result(RowAnswer(1.0, 1, 0.01))
        await asyncio.sleep(0.05)
        assert running.stages[0].open == 0
        assert running.stages[0].slots.taken == 0
        return ends

    ends = asyncio.run(asyncio.wait_for(scene(), 10))
    assert [ends.count(answers) for answers in ({"a": 0.0}, {"a": 1.0})] == [1, 6]


@pytest.mark.parametrize("has_ray", [False, True])
def test_stopping_what_did_not_start_raises_nothing(monkeypatch: pytest.MonkeyPatch, has_ray: bool) -> None:
    """Where Ray did not start, it is not started to delete from; without Ray Serve, nothing is left to delete."""
    serve = pytest.importorskip("ray.serve", reason="Ray is not installed")
    deleted = list[str]()

    def fail_to_connect(_address: str | None) -> None:
        raise internal_error("Ray does not start")

    def delete(app: str) -> None:
        deleted.append(app)
        raise serve.exceptions.RayServeException("There is no Serve instance running")

    monkeypatch.setattr(ray_serve, "connect_ray", fail_to_connect)
    monkeypatch.setattr(serve, "delete", delete)
    running = RayRuntime(plan_stages(["a"], [ModelSource(code="models:a")], (StageConfig(0, 1, 1),)), None)
    with pytest.raises(UnfoldError, match="Ray does not start"):
        asyncio.run(running.start())
    if has_ray:
        running._ray = cast("Any", serve)
    asyncio.run(running.stop())
    assert len(deleted) == has_ray


@pytest.mark.parametrize(("is_own", "others"), [(True, []), (True, ["shop"]), (False, [])])
def test_ray_serve_ends_with_the_service_that_started_it(
    monkeypatch: pytest.MonkeyPatch, is_own: bool, others: list[str]
) -> None:
    """Ray Serve was started without HTTP, which applications deployed later would lack; in use, it stays."""
    serve = pytest.importorskip("ray.serve", reason="Ray is not installed")
    ended = list[bool]()
    monkeypatch.setattr(serve, "delete", lambda _app: None)
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=dict.fromkeys(others)))
    monkeypatch.setattr(serve, "shutdown", lambda: ended.append(True))
    running = RayRuntime(plan_stages(["a"], [ModelSource(code="models:a")], (StageConfig(0, 1, 1),)), "head:6379")
    running._ray, running._owns_serve = cast("Any", serve), is_own
    asyncio.run(running.stop())
    assert bool(ended) == (is_own and not others)


def test_leftovers_of_killed_services_are_deleted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Replicas of a service that was killed would run on without end; the next service deletes and names them."""
    serve = pytest.importorskip("ray.serve", reason="Ray is not installed")
    deleted = list[str]()
    monkeypatch.setattr(serve, "delete", deleted.append)
    monkeypatch.setattr(ray_serve, "list_orphans", lambda: ["unfold-08000000-7a3ff0a7-face"])
    ray_serve._delete_orphans()
    assert deleted == ["unfold-08000000-7a3ff0a7-face"]
    assert "its service has ended" in caplog.text
