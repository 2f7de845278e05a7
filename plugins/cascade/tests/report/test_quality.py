"""Goals and prices at their ends: nothing to pay, a budget that buys the best single model, a price of the baseline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plugins.cascade.tests.runs import run_in, spec_of
from unfold_cascade.report.sentences import short_saving
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.verbs import plan
from unfoldkit.api import UnfoldError, divide_costs
from unfoldkit.render.text import render
from unfoldkit.report import Report, Verdict

SPEC = """
version: 1
kind: cascade
name: own
data: {source: table, path: own.csv}
features: {cheap: {columns: [a], price: 1}, dear: {columns: [b], price: 6}}
stages:
  - name: only
    target: {column: y}
    models: [{name: m, estimator: logistic-regression, features: [cheap]}, {name: whole, estimator: baseline}]
baseline: {candidates: [{estimator: logistic-regression}]}
cost: {by: price}
gates: {folds: 2}
goal: {max_loss: 20%}
"""
ONE_STUMP = "stages[0].models=[{name: stump, estimator: decision-tree, params: {max_depth: 1}}]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("own")
    a, b = np.random.default_rng(2).normal(size=(2, 600)).round(3)
    rows = [f"{p},{q},{int(p + q > 0)}" for p, q in zip(a, b, strict=True)]
    (made / "own.csv").write_text("\n".join(["a,b,y", *rows]) + "\n")
    (made / "own.yaml").write_text(SPEC)
    return made


def planned(folder: Path, into: Path, *settings: str) -> Report:
    return plan(_spec(folder, *settings), run_in(into, base=folder))


def _spec(folder: Path, *settings: str) -> CascadeSpec:
    return spec_of(folder / "own.yaml", *settings)


def test_a_cascade_that_costs_nothing_is_free(folder: Path, tmp_path: Path) -> None:
    """Where the chosen cascade is free the report notes it, and the saving, which is undefined, is null."""
    report = planned(folder, tmp_path, "features.cheap.price=0", "goal={budget: 0.5 per case}", "gates.max_models=1")
    assert report.headline.startswith("free instead of $6 per case, loss ")
    assert report.metrics["saving"].value is None
    assert "free" in render(report)
    assert (divide_costs(6, 2), divide_costs(0, 0), short_saving(divide_costs(6, 0))) == (3, 1, "free")


def test_within_a_budget_the_baseline_is_preferred_if_better(folder: Path, tmp_path: Path) -> None:
    """If the best single model is within the budget, a less accurate cascade is refused with the reason."""
    report = planned(folder, tmp_path / "a", ONE_STUMP, "goal={budget: 10 per case}")
    assert report.verdict is Verdict.NO
    assert "is within the budget and more accurate" in report.headline
    assert report.metrics["cascade_accuracy"].value == report.metrics["baseline_accuracy"].value
    assert planned(folder, tmp_path / "b", "goal={budget: 3 per case}").verdict is Verdict.YES


def test_a_total_loss_is_not_a_goal(folder: Path) -> None:
    """A loss of 100 % or more is refused at its key with a hint."""
    with pytest.raises(UnfoldError) as error:
        _spec(folder, "goal.max_loss=100%")
    (diagnostic,) = error.value.diagnostics
    assert (diagnostic.key, diagnostic.hint) == ("goal.max_loss", "max_loss: 1%")
    assert _spec(folder, "goal.max_loss=99%").goal.max_loss == pytest.approx(0.99)


@pytest.mark.parametrize("key", ["baseline.candidates[0].price", "stages[0].models[1].price"])
def test_the_baseline_can_have_a_call_price(folder: Path, tmp_path: Path, key: str) -> None:
    """A price of the baseline is paid by the reference and by the cases that reach it, wherever it is written."""
    report = planned(folder, tmp_path, f"{key}=10")
    assert report.metrics["baseline_cost"].value == pytest.approx(17)
    route = next(table for table in report.tables if table.name == "route")
    assert [row[2] for row in route.rows] == ["m", "whole"]
    expected = 1 + 16 * float(route.rows[1][3]) / 100  # type: ignore[arg-type]
    assert report.metrics["cascade_cost"].value == pytest.approx(expected)
    # the call and the features that it reads
    assert route.rows[1][6] == 16


def test_contradictory_baseline_prices_are_errors(folder: Path) -> None:
    """Two prices for one call are a mistake, reported at the second."""
    with pytest.raises(UnfoldError) as error:
        _spec(folder, "baseline.candidates[0].price=10", "stages[0].models[1].price=9")
    assert [diagnostic.key for diagnostic in error.value.diagnostics] == ["stages[0].models[1].price"]
