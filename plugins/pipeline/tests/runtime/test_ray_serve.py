"""Retries on Ray Serve after a replica died, without a cluster: the replica is simulated."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

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

CPU = HardwareOption("core", 0.05, interpolate_latency([(1, 0.015), (4, 0.03)]))
PIPE = Pipeline((Stage("a", (), (CPU,)),))
POISON = 1e9


@dataclass(slots=True)
class Mortal:
    """A replica that dies of poison, with all that it has in its charge, and is replaced at once."""

    error: type[Exception]
    deaths: int = 0
    inside: list[asyncio.Future[float]] = field(default_factory=list)

    async def remote(self, row: Any, _batch: int, _alone: bool) -> RowAnswer:
        """Answer a row, some milliseconds after it came."""
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
