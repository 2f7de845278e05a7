"""A plan over time is checked on other hours, and only if nothing but the data changed."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plugins.cascade.tests.runs import CONFIGS, run_in, spec_of
from unfold_cascade.drift.temporal_recalibration import build_local_study
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.temporal.build import build_temporal_problem
from unfold_cascade.temporal.data.readers import read_table
from unfold_cascade.temporal.serving.plan_loader import load_temporal_plan
from unfold_cascade.verbs import plan, train, validate
from unfoldkit.api import Report, Run, UnfoldError, Verdict, dump

Planned = tuple[CascadeSpec, Run, Report]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    """Train the wards, with the plan as the one to check."""
    spec = spec_of(CONFIGS / "wards.yaml")
    run = run_in(tmp_path_factory.mktemp("checked"))
    report = train(spec, run)
    baseline = {"spec": dump(spec), "seed": 0, "decision": report.decision}
    return spec, replace(run, options={"baseline_plan": baseline}), report


def write_wards(file: Path, change: Callable[[dict[str, str]], dict[str, str] | None]) -> Path:
    """Write the shipped wards with each row changed or left out."""
    with (CONFIGS / "wards.csv").open() as stream:
        rows = [row for row in map(change, csv.DictReader(stream)) if row is not None]
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return file


def check_file(planned: Planned, file: Path, **changes: Any) -> Report:
    """Check the plan on another file, with other changes to the spec."""
    spec, run, _ = planned
    data = spec.data.model_copy(update={"path": str(file)})
    return plan(spec.model_copy(update={"data": data, **changes}), run)


def drop_labels_and_odd_patients(row: dict[str, str]) -> dict[str, str] | None:
    return None if int(row["patient"][1:]) % 2 else {key: value for key, value in row.items() if key != "Sepsis"}


def raise_heart_rate(row: dict[str, str]) -> dict[str, str]:
    return row | ({"HR": str(int(row["HR"]) + 8)} if row["HR"] else {})


@pytest.mark.e2e
def test_similar_hours_pass_without_labels(planned: Planned, tmp_path: Path) -> None:
    """Half of the same patients, without labels, pass with the decision of the plan."""
    report = check_file(planned, write_wards(tmp_path / "half.csv", drop_labels_and_odd_patients))
    assert report.verdict is Verdict.YES
    assert "new hours do not differ from those of the plan" in report.headline
    assert report.decision == planned[2].decision


def test_drifted_hours_are_reported_with_their_changes(planned: Planned, tmp_path: Path) -> None:
    """A heart rate raised by 8 is drift, reported with shares before and now and the next command."""
    report = check_file(planned, write_wards(tmp_path / "fast.csv", raise_heart_rate))
    assert report.verdict is Verdict.NO
    assert "the new hours drifted" in report.headline
    shares = [table for table in report.tables if table.name.startswith("shares")]
    assert shares
    for table in shares:
        for column in (1, 2):
            assert sum(float(row[column]) for row in table.rows) == pytest.approx(100)  # type: ignore[arg-type]
    assert "fast.csv" in report.next
    assert check_file(planned, tmp_path / "fast.csv") == report


def test_a_check_on_the_same_data_plans_again(planned: Planned) -> None:
    """Without new data the plan is made again, with the same decision."""
    spec, run, report = planned
    again = plan(spec, run)
    assert again.decision == report.decision
    assert {table.name for table in again.tables} == {table.name for table in report.tables}


def test_a_check_rejects_other_changes_of_the_spec(planned: Planned, tmp_path: Path) -> None:
    """If more than the data changed, the error says so."""
    file = write_wards(tmp_path / "half.csv", drop_labels_and_odd_patients)
    with pytest.raises(UnfoldError, match="changed together"):
        check_file(planned, file, goal=planned[0].goal.model_copy(update={"max_loss": 0.3}))


def test_a_validation_judges_every_outcome_of_the_certificate(tmp_path: Path) -> None:
    """Loss, outcomes and saving of the goal are each judged against their limit; an empty label column is none."""
    outcomes = [{"alerts_per_100h": 60}, {"sensitivity_within": "6 h", "max_loss": "60%"}, {"max_utility_loss": 3}]
    spec = spec_of(CONFIGS / "wards.yaml", f"goal.outcomes={json.dumps(outcomes)}")
    run = run_in(tmp_path)
    report = train(spec, run)
    assert report.verdict is Verdict.YES
    stored = {"spec": dump(spec), "seed": 0, "decision": report.decision}
    judged = validate(spec, replace(run, options={"plan": stored, "data": str(CONFIGS / "wards.csv")}))
    states = {row[0]: row[-1] for row in next(table for table in judged.tables if table.name == "promises").rows}
    names = {"certified alerts of sepsis", "certified sensitivity of sepsis within 6 h", "certified utility"}
    assert names | {"loss", "certified saving"} <= set(states)
    assert "broken" not in states.values()
    file = write_wards(tmp_path / "open.csv", lambda row: row | {"Sepsis": ""})
    unlabelled = validate(spec, replace(run, options={"plan": stored, "data": str(file)}))
    assert "cannot be concluded" in dict(unlabelled.lines)


def test_local_patients_have_their_own_notes(planned: Planned) -> None:
    """A leaked label, or a code for missing values, is looked for in the table that a plan is refitted on."""
    spec, run, report = planned
    file = write_wards(
        run.directory.path / "local.csv",
        lambda row: row | {"Age": "999" if row["hour"] == "3" else row["Age"]},
    )
    problem = build_temporal_problem(spec, run)
    plan_document = {"spec": dump(spec), "seed": 0, "decision": report.decision}
    local = replace(problem, source=replace(problem.source, path=str(file)))
    loaded = load_temporal_plan(problem, run, plan_document)
    hours = replace(loaded.study.hours, leaks=("Age",))
    leaking = replace(loaded, study=replace(loaded.study, hours=hours))
    study = build_local_study(local, leaking, run, read_table(local.source, run))
    assert study.leaks == ()
    assert [(doubt.column, doubt.code) for doubt in study.doubts] == [("Age", 999.0)]


def move_odd_patients(row: dict[str, str]) -> dict[str, str]:
    """Rename every patient, and change the hours of the odd ones."""
    hr = str(int(row["HR"]) + 1 + int(row["hour"]) % 3) if row["HR"] and int(row["patient"][1:]) % 2 else row["HR"]
    return row | {"patient": f"x{row['patient']}", "HR": hr}


def test_patients_of_the_run_neither_keep_its_promises_nor_certify_new_ones(planned: Planned) -> None:
    """Patients that fitted the models are recognized under other names: validation and recalibration leave them out."""
    spec, run, report = planned
    stored = {"spec": dump(spec), "seed": 0, "decision": report.decision}
    file = write_wards(run.directory.path / "moved.csv", move_odd_patients)
    judged = validate(spec, replace(run, options={"plan": stored, "data": str(file)}))
    assert judged.subtitle[0] == "80 new patients"
    assert "80 of 160 patients in moved.csv are those of the run and are left out" in judged.notes[0]
    with pytest.raises(UnfoldError, match="160 of 160 patients"):
        plan(spec, replace(run, options={"plan": stored, "recalibrate": str(CONFIGS / "wards.csv")}))


def test_a_column_in_another_unit_is_named(tmp_path: Path) -> None:
    """If a site measures in °F, validation, check and recalibration name the column."""
    wards = spec_of(CONFIGS / "wards.yaml")
    spec = wards.model_copy(update={"stages": wards.stages[1:]})
    run = run_in(tmp_path)
    stored = {"spec": dump(spec), "seed": 0, "decision": train(spec, run).decision}

    def convert(row: dict[str, str]) -> dict[str, str]:
        hr, temperature = row["HR"], row["Temp"]
        other = str(int(hr) + int(row["hour"]) % 3) if hr else ""
        return row | {"HR": other, "Temp": f"{float(temperature) * 1.8 + 32:.1f}" if temperature else ""}

    file = write_wards(tmp_path / "warm.csv", convert)
    judged = validate(spec, replace(run, options={"plan": stored, "data": str(file)}))
    checked = check_file((spec, replace(run, options={"baseline_plan": stored}), judged), file)
    refitted = plan(spec, replace(run, options={"plan": stored, "recalibrate": str(file)}))
    for report in (judged, checked, refitted):
        assert [note.split('"')[1] for note in report.notes if "°C and °F" in note] == ["Temp"]
