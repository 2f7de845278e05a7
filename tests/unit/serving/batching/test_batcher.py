"""Batches: by tick of the loop, bounded, isolated, out of the loop where they are long."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.unit.serving.models import POISON, REFUSED, Total
from unfoldkit.errors import UnfoldError, internal_error
from unfoldkit.serving.batching.batcher import Batcher, Limits, QueueFull, Timing, build_batcher
from unfoldkit.serving.model import Call, Rejection
from unfoldkit.serving.observability.metrics import create_metrics, model_metrics

pytestmark = pytest.mark.timed


def made(model: Total, **limits: Any) -> Batcher:
    return build_batcher(model, Limits(**limits), model_metrics(create_metrics(), "total"), time.perf_counter)


def submit(found: Batcher, *rows: list[float]) -> asyncio.Future[Any]:
    future = asyncio.get_running_loop().create_future()
    found.submit({"x": np.array(rows)}, Call(len(rows)), future.set_result)
    return future


def totals(result: Any) -> list[float]:
    cells, first, last = result
    return [json.loads(cell) for cell in cells["total"][first:last]]


def test_rows_of_one_tick_are_predicted_together() -> None:
    """Requests that arrive before the loop turns make one batch, and each gets its own rows."""
    model = Total()
    found = made(model)

    async def ask() -> list[list[float]]:
        results = await asyncio.gather(*(submit(found, [i, 0, 0], [0, i, i]) for i in range(10)))
        return [totals(result) for result in results]

    assert asyncio.run(ask()) == [[i, 2 * i] for i in range(10)]
    assert model.batches == [20]


def test_a_batch_closes_at_its_limit() -> None:
    """No batch has more rows than the limit, but a single request that is larger."""
    model = Total()
    found = made(model, batch_rows=4)

    async def ask() -> None:
        await asyncio.gather(*(submit(found, *[[1.0, 1, 1]] * n) for n in (3, 2, 2, 9, 1)))

    asyncio.run(ask())
    assert model.batches == [3, 4, 9, 1]


def test_a_bad_row_takes_no_neighbour_along() -> None:
    """When a batch fails its requests are tried alone, so only the guilty one gets the error."""
    found = made(Total())

    async def ask() -> list[Any]:
        return await asyncio.gather(*(submit(found, [value, 0, 0]) for value in (1, POISON, 3)))

    first, second, third = asyncio.run(ask())
    assert (totals(first), totals(third)) == ([1], [3])
    assert isinstance(second, ZeroDivisionError)


def test_a_fault_of_the_server_is_not_repeated_for_each_request() -> None:
    """What waited for a locked store once does not wait for it again with each request of the batch."""
    model, calls = Total(), list[int]()
    found = made(model)

    def fail(batch: Any) -> Any:
        calls.append(len(batch.calls))
        raise internal_error("database is locked")

    found.model = SimpleNamespace(predict=fail)  # type: ignore[assignment]

    async def ask() -> list[Any]:
        return await asyncio.gather(*(submit(found, [1.0, 1, 1]) for _ in range(5)))

    assert {type(result) for result in asyncio.run(ask())} == {UnfoldError}
    assert calls == [5]


def test_a_model_may_refuse_one_call() -> None:
    """A refusal reaches the call that it is about, and only that."""
    found = made(Total())

    async def ask() -> list[Any]:
        return await asyncio.gather(*(submit(found, [value, 0, 0]) for value in (REFUSED, 2)))

    refused, answered = asyncio.run(ask())
    assert refused == Rejection(409, "no")
    assert totals(answered) == [2]


def test_the_queue_is_bounded() -> None:
    """Rows beyond the bound are refused at once with a time to come back; those in the queue are answered."""
    found = made(Total(), queue_rows=5)

    async def ask() -> list[Any]:
        waiting = [submit(found, [i, 0, 0]) for i in range(5)]
        with pytest.raises(QueueFull) as caught:
            submit(found, [9, 0, 0])
        assert caught.value.retry_s >= 1
        results = await asyncio.gather(*waiting)
        assert totals(await submit(found, [7, 0, 0])) == [7]
        return results

    assert [totals(result) for result in asyncio.run(ask())] == [[i] for i in range(5)]


def test_a_full_queue_says_when_to_come_back() -> None:
    """There is room up to the bound and none beyond it, and again once it was taken, while the loop rests."""
    found = made(Total(delay_s=0.05), queue_rows=2)

    async def ask() -> list[int]:
        said = [found.full(2), found.full(3)]
        first = submit(found, [1, 0, 0])
        await asyncio.sleep(0.01)
        second = [submit(found, [i, 0, 0]) for i in range(2)]
        said.append(found.full(1))
        while not first.done():
            found.note_rejections(1)
            await asyncio.sleep(0)
        await asyncio.gather(*second)
        return [*said, found.full(2)]

    room, many, full, again = asyncio.run(ask())
    assert (room, again) == (0, 0)
    assert min(many, full) >= 1
    found.close()


def test_a_long_batch_leaves_the_loop() -> None:
    """While a model takes its time the loop turns, and what arrives meanwhile makes the next batch."""
    model = Total(delay_s=0.05)
    found = made(model)

    async def ask() -> int:
        turns, first = 0, submit(found, [1, 0, 0])
        await asyncio.sleep(0.01)
        later = [submit(found, [i, 0, 0]) for i in range(3)]
        while not first.done():
            await asyncio.sleep(0.001)
            turns += 1
        await asyncio.gather(*later)
        return turns

    assert asyncio.run(ask()) >= 5
    assert model.batches == [1, 3]
    found.close()


def test_timing_follows_the_model_and_forgets_a_stall() -> None:
    """The expected time settles near the usual one, and one long stall hardly moves it."""
    timing = Timing(base=1e-4, slope=1e-5)
    for _ in range(400):
        timing.learn(10, 1e-3)
    assert timing.expected(10) == pytest.approx(1e-3, rel=0.05)
    timing.learn(10, 1.0)
    assert timing.expected(10) == pytest.approx(1e-3, rel=0.06)
