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
    """Values among others, and categories such as -1, 0 and 1 are left alone."""
    values = COLUMNS[name](np.random.default_rng(1))
    usual = {name: values, "age": np.arange(2000) % 100.0, "sign": np.arange(2000) % 3 - 1.0, "none": values * np.nan}
    assert find_doubts(usual) == ()


def test_temperatures_in_two_units_are_found() -> None:
    """Not where the column holds one of them, or other numbers in the same ranges."""
    celsius = COLUMNS["temperature"](np.random.default_rng(2))
    fahrenheit = (1.8 * celsius + 32).round(1)
    mixed = np.where(np.arange(2000) % 4, celsius, fahrenheit)
    assert find_doubts({"t": mixed}) == (Doubt("t", None, pytest.approx(0.25)),)
    assert "°C and °F (25 %)" in doubtful_values(find_doubts({"t": mixed}))[0]
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
    assert f'"x" seems to hold {units} (25 %)' in doubtful_values([doubt])[0]
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


ERRORS = [
    ("rate", 900.0),
    ("temperature", 3.7),
    ("temperature", 370.0),
    ("temperature", 9999.0),
    ("standard", 300.0),
    ("skewed", 1e6),
]


@pytest.mark.parametrize(("name", "error"), ERRORS)
def test_single_values_far_from_all_others_are_found(name: str, error: float) -> None:
    """One heart rate of 900 among 2,000; a code in the same table is named first."""
    values = COLUMNS[name](np.random.default_rng(5))
    values[[7, 70]] = error
    coded = COLUMNS["rate"](np.random.default_rng(6))
    coded[::10] = -9
    first, second = find_doubts({name: values, "coded": coded})
    assert (first.column, first.code) == ("coded", -9)
    assert second == Doubt(name, error, pytest.approx(0.001), is_isolated=True)
    assert f'"{name}" is far from its other values in 0.1 % of its rows, such as' in doubtful_values([second])[0]


TAILS: dict[str, Callable[[np.random.Generator, int], FloatArray]] = {
    "pareto": lambda rng, n: rng.pareto(1, n),
    "cauchy": lambda rng, n: rng.standard_cauchy(n),
    "student": lambda rng, n: rng.standard_t(2, n),
    "log-normal": lambda rng, n: rng.lognormal(1, 2, n),
    "gamma": lambda rng, n: rng.gamma(0.2, 3, n).round(3),
    "counts": lambda rng, n: rng.poisson(3, n).astype(float),
    "stay": lambda rng, n: rng.lognormal(1, 1, n).round(),
    "many zeros": lambda rng, n: np.where(rng.random(n) < 0.6, 0.0, rng.lognormal(2, 1, n)).round(1),
    "saturation": lambda rng, n: np.minimum(100.0, rng.normal(97, 2, n).round()),
}


@pytest.mark.parametrize("name", TAILS)
def test_heavy_tails_hold_no_errors(name: str) -> None:
    """Of 300 columns of each family, in three sizes, at most one in a hundred has a note."""
    columns = {
        f"{n} {seed}": TAILS[name](np.random.default_rng(seed), n) for n in (60, 200, 1000) for seed in range(100)
    }
    assert len(find_doubts(columns)) <= 3


def test_zeros_of_what_is_never_zero_are_found() -> None:
    """A blood pressure of 0; not where small values are common, nor where many are 0, as of cigarettes."""
    rng = np.random.default_rng(7)
    pressure, lactate = rng.normal(72, 12, 2000).round(), rng.lognormal(0.4, 0.6, 2000).round(1)
    pressure[::30], lactate[::30] = 0.0, 0.0
    cigarettes = np.where(rng.random(2000) < 0.7, 0.0, rng.normal(20, 3, 2000).round())
    (doubt,) = find_doubts({"pressure": pressure, "lactate": lactate, "cigarettes": cigarettes})
    assert (doubt.column, doubt.code, doubt.share) == ("pressure", 0.0, pytest.approx(1 / 30, abs=0.001))


@pytest.mark.parametrize(("rows", "zeros"), [(300, 1), (2000, 4), (20_000, 10)])
def test_a_few_zeros_of_what_is_never_zero_are_found(rows: int, zeros: int) -> None:
    """A heart rate of 0 in under 0.5 % of the rows; not where other values are low, too."""
    rng = np.random.default_rng(8)
    columns = {
        "rate": rng.normal(84, 13, rows).round(),
        "saturation": np.minimum(rng.normal(96, 2, rows), 100.0).round(),
        "stays": rng.poisson(12, rows).astype(np.float64),
        "protein": rng.lognormal(2, 1, rows).round(1),
        "score": rng.integers(2, 40, rows).astype(np.float64),
    }
    for column in columns.values():
        column[rng.choice(rows, zeros, replace=False)] = 0.0
    assert [(doubt.column, doubt.code) for doubt in find_doubts(columns)] == [("rate", 0.0), ("saturation", 0.0)]
