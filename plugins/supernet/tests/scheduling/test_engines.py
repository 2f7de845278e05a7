"""Which engine runs each subnet, within which memory."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfold_supernet.scheduling.engines import EngineCosts, EnginePlan, Request, plan_engines

SHARED = 100


def make_costs(speedups: list[float], sizes: list[int]) -> dict[str, EngineCosts]:
    """Make subnets with ONNX sessions faster by these factors, at every batch size."""
    return {
        f"s{index}": EngineCosts(
            views={1: 1e-3 * (index + 1), 32: 1e-2},
            onnx={1: 1e-3 * (index + 1) / ratio, 32: 1e-2 / ratio},
            copy_bytes=size,
        )
        for index, (ratio, size) in enumerate(zip(speedups, sizes, strict=True))
    }


def plan(speedups: list[float], sizes: list[int], request: Request = "auto", memory: int | None = None) -> EnginePlan:
    return plan_engines(make_costs(speedups, sizes), SHARED, request, memory)


def test_the_faster_engine_is_taken_and_views_win_ties() -> None:
    """Without a limit, only a measured gain beyond noise gives a subnet a copy."""
    chosen = plan([2.0, 1.02, 0.5], [10, 10, 10])
    assert chosen.engines == {"s0": "onnx", "s1": "views", "s2": "views"}
    assert chosen.needed_bytes == 10 + SHARED
    assert plan([2.0, 3.0], [10, 20]).needed_bytes == 30, "no views, no shared weights"


def test_copies_that_do_not_fit_are_views() -> None:
    """The copy that saves most time for each byte is kept; the others stay views and are named."""
    chosen = plan([2.0, 2.0, 2.0], [50, 1000, 50], memory=SHARED + 60)
    assert chosen.engines == {"s0": "views", "s1": "views", "s2": "onnx"}
    assert chosen.too_large == ("s0", "s1")
    assert chosen.needed_bytes <= SHARED + 60


def test_what_is_demanded_and_does_not_fit_is_an_error() -> None:
    """Too little memory for the copies, or for the shared weights alone, is no plan."""
    with pytest.raises(ValueError, match="copies need"):
        plan([2.0], [50], "onnx", memory=40)
    with pytest.raises(ValueError, match="shared weights need"):
        plan([2.0, 0.5], [500, 500], memory=SHARED - 1)
    assert plan([0.5], [50], "onnx").engines == {"s0": "onnx"}
    assert plan([5.0], [50], "views").engines == {"s0": "views"}


def test_a_busy_machine_is_reported() -> None:
    """A measurement with a thread that waited more than a tenth of its time flags the plan."""
    costs = make_costs([2.0, 2.0], [10, 10])
    assert not plan_engines(costs, SHARED).is_busy
    slow = EngineCosts(views={1: 1.0}, onnx={1: 0.5}, copy_bytes=10, waiting=0.4)
    assert plan_engines({**costs, "s2": slow}, SHARED).is_busy


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.3, 5), st.integers(1, 200)), min_size=1, max_size=6),
    st.integers(SHARED, 800),
)
def test_plans_keep_the_memory_and_waste_none(subnets: list[tuple[float, int]], memory: int) -> None:
    """A plan never exceeds the memory, and no further copy that would be faster fits beside it."""
    speedups, sizes = [ratio for ratio, _ in subnets], [size for _, size in subnets]
    chosen = plan(speedups, sizes, memory=memory)
    assert chosen.needed_bytes <= memory
    for name, size in zip(chosen.engines, sizes, strict=True):
        assert name not in chosen.too_large or chosen.needed_bytes + size > memory


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(1.1, 5), st.integers(1, 60)), min_size=2, max_size=6), st.integers(SHARED, 300))
def test_greedy_copies_save_at_least_half_of_the_best_choice(subnets: list[tuple[float, int]], memory: int) -> None:
    """Against every subset that fits, the greedy choice saves at least half where no copy exceeds half of the room."""
    costs = make_costs([ratio for ratio, _ in subnets], [size for _, size in subnets])
    room = memory - SHARED
    if any(cost.copy_bytes > room / 2 for cost in costs.values()):
        return
    saved = {
        name: sum((cost.views[batch] - cost.onnx[batch]) / batch for batch in cost.views)
        for name, cost in costs.items()
    }
    chosen = sum(saved[name] for name in plan_engines(costs, SHARED, "auto", memory).list_subnets("onnx"))
    subsets = itertools.chain.from_iterable(itertools.combinations(costs, size) for size in range(len(costs) + 1))
    best = max(
        sum(saved[name] for name in part) for part in subsets if sum(costs[name].copy_bytes for name in part) <= room
    )
    assert chosen >= best / 2 - 1e-12
