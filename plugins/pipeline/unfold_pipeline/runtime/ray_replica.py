"""The code in a replica on Ray Serve: a model, and a queue that forms batches of the rows that arrive."""

from __future__ import annotations

import asyncio
import math
import os
import time
from dataclasses import dataclass
from typing import Any

from unfold_pipeline._types import Tensors
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.runtime.models.data_flow import stack_inputs, take_row
from unfold_pipeline.runtime.models.model_loader import Predict, load_model
from unfold_pipeline.runtime.replica import BatchFailure, answer_batch
from unfoldkit.api import user_error
from unfoldkit.serving.oip.errors import InvalidRequest

EXIT_DELAY_S = 0.2
RAY_DELIMITER = "#"
"""Ray Serve joins the names of application, deployment and replica by it, and cannot split a name that holds it."""


@dataclass(frozen=True, slots=True)
class ModelHung:
    """Stands for an answer: the model did not finish the batch of a row in time."""


@dataclass(frozen=True, slots=True)
class RowAnswer:
    """The answer to one row, and what the batch that it was in took: rows, and seconds from start to end."""

    value: Any
    batch_rows: int
    batch_s: float


def check_deployment_name(stage: str) -> None:
    """Refuse a stage with a name that Ray Serve cannot give to replicas.

    Raises:
        UnfoldError: The name holds what separates names in Ray Serve, or what its metrics cannot hold.
    """
    if RAY_DELIMITER in stage or not stage.isascii():
        refused = RAY_DELIMITER if RAY_DELIMITER in stage else "character beyond ASCII"
        message = f"Ray Serve accepts no {refused} in the name of a deployment"
        raise user_error(message, key=f"stages.{stage}", hint="another name for the stage")


class RayReplica:
    """A model with a batching queue.

    A replica that keeps a batch for longer than ``hang_timeout_s`` reports it and exits; Ray Serve starts another one.
    """

    def __init__(self, source: ModelSource, batch: int, max_wait_s: float, hang_timeout_s: float = math.inf) -> None:
        from ray import serve
        from threadpoolctl import threadpool_limits

        self._predict = load_model(source)
        threadpool_limits(1)

        async def answer_rows(rows: list[Tensors]) -> list[Any]:
            return await self._answer(rows)

        self._enqueue = serve.batch(max_batch_size=batch, batch_wait_timeout_s=max_wait_s)(answer_rows)
        self._batch = batch
        # uvloop accepts no infinite time-out
        self._hang_timeout_s = hang_timeout_s if hang_timeout_s < math.inf else None
        self._is_free = asyncio.Lock()

    async def __call__(self, row: Tensors, batch: int = 0, is_alone: bool = False) -> Any:
        """Return the answer to one row as :class:`RowAnswer`, or :class:`ModelHung`.

        Args:
            row: What the model reads for the query, without the batch axis.
            batch: Maximum batch size from now on (0: unchanged). It travels with the row because Ray Serve sends a
                replica nothing while it applies another config.
            is_alone: Whether the row shares its batch with no other.

        Raises:
            InvalidRequest: The model does not take the row.
            RuntimeError: The model raised another error on it.
        """
        if batch not in (0, self._batch):
            self._batch = batch
            self._enqueue.set_max_batch_size(batch)
        answer = (await self._answer([row]))[0] if is_alone else await self._enqueue(row)
        if isinstance(answer, BatchFailure):
            if answer.refused_input:
                raise InvalidRequest(answer.refused_input)
            raise RuntimeError(answer.message)  # noqa: TRY004  # callers distinguish failures by this type
        return answer

    async def _answer(self, rows: list[Tensors]) -> list[Any]:
        """Return the answer to each row; the model runs one batch at a time."""
        async with self._is_free:
            start_s = time.perf_counter()
            try:
                outputs = asyncio.to_thread(_answer_rows, self._predict, rows)
                answers = await asyncio.wait_for(outputs, self._hang_timeout_s)
                seconds = time.perf_counter() - start_s
                return [
                    answer if isinstance(answer, BatchFailure) else RowAnswer(answer, len(rows), seconds)
                    for answer in answers
                ]
            except TimeoutError:
                # exit only after the callers have received the answer
                asyncio.get_running_loop().call_later(EXIT_DELAY_S, os._exit, 1)
                return [ModelHung()] * len(rows)


def _answer_rows(predict: Predict, rows: list[Tensors]) -> list[Any]:
    """Return the output for each row, or what the model raised on it alone, so that a bad row fails no other."""
    try:
        answer = answer_batch(predict, stack_inputs(rows))
    except ValueError as error:
        # tensors of different shapes form no batch
        answer = BatchFailure(str(error))
    if isinstance(answer, BatchFailure):
        return [answer] if len(rows) == 1 else [_answer_rows(predict, [row])[0] for row in rows]
    return [take_row(answer.outputs, index) for index in range(len(rows))]
