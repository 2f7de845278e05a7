"""The worlds that every test of this folder runs in. A further backend is a further line of ``WORLDS``."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, cast

import pytest

from plugins.placement.tests.cases import cluster
from plugins.placement.tests.live.worlds import Open, World, local_world
from tests.kubernetes import build
from tests.kubernetes.cluster import ControlPlane, control_plane

WORLDS = [
    pytest.param("local", id="local"),
    pytest.param("kubernetes", id="kubernetes", marks=pytest.mark.kubernetes),
]


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """A control plane with the shipped roles, for all tests that need one."""
    if importlib.util.find_spec("kubernetes") is None:
        pytest.skip("needs the extra kubernetes: nox -s kubernetes")
    if build.missing():
        pytest.skip(f"not built: {', '.join(build.missing())}: nox -s kubernetes")
    from tests.kubernetes.apply import apply
    from unfold_placement.kubernetes.api import connect
    from unfold_placement.kubernetes.manifests import roles

    with control_plane() as made:
        apply(connect("admin", kubeconfig=str(made.kubeconfig)), roles())
        yield made


@pytest.fixture(params=WORLDS)
def opened(request: pytest.FixtureRequest) -> Open:
    """Opens a world with given nodes."""
    if request.param == "local":
        return lambda nodes: nullcontext(local_world(nodes))
    from plugins.placement.tests.live.kube_world import opener

    return cast("Any", opener(request.getfixturevalue("plane")))


@pytest.fixture
def world(opened: Open) -> Iterator[World]:
    """Three nodes of four GPUs."""
    with opened(cluster(3)) as made:
        yield made
