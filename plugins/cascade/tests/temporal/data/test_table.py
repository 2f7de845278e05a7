"""Rows of entities are found by their starts."""

from __future__ import annotations

import numpy as np

from unfold_cascade.temporal.data.table import find_first_true, select_rows


def test_first_true_row_stays_within_its_entity() -> None:
    """Without a set flag it is the row after the entity; ``select_rows`` keeps the order of the entities."""
    flag = np.array([0, 1, 1, 0, 0, 1], dtype=np.bool_)
    assert find_first_true(flag, np.array([0, 3, 5, 6])).tolist() == [1, 5, 5]
    assert select_rows(np.array([0, 3, 5, 6]), np.array([2, 0])).tolist() == [5, 0, 1, 2]
