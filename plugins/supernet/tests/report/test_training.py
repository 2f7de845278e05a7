"""The report of a training."""

from __future__ import annotations

import numpy as np
import pytest

from unfold_supernet.report.training import describe_gap
from unfold_supernet.training.accuracy import compare_paired


@pytest.mark.parametrize(
    ("worse", "message"),
    [
        ((0, 0), "no weight-sharing gap"),
        ((1, 0), "no significant weight-sharing gap (2.00 points, paired error 1.98)"),
        ((0, 20), "weight-sharing gap of at most 40.00 points"),
        ((30, 20), "weight-sharing gap of at most 60.00 points"),
    ],
)
def test_insignificant_gap_is_reported_as_such(worse: tuple[int, int], message: str) -> None:
    """A gap is stated as such only if a standalone model is significantly better; otherwise as possible chance."""
    alone = np.ones(50, bool)
    gaps = [compare_paired(alone, np.arange(50) >= count) for count in worse]
    assert describe_gap(gaps) == message
