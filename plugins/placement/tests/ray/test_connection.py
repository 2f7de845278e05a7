"""Calls to the coordinator end: with an answer, or with an error that names what was awaited."""

from __future__ import annotations

import sys
import time
from concurrent.futures import Future
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from unfold_placement.core.types import Task
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Record
from unfold_placement.ray import connection
from unfold_placement.ray.client import MAX_UNREACHABLE_S, Client, Job
from unfold_placement.ray.connection import CALL_TIMEOUT_S, CoordinatorTimeoutError, call_coordinator
from unfold_placement.ray.sessions import Ended
from unfoldkit.api import UnfoldError


class NeverError(Exception):
    """Stands for the time-outs and deaths of Ray."""


@pytest.fixture
def timeouts(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace Ray by one that never answers, and return the time-outs with which it is called."""
    seen: list[float] = []
    ray, errors = ModuleType("ray"), ModuleType("ray.exceptions")
    late = type("GetTimeoutError", (NeverError,), {})

    def get(_reference: Any, timeout: float) -> None:
        seen.append(timeout)
        raise late

    vars(ray).update(get=get, is_initialized=lambda: True, exceptions=errors)
    others = {name: type(name, (NeverError,), {}) for name in ("RayActorError", "RayTaskError", "RayError")}
    vars(errors).update(GetTimeoutError=late, **others)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", errors)
    return seen


COORDINATOR: Any = SimpleNamespace(
    **{name: SimpleNamespace(remote=lambda *_: None) for name in ("now", "watch", "report", "wait_for_offers")}
)


def test_an_unanswered_call_names_its_method(timeouts: list[float]) -> None:
    """The error names the call without an answer and its wait; calls that wait get their time on top."""
    with pytest.raises(CoordinatorTimeoutError, match="did not answer now within 60 s"):
        call_coordinator(COORDINATOR, "now")
    with pytest.raises(CoordinatorTimeoutError, match="did not answer watch"):
        call_coordinator(COORDINATOR, "watch", 3, 2.5)
    assert timeouts == [CALL_TIMEOUT_S, CALL_TIMEOUT_S + 2.5]
    assert {"watch", "wait_for_offers"} == connection.WAITING_CALLS


def test_a_report_without_an_answer_fails_its_tasks(timeouts: list[float]) -> None:
    """A task that may or may not be enqueued ends with the error, and is not submitted twice."""
    client = Client(COORDINATOR)
    task = Task("a-0", {}, 1.0)
    client.jobs["a-0"] = SimpleNamespace(task=task)  # type: ignore[assignment]
    failures = client._call_with_retry("report", "me", [task], [])
    assert failures == {"a-0": "the coordinator did not answer report within 60 s"}
    assert client.outbox.empty()
    assert timeouts == [CALL_TIMEOUT_S]


def test_an_end_without_an_answer_is_reported_again(timeouts: list[float]) -> None:
    """An end that the coordinator may not have received would occupy its place for ever; twice, it counts once."""
    client, ended = Client(COORDINATOR), Ended("a-0", 1)
    assert client._call_with_retry("report", "me", [], [ended]) == {}
    assert client.outbox.get_nowait() == ended
    assert timeouts == [CALL_TIMEOUT_S]


def waiting_client(coordinator: Any = COORDINATOR) -> tuple[Client, Future[Any]]:
    """Return a client with a task that was submitted long ago, and the task's future."""
    client = Client(coordinator)
    result: Future[Any] = Future()
    client.jobs["a-0"] = Job(Task("a-0", {}, 1.0), None, (), {}, result)
    client.last_answer_s -= 2 * MAX_UNREACHABLE_S
    return client, result


def test_tasks_end_where_the_coordinator_stays_out_of_reach(timeouts: list[float]) -> None:
    """No call waits for ever: the future fails after five minutes and names the call and the wait."""
    client, result = waiting_client()
    client._call_with_retry("report", "me", [], [])
    with pytest.raises(UnfoldError, match=r"task a-0 was not completed: .* did not answer report .*, for 600 s"):
        result.result(0)
    fresh, waiting = waiting_client()
    fresh.last_answer_s = time.monotonic()
    fresh._call_with_retry("report", "me", [], [])
    assert not waiting.done()
    assert timeouts == [CALL_TIMEOUT_S, CALL_TIMEOUT_S]


def test_tasks_end_with_their_client(timeouts: list[float]) -> None:
    """After ``close``, and after ``ray.shutdown`` without it, no future stays open for ever."""
    client, result = waiting_client(SimpleNamespace(leave=SimpleNamespace(remote=lambda _: None)))
    client.close()
    with pytest.raises(UnfoldError, match="its client was closed"):
        result.result(0)
    client, result = waiting_client()
    vars(sys.modules["ray"])["is_initialized"] = lambda: False
    client._call_with_retry("wait_for_offers", "me", 0, 2.0)
    with pytest.raises(UnfoldError, match="no longer connected to Ray"):
        result.result(0)
    assert timeouts == []


@pytest.mark.parametrize("thread", ["_send_reports", "_receive_offers"])
def test_a_thread_that_fails_leaves_no_future_open(timeouts: list[float], thread: str) -> None:
    """An unexpected error, such as of a broken handle, fails the tasks; later ones are refused at once."""
    client, result = waiting_client(SimpleNamespace())
    client.outbox.put(client.jobs["a-0"].task)
    client._run_to_end(getattr(client, thread))
    with pytest.raises(UnfoldError, match=r"its client failed: AttributeError"):
        result.result(0)
    with pytest.raises(UnfoldError, match="the client is closed"):
        client.submit(Task("b-0", {}, 1.0), print)
    assert timeouts == []


def test_a_future_that_is_cancelled_as_its_task_is_closed_ends_no_thread() -> None:
    """The record of a task that will not run may arrive after its future was cancelled."""
    client, result = waiting_client()
    job = client.jobs["a-0"]
    result.cancel()
    client.jobs["a-0"] = job
    client._close_job(Record(job.task, kinds.REFUSED, outcome="too late"))
    assert client.jobs == {}
