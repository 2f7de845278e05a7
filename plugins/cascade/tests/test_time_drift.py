"""Laws of drift: new hours are held against those of the plan, by entity, without a label."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from plugins.cascade.tests.runs import CONFIGS, run_in, spec_of
from unfold_cascade.drift.statistics import Counts, changes, compare_clusters
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.schema.temporal import Drift
from unfold_cascade.verbs import plan, train
from unfoldkit.api import Report, Run, UnfoldError, Verdict, dump

LEVEL = 0.05


def hospital(rng: np.random.Generator, entities: int, share: float) -> Any:
    """Return (P, 2) counts of hours that are alike within an entity, of many lengths."""
    hours = rng.integers(1, 60, entities)
    own = rng.beta(20 * share, 20 * (1 - share), entities)
    yes = rng.binomial(hours, own)
    return np.column_stack([hours - yes, yes]).astype(np.float64)


def test_hours_that_did_not_change_are_refused_at_most_at_the_level() -> None:
    """Over 400 pairs drawn from one population, p <= 5 % in no more than chance allows, though hours are alike."""
    found = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        found.append(compare_clusters(hospital(rng, 60, 0.3), hospital(rng, 40, 0.3), rng, LEVEL)[1] <= LEVEL)
    assert sum(found) <= binom.ppf(0.9999, 400, LEVEL)
    assert sum(found) > 0


def test_hours_that_changed_are_found() -> None:
    """A share that moves from 30 to 40 % is found in most of 40 pairs; pooled hours would find it too often."""
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        found.append(compare_clusters(hospital(rng, 150, 0.3), hospital(rng, 150, 0.4), rng, LEVEL)[1] <= LEVEL)
    assert sum(found) >= 36


def test_a_change_within_the_margin_is_no_drift() -> None:
    """However sure it is, a change that is not above the margin does not count; above it, it does."""
    rng = np.random.default_rng(0)
    tables = [Counts("exits", ("a", "b"), hospital(rng, 4000, share)) for share in (0.3, 0.35)]
    for margin, drifted in (("2%", True), ("20%", False)):
        change = changes(tables[:1], tables[1:], Drift.model_validate({"margin": margin}), 0)[0]
        assert change.p_value <= 0.01
        assert change.drifted is drifted
        assert change.distance == pytest.approx(0.5 * np.abs(change.before - change.now).sum())


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[CascadeSpec, Run, Report]:
    """Return a trained run, with its plan as the one to check."""
    spec = spec_of(CONFIGS / "wards.yaml")
    run = run_in(tmp_path_factory.mktemp("checked"))
    report = train(spec, run)
    baseline = {"spec": dump(spec), "seed": 0, "decision": report.decision}
    return spec, replace(run, options={"baseline_plan": baseline}), report


def written(file: Path, change: Callable[[dict[str, str]], dict[str, str] | None]) -> Path:
    """Write the shipped wards, each row changed, or left out."""
    with (CONFIGS / "wards.csv").open() as stream:
        rows = [row for row in map(change, csv.DictReader(stream)) if row is not None]
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return file


def checked(planned: tuple[CascadeSpec, Run, Report], file: Path, **changes_: Any) -> Report:
    spec, run, _ = planned
    data = spec.data.model_copy(update={"path": str(file)})
    return plan(spec.model_copy(update={"data": data, **changes_}), run)


def unlabelled(row: dict[str, str]) -> dict[str, str] | None:
    return None if int(row["patient"][1:]) % 2 else {key: value for key, value in row.items() if key != "Sepsis"}


def faster(row: dict[str, str]) -> dict[str, str]:
    return row | ({"HR": str(int(row["HR"]) + 8)} if row["HR"] else {})


def test_like_hours_pass_and_need_no_label(planned: tuple[CascadeSpec, Run, Report], tmp_path: Path) -> None:
    """Half of the same patients, without the label, are like those before: yes, with the decision of the plan."""
    report = checked(planned, written(tmp_path / "half.csv", unlabelled))
    assert report.verdict is Verdict.YES
    assert "new hours are like those of the plan" in report.headline
    assert report.decision == planned[2].decision


def test_other_hours_are_told_with_what_changed(planned: tuple[CascadeSpec, Run, Report], tmp_path: Path) -> None:
    """Hearts that beat faster by 8 change exits and audits: no, with shares before and now, and the next command."""
    report = checked(planned, written(tmp_path / "fast.csv", faster))
    assert report.verdict is Verdict.NO
    assert "the new hours drifted" in report.headline
    shares = [table for table in report.tables if table.name.startswith("shares")]
    assert shares
    for table in shares:
        for column in (1, 2):
            assert sum(float(row[column]) for row in table.rows) == pytest.approx(100)  # type: ignore[arg-type]
    assert "fast.csv" in report.next
    assert checked(planned, tmp_path / "fast.csv") == report


def test_a_check_on_the_same_data_plans_again(planned: tuple[CascadeSpec, Run, Report]) -> None:
    """Without other data the plan is made again, and comes out as it was."""
    spec, run, report = planned
    again = plan(spec, run)
    assert again.decision == report.decision
    assert {table.name for table in again.tables} == {table.name for table in report.tables}


def test_other_data_and_other_keys_are_not_checked_at_once(
    planned: tuple[CascadeSpec, Run, Report], tmp_path: Path
) -> None:
    """If more than the data changed there is no one thing to check, and it is said."""
    file = written(tmp_path / "half.csv", unlabelled)
    with pytest.raises(UnfoldError, match="changed together"):
        checked(planned, file, goal=planned[0].goal.model_copy(update={"max_loss": 0.3}))
