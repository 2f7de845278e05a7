"""Laws of what stands beside a cascade over time: other monoliths, learning the utility, intervals of alerts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plugins.cascade.tests.runs import CONFIGS, run_in, spec_of
from unfold_cascade.learners import estimators
from unfold_cascade.learners.estimators import Recipe
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.temporal.data import warning_metrics
from unfold_cascade.temporal.data.features import layout
from unfold_cascade.temporal.models.study import stored
from unfold_cascade.temporal.models.training import slots
from unfold_cascade.temporal.report import tell
from unfold_cascade.temporal.search.planner import decide
from unfold_cascade.verbs import train
from unfoldkit.api import Report, Run

WARDS = CONFIGS / "wards.yaml"
RIVAL = "{name: small, estimator: xgboost, features: [bedside], params: {n_estimators: 9, max_depth: 2}}"
BASE = f"baseline={{estimator: xgboost, params: {{n_estimators: 80, max_depth: 4}}, rivals: [{RIVAL}]}}"


def trained(folder: Path, *settings: str) -> tuple[CascadeSpec, Run, Report]:
    spec, run = spec_of(WARDS, *settings), run_in(folder)
    return spec, run, train(spec, run)


def test_a_rival_is_judged_and_changes_nothing(tmp_path: Path) -> None:
    """With another monolith laid beside it the decision is the same to the bit, and its figures stand in the report."""
    _, _, alone = trained(tmp_path / "alone")
    spec, run, beside = trained(tmp_path / "beside", BASE)
    assert beside.decision == alone.decision
    # measured times, and with them latency_saving, differ between runs
    same = [name for name in alone.metrics if name != "latency_saving"]
    assert {name: beside.metrics[name].value for name in same} == {name: alone.metrics[name].value for name in same}
    found = decide(spec, run)
    (rival,) = found.others
    assert beside.metrics["small_loss_points"].value == pytest.approx(
        100 * (found.cascade.found.loss - rival.found.loss)
    )
    assert [slot.model for slot in stored(spec, run).places][-2:] == ["small", "monolith"]
    rows = {row[0]: row for table in tell(found, run, "plan").tables for row in table.rows}
    assert "monolith, latched: small" in rows


def test_learning_the_utility_weighs_rows_by_what_a_warning_is_worth(tmp_path: Path) -> None:
    """Labels are where a warning pays, weights by how much; hours where it makes no difference are left out."""
    spec, run, _ = trained(tmp_path, "stages[1].learn=utility")
    held = stored(spec, run)
    worth = warning_metrics.utility(held.hours.facts.since[:, -1])
    gain = worth.yes - worth.no
    for slot in slots(spec, run, held.hours.facts, layout(spec.features)):
        if slot.stage == "sepsis":
            assert slot.weight is not None
            assert np.array_equal(slot.own, gain != 0)
            assert np.array_equal(slot.y == 1, gain > 0)
            assert np.array_equal(slot.weight, np.abs(gain))
        else:
            assert slot.weight is None


@pytest.mark.parametrize("estimator", ["decision-tree", "xgboost", "logistic-regression"])
def test_a_weight_counts_a_row_so_often(estimator: str) -> None:
    """A row of weight 2 is worth two rows of weight 1, behind a scaling too."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(300, 2)).astype(np.float32)
    y = (x[:, 0] + rng.normal(size=300) > 0).astype(np.int64)
    twice = np.where(np.arange(300) < 100, 2.0, 1.0)
    recipe = Recipe(estimator, {"max_depth": 2} if "log" not in estimator else {}, scale=False)
    one = estimators.fit_estimator(recipe, x, y, 0, twice)
    more = estimators.fit_estimator(recipe, np.concatenate([x, x[:100]]), np.concatenate([y, y[:100]]), 0)
    np.testing.assert_allclose(
        estimators.predict_probabilities(one, x, 2), estimators.predict_probabilities(more, x, 2), atol=0.02
    )


def test_the_interval_of_alerts_holds_the_rate_and_narrows_with_patients(tmp_path: Path) -> None:
    """Each policy's alerts lie within their interval, and lead times are all at one rate."""
    spec, run, report = trained(tmp_path)
    found = decide(spec, run)
    for judged in (found.cascade, found.latched, found.single, found.one_stage):
        low, high = judged.warns.alerts_interval
        assert low <= judged.found.alerts <= high
        assert judged.warns.hours.shape == found.latched.warns.hours.shape
    for name in ("alerts_per_100h", "alerts_per_100h_baseline"):
        ends = [report.metrics[f"{name}_{end}"].value for end in ("low", "high")]
        assert ends[0] is not None
        assert ends[1] is not None
        assert ends[0] <= (report.metrics[name].value or 0.0) <= ends[1]
