"""A name on many nodes at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.placement.tests.cases import cluster
from unfold_placement.core import kernel
from unfold_placement.core.bulk_changes import MIN_BULK, delete_resources, is_uniform, set_amounts
from unfold_placement.core.kernel import enqueue, finish_task, start_task
from unfold_placement.core.resources import ResourceTable, build_resource_table
from unfold_placement.core.types import Ask, Drop, Node, Operation, Put, Task
from unfoldkit.api import UnfoldError

NODES = st.lists(st.sampled_from([node.name for node in cluster()]), min_size=1, max_size=4, unique=True)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), NODES, st.integers(1, 3)),
        st.tuples(st.just("delete"), NODES, st.just(0)),
        st.tuples(st.just("start"), st.integers(0, 5), st.integers(0, 3)),
        st.tuples(st.just("end"), st.integers(0, 5), st.just(0)),
    ),
    max_size=14,
)


def walked(steps: list[tuple[str, object, int]], *, whole: bool) -> tuple[ResourceTable, list[tuple[str, str]]]:
    """Return a book after some steps, many nodes at a time or one by one, and what its watchers received."""
    made, received = build_resource_table(cluster()), list[tuple[str, str]]()
    made.subscribe(lambda change, item: received.append((change, item.node)))
    tasks = [Task(f"t{at}", {"gpu": 0}, 5.0) for at in range(6)]
    made.add_tasks(tasks, [[(Ask("x"), 0)] for _ in tasks])
    for what, where, amount in steps:
        if what == "put" and isinstance(where, list):
            set_amounts(made, "x", where, amount) if whole else [made.set_amount("x", node, amount) for node in where]
        elif what == "delete" and isinstance(where, list):
            here = [node for node in where if node in made.entries.get("x", {})]
            delete_resources(made, "x", where) if whole else [made.delete("x", node) for node in here]
        elif what == "start" and isinstance(where, int) and made.state.status[where] == 0 and made.columns == ["x"]:
            enqueue(made.state, where)
            start_task(made.state, where, amount, False)
        elif what == "end" and isinstance(where, int) and made.state.status[where] == 2:
            finish_task(made.state, where, 2)
    return made, received


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_bulk_changes_equal_single_changes(steps: list[tuple[str, object, int]]) -> None:
    """Amounts, holders, epochs and what watchers receive are as after one node after the other.

    What the matcher examines next differs: after a change of many nodes only the tasks that request it.
    """
    one, received = walked(steps, whole=False)
    many, heard = walked(steps, whole=True)
    assert heard == received
    assert (many.entries, many.epoch, many.columns) == (one.entries, one.epoch, one.columns)
    left_out = {"is_dirty", "dirty_nodes", "recheck", "counters"}
    for name, array in one.state._asdict().items():
        if name not in left_out:
            assert np.array_equal(array, getattr(many.state, name)), name


def test_only_uniform_operations_are_bulk() -> None:
    """One name, one amount, each node once: anything else goes one by one."""
    puts: list[Operation] = [Put("x", f"n{at}", 2) for at in range(MIN_BULK)]
    assert is_uniform(puts)
    assert is_uniform([Drop("x", f"n{at}") for at in range(MIN_BULK)])
    for last in (
        Put("x", "n0", 2),
        Put("y", "n9", 2),
        Put("x", "n9", 3),
        Put("x", "", 2),
        Put("x", "n9", 2, until="t"),
    ):
        assert not is_uniform([*puts, last])
    assert not is_uniform([*puts, Drop("x", "n9")])
    assert not is_uniform([Drop("x", f"n{at}", force=True) for at in range(MIN_BULK)])
    assert not is_uniform(puts[1:])


def test_an_unknown_node_is_an_error() -> None:
    """A resource on an unknown node is an error, as it is one by one."""
    with pytest.raises(UnfoldError, match="there is no node far"):
        set_amounts(build_resource_table(cluster()), "x", ["n0", "far"], 1)


def test_a_bulk_change_rechecks_only_tasks_that_request_it() -> None:
    """A resource on every node can start no other task: the others stay as they are."""
    nodes = [Node(f"n{i}", {"cpu": 1000}) for i in range(MIN_BULK)]
    table = build_resource_table(nodes)
    tasks = [Task(name, {"cpu": 1000}, 1.0) for name in ("asks", "other")]
    table.add_tasks(tasks, [[(Ask("mark"), 0)], [(Ask("else"), 0)]])
    for row in (0, 1):
        kernel.enqueue(table.state, row)
        table.state.recheck[row] = kernel.DIRTY_NODES_ONLY
    table.state.counters[kernel.RECHECKS] = 0
    set_amounts(table, "mark", [node.name for node in nodes], 1)
    set_amounts(table, "mark", [node.name for node in nodes], 2)
    assert table.state.recheck[:2].tolist() == [kernel.ALL_NODES, kernel.DIRTY_NODES_ONLY]
    assert table.state.counters[[kernel.RECHECKS, kernel.DIRTY]].tolist() == [1, 0]
