"""Stages are entered ahead of the label and never left."""

from __future__ import annotations

import numpy as np
import pytest

from unfold_cascade.temporal.data.table import EntityTable
from unfold_cascade.temporal.data.targets import detect_stage_entry, label_stages
from unfold_cascade.temporal.problem import StageTarget
from unfoldkit.errors import UnfoldError

HOUR = np.array([0, 1, 2, 3, 4, 5, 0, 1, 2.0])


def test_stages_are_entered_ahead_and_never_left() -> None:
    """A stage is on from ``ahead_h`` hours before the column is first 1 until the end of the same entity."""
    label = np.array([0, 0, 0, 0, 1, 0, 0, 0, 0], dtype=np.float32)[:, None]
    table = EntityTable(("a", "b"), np.array([0, 6, 9]), HOUR, ("y",), label, "", "t")
    target = StageTarget(column="y", ahead_h=2.0)
    entered = [False, False, True, True, True, True, False, False, False]
    assert detect_stage_entry(table, target, key="k").tolist() == entered
    on, highest = label_stages(table, (target,))
    assert highest.tolist() == on[:, 0].astype(int).tolist()


def test_labels_other_than_0_and_1_are_reported() -> None:
    """The error names the entity and the hour."""
    values = np.array([[0], [2]], dtype=np.float32)
    table = EntityTable(("a",), np.array([0, 2]), np.array([5.0, 6.0]), ("y",), values, "", "t")
    with pytest.raises(UnfoldError, match='"y" is 2 at a, hour 6'):
        detect_stage_entry(table, StageTarget(column="y"), key="k")
