"""Speed-ups within and across instances."""

from __future__ import annotations

import pytest

from unfold_tuning.job.profile import LogNormal, Profile

PROFILE = Profile(LogNormal(600.0), ((1, 1.0), (2, 1.9), (4, 3.6)), ((8, 6.9), (16, 13.0)))


@pytest.mark.parametrize(("accelerators", "expected"), [(1, (1, 8, 16)), (4, (1, 2, 4, 8, 16)), (8, (1, 2, 4, 16))])
def test_worker_counts_combine_both_tables(accelerators: int, expected: tuple[int, ...]) -> None:
    """Across instances only ``across`` counts, within one only ``speedup``: neither stands for the other."""
    assert PROFILE.list_worker_counts(accelerators) == expected
    other = Profile(LogNormal(1.0), ((1, 1.0), (4, 3.6)), ((4, 2.5),))
    assert (other.get_speedup(4, 4), other.get_speedup(4, 2)) == (3.6, 2.5)
    assert not PROFILE.has_speedup(2, 1)
    assert PROFILE.list_unmeasured_spans(1) == (2, 4)
    assert PROFILE.list_unmeasured_spans(4) == ()
