"""Splits keep entities and their groups whole; a split that leaves too little to learn from names why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plugins.cascade.tests.runs import CONFIGS, run_in, spec_of
from unfold_cascade.temporal.build import build_temporal_problem
from unfold_cascade.temporal.data.labels import label_table
from unfold_cascade.temporal.data.readers import read_table
from unfold_cascade.temporal.data.splits import assign_folds, split_entities
from unfold_cascade.temporal.data.table import index_entities
from unfold_cascade.verbs import plan
from unfoldkit.api import UnfoldError


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


@pytest.mark.parametrize("key", ["patient", "subject_id"])
def test_a_split_file_may_name_entities_or_their_groups(tmp_path: Path, key: str) -> None:
    """Parts are given by stay or by patient, whichever column the file has."""
    head, *rows = (CONFIGS / "wards.csv").read_text().splitlines()
    text = "".join(f"{row},s{int(row[1 : row.index(',')]) // 4}\n" for row in rows)
    (tmp_path / "wards.csv").write_text(f"{head},subject_id\n{text}")
    names = [f"w{k:03}" for k in range(160)] if key == "patient" else [f"s{k}" for k in range(40)]
    words = np.repeat(["train", "calibrate", "test"], np.array([2, 1, 1]) * len(names) // 4)
    parts = "".join(f"{name},{word}\n" for name, word in zip(names, words, strict=True))
    (tmp_path / "split.csv").write_text(f"{key},part\n{parts}")
    settings = ("data.group=subject_id", f"data.split={{file: {tmp_path / 'split.csv'}}}")
    run = run_in(tmp_path / "run", base=tmp_path)
    problem = build_temporal_problem(spec_of(CONFIGS / "wards.yaml", *settings), run)
    hours = label_table(problem, read_table(problem.source, run))
    assert hours.part is not None
    assert hours.part.tolist() == np.repeat([0, 1, 2], [80, 40, 40]).tolist()
