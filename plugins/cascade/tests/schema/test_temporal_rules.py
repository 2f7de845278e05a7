"""Keys of time and keys without time are checked against the kind of data."""

from __future__ import annotations

import pytest

from plugins.cascade.tests.runs import CONFIGS
from unfold_cascade.schema.cascade import CascadeSpec
from unfoldkit.api import UnfoldError
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

WARDS = (CONFIGS / "wards.yaml").read_text()
BEDSIDE = "features: [bedside, trends], params: {n_estimators: 15"
MISTAKES = (
    ("{rule: sirs, ahead: 6 h}", "{rule: sirs, column: HR}", "stages[0].target: give either a column or a rule"),
    ("{column: Sepsis}", "{groups: {a: [0], b: [1]}}", "stages[1].target.groups: applies to cases without time only"),
    (BEDSIDE, BEDSIDE.replace("bedside", "bedsite"), 'no such feature group: "bedsite"'),
    ("baseline: {estimator: xgboost,", "baseline: {candidates: [{estimator: svc}],", "the baseline model is missing"),
    ("name: glance", "name: full", 'the name "full" is taken'),
)


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES)
def test_mistakes_over_time_are_reported_at_their_key(old: str, new: str, message: str) -> None:
    """Keys of data without time, missing keys and unknown names are errors at their key."""
    assert old in WARDS
    with pytest.raises(UnfoldError) as caught:
        validate(CascadeSpec, parse(WARDS.replace(old, new), "wards.yaml"))
    assert any(message in str(item) for item in caught.value.diagnostics), caught.value.diagnostics


def test_keys_of_time_are_rejected_without_time() -> None:
    """Without data over time, every key of time is an error."""
    text = (CONFIGS / "digits.yaml").read_text().replace("goal:", "moves: {confirm: 2}\nalerts: {per_100h: 5}\ngoal:")
    text = text.replace("  - name: coarse ", "  - parallel: true\n    fresh: 6 h\n    name: coarse ")
    with pytest.raises(UnfoldError) as caught:
        validate(CascadeSpec, parse(text, "digits.yaml"))
    keys = [item.key for item in caught.value.diagnostics]
    assert keys == ["stages[0].parallel", "stages[0].fresh", "moves", "alerts"]


def test_budgets_are_per_case_or_per_case_hour() -> None:
    """Both forms of a budget are read."""
    for text in ("3.0 per case", "3.0 per case-hour"):
        spec = validate(CascadeSpec, parse(WARDS.replace("max_loss: 20%", f"budget: {text}"), "w.yaml"))
        assert spec.goal.budget == 3.0
