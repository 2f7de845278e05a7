"""A group of one label: healthy, or else which disease."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from plugins.cascade.tests.runs import load_served, run_in, spec_of
from unfold_cascade.build import build_table_source
from unfold_cascade.drift.static import check_new_cases
from unfold_cascade.models.onnx_runtime import load_probe
from unfold_cascade.planner.policy import follow
from unfold_cascade.planner.score_tables import SINGLE_LABEL
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.serving.service import build_cascade, build_counter
from unfold_cascade.verbs import train
from unfoldkit.api import Run, dump, fingerprint
from unfoldkit.report import Report, Verdict
from unfoldkit.serving.model import Batch, Call

SPEC = """
version: 1
kind: cascade
name: ill
data: {source: table, path: ill.csv}
stages:
  - name: ill
    target: {groups: {well: [healthy], sick: [flu, cold]}}
    models: [{name: a, estimator: logistic-regression}, {name: whole, estimator: baseline}]
  - name: disease
    target: {column: y}
    models: [{name: a, estimator: logistic-regression}, {name: whole, estimator: baseline}]
baseline: {candidates: [{estimator: extra-trees, params: {n_estimators: 20}}]}
gates: {folds: 2}
goal: {max_loss: 25%}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[CascadeSpec, Run, Report]:
    folder = tmp_path_factory.mktemp("ill")
    rng = np.random.default_rng(3)
    x = rng.normal(size=(900, 2)).round(3)
    label = np.where(x[:, 0] < 0.4, "healthy", np.where(x[:, 1] + rng.normal(0, 0.3, 900) < 0, "flu", "cold"))
    rows = [f"{a},{b},{y}" for (a, b), y in zip(x, label, strict=True)]
    (folder / "ill.csv").write_text("\n".join(["a,b,y", *rows]) + "\n")
    (folder / "ill.yaml").write_text(SPEC)
    spec, run = spec_of(folder / "ill.yaml"), run_in(folder / "run", base=folder)
    report = train(spec, run)
    plan = {"spec_sha256": fingerprint(dump(spec)), "seed": run.seed, "decision": report.decision, "spec": dump(spec)}
    return spec, replace(run, options={"plan": plan, "baseline_plan": plan}), report


def test_a_single_label_group_needs_no_second_stage(trained: Any) -> None:
    """A row sent to a group of one label has that label, at no cost, and no model is fitted for it."""
    _, run, report = trained
    assert report.verdict is Verdict.YES
    assert report.metrics["cascade_accuracy"].value > 0.8
    route = next(table for table in report.tables if table.name == "route")
    (row,) = [row for row in route.rows if row[1] == "well"]
    assert row[2:] == (SINGLE_LABEL, pytest.approx(row[3]), 100, None, 0)
    assert not [name for name in run.directory.files() if "/well/" in name]


def test_single_label_groups_are_served_as_planned(trained: Any) -> None:
    """The server answers such a group with its label and the confidence of the first stage, and runs no model."""
    spec, run, _ = trained
    loaded, registry = load_served(spec, run), CollectorRegistry()
    model, _ = build_cascade(loaded, run, build_counter(loaded, registry))
    probe = load_probe(loaded.problem.data, loaded.problem.dataset, run.directory)
    found, expected = model.follow(probe.x), follow(loaded.tables, loaded.policy, probe.rows)
    assert found.answer == expected.answer.tolist()
    healthy = [row for row, answer in enumerate(found.answer) if loaded.problem.dataset.names[answer] == "healthy"]
    assert {model.paths.stages[found.path[row]][-1] for row in healthy} == {""}
    for row in healthy:
        steps = model.paths.length[found.path[row]]
        assert found.confidence[row] == found.score[row][steps - 1]
        assert not any(found.score[row][steps:])
    model.predict(Batch({"x": probe.x}, (Call(len(probe.x)),)))
    stages = {s.labels["stage"] for m in registry.collect() for s in m.samples if "asked" in s.name}
    assert stages == {"ill", "disease/sick"}


def test_single_label_groups_have_no_model_in_handoff_and_check(trained: Any) -> None:
    """The file for other kinds names no model of such a group, and cases like those of the plan pass its check."""
    spec, run, _ = trained
    exits = json.loads(run.directory.read("exits.json"))
    assert {(model["stage"], model["group"]) for model in exits["models"]} <= {("ill", "all"), ("disease", "sick")}
    assert not [name for name in exits["unasked"] if "well" in name]
    assert check_new_cases(load_served(spec, run), build_table_source(spec, run), run).verdict is Verdict.YES


def test_all_groups_may_have_one_label(trained: Any, tmp_path: Path) -> None:
    """Where every group has one label the first stage answers alone."""
    folder = trained[1].base
    every = "stages[0].target={groups: {well: [healthy], f: [flu], c: [cold]}}"
    report = train(spec_of(folder / "ill.yaml", every), run_in(tmp_path, base=folder))
    assert {step["models"][0] for step in report.decision["cascade"][1:]} == {SINGLE_LABEL}  # type: ignore[index]
