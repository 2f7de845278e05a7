"""The client of a served policy, without a cluster."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from unfold_placement.core.types import Task
from unfold_placement.ray.client import Client, Job


def test_jobs_are_resubmitted_once_per_death_of_the_coordinator() -> None:
    """All that is not over is submitted anew once for each death, whoever finds it and however late."""
    client = Client(coordinator=None)
    for name in ("a", "b"):
        done: Future[Any] = Future()
        client.jobs[name] = Job(Task(name, {}, 1.0), None, (), {}, done, attempt=3)
    for known in (0, 0, 1, 0, 1):
        client._resubmit_all(known)
    sent = [client.outbox.get_nowait() for _ in range(client.outbox.qsize())]
    assert [task.name for task in sent if isinstance(task, Task)] == ["a", "b", "a", "b"]
    assert {job.attempt for job in client.jobs.values()} == {0}
