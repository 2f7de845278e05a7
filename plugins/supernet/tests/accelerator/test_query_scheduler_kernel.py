"""The scheduler's machine code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.supernet.tests.helpers import MACHINE, build_tables, random_family
from unfold_supernet.accelerator import query_scheduler_kernel, scheduler
from unfold_supernet.accelerator.queries import draw_queries


def test_compiled_stream_equals_the_reference() -> None:
    """The reference implementation gives the sums of the compiled stream."""
    known, _found, _works = build_tables(random_family(3), replace(MACHINE, persistent_bytes=100_000))
    drawn = draw_queries(500, "bursty", 1).scale_targets(known, "strict-latency")
    wanted, others = drawn.enforced, drawn.other
    given_ = (
        wanted, others, known.seconds, known.bytes, known.hit, known.passing, known.near, known.norm, known.accuracy,
        1e9, query_scheduler_kernel.LATENCY, query_scheduler_kernel.AVGNET, 1, 7,
    )  # fmt: skip
    np.testing.assert_allclose(
        query_scheduler_kernel.run_stream(*given_), query_scheduler_kernel.run_stream_reference(*given_)
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(60, 62), st.integers(1, 3)), min_size=1, max_size=5),
    st.floats(59, 63),
    st.sampled_from(sorted(scheduler.POLICIES)),
)
def test_ties_go_to_the_better_subnet(nets: list[tuple[int, int]], target: float, policy: str) -> None:
    """Equal accuracies go to the faster subnet, equal latencies to the more accurate one, even if none qualifies."""
    accuracy, seconds = (np.array(part, float) for part in zip(*nets, strict=True))
    wanted = target if policy == "strict-accuracy" else target - 60
    keys, best = np.empty(len(nets)), np.empty(len(nets) + 1, np.int64)
    query_scheduler_kernel.rank_subnets(seconds, accuracy, scheduler.POLICIES[policy], keys, best)
    net = query_scheduler_kernel.find_subnet(wanted, keys, best, scheduler.POLICIES[policy])
    by_accuracy = policy == "strict-accuracy"
    good = accuracy >= wanted if by_accuracy else seconds <= wanted
    able = [at for at in range(len(nets)) if good[at]]
    if by_accuracy == bool(able):
        expected = min(able or range(len(nets)), key=lambda at: (seconds[at], -accuracy[at]))
    else:
        expected = min(able or range(len(nets)), key=lambda at: (-accuracy[at], seconds[at]))
    assert (accuracy[net], seconds[net]) == (accuracy[expected], seconds[expected])
