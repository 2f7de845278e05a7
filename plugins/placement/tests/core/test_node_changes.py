"""Nodes that go and come back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from plugins.placement.tests.cases import cluster, job, places, policy, starts
from unfold_placement.core import kernel
from unfold_placement.core.types import Node
from unfold_placement.policies.registry import build_policies
from unfold_placement.simulation.audit import find_violations
from unfold_placement.simulation.simulator import collect_result, prepare_simulation, run_simulation


@pytest.mark.parametrize("parts", [{}, {"drf": {}}, {"gang": {}}, {"anti-affinity": {}, "drf": {}}, {"spread": {}}])
def test_tasks_of_a_lost_node_run_elsewhere(parts: dict[str, Any]) -> None:
    """Tasks of a node that goes wait again and run on others, under every law; a node that is back is used again."""
    spec = policy(**parts)
    loop = prepare_simulation(cluster(), [*job("a", 3, run=20), *job("b", 4, run=20, at=50)], build_policies(spec))
    run_simulation(loop, until=5.0)
    assert "n0" in places(collect_result(loop)).values()
    loop.set_node_up("n0", is_up=False)
    run_simulation(loop, until=40.0)
    assert "n0" not in places(collect_result(loop)).values()
    loop.set_node_up("n0", is_up=True)
    found = collect_result(run_simulation(loop))
    assert list(find_violations(found, spec)) == []
    assert np.isfinite(found.end_s).all()
    assert max(at for name, at in starts(found).items() if name.startswith("a")) == 5.0
    assert "n0" in {place for name, place in places(found).items() if name.startswith("b")}


def test_a_gang_stopped_by_a_lost_node_restarts_once() -> None:
    """A gang stopped by the loss of a node is stopped once, though a spread moves while the policies are notified."""
    tasks = [*job("a", 3, user="u"), *job("b", 3, at=1, user="u")]
    loop = prepare_simulation(
        cluster(3, gpu=8), tasks, build_policies(policy(gang={}, spread={"by": "user", "skew": 2}))
    )
    run_simulation(loop, until=5.0)
    loop.set_node_up("n0", is_up=False)
    found = collect_result(run_simulation(loop))
    assert (found.log.kinds == kernel.LOG_PREEMPTED).sum() == 3
    assert {name: at for name, at in starts(found).items() if name.startswith("a")} == dict.fromkeys(
        ("a-0", "a-1", "a-2"), 5.0
    )


LATER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "types": ({"types": ("t4",)}, {"types": {}}),
    "avoid": ({"avoids": "busy"}, {"avoid": {}}),
    "locality": ({"data": ("x",)}, {"locality": {"rack_after": "1 h", "any_after": "1 h"}}),
}


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("name", list(LATER))
def test_a_node_that_joins_later_is_used(name: str, *, before: bool) -> None:
    """Where tasks can only run on a node that is away, they start as it comes, whether it was there before or not."""
    more, parts = LATER[name]
    nodes = [replace(node, labels={"type": kind}) for node, kind in zip(cluster(2, gpu=2), ("t4", "v100"), strict=True)]
    nodes[0] = replace(nodes[0], data=frozenset({"x"}))
    tasks = [*job("busy", 1, run=1000.0), *job("a", 1, at=6.0, run=1.0, **more), *job("b", 1, at=20.0, run=5.0, **more)]
    loop = prepare_simulation(
        nodes, [*tasks, *(job("c", 1, at=2.0, run=1.0, **more) if before else ())], build_policies(policy(**parts))
    )
    loop.set_node_up("n0", is_up=False)
    run_simulation(loop, until=1.0)
    if before:
        loop.set_node_up("n0", is_up=True)
        run_simulation(loop, until=5.0)
        loop.set_node_up("n0", is_up=False)
    run_simulation(loop, until=10.0)
    loop.set_node_up("n0", is_up=True)
    found = collect_result(run_simulation(loop))
    assert places(found)["busy-0"] == "n1"
    assert {name: starts(found)[name] for name in ("a-0", "b-0")} == {"a-0": 10.0, "b-0": 20.0}
    assert {places(found)[name] for name in ("a-0", "b-0")} == {"n0"}


@pytest.mark.parametrize(
    "parts",
    [
        {}, {"spread": {}}, {"spread": {"soft": True}}, {"anti-affinity": {}}, {"servers": {}}, {"limit": {"most": 2}},
        {"priority": {}}, {"drf": {}}, {"wfq": {}}, {"hierarchy": {}}, {"history": {}}, {"quota": {"quotas": {"a": 4}}},
        {"edf": {}}, {"pack": {}}, {"gang": {}}, {"gang": {}, "pack": {}}, {"types": {}}, {"value": {}},
    ],
)  # fmt: skip
def test_tasks_submitted_without_nodes_start_on_the_first_node(parts: dict[str, Any]) -> None:
    """Under every policy tasks that came to an empty cluster start as its first node comes."""
    nodes = [replace(cluster(1)[0], labels={"type": "t4"})]
    tasks = [replace(task, role="server" if "servers" in parts else "", types=("t4",)) for task in job("a", 1, at=1.0)]
    loop = prepare_simulation(nodes, tasks, build_policies(policy(**parts)))
    loop.set_node_up("n0", is_up=False)
    run_simulation(loop, until=5.0)
    loop.set_node_up("n0", is_up=True)
    assert starts(collect_result(run_simulation(loop))) == {"a-0": 5.0}


def test_spread_slots_grow_when_the_least_loaded_node_leaves() -> None:
    """Where the node that ran the fewest goes, those that are left take more at once, not as the next task ends."""
    nodes = [Node("n0", {"gpu": 4000}), Node("n1", {"cpu": 1000})]
    loop = run_simulation(
        prepare_simulation(nodes, job("a", 2, run=100.0), build_policies(policy(spread={}))), until=5.0
    )
    assert starts(collect_result(loop)) == {"a-0": 0.0, "a-1": np.inf}
    loop.set_node_up("n1", is_up=False)
    assert starts(collect_result(run_simulation(loop))) == {"a-0": 0.0, "a-1": 5.0}


def test_the_admission_test_uses_the_nodes_that_are_up() -> None:
    """Of tasks with one deadline only as many are admitted as end before it on what is left of the cluster."""
    tasks = [replace(job(f"t{at}", 1, at=5.0)[0], deadline=25.0) for at in range(4)]
    loop = run_simulation(prepare_simulation(cluster(2, gpu=1), tasks, build_policies(policy(edf={}))), until=1.0)
    loop.set_node_up("n1", is_up=False)
    found = collect_result(run_simulation(loop))
    assert (list(found.rejections), found.end_s[:2].tolist()) == (["t2-0", "t3-0"], [15.0, 25.0])


def test_server_slots_are_deleted_from_nodes_that_rejoined() -> None:
    """A name on a node that is away as the last task of its job ends is deleted with the others."""
    loop = prepare_simulation(
        cluster(2), [replace(job("a", 1)[0], role="server")], build_policies(policy(servers={"near": False}))
    )
    run_simulation(loop, until=5.0)
    loop.set_node_up("n1", is_up=False)
    assert run_simulation(loop).table.snapshot() == ()


@pytest.mark.parametrize("more", [{}, {"pack": {"level": "rack"}, "hierarchy": {}, "affinity": {}}])
def test_a_heterogeneous_gang_restarts_completely(more: dict[str, Any]) -> None:
    """Tasks of a gang that wait again in another order than they came in get nodes on which all of them fit."""
    amounts = {"gpu": 2000}, {"gpu": 500}, {"gpu": 500}
    tasks = [replace(task, demand=demand) for task, demand in zip(job("a", 3, run=50), amounts, strict=True)]
    one = [Node("n0", {"gpu": 2000}, {"rack": "r"}), Node("n1", {"gpu": 1000}, {"rack": "r"})]
    nodes = [*one, *(replace(node, name=f"{node.name}-b", labels={"rack": "s"}) for node in one)]
    spec = policy(gang={}, **more)
    loop = run_simulation(prepare_simulation(nodes, tasks, build_policies(spec)), until=5.0)
    loop.set_node_up("n1", is_up=False)
    found = collect_result(run_simulation(loop))
    assert list(find_violations(found, spec)) == []
    assert starts(found) == dict.fromkeys(("a-0", "a-1", "a-2"), 5.0)
