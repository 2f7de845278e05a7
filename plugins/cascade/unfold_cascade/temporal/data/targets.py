"""Ground truth of the stages: the hours at which each entity has entered a stage, from a label column or a rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unfold_cascade._types import BoolArray, IntArray
from unfold_cascade.clinical_rules import RULE_CARRY_H, RULE_THRESHOLD, RULE_UNITS, score_rule
from unfold_cascade.temporal.data.table import EntityTable, find_first_true
from unfold_cascade.temporal.data.windows import TOLERANCE_H, carry_forward
from unfold_cascade.temporal.problem import StageTarget
from unfoldkit.api import user_error

MAX_OUTLIERS = 0.02
"""Share of the values of a column up to which those outside the range of its unit are taken for errors."""


def detect_stage_entry(table: EntityTable, target: StageTarget, *, key: str) -> BoolArray:
    """Mark (n,) the hours at or after the entry into a stage.

    The entry lies ``ahead_h`` hours before the column is first 1 or the rule first holds, because an early warning
    should be given by then. An entity never leaves a stage (the happens-before order of UnfoldML).

    Args:
        table: The hours.
        target: The column or the rule.
        key: Spec key of the target, for messages.

    Raises:
        UnfoldError: The column does not exist, or holds a value other than 0 and 1.
    """
    if target.column is not None:
        holds = _read_label(table, target.column, key)
    else:
        holds = evaluate_rule(table, target.rule or "", key=key)
    first_rows = find_first_true(holds, table.starts)
    never = first_rows >= table.starts[1:]
    moment = np.where(never, np.inf, table.hour[np.minimum(first_rows, len(table) - 1)] - target.ahead_h)
    entered: BoolArray = table.hour >= np.repeat(moment - TOLERANCE_H, np.diff(table.starts))
    return entered


def label_stages(table: EntityTable, targets: Sequence[StageTarget]) -> tuple[BoolArray, IntArray]:
    """Label every hour: (n, S) whether each stage was entered, and (n,) the highest stage entered, 0 for none."""
    columns = [detect_stage_entry(table, target, key=f"stages[{s}].target") for s, target in enumerate(targets)]
    entered = np.column_stack(columns)
    highest: IntArray = (entered * np.arange(1, len(targets) + 1)).max(axis=1)
    return entered, highest


def evaluate_rule(table: EntityTable, rule: str, *, key: str) -> BoolArray:
    """Mark (n,) the hours at which a clinical rule holds, on values carried forward."""
    for column in RULE_CARRY_H[rule]:
        _check_unit(table, column, rule, key)
    values = {
        column: carry_forward(table.values[:, table.column_index(column, key=key)], table.hour, table.starts, carry_h)[
            0
        ]
        for column, carry_h in RULE_CARRY_H[rule].items()
    }
    holds: BoolArray = score_rule(values, rule) >= RULE_THRESHOLD
    return holds


def _check_unit(table: EntityTable, column: str, rule: str, key: str) -> None:
    """Reject values in another unit than that of a rule, which would label nearly every hour, or none.

    Raises:
        UnfoldError: More than a few values are outside the range of the unit.
    """
    unit, low, high = RULE_UNITS[column]
    values = table.values[:, table.column_index(column, key=key)]
    outside = np.flatnonzero((values < low) | (values > high))
    if len(outside) > MAX_OUTLIERS * np.isfinite(values).sum():
        share = len(outside) / np.isfinite(values).sum()
        message = (
            f'{table.name}: {100 * share:.0f} % of "{column}" are not values in {unit}, such as {values[outside[0]]:g}'
        )
        hint = f"the rule {rule} reads {unit}, from {low:g} to {high:g}: convert the column, and leave errors empty"
        raise user_error(message, key=key, hint=hint)


def _read_label(table: EntityTable, column: str, key: str) -> BoolArray:
    values = table.values[:, table.column_index(column, key=f"{key}.column")]
    invalid = ~np.isin(values, (0.0, 1.0))
    if invalid.any():
        row = int(np.flatnonzero(invalid)[0])
        entity = table.ids[int(np.searchsorted(table.starts, row, side="right")) - 1]
        state = "has no value" if np.isnan(values[row]) else f"is {values[row]:g}"
        message = f'{table.name}: "{column}" {state} at {entity}, hour {table.hour[row]:g}; it must be 0 or 1'
        raise user_error(message, key=f"{key}.column")
    label: BoolArray = values == 1.0
    return label
