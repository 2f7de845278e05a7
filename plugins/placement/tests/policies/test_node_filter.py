"""Topology spread and anti-affinity of pods, against a check of every start."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from plugins.placement.tests.cases import job, places, policy, starts
from unfold_placement.core.explain import describe_wait
from unfold_placement.core.types import Node, Task
from unfold_placement.policies.affinity.node_filter import (
    AcceptedNodes,
    DomainLimit,
    DomainLimits,
    HostPort,
    NodeFilter,
    Requirement,
    Toleration,
    encode_filter,
)
from unfold_placement.policies.registry import build_policies
from unfold_placement.simulation.simulator import SimulationResult, prepare_simulation, run_simulation, simulate

APP = (Requirement("app", "In", ("x",)),)


def zones(count: int = 6, gpu: int = 4) -> list[Node]:
    """Return nodes in three zones."""
    return [Node(f"n{i}", {"gpu": gpu * 1000}, {"zone": f"z{i % 3}", "host": f"n{i}"}) for i in range(count)]


def filtered(tasks: list[Task], *limits: DomainLimit, app: str = "x", **fields: object) -> list[Task]:
    """Return tasks of pods with these fields."""
    text = encode_filter(NodeFilter(limits=limits, labels={"app": app}, **fields))  # type: ignore[arg-type]
    return [replace(task, node_filter=text) for task in tasks]


def run(nodes: list[Node], tasks: list[Task], **parts: object) -> SimulationResult:
    """Replay under the policies of a cluster and others."""
    return simulate(nodes, tasks, [AcceptedNodes(), DomainLimits(), *build_policies(policy(**parts))])


@pytest.mark.parametrize("seed", range(4))
def test_every_start_keeps_the_skew(seed: int) -> None:
    """Whatever arrives and ends, no start leaves a zone more than the skew above the least loaded one."""
    rng = np.random.default_rng(seed)
    skew = int(rng.integers(1, 3))
    limit = DomainLimit("zone", APP, skew)
    tasks = [
        replace(filtered(job(f"j{i}", 1), limit)[0], arrival=float(rng.uniform(0, 60)), run=float(rng.uniform(5, 40)))
        for i in range(30)
    ]
    result = run(zones(6, 2), tasks)
    assert not result.stuck
    spans = sorted(
        (float(start), float(end), int(row))
        for start, end, row in zip(result.start_s, result.end_s, result.node_rows, strict=True)
    )
    for start, _, row in spans:
        running = Counter(other[2] % 3 for other in spans if other[0] < start < other[1])
        # several may start at one instant, each one counts for the next
        instant = [other[2] % 3 for other in spans if other[0] == start]
        after = running + Counter(instant)
        assert after[row % 3] - min(after[zone] for zone in range(3)) <= skew + len(instant) - 1


@pytest.mark.parametrize(("size", "fits"), [(3, True), (6, True), (11, True), (24, True), (25, False)])
def test_a_gang_is_spread_as_a_whole(size: int, fits: bool) -> None:
    """A gang starts together, with zones that differ by one pod at most."""
    tasks = filtered(job("g", size), DomainLimit("zone", APP, 1))
    result = run(zones(), tasks, gang={})
    if not fits:
        assert len(result.stuck) == size
        return
    assert set(starts(result).values()) == {0.0}
    counts = Counter(int(node[1:]) % 3 for node in places(result).values())
    assert max(counts.values()) - min(counts[zone] for zone in range(3)) <= 1


def test_anti_affinity_allows_one_pod_a_domain() -> None:
    """Pods that avoid their like run on a host each; the fourth waits for an end, a pod of another app does not."""
    tasks = filtered(job("a", 4), DomainLimit("host", APP)) + filtered(job("b", 1), app="y")
    tasks = [replace(task, size=1) for task in tasks]
    result = run(zones(3), tasks)
    assert sorted(starts(result).values()) == [0.0, 0.0, 0.0, 0.0, 10.0]
    assert starts(result)["b-0"] == 0.0


def test_a_pod_without_limits_respects_the_anti_affinity_of_others() -> None:
    """kube-scheduler keeps a pod from a host with a pod that avoids its app, whatever its own fields say."""
    avoiding = filtered(job("a", 1), DomainLimit("host", (Requirement("app", "In", ("y",)),)))
    result = run(zones(2), avoiding + filtered(job("b", 1, at=1.0), app="y"))
    assert places(result) == {"a-0": "n0", "b-0": "n1"}
    assert starts(result)["b-0"] == 1.0


def test_the_anti_affinity_of_others_covers_their_whole_domain() -> None:
    """A pod that avoids an app in its zone keeps that app from every node of the zone, not from its own node only."""
    avoiding = filtered(job("a", 1), DomainLimit("zone", (Requirement("app", "In", ("y",)),)))
    result = run(zones(4, 1), avoiding + filtered([replace(task, size=1) for task in job("b", 3, at=1.0)], app="y"))
    assert places(result)["a-0"] == "n0"
    # n3 is in the zone of n0
    assert {places(result)[f"b-{i}"] for i in range(2)} == {"n1", "n2"}
    assert starts(result)["b-2"] > 1.0


def test_nodes_without_the_label_of_an_anti_affinity_form_no_domain() -> None:
    """A gang that avoids its like by zone may use nodes outside every zone, as many as have room."""
    nodes = [*zones(2, 1), Node("bare", {"gpu": 2000}, {"host": "bare"})]
    result = run(nodes, filtered(job("g", 4), DomainLimit("zone", APP)), gang={})
    assert Counter(places(result).values()) == {"n0": 1, "n1": 1, "bare": 2}


def test_only_pods_that_tolerate_a_taint_use_the_node() -> None:
    """A tainted GPU node counts for the pods that tolerate its taint, and others wait for the rest."""
    nodes = [Node("plain", {"gpu": 1000}), Node("tainted", {"gpu": 1000}, taints=(("gpu", "", "NoSchedule"),))]
    tolerant = filtered(job("t", 1), tolerations=(Toleration("gpu", "Exists"),))
    result = run(nodes, filtered(job("p", 2), app="p") + tolerant)
    assert places(result) == {"p-0": "plain", "p-1": "plain", "t-0": "tainted"}


def test_pods_with_one_host_port_share_no_node() -> None:
    """One a node, a gang too; another port, protocol or address is another; a pod of others takes its port as well."""
    port = HostPort("TCP", 8080)
    taken = encode_filter(NodeFilter(ports=(port,)))
    nodes = [*zones(3), Node("taken", {"gpu": 4000}, repelling=(taken,))]
    tasks = [replace(task, size=1) for task in filtered(job("a", 4), ports=(port,))]
    result = run(nodes, tasks, fifo={})
    assert {places(result)[f"a-{i}"] for i in range(3)} == {"n0", "n1", "n2"}
    assert sorted(starts(result).values()) == [0.0, 0.0, 0.0, 10.0]
    gang = run(nodes, filtered(job("g", 3), ports=(port,)), gang={})
    assert set(places(gang).values()) == {"n0", "n1", "n2"}
    others = (HostPort("UDP", 8080), HostPort("TCP", 8081))
    assert set(places(run(nodes, filtered(job("b", 1), ports=others), fifo={})).values()) == {"n0"}
    assert port.conflicts(HostPort("TCP", 8080, "10.0.0.1"))
    assert not HostPort("TCP", 8080, "10.0.0.2").conflicts(HostPort("TCP", 8080, "10.0.0.1"))


def test_the_anti_affinity_of_pods_that_no_policy_manages_is_kept() -> None:
    """One on n0 avoids the app in its zone: the app goes elsewhere, and others go there."""
    avoiding = encode_filter(NodeFilter(limits=(DomainLimit("zone", APP),)))
    nodes = [replace(node, repelling=(avoiding,)) if node.name == "n0" else node for node in zones(4)]
    result = run(nodes, filtered(job("a", 1)) + filtered(job("b", 1), app="y"), fifo={})
    # n3 is in the zone of n0
    assert places(result) == {"a-0": "n1", "b-0": "n0"}


@pytest.mark.parametrize(("pins", "honors", "running"), [(True, True, 3), (True, False, 6), (False, True, 6)])
def test_a_pin_leaves_one_domain_for_the_least_number_of_domains(pins: bool, honors: bool, running: int) -> None:
    """Kube-scheduler counts the domains that a pinned pod's affinity accepts: that of its node alone."""
    limit = DomainLimit("zone", APP, 1, min_domains=2, honors_affinity=honors)
    tasks = [replace(task, size=1) for task in filtered(job("a", 6), limit)]
    result = simulate(zones(6), tasks, [AcceptedNodes(), DomainLimits(pins=pins), *build_policies(policy(fifo={}))])
    assert sum(start == 0.0 for start in starts(result).values()) == running


def test_a_gang_with_a_spread_is_not_starved() -> None:
    """Nodes drain for it where it may run when they are empty: it lacks nothing but room."""
    small = [task for index in range(20) for task in filtered(job(f"s{index}", 1, run=90, at=60.0 * index), app="s")]
    gang = filtered(job("g", 6, run=600, at=30), DomainLimit("zone", APP, 1))
    assert starts(run(zones(3, 2), small + gang, fifo={}, gang={}))["g-0"] <= 60 * 4


def test_a_waiting_pod_says_which_rule_keeps_it_from_every_node() -> None:
    """The second pod on one node waits for the port, not for room."""
    tasks = [replace(task, size=1) for task in filtered(job("a", 2, run=50.0), ports=(HostPort("TCP", 8080),))]
    policies = [AcceptedNodes(), DomainLimits(), *build_policies(policy(fifo={}))]
    controller = run_simulation(prepare_simulation(zones(1), tasks, policies), until=10.0)
    wait = describe_wait(controller, controller.table.tasks[1])
    assert wait.reason == "waits for a node that kube-scheduler accepts: host port 8080"


@pytest.mark.parametrize(("value", "accepts"), [("9", True), ("8", False), ("-9", False), ("1_0", False), ("x", False)])
def test_labels_are_compared_as_kube_scheduler_reads_numbers(value: str, accepts: bool) -> None:
    """A label that is no integer is neither greater nor less."""
    assert Requirement("gen", "Gt", ("8",)).matches({"gen": value}) is accepts
    assert not Requirement("gen", "Lt", ("1_0",)).matches({"gen": value})


def test_pods_on_nodes_that_are_not_ready_count_in_their_domains() -> None:
    """kube-scheduler keeps such a node in its view: its pods repel and are counted, though nothing starts there."""
    avoids_y = encode_filter(NodeFilter(limits=(DomainLimit("zone", (Requirement("app", "In", ("y",)),)),)))
    gone = Node("gone", {}, {"zone": "z0"}, occupants=({"app": "x"},), repelling=(avoids_y,))
    for app, limits in (("y", ()), ("x", (DomainLimit("zone", APP),))):
        policies = [AcceptedNodes(), DomainLimits(absent=(gone,)), *build_policies(policy(fifo={}))]
        tasks = filtered(job("a", 1), *limits, app=app)
        result = simulate(zones(2, 1), tasks, policies)
        assert places(result) == {"a-0": "n1"}
