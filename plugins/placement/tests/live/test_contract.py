"""What every backend does: names with leases and epochs, tasks behind gates, one leader. The same on all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from plugins.placement.tests.cases import job
from plugins.placement.tests.live.worlds import World
from unfold_placement.core.types import ANYWHERE, Ask
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Backend, Record, Start
from unfoldkit.api import UnfoldError

WAIT = 120.0


def until(handle: Backend, holds: Callable[[], bool], most: float = WAIT) -> None:
    """Wait for changes until something holds."""
    end, after = handle.now() + most, handle.snapshot().after
    while not holds():
        assert handle.now() < end, "it never came"
        for change in handle.watch(after, 1.0) or ():
            after = change.number


def record(handle: Backend, task: str) -> Record:
    """Return what is known of a task."""
    return next(item for item in handle.snapshot().records if item.task.name == task)


@pytest.mark.parametrize("node", ["n0", ANYWHERE])
def test_resources_are_created_resized_and_deleted(world: World, node: str) -> None:
    """A name is there with its amount, owner and a growing epoch until it is deleted; twice is an error."""
    one = world.handle()
    made = one.create("x", node, 2, owner="me")
    more = one.resize("x", node, 3, epoch=made.epoch)
    assert (more.amount, more.owner, more.epoch > made.epoch) == (3, "me", True)
    assert [(item.name, item.node, item.amount) for item in one.snapshot().names] == [("x", node, 3)]
    with pytest.raises(UnfoldError, match="already exists"):
        one.create("x", node)
    one.delete("x", node, epoch=more.epoch)
    assert one.snapshot().names == ()


def test_missing_objects_are_errors(world: World) -> None:
    """Unknown names and nodes are reported in words."""
    one = world.handle()
    for action in (
        lambda: one.resize("y", "n0"), lambda: one.delete("y", "n0"), lambda: one.create("y", "nowhere"),
    ):  # fmt: skip
        with pytest.raises(UnfoldError):
            action()
    assert one.snapshot().names == ()


def test_compare_and_set_lets_one_of_two_writers_through(world: World) -> None:
    """A write with an epoch that has passed is refused, and changes nothing."""
    one, two = world.handle(), world.handle()
    seen = one.create("x", "n0").epoch
    two.resize("x", "n0", 2, epoch=seen)
    with pytest.raises(UnfoldError, match="changed meanwhile"):
        one.resize("x", "n0", 5, epoch=seen)
    with pytest.raises(UnfoldError, match="changed meanwhile"):
        one.delete("x", "n0", epoch=seen)
    assert one.snapshot().names[0].amount == 2


def test_only_one_of_two_controllers_leads(world: World) -> None:
    """The leader keeps the lead; the other gets it when the first resigns, and then the first is ignored."""
    one, two = world.handle(), world.handle()
    assert one.lead("one", 60.0)
    assert not two.lead("two", 60.0)
    one.create("x", "n0")
    one.resign()
    assert two.lead("two", 60.0)
    assert not one.lead("one", 60.0)
    with pytest.raises(UnfoldError, match="leads"):
        one.delete("x", "n0")
    two.delete("x", "n0")


def test_a_task_stays_gated_until_it_is_started(world: World) -> None:
    """Submitted, started on its node with what it asks for, ended: watchers see it in this order."""
    one = world.handle()
    after = one.snapshot().after
    (task,) = job("a", 1, run=0.2)
    world.submit(task)
    assert record(one, "a-0").state == kinds.WAITING
    one.start([Start("a-0", "n1", (Ask("x"),))])
    until(one, lambda: record(one, "a-0").state != kinds.WAITING)
    assert record(one, "a-0").node == "n1"
    finish(world, one, 1.0)
    until(one, lambda: record(one, "a-0").state == kinds.DONE)
    seen = [change.kind for change in one.watch(after, 0.0) or () if change.task == "a-0"]
    assert seen == [kinds.SUBMITTED, kinds.STARTED, kinds.ENDED]


def finish(world: World, handle: Backend, seconds: float) -> None:
    """Let a virtual clock go on; a real one does by itself."""
    clock = getattr(world, "clock", None)
    if clock is not None:
        clock.time += seconds
        handle.snapshot()


def test_a_preempted_task_waits_again(world: World) -> None:
    """Preemption gates a running task, frees its node, and it can be started once more."""
    one = world.handle()
    (task,) = job("a", 1, run=3600)
    world.submit(task)
    one.start([Start("a-0", "n0")])
    until(one, lambda: record(one, "a-0").state == kinds.RUNNING)
    one.preempt("a-0")
    until(one, lambda: record(one, "a-0").state == kinds.WAITING)
    one.preempt("a-0")
    one.start([Start("a-0", "n2")])
    until(one, lambda: record(one, "a-0").state == kinds.RUNNING)
    assert (record(one, "a-0").node, record(one, "a-0").attempt) == ("n2", 2)
    one.withdraw("a-0")
    until(one, lambda: record(one, "a-0").state == kinds.GONE)


def test_a_forced_delete_preempts_the_holders(world: World) -> None:
    """Without force holders go on; with it they wait again, and other tasks go on."""
    one = world.handle()
    for task in job("a", 3, run=3600):
        world.submit(task)
    one.create("x", "n0", 2)
    one.create("x", "n1", 2)
    for name, node in (("a-0", "n0"), ("a-1", "n1")):
        one.start([Start(name, node, (Ask("x"),))])
    one.start([Start("a-2", "n0")])
    until(one, lambda: all(record(one, f"a-{index}").state == kinds.RUNNING for index in range(3)))
    assert one.delete("x", "n1") == ()
    assert one.delete("x", "n0", force=True) == ("a-0",)
    until(one, lambda: record(one, "a-0").state == kinds.WAITING)
    assert [record(one, name).state for name in ("a-1", "a-2")] == [kinds.RUNNING] * 2
    for index in range(3):
        one.withdraw(f"a-{index}")


def test_a_unit_starts_completely_or_not_at_all(world: World) -> None:
    """Where one of its tasks no longer waits, the others fail and wait."""
    one = world.handle()
    after = one.snapshot().after
    for task in job("a", 2, run=3600):
        world.submit(task)
    one.withdraw("a-1")
    one.start([Start("a-0", "n0"), Start("a-1", "n1")])
    until(one, lambda: any(change.kind == kinds.FAILED for change in one.watch(after, 0.0) or ()))
    assert record(one, "a-0").state == kinds.WAITING
    one.withdraw("a-0")


def test_task_bound_resources_are_deleted_with_their_task(world: World) -> None:
    """A name that is created until a task ends is gone with it, by its end or by preemption."""
    one = world.handle()
    (task,) = job("a", 1, run=3600)
    world.submit(task)
    one.create("x", "n0", until="a-0")
    one.start([Start("a-0", "n0", (Ask("x"),))])
    until(one, lambda: record(one, "a-0").state == kinds.RUNNING)
    assert len(one.snapshot().names) == 1
    one.preempt("a-0")
    until(one, lambda: one.snapshot().names == ())
    one.withdraw("a-0")


def test_a_lease_ends_unless_it_is_renewed(world: World) -> None:
    """Names are gone at the end of their time to live, whoever is there to see it; renewed ones live on."""
    one = world.handle()
    one.create("x", "n0", owner="lost", ttl=0.5)
    one.create("y", "n0", owner="kept", ttl=0.5)
    one.create("z", "n0", owner="free")
    assert one.renew("kept", 3600.0) == 1
    finish(world, one, 1.0)
    until(one, lambda: {item.name for item in one.snapshot().names} == {"y", "z"})


def test_a_watch_returns_at_the_next_change(world: World) -> None:
    """A waiting watch returns on a change, long before its time limit."""
    one, two = world.handle(), world.handle()
    after = one.snapshot().after
    seen: list[object] = []
    waiter = threading.Thread(target=lambda: seen.extend(one.watch(after, WAIT) or ()))
    waiter.start()
    two.create("x", "n0")
    waiter.join(WAIT)
    assert not waiter.is_alive()
    assert seen


def test_a_task_is_rejected_or_withdrawn(world: World) -> None:
    """Refused and withdrawn tasks leave the queue for good, with the reason."""
    one = world.handle()
    for task in job("a", 2, run=3600):
        world.submit(task)
    one.refuse("a-0", "too late")
    one.withdraw("a-1")
    until(one, lambda: record(one, "a-1").state == kinds.GONE)
    assert (record(one, "a-0").state, record(one, "a-0").outcome) == (kinds.REFUSED, "too late")
