"""Columns that a new site holds in another unit are named, and different patients are not taken for other units."""

from __future__ import annotations

import numpy as np
import pytest

from unfold_cascade.data.changed_units import find_changed_units, measure_quartiles


@pytest.mark.parametrize(
    ("column", "median", "sd", "factor", "shift", "units"),
    [
        ("Temp", 37.0, 0.02, 1.8, 32.0, "°C and °F"),
        ("Glucose", 130.0, 0.3, 1 / 18.016, 0.0, "mmol/L and mg/dL of glucose"),
        ("Creatinine", 1.0, 0.4, 88.42, 0.0, "mg/dL and µmol/L of creatinine"),
        ("SpO2", 0.96, 0.02, 100.0, 0.0, "fractions and percentages"),
    ],
)
def test_another_unit_is_recognized(
    column: str, median: float, sd: float, factor: float, shift: float, units: str
) -> None:
    """Other patients, a tenth sicker, and another unit: the report names column, medians and units."""
    generator = np.random.default_rng(0)
    before, now = (median * np.exp(generator.normal(0, sd, 500)) for _ in range(2))
    quartiles = [measure_quartiles({column: values}) for values in (before, now * (1 + sd / 4) * factor + shift)]
    (found,) = find_changed_units(*quartiles)
    assert (found.column, found.units) == (column, units)
    (reverse,) = find_changed_units(*reversed(quartiles))
    assert reverse.units == units


def test_sicker_patients_are_not_another_unit() -> None:
    """A lactate that doubles, a heart rate that rises by a fifth and a column of few values are no other unit."""
    generator = np.random.default_rng(1)
    lactate, rate = np.exp(generator.normal(0.4, 0.4, 500)), generator.normal(80.0, 12.0, 500)
    before = measure_quartiles({"Lactate": lactate, "HR": rate, "rare": lactate[:5], "flag": (rate > 80).astype(float)})
    now = measure_quartiles({"Lactate": 2.2 * lactate, "HR": 1.2 * rate, "rare": 9 * lactate[:5], "flag": rate * 0})
    assert not list(find_changed_units(before, now))
