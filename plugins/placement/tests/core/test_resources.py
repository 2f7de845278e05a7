"""What an ephemeral resource means."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.placement.tests.cases import cluster, job
from unfold_placement.core import kernel
from unfold_placement.core.resources import ResourceTable, build_resource_table
from unfold_placement.core.types import ANYWHERE, Ask, EphemeralResource
from unfoldkit.api import UnfoldError

OPS = st.lists(
    st.tuples(st.sampled_from(["create", "resize", "delete", "start", "end"]), st.integers(0, 2), st.integers(0, 4)),
    max_size=40,
)


def filled(tasks: int = 3, name: str = "x") -> ResourceTable:
    """Return a book with waiting tasks that ask for one name."""
    made = build_resource_table(cluster(2))
    work = job("a", tasks)
    made.add_tasks(work, [[(Ask(name), 0)] for _ in work])
    for row in range(tasks):
        kernel.enqueue(made.state, row)
    return made


def settle(made: ResourceTable) -> int:
    """Match, and return how many started."""
    return int(kernel.start_fitting(made.state, 1 << 30, False))


def test_tasks_wait_for_a_missing_resource_and_start_when_it_is_created() -> None:
    """A name that is not there is waited for, not an error; creating it starts as many as it has amount."""
    made = filled()
    assert settle(made) == 0
    made.create("x", "n1", 2)
    assert settle(made) == 2
    assert made.held_amount("x", "n1") == 2
    assert {task.name for task in made.holders("x", "n1")} == {"a-0", "a-1"}


def test_a_resource_deleted_while_held_matches_nothing_and_is_reclaimed() -> None:
    """After a delete nothing new starts, holders go on, and with the last of them the name is gone for good."""
    made = filled()
    made.create("x", "n0", 2)
    settle(made)
    made.delete("x", "n0")
    kernel.finish_task(made.state, 0, kernel.LOG_ENDED)
    made.release_task_bound(made.tasks[0])
    assert settle(made) == 0
    assert made.columns == ["x"]
    kernel.finish_task(made.state, 1, kernel.LOG_ENDED)
    made.release_task_bound(made.tasks[1])
    assert made.columns == [""]
    made.create("x", "n0", 1)
    assert settle(made) == 1


def test_a_recreated_resource_counts_amounts_still_held() -> None:
    """A name that is deleted and created while held gives only what the old holders leave."""
    made = filled()
    made.create("x", "n0", 2)
    settle(made)
    made.delete("x", "n0")
    made.create("x", "n0", 3)
    assert settle(made) == 1
    assert made.held_amount("x", "n0") == 3


def test_a_resource_shrunk_below_its_held_amount_matches_nothing_until_holders_end() -> None:
    """Resizing never takes away from holders; a match needs room under the new amount."""
    made = filled(4)
    made.create("x", "n0", 3)
    settle(made)
    made.resize("x", "n0", 1)
    for row in range(2):
        kernel.finish_task(made.state, row, kernel.LOG_ENDED)
        assert settle(made) == 0
    kernel.finish_task(made.state, 2, kernel.LOG_ENDED)
    assert settle(made) == 1


@pytest.mark.parametrize("node", ["n0", ANYWHERE])
def test_compare_and_set_lets_one_of_two_writers_through(node: str) -> None:
    """A write with an epoch that has passed is refused, on a node and on the cluster."""
    made = filled()
    seen = made.create("x", node, 1).epoch
    made.resize("x", node, 2, epoch=seen)
    with pytest.raises(UnfoldError, match="changed meanwhile"):
        made.resize("x", node, 5, epoch=seen)
    with pytest.raises(UnfoldError, match="changed meanwhile"):
        made.delete("x", node, epoch=seen)
    assert made.snapshot()[0].amount == 2


def test_a_lease_ends_unless_it_is_renewed() -> None:
    """A name is gone at the end of its time to live; renewing it moves that end."""
    made = filled()
    made.create("x", "n0", 1, owner="me", ttl=10)
    made.create("y", "n0", 1, owner="me", ttl=10)
    made.state.clock[0] = 8
    made.resize("y", "n0", 1, ttl=10)
    made.state.clock[0] = 10
    assert [item.name for item in made.expire_leases()] == ["x"]
    assert made.next_expiry_s == 18
    assert [(item.name, item.owner) for item in made.snapshot()] == [("y", "me")]


def test_invalid_operations_raise() -> None:
    """Creating twice, touching what is not there, and unknown nodes are errors in words."""
    made = filled()
    made.create("x", "n0")
    for action in (
        lambda: made.create("x", "n0"),
        lambda: made.resize("y", "n0"),
        lambda: made.delete("x", "n1"),
        lambda: made.create("x", "n9"),
    ):
        with pytest.raises(UnfoldError):
            action()


@given(OPS)
@settings(max_examples=200, deadline=None)
def test_amounts_are_conserved(ops: list[tuple[str, int, int]]) -> None:
    """Whatever is done in whatever order, what is held is what running tasks hold, and watchers saw the snapshot."""
    made = filled(6)
    seen: dict[tuple[str, str], EphemeralResource] = {}
    made.subscribe(lambda change, item: seen.pop((item.name, item.node)) if change == "deleted" else
               seen.__setitem__((item.name, item.node), item))  # fmt: skip
    for kind, node, amount in ops:
        place = f"n{node % 2}"
        there = place in made.entries.get("x", {})
        if kind == "create" and not there:
            made.create("x", place, amount)
        elif kind == "resize" and there:
            made.resize("x", place, amount)
        elif kind == "delete" and there:
            made.delete("x", place)
        elif kind == "start":
            settle(made)
        elif kind == "end" and (running := made.holders("x", place)):
            kernel.finish_task(made.state, made.task_rows[running[0].name], kernel.LOG_ENDED)
            made.release_task_bound(running[0])
        for name in ("n0", "n1"):
            assert made.held_amount("x", name) == len(made.holders("x", name))
    assert sorted(seen) == [(item.name, item.node) for item in made.snapshot()]
    assert all(seen[item.name, item.node] == item for item in made.snapshot())
