"""Laws of drift without time: new cases are held against those of the plan, fitted or recorded, without a label."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.datasets import load_breast_cancer

from plugins.cascade.tests.runs import CONFIGS, TUMOURS, run_in, spec_of
from unfold_cascade.drift.statistics import compare_cases
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.verbs import plan, train
from unfoldkit.api import Report, Run, UnfoldError, Verdict, dump

LEVEL = 0.05
FOREST = "{name: quick, estimator: random-forest, params: {n_estimators: 8}}"
DRAWN = f"stages[0].models=[{FOREST}, {{name: whole, estimator: baseline}}]"
Planned = tuple[CascadeSpec, Run, Report]
Row = dict[str, str]


def test_unchanged_cases_are_rejected_at_most_at_the_level() -> None:
    """Over 600 pairs drawn from one population, p <= 5 % in no more than chance allows."""
    found = []
    for seed in range(600):
        rng = np.random.default_rng(seed)
        old, new = (rng.multinomial(size, (0.6, 0.3, 0.1)).astype(np.float64) for size in (300, 80))
        found.append(compare_cases(old, new, rng, LEVEL)[1] <= LEVEL)
    assert 0 < sum(found) <= binom.ppf(0.9999, 600, LEVEL)


def test_drifted_cases_are_detected() -> None:
    """A share that moves from 30 to 45 % among 300 cases is found in nearly all of 50 pairs."""
    rng = np.random.default_rng(1)
    pairs = [[rng.multinomial(300, (1 - p, p)).astype(np.float64) for p in (0.3, 0.45)] for _ in range(50)]
    assert sum(compare_cases(old, new, rng, LEVEL)[1] <= LEVEL for old, new in pairs) >= 46


def test_empty_counts_are_no_change() -> None:
    """Tables without a case differ in nothing."""
    assert compare_cases(np.zeros(3), np.zeros(3), np.random.default_rng(0), LEVEL) == (0.0, 1.0)


def _table(file: Path, rows: Sequence[Row]) -> Path:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return file


def _tumours() -> list[Row]:
    bunch = load_breast_cancer()
    names = [str(name).replace(" ", "_") for name in bunch.feature_names]
    rows = [dict(zip(names, map(repr, row.tolist()), strict=True)) for row in bunch.data]
    return [row | {"target": str(label)} for row, label in zip(rows, bunch.target, strict=True)]


def _planned(folder: Path, spec: CascadeSpec) -> Planned:
    run = run_in(folder)
    report = train(spec, run)
    baseline = {"spec": dump(spec), "seed": 0, "decision": report.decision}
    return spec, replace(run, options={"baseline_plan": baseline}), report


@pytest.fixture(scope="module", params=["max-probability", "evidential"])
def tumours(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Planned:
    """Return a trained run on a table of tumours, with its plan as the one to check."""
    folder = tmp_path_factory.mktemp("tumours")
    file = _table(folder / "tumours.csv", _tumours())
    forest = [DRAWN] if request.param == "evidential" else []
    settings = (f"data={{source: table, path: {file}}}", f"gates.confidence={request.param}", *forest)
    return _planned(folder / "run", spec_of(TUMOURS, *settings))


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    """Return a plan made of recorded answers."""
    return _planned(tmp_path_factory.mktemp("logs"), spec_of(CONFIGS / "api-logs.yaml"))


def checked(planned: Planned, file: Path, **changes: object) -> Report:
    spec, run, _ = planned
    data = spec.data.model_copy(update={"path": str(file)})
    return plan(spec.model_copy(update={"data": data, **changes}), run)


def _halved(rows: Sequence[Row], change: Callable[[Row], Row], label: str) -> list[Row]:
    return [{key: value for key, value in change(row).items() if key != label} for row in rows[::2]]


def test_similar_cases_pass_without_labels(tumours: Planned, tmp_path: Path) -> None:
    """Half of the same tumours, without the label, are like those before: yes, with the decision of the plan."""
    report = checked(tumours, _table(tmp_path / "half.csv", _halved(_tumours(), lambda row: row, "target")))
    assert report.verdict is Verdict.YES
    assert "new cases do not differ from those of the plan" in report.headline
    assert report.decision == tumours[2].decision


def test_drifted_cases_are_reported_with_their_changes(tumours: Planned, tmp_path: Path) -> None:
    """Tumours measured a fifth larger drift: no, with shares before and now that add up, and the next command."""
    grown = {name for name in _tumours()[0] if name != "target"}
    rows = _halved(
        _tumours(), lambda row: {k: repr(float(v) * 1.2) if k in grown else v for k, v in row.items()}, "target"
    )
    report = checked(tumours, _table(tmp_path / "grown.csv", rows))
    assert report.verdict is Verdict.NO
    shares = [table for table in report.tables if table.name.startswith("shares")]
    assert shares
    for table in shares:
        for column in (1, 2):
            assert sum(float(row[column]) for row in table.rows) == pytest.approx(100)  # type: ignore[arg-type]
    assert "grown.csv" in report.next
    assert checked(tumours, tmp_path / "grown.csv") == report


def test_recorded_answers_are_checked_too(logs: Planned, tmp_path: Path) -> None:
    """Half of the same logs pass; services that are less sure drift, and the run keeps what it held."""
    with (CONFIGS / "api-logs.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    held = (logs[1].directory.path / "logs" / "recorded.npz").read_bytes()
    assert checked(logs, _table(tmp_path / "half.csv", _halved(rows, lambda row: row, "label"))).verdict is Verdict.YES
    unsure = _halved(rows, lambda row: row | {"basic_confidence": repr(0.6 * float(row["basic_confidence"]))}, "label")
    report = checked(logs, _table(tmp_path / "unsure.csv", unsure))
    assert report.verdict is Verdict.NO
    assert "drifted" in report.headline
    assert (logs[1].directory.path / "logs" / "recorded.npz").read_bytes() == held


def test_a_check_on_the_same_data_plans_again(logs: Planned) -> None:
    """Without other data the plan is made again, and comes out as it was."""
    assert plan(logs[0], logs[1]).decision == logs[2].decision


def test_a_check_rejects_simultaneous_changes_of_data_and_keys(logs: Planned, tmp_path: Path) -> None:
    """If more than the data changed there is no one thing to check, and it is said."""
    file = _table(tmp_path / "rows.csv", [{"label": "1"}] * 12)
    with pytest.raises(UnfoldError, match="changed together"):
        checked(logs, file, goal=logs[0].goal.model_copy(update={"max_loss": 0.3}))


def test_a_plan_with_a_damaged_spec_is_rejected(logs: Planned) -> None:
    """What stands in the place of the plan's spec is no fault of the program."""
    for damaged in (5, {}, {"version": 1, "kind": "cascade", "name": "x"}):
        options = {"baseline_plan": {"decision": logs[2].decision, "spec": damaged}}
        with pytest.raises(UnfoldError, match="the spec in the plan to check is damaged") as error:
            plan(logs[0], replace(logs[1], options=options))
        assert error.value.code == 2


def test_a_label_that_leaks_in_local_cases_certifies_nothing(tumours: Planned, tmp_path: Path) -> None:
    """Recalibration looks for leaks and doubtful values in the local table, not in that of the plan."""
    spec, run, report = tumours
    stored = {"spec": dump(spec), "seed": 0, "decision": report.decision}
    rows = [
        row | {"mean_area": f"{row['target']}e3", "mean_radius": row["mean_radius"] if n % 9 else "-9"}
        for n, row in enumerate(_tumours())
    ]
    file = _table(tmp_path / "local.csv", rows)
    local = plan(spec, replace(run, options={"plan": stored, "recalibrate": str(file)}))
    assert local.verdict is Verdict.NO
    assert '"mean_area" predicts the label' in dict(local.lines)["certificate"]
    assert any('"mean_radius" is -9' in note for note in local.notes)
