"""Members in a memory that does not hold them all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfold_supernet.replay.baselines import make_adaptive
from unfold_supernet.scheduling.accuracy_levels import build_resident_levels
from unfold_supernet.scheduling.policies import SubnetProfile
from unfold_supernet.scheduling.residency import Eviction, MemberCost, Residency, fill_memory
from unfold_supernet.scheduling.speed import Slowdown
from unfoldkit.serving.model import Call

PROFILES = (
    SubnetProfile("small", 80.0, ((1, 0.001), (8, 0.002))),
    SubnetProfile("large", 95.0, ((1, 0.010), (8, 0.020))),
)
COSTS = (MemberCost(10, 0.005), MemberCost(90, 0.050))


@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0.001, 1.0)), min_size=1, max_size=8),
    st.lists(st.integers(0, 7), max_size=60),
    st.sampled_from(["cost", "lru", "lfu"]),
    st.data(),
)
def test_memory_is_never_exceeded(
    costs: list[tuple[int, float]], batches: list[int], eviction: Eviction, data: st.DataObject
) -> None:
    """Whatever is requested, the residents fit, pinned ones stay, and the requested member is resident."""
    members = tuple(MemberCost(*cost) for cost in costs)
    budget = data.draw(st.integers(40, 120))
    pinned = fill_memory(members, budget - 40, range(data.draw(st.integers(0, len(members)))))
    residency = Residency(costs=members, budget_bytes=budget, pinned=pinned, eviction=eviction, resident=pinned)
    loads, load_s = 0, 0.0
    for index in (batch % len(members) for batch in batches):
        was_resident = index in residency.resident
        evicted = residency.acquire(index)
        loads, load_s = loads + (not was_resident), load_s + (0.0 if was_resident else members[index].load_s)
        assert index in residency.resident
        assert pinned <= residency.resident
        assert not set(evicted) & residency.resident
        assert sum(members[resident].bytes for resident in residency.resident) <= budget
    assert residency.loads == loads
    assert residency.load_s == pytest.approx(load_s)


def test_evictions_follow_the_rule() -> None:
    """LRU evicts the member idle longest, LFU the least used one, cost the cheapest to bring back."""
    costs = (MemberCost(1, 0.1), MemberCost(1, 9.0), MemberCost(1, 0.2), MemberCost(1, 0.3))
    expected: dict[Eviction, int] = {"lru": 1, "lfu": 2, "cost": 2}
    for eviction, victim in expected.items():
        residency = Residency(costs=costs, budget_bytes=3, eviction=eviction)
        for index in (1, 1, 0, 0, 0, 0, 2):
            residency.acquire(index)
        assert residency.acquire(3) == (victim,), eviction


def test_a_member_beside_which_nothing_fits_is_refused() -> None:
    """A member larger than the room beside the pinned ones cannot be loaded."""
    residency = Residency(costs=COSTS, budget_bytes=95, pinned=frozenset({0}), resident=frozenset({0}))
    assert (residency.can_hold(0), residency.can_hold(1)) == (True, False)
    with pytest.raises(ValueError, match="90 bytes does not fit"):
        residency.acquire(1)


def test_decisions_count_the_load_time() -> None:
    """A slack that the large member meets only without loading goes to the small one, until the large is resident."""
    residency = Residency(costs=COSTS, budget_bytes=95, resident=frozenset({0}))
    paths = build_resident_levels(
        PROFILES, (0, 1), residency, lambda profiles: make_adaptive("fitted", 0.04, profiles), Slowdown()
    )
    assert paths.pick(0.04, 1, 0) == (0, 1)
    assert paths.pick(0.2, 1, 0) == (1, 1)
    # only the large member may serve the highest level, however late
    assert paths.level(Call(1, least_accuracy=0.9)) == 1
    assert paths.pick(0.04, 1, 1) is None
    assert paths.pick_late is not None
    assert (paths.pick_late(0), paths.pick_late(1)) == (0, 1)
    residency.acquire(1)
    assert residency.resident == {1}
    assert paths.pick(0.04, 1, 0) == (1, 1)
    assert paths.pick(0.04, 1, 1) == (1, 1)


def test_filling_memory_follows_the_order() -> None:
    """Members are taken in the order of preference, each that still fits."""
    costs = [MemberCost(size, 1.0) for size in (50, 40, 30, 10)]
    assert fill_memory(costs, 90, (0, 2, 1, 3)) == {0, 2, 3}
    assert np.sum([costs[index].bytes for index in fill_memory(costs, 90, (0, 1, 2, 3))]) == 90
