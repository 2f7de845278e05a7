"""`unfold check --data`: the table that a spec names is opened, and every mistake in it is reported at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugins.cascade.tests.runs import OWN, TUMOURS, run_in, spec_of
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.verbs.check_inputs import check_inputs

LONG = """
version: 1
kind: cascade
name: hours
data: {source: long, path: own.csv, entity: who, time: hour}
features: {all: {columns: [a, b]}}
stages:
  - {name: seen, target: {column: y}, models: [{name: m, estimator: xgboost}]}
baseline: {estimator: xgboost}
goal: {max_loss: 1%}
"""
LOG = """
version: 1
kind: cascade
name: log
data: {source: recorded, path: own.csv}
stages:
  - name: s
    target: {column: y}
    models: [{name: one, price: 1, recorded: {prediction: y, confidence: a}}]
cost: {by: price}
goal: {max_loss: 1%}
"""
ROWS = [f"w{number // 2},{number % 2},{number},{number % 7},{number % 2}" for number in range(60)]


def list_diagnostics(folder: Path, text: str, *settings: str, rows: list[str] = ROWS) -> list[str]:
    """List the diagnostics of a spec with a table that has the columns who, hour, a, b and y."""
    (folder / "own.csv").write_text("\n".join(["who,hour,a,b,y", *rows]) + "\n")
    (folder / "own.yaml").write_text(text)
    spec: CascadeSpec = spec_of(folder / "own.yaml", *settings)
    return [f"{item.key}: {item.message}" for item in check_inputs(spec, run_in(folder / "run", base=folder))]


@pytest.mark.parametrize("text", [OWN, LONG, LOG])
def test_a_valid_table_gives_no_diagnostics(tmp_path: Path, text: str) -> None:
    """A spec with a readable table has no mistake, and nothing is written."""
    assert list_diagnostics(tmp_path, text) == []
    assert not (tmp_path / "run").exists()


def test_every_wrong_column_is_reported_at_once(tmp_path: Path) -> None:
    """A missing column, two of words and a missing label are four mistakes, where training stops at the first."""
    rows = [row.replace("w8,0,16,2", "w8,0,<5,low") for row in ROWS]
    settings = ("features.all.columns=[a, b]", "features.more={columns: [c]}", "stages[0].target.column=z")
    assert list_diagnostics(tmp_path, OWN, *settings, rows=rows) == [
        'features: own.csv: "<5" in row 17 of column "a" is not a number',
        'features: own.csv: "low" in row 17 of column "b" is not a number',
        'features.more.columns: own.csv has no column "c"',
        'stages[0].target.column: own.csv has no column "z"',
    ]


def test_columns_over_time_are_checked_too(tmp_path: Path) -> None:
    """In a table of hours the features and targets that it does not have are reported together."""
    settings = ("features.all.columns=[a, c]", "features.more={columns: [d_*]}", "stages[0].target.column=z")
    assert [line.split(": ")[0] for line in list_diagnostics(tmp_path, LONG, *settings)] == [
        "features.all.columns", "features.more.columns", "stages[0].target.column",
    ]  # fmt: skip


def test_labels_over_time_are_checked_too(tmp_path: Path) -> None:
    """A missing label, and events that are too rare, are found before anything is fitted."""
    (unlabelled,) = list_diagnostics(tmp_path, LONG, rows=[*ROWS[:-1], ROWS[-1][:-1]])
    assert unlabelled == 'stages[0].target.column: own.csv: "y" has no value at w29, hour 1; it must be 0 or 1'
    (rare,) = list_diagnostics(tmp_path, LONG, rows=[f"{row[:-1]}0" for row in ROWS])
    assert rare == "data: 0 of 30 cases reach seen; at least 8 of 24 are needed"


def test_columns_that_hold_the_label_over_time_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A countdown to the event, and an outcome of the whole stay, are known only afterwards."""
    head, rows = "who,hour,pulse,countdown,outcome,y", []
    for who in range(60):
        is_sick = who % 2
        for hour in range(6):
            label = int(is_sick and hour >= 4)
            rows.append(
                f"w{who},{hour},{(who * 7 + hour * 5) % 31},{4 - hour if is_sick else 99},{3 * is_sick},{label}"
            )
    (tmp_path / "own.csv").write_text("\n".join([head, *rows]) + "\n")
    (tmp_path / "own.yaml").write_text(LONG.replace("[a, b]", "[pulse, countdown, outcome]"))
    assert list(check_inputs(spec_of(tmp_path / "own.yaml"), run_in(tmp_path / "run", base=tmp_path))) == []
    (warning,) = caplog.messages
    assert warning.startswith('"countdown", "outcome" predict the label without error')


def test_columns_that_hold_a_later_stage_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An outcome of the last stage was hidden by the entities that reach the first one only."""
    rows = [
        f"w{who},{hour},{(who * 7 + hour * 5) % 31},{2 * (who % 4 == 3)},{int(who % 2 and hour > 1)},"
        f"{int(who % 4 == 3 and hour > 3)}"
        for who in range(120)
        for hour in range(6)
    ]
    (tmp_path / "own.csv").write_text("\n".join(["who,hour,pulse,outcome,x,y", *rows]) + "\n")
    first = "  - {name: first, target: {column: x}, models: [{name: n, estimator: xgboost}]}\n  - {name: seen"
    (tmp_path / "own.yaml").write_text(LONG.replace("[a, b]", "[pulse, outcome]").replace("  - {name: seen", first))
    assert list(check_inputs(spec_of(tmp_path / "own.yaml"), run_in(tmp_path / "run", base=tmp_path))) == []
    (warning,) = caplog.messages
    assert warning.startswith('"outcome" predicts the label without error')


@pytest.mark.parametrize(
    ("label", "expected"),
    [("-99", '"-99" may mark missing labels'), ("Unknown", '"Unknown" may mark'), ("\ufeff1", "differ only in case")],
)
def test_labels_that_may_mark_missing_ones_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, label: str, expected: str
) -> None:
    """A code, a word, and a label with an invisible character became a class without a word."""
    rows = [f"{k // 2},{k % 2},{k % 89},{k % 97},{label if k % 9 == 0 else k % 2}" for k in range(180)]
    assert list_diagnostics(tmp_path, OWN, rows=rows) == []
    assert any(expected in message for message in caplog.messages)
    caplog.clear()
    plain = [row.replace(label, "\\N") if label == "-99" else row.replace(label, "1") for row in rows]
    assert list_diagnostics(tmp_path, OWN, rows=plain) == []
    assert not caplog.messages


def test_missing_columns_of_a_log_are_errors(tmp_path: Path) -> None:
    """For recorded answers the column with a model's confidence is looked for."""
    found = list_diagnostics(tmp_path, LOG, "stages[0].models[0].recorded.confidence=sure")
    assert found == ['stages[0].models[0].recorded.confidence: own.csv has no column "sure"']


def test_a_missing_table_is_one_error(tmp_path: Path) -> None:
    """A file that is missing is reported once, at the key that names it; a set that is shipped is never missing."""
    (found,) = list_diagnostics(tmp_path, OWN, "data.path=gone.csv")
    assert found.startswith("data.path: no such file")
    assert list(check_inputs(spec_of(TUMOURS), run_in(tmp_path / "run"))) == []
