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


@pytest.mark.parametrize(("column", "factor", "offset"), [("Temp", 1.8, 32), ("PaCO2", 0.133, 0), ("WBC", 1000, 0)])
def test_a_rule_does_not_read_another_unit(column: str, factor: float, offset: float) -> None:
    """Fahrenheit, kPa or single cells would label nearly every hour; a few rows of nonsense are borne."""
    normal = {"HR": 80.0, "Temp": 37.0, "Resp": 15.0, "PaCO2": 40.0, "WBC": 8.0}
    values = np.tile(np.array(list(normal.values()), dtype=np.float32), (100, 1))
    number = list(normal).index(column)
    hours = np.arange(100.0)
    table = EntityTable(("a",), np.array([0, 100]), hours, tuple(normal), values, "", "t")
    values[:2, number] = 1e6
    assert not detect_stage_entry(table, StageTarget(rule="sirs"), key="k").all()
    values[:20, number] = normal[column] * factor + offset
    with pytest.raises(UnfoldError, match=f'"{column}" are not values in ') as error:
        detect_stage_entry(table, StageTarget(rule="sirs"), key="k")
    assert "the rule sirs reads" in error.value.diagnostics[0].hint
