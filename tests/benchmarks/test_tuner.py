"""The comparison at equal misses: exact, and the same for both sides."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import tuner
from unfold_pipeline.estimator.simulator import SimulatedTrace


def played(scale: float, needed: float) -> SimulatedTrace:
    """A play that costs its scale; every query is late below the scale that is needed, none from it on."""
    return SimulatedTrace(np.full(10, 2.0 if scale < needed else 0.5), scale, ())


@pytest.mark.parametrize("needed", [0.2, 0.7, 1.0, 2.3, 3.9])
def test_the_cheapest_play_is_next_to_the_scale_that_is_needed(needed: float) -> None:
    """The cheapest play that keeps to the misses costs at most 1.5 % more than the least scale that can."""
    found = tuner._kept(1.0, lambda scale: played(scale, needed))
    least = max(needed, tuner.SCALES[0])
    assert least <= min(found)[0] <= least * 1.015
    assert all(missed == 0 for _, missed in found)


def test_a_scale_out_of_reach_is_no_play() -> None:
    """Where not even the widest scale keeps to the misses, nothing is found."""
    assert tuner._kept(1.0, lambda scale: played(scale, 5.0)) == []
    assert tuner._least([[], []]) is None
