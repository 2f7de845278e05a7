"""Cohorts share no entity, and predictions of the tuning cohort are out of fold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plugins.cascade.tests.runs import run_in
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.temporal.build import build_temporal_problem
from unfold_cascade.temporal.early_warning_metrics import rank_scores
from unfold_cascade.temporal.models.study import fit_study
from unfold_cascade.temporal.search.planner import SearchResult
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse


@pytest.mark.e2e
def test_no_entity_is_in_two_parts(search: SearchResult) -> None:
    """Train, calibrate and test share no entity and together hold every hour."""
    study = search.study
    cohorts = (study.train, study.calibrate, study.test)
    assert sum(cohort.entities for cohort in cohorts) == 160
    assert sum(len(cohort.highest) for cohort in cohorts) == 5886
    first_scores = [
        tuple(np.round(cohort.scores.p[:, start], 7)) for cohort in cohorts for start in cohort.timeline.starts[:-1]
    ]
    assert len(set(first_scores)) == len(first_scores)


def test_tuning_predictions_are_out_of_fold(tmp_path: Path) -> None:
    """A label that only the patient's number explains is not predicted on the tuning cohort; a leak would give 1."""
    rng = np.random.default_rng(0)
    rows = ["patient,hour,id,ill"]
    for patient in range(200):
        ill = int(rng.random() < 0.5)
        rows += [f"p{patient:03d},{hour},{patient},{int(ill and hour >= 3)}" for hour in range(8)]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    text = """
version: 1
kind: cascade
name: leak
data: {source: long, path: t.csv, entity: patient, time: hour}
features: {all: {columns: [id]}}
stages:
  - {name: ill, target: {column: ill}, models: [{name: tree, estimator: decision-tree}]}
baseline: {estimator: decision-tree}
gates: {folds: 4}
goal: {max_loss: 10%}
"""
    spec = validate(CascadeSpec, parse(text, "leak.yaml"))
    run = run_in(tmp_path / "run", base=tmp_path)
    cohort = fit_study(build_temporal_problem(spec, run), run).train
    assert rank_scores(cohort.scores.p[0].astype(np.float64), cohort.label).auroc() < 0.65
