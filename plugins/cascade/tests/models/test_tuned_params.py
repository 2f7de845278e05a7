"""Laws of parameters from a tuning run: read from its one file, kept with the cascade, refused when changed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plugins.cascade.tests.runs import CONFIGS, TUMOURS, run_in, spec_of
from unfold_cascade.learners import estimators
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.verbs import plan, train
from unfoldkit.api import Run, RunDir, UnfoldError

FOUND = {"learning_rate": 0.3, "max_depth": 2, "n_estimators": 7}


def tuning(folder: Path, **changes: Any) -> RunDir:
    """Leave what a tuning run leaves of its winner."""
    entry = {"schema": "unfoldkit.winner/1", "estimator": "xgboost", "params": FOUND, "finished": True, "iterations": 9}
    directory = RunDir(folder)
    directory.write("winner.json", json.dumps(entry | changes).encode())
    return directory


def tumours(folder: Path, params: str = "{}") -> tuple[CascadeSpec, Run]:
    models = f"{{name: trees, estimator: xgboost, tune: {{from: {folder / 'sha'}}}, params: {params}}}"
    spec = spec_of(TUMOURS, f"stages[0].models=[{models}, {{name: whole, estimator: baseline}}]")
    return spec, run_in(folder / "run")


def trees(run: Run) -> Any:
    file = "models/diagnosis/all/trees.ubj"
    return estimators.from_bytes(run.directory.read(file), ubjson=True, file=file).get_booster()


def test_models_use_tuned_parameters(tmp_path: Path) -> None:
    """Rounds are the winner's, the spec's own values come first, and another winner fits the model again."""
    tuning(tmp_path / "sha")
    spec, run = tumours(tmp_path)
    report = train(spec, run)
    assert trees(run).num_boosted_rounds() == 7
    assert plan(spec, run).decision == report.decision
    tuning(tmp_path / "sha", params={**FOUND, "n_estimators": 3})
    plan(spec, run)
    assert trees(run).num_boosted_rounds() == 3
    plan(*tumours(tmp_path, "{n_estimators: 5}"))
    assert trees(run).num_boosted_rounds() == 5


def test_a_trained_cascade_does_not_need_its_tuning_run(tmp_path: Path) -> None:
    """The winner is kept with the cascade: planned again without the tuning run, it is the same plan."""
    tuning(tmp_path / "sha")
    spec, run = tumours(tmp_path)
    report = train(spec, run)
    shutil.rmtree(tmp_path / "sha")
    assert plan(spec, run).decision == report.decision
    with pytest.raises(UnfoldError, match="no such file or folder"):
        train(spec, replace(run, directory=RunDir(tmp_path / "other")))


@pytest.mark.e2e
def test_confidence_over_time_is_checked_too(tmp_path: Path) -> None:
    """The stages of a cascade over time take what was found as well."""
    tuning(tmp_path / "sha")
    model = f"{{name: chart, estimator: xgboost, tune: {{from: {tmp_path / 'sha'}}}}}"
    ward = "{name: ward, estimator: xgboost, features: [bedside, trends], params: {n_estimators: 8, max_depth: 2}}"
    spec, run = spec_of(CONFIGS / "wards.yaml", f"stages[0].models=[{ward}, {model}]"), run_in(tmp_path / "run")
    train(spec, run)
    file = "models/sirs/chart.ubj"
    model = estimators.from_bytes(run.directory.read(file), ubjson=True, file=file)
    assert model.get_booster().num_boosted_rounds() == 7


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"estimator": "mlp"}, "tuned mlp, not xgboost"), ({"schema": "x/1"}, "not of the schema unfoldkit.winner/1")],
)
def test_unsupported_inputs_are_errors(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    """Another estimator, another schema and an empty run name the key in the spec."""
    tuning(tmp_path / "sha", **changes)
    with pytest.raises(UnfoldError, match=expected) as caught:
        train(*tumours(tmp_path))
    assert "stages[0].models[0].tune.from" in str(caught.value)


def test_a_changed_tuning_winner_is_rejected(tmp_path: Path) -> None:
    """The file is checked against its hash in the manifest; without a winner the hint names the command for it."""
    directory = tuning(tmp_path / "sha")
    file = directory.path / "winner.json"
    file.write_text(file.read_text().replace("0.3", "0.9"))
    with pytest.raises(UnfoldError, match=r"winner\.json"):
        train(*tumours(tmp_path))
    shutil.rmtree(tmp_path / "sha")
    RunDir(tmp_path / "sha").write("report.json", b"{}")
    with pytest.raises(UnfoldError, match="has no tuning winner"):
        train(*tumours(tmp_path))
