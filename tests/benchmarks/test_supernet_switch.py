"""Laws of the benchmark of switches."""

from __future__ import annotations

import pytest


def test_the_memory_is_that_of_the_shipped_family() -> None:
    """The measured members are those of the config; more members of its stages share more."""
    pytest.importorskip("torch")
    from benchmarks.supernet_switch import TWELVE, measure_family

    shipped, twelve = (measure_family(changed, 0, 20) for changed in ({}, TWELVE))
    assert len(shipped.view_ratios) == 6
    assert len(twelve.view_ratios) == 12
    assert twelve.shared_bytes / twelve.separate_bytes < shipped.shared_bytes / shipped.separate_bytes < 1
