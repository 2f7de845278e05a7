"""What a stage asks: a column, or a clinical rule, some hours ahead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from unfold_cascade._types import BoolArray, Float32, IntArray
from unfold_cascade.schema.parts import Stage, Target
from unfold_cascade.schema.temporal_rules import POINTS_OF
from unfold_cascade.temporal.data.table import Long, first_true
from unfold_cascade.temporal.data.windows import carried
from unfoldkit.api import fail

HOUR = 3600.0


def entered(table: Long, target: Target, *, key: str) -> BoolArray:
    """Return (n,) whether each hour is at or after the moment when the case enters the stage.

    The moment is ``ahead`` hours before the column is first 1, or the rule first holds: the answer that an early
    warning should give. A stage that was entered is never left (happens-before).

    Raises:
        UnfoldError: the column does not exist, or is not 0 or 1.
    """
    holds = _column(table, target.column, key) if target.column is not None else rule(table, target.rule or "", key=key)
    first = first_true(holds, table.starts)
    ends = table.starts[1:]
    never = first >= ends
    moment = np.where(never, np.inf, table.hour[np.minimum(first, len(table) - 1)] - (target.ahead or 0.0) / HOUR)
    result: BoolArray = table.hour >= np.repeat(moment, np.diff(table.starts))
    return result


def truth(table: Long, stages: Sequence[Stage]) -> tuple[BoolArray, IntArray]:
    """Return (n, S) whether each stage was entered, and (n,) the highest stage entered, 0 for none."""
    on = np.column_stack([entered(table, stage.target, key=f"stages[{s}].target") for s, stage in enumerate(stages)])
    highest: IntArray = (on * np.arange(1, len(stages) + 1)).max(axis=1)
    return on, highest


def rule(table: Long, name: str, *, key: str) -> BoolArray:
    """Return (n,) whether a rule holds at each hour, on values carried forward."""
    values = {
        column: carried(table.values[:, table.place(column, key=key)], table.hour, table.starts, valid)[0]
        for column, valid in POINTS_OF[name].items()
    }
    found: BoolArray = points(values, name) >= 2
    return found


def points(values: Mapping[str, Float32], name: str) -> IntArray:
    """Return (n,) the points of a rule that the columns given show; a column that is not given shows none.

    Args:
        values: by column (n,) values, NaN where the rule may not read one any more.
        name: of the rule.
    """
    unknown = np.full(len(next(iter(values.values()))), np.nan, dtype=np.float32)
    every = {column: values.get(column, unknown) for column in POINTS_OF[name]}
    with np.errstate(invalid="ignore"):
        return sirs(every) if name == "sirs" else partial_sofa(every)


def sirs(v: Mapping[str, Float32]) -> IntArray:
    """Return (n,) how many SIRS criteria hold (Bone et al. 1992): heart rate, temperature, breathing, white cells."""
    rate = v["HR"] > 90
    temperature = (v["Temp"] > 38) | (v["Temp"] < 36)
    breathing = (v["Resp"] > 20) | (v["PaCO2"] < 32)
    cells = (v["WBC"] > 12) | (v["WBC"] < 4)
    count: IntArray = rate.astype(np.int64) + temperature + breathing + cells
    return count


def partial_sofa(v: Mapping[str, Float32]) -> IntArray:
    """Return (n,) points of SOFA (Vincent et al. 1996) from pressure, creatinine, bilirubin and platelets alone."""
    pressure = (v["MAP"] < 70).astype(np.int64)
    kidney = _points(v["Creatinine"], (1.2, 2.0, 3.5, 5.0))
    liver = _points(v["Bilirubin_total"], (1.2, 2.0, 6.0, 12.0))
    clotting = _points(-v["Platelets"], (-150.0, -100.0, -50.0, -20.0), strict=True)
    total: IntArray = pressure + kidney + liver + clotting
    return total


def _points(value: Float32, bounds: Sequence[float], *, strict: bool = False) -> IntArray:
    passed = [value > bound if strict else value >= bound for bound in bounds]
    total: IntArray = np.sum(passed, axis=0, dtype=np.int64)
    return total


def _column(table: Long, column: str, key: str) -> BoolArray:
    values = table.values[:, table.place(column, key=f"{key}.column")]
    wrong = ~np.isin(values, (0.0, 1.0))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        who = table.ids[int(np.searchsorted(table.starts, row, side="right")) - 1]
        place = f"{who}, hour {table.hour[row]:g}"
        raise fail(f'{table.name}: "{column}" is {values[row]:g} at {place}; it must be 0 or 1', key=f"{key}.column")
    result: BoolArray = values == 1.0
    return result
