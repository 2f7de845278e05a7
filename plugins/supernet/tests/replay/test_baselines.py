"""Comparison with fixed subnets."""

from __future__ import annotations

import numpy as np
import pytest

from unfold_supernet.replay.baselines import PolicyResult, compare_with_fixed
from unfold_supernet.scheduling.simulator import ReplayOutcome


def test_comparison_uses_the_best_fixed_subnet() -> None:
    """The gain is over the best fixed subnet with equal attainment; the ratio is to those as accurate."""

    def entry(name: str, share: float, accuracy: float) -> PolicyResult:
        in_time = np.arange(1000) < share * 1000
        ones = np.ones(1000, np.int64)
        outcome = ReplayOutcome(subnet=ones * 0, in_time=in_time, batches=1, switches=1, batch_size=ones)
        return PolicyResult(name, outcome, accuracy)

    lone = [entry("only a", 1.0, 80.0), entry("only b", 0.5, 86.0), entry("only c", 0.2, 95.0)]
    comparison = compare_with_fixed(entry("own", 1.0, 85.0), lone)
    assert comparison.gain_points == pytest.approx(5.0)
    assert comparison.attainment_ratio == pytest.approx(2.0)
    assert compare_with_fixed(entry("own", 1.0, 99.0), lone).attainment_ratio is None
