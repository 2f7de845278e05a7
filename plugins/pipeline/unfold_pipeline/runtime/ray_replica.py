"""What runs in a replica on Ray Serve: a model, and a queue that makes batches of what comes."""

from __future__ import annotations

import asyncio
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_pipeline.runtime.model_loader import Predict, Rows, Source, load
from unfold_pipeline.runtime.replica import Failed, answer

LAST_S = 0.2


@dataclass(frozen=True, slots=True)
class Hung:
    """Says, in the place of an answer, that the model did not come back with the batch of a row."""


class Replica:
    """What runs in a replica: a model, and a queue that makes batches of what comes.

    One that keeps a batch for longer than ``patience`` seconds says so and ends; another takes its place.
    """

    def __init__(self, source: Source, batch: int, wait: float, patience: float = math.inf) -> None:
        from ray import serve
        from threadpoolctl import threadpool_limits

        self._predict = load(source)
        threadpool_limits(1)

        async def many(rows: list[Rows]) -> list[Any]:
            return await self._answered(np.stack(rows))

        self._ask = serve.batch(max_batch_size=batch, batch_wait_timeout_s=wait)(many)
        self._batch = batch
        # uvloop takes no time-out that never ends
        self._patience = patience if patience < math.inf else None
        self._free = asyncio.Lock()

    async def __call__(self, row: Rows, batch: int = 0, alone: bool = False) -> Any:
        """Return the answer to one row; ``batch`` is the largest batch from now on (0: as before).

        It comes with the row, as Ray Serve sends a replica nothing while it takes in another config. A row that is to
        be ``alone`` shares its batch with no other.

        Raises:
            RuntimeError: the model's code raised an error on it.
        """
        if batch not in (0, self._batch):
            self._batch = batch
            self._ask.set_max_batch_size(batch)
        found = (await self._answered(row[None]))[0] if alone else await self._ask(row)
        if isinstance(found, Failed):
            raise RuntimeError(found.line)  # noqa: TRY004  # the type says that there is no answer
        return found

    async def _answered(self, rows: Rows) -> list[Any]:
        """Return the answer to each row; the model is asked for one batch at a time."""
        async with self._free:
            try:
                work = asyncio.to_thread(_outputs, self._predict, rows)
                return await asyncio.wait_for(work, self._patience)
            except TimeoutError:
                # not before those who asked have heard it
                asyncio.get_running_loop().call_later(LAST_S, os._exit, 1)
                return [Hung()] * len(rows)


def _outputs(predict: Predict, rows: Rows) -> list[Any]:
    """Return the answer to each row, or what the model raised on it alone, so that one bad row fails no other."""
    told = answer(predict, rows)
    if isinstance(told, Failed):
        return [told] if len(rows) == 1 else [_outputs(predict, rows[at : at + 1])[0] for at in range(len(rows))]
    return [np.asarray(output).tolist() for output in told[0]]
