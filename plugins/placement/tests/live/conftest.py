"""The worlds that every test of this folder runs in. A further backend is a further line of both lists."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, cast

import pytest

from plugins.placement.tests.cases import cluster
from plugins.placement.tests.live.ray_steps import stepped_world
from plugins.placement.tests.live.ray_world import connected, head, ray_world
from plugins.placement.tests.live.worlds import Open, World, local_world
from tests.kubernetes import build
from tests.kubernetes.cluster import ControlPlane, control_plane

if TYPE_CHECKING:
    from plugins.placement.tests.live.kube_world import KubeWorld
    from unfoldkit.kubernetes.api import Api


@pytest.fixture
def local() -> Open:
    """Opens worlds in this process, in virtual time."""
    return lambda nodes: nullcontext(local_world(nodes))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """The address of four real nodes, to which this process is connected."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs the extra ray: nox -s ray")
    with head() as address, connected(address):
        yield address


@pytest.fixture
def ray(ray_cluster: str) -> Open:
    """Opens worlds on a real Ray cluster."""
    assert ray_cluster
    return ray_world


@pytest.fixture
def ray_in_steps(ray_cluster: str) -> Open:
    """Opens worlds on a real Ray cluster, with a clock that waits for it."""
    assert ray_cluster
    return stepped_world


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """A real control plane with the shipped roles, for all tests that need one."""
    if importlib.util.find_spec("kubernetes") is None:
        pytest.skip("needs the extra kubernetes: nox -s kubernetes")
    if build.missing():
        pytest.skip(f"not built: {', '.join(build.missing())}: nox -s kubernetes")
    from tests.kubernetes.apply import apply
    from unfold_placement.kubernetes.manifests import build_counter_roles, build_roles
    from unfoldkit.kubernetes.api import connect_api

    with control_plane(claims=True) as made:
        apply(connect_api("admin", kubeconfig=str(made.kubeconfig)), [*build_roles(), *build_counter_roles()])
        yield made


@pytest.fixture
def kubernetes(plane: ControlPlane) -> Open:
    """Opens worlds on a real control plane, with nodes and a kubelet that are stubs."""
    from plugins.placement.tests.live.kube_world import opener

    return opener(plane)


@pytest.fixture
def kube(kubernetes: Open) -> Iterator[KubeWorld]:
    """Three nodes of four GPUs on a real control plane."""
    with kubernetes(cluster(3)) as made:
        yield cast("KubeWorld", made)


@pytest.fixture
def admin(kube: KubeWorld) -> Api:
    """Returns who may do everything."""
    from unfoldkit.kubernetes.api import connect_api

    return connect_api("admin", kubeconfig=str(kube.plane.kubeconfig))


ELSEWHERE = ["local", pytest.param("kubernetes", marks=pytest.mark.kubernetes)]
WORLDS = [*ELSEWHERE, pytest.param("ray", marks=pytest.mark.ray)]
STAGES = [*ELSEWHERE, pytest.param("ray_in_steps", marks=pytest.mark.ray)]


@pytest.fixture(params=WORLDS)
def opened(request: pytest.FixtureRequest) -> Open:
    """Opens a world with given nodes."""
    found: Open = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=STAGES)
def staged(request: pytest.FixtureRequest) -> Open:
    """Opens a world for a scenario, with a clock that waits for the cluster wherever it can."""
    found: Open = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def world(opened: Open) -> Iterator[World]:
    """Three nodes of four GPUs."""
    with opened(cluster(3)) as made:
        yield made
