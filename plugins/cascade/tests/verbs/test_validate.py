"""Laws of ``validate`` and ``plan --recalibrate``: what is kept at one site and broken at another is reported so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow
SPEC = """
version: 1
kind: cascade
name: sites
data: {source: recorded, path: a.csv, split: {train: 40%, calibrate: 40%, test: 20%}}
stages:
  - name: label
    target: {column: y}
    models:
      - {name: small, recorded: {prediction: small, confidence: s}, price: 1}
      - {name: large, recorded: {prediction: large, confidence: l}, price: 10}
cost: {by: price}
goal: {max_loss: 3%}
"""


def write_log(path: Path, cases: int, seed: int, *, trust: float, right: float = 0.95, labels: bool = True) -> None:
    """Write a log in which confidence ``s`` says with probability ``trust`` whether ``small`` is right."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, cases)
    is_right = rng.random(cases) < 0.7
    knows = rng.random(cases) < trust
    confident = np.where(knows, is_right, rng.random(cases) < 0.7)
    s = np.where(confident, rng.uniform(0.8, 1, cases), rng.uniform(0.5, 0.8, cases))
    large = np.where(rng.random(cases) < right, y, 1 - y)
    names = np.array(["well", "sick"])
    rows = zip(names[np.where(is_right, y, 1 - y)], s.round(6), names[large], rng.random(cases).round(6), strict=True)
    head = "small,s,large,l" + ",y" * labels
    lines = [",".join(map(str, row)) + f",{names[y[i]]}" * labels for i, row in enumerate(rows)]
    path.write_text("\n".join([head, *lines]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sites")
    (folder / "spec.yaml").write_text(SPEC)
    write_log(folder / "a.csv", 4000, 0, trust=0.97)
    write_log(folder / "same.csv", 3000, 1, trust=0.97)
    write_log(folder / "other.csv", 3000, 2, trust=0.2)
    write_log(folder / "weak.csv", 3000, 3, trust=0.97, right=0.75)
    write_log(folder / "few.csv", 30, 4, trust=0.97)
    head, *rows = (folder / "few.csv").read_text().splitlines()
    (folder / "copied.csv").write_text("\n".join([head, *rows * 40]))
    write_log(folder / "plain.csv", 300, 5, trust=0.97, labels=False)
    assert run(folder, "train", "spec.yaml").returncode == 0
    return folder


def run(folder: Path, *words: str) -> Any:
    command = [sys.executable, "-m", "unfoldkit", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)


def states(folder: Path, file: str) -> tuple[int, dict[str, str]]:
    result = run(folder, "validate", "runs/sites", "--data", file, "--format", "json")
    table = next(table for table in json.loads(result.stdout)["tables"] if table["name"] == "promises")
    return result.returncode, {row[0]: row[-1] for row in table["rows"]}


def test_promises_are_kept_on_cases_like_those_of_the_plan(folder: Path) -> None:
    """Nothing is broken, the certified loss is kept, and the exit code is 0."""
    code, by_name = states(folder, "same.csv")
    assert code == 0
    assert by_name["loss"] == "kept"
    assert "broken" not in by_name.values()


def test_a_broken_certificate_is_reported(folder: Path) -> None:
    """Where confidences say nothing, the loss is broken; where all models are worse, only the accuracy is."""
    code, by_name = states(folder, "other.csv")
    assert (code, by_name["loss"]) == (1, "broken")
    code, by_name = states(folder, "weak.csv")
    assert code == 1
    assert by_name["accuracy"] == "broken"
    assert by_name["loss"] != "broken"


def test_few_cases_decide_nothing(folder: Path) -> None:
    """The certified loss of 30 cases is undecided, which is not a no."""
    code, by_name = states(folder, "few.csv")
    assert (code, by_name["loss"]) == (0, "undecided")


def test_copies_of_new_cases_count_once(folder: Path) -> None:
    """Forty copies of 30 cases decide no more than the cases themselves, and are too few for a new certificate."""
    code, by_name = states(folder, "copied.csv")
    assert (code, by_name["loss"]) == (0, "undecided")
    local = folder / "runs" / "copied"
    assert run(folder, "train", "spec.yaml", "--run", str(local)).returncode == 0
    result = run(folder, "plan", str(local), "--recalibrate", "copied.csv", "--format", "json")
    assert result.returncode == 1, result.stderr
    assert "rows of copied.csv repeat others (1,170 identical" in " ".join(json.loads(result.stdout)["notes"])


def test_data_without_labels_say_what_cannot_be_concluded(folder: Path) -> None:
    """The paths are compared, and outcomes that need labels are named; the stored report stays that of the plan."""
    before = (folder / "runs/sites/report.json").read_bytes()
    result = run(folder, "validate", "runs/sites", "--data", "plain.csv")
    assert result.returncode == 0
    assert "cannot be concluded" in result.stdout
    assert (folder / "runs/sites/report.json").read_bytes() == before
    assert (folder / "runs/sites/validation.json").is_file()


def test_bad_new_data_are_errors_that_name_the_culprit(folder: Path) -> None:
    """An unknown label, a missing column, a missing file and a run without a plan give exit code 2."""
    text = (folder / "same.csv").read_text()
    (folder / "unknown.csv").write_text(text.replace("sick\n", "dead\n", 1))
    (folder / "narrow.csv").write_text(text.replace(",large,", ",huge,", 1))
    for file, message in (("unknown.csv", '"dead"'), ("narrow.csv", '"large"'), ("no.csv", "no.csv")):
        for words in (("validate", "runs/sites", "--data", file), ("plan", "runs/sites", "--recalibrate", file)):
            result = run(folder, *words)
            assert result.returncode == 2, result.stdout
            assert message in result.stderr
    assert "has no plan" in run(folder, "validate", "spec.yaml", "--run", "new", "--data", "same.csv").stderr


def test_checks_of_labelled_data_hold_the_promises(folder: Path) -> None:
    """``plan --check`` adds the table to its report of drift, and a broken promise is a no."""
    run(folder, "plan", "spec.yaml", "--out", "plan.yaml")
    result = run(folder, "plan", "--check", "plan.yaml", "--set", "data.path=weak.csv", "--format", "json")
    report = json.loads(result.stdout)
    assert result.returncode == 1
    assert {"promises", "changes"} <= {table["name"] for table in report["tables"]}
    assert "broken: accuracy" in report["headline"]


def test_recalibration_keeps_at_the_other_site_what_it_promises(folder: Path) -> None:
    """Refitted on the first half of the other site, no promise is broken on fresh cases of it."""
    local = folder / "runs" / "local"
    assert run(folder, "train", "spec.yaml", "--run", str(local)).returncode == 0
    result = run(folder, "plan", str(local), "--recalibrate", "other.csv", "--format", "json")
    report = json.loads(result.stdout)
    table = next(table for table in report["tables"] if table["name"] == "what n local cases buy")
    losses = {row[0]: row[1] for row in table["rows"]}
    assert losses[0] > 3 > losses[max(losses)] - 1.5
    if result.returncode == 0:
        write_log(folder / "fresh.csv", 3000, 9, trust=0.2)
        checked = run(folder, "validate", str(local), "--data", "fresh.csv", "--format", "json")
        promises = next(each for each in json.loads(checked.stdout)["tables"] if each["name"] == "promises")
        assert next(row[-1] for row in promises["rows"] if row[0] == "loss") != "broken"


TABLE = """
version: 1
kind: cascade
name: own
data: {source: table, path: a.csv}
stages:
  - {name: only, target: {column: y}, models: [{name: m, estimator: logistic-regression}]}
baseline: {candidates: [{estimator: knn}]}
goal: {max_loss: 20%}
"""


@pytest.mark.parametrize("words", [("validate", "runs/own", "--data"), ("plan", "runs/own", "--recalibrate")])
def test_gaps_that_no_model_accepts_name_their_row_and_column(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A model of a table without missing values meets some at a new site: exit 2 with the cell, not a traceback."""
    rng = np.random.default_rng(0)
    rows = [[f"{value:.4f}" for value in row] + [str(int(row[0] > 0))] for row in rng.normal(size=(200, 2))]
    (tmp_path / "own.yaml").write_text(TABLE)
    (tmp_path / "a.csv").write_text("\n".join(["a,b,y", *map(",".join, rows)]))
    assert run(tmp_path, "train", "own.yaml").returncode in (0, 1)
    own = run(tmp_path, *words, "a.csv")
    assert "a.csv is the table of the run" in own.stdout + own.stderr
    assert own.returncode == 2 or words[0] == "validate"
    rows[4][1] = rows[9][1] = ""
    (tmp_path / "b.csv").write_text("\n".join(["a,b,y", *map(",".join, rows)]))
    done = run(tmp_path, *words, "b.csv")
    assert done.returncode == 2
    assert 'b.csv: row 5 has no value in the column "b" (2 of 200 rows have gaps)' in done.stderr


def test_rows_of_the_run_neither_keep_its_promises_nor_certify_new_ones(tmp_path: Path) -> None:
    """Rows on which models were fitted are left out of validation and recalibration; a table of them alone is none."""
    rng = np.random.default_rng(0)
    rows = [",".join([*(f"{value:.4f}" for value in row), str(int(row[0] > 0))]) for row in rng.normal(size=(360, 2))]
    (tmp_path / "own.yaml").write_text(TABLE)
    for name, part in (("a", rows[:200]), ("part", rows[:90]), ("mixed", rows[100:])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["a,b,y", *part]))
    assert run(tmp_path, "train", "own.yaml").returncode in (0, 1)
    part = run(tmp_path, "plan", "runs/own", "--recalibrate", "part.csv")
    assert part.returncode == 2
    assert "part.csv is the table of the run, or part of it" in part.stderr
    mixed = run(tmp_path, "validate", "runs/own", "--data", "mixed.csv").stdout
    assert "160 new cases" in mixed
    assert "100 rows of mixed.csv left out" in mixed
    recalibrated = run(tmp_path, "plan", "runs/own", "--recalibrate", "mixed.csv").stdout
    assert "100 rows of mixed.csv left out" in recalibrated
