"""What the steward on Ray does for clients beyond the contract of every backend."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from plugins.placement.tests.live.holders import WAIT
from unfold_placement.core.types import Task
from unfold_placement.ray.backend import start_coordinator

pytestmark = pytest.mark.ray


@pytest.fixture
def steward(ray_cluster: str) -> Iterator[Any]:
    """A steward of one's own."""
    import ray

    assert ray_cluster
    made = start_coordinator(uuid.uuid4().hex)
    yield made
    ray.kill(made)


def test_a_leaving_client_is_answered_at_once(steward: Any) -> None:
    """What it waits for is answered as it leaves, however long it would have waited."""
    import ray

    offers = steward.wait_for_offers.remote("one", 0, 10 * WAIT)
    steward.leave.remote("one")
    assert ray.get(offers, timeout=WAIT) == []


def test_a_task_name_of_another_client_is_rejected(steward: Any) -> None:
    """Of two applications that submit one name the second gets an error, and the first the record of the task."""
    import ray

    task = Task("a", {"cpu": 1000}, 1.0)
    failures = [ray.get(steward.report.remote(client, [task], []), timeout=WAIT) for client in ("one", "two")]
    assert [list(refused) for refused in failures] == [[], ["a"]]
    ray.get(steward.withdraw.remote("a"), timeout=WAIT)
    records = [ray.get(steward.wait_for_offers.remote(client, 0, 0.0), timeout=WAIT) for client in ("one", "two")]
    assert [[record.task.name for _, record in closed] for closed in records] == [["a"], []]
