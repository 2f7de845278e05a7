"""Escalation pairs of profiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfold_supernet.scheduling import escalation
from unfold_supernet.scheduling.policies import SubnetProfile

NETS = (
    SubnetProfile("small", 0.0, ((1, 0.001), (8, 0.002), (64, 0.009))),
    SubnetProfile("large", 100.0, ((1, 0.004), (8, 0.020), (64, 0.120))),
)


def draw_predictions(seed: int, rows: int = 200) -> escalation.SubnetPredictions:
    """Draw random predictions of two subnets for three classes."""
    rng = np.random.default_rng(seed)
    said = rng.integers(0, 3, (2, rows))
    return escalation.SubnetPredictions(
        ("small", "large"), said, rng.random((2, rows)).astype(np.float32), rng.integers(0, 3, rows)
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 1.0))
def test_pair_combines_predictions_row_by_row(seed: int, below: float) -> None:
    """Each row is the large subnet's if the small one is unsure, otherwise the small one's; sensitivities too."""
    found = draw_predictions(seed)
    (pair,) = escalation.build_pairs(NETS, found, below)
    said = [
        big if sure < below else small for small, big, sure in zip(*found.predictions, found.confidence[0], strict=True)
    ]
    right = np.array(said) == found.labels
    assert pair.accuracy == pytest.approx(right.mean() * 100)
    assert pair.unsure_fraction == pytest.approx(np.mean(found.confidence[0] < below))
    for name, share in escalation.build_pairs(NETS, found, below)[pair].items():
        assert share == pytest.approx(right[found.labels == name].mean())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 0.99), st.floats(0.0, 0.3))
def test_higher_threshold_takes_longer(seed: int, below: float, more: float) -> None:
    """A pair takes at least its small subnet's time, and not less with a higher threshold."""
    found = draw_predictions(seed)
    (one,), (other,) = (escalation.build_pairs(NETS, found, each) for each in (below, min(1.0, below + more)))
    for (size, time), (_, longer) in zip(one.seconds, other.seconds, strict=True):
        assert NETS[0].estimate_latency(size) <= time <= longer


def test_predictions_survive_a_round_trip() -> None:
    """Predictions that are packed and unpacked are the same."""
    found = draw_predictions(3)
    again = escalation.unpack_predictions(escalation.pack_predictions(found))
    assert again.names == found.names
    for key in ("predictions", "confidence", "labels"):
        np.testing.assert_array_equal(getattr(again, key), getattr(found, key))
