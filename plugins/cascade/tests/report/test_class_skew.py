"""Laws of reports where accuracy is uninformative."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plugins.cascade.tests.runs import recorded_spec, run_in, solve_spec, spec_of
from unfold_cascade.report import sentences
from unfold_cascade.verbs import plan

LOG = recorded_spec("log", "9%")


def _log(folder: Path, share: float) -> Path:
    """Write 400 answers to a label that is 1 in the given share; the small model never predicts 1."""
    rng = np.random.default_rng(0)
    y = (np.arange(400) < share * 400).astype(int)
    b = np.where(rng.random(400) < 0.5, y, 0)
    rows = (f"{label},0,{qa:.3f},{large},{qa:.3f}" for label, qa, large in zip(y, rng.random(400), b, strict=True))
    (folder / "log.csv").write_text("y,a,qa,b,qb\n" + "\n".join(rows) + "\n")
    (folder / "log.yaml").write_text(LOG)
    return folder / "log.yaml"


def test_class_skew_is_reported_with_the_other_labels(tmp_path: Path) -> None:
    """Where nine in ten cases have one label, the report counts the right answers to the others, by hand the same."""
    spec, run = spec_of(_log(tmp_path, 0.05)), run_in(tmp_path / "run", base=tmp_path)
    skew = dict(plan(spec, run).lines)["skew"]
    found = solve_spec(spec, run)
    rows = [row for row in found.problem.dataset.rows.test if found.problem.dataset.labels[row] == 1]
    large = sum(int(found.baseline.answer[row]) == 1 for row in rows)
    assert found.policy is not None
    assert found.baseline.name == "large"
    share = 100 * (1 - len(rows) / len(found.problem.dataset.rows.test))
    assert skew == (
        f'{share:.1f} % of the test cases are "0"; correct among the {len(rows)} others: the cascade 0, large {large}'
    )


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_balanced_labels_are_not_reported_as_skewed(tmp_path: Path, share: float) -> None:
    """Where no label has nine in ten cases, accuracy is left to speak for itself."""
    report = plan(spec_of(_log(tmp_path, share)), run_in(tmp_path / "run", base=tmp_path))
    assert "skew" not in dict(report.lines)


def test_a_constant_answer_is_reported_as_skewed(tmp_path: Path) -> None:
    """A baseline that is right no more often than one label occurs: no loss against it says much."""
    path = _log(tmp_path, 0.25)
    log = tmp_path / "log.csv"
    head, *rows = (line.split(",") for line in log.read_text().splitlines())
    log.write_text("\n".join([",".join(head), *(f"{y},0,{qa},0,{qb}" for y, _, qa, _, qb in rows)]) + "\n")
    report = plan(spec_of(path), run_in(tmp_path / "run", base=tmp_path))
    assert dict(report.lines)["skew"].endswith("others: small 0")


def test_a_zero_loss_can_be_certified(tmp_path: Path) -> None:
    """A cascade that is certified to lose nothing at all is named so, not as one within a budget."""
    path = _log(tmp_path, 0.5)
    # the small model is right where it is sure and at times elsewhere, the large one where the small one is unsure
    unsure = [number * 37 % 400 / 1e4 for number in range(400)]
    rows = (
        f"{i % 2},{i % 2 if sure or i % 30 == 0 else 2},{sure + unsure[i]},{2 if sure else i % 2},{unsure[i]}"
        for i in range(400)
        for sure in [i % 3 % 2]
    )
    (tmp_path / "log.csv").write_text("y,a,qa,b,qb\n" + "\n".join(rows) + "\n")
    report = plan(spec_of(path, "goal.max_loss=0%"), run_in(tmp_path / "run", base=tmp_path))
    names = [row[0] for table in report.tables for row in table.rows]
    assert "cascade, certified" in names
    assert "cascade, within the budget" not in names


@pytest.mark.parametrize(("loss", "expected"), [(-0.04, "0.0"), (0.04, "0.0"), (-0.06, "-0.1"), (1.26, "1.3")])
def test_a_zero_loss_has_no_sign(loss: float, expected: str) -> None:
    """A loss that rounds to nothing is printed without a sign, any other as it is."""
    assert sentences.loss(loss) == expected
