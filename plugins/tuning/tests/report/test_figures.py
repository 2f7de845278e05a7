"""Figures of runs and plans."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
from tuning_runs import train_spec

pytestmark = pytest.mark.usefixtures("sleeper_log")


def test_only_curves_of_two_points_have_a_name(tmp_path: Path) -> None:
    """Trials that stopped at their first checkpoint are points together; each other trial is a line."""
    figure = next(item for item in train_spec(tmp_path).figures if item.name == "learning")
    styles = Counter((series.style, len(series.x)) for series in figure.series)
    lines = [count for style, count in styles.elements() if style == "line"]
    assert all(count > 1 for count in lines)
    assert sum(count for _, count in styles.elements()) == 6 * 2 + 2 * 4 + 1 * 6
    assert figure.y == "metric"


def test_gantt_bars_of_a_lane_do_not_overlap(tmp_path: Path) -> None:
    """The figure of a run has one bar per accelerator of each trial's part, and no two in a lane overlap."""
    figure = next(item for item in train_spec(tmp_path).figures if item.name == "gantt")
    bars = sorted((bar.lane, bar.start, bar.end) for bar in figure.bars)
    assert {bar.lane for bar in figure.bars} <= set(figure.lanes)
    assert len(bars) == 6 + 2 + 1
    for (lane, _, ended), (next_lane, began, _) in itertools.pairwise(bars):
        assert lane != next_lane or began >= ended - 1e-6
