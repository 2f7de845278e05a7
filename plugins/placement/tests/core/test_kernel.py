"""The compiled matcher against plain Python."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.placement.tests.cases import Names, starts
from unfold_placement.core import kernel
from unfold_placement.core.resources import build_resource_table
from unfold_placement.core.types import ANYWHERE, Ask, Node, Task
from unfold_placement.simulation.audit import find_violations
from unfold_placement.simulation.reference import replay_reference
from unfold_placement.simulation.simulator import simulate

AMOUNT = st.integers(0, 4)
DEVICES = st.sampled_from([0, 250, 300, 400, 600, 700, 1000, 1500, 2000])
NODES = st.lists(st.tuples(AMOUNT, st.sampled_from([0, 500, 1000, 2000, 2500, 4000])), min_size=1, max_size=4)
TASKS = st.lists(
    st.tuples(
        AMOUNT, DEVICES, st.integers(1, 9), st.integers(0, 9), st.lists(st.integers(0, 3), max_size=3, unique=True)
    ),
    max_size=12,
)
PLACES = st.dictionaries(st.tuples(st.integers(0, 2), st.integers(0, 3)), st.integers(0, 3), max_size=8)


@pytest.mark.e2e
@given(NODES, TASKS, PLACES, st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_the_kernel_equals_the_reference_implementation(
    nodes: list[tuple[int, int]],
    tasks: list[tuple[int, int, int, int, list[int]]],
    places: dict[tuple[int, int], int],
    licences: int,
) -> None:
    """For any nodes, tasks, shares, names on nodes and of the cluster, every task starts at the same time and place."""
    machines = [Node(f"n{i}", {"cpu": cpu * 1000, "gpu": gpu}) for i, (cpu, gpu) in enumerate(nodes)]
    work = [
        Task(f"t{i}", {"cpu": cpu * 1000, "gpu": gpu}, float(run), float(at))
        for i, (cpu, gpu, run, at, _) in enumerate(tasks)
    ]
    names = {(f"x{name}", f"n{node % len(nodes)}"): amount for (name, node), amount in places.items()}
    names[("x3", ANYWHERE)] = licences
    asks = {f"t{i}": [Ask(f"x{name}", 1 + name % 2) for name in wanted] for i, (*_, wanted) in enumerate(tasks)}
    found = simulate(machines, work, [Names(names, asks)])
    wanted = replay_reference(machines, work, [asks[task.name] for task in work], names)
    begun = {name: (at, found.nodes[found.node_rows[row]].name) for row, (name, at) in enumerate(starts(found).items())
             if found.node_rows[row] >= 0}  # fmt: skip
    assert begun == wanted
    assert not list(find_violations(found, []))


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=20),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=8),
    st.integers(0, 20),
)
@settings(deadline=None)
def test_the_max_tree_equals_a_scan_of_the_nodes(
    rooms: list[tuple[int, int]], needs: list[tuple[int, int]], begin: int
) -> None:
    """Whatever was taken before, the next node with room for a task is the one that a scan from there meets first."""
    made = build_resource_table([Node(f"n{i}", {"cpu": a, "gpu": b}) for i, (a, b) in enumerate(rooms)])
    made.add_tasks([Task(f"t{i}", {"cpu": a, "gpu": b}, 1.0) for i, (a, b) in enumerate(needs)], [[] for _ in needs])
    a = made.state
    for task in range(len(needs)):
        fitting = [node for node in range(begin, len(rooms)) if kernel.fits_demand(a.demand, a.free, task, node)]
        found = kernel.next_fitting_node(a.demand, a.free_tree, len(rooms), task, begin)
        assert found == (fitting[0] if fitting else -1)
        if fitting:
            kernel.allocate(a, task, found, kernel.ALL_PHASES)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=7), st.integers(1, 9), st.integers(1, 3), st.randoms())
def test_alike_tasks_need_as_many_nodes_as_a_bisection_finds(
    rooms: list[int], size: int, need: int, random: Random
) -> None:
    """The first candidate nodes that suffice for a gang are counted in one pass, and nothing stays allocated."""
    table = build_resource_table([Node(f"n{i}", {"cpu": room}) for i, room in enumerate(rooms)])
    table.add_tasks([Task(f"t{i}", {"cpu": need}, 1.0) for i in range(size)], [[] for _ in range(size)])
    rows, before = np.arange(size, dtype=np.int32), table.state.free.copy()
    candidates = np.array(random.sample(range(len(rooms)), len(rooms)), np.int64)
    fitting = np.cumsum([rooms[node] // need for node in candidates]) >= size
    expected = int(fitting.argmax()) + 1 if fitting.any() else 0
    assert kernel.shortest_prefix(table.state, rows, kernel.ALL_PHASES, candidates) == expected
    assert kernel.are_alike(table.state, rows, kernel.ALL_PHASES)
    assert (table.state.free == before).all()
    # unlike tasks are bisected, which finds the same here
    table.state.demand[rows[0]] = 0
    bisected = kernel.shortest_prefix(table.state, rows, kernel.ALL_PHASES, candidates)
    fitting = np.cumsum([rooms[node] // need for node in candidates]) >= size - 1
    assert bisected == (int(fitting.argmax()) + 1 if fitting.any() else 0)
