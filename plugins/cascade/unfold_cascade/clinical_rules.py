"""SIRS and partial SOFA: the measurements each rule reads, how long a measurement counts, and the points it gives.

numpy is imported where points are computed: specs are checked without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unfold_cascade._types import Float32, IntArray

# By rule and column: the hours for which the last measurement still counts.
RULE_CARRY_H: Mapping[str, Mapping[str, float]] = {
    "sirs": {"HR": 3, "Temp": 8, "Resp": 3, "PaCO2": 12, "WBC": 24},
    "sofa": {"MAP": 3, "Creatinine": 24, "Bilirubin_total": 24, "Platelets": 24},
}
# By column: the unit in which the rules read it, and the range that values in that unit hardly ever leave. In other
# usual units (degrees Fahrenheit, kPa, µmol/L, cells per µL) most values lie outside.
RULE_UNITS: Mapping[str, tuple[str, float, float]] = {
    "HR": ("beats per minute", 10, 350),
    "Temp": ("°C", 20, 45),
    "Resp": ("breaths per minute", 1, 120),
    "PaCO2": ("mmHg", 10, 250),
    "WBC": ("thousands per µL", 0, 500),
    "MAP": ("mmHg", 16, 300),
    "Creatinine": ("mg/dL", 0, 30),
    "Bilirubin_total": ("mg/dL", 0, 60),
    "Platelets": ("thousands per µL", 0, 3000),
}
# Both rules hold from two points on: SIRS by Bone et al. 1992, SOFA by Sepsis-3 (Singer et al. 2016).
RULE_THRESHOLD = 2


def score_rule(values: Mapping[str, Float32], rule: str) -> IntArray:
    """Score a rule at each hour from the columns that are available; a missing column scores no point.

    Args:
        values: By column, (n,) values; NaN where the rule has no current measurement.
        rule: A key of ``RULE_CARRY_H``.

    Returns:
        (n,) points.
    """
    import numpy as np

    missing = np.full(len(next(iter(values.values()))), np.nan, dtype=np.float32)
    columns = {column: values.get(column, missing) for column in RULE_CARRY_H[rule]}
    with np.errstate(invalid="ignore"):
        return count_sirs_criteria(columns) if rule == "sirs" else score_partial_sofa(columns)


def count_sirs_criteria(values: Mapping[str, Float32]) -> IntArray:
    """Count the SIRS criteria (Bone et al. 1992): heart rate, temperature, respiration, white blood cells; (n,)."""
    rate = values["HR"] > 90
    temperature = (values["Temp"] > 38) | (values["Temp"] < 36)
    respiration = (values["Resp"] > 20) | (values["PaCO2"] < 32)
    white_cells = (values["WBC"] > 12) | (values["WBC"] < 4)
    count: IntArray = rate.astype("int64") + temperature + respiration + white_cells
    return count


def score_partial_sofa(values: Mapping[str, Float32]) -> IntArray:
    """Score SOFA (Vincent et al. 1996) from blood pressure, creatinine, bilirubin and platelets alone; (n,)."""
    pressure = (values["MAP"] < 70).astype("int64")
    kidney = _count_bounds(values["Creatinine"], (1.2, 2.0, 3.5, 5.0))
    liver = _count_bounds(values["Bilirubin_total"], (1.2, 2.0, 6.0, 12.0))
    coagulation = _count_bounds(-values["Platelets"], (-150.0, -100.0, -50.0, -20.0), strict=True)
    total: IntArray = pressure + kidney + liver + coagulation
    return total


def _count_bounds(value: Float32, bounds: Sequence[float], *, strict: bool = False) -> IntArray:
    import numpy as np

    reached = [value > bound if strict else value >= bound for bound in bounds]
    total: IntArray = np.sum(reached, axis=0, dtype=np.int64)
    return total
