"""The query scheduler."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.supernet.tests.helpers import MACHINE, build_tables, random_family
from unfold_supernet._types import FloatArray
from unfold_supernet.accelerator import (
    scheduler,
)
from unfold_supernet.accelerator.latency_table import LatencyTable
from unfold_supernet.accelerator.queries import draw_levels, draw_queries, scale_levels


def run_by_the_paper(
    wanted: FloatArray, others: FloatArray, known: LatencyTable, policy: str, keep: str, every: int, passing: bool
) -> tuple[float, ...]:
    """Compute means and fractions query by query: a readable reference of the scheduler."""
    now, served, time, moved, wait = 1, list[int](), 0.0, 0.0, 0.0
    met = list[tuple[bool, bool]]()
    nets = range(len(known.accuracy))
    for query, target in enumerate(wanted):
        late = {net: known.seconds[net, now] for net in nets}
        if policy == "strict-accuracy":
            good = [net for net in nets if known.accuracy[net] >= target]
            net = min(good, key=late.__getitem__) if good else max(nets, key=known.accuracy.__getitem__)
        else:
            good = [net for net in nets if late[net] <= target]
            net = max(good, key=known.accuracy.__getitem__) if good else min(nets, key=late.__getitem__)
        served.append(net)
        least, deadline = (target, others[query]) if policy == "strict-accuracy" else (others[query], target)
        met.append((known.seconds[net, now] + wait <= deadline, known.accuracy[net] >= least))
        wait = 0.0
        time += known.seconds[net, now]
        moved += known.bytes[net, now]
        if keep != "fixed" and (query + 1) % every == 0:
            last = served[-every:]
            columns = range(1, len(known.norm))
            if keep == "avgnet":
                # up to the squared length of AvgNet, which is the same for every column
                scores = [known.norm[c] - 2 * np.mean([known.near[n, c] for n in last]) for c in columns]
            else:
                scores = [float(np.mean([known.seconds[n, c] for n in last])) for c in columns]
            good = [1 + i for i, score in enumerate(scores) if score <= min(scores) + 1e-9 * abs(min(scores))]
            # a refill that gains nothing is not paid
            chosen = now if now in good else good[0]
            refill = known.passing[net, now, chosen] if passing else known.refill[now, chosen]
            wait = refill / 1e9
            time, moved, now = time + wait, moved + refill, chosen
    count = len(wanted)
    shares = np.mean([(*both, all(both)) for both in met], axis=0)
    return time / count, moved / count, float(np.mean([known.accuracy[net] for net in served])), *shares


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from(sorted(scheduler.POLICIES)),
    st.sampled_from(sorted(scheduler.CACHES)),
    st.integers(1, 9),
    st.booleans(),
)
def test_scheduler_follows_the_paper_query_by_query(
    seed: int, policy: str, keep: str, every: int, passing: bool
) -> None:
    """The compiled stream follows the paper's rules query by query."""
    known, _found, _works = build_tables(random_family(seed), replace(MACHINE, persistent_bytes=100_000))
    drawn = draw_queries(60, "random", seed).scale_targets(known, policy)
    wanted, others = drawn.enforced, drawn.other
    played = scheduler.run_queries(
        wanted, known, 1e9, policy=policy, cache=keep, column=1, every=every, passing=passing, other_targets=others
    )
    expected = run_by_the_paper(wanted, others, known, policy, keep, every, passing)
    found = (played.seconds, played.bytes, played.accuracy, played.in_time, played.accurate_enough, played.both)
    assert found == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 200_000))
def test_either_policy_meets_both_targets_where_possible(seed: int, room: int) -> None:
    """With a static cache, both policies satisfy exactly the queries that some subnet can satisfy."""
    known, _found, _works = build_tables(random_family(seed), replace(MACHINE, persistent_bytes=room))
    asked = draw_queries(80, "bursty", seed)
    targets = asked.scale_targets(known, "strict-accuracy")
    accuracies, deadlines = targets.enforced, targets.other
    for policy, (own, others) in {
        "strict-accuracy": (accuracies, deadlines),
        "strict-latency": (deadlines, accuracies),
    }.items():
        played = scheduler.run_queries(own, known, 1e9, policy=policy, column=1, other_targets=others)
        able = (known.accuracy[:, None] >= accuracies) & (known.seconds[:, 1][:, None] <= deadlines)
        assert played.both == pytest.approx(able.any(axis=0).mean())


@pytest.mark.e2e
@pytest.mark.parametrize("keep", ["avgnet", "least-latency"])
def test_equal_scores_leave_the_cache_unchanged(keep: str) -> None:
    """The cached subgraph is not exchanged for an equally good one, because a refill has a cost."""
    known, _found, _works = build_tables(random_family(3), replace(MACHINE, persistent_bytes=100_000))
    last = known.norm.size - 1
    alike = replace(known, near=known.near * 0, norm=known.norm * 0 + 1, seconds=known.seconds[:, [last] * (last + 1)])
    wanted = scale_levels(draw_levels(500, "bursty", 5), alike, "strict-accuracy")
    played = scheduler.run_queries(wanted, alike, 1e9, cache=keep, column=last)
    assert (played.changes, played.refill) == (0, 0)
