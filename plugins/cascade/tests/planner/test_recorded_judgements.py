"""Logs of services with texts as answers: a judge's scores instead of labels, a price for each call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.cascade.tests.runs import load_cases, run_in, spec_of
from unfold_cascade.build import build_problem
from unfold_cascade.planner.planner import load_tables
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.verbs import plan
from unfoldkit.api import Run, UnfoldError
from unfoldkit.render.text import render

SPEC = """
version: 1
kind: cascade
name: judged
data: {source: recorded, path: log.csv}
stages:
  - name: answer
    models:
      - {name: small, recorded: {score: small, confidence: small_p, price: small|total_cost}}
      - {name: large, recorded: {score: large, confidence: large_p, price: large|total_cost}}
cost: {by: price, unit: $}
goal: {max_loss: 16%}
"""
HEAD = "prompt,small,small_p,small|total_cost,large,large_p,large|total_cost"


def _table(seed: int = 3) -> list[list[Any]]:
    """Return 1,200 prompts, long ones dear for both models; the small one is right as often as it is sure."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(1200):
        sure, tokens = rng.uniform(0.3, 1), rng.lognormal(5, 1)
        small, large = float(rng.random() < sure), float(rng.random() < 0.9)
        rows.append([f"q{number}", small, sure, 1e-6 * tokens, large, 0.9, 2e-5 * tokens])
    return rows


def _spec(folder: Path, rows: list[list[Any]], text: str = SPEC, *settings: str) -> CascadeSpec:
    lines = [",".join(str(cell) for cell in row) for row in rows]
    (folder / "log.csv").write_text("\n".join([HEAD, *lines]) + "\n")
    (folder / "log.yaml").write_text(text)
    return spec_of(folder / "log.yaml", *settings)


def _run(folder: Path) -> Run:
    return run_in(folder / "run", base=folder)


def test_recorded_scores_and_prices_equal_following_the_plan(tmp_path: Path) -> None:
    """Asked by the cuts of the plan, each call paid its own price, the test rows give the report's figures."""
    rows = _table()
    spec, run = _spec(tmp_path, rows), _run(tmp_path)
    report = plan(spec, run)
    assert report.decision is not None
    (step,) = report.decision["cascade"]
    assert step["models"] == ["small", "large"]
    right, paid, whole = [], [], []
    for row in (rows[number] for number in load_cases(spec, run).rows.test):
        sure = row[2] >= step["cuts"][0]
        right.append(row[1] if sure else row[4])
        paid.append(row[3] if sure else row[3] + row[6])
        whole.append(row[6])
    found = {name: report.metrics[name].value for name in ("cascade_accuracy", "cascade_cost", "saving")}
    assert found["cascade_accuracy"] == pytest.approx(np.mean(right))
    assert found["cascade_cost"] == pytest.approx(np.mean(paid))
    assert found["saving"] == pytest.approx(np.mean(whole) / np.mean(paid))


def test_equal_prices_of_calls_are_a_price_of_the_spec(tmp_path: Path) -> None:
    """A column in which every call costs the same gives the plan and the figures of that price."""
    rows = [[*row[:3], 1.0, *row[4:6], 10.0] for row in _table()]
    fixed = SPEC.replace("price: small|total_cost}", "}, price: 1").replace("price: large|total_cost}", "}, price: 10")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    each = plan(_spec(tmp_path / "one", rows), _run(tmp_path / "one"))
    same = plan(_spec(tmp_path / "two", rows, fixed), _run(tmp_path / "two"))
    assert each.decision == same.decision
    assert {name: metric.value for name, metric in each.metrics.items()} == pytest.approx(
        {name: metric.value for name, metric in same.metrics.items()}
    )


def test_tiny_prices_are_printed_with_significant_digits(tmp_path: Path) -> None:
    """A price that is a fraction of a millionth is printed with digits that count, not as zeros."""
    rows = [[*row[:3], 3.2e-9, *row[4:6], 3e-7] for row in _table()]
    text = render(plan(_spec(tmp_path, rows), _run(tmp_path)))
    assert "0.0000000032" in text
    assert "0.00000 " not in text


@pytest.mark.parametrize(
    ("scale", "settings"),
    [
        (lambda score: str(bool(score)), ()),
        (lambda score: 9 if score else 3, ("right_from: 7",)),
        (lambda score: 0.75 if score else 0.25, ()),
    ],
)
def test_scores_count_as_correct_from_their_threshold(scale: Any, settings: tuple[str, ...], tmp_path: Path) -> None:
    """Words, fractions and points of ten mean the same as 1 and 0."""
    rows = [[row[0], scale(row[1]), *row[2:4], scale(row[4]), *row[5:]] for row in _table()]
    text = SPEC.replace("confidence:", f"{settings[0]}, confidence:") if settings else SPEC
    spec, run = _spec(tmp_path, rows, text), _run(tmp_path)
    answer = load_tables(build_problem(spec, run), run).first_stage.answer
    assert np.array_equal(answer, [[1 - row[1], 1 - row[4]] for row in _table()])


def test_a_call_without_a_score_is_wrong_and_never_exits_at_a_gate(tmp_path: Path) -> None:
    """A judge without an answer, or a failed call, has no price either."""
    rows = _table()
    rows[7][1] = rows[7][3] = ""
    spec, run = _spec(tmp_path, rows), _run(tmp_path)
    first = load_tables(build_problem(spec, run), run).first_stage
    assert (first.answer[7, 0], first.score[7, 0]) == (1, -np.inf)
    assert first.call_prices is not None
    assert first.call_prices[7, 0] == 0.0


def test_an_answer_that_no_judge_scored_is_reported(tmp_path: Path) -> None:
    """With a confidence and a price, a call did not fail: taken for one, its answer would never be trusted wrongly."""
    rows = _table()
    rows[7][1] = ""
    with pytest.raises(UnfoldError, match='row 8 of column "small" has no score, but there is a confidence') as caught:
        plan(_spec(tmp_path, rows), _run(tmp_path))
    assert caught.value.diagnostics[0].key == "stages[0].models[0].recorded.score"


@pytest.mark.parametrize(("wrong", "message"), [("", "has no price"), ("-0.1", "has the negative price -0.1")])
def test_a_call_without_a_price_is_an_error(wrong: str, message: str, tmp_path: Path) -> None:
    """What a call cost is never guessed; the row and the key are named."""
    rows = _table()
    rows[4][6] = wrong
    with pytest.raises(UnfoldError, match=rf'row 5 of column "large\|total_cost" {message}') as caught:
        plan(_spec(tmp_path, rows), _run(tmp_path))
    assert caught.value.diagnostics[0].key == "stages[0].models[1].recorded.price"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("score: small,", "score: small, prediction: x,", "give either prediction or score"),
        ("score: small,", "prediction: small,", "has no score"),
        ("score: small,", "", "give either prediction or score"),
        ("    models:", "    target: {column: prompt}\n    models:", "not read"),
        ("goal:", "gates: {confidence: either}\ngoal:", "scores do not contain predictions"),
        ("{name: small,", "{name: small, price: 1,", "recorded.price already names"),
        (", price: small|total_cost", "", "the price of one call is missing"),
    ],
)
def test_keys_that_need_labels_are_errors_with_scores(old: str, new: str, expected: str, tmp_path: Path) -> None:
    """A label, gates that know the answer, two prices and half a log of scores are mistakes of the spec."""
    with pytest.raises(UnfoldError, match=expected):
        _spec(tmp_path, _table(), SPEC.replace(old, new))


def test_judge_scores_require_recorded_data(tmp_path: Path) -> None:
    """Where models are fitted, a stage without a target is still an error."""
    text = SPEC.replace("source: recorded", "source: table")
    with pytest.raises(UnfoldError, match="the last stage decides the label itself"):
        _spec(tmp_path, _table(), text)
