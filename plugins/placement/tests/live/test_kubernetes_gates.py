"""Gates on a real control plane: opened some at a time, patient from the opening, and no task is lost behind one."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from plugins.placement.tests.cases import cluster, job, policy
from plugins.placement.tests.live.kube_world import KubeWorld
from plugins.placement.tests.live.test_contract import record, until
from plugins.placement.tests.live.test_kubernetes import PODS, node_of, other, soon
from plugins.placement.tests.live.worlds import Open
from unfold_placement.core.types import Task
from unfold_placement.kubernetes.backend import KubernetesBackend
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Start
from unfold_placement.live.control_loop import ControlLoop
from unfold_placement.policies.registry import build_policies
from unfoldkit.kubernetes.api import Api, connect_api

pytestmark = pytest.mark.kubernetes
LONG = 3600.0


@pytest.fixture
def one(kube: KubeWorld) -> KubernetesBackend:
    """Returns a handle that leads."""
    made = kube.handle()
    assert made.lead("one", 60.0)
    return made


def waiting(kube: KubeWorld, count: int) -> None:
    """Let tasks a-0, a-1, … wait behind their gates."""
    for task in job("a", count, run=LONG):
        kube.submit(task)


def shut(admin: Api) -> list[str]:
    """Return the pods with a closed gate."""
    return sorted(pod["metadata"]["name"] for pod in admin.get(PODS)["items"] if pod["spec"].get("schedulingGates"))


def list_changed_tasks(one: KubernetesBackend, after: int, kind: str) -> list[str]:
    """Return the tasks that a handle was notified about."""
    return [change.task for change in one.store.watch(after, 0.0) or () if change.kind == kind]


def test_a_limited_number_of_gates_is_opened_at_a_time(kube: KubeWorld, admin: Api, one: KubernetesBackend) -> None:
    """No more pods than may be in flight are open without a node; as they are bound, the others follow."""
    one.gate_queue.max_in_flight = 2
    admin.post(PODS, other("thief", {"nvidia.com/gpu": "4"}, nodeName="n1"))
    waiting(kube, 4)
    after = one.snapshot().after
    for index in range(4):
        one.start([Start(f"a-{index}", "n1")])
    one.flush()
    one.watch(one.store.last_number, 0.5)
    assert shut(admin) == ["a-2-0", "a-3-0"]
    admin.delete(f"{PODS}/thief", {"gracePeriodSeconds": 0})
    until(one, lambda: all(one.informer.is_bound(f"a-{index}") for index in range(4)))
    assert list_changed_tasks(one, after, kinds.FAILED) == []


def test_the_record_of_a_gang_goes_once_it_is_placed_or_withdrawn(
    kube: KubeWorld, admin: Api, one: KubernetesBackend
) -> None:
    """Nothing of it is left for the next leader to read, and nothing grows with the gangs that come and go."""
    path = f"/api/v1/namespaces/unfold/configmaps/{one.scope.record}"
    waiting(kube, 4)
    one.start([Start("a-0", "n0"), Start("a-1", "n0")])
    one.flush()
    assert "a-0" in admin.get(path)["data"]["units"]
    until(one, lambda: admin.get(path)["data"]["units"] == "{}")
    assert all(one.informer.is_bound(f"a-{index}") for index in range(2))
    one.start([Start("a-2", "n1"), Start("a-3", "n1")])
    for index in (2, 3):
        one.withdraw(f"a-{index}")
    one.flush()
    until(one, lambda: admin.get(path)["data"]["units"] == "{}")
    assert one.gate_queue.units == {}


def test_a_gang_is_rehearsed_and_then_opened(kube: KubeWorld, admin: Api, one: KubernetesBackend) -> None:
    """The server checks the opening of every gate first; of a gang with a pod that is gone, no gate is opened."""
    waiting(kube, 4)
    one.start([Start("a-0", "n0"), Start("a-1", "n0")])
    until(one, lambda: all(one.informer.is_bound(f"a-{index}") for index in range(2)))
    one.start([Start("a-2", "n1"), Start("a-3", "n1")])
    admin.delete(f"{PODS}/a-3-0", {"gracePeriodSeconds": 0})
    one.flush()
    assert "a-2-0" in shut(admin)


def test_a_unit_above_the_in_flight_limit_is_opened_completely(kube: KubeWorld, one: KubernetesBackend) -> None:
    """A gang is never opened in part: it goes when nothing else is in flight."""
    one.gate_queue.max_in_flight = 2
    waiting(kube, 4)
    one.start([Start("a-0", "n0")])
    one.start([Start("a-1", "n0"), Start("a-2", "n1"), Start("a-3", "n2")])
    until(one, lambda: all(one.informer.is_bound(f"a-{index}") for index in range(4)))
    assert {record(one, f"a-{index}").attempt for index in range(4)} == {1}


def test_the_bind_timeout_counts_from_the_opening_of_the_gate(
    kube: KubeWorld, admin: Api, one: KubernetesBackend
) -> None:
    """A unit that waited for its turn longer than anybody is patient is not taken back for that."""
    one.gate_queue.max_in_flight, one.bind_timeout_s = 1, 2.0
    admin.post(PODS, other("thief", {"nvidia.com/gpu": "4"}, nodeName="n1"))
    waiting(kube, 3)
    after = one.snapshot().after
    one.start([Start("a-0", "n1")])
    one.start([Start("a-1", "n0")])
    one.start([Start("a-2", "n2")])
    time.sleep(one.bind_timeout_s)
    until(one, lambda: one.informer.is_bound("a-1") and one.informer.is_bound("a-2"))
    assert list_changed_tasks(one, after, kinds.FAILED) == ["a-0"]


def test_no_task_of_a_large_batch_times_out(kube: KubeWorld, one: KubernetesBackend) -> None:
    """A controller with more tasks than kube-scheduler binds within its patience starts each of them once."""
    one.gate_queue.max_in_flight, one.bind_timeout_s = 8, 1.0
    after = one.snapshot().after
    live = ControlLoop(one, lambda: build_policies(policy()), "one", "many")
    count = 400
    for index in range(count):
        kube.submit(Task(f"s-{index}", {"cpu": 10}, LONG, job="s"))
    end = time.monotonic() + 120
    while sum(one.informer.is_bound(f"s-{index}") for index in range(count)) < count:
        assert time.monotonic() < end, "they are never all bound"
        live.step(0.2)
    assert list_changed_tasks(one, after, kinds.FAILED) == []


def test_a_task_stopped_before_its_gate_was_opened_is_not_lost(
    kube: KubeWorld, admin: Api, one: KubernetesBackend
) -> None:
    """It waits as the pod that it is, and the next start binds it."""
    waiting(kube, 1)
    one.start([Start("a-0", "n0")])
    one.preempt("a-0")
    one.flush()
    assert record(one, "a-0").state == kinds.WAITING
    assert shut(admin) == ["a-0-0"]
    one.start([Start("a-0", "n2")])
    until(one, lambda: one.informer.is_bound("a-0"))
    assert node_of(admin, "a-0-0") == "n2"


def test_a_gang_with_a_task_stopped_before_opening_waits_again(
    kube: KubeWorld, admin: Api, one: KubernetesBackend
) -> None:
    """Taken back once as no node had room, then one of it stopped before it was opened: all of it runs in the end."""
    one.bind_timeout_s = 1.0
    waiting(kube, 2)
    admin.post(PODS, other("thief", {"nvidia.com/gpu": "4"}, nodeName="n1"))
    one.start([Start("a-0", "n0"), Start("a-1", "n1")])
    until(one, lambda: {record(one, f"a-{index}").state for index in range(2)} == {kinds.WAITING})
    one.start([Start("a-0", "n0"), Start("a-1", "n2")])
    one.preempt("a-1")
    one.start([Start("a-1", "n2")])
    until(one, lambda: one.informer.is_bound("a-0") and one.informer.is_bound("a-1"))
    assert {record(one, name).node for name in ("a-0", "a-1")} == {"n0", "n2"}


def test_a_controller_that_loses_leadership_discards_its_decisions(kube: KubeWorld, one: KubernetesBackend) -> None:
    """What it had not written yet never happens; its tasks are where the next one puts them."""
    two = kube.handle()
    waiting(kube, 1)
    one.lead("one", 0.2)
    one.start([Start("a-0", "n0")])
    soon(lambda: two.lead("two", 60.0))
    two.start([Start("a-0", "n1")])
    until(two, lambda: two.informer.is_bound("a-0"))
    assert not one.lead("one", 60.0)
    soon(lambda: record(one, "a-0").node == "n1")
    assert record(one, "a-0").attempt == 1


def test_a_resigning_controller_leaves_unopened_units_to_the_next(
    kube: KubeWorld, admin: Api, one: KubernetesBackend
) -> None:
    """Tasks that were not admitted yet wait as if nothing was decided, and the next leader starts them."""
    one.gate_queue.max_in_flight = 1
    admin.post(PODS, other("thief", {"nvidia.com/gpu": "4"}, nodeName="n1"))
    waiting(kube, 2)
    one.start([Start("a-0", "n1")])
    one.start([Start("a-1", "n1")])
    one.resign()
    assert shut(admin) == ["a-1-0"]
    assert (record(one, "a-0").state, record(one, "a-1").state) == (kinds.RUNNING, kinds.WAITING)
    two = kube.handle()
    assert two.lead("two", 60.0)
    two.start([Start("a-1", "n2")])
    until(two, lambda: two.informer.is_bound("a-1"))
    assert record(two, "a-1").attempt == 1


def test_a_node_runs_no_more_pods_than_its_kubelet_allows(kubernetes: Open) -> None:
    """Tasks are placed within each node's limit of pods, others' pods counted, so that none is taken back."""
    small = [replace(node, capacity={**node.capacity, "pods": 2000}) for node in cluster(2)]
    with kubernetes(small) as kube:
        assert isinstance(kube, KubeWorld)
        admin = connect_api("admin", kubeconfig=str(kube.plane.kubeconfig))
        admin.post(PODS, other("theirs", {}, nodeName="n0"))
        one = kube.handle()
        one.bind_timeout_s = 1.0
        after = one.snapshot().after
        live = ControlLoop(one, lambda: build_policies(policy()), "one", "seats")
        waiting(kube, 5)
        end = time.monotonic() + 4.0
        while time.monotonic() < end:
            live.step(0.2)
        running = [r.node for r in one.snapshot().records if r.state == kinds.RUNNING]
        assert sorted(running) == ["n0", "n1", "n1"]
        assert list_changed_tasks(one, after, kinds.FAILED) == []
