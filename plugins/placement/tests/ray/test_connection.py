"""Calls to the coordinator end: with an answer, or with an error that names what was awaited."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from unfold_placement.core.types import Task
from unfold_placement.ray import connection
from unfold_placement.ray.client import Client
from unfold_placement.ray.connection import CALL_TIMEOUT_S, CoordinatorTimeoutError, call_coordinator
from unfold_placement.ray.sessions import Ended


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
    """The error says which call was not answered, and for how long it waited; calls that wait get their time on top."""
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
