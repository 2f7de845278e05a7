"""What the steward on Ray does for clients beyond the contract of every backend."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from plugins.placement.tests.live.holders import WAIT
from unfold_placement.live.rays import steward_of

pytestmark = pytest.mark.ray


@pytest.fixture
def steward(ray_cluster: str) -> Iterator[Any]:
    """A steward of one's own."""
    import ray

    assert ray_cluster
    made = steward_of(uuid.uuid4().hex)
    yield made
    ray.kill(made)


def test_a_client_that_leaves_is_not_kept_waiting(steward: Any) -> None:
    """What it waits for is answered as it leaves, however long it would have waited."""
    import ray

    told = steward.offers.remote("one", 10 * WAIT)
    steward.leave.remote("one")
    assert ray.get(told, timeout=WAIT) == ([], [])
