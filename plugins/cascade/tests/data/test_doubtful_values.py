"""Codes for missing values, two units in one column and row numbers are noticed; usual measurements are not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from unfold_cascade._types import FloatArray
from unfold_cascade.data.doubtful_values import Doubt, find_doubts
from unfold_cascade.report.sentences import doubtful_values

COLUMNS: dict[str, Callable[[np.random.Generator], FloatArray]] = {
    "temperature": lambda rng: rng.normal(37, 0.8, 2000).round(1),
    "rate": lambda rng: rng.normal(85, 15, 2000).round(),
    "skewed": lambda rng: rng.lognormal(3, 1.2, 2000).round(1),
    "standard": lambda rng: rng.normal(0, 1, 2000),
}


@pytest.mark.parametrize("code", [-1, -9, -99, -999, 9999])
@pytest.mark.parametrize("name", ["temperature", "rate", "skewed"])
def test_codes_of_missing_values_are_found(name: str, code: float) -> None:
    """A number that repeats far from all measurements is one of the usual codes."""
    values = COLUMNS[name](np.random.default_rng(0))
    values[::10] = code
    values[5::50] = np.nan
    (doubt,) = find_doubts({name: values})
    assert (doubt.column, doubt.code) == (name, code)
    assert f'"{name}" is {code:g} in 10' in doubtful_values([doubt])[0]


@pytest.mark.parametrize("name", COLUMNS)
def test_measurements_are_no_codes(name: str) -> None:
    """Single errors, values among others, and categories such as -1, 0 and 1 are left alone."""
    values = COLUMNS[name](np.random.default_rng(1))
    values[7] = 9999
    usual = {name: values, "age": np.arange(2000) % 100.0, "sign": np.arange(2000) % 3 - 1.0, "none": values * np.nan}
    assert find_doubts(usual) == ()


def test_temperatures_in_two_units_are_found() -> None:
    """Not where the column holds one of them, or other numbers in the same ranges."""
    celsius = COLUMNS["temperature"](np.random.default_rng(2))
    fahrenheit = (1.8 * celsius + 32).round(1)
    mixed = np.where(np.arange(2000) % 4, celsius, fahrenheit)
    assert find_doubts({"t": mixed}) == (Doubt("t", None, pytest.approx(0.25)),)
    assert "°C and °F (25%)" in doubtful_values(find_doubts({"t": mixed}))[0]
    other = np.where(np.arange(2000) % 2, celsius, celsius + 55)
    assert find_doubts({"c": celsius, "f": fahrenheit, "other": other}) == ()


@pytest.mark.parametrize(
    ("units", "median", "sigma", "ratio", "digits"),
    [
        ("mmol/L and mg/dL of glucose", 6.6, 0.3, 18.016, 1),
        ("mg/dL and µmol/L of creatinine", 1.0, 0.4, 88.42, 2),
        ("kPa and mmHg", 5.3, 0.12, 7.5006, 1),
        ("kg and lb", 78.0, 0.15, 2.2046, 1),
        ("fractions and percentages", 0.5, 0.3, 100.0, 2),
    ],
)
def test_two_units_of_one_quantity_are_found(
    units: str, median: float, sigma: float, ratio: float, digits: int
) -> None:
    """Two laboratories, one of which reports in the other unit; not where both report in one."""
    values = np.random.default_rng(3).lognormal(np.log(median), sigma, 3000)
    first, second = values.round(digits), (ratio * values).round(digits)
    (doubt,) = find_doubts({"x": np.where(np.arange(3000) % 4, first, second)})
    assert (doubt.units, doubt.share) == (units, pytest.approx(0.25, abs=0.01))
    assert f'"x" seems to hold {units} (25%)' in doubtful_values([doubt])[0]
    assert find_doubts({"first": first, "second": second}) == ()


def test_two_groups_of_other_shapes_or_distances_are_no_units() -> None:
    """Children and adults, or a wide and a narrow group, differ by more than a ratio of units."""
    rng = np.random.default_rng(4)
    narrow, wide, is_first = rng.normal(100, 5, 2000), rng.lognormal(np.log(10), 0.3, 2000), np.arange(2000) % 2 == 0
    groups = {"shape": np.where(is_first, narrow, wide), "distance": np.where(is_first, narrow, narrow / 5.5)}
    assert find_doubts(groups) == ()


def test_row_numbers_are_found() -> None:
    """A column that a table of pandas has without a name; numbers that repeat or fall, and fractions, are none."""
    rows = np.arange(300.0)
    (doubt,) = find_doubts({"Unnamed: 0": rows, "hour": rows // 2, "left": 300 - rows, "level": rows + 0.5})
    assert (doubt.column, doubt.is_counter) == ("Unnamed: 0", True)
    assert "as a row number" in doubtful_values([doubt])[0]
