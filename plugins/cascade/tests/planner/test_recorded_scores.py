"""Logs of services as users have them: calls without an answer, answers that merely look different."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from plugins.cascade.tests.runs import run_in, solve_spec, spec_of
from unfold_cascade.drift.static import _compare_confidence
from unfold_cascade.gates.calibrated import calibrate
from unfold_cascade.gates.exact_search import search_exact_front
from unfold_cascade.planner.policy import follow
from unfold_cascade.planner.select import LOSS_DRIFTED
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.verbs import plan
from unfoldkit.api import UnfoldError

MODES = ["either", "max-probability", "label-conditional"]
SPEC = """
version: 1
kind: cascade
name: log
data: {source: recorded, path: log.csv}
stages:
  - name: answer
    target: {column: label}
    models:
      - {name: cheap, price: 1, recorded: {prediction: a, confidence: p}}
      - {name: dear, price: 10, recorded: {prediction: b, confidence: q}}
cost: {by: price}
goal: {max_loss: 10%}
"""
Write = Callable[[str], str]
LABELS = ("refund", "spam", "tech")


def rows(cheap: Write = str, dear: Write = str, *, gone: int = 0, percent: bool = False) -> list[str]:
    """Return lines of a log of 300 cases; the last ``gone`` calls of the cheap service had no answer."""
    generator, found = np.random.default_rng(3), list[str]()
    for i in range(300):
        sure = generator.uniform(0.4, 1)
        truth, said = LABELS[i % 3], LABELS[i % 3 if generator.random() < sure else (i + 1) % 3]
        shown = f"{100 * sure:.1f}%" if percent else f"{sure:.3f}"
        first = "," if i >= 300 - gone else f"{cheap(said)},{shown}"
        found.append(f"{truth},{first},{dear(truth)},0.9")
    return found


def log(folder: Path, lines: Sequence[str], *settings: str) -> CascadeSpec:
    """Write a log and return a spec that names it."""
    (folder / "log.csv").write_text("\n".join(["label,a,p,b,q", *lines]) + "\n")
    (folder / "log.yaml").write_text(SPEC)
    return spec_of(folder / "log.yaml", *settings)


@pytest.mark.parametrize("learnt", ["[]", "[soft, induction]"])
@pytest.mark.parametrize("mode", MODES)
def test_calls_without_an_answer_never_exit_at_a_gate(tmp_path: Path, mode: str, learnt: str) -> None:
    """No cascade of the front with a gate stops at a call without an answer; as the last one it is wrong."""
    settings = f"gates.confidence={mode}", f"gates.learnt={learnt}", f"gates.bins={'null' if learnt == '[]' else 5}"
    found = solve_spec(log(tmp_path, rows(gone=60), *settings), run_in(tmp_path / "run", base=tmp_path))
    silent = np.arange(240, 300)
    gated = [policy for policy in found.front.policies if policy.first_stage.chain == (0, 1)]
    assert gated
    assert all(follow(found.tables, policy, silent).exit_first.all() for policy in gated)
    alone = next(policy for policy in found.front.policies if policy.first_stage.chain == (0,))
    assert (follow(found.tables, alone, silent).answer != found.problem.dataset.labels[silent]).all()


def test_a_service_that_never_answers_is_never_selected(tmp_path: Path) -> None:
    """A log in which one service has no answer at all is planned without it."""
    for mode in MODES:
        spec = log(tmp_path, rows(gone=300), f"gates.confidence={mode}")
        found = solve_spec(spec, run_in(tmp_path / mode, base=tmp_path))
        assert {policy.first_stage.chain for policy in found.front.policies} <= {(0,), (1,)}


def test_rows_without_confidence_do_not_affect_curves() -> None:
    """A calibration is that of the rows with a confidence, and gives no score where there is none."""
    sure, context, right = np.linspace(0, 1, 40), np.arange(40) % 2, (np.arange(40) % 3 > 0).astype(np.float64)
    gone = np.full(9, -np.inf)
    known = calibrate(sure, context, right)
    more = calibrate(np.r_[sure, gone], np.r_[context, np.zeros(9, np.int64)], np.r_[right, np.zeros(9)])
    assert np.array_equal(known(sure, context), more(sure, context))
    assert (more(gone, np.zeros(9, np.int64)) == -np.inf).all()


def test_missing_scores_exit_only_where_all_scores_exit() -> None:
    """Of all cuts on a missing score, only the one that always exits stops."""
    score = np.array([[-np.inf], [0.2], [0.8]])
    front = search_exact_front(score, np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), np.array([1.0, 10.0]))
    best = front.cuts[int(front.loss.argmin()), 0, 1]
    assert best == 0.2
    assert front.loss.min() == 0


def test_confidence_bands_count_missing_confidences() -> None:
    """A check of new data counts rows without a confidence in the lowest band."""
    sure = np.linspace(0, 1, 50), np.r_[np.full(50, -np.inf), np.linspace(0, 1, 50)]
    counts = _compare_confidence("confidence", sure, (None, None))
    names, old, new = counts.categories, counts.before, counts.now
    assert len(names) == len(old) == len(new) == 10
    assert (old.sum(), new.sum(), new[0]) == (50, 100, 50 + old[0])


def test_confidences_may_be_percentages(tmp_path: Path) -> None:
    """A log with confidences as percentages gives the plan of the one with shares."""
    one, two = (
        plan(log(tmp_path, rows(percent=percent)), run_in(tmp_path / str(percent), base=tmp_path))
        for percent in (False, True)
    )
    assert one.verdict == two.verdict
    assert one.metrics["cascade_cost"].value == pytest.approx(two.metrics["cascade_cost"].value, rel=0.05)


def test_answers_that_look_like_numbers_with_a_point_are_labels(tmp_path: Path) -> None:
    """A column of whole numbers with gaps, written with .0, means the same as one without gaps."""
    code = {name: str(index) for index, name in enumerate(LABELS)}
    lines = rows(gone=6)
    for name, number in code.items():
        lines = [line.replace(name, number) for line in lines]
    pointed = [",".join((c[0], c[1] and f"{c[1]}.0", *c[2:])) for c in (line.split(",") for line in lines)]
    one, two = (
        solve_spec(log(tmp_path, text), run_in(tmp_path / name, base=tmp_path)).tables.first_stage.answer
        for name, text in (("plain", lines), ("pointed", pointed))
    )
    assert np.array_equal(one, two)


@pytest.mark.parametrize(
    ("dear", "expected", "hint"),
    [
        (str.capitalize, "300 of 300 answers", 'the labels are "refund", "spam", "tech": write both in the same case'),
        (lambda text: text.capitalize() if text == "tech" else text, "100 of 300 answers", '"tech": write both'),
        (lambda text: f"class {text}", "300 of 300 answers", 'the labels are "refund", "spam", "tech"'),
    ],
)
def test_misspelt_labels_are_errors(tmp_path: Path, dear: Write, expected: str, hint: str) -> None:
    """A service with answers unlike the labels is reported by name, with examples of both."""
    with pytest.raises(UnfoldError, match=f"{expected} of 'dear' are not labels of the data, such as \"") as error:
        solve_spec(log(tmp_path, rows(dear=dear)), run_in(tmp_path / "run", base=tmp_path))
    diagnostic = error.value.diagnostics[0]
    assert diagnostic.key == "stages[0].models[1].recorded.prediction"
    assert hint in diagnostic.hint


def test_a_few_answers_outside_the_labels_count_as_wrong(tmp_path: Path) -> None:
    """What a service makes up now and then is a wrong answer, and no reason to refuse the log."""
    found = solve_spec(log(tmp_path, ["spam,?!,0.9,other,0.9", *rows()]), run_in(tmp_path / "run", base=tmp_path))
    assert (found.tables.first_stage.answer[0] == len(LABELS)).all()


def test_log_rows_without_a_label_are_skipped(tmp_path: Path) -> None:
    """A row of a log without a true label is skipped, and the report counts it."""
    lines = [line if i % 10 else "," + line.partition(",")[2] for i, line in enumerate(rows(gone=20))]
    report = plan(log(tmp_path, lines), run_in(tmp_path / "run", base=tmp_path))
    assert report.notes == ("skipped 30 rows of log.csv without a label",)
    assert report.subtitle[-1] == "270 cases"


@pytest.mark.parametrize("is_newest_first", [False, True])
def test_the_order_of_time_decides_which_rows_are_late(tmp_path: Path, is_newest_first: bool) -> None:
    """A cheap model that gets worse, and stays sure, is refused, whether a table begins or ends with the newest row."""
    rng = np.random.default_rng(3)
    lines = []
    for k in range(1000):
        right = rng.random() < (0.96 if k < 600 else 0.75)
        confidence = rng.uniform(0.85, 1.0) if k >= 600 or right else rng.uniform(0.5, 0.8)
        lines.append(f"yes,{'yes' if right else 'no'},{confidence:.3f},yes,0.9,2026-01-01T{k // 60:02}:{k % 60:02}:00Z")
        lines[-1] = lines[-1] if k % 2 else lines[-1].replace("yes", "?").replace("no", "yes").replace("?", "no")
    ordered = lines[::-1] if is_newest_first else lines
    (tmp_path / "log.csv").write_text("\n".join(["label,a,p,b,q,created_at", *ordered]) + "\n")
    (tmp_path / "log.yaml").write_text(SPEC)
    solution = solve_spec(spec_of(tmp_path / "log.yaml", "goal.max_loss=12%"), run_in(tmp_path / "run", base=tmp_path))
    assert solution.selection.reason == LOSS_DRIFTED
