"""Laws of tables with rows in groups: split, tuned, certified and checked by whole groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from plugins.cascade.tests.runs import load_cases, recorded_spec, run_in, solve_spec, spec_of
from unfold_cascade._types import IntArray
from unfold_cascade.data.table import split_clusters
from unfold_cascade.drift.static import DriftCase, list_changes
from unfold_cascade.learners.estimators import Recipe
from unfold_cascade.models.training import FitJob, fit_model
from unfold_cascade.planner.policy import Policy, StagePolicy
from unfold_cascade.planner.policy_search import PolicyFront
from unfold_cascade.planner.problem import DriftRule, Goal
from unfold_cascade.planner.score_tables import ScoreTable, ScoreTables
from unfold_cascade.planner.select import paired_differences, select_baseline, select_cascade
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.schema.temporal import Split
from unfold_cascade.verbs import plan
from unfoldkit.api import UnfoldError

LOG = recorded_spec("talks", "12%", data=", group: talk")
FITTED = """
version: 1
kind: cascade
name: talks
data: {source: table, path: log.csv, group: talk}
stages: [{name: only, target: {column: y}, models: [{name: m, estimator: xgboost, params: {n_estimators: 3}}]}]
baseline: {candidates: [{estimator: gaussian-nb}]}
goal: {max_loss: 20%}
"""


def _log(folder: Path, talks: int = 120, *, text: str = LOG) -> CascadeSpec:
    """Write talks of 1 to 9 turns; in a talk the small model is right at all turns, or at none."""
    rng, rows = np.random.default_rng(5), []
    for talk in range(talks):
        hard, turns = rng.random() < 0.3, rng.integers(1, 10)
        for _ in range(turns):
            y = int(rng.integers(0, 3))
            sure = rng.uniform(0.3, 0.8) if hard else rng.uniform(0.5, 1.0)
            rows.append(f"t{talk},{y},{(y + hard) % 3},{sure:.3f},{y},0.9")
    (folder / "log.csv").write_text("talk,y,a,qa,b,qb\n" + "\n".join(rows) + "\n")
    (folder / "log.yaml").write_text(text)
    return spec_of(folder / "log.yaml")


@pytest.mark.parametrize("seed", range(20))
def test_no_cluster_is_in_two_parts(seed: int) -> None:
    """Whole groups are dealt to the parts, each row once, and about as many groups as the shares say."""
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(60), rng.integers(1, 12, 60))
    parts = split_clusters(rng.choice(["a", "b"], len(clusters)), clusters, Split(), seed)
    each = [parts.train, parts.calibrate, parts.test]
    assert np.array_equal(np.sort(np.concatenate(each)), np.arange(len(clusters)))
    groups = [set(clusters[part].tolist()) for part in each]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 60
    assert abs(len(groups[0]) - 30) <= 2


@pytest.mark.parametrize("name", ["talk", "patient_id"])
def test_shortened_identifiers_group_nothing(tmp_path: Path, name: str) -> None:
    """A spreadsheet writes 1.23457E+15 for many identifiers; whole ones, and ones that occur once, are left alone."""
    text = LOG.replace("group: talk", f"group: {name}") if name == "talk" else LOG.replace(", group: talk", "")
    spec, path = _log(tmp_path, text=text), tmp_path / "log.csv"
    head, *rows = [line.split(",") for line in path.read_text().splitlines()]

    def load(form: Callable[[int, int], str]) -> None:
        lines = [[name, *head[1:]], *([form(k, int(row[0][1:])), *row[1:]] for k, row in enumerate(rows))]
        path.write_text("\n".join(map(",".join, lines)) + "\n")
        load_cases(spec, run_in(tmp_path / "run", base=tmp_path))

    load(lambda _, talk: f"{1_234_567_890_123_456 + talk}")
    load(lambda _, talk: f"{1.2e15 + 1e13 * talk:.16e}")
    load(lambda _, talk: f"{talk % 60}E{talk % 9 + 10}")
    load(lambda k, _: f"{1.2 + k / 10_000:.4f}E+15")
    with pytest.raises(UnfoldError, match=r"shortened the identifiers.*1\.2E\+15.*as text"):
        load(lambda _, talk: f"1.{2 + talk // 100}E+15")


def test_a_row_without_a_cluster_is_its_own_cluster(tmp_path: Path) -> None:
    """Rows without a known group form no group together."""
    spec = _log(tmp_path)
    path = tmp_path / "log.csv"
    path.write_text(path.read_text().replace("\nt7,", "\n,").replace("\nt8,", "\nn/a,"))
    found = load_cases(spec, run_in(tmp_path / "run", base=tmp_path))
    words = [line.split(",")[0] for line in path.read_text().splitlines()[1:]]
    alone = [number for number, word in enumerate(words) if word in ("", "n/a")]
    assert found.clusters is not None
    size = np.bincount(found.clusters)
    assert set(size[found.clusters[alone]].tolist()) == {1}
    assert len(size) == 118 + len(alone)


def test_groups_are_certified_as_units(tmp_path: Path) -> None:
    """The certificate counts groups, and tests the mean difference of each, by hand the same."""
    spec, run = _log(tmp_path), run_in(tmp_path / "run", base=tmp_path)
    found = solve_spec(spec, run)
    rows, cluster_ids = found.problem.dataset.rows.calibrate, found.problem.dataset.clusters
    assert cluster_ids is not None
    d = paired_differences(
        found.tables, found.front, np.array([0]), found.baseline, found.problem.dataset.labels, rows
    )[0]
    small = found.tables.first_stage.answer[rows, found.front.policies[0].first_stage.chain[0]]
    wrong = (small != found.problem.dataset.labels[rows]).astype(float) - (
        found.baseline.answer[rows] != found.problem.dataset.labels[rows]
    )
    assert d == pytest.approx([wrong[cluster_ids[rows] == one].mean() for one in np.unique(cluster_ids[rows])])
    assert found.selection.units == len(np.unique(cluster_ids[rows]))
    assert "groups by talk" in dict(plan(spec, run).lines)["certificate"]


@pytest.mark.parametrize(
    ("column", "data", "units"), [("Patient_ID", "", 120), ("ward", "", 0), ("patient", ", duplicates: keep", 0)]
)
def test_rows_of_a_patient_are_grouped_though_no_key_names_them(
    tmp_path: Path, column: str, data: str, units: int
) -> None:
    """Visits of one patient were dealt to all parts, and certified as independent cases."""
    spec = _log(tmp_path, text=recorded_spec("talks", "12%", data=data))
    path = tmp_path / "log.csv"
    path.write_text(path.read_text().replace("talk,", f"{column},", 1))
    found = load_cases(spec, run_in(tmp_path / "run", base=tmp_path))
    assert len(set(found.clusters.tolist()) if found.clusters is not None else ()) == units
    report = plan(spec, run_in(tmp_path / "run", base=tmp_path))
    assert (f"groups by {column}" in dict(report.lines)["certificate"]) == bool(units)
    assert any("certified as 120 groups" in note for note in report.notes) == bool(units)


def _drawn(rng: np.random.Generator, talks: int, of: int) -> tuple[ScoreTables, IntArray]:
    """Return talks of one length: the small model, a fifth of all right answers lost, fails whole talks."""
    fails = np.repeat(rng.random(talks) < 0.2, of)
    answer = np.column_stack([fails.astype(np.int64), np.zeros(talks * of, dtype=np.int64)])
    sides = (frozenset[str](), frozenset[str]())
    question = ScoreTable(
        "s", "all", ("small", "large"), answer, np.ones(answer.shape), np.array([1.0, 9.0]), sides, np.full(2, np.nan)
    )
    return ScoreTables(question, {}, question, {}, {}, "$"), np.repeat(np.arange(talks), of)


@pytest.mark.e2e
def test_false_certificates_are_rare_for_clustered_rows() -> None:
    """Of 300 draws from talks that lose 20 points, few promise 18; taken row by row, many more do."""
    false = [0, 0]
    front = PolicyFront(np.array([0.2]), np.array([1.0]), (Policy(StagePolicy((0,), ()), {}),))
    for seed in range(300):
        zoo, cluster_ids = _drawn(np.random.default_rng(seed), 60, 10)
        tune, certify = np.arange(300), np.arange(300, 600)
        labels = np.zeros(600, dtype=np.int64)
        for place, one in enumerate((replace(zoo, clusters=cluster_ids), zoo)):
            base = replace(select_baseline(one, labels, tune), index=1, answer=one.first_stage.answer[:, 1], cost=9.0)
            goal = Goal(max_loss=0.18)
            false[place] += select_cascade(one, front, base, labels, tune, certify, goal).point is not None
    assert false[0] <= binom.ppf(0.9999, 300, 0.05)
    assert false[1] > binom.ppf(0.9999, 300, 0.05)


def test_out_of_fold_predictions_exclude_the_cluster() -> None:
    """A model that knows each group by heart is wrong out of fold; with a label in one fold only it is fitted still."""
    rng = np.random.default_rng(0)
    cluster_ids = np.repeat(np.arange(40), 6)
    y = np.repeat(rng.integers(0, 2, 40), 6)
    y[:12] = 2
    x = np.column_stack([rng.normal(0, 1, 40)[cluster_ids], rng.normal(0, 1e-3, 240)])

    def accuracy(recipe: Recipe, clusters: Any) -> float:
        job = FitJob(
            recipe=recipe, x=x, labels=y, training_rows=np.arange(240), folds=5, seed=0, batch=8, clusters=clusters
        )
        stored = fit_model(job)[1]
        return float((np.load(BytesIO(stored))["probability"].argmax(axis=1) == y).mean())

    tree = Recipe("decision-tree", {}, None)
    assert accuracy(tree, None) > 0.95
    assert accuracy(tree, cluster_ids) < 0.7
    assert accuracy(Recipe("xgboost", {"n_estimators": 3}, None), cluster_ids) < 0.7


def test_the_cluster_column_is_not_a_feature(tmp_path: Path) -> None:
    """Without feature groups all columns are features, but for the label and the group."""
    spec = _log(tmp_path, text=FITTED)
    found = load_cases(spec, run_in(tmp_path / "run", base=tmp_path))
    assert found.order == ("a", "qa", "b", "qb")


def test_unchanged_clusters_rarely_drift() -> None:
    """Of 60 pairs of tables from one population, with alike rows within groups, few drift; by row most would."""
    drifted = [0, 0]
    for seed in range(60):
        zoo, cluster_ids = _drawn(np.random.default_rng(seed), 60, 10)
        policy = Policy(StagePolicy((0,), ()), {})
        both = DriftCase(
            tables=zoo,
            policy=policy,
            baseline_answer=zoo.first_stage.answer[:, 1],
            before=np.arange(300),
            now=np.arange(300, 600),
            clusters=cluster_ids,
        )
        rule = DriftRule(level=0.05, margin=0.02)
        for place, one in enumerate((both, replace(both, clusters=None))):
            drifted[place] += any(change.drifted for change in list_changes(one, rule, seed))
    assert drifted[0] <= binom.ppf(0.9999, 60, 0.05)
    assert drifted[1] > binom.ppf(0.9999, 60, 0.05)


def test_too_few_clusters_are_an_error(tmp_path: Path) -> None:
    """Groups that cannot make three parts are a mistake at the key that names them."""
    spec = _log(tmp_path, talks=9)
    with pytest.raises(UnfoldError, match="9 groups; at least 10") as raised:
        load_cases(spec, run_in(tmp_path / "run", base=tmp_path))
    assert raised.value.diagnostics[0].key == "data.group"


@pytest.mark.parametrize("text", [LOG, FITTED])
def test_a_column_of_groups_without_a_group_is_an_error(tmp_path: Path, text: str) -> None:
    """Each row would count as independent, as if no column had been named."""
    spec = _log(tmp_path, text=text)
    head, *lines = (tmp_path / "log.csv").read_text().splitlines()
    rows = [f"{['', 'NA', ' '][k % 3]},{line.split(',', 1)[1]}" for k, line in enumerate(lines)]
    (tmp_path / "log.csv").write_text("\n".join([head, *rows]) + "\n")
    with pytest.raises(UnfoldError, match="talk has no value in any row") as raised:
        load_cases(spec, run_in(tmp_path / "run", base=tmp_path))
    assert raised.value.diagnostics[0].key == "data.group"
