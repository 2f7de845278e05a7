"""A plan of calibrated gates can be carried out with confidences alone."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.cascade.tests.runs import run_in, spec_of
from unfold_cascade.data.dataset import load_stored_dataset
from unfold_cascade.gates.calibrated import calibrate, find_raw_cuts
from unfold_cascade.verbs import plan
from unfoldkit.render.plan import render
from unfoldkit.report import Report
from unfoldkit.spec.yaml_reader import parse

SPEC = """
version: 1
kind: cascade
name: logs
data: {source: recorded, path: logs.csv}
stages:
  - name: answer
    target: {column: label}
    models:
      - {name: m0, price: 0.1, recorded: {prediction: m0_a, confidence: m0_c}}
      - {name: m1, price: 1, recorded: {prediction: m1_a, confidence: m1_c}}
      - {name: m2, price: 9, recorded: {prediction: m2_a, confidence: m2_c}}
cost: {by: price}
gates: {confidence: label-conditional}
goal: {max_loss: 4%}
"""


def logs(file: Path, rows: int = 3000) -> list[dict[str, str]]:
    """Write logs of services with confidences worth more for some labels than for others; some do not answer."""
    rng, found = np.random.default_rng(4), list[dict[str, str]]()
    for label in rng.integers(0, 5, rows):
        row = {"label": f"c{label}"}
        for m, skill in enumerate((0.6, 0.75, 0.92)):
            sure = rng.uniform(0.2, 1.0)
            right = rng.random() < min(0.99, skill + (0.4 if label % 2 == m % 2 else 0.1) * (sure - 0.4))
            said = f"c{label}" if right else f"c{(label + rng.integers(1, 5)) % 5}"
            silent = rng.random() < 0.03
            row |= {f"m{m}_a": "" if silent else said, f"m{m}_c": "" if silent else f"{sure:.3f}"}
        found.append(row)
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    return found


def carried_out(step: Mapping[str, Any], row: Mapping[str, str]) -> str:
    """Return the answer of a step of plan.yaml to one row of the logs, computed as the how-to describes."""
    said: dict[str, str] = {}
    for model in step["models"]:
        answer, confidence = row[f"{model}_a"], row[f"{model}_c"]
        agree = [other for other in said if said[other] == answer]
        said[model] = answer
        for rule in step["trust_from"]:
            if (rule["model"], rule["agree"]) == (model, agree) and confidence:
                cut = rule["from"].get(answer, rule["else"])
                if cut == "always" or (cut != "never" and float(confidence) >= cut):
                    return answer
    return answer


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sequence[Mapping[str, str]], Path, Report]:
    folder = tmp_path_factory.mktemp("logs")
    (folder / "logs.yaml").write_text(SPEC)
    rows = logs(folder / "logs.csv")
    run = run_in(folder / "run", base=folder)
    return rows, folder / "run", plan(spec_of(folder / "logs.yaml"), run)


def test_raw_cuts_of_the_plan_give_the_accuracy_of_the_report(planned: Any) -> None:
    """With the confidences of the logs, plan.yaml answers the test rows exactly as the report states."""
    rows, run, report = planned
    (step,) = parse(render(report), "plan.yaml").data["decision"]["cascade"]
    test = load_stored_dataset(run_in(run).directory).rows.test
    right = np.mean([carried_out(step, rows[row]) == rows[row]["label"] for row in test])
    assert len(step["trust_from"]) == 2 ** (len(step["models"]) - 1) - 1 >= 1
    assert right == report.metrics["cascade_accuracy"].value
    assert "cuts" not in step


def test_the_report_distinguishes_calibrated_and_raw_cuts(planned: Any) -> None:
    """Where cuts are on calibrated scores the report calls them so, and lays the raw cut of each answer beside them."""
    _, _, report = planned
    route, trust = (next(table for table in report.tables if table.name == name) for name in ("route", "trust"))
    assert [column.name for column in route.columns][5] == "calibrated threshold"
    assert [row[0] for row in trust.rows] == ["c0", "c1", "c2", "c3", "c4", "any other"]


@pytest.mark.parametrize("cut", [0.0, 0.2, 0.5, 0.61, 0.9, 1.1])
def test_raw_cuts_separate_confidences_as_calibrated_cuts_do(cut: float) -> None:
    """In every context, seen or not, confidence >= raw cut is score >= cut, next to the cut too."""
    rng = np.random.default_rng(1)
    confidence, context = rng.random(900).round(2), rng.integers(0, 4, 900)
    fitted = calibrate(confidence, context, (rng.random(900) < confidence ** (1 + context)).astype(float))
    for name in range(6):
        (raw,) = find_raw_cuts(fitted, np.array([name]), cut)
        around = np.array([0.0, 0.3, 0.99, 1.0, *np.nextafter(raw, [-9, 9]), raw, *rng.random(50)])
        around = around[np.isfinite(around)]
        np.testing.assert_array_equal(fitted(around, np.full(len(around), name)) >= cut, around >= raw)


def test_missing_confidence_never_passes_the_gate() -> None:
    """A service that did not answer is passed over, even where its lowest confidences are worth enough."""
    fitted = calibrate(np.array([-np.inf, 0.1, 0.9]), np.zeros(3, dtype=int), np.ones(3))
    assert fitted(np.array([-np.inf, 0.1]), np.zeros(2, dtype=int)).tolist() == [-np.inf, 1.0]


@pytest.mark.e2e
@pytest.mark.parametrize("learnt", ["", "soft, induction"])
def test_logs_with_gaps_are_planned_on_raw_confidences_too(planned: Any, learnt: str, tmp_path: Path) -> None:
    """Services that did not answer some rows are searched with max-probability and learnt gates as well."""
    _, run, _ = planned
    changes = ("gates.confidence=max-probability", f"gates.learnt=[{learnt}]", "gates.bins=16", "goal.max_loss=10%")
    report = plan(spec_of(run.parent / "logs.yaml", *changes), run_in(tmp_path, base=run.parent))
    (step,) = report.decision["cascade"] if report.decision else ()
    assert "trust_from" not in step
    assert step["cuts"]
