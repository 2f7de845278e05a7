"""Where many tasks wait, policies ask once for all that are alike, and place as if they had asked each."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest

from plugins.placement.tests.cases import cluster, job, policy, some_tasks
from unfold_placement.core import kernel
from unfold_placement.core.cluster_view import Unit, View
from unfold_placement.core.types import CREATED, PACK, QUIET, Ask, Event, Node, Put, Task, Transactions
from unfold_placement.policies.affinity.pack import Pack
from unfold_placement.policies.affinity.spread import Spread
from unfold_placement.policies.fairness.fair_share import Drf
from unfold_placement.policies.ordering import gang
from unfold_placement.policies.ordering.gang import Gang
from unfold_placement.policies.registry import build_policies
from unfold_placement.simulation.simulator import collect_result, prepare_simulation, run_simulation, simulate


def places(nodes: list[Node], tasks: list[Task], policies: Iterable[object]) -> list[tuple[float, int]]:
    """When and where each task ran."""
    found = simulate(nodes, tasks, list(policies))  # type: ignore[arg-type]
    return list(zip(found.start_s.tolist(), found.node_rows.tolist(), strict=True))


def free_at(view: View, node: str, task: Task) -> float:
    """Return when a task fits on a node if nothing new starts there, by the known ends; infinity for never."""
    state, table = view.table.state, view.table
    row, demand = table.node_rows[node], state.demand[table.task_rows[task.name]]
    count = len(table.tasks)
    running = np.flatnonzero((state.status[:count] == kernel.RUNNING) & (state.task_node[:count] == row))
    running = running[np.argsort(state.end_s[running], kind="stable")]
    free = state.free[row].copy()
    if (demand <= free).all():
        return view.now
    for other in running:
        free += state.demand[other]
        if (demand <= free).all():
            return float(state.end_s[other])
    return math.inf


@dataclass(slots=True)
class Slow:
    """The policy ``value`` as it is written down: every task asks about every node."""

    ahead: float
    phase: ClassVar[int] = PACK
    watches: ClassVar[frozenset[str]] = frozenset({CREATED, QUIET})

    def request(self, task: Task) -> Iterable[Ask]:
        return [Ask(f"plan-{task.name}", gated=True)]

    def react(self, event: Event, view: View) -> Transactions:
        promised: dict[str, float] = {}
        for task in [task for task in view.waiting() if view.has_cluster_resources((task,), PACK)]:
            now = {name: view.now + task.run_seconds(view.node(name)) for name in view.fits(task, PACK)}
            later = {
                node.name: max(free_at(view, node.name, task), promised.get(node.name, 0.0)) + task.run_seconds(node)
                for node in view.nodes
                if node.name not in now
            }
            soon, late = min(now, key=now.__getitem__, default=""), min(later, key=later.__getitem__, default="")
            waits = bool(late) and later[late] - task.run_seconds(view.node(late)) - view.now <= self.ahead
            if soon and not (waits and later[late] < now[soon]):
                yield [Put(f"plan-{task.name}", soon, until=task.name)]
            elif late:
                promised[late] = later[late]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ahead", [5.0, 3600.0])
def test_value_equals_an_exhaustive_evaluation(seed: int, ahead: float) -> None:
    """Promises of those that cannot start are counted when, and only when, they decide where another starts."""
    nodes = [replace(node, labels={"type": "ab"[place % 2]}) for place, node in enumerate(cluster(3))]
    tasks = some_tasks(seed, jobs=24)
    tasks = [replace(task, run_on={"b": task.run / 2} if row % 3 else {}) for row, task in enumerate(tasks)]
    mine = build_policies(policy(value={"ahead": f"{ahead:g} s"}))
    assert places(nodes, tasks, mine) == places(nodes, tasks, [Slow(ahead)])


@dataclass(slots=True)
class Counted:
    """Counts how often packing looks for a place."""

    of: Pack = field(default_factory=Pack)
    asked: int = 0
    phase: ClassVar[int] = Pack.phase
    watches: ClassVar[frozenset[str]] = Pack.watches

    def request(self, task: Task) -> Iterable[Ask]:
        return self.of.request(task)

    def react(self, event: Event, view: View) -> Transactions:
        for ops in self.of.react(event, view):
            self.asked += 1
            yield ops


def test_packing_searches_once_per_shape() -> None:
    """Hundreds that wait for a full cluster cost an answer each as they start, and none while nothing changes."""
    counted = Counted()
    found = simulate(cluster(), job("a", 400), [counted])
    assert not found.stuck
    assert counted.asked <= 2 * 400


def test_spread_writes_slots_only_when_they_change() -> None:
    """While some node runs none of a group, its places stay as they are however many come, start and end."""
    spread, nodes, puts = Spread(by="user"), cluster(8), 0
    loop = prepare_simulation(
        nodes, [task for at in range(100) for task in job(f"j{at}", 1, run=3, at=at, user="u")], [spread]
    )
    set_slots = spread.set_slots

    def counted(task: Task, view: View) -> list[Put]:
        nonlocal puts
        found = set_slots(task, view)
        puts += len(found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Spread, "set_slots", lambda _self, task, view: counted(task, view))
        assert not collect_result(run_simulation(loop)).stuck
    assert puts == len(nodes)


GANGS: tuple[dict[str, object], ...] = (
    {"gang": {}},
    {"gang": {"patience": "20 s"}},
    {"gang": {}, "drf": {}},
    {"gang": {}, "limit": {"most": 5, "by": "user"}},
    {"gang": {}, "quota": {"u0": 4, "u1": 3, "u2": 6}},
    {"gang": {}, "priority": {"preempt": True}},
    {"gang": {}, "pack": {}},
    {"gang": {}, "value": {}},
    {"gang": {}, "wfq": {"backfill": True}},
    {"gang": {}, "anti-affinity": {"by": "user", "density": 2}},
)


@pytest.mark.parametrize("parts", GANGS, ids="+".join)
def test_gangs_that_are_tried_by_shape_run_when_each_is_tried(
    parts: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is skipped would not have fitted: starts and nodes are those of a policy that skips none."""
    mixed = [[replace(task, priority=int(task.user[1:])) for task in some_tasks(seed, 40, 6)] for seed in range(12)]
    # however few wait, those that are not admitted are left out at once
    monkeypatch.setattr(gang, "MIN_FILTERED", 1)
    by_shape = [places(cluster(3), tasks, build_policies(policy(**parts))) for tasks in mixed]
    monkeypatch.setattr(Gang, "_is_futile", lambda *_args: False)
    monkeypatch.setattr(Gang, "_list_candidates", lambda each_gang, _view: list(each_gang.complete_units))
    each = [places(cluster(3), tasks, build_policies(policy(**parts))) for tasks in mixed]
    assert by_shape == each


def test_gangs_that_are_not_admitted_are_left_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue of gangs behind an admission policy costs a few questions for each gang, not for each gang and event."""
    asked = 0
    ask = View.remaining_unit

    def counted(view: View, unit: Unit) -> Unit | None:
        nonlocal asked
        asked += 1
        return ask(view, unit)

    monkeypatch.setattr(View, "remaining_unit", counted)
    tasks = [replace(task, size=4) for row in range(100) for task in job(f"j{row}", 4, user=f"u{row % 5}")]
    found = simulate(cluster(), tasks, build_policies(policy(gang={}, drf={"backfill": True})))
    assert not found.stuck
    assert asked <= 4 * 100


def test_users_are_ranked_anew_only_after_an_admission(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many users with tasks of unlike sizes that do not fit, each is ranked once, not once for each task."""
    ranked = 0
    rank = Drf.rank

    def counted(fair: Drf, user: str, unit: Unit, view: View) -> object:
        nonlocal ranked
        ranked += 1
        return rank(fair, user, unit, view)

    monkeypatch.setattr(Drf, "rank", counted)
    nodes = [Node("n", {"gpu": 8000})]
    sizes = [(user, 4001 + 100 * user + index) for user in range(30) for index in range(20)]
    tasks = [Task(f"t{user}-{size}", {"gpu": size}, 10.0, 0.0, user=f"u{user}") for user, size in sizes]
    assert not simulate(nodes, tasks, build_policies(policy(drf={"backfill": True}))).stuck
    assert ranked <= 4 * 30
