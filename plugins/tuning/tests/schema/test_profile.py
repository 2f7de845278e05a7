"""Stated profiles from which no time follows."""

from __future__ import annotations

import pytest
from tuning_runs import SPEC, load_spec

from unfoldkit.api import UnfoldError


def test_a_speedup_next_to_zero_is_refused() -> None:
    """A speed-up at which the times of a job are not finite is refused by its key."""
    text = SPEC.replace("sync: {mean: 0 s}", "sync: {mean: 0 s}, speedup: {1: 1.0, 2: 1.0e-300}")
    with pytest.raises(UnfoldError, match=r"profile\.speedup\[2\].*at least 0\.001"):
        load_spec(text)


@pytest.mark.parametrize(("name", "mean"), [("iteration", "50 ms"), ("sync", "0 s")])
def test_a_deviation_far_above_its_mean_is_refused(name: str, mean: str) -> None:
    """Nearly all samples of such a time are close to zero, and any deadline seemed to be met."""
    text = SPEC.replace(f"{name}: {{mean: {mean}", f"{name}: {{mean: {mean}, std: 1 s")
    with pytest.raises(UnfoldError, match=rf"profile\.{name}\.std: .* above 10 times the mean"):
        load_spec(text)
