"""Splits keep entities whole, and predictions of the tuning cohort are out of fold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plugins.cascade.tests.runs import CONFIGS, run_in, spec_of
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.temporal.build import build_temporal_problem
from unfold_cascade.temporal.data.labels import label_table
from unfold_cascade.temporal.data.readers import read_table
from unfold_cascade.temporal.data.table import index_entities
from unfold_cascade.temporal.models.study import assign_folds, fit_study, split_entities
from unfold_cascade.temporal.search.planner import SearchResult
from unfold_cascade.temporal.warning_metrics import rank_scores
from unfold_cascade.verbs import plan
from unfoldkit.api import UnfoldError
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


def test_too_few_patients_without_a_site_name_the_site(tmp_path: Path) -> None:
    """Where one site holds nearly all patients, the error says which site the training part lacks."""
    head, *rows = (CONFIGS / "wards.csv").read_text().splitlines()
    sites = ("B" if int(row[1 : row.index(",")]) < 12 else "A" for row in rows)
    text = "".join(f"{row},{site}\n" for row, site in zip(rows, sites, strict=True))
    (tmp_path / "wards.csv").write_text(f"{head},site\n{text}")
    spec = spec_of(CONFIGS / "wards.yaml", "data.split={column: site, test: [A]}")
    run = run_in(tmp_path / "run", base=tmp_path)
    with pytest.raises(UnfoldError, match="cases in the training part, which lacks A, reach sepsis"):
        plan(spec, run)


def test_labels_that_hold_at_every_hour_leave_nothing_to_decide(tmp_path: Path) -> None:
    """Where the label is coded the other way round, each patient is in the last stage from the first hour on."""
    head, *rows = (CONFIGS / "wards.csv").read_text().splitlines()
    text = "".join(f"{row[: row.rindex(',')]},1\n" for row in rows)
    (tmp_path / "wards.csv").write_text(f"{head}\n{text}")
    with pytest.raises(UnfoldError, match="every hour of the training part is in sepsis"):
        plan(spec_of(CONFIGS / "wards.yaml"), run_in(tmp_path / "run", base=tmp_path))


def test_stays_of_one_patient_stay_together(tmp_path: Path) -> None:
    """With ``group``, the stays of a patient share part and fold, and are judged as one; without, a note warns."""
    head, *rows = (CONFIGS / "wards.csv").read_text().splitlines()
    text = "".join(f"{row},s{int(row[1 : row.index(',')]) // 4}\n" for row in rows)
    (tmp_path / "wards.csv").write_text(f"{head},subject_id\n{text}")
    run = run_in(tmp_path / "run", base=tmp_path)
    problem = build_temporal_problem(spec_of(CONFIGS / "wards.yaml", "data.group=subject_id"), run)
    hours = label_table(problem, read_table(problem.source, run))
    assert not hours.repeated
    assert "subject_id" not in hours.columns
    patient = np.arange(160) // 4
    parts = split_entities(problem, hours)
    fold = assign_folds(hours.timeline, parts.train, 2, seed=1)
    part = np.zeros(160, dtype=np.int64)
    part[parts.calibrate], part[parts.test] = 1, 2
    assert all(len(set(part[patient == number])) == 1 for number in range(40))
    assert all(
        len(set(fold[np.isin(index_entities(hours.timeline.starts), np.flatnonzero(patient == n))])) == 1
        for n in range(40)
    )
    some = hours.timeline.select(np.array([0, 1, 4, 9]))
    assert some.cluster.tolist() == [0, 0, 1, 2]
    assert some.sum_by_cluster(np.array([1.0, 2.0, 3.0, 4.0])).tolist() == [3.0, 3.0, 4.0]
    alone = build_temporal_problem(spec_of(CONFIGS / "wards.yaml"), run)
    assert label_table(alone, read_table(alone.source, run)).repeated == "subject_id"
