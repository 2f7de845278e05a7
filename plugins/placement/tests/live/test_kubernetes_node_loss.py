"""Nodes of a real apiserver that are deleted, not ready or cordoned: gangs stay whole, and no name or gate is left."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable

import pytest

from plugins.placement.tests.cases import cluster, job, policy
from plugins.placement.tests.live.kube_world import KubeWorld, resources
from plugins.placement.tests.live.test_kubernetes import left_over, node_of
from plugins.placement.tests.live.test_kubernetes_workloads import JOBS, cleaned, create_pods, job_body, work, work_for
from tests.kubernetes.kubelet import add_node
from unfold_placement.core.types import ANYWHERE
from unfold_placement.kubernetes.objects import pods
from unfold_placement.live.control_loop import ControlLoop
from unfold_placement.policies.registry import build_policies
from unfoldkit.kubernetes.api import MERGE, Api

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(400)]
PODS = "/api/v1/namespaces/unfold/pods"
SIZE = 6
PARTS = {"gang": {"by": "job"}, "anti-affinity": {"by": "job", "density": 4}}
MOST = 60.0


@pytest.fixture
def live(kube: KubeWorld) -> ControlLoop:
    """A leading controller of three nodes of four GPUs, and two gangs of six that fill them."""
    kube.policies = build_policies(policy(**PARTS))
    handle = kube.handle()
    handle.bind_timeout_s = 5.0
    made = ControlLoop(handle, lambda: build_policies(policy(**PARTS)), "me", kube.scope, 10.0, 30.0)
    for name in "ab":
        for task in job(name, SIZE, run=3600.0):
            kube.submit(task)
    work(made, lambda: opened(kube) == {"a": SIZE, "b": SIZE}, MOST)
    return made


def opened(kube: KubeWorld) -> dict[str, int]:
    """Return how many pods of each gang are behind no gate, bound to a node, and not about to go."""
    api = kube.handles[0].api
    bodies = [body for body in api.get(PODS)["items"] if pods.is_managed(body, kube.handles[0].scope)]
    open_pods = [
        body
        for body in bodies
        if not body["spec"].get("schedulingGates")
        and body["spec"].get("nodeName")
        and not body["metadata"].get("deletionTimestamp")
    ]
    counts = Counter(pods.task_name(body).rpartition("-")[0] for body in open_pods)
    return {name: counts[name] for name in "ab"}


def delete(admin: Api, node: str) -> None:
    """Delete a node."""
    admin.delete(f"/api/v1/nodes/{node}")


def restore(admin: Api, node: str) -> None:
    """Create the node again, as a machine that joins anew."""
    index = int(node[1:])
    made = cluster(3)[index]
    add_node(admin, made.name, resources(made), made.labels)


def set_ready(admin: Api, node: str, status: str) -> None:
    """Let a node report whether it is ready."""
    condition = {"type": "Ready", "status": status, "reason": "Test", "message": "test"}
    admin.patch(f"/api/v1/nodes/{node}/status", {"status": {"conditions": [condition]}}, MERGE)


def cordon(admin: Api, node: str, *, closed: bool) -> None:
    """Cordon a node or open it again."""
    admin.patch(f"/api/v1/nodes/{node}", {"spec": {"unschedulable": closed}}, MERGE)


Change = Callable[[Api, str], None]
LOSSES: dict[str, tuple[Change, Change]] = {
    "deleted": (delete, restore),
    "not ready": (
        lambda admin, node: set_ready(admin, node, "False"),
        lambda admin, node: set_ready(admin, node, "True"),
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_lost_node_returns_its_gangs_and_a_restored_one_takes_them(
    kube: KubeWorld, admin: Api, live: ControlLoop, loss: str
) -> None:
    """One gang runs on what is left, the other waits behind its gates; both run once the node is back."""
    lose, give_back = LOSSES[loss]
    lose(admin, "n1")
    work(live, lambda: sorted(opened(kube).values()) == [0, SIZE], MOST)
    give_back(admin, "n1")
    work(live, lambda: opened(kube) == {"a": SIZE, "b": SIZE}, MOST)
    check_nothing_is_left(kube, admin, live)


def test_a_cordoned_node_keeps_its_tasks_and_takes_no_more(kube: KubeWorld, admin: Api, live: ControlLoop) -> None:
    """Both gangs go on; once one of them has gone, the next goes where the cordon is not."""
    cordon(admin, "n0", closed=True)
    live.step(0.5)
    assert opened(kube) == {"a": SIZE, "b": SIZE}
    for index in range(SIZE):
        live.backend.withdraw(f"a-{index}")
    for task in job("c", 1, run=3600.0):
        kube.submit(task)
    work(live, lambda: bool(node_of_task(kube, "c-0")), MOST)
    assert node_of_task(kube, "c-0") != "n0"
    cordon(admin, "n0", closed=False)


def node_of_task(kube: KubeWorld, task: str) -> str:
    """Return the node to which a task's pod is bound; empty for none."""
    return str((kube.handles[0].informer.body(task) or {"spec": {}})["spec"].get("nodeName", ""))


def test_random_churn_leaves_no_part_and_no_name(kube: KubeWorld, admin: Api, live: ControlLoop) -> None:
    """Nodes go and come in any order: whenever it is quiet gangs are whole, and at the end both run."""
    rng = random.Random(5)  # noqa: S311 - of nodes
    lost: dict[str, str] = {}
    for _ in range(6):
        node = rng.choice(["n0", "n1", "n2"])
        loss = lost.pop(node, "")
        if loss:
            LOSSES[loss][1](admin, node)
        else:
            lost[node] = rng.choice(sorted(LOSSES))
            LOSSES[lost[node]][0](admin, node)
        gangs = max(0, (3 - len(lost)) * 4 // SIZE)
        wanted = sorted([SIZE] * gangs + [0] * (2 - gangs))
        work(live, lambda wanted=wanted: sorted(opened(kube).values()) == wanted, MOST)  # type: ignore[misc]
    for node, loss in lost.items():
        LOSSES[loss][1](admin, node)
    work(live, lambda: opened(kube) == {"a": SIZE, "b": SIZE}, MOST)
    check_nothing_is_left(kube, admin, live)


def check_nothing_is_left(kube: KubeWorld, admin: Api, live: ControlLoop) -> None:
    """Withdraw everything: no pod, no extended resource and no record of one stays."""
    for name in "ab":
        for index in range(SIZE):
            live.backend.withdraw(f"{name}-{index}")
    end = time.monotonic() + MOST
    while left_over(admin, kube.handles[0]) or admin.get(PODS)["items"]:
        assert time.monotonic() < end, left_over(admin, kube.handles[0])
        live.step(0.2)
    assert [item for item in live.backend.snapshot().names if item.node != ANYWHERE] == []


def test_the_new_pods_of_a_job_wait_for_one_another(kube: KubeWorld, admin: Api) -> None:
    """A node is lost with all pods of a gang: their controller creates them anew, one after the other."""
    kube.policies = build_policies(policy(**PARTS))
    handle = kube.handle()
    made = ControlLoop(handle, lambda: build_policies(policy(**PARTS)), "me", kube.scope, 10.0, 30.0)
    with cleaned(admin, f"{JOBS}/train"):
        admin.post(JOBS, job_body(kube, "train", 4))
        work(made, lambda: not admin.get(f"{JOBS}/train")["spec"]["suspend"], MOST)
        body = admin.get(f"{JOBS}/train")
        create_pods(admin, body["spec"]["template"], body, [f"train-{index}" for index in range(4)], {})
        work(made, lambda: all(node_of(admin, f"train-{index}") for index in range(4)), MOST)
        nodes = {node_of(admin, f"train-{index}") for index in range(4)}
        for node in nodes:
            delete(admin, node)
        work(made, lambda: not admin.get(PODS)["items"], MOST)
        create_pods(admin, body["spec"]["template"], body, ["again-0"], {})
        for node in nodes:
            restore(admin, node)
        work_for(made, 2.0)
        assert not node_of(admin, "again-0")
        create_pods(admin, body["spec"]["template"], body, [f"again-{index}" for index in range(1, 4)], {})
        work(made, lambda: all(node_of(admin, f"again-{index}") for index in range(4)), MOST)
