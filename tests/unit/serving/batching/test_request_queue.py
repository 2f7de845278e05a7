"""How requests wait: by arrival, or the most urgent first and by the way that was picked."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from unfoldkit.serving.batching import request_queue as lines
from unfoldkit.serving.batching.batcher import Limits, build_batcher
from unfoldkit.serving.batching.request_queue import DeadlineQueue, FifoQueue, QueuedRequest
from unfoldkit.serving.model import Batch, Call, Field, PathChoice, Predictions
from unfoldkit.serving.observability.metrics import create_metrics, model_metrics
from unfoldkit.serving.oip.codec import read_call
from unfoldkit.serving.oip.errors import InvalidRequest

LIMIT = 64


@dataclass(slots=True)
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def made(seconds: float = 1.0, slow: float = 0.1) -> tuple[DeadlineQueue, Clock]:
    """Return a line with ways 1 and 2 that take ``slow`` / 4 and ``slow`` seconds for at most four rows."""
    clock = Clock()

    def pick(slack: float, rows: int, _level: int) -> tuple[int, int] | None:
        ways = [way for way, takes in ((2, slow), (1, slow / 4)) if takes <= slack]
        return (ways[0], min(rows, 4)) if ways else None

    return DeadlineQueue(lines.ExecutionPaths(pick, (0, 0, 0)), seconds, clock), clock


def leveled(short: float = 0.1) -> tuple[DeadlineQueue, Clock, list[tuple[int, int]]]:
    """Return a line of way 0 for level 0 and way 1 for both, which needs ``short`` seconds; and what it asked."""
    clock, asked = Clock(), list[tuple[int, int]]()

    def pick(slack: float, rows: int, level: int) -> tuple[int, int] | None:
        asked.append((rows, level))
        return (level, rows) if slack >= short * level else None

    ways = lines.ExecutionPaths(pick, (0, 1), (0, 1), lambda call: int(call.least_accuracy > 0.5))
    return DeadlineQueue(ways, 1.0, clock), clock, asked


def wait(to: Any, name: str, deadline: float | None = None, rows: int = 1, least: float = 0.0) -> None:
    to.add(QueuedRequest({}, Call(rows, name, None, deadline, least), lambda _: None))


def names(taken: list[QueuedRequest]) -> list[str]:
    return [item.call.entity for item in taken]


def test_arrivals_are_answered_in_their_order() -> None:
    """The line of arrivals closes a batch at its limit, or at one request that is larger, and picks nothing."""
    line = FifoQueue()
    for name, rows in (("a", 3), ("b", 2), ("c", 2), ("d", 9)):
        wait(line, name, rows=rows)
    assert [names(line.take(4)[0]) for _ in range(4)] == [["a"], ["b", "c"], ["d"], []]


def test_the_earliest_deadline_is_first() -> None:
    """Requests are taken by deadline, those of one deadline by arrival; without one of its own it has the line's."""
    line, _ = made(seconds=2.0)
    for name, deadline in (("late", 5.0), ("soon", 1.0), ("own", None), ("also", 1.0)):
        wait(line, name, deadline)
    taken, turn = line.take(LIMIT)
    assert names(taken) == ["soon", "also", "own", "late"]
    assert turn == PathChoice(2, (1.0, 1.0, 2.0, 5.0), 0.0)
    assert line.rows == [0]


def test_time_waited_counts() -> None:
    """What is left of a deadline, not what it was, decides the way."""
    line, clock = made()
    wait(line, "a", 0.2)
    clock.now = 0.15
    _, turn = line.take(LIMIT)
    assert turn == PathChoice(1, (0.2,), 0.15)


def test_the_hopeless_step_aside_and_are_answered() -> None:
    """A hopeless request delays no other, and gets its own way once no other waits."""
    line, _ = made()
    wait(line, "hopeless", 0.001)
    wait(line, "too many", 1.0, rows=5)
    wait(line, "good", 1.0)
    taken, turn = line.take(LIMIT)
    assert (names(taken), turn and turn.way) == (["good"], 2)
    taken, turn = line.take(LIMIT)
    assert (names(taken), turn and turn.way) == (["hopeless", "too many"], 0)
    assert line.take(LIMIT)[0] == []


def test_no_way_answers_who_asks_for_more() -> None:
    """A way answers no level above its own, those below fill its batches, and rows are counted by level or above."""
    waiting, _, asked = leveled()
    for name, deadline, least in (("low", 0.2, 0.0), ("high", 0.3, 0.9), ("lower", 0.4, 0.0), ("higher", 0.5, 0.9)):
        wait(waiting, name, deadline, least=least)
    taken, turn = waiting.take(LIMIT)
    assert (names(taken), turn and turn.way) == (["low", "lower"], 0)
    wait(waiting, "last", 0.4)
    taken, turn = waiting.take(LIMIT)
    assert (names(taken), turn and turn.way) == (["high", "last"], 1)
    assert (names(waiting.take(LIMIT)[0]), waiting.rows) == (["higher"], [0, 0])
    assert asked == [(4, 0), (2, 1), (1, 1)]


def test_the_hopeless_keep_their_level() -> None:
    """A hopeless request is answered late by a way of its level, with those behind it that this way answers."""
    waiting, _, _ = leveled()
    for name, least in (("a", 0.9), ("b", 0.9), ("c", 0.0)):
        wait(waiting, name, 0.01, least=least)
    assert [names(waiting.take(LIMIT)[0]) for _ in range(3)] == [["c"], ["a", "b"], []]
    for name, deadline, least in (("a", 0.1, 0.0), ("b", 0.2, 0.9), ("c", 0.3, 0.0)):
        wait(waiting, name, deadline, rows=9, least=least)
    waiting.ways = lines.ExecutionPaths(lambda *_: None, (0, 1), (0, 1), waiting.ways.level)
    ways = [(names(taken), turn and turn.way) for taken, turn in (waiting.take(LIMIT) for _ in range(3))]
    assert ways == [(["a"], 0), (["b", "c"], 1), ([], None)]


def test_rows_are_those_picked() -> None:
    """A batch has no more rows than were picked, nor than the limit of all batches."""
    line, _ = made()
    for name in "abcdefg":
        wait(line, name, 1.0)
    assert names(line.take(LIMIT)[0]) == ["a", "b", "c", "d"]
    assert names(line.take(2)[0]) == ["e", "f"]


def test_a_deadline_is_a_number_of_milliseconds() -> None:
    """The parameter becomes seconds; a value that is not positive, or longer than a day, is refused."""
    assert read_call({"deadline_ms": 20}, 1) == Call(1, deadline=0.02)
    assert read_call({"entity": "a", "deadline_ms": 0.5}, 2) == Call(2, "a", None, 0.0005)
    for bad in (0, -3, "20", True, 1e12):
        with pytest.raises(InvalidRequest, match="deadline_ms"):
            read_call({"deadline_ms": bad}, 1)


def test_the_least_accuracy_is_a_share() -> None:
    """The parameter is a share from 0 to 1; text, percent and truth values are refused."""
    assert read_call({"least_accuracy": 0.95, "deadline_ms": 20}, 1) == Call(1, deadline=0.02, least_accuracy=0.95)
    assert read_call({"least_accuracy": 1}, 1) == Call(1, least_accuracy=1.0)
    for bad in (-0.1, 95, "0.9", True, float("nan")):
        with pytest.raises(InvalidRequest, match="least_accuracy"):
            read_call({"least_accuracy": bad}, 1)


@dataclass(slots=True)
class Ways:
    """Answers with the way that was picked; fails on a negative number."""

    name: str = "ways"
    version: str = "1"
    inputs: tuple[Field, ...] = (Field("x", "FP64", (1,)),)
    outputs: tuple[Field, ...] = (Field("way", "INT64"),)
    facts: dict[str, Any] = field(default_factory=dict)

    def predict(self, batch: Batch) -> Predictions:
        if (batch.inputs["x"] < 0).any():
            raise ValueError("negative")
        assert batch.trial or (batch.turn and len(batch.turn.due) == len(batch.calls))
        return Predictions({"way": np.full(batch.rows, batch.turn.way if batch.turn else -1)})


def test_the_model_receives_the_way() -> None:
    """A batch carries its turn to the model, also where its requests are tried one by one after a failure."""
    line, _ = made()
    found = build_batcher(Ways(), Limits(), model_metrics(create_metrics(), "ways"), lambda: 0.0, line)

    async def ask() -> list[Any]:
        futures = [asyncio.get_running_loop().create_future() for _ in range(3)]
        for value, future in zip((1.0, -1.0, 2.0), futures, strict=True):
            found.submit({"x": np.array([[value]])}, Call(1, deadline=0.05), future.set_result)
        return await asyncio.gather(*futures)

    first, second, third = asyncio.run(ask())
    assert isinstance(second, ValueError)
    assert [cells["way"][at:end] for cells, at, end in (first, third)] == [[b"1"], [b"1"]]
    assert found.rows == 0
