"""Running stages before and after LLM engines: every request passes each line of them with one row of numbers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_pipeline._types import RowArray
from unfold_pipeline.engine.endpoint.replay import StageError
from unfold_pipeline.problem.routing import RouteDrawer
from unfold_pipeline.runtime.local import PipelineRuntime
from unfold_pipeline.runtime.stage import Query

MAX_WAIT_S = 600.0
ROW_KEY = "x"
"""Key of a completion with the row that the stages read, as that of the pipelines without an engine."""


@dataclass(slots=True)
class StageLine:
    """A line of running stages; without a runtime it has none.

    Attributes:
        runtime: Their replicas.
        routes: Draws the route of each request.
    """

    runtime: PipelineRuntime | None = None
    routes: RouteDrawer | None = None

    async def pass_row(self, row: RowArray) -> Mapping[str, Any]:
        """Return the answer of each stage.

        Raises:
            StageError: A stage has none, or not in time.
        """
        if self.runtime is None or self.routes is None:
            return {}
        answered: asyncio.Future[Mapping[str, Any] | None] = asyncio.get_running_loop().create_future()

        def finish(answers: dict[str, Any] | None) -> None:
            if not answered.done():
                answered.set_result(answers)

        routes, number = self.routes.draw_next()
        query = Query(row, routes, number, finish)
        self.runtime.submit(query)
        try:
            async with asyncio.timeout(MAX_WAIT_S):
                answers = await answered
        except TimeoutError:
            answers = None
        if answers is None:
            raise StageError(query.failed_stage)
        return answers


@dataclass(slots=True)
class StagesAround:
    """The running stages before and after engines.

    Attributes:
        upstream: The stages before.
        downstream: The stages after.
        rows: (rows, features) rows that a replay sends in turn.
        names: Names of all stages.
    """

    upstream: StageLine
    downstream: StageLine
    rows: RowArray
    names: tuple[str, ...]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start all replicas and end them.

        Raises:
            UnfoldError: A replica does not start.
        """
        runtimes = [line.runtime for line in (self.upstream, self.downstream) if line.runtime is not None]
        try:
            for runtime in runtimes:
                await runtime.start()
            yield
        finally:
            for runtime in runtimes:
                await runtime.stop()

    def take_row(self, request: dict[str, Any]) -> RowArray:
        """Remove the row from a request and return it.

        Raises:
            ValueError: It has none, or of another length.
        """
        width, values = self.rows.shape[1], request.pop(ROW_KEY, None)
        is_row = isinstance(values, list) and len(values) == width
        if not is_row or not all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in values):
            raise ValueError(f"{', '.join(self.names)} read {width} numbers: add {ROW_KEY}, a list of them")
        row = np.asarray(values, dtype=self.rows.dtype)
        if not np.isfinite(row).all():
            raise ValueError(f"{ROW_KEY} holds a number that is not finite")
        return row

    async def before(self, number: int) -> None:
        """Pass a request of a replay through the stages before the engines.

        Raises:
            StageError: A stage has no answer.
        """
        await self.upstream.pass_row(self.rows[number % len(self.rows)])

    async def after(self, number: int) -> None:
        """Pass a request of a replay through the stages after the engines.

        Raises:
            StageError: A stage has no answer.
        """
        await self.downstream.pass_row(self.rows[number % len(self.rows)])
