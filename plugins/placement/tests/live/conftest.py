"""The worlds that every test of this folder runs in. A further backend is a further line of ``WORLDS``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from plugins.placement.tests.cases import cluster
from plugins.placement.tests.live.worlds import Open, World, local_world

WORLDS = [pytest.param(lambda nodes: nullcontext(local_world(nodes)), id="local")]


@pytest.fixture(params=WORLDS)
def opened(request: pytest.FixtureRequest) -> Open:
    """Opens a world with given nodes."""
    found: Open = request.param
    return found


@pytest.fixture
def world(opened: Open) -> Iterator[World]:
    """Three nodes of four GPUs."""
    with opened(cluster(3)) as made:
        yield made
