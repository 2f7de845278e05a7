"""Names that kube-scheduler itself counts (``counters: dra``), on a real control plane."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, ClassVar

import pytest

from plugins.placement.tests.cases import job
from plugins.placement.tests.live.kube_world import KubeWorld
from plugins.placement.tests.live.test_contract import record, until
from plugins.placement.tests.live.test_kubernetes import PODS, other, soon
from tests.kubernetes.bench import claiming
from unfold_placement.core.cluster_view import View
from unfold_placement.core.types import STATIC, Ask, Event, Task, Transactions
from unfold_placement.kubernetes.backend import KubernetesBackend
from unfold_placement.kubernetes.objects import dra
from unfold_placement.kubernetes.objects.codec import DRA
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Start
from unfold_placement.live.control_loop import ControlLoop
from unfold_placement.policies.registry import build_policies
from unfold_placement.schema.policies import PolicySpec
from unfold_placement.workload.build import policy_rules
from unfoldkit.kubernetes.api import Api

pytestmark = pytest.mark.kubernetes
CLAIMS = f"/apis/{dra.API}/namespaces/unfold/resourceclaims"
LONG = 3600.0
WHILE = 2.0


class Licence:
    """Asks for a licence."""

    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = frozenset()

    def request(self, task: Task) -> Iterable[Ask]:
        return [Ask("licence", gated=True, counted=True)]

    def react(self, event: Event, view: View) -> Transactions:
        yield from ()


@pytest.fixture
def one(kube: KubeWorld) -> KubernetesBackend:
    """Returns a handle that leads, opens all that it is given, and leaves the counting to the cluster."""
    kube.counters, kube.policies = DRA, [Licence()]
    made = kube.handle()
    made.bind_timeout_s = LONG
    assert made.lead("one", LONG)
    return made


def opened(kube: KubeWorld, one: KubernetesBackend, count: int, run: float = LONG) -> None:
    """Submit tasks a-0, a-1, … and open all their gates."""
    for index, task in enumerate(job("a", count, run=run)):
        kube.submit(task)
        one.start([Start(task.name, f"n{index % 3}", (Ask("licence", gated=True, counted=True),))])
    one.flush()


def state(admin: Api) -> dict[str, int]:
    """Return how many pods are bound, how many the scheduler gave up on for now, and how many are new to it."""
    found = {"bound": 0, "stuck": 0, "new": 0}
    for pod in admin.get(PODS)["items"]:
        reasons = {item.get("reason") for item in pod.get("status", {}).get("conditions", ())}
        where = "bound" if pod["spec"].get("nodeName") else "stuck" if "Unschedulable" in reasons else "new"
        found[where] += 1
    return found


def slice_now(admin: Api, one: KubernetesBackend) -> dict[str, Any]:
    """Return the slice of the licence."""
    return admin.get(f"{dra.SLICES}/{dra.slice_name(one.scope, 'licence')}")


def claims(admin: Api, kube: KubeWorld) -> list[str]:
    """Return the claims of a scope that are there."""
    found = admin.get(CLAIMS, labelSelector=f"{dra.POLICY}={kube.scope}")["items"]
    return sorted(item["metadata"]["name"] for item in found)


def test_kube_scheduler_enforces_counted_limits(kube: KubeWorld, admin: Api, one: KubernetesBackend) -> None:
    """Of six open pods two are bound with two licences, four with four, and none more once they are gone."""
    one.create("licence", amount=2)
    opened(kube, one, 6)
    soon(lambda: state(admin) == {"bound": 2, "stuck": 4, "new": 0})
    first = slice_now(admin, one)["spec"]
    assert (first["allNodes"], first["pool"]["generation"]) == (True, 1)
    one.resize("licence", amount=4)
    one.flush()
    soon(lambda: state(admin)["bound"] == 4)
    assert slice_now(admin, one)["spec"]["pool"]["generation"] == 2
    one.delete("licence")
    one.flush()
    assert admin.get(dra.SLICES, labelSelector=f"{dra.POLICY}={kube.scope}")["items"] == []
    held = next(name for name in (f"a-{index}" for index in range(6)) if one.informer.is_bound(name))
    one.withdraw(held)
    soon(lambda: state(admin)["bound"] == 3)
    time.sleep(WHILE)
    assert state(admin) == {"bound": 3, "stuck": 2, "new": 0}


def test_a_counter_shrunk_below_its_held_amount_matches_nothing_new(
    kube: KubeWorld, admin: Api, one: KubernetesBackend
) -> None:
    """Of three holders of three licences one ends after only two are left: none follows; after the next one does."""
    one.create("licence", amount=3)
    opened(kube, one, 4)
    soon(lambda: state(admin) == {"bound": 3, "stuck": 1, "new": 0})
    one.resize("licence", amount=2)
    one.flush()
    held = [name for name in (f"a-{index}" for index in range(4)) if one.informer.is_bound(name)]
    one.withdraw(held[0])
    soon(lambda: state(admin)["bound"] == 2)
    time.sleep(WHILE)
    assert state(admin) == {"bound": 2, "stuck": 1, "new": 0}
    one.withdraw(held[1])
    soon(lambda: state(admin) == {"bound": 2, "stuck": 0, "new": 0})


def test_claims_end_with_their_tasks(kube: KubeWorld, admin: Api, one: KubernetesBackend) -> None:
    """Three tasks take turns with one licence, and nothing is claimed after the last; preempted, one claims anew."""
    one.create("licence", amount=1)
    opened(kube, one, 3, run=0.2)
    until(one, lambda: {record(one, f"a-{index}").state for index in range(3)} == {kinds.DONE}, 60.0)
    until(one, lambda: claims(admin, kube) == [])
    kube.submit(job("b", 1, run=LONG)[0])
    one.start([Start("b-0", "n0")])
    until(one, lambda: one.informer.is_bound("b-0"))
    assert claims(admin, kube) == [dra.claim_name("b-0-0")]
    one.preempt("b-0")
    until(one, lambda: record(one, "b-0").state == kinds.WAITING and claims(admin, kube) == [])
    one.start([Start("b-0", "n1")])
    until(one, lambda: one.informer.is_bound("b-0"))
    assert claims(admin, kube) == [dra.claim_name("b-0-1")]


def test_the_next_controller_restores_slices_and_claims(kube: KubeWorld, admin: Api, one: KubernetesBackend) -> None:
    """It puts back a slice that is gone, counts what is held, and deletes the claims of what ended meanwhile."""
    one.create("licence", amount=2)
    opened(kube, one, 3)
    soon(lambda: state(admin) == {"bound": 2, "stuck": 1, "new": 0})
    one.close()
    one.is_leader = False
    one.election.resign()
    admin.delete(f"{dra.SLICES}/{dra.slice_name(one.scope, 'licence')}")
    lost = next(pod for pod in admin.get(PODS)["items"] if pod["spec"].get("nodeName"))["metadata"]["name"]
    admin.delete(f"{PODS}/{lost}", {"gracePeriodSeconds": 0})
    two = kube.handle()
    two.bind_timeout_s = LONG
    assert two.lead("two", LONG)
    two.flush()
    assert dra.slice_amount(slice_now(admin, two)) == 2
    until(two, lambda: dra.claim_name(lost) not in claims(admin, kube))
    soon(lambda: state(admin) == {"bound": 2, "stuck": 0, "new": 0})
    assert len(claims(admin, kube)) == 2


def test_claims_of_other_programs_count(kube: KubeWorld, admin: Api, one: KubernetesBackend) -> None:
    """A licence that a pod without any policy has claimed is not there for a task, whatever its gate."""
    one.create("licence", amount=1)
    one.flush()
    theirs = other("theirs", {})
    admin.post(CLAIMS, claiming(theirs, "licence", one.scope))
    admin.post(PODS, theirs)
    soon(lambda: state(admin)["bound"] == 1)
    opened(kube, one, 1)
    soon(lambda: state(admin) == {"bound": 1, "stuck": 1, "new": 0})
    admin.delete(f"{PODS}/theirs", {"gracePeriodSeconds": 0})
    until(one, lambda: one.informer.is_bound("a-0"))
    admin.delete(f"{CLAIMS}/{dra.claim_name('theirs')}")


def test_a_limit_is_a_licence(kube: KubeWorld, admin: Api) -> None:
    """Under the policy ``limit`` as it is, six tasks run two at a time, each with its claim, until all are done."""
    spec = policy_rules(PolicySpec.model_validate({"limit": {"most": 2}}, strict=False))
    kube.counters, kube.policies = DRA, build_policies(spec)
    live = ControlLoop(kube.handle(), lambda: build_policies(spec), "one", "mine", 60.0, 60.0)
    for task in job("a", 6, run=0.5):
        kube.submit(task)
    most, end = 0, time.monotonic() + 60.0
    backend = kube.handles[0]
    while {item.state for item in backend.store.records.values()} != {kinds.DONE}:
        live.step(0.2)
        most = max(most, len(claims(admin, kube)))
        assert time.monotonic() < end
    assert 0 < most <= 4
    until(backend, lambda: claims(admin, kube) == [])
    (limit,) = admin.get(dra.SLICES, labelSelector=f"{dra.POLICY}={kube.scope}")["items"]
    assert dra.slice_amount(limit) == 2
