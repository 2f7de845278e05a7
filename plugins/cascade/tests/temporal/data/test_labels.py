"""What labelled hours record about a table besides its labels."""

from __future__ import annotations

import csv
from pathlib import Path

from plugins.cascade.tests.runs import CONFIGS, run_in, spec_of
from unfold_cascade.temporal.build import build_temporal_problem
from unfold_cascade.temporal.data.labels import LabelledHours, label_table
from unfold_cascade.temporal.data.readers import read_table


def label_wards(folder: Path, *, is_marked: bool) -> LabelledHours:
    """Label the shipped wards with a column for cultures, done in hours of sepsis or in any hours."""
    with (CONFIGS / "wards.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    for number, row in enumerate(rows):
        is_done = number % 5 < 3 and row["Sepsis"] == "1" if is_marked else number % 50 < 3
        row["culture"] = str(number % 7) if is_done else ""
    with (folder / "wards.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    columns = '["Age", "HR", "Temp", "Resp", "culture"]'
    spec = spec_of(CONFIGS / "wards.yaml", f"data.path={folder / 'wards.csv'}", f"features.bedside.columns={columns}")
    run = run_in(folder)
    problem = build_temporal_problem(spec, run)
    return label_table(problem, read_table(problem.source, run))


def test_a_column_that_follows_from_a_stage_is_named(tmp_path: Path) -> None:
    """Cultures that are done in hours of sepsis only mark the last stage, and those of any hour mark none."""
    (mark,) = label_wards(tmp_path, is_marked=True).marks
    assert (mark.column, mark.state, mark.label) == ("culture", "filled", 2)
    assert label_wards(tmp_path, is_marked=False).marks == ()
