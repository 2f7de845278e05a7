"""What Ray refuses or forgets leaves no task behind: units wait again, messages are sent again, the rest goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from plugins.placement.tests.cases import job
from unfold_placement.core.types import Node
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Record, Start
from unfold_placement.ray import coordinator as module
from unfold_placement.ray.coordinator import Coordinator, _demands
from unfold_placement.ray.placement_groups import PlacementGroups, Reservation
from unfold_placement.ray.sessions import CLIENT_TIMEOUT_S, FORGET_S, Ended, Offer


@dataclass(slots=True)
class FakeGroups(PlacementGroups):
    """Groups of a cluster with injected faults.

    Attributes:
        wait: What waiting for a group does.
        removed: Groups that were removed.
        removal: What removing a group does.
    """

    wait: Callable[[float], bool] = lambda _timeout: True
    removed: list[Any] = field(default_factory=list)
    removal: Callable[[], None] = lambda: None

    def create(self, node: str, shape: Any) -> Any:
        return SimpleNamespace(id=f"{node}-{len(self.removed)}", wait=self.wait)

    def remove(self, group: Any) -> None:
        self.removed.append(group)
        self.removal()


class Unconnected(Coordinator):
    """A coordinator without a Ray cluster; its maintenance goes on after the test."""

    def _update_nodes(self) -> None:
        pass


@pytest.fixture
def coordinator(monkeypatch: pytest.MonkeyPatch) -> Coordinator:
    """A coordinator of two nodes without a Ray cluster, and without waiting."""
    monkeypatch.setattr(module, "BACKOFF_S", (0.0, 0.0))
    made = Unconnected()
    made.placement_groups = FakeGroups(node_ids={"n0": "id-0", "n1": "id-1"})
    for name in ("n0", "n1"):
        made.store.join(Node(name, {"gpu": 4000}))
    made.report("client", job("a", 2), [])
    return made


UNIT = [Start("a-0", "n0"), Start("a-1", "n1")]


def states(made: Coordinator) -> set[str]:
    """Return the states of all tasks."""
    return {record.state for record in made.snapshot().records}


def soon(holds: Callable[[], bool]) -> None:
    """Wait for a thread."""
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_reservation_that_raises_lets_its_unit_wait_again(coordinator: Coordinator) -> None:
    """A group that vanished while it was awaited fails every task of the unit by name, and leaves no other group."""

    def vanish(_timeout: float) -> bool:
        raise RuntimeError("Placement group does not exist")

    groups = coordinator.placement_groups
    assert isinstance(groups, FakeGroups)
    groups.wait = vanish
    coordinator.start(0, "me", UNIT)
    soon(lambda: states(coordinator) == {kinds.WAITING})
    assert "does not exist" in coordinator.store.records["a-0"].outcome
    assert len(groups.removed) == 2
    groups.wait = lambda _timeout: True
    coordinator.start(0, "me", UNIT)
    soon(lambda: len(coordinator.wait_for_offers("client", 0, 0.0)) == 2)


def test_idle_reservations_that_expire_meanwhile_leave_no_task_without_a_place(coordinator: Coordinator) -> None:
    """Maintenance removes idle reservations at any moment: a unit gets all of its places, or waits again."""
    groups = coordinator.placement_groups
    assert isinstance(groups, FakeGroups)
    stop = threading.Event()

    def expire() -> None:
        while not stop.is_set():
            groups.remove_idle()

    thread = threading.Thread(target=expire, daemon=True)
    thread.start()
    try:
        for attempt in range(1, 150):
            coordinator.start(0, "me", UNIT)
            soon(lambda: states(coordinator) == {kinds.WAITING} or len(coordinator.reservations) == 2)
            for name in ("a-0", "a-1"):
                # as idle reservations of the client's last tasks
                if (reservation := coordinator.reservations.pop(name, None)) is not None:
                    groups.keep_idle(reservation, 0.0)
                coordinator.store.fail(name, attempt, "again")
            groups.wait = lambda _timeout: attempt % 2 == 0  # noqa: B023
    finally:
        stop.set()
        thread.join(10)
    assert states(coordinator) == {kinds.WAITING}


@pytest.mark.timed
def test_no_call_waits_for_the_cluster_while_a_reservation_is_pending(coordinator: Coordinator) -> None:
    """Idle places for one task of a unit only: the other is awaited without the lock, whatever Ray takes."""
    groups, released = coordinator.placement_groups, threading.Event()
    assert isinstance(groups, FakeGroups)
    groups.wait = released.wait
    demands = _demands([coordinator.store.records["a-0"]])
    groups.idle[("n0", demands[0][1])] = [(Reservation("n0", demands[0][1], SimpleNamespace(id="x"), "id-0"), 0.0)]
    coordinator.start(0, "me", UNIT)
    began = time.monotonic()
    assert coordinator.lock.acquire(timeout=3)
    coordinator.lock.release()
    assert time.monotonic() - began < 2
    released.set()
    soon(lambda: len(coordinator.reservations) == 2)


def test_one_deadline_bounds_all_reservations_of_a_unit() -> None:
    """Groups that each take almost as long as allowed do not add up."""
    spent: list[float] = []

    def slow(timeout: float) -> bool:
        spent.append(timeout)
        time.sleep(min(timeout, 0.04))
        return timeout > 0.04

    groups = FakeGroups(node_ids={"n0": "x"}, wait=slow)
    shape = (("GPU", 1.0),)
    assert groups.reserve([("n0", shape)] * 20, 0.1) is None
    assert len(spent) <= 4


def test_messages_are_sent_until_they_are_acknowledged(coordinator: Coordinator) -> None:
    """An answer that is lost on its way is sent again; what was received is not."""
    coordinator.start(0, "me", UNIT)
    soon(lambda: len(coordinator.wait_for_offers("client", 0, 0.0)) == 2)
    first = coordinator.wait_for_offers("client", 0, 0.0)
    assert [message.task for _, message in first if isinstance(message, Offer)] == ["a-0", "a-1"]
    assert coordinator.wait_for_offers("client", first[0][0], 0.0) == first[1:]
    assert coordinator.wait_for_offers("client", first[-1][0], 0.0) == []


def test_a_client_that_was_only_slow_receives_what_became_of_its_tasks(coordinator: Coordinator) -> None:
    """After 15 s without a word its tasks are withdrawn; when it comes back, it must not wait for them for ever."""
    session = coordinator.sessions.clients["client"]
    session.last_seen_s -= CLIENT_TIMEOUT_S + 1
    coordinator._expire()
    coordinator._expire()
    assert states(coordinator) == {kinds.GONE}
    messages = [message for _, message in coordinator.wait_for_offers("client", 0, 0.0)]
    assert sorted(item.task.name for item in messages if isinstance(item, Record)) == ["a-0", "a-1"]
    assert {item.outcome for item in messages if isinstance(item, Record)} == {"its client was silent for 15 s"}
    session.last_seen_s -= FORGET_S + 1
    coordinator._expire()
    assert coordinator.sessions.clients == {}


def test_a_coordinator_that_was_stopped_blames_no_client(coordinator: Coordinator) -> None:
    """Its process stood still for a minute, so that no call reached it: the tasks of living clients stay."""
    coordinator.sessions.clients["client"].last_seen_s -= 60.0
    coordinator._discount_own_pause(59.0)
    coordinator._expire()
    assert states(coordinator) == {kinds.WAITING}


def test_maintenance_survives_an_error_of_ray(coordinator: Coordinator) -> None:
    """A group that cannot be removed keeps neither the others nor leases from being looked after."""
    groups = coordinator.placement_groups
    assert isinstance(groups, FakeGroups)

    def fail() -> None:
        raise RuntimeError("the GCS does not answer")

    groups.removal = fail
    coordinator.create(0, "x", "n0", 1, "me", 0.05, "")
    coordinator.create(0, "y", "", 1, "me", 0.8, "")
    soon(lambda: coordinator.snapshot().names == ())


def test_a_lost_node_returns_its_gang_and_leaves_no_reservation(coordinator: Coordinator) -> None:
    """Its task waits again; the place of the mate that ends later on the other node is kept, the lost one is not."""
    coordinator.start(0, "me", UNIT)
    soon(lambda: len(coordinator.reservations) == 2)
    with coordinator.lock:
        coordinator._remove_node("n0")
    assert {name: record.state for name, record in coordinator.store.records.items()} == {
        "a-0": kinds.WAITING,
        "a-1": kinds.RUNNING,
    }
    assert list(coordinator.reservations) == ["a-1"]
    coordinator.report("client", [], [Ended("a-0", 1, "NodeDiedError", died=True), Ended("a-1", 1)])
    assert [node for (node, _), idle in coordinator.placement_groups.idle.items() if idle] == ["n1"]


def test_the_death_of_a_node_does_not_count_against_a_task(coordinator: Coordinator) -> None:
    """However often its node dies, a task waits again; its own worker may die three times."""
    for attempt in range(1, 6):
        coordinator.start(0, "me", UNIT)
        soon(lambda: len(coordinator.reservations) == 2)
        ends = [Ended(name, attempt, "NodeDiedError", died=True) for name in ("a-0", "a-1")]
        coordinator.report("client", [], ends)
        assert states(coordinator) == {kinds.WAITING}
    for attempt in range(6, 10):
        coordinator.start(0, "me", UNIT)
        soon(lambda: len(coordinator.reservations) == 2)
        coordinator.report("client", [], [Ended(name, attempt, "Crash", died=True) for name in ("a-0", "a-1")])
    assert states(coordinator) == {kinds.DONE}
