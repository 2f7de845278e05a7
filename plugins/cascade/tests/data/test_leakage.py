"""Laws of leakage: copies are grouped, coincidences are not, and a leaked label certifies nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn import datasets

from plugins.cascade.tests.runs import OWN, recorded_spec, run_in, spec_of
from unfold_cascade._types import FloatArray
from unfold_cascade.data.leakage import find_copies, find_label_columns, find_label_marks, is_oracle, join_groups
from unfold_cascade.verbs import plan
from unfold_cascade.verbs.check_inputs import check_inputs
from unfoldkit.api import Report, Verdict

RNG = np.random.default_rng
PATIENTS, VISITS = 75, 12


def _copy(rows: FloatArray) -> FloatArray:
    return np.repeat(rows, VISITS, axis=0)


def _visits(seed: int) -> FloatArray:
    rows = _copy(RNG(seed).normal(size=(PATIENTS, 4)))
    rows[:, 2] = np.tile(np.arange(VISITS), PATIENTS)
    return rows


COPIED: dict[str, Callable[[int], FloatArray]] = {
    "equal": lambda seed: _copy(RNG(seed).normal(size=(PATIENTS, 3))),
    "one column": lambda seed: _copy(RNG(seed).normal(size=(PATIENTS, 1))),
    "two digits": lambda seed: _copy(RNG(seed).uniform(size=(PATIENTS, 4)).round(2)),
    "whole numbers": lambda seed: _copy(RNG(seed).integers(0, 500, (PATIENTS, 4)).astype(float)),
    "jitter": lambda seed: _copy(RNG(seed).normal(size=(PATIENTS, 5))) + 1e-3 * RNG(seed).normal(size=(900, 5)),
    "visit number": _visits,
}
INDEPENDENT: dict[str, Callable[[int], FloatArray]] = {
    "continuous": lambda seed: RNG(seed).normal(size=(900, 3)),
    "one column": lambda seed: RNG(seed).uniform(size=(900, 1)).round(3),
    "three levels": lambda seed: RNG(seed).integers(0, 3, (900, 4)).astype(float),
    "one digit": lambda seed: RNG(seed).uniform(size=(900, 3)).round(1),
    "saturated": lambda seed: np.minimum(
        RNG(seed).normal(1, 0.2, (900, 1)) + 0.02 * RNG(seed).normal(size=(900, 3)), 1
    ),
    "many columns": lambda seed: RNG(seed).normal(size=(900, 30)),
}


@pytest.mark.parametrize("scale", [1e-300, 1e200, 1e307])
@pytest.mark.parametrize("times", [1, 4])
def test_copies_are_counted_among_huge_and_tiny_numbers(scale: float, times: int) -> None:
    """A column with overflowing squares hides no copies and invents none."""
    rows = RNG(0).normal(size=(300, 3)) * [scale, 1.0, 1.0]
    copies = find_copies(np.repeat(rows, times, axis=0))
    assert (0 if copies is None else copies.identical) == 300 * (times - 1)


@pytest.mark.parametrize("name", COPIED)
@pytest.mark.parametrize("seed", range(3))
def test_copies_are_found(name: str, seed: int) -> None:
    """Of 900 rows that repeat 75, no more than 75 count."""
    copies = find_copies(COPIED[name](seed)[RNG(seed).permutation(900)])
    assert copies is not None
    assert copies.distinct <= PATIENTS
    assert copies.identical + copies.near == 900 - copies.distinct
    assert (copies.near > 0) == (name in ("jitter", "visit number"))


@pytest.mark.parametrize("name", INDEPENDENT)
@pytest.mark.parametrize("seed", range(3))
def test_coincidences_are_no_copies(name: str, seed: int) -> None:
    """Rows of a coarse or saturated table that are equal by chance stay cases of their own."""
    copies = find_copies(INDEPENDENT[name](seed))
    assert copies is None or copies.distinct > 0.98 * 900


def test_groups_are_joined_through_shared_rows() -> None:
    """A row that two groupings place with different rows joins them all."""
    joined = join_groups(np.array([0, 0, 1, 2, 3]), np.array([5, 6, 6, 7, 8]))
    assert joined.tolist() == [0, 0, 0, 1, 2]


def test_only_a_column_that_predicts_the_label_without_error_is_leaked() -> None:
    """Codes and thresholds of the label are found; good features are not."""
    rng = RNG(1)
    labels = rng.integers(0, 3, 600)
    columns = {
        "code": np.array([7.0, 1.0, 4.0])[labels],
        "shifted": labels + 0.4 * rng.uniform(size=600),
        "good": labels + 0.5 * rng.normal(size=600),
        "noise": rng.normal(size=600),
    }
    assert find_label_columns(columns, labels) == ("code", "shifted")
    right = rng.random(600) < 0.8
    assert is_oracle(right + 0.1 * rng.uniform(size=600), right)
    assert not is_oracle(right + rng.normal(size=600), right)


def _plan_table(folder: Path, rows: FloatArray, labels: FloatArray, *settings: str) -> Report:
    lines = [f"{a:.6f},{b:.6f},{int(y)}" for (a, b), y in zip(rows, labels, strict=True)]
    (folder / "own.csv").write_text("\n".join(["a,b,y", *lines]) + "\n")
    text = OWN.replace(
        "models: [{name: m, estimator: logistic-regression}]",
        "models: [{name: m, estimator: decision-tree}, {name: n, estimator: random-forest}]",
    ).replace("{estimator: logistic-regression}]", "{estimator: random-forest, params: {n_estimators: 50}}]")
    (folder / "own.yaml").write_text(text.replace("1%", "5%"))
    return plan(spec_of(folder / "own.yaml", *settings), run_in(folder / "run", base=folder))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_random_labels_with_copies_are_never_certified(tmp_path: Path, seed: int) -> None:
    """Twelve copies a patient: grouped, they certify nothing; each as a case of its own, the models have seen them."""
    rng = RNG(seed)
    rows, labels = _copy(rng.normal(size=(PATIENTS, 2))), np.repeat(rng.integers(0, 2, PATIENTS), VISITS)
    report = _plan_table(tmp_path, rows, labels)
    assert report.verdict is Verdict.NO
    assert "825 rows of own.csv repeat others (825 identical)" in report.notes[0]
    assert "distinct rows" in dict(report.lines)["certificate"]
    kept = _plan_table(tmp_path, rows, labels, "data.duplicates=keep")
    assert float(kept.metrics["baseline_accuracy"].value or 0) > 0.95
    assert "each counts as a case of its own" in kept.notes[0]


@pytest.mark.slow
def test_a_leaked_label_certifies_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A column that holds the label refuses the plan, names itself, and passes once it is trusted."""
    rng = RNG(3)
    labels = rng.integers(0, 2, 600)
    rows = np.column_stack([labels + 0.1 * rng.uniform(size=600), rng.normal(size=600)])
    report = _plan_table(tmp_path, rows, labels)
    assert report.verdict is Verdict.NO
    assert '"a" predicts the label without error' in report.headline
    assert "leaked label" not in _plan_table(tmp_path, rows, labels, "data.trusted=[a]").headline
    with caplog.at_level(logging.WARNING):
        assert not list(check_inputs(spec_of(tmp_path / "own.yaml"), run_in(tmp_path / "new", base=tmp_path)))
    assert '"a" predicts the label' in caplog.text


def test_copied_recorded_rows_count_once(tmp_path: Path) -> None:
    """Sixty distinct recorded rows stay sixty, however often each was written."""
    rng = RNG(4)
    labels = rng.integers(0, 2, 60)
    answers = [np.where(rng.random(60) < accuracy, labels, 1 - labels) for accuracy in (0.9, 0.97)]
    values = zip(labels, answers[0], rng.uniform(size=60), answers[1], rng.uniform(size=60), strict=True)
    lines = [f"{y},{a},{qa:.3f},{b},{qb:.3f}" for y, a, qa, b, qb in values] * 15
    (tmp_path / "log.csv").write_text("y,a,qa,b,qb\n" + "\n".join(lines) + "\n")
    (tmp_path / "log.yaml").write_text(recorded_spec("copied", "5%"))
    report = plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "run", base=tmp_path))
    assert report.verdict is Verdict.NO
    assert " distinct rows cannot certify" in dict(report.lines)["certificate"]


def _load(name: str) -> FloatArray:
    loaded: FloatArray = np.asarray(getattr(datasets, f"load_{name}")().data, dtype=np.float64)
    return loaded


@pytest.mark.parametrize("name", ["wine", "breast_cancer", "diabetes"])
@pytest.mark.parametrize("times", [2, 6])
def test_copies_with_noise_in_every_column_are_grouped(name: str, times: int) -> None:
    """Noise of a twentieth of the spread of each column hides no copies of a real table."""
    rng, rows = RNG(times), _load(name)
    distinct = rows[rng.permutation(len(rows))[: 600 // times]]
    number = rng.permutation(np.repeat(np.arange(len(distinct)), times))
    copies = find_copies(distinct[number] + 0.05 * rows.std(axis=0) * rng.normal(size=(len(number), rows.shape[1])))
    assert copies is not None
    assert copies.near >= 0.9 * (len(number) - len(distinct))
    mixed = sum(len(np.unique(number[copies.unit == unit])) > 1 for unit in range(copies.distinct))
    assert mixed <= 0.02 * copies.distinct


def test_neighbours_of_independent_rows_are_no_copies() -> None:
    """Real tables, lattices in two dimensions, curves, clusters and heavy tails hold no copies with noise."""
    rng = RNG(11)
    curve = np.sort(rng.random(1500))
    tables = {
        **{name: _load(name) for name in ("iris", "wine", "breast_cancer", "diabetes", "digits")},
        "lattice": np.round(rng.lognormal(0, 0.3, (3000, 2)), 3),
        "curve": np.column_stack([curve, curve**2, curve**3]),
        "clusters": datasets.make_blobs(1000, n_features=8, centers=20, random_state=1)[0],
        "heavy tails": rng.standard_cauchy((2000, 6)),
        "pairs": np.repeat(rng.normal(size=(500, 10)), 2, axis=0) + 0.4 * rng.normal(size=(1000, 10)),
    }
    for name, rows in tables.items():
        copies = find_copies(rows)
        assert copies is None or copies.near <= 0.01 * len(rows), name


def test_copies_of_two_columns_are_grouped_if_one_is_drawn_anew() -> None:
    """Fifteen copies with a second value measured anew count once; the uneven leaves of a tree are no copies."""
    rng = RNG(12)
    copied = np.column_stack([np.repeat(rng.normal(size=60).round(4), 15), rng.normal(size=900)])
    copies = find_copies(copied)
    assert copies is not None
    assert copies.distinct == 60
    leaves = rng.choice(rng.random(30), 900, p=rng.dirichlet(np.ones(30) * 3))
    assert find_copies(np.column_stack([leaves, rng.normal(size=900)])) is None


@pytest.mark.parametrize("seed", range(10))
def test_the_number_of_a_row_in_a_sorted_table_is_a_leak(seed: int) -> None:
    """Each label is one interval of such a column, wherever the halves of the test happen to part."""
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.integers(0, 2 + seed % 3, 150 + 50 * seed))
    columns = {
        "row": np.arange(len(labels), dtype=np.float64),
        "noise": rng.normal(size=len(labels)),
        "constant": np.zeros(len(labels)),
    }
    assert find_label_columns(columns, labels) == ("row",)


def test_what_follows_from_an_outcome_marks_it() -> None:
    """A value that is there, is missing or is on for many cases of one label alone; measurements and tests are none."""
    rng = np.random.default_rng(3)
    labels = (rng.random(3000) < 0.2).astype(np.int64)
    sick, alone = labels == 1, (labels == 1) & (rng.random(3000) < 0.5)
    columns = {
        "organism": np.where(alone, rng.integers(1, 9, 3000), np.nan),
        "home": np.where(alone, np.nan, rng.normal(size=3000)),
        "pressor": alone.astype(np.float64),
        "antibiotic_days": np.where(alone, rng.integers(1, 15, 3000), 0),
        "code": np.where(rng.random(3000) < 0.015, ~sick, sick).astype(np.float64),
        "lactate": rng.lognormal(2.0 * sick, 0.4),
        "positive_test": np.where(sick, rng.random(3000) < 0.9, rng.random(3000) < 0.04).astype(np.float64),
        "sparse": np.where(rng.random(3000) < 0.3, rng.normal(size=3000), np.nan),
        "empty": np.full(3000, np.nan),
    }
    marks = {mark.column: (mark.state, mark.label) for mark in find_label_marks(columns, labels)}
    assert marks == {
        "organism": ("filled", 1),
        "home": ("empty", 1),
        "pressor": ("1", 1),
        "antibiotic_days": ("nonzero", 1),
        "code": ("1", 1),
    }


@pytest.mark.parametrize("name", ["digits", "iris", "wine", "breast_cancer"])
def test_measurements_mark_no_label(name: str) -> None:
    """Pixels that are dark for most digits, and measurements that nearly decide, get no note."""
    bunch = getattr(datasets, f"load_{name}")()
    columns = {str(k): column.astype(np.float64) for k, column in enumerate(bunch.data.T)}
    assert not find_label_marks(columns, bunch.target)
