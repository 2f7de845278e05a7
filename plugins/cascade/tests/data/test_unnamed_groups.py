"""Rows in close groups that no column names are found, and independent rows are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support import call
from unfold_cascade._types import FloatArray
from unfold_cascade.data.unnamed_groups import has_unnamed_groups, measure_excess


def make_visits(seed: int, size: int | None, columns: int, shared: float) -> FloatArray:
    """Make rows of patients in random order, which share a part of their variance; of random sizes if ``None``."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 8, 150) if size is None else np.full(600 // size, size)
    patients = np.repeat(rng.normal(size=(len(sizes), columns)), sizes, axis=0)
    rows = np.sqrt(shared) * patients + np.sqrt(1.0 - shared) * rng.normal(size=patients.shape)
    return np.exp(rows[rng.permutation(len(rows))])


@pytest.mark.parametrize("size", [2, 5, None])
@pytest.mark.parametrize(("columns", "shared"), [(8, 0.97), (15, 0.9), (30, 0.8)])
def test_visits_of_patients_are_found(size: int | None, columns: int, shared: float) -> None:
    """Their order and their number do not matter, nor do the scales and tails of the columns."""
    assert all(has_unnamed_groups(make_visits(seed, size, columns, shared)) for seed in range(5))


@pytest.mark.parametrize("kind", ["normal", "tails", "zeros", "rounded", "correlated", "classes", "missing", "sorted"])
def test_independent_rows_are_not_groups(kind: str) -> None:
    """Tails, zeros, rounding, correlation, classes, missing values and order are no groups."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rows, columns = int(rng.choice([200, 400, 1500])), int(rng.choice([4, 8, 20]))
        normal, latent = rng.normal(size=(rows, columns)), rng.normal(size=(rows, 2))
        table = {
            "normal": normal,
            "tails": rng.standard_cauchy((rows, columns)),
            "zeros": np.where(rng.random((rows, columns)) < 0.6, 0.0, np.exp(normal)),
            "rounded": np.round(normal * 100.0, 1),
            "correlated": latent @ rng.normal(size=(2, columns)) + 0.1 * normal,
            "classes": rng.normal(size=(3, columns))[rng.integers(0, 3, rows)] * 3.0 + normal,
            "missing": np.where(rng.random((rows, columns)) < 0.04, np.nan, normal),
            "sorted": normal[np.argsort(normal[:, 0])],
        }[kind]
        assert not has_unnamed_groups(table)


def test_the_measure_does_not_depend_on_units() -> None:
    """A column counts by its ranks, so mmol/l and mg/dl give one measure."""
    rows = make_visits(1, 3, 8, 0.9)
    assert measure_excess(rows * 18.0 + 7.0) == pytest.approx(measure_excess(rows))


def test_a_plan_warns_of_groups_that_no_column_names(tmp_path: Path) -> None:
    """With a random split the model knows the patients of the test part; a column of patients mends it."""
    rows = make_visits(3, 6, 12, 0.95)
    labels = np.random.default_rng(0).permutation(np.arange(len(rows)) % 2)
    head = ",".join([*(f"x{number}" for number in range(12)), "label"])
    lines = [",".join([*map(str, row), str(label)]) for row, label in zip(rows, labels, strict=True)]
    (tmp_path / "visits.csv").write_text("\n".join([head, *lines]))
    (tmp_path / "visits.yaml").write_text(
        "version: 1\nkind: cascade\nname: visits\ndata: {source: table, path: visits.csv}\n"
        "stages:\n  - name: label\n    target: {column: label}\n    models:\n"
        "      - {name: small, estimator: logistic-regression}\n"
        "baseline: {candidates: [{estimator: logistic-regression}]}\ngoal: {max_loss: 5%}\n"
    )
    spec = tmp_path / "visits.yaml"
    assert "lie in close groups" in call(["check", spec, "--data"]).err
    for setting in ("data.duplicates=keep", "data.group=label"):
        assert "lie in close groups" not in call(["check", spec, "--data", "--set", setting]).err
