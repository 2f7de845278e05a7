"""The thread that does one job after the other."""

from __future__ import annotations

import threading
import time

import pytest

from unfoldkit.serving.batching.batcher import WorkerThread

pytestmark = pytest.mark.timed


def test_a_rest_ends_with_the_job() -> None:
    """A resting thread goes on as soon as the current job has ended and was reported."""
    thread, begun, results = WorkerThread("work"), threading.Event(), list[str]()

    def work() -> str:
        begun.set()
        time.sleep(0.05)
        return "done"

    thread.run(work, results.append)
    begun.wait()
    thread.yield_to_job(20.0)
    assert results == ["done"]
    thread.close()


@pytest.mark.parametrize("busy", [True, False])
def test_a_rest_is_bounded(*, busy: bool) -> None:
    """A rest is over after its time although the job goes on, and at once where there is none."""
    thread, begun, end = WorkerThread("work"), threading.Event(), threading.Event()
    if busy:
        thread.run(lambda: (begun.set(), end.wait()), lambda _result: None)
        begun.wait()
    began = time.monotonic()
    thread.yield_to_job(0.02 if busy else 20.0)
    took = time.monotonic() - began
    assert took < 10
    assert not busy or took >= 0.019
    end.set()
    thread.close()
