"""Accounting of each device: a fraction of a GPU is a share of one."""

from __future__ import annotations

import numpy as np
import pytest

from plugins.placement.tests.cases import run, starts
from unfold_placement.core import kernel
from unfold_placement.core.cluster_view import View
from unfold_placement.core.devices import MAX_DEVICES, is_device
from unfold_placement.core.resources import build_resource_table
from unfold_placement.core.types import Node, Task
from unfold_placement.simulation.audit import find_violations
from unfold_placement.simulation.metrics import compute_fragmentation

TWO_GPUS = Node("n", {"gpu": 2000})


def shares(*amounts: int, run: float = 10.0, kind: str = "gpu") -> list[Task]:
    """Return tasks ``t0`` and so on with these demands in thousandths of a device, one second apart."""
    return [Task(f"t{i}", {kind: amount}, run, float(i), job=f"t{i}") for i, amount in enumerate(amounts)]


@pytest.mark.parametrize("kind", ["gpu", "GPU", "nvidia.com/gpu", "tpu"])
def test_three_tasks_of_0_6_do_not_fit_on_two_gpus(kind: str) -> None:
    """The third waits although 0.8 of two GPUs is free."""
    found = run([Node("n", {kind: 2000})], shares(600, 600, 600, kind=kind))
    assert list(found.start_s) == [0.0, 1.0, 10.0]
    assert not list(find_violations(found, []))


def test_an_amount_that_is_no_device_is_shared_freely() -> None:
    """Three tasks of 0.6 fit on two processors."""
    assert list(run([Node("n", {"cpu": 2000})], shares(600, 600, 600, kind="cpu")).start_s) == [0.0, 1.0, 2.0]
    assert not is_device("nvidia.com/mig-1g.5gb")


@pytest.mark.parametrize(
    ("amounts", "wanted"),
    [
        # halves of two GPUs are no whole GPU
        ((500, 600, 1000), [0.0, 1.0, 10.0]),
        # two halves share one GPU, so the other is free
        ((500, 500, 1000), [0.0, 1.0, 2.0]),
        # the fullest GPU with room is shared first
        ((600, 300, 700, 400), [0.0, 1.0, 2.0, 10.0]),
        # one and a half take a free GPU and a share of another, which others may use as well
        ((1500, 500, 100), [0.0, 1.0, 10.0]),
        ((100, 1500, 400), [0.0, 1.0, 2.0]),
        ((600, 1500), [0.0, 10.0]),
    ],
)
def test_shares_keep_to_one_device(amounts: tuple[int, ...], wanted: list[float]) -> None:
    """Start times on two GPUs, in seconds."""
    found = run([TWO_GPUS], shares(*amounts))
    assert list(found.start_s) == wanted
    assert not list(find_violations(found, []))


def test_a_part_of_a_device_is_a_device_of_its_own() -> None:
    """A node of 1.5 GPUs has room for one whole task and a half, not for two of 0.7."""
    node = Node("n", {"gpu": 1500})
    assert list(run([node], shares(500, 1000, 100)).start_s) == [0.0, 1.0, 10.0]
    assert list(run([node], shares(700, 700)).start_s) == [0.0, 10.0]
    assert list(run([node], shares(1500, 500)).start_s) == [0.0, 10.0]


def test_nodes_with_very_many_units_offer_an_amount() -> None:
    """What cannot be devices, such as GPU memory under the name of a GPU, stays an amount."""
    node = Node("n", {"gpu": (MAX_DEVICES + 1) * 1000})
    tasks = shares(*[600] * 3, MAX_DEVICES * 1000 - 1000)
    assert list(run([node, Node("small", {"gpu": 2000})], tasks).start_s) == [0.0, 1.0, 2.0, 3.0]
    assert list(run([Node("small", {"gpu": 2000}), node], tasks).start_s) == [0.0, 1.0, 2.0, 3.0]


def test_the_audit_finds_a_share_that_spans_two_devices() -> None:
    """Starts that only the sum of the GPUs allows are violations."""
    found = run([TWO_GPUS], shares(600, 600, 600))
    found.log.times[:] = np.minimum(found.log.times, 2.0)
    order = np.argsort(found.log.kinds == kernel.LOG_ENDED, kind="stable")
    for column in (found.log.kinds, found.log.tasks, found.log.nodes):
        column[:] = column[order]
    assert list(find_violations(found, [])) == ["2 s: t2 on n: no device there has room for its share"]


def test_free_shares_that_no_task_fits_are_fragments() -> None:
    """Two GPUs at 0.6 leave 0.8 free, none of which a further task of 0.6 can use."""
    found = run([TWO_GPUS], shares(600, 600, 600))
    # after the first start the node takes another; after the second and third it does not
    assert compute_fragmentation(found, "gpu") == pytest.approx((0 + 800 + 800) / (1400 + 800 + 800))


def test_devices_are_tracked_from_the_first_share_on() -> None:
    """Whole tasks that run before the first fraction arrives keep their devices."""
    table = build_resource_table([TWO_GPUS])
    table.add_tasks([Task("whole", {"gpu": 1000}, 9.0)], [()])
    kernel.allocate(table.state, 0, 0, kernel.ALL_PHASES)
    assert not table.state.device_kinds.size
    table.add_tasks(shares(600, 600), [(), ()])
    fits = [kernel.first_fit(table.state, row, kernel.ALL_PHASES, table.state.is_up) for row in (1, 2)]
    assert fits == [0, 0]
    kernel.allocate(table.state, 1, 0, kernel.ALL_PHASES)
    assert kernel.first_fit(table.state, 2, kernel.ALL_PHASES, table.state.is_up) == -1
    kernel.release(table.state, 0, 0, kernel.ALL_PHASES)
    assert kernel.first_fit(table.state, 2, kernel.ALL_PHASES, table.state.is_up) == 0


def test_a_running_task_stays_on_its_device_when_a_policy_tries_without_it() -> None:
    """Choosing victims releases and restores running tasks; afterwards every device is as before."""
    found = run([TWO_GPUS], shares(600, 400, 500, 500, 1000, run=100.0))
    table, view = found.table, View(found.table)
    state = table.state
    state.status[:4] = kernel.RUNNING
    for row in range(4):
        state.device[row] = (0, 0, 1, 1)[row]
    state.device_used[0, 0] = [1000, 1000]
    state.free[0, 0] = 0
    kernel.update_device_room(state.device_kinds, state.free, state.device_used, 0)
    kernel.update_free_tree(state.free, state.free_tree, 0)
    state.status[4], state.task_node[:4] = kernel.WAITING, 0
    before = state.device_used.copy(), state.free.copy()
    victims = view.victims((table.tasks[4],), [table.tasks[row] for row in (0, 2, 1)])
    assert victims == [table.tasks[0], table.tasks[1]]
    assert (state.device_used == before[0]).all()
    assert (state.free == before[1]).all()


def test_a_whole_gang_of_shares_starts_only_where_its_shares_fit() -> None:
    """Four tasks of 0.6 need four GPUs, although three have more than their sum."""
    gang = [Task(f"g{i}", {"gpu": 600}, 5.0, 0.0, job="g", size=4) for i in range(4)]
    assert set(starts(run([Node("n", {"gpu": 3000})], gang, gang={})).values()) == {np.inf}
    assert set(starts(run([Node("n", {"gpu": 4000})], gang, gang={})).values()) == {0.0}
