"""Laws of a goal in which errors do not all cost the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from plugins.cascade.tests.runs import load_matrix, load_served, run_in, solve_spec, spec_of
from unfold_cascade.data.error_costs import EQUAL_COSTS, build_error_costs
from unfold_cascade.planner.certificate import Rule, upper_bound
from unfold_cascade.planner.planner import Solution
from unfold_cascade.planner.policy import Policy, StagePolicy, follow
from unfold_cascade.planner.policy_search import PolicyFront
from unfold_cascade.planner.problem import Goal
from unfold_cascade.planner.score_tables import ScoreTable, ScoreTables
from unfold_cascade.planner.select import paired_differences, select_baseline, select_cascade
from unfold_cascade.serving.model import BatchRows
from unfold_cascade.serving.service import build_cascade
from unfold_cascade.verbs import plan, train
from unfoldkit.api import Run, UnfoldError, dump, fingerprint

SPEC = """
version: 1
kind: cascade
name: ill
data: {source: table, path: ill.csv}
features: {asked: {columns: [q0, q1], price: 1}, lab: {columns: [l0], price: 5}}
stages:
  - name: ill
    target: {column: ill}
    models:
      - {name: quick, estimator: logistic-regression, features: [asked]}
      - {name: lab, estimator: gaussian-nb, features: [asked, lab]}
      - {name: whole, estimator: baseline}
baseline: {candidates: [{estimator: logistic-regression}, {estimator: gaussian-nb}]}
cost: {by: price}
gates: {folds: 3}
goal: {max_loss: 30%, errors: {1: 20, maybe: {1: 4, no: 3}}}
"""
WEIGHTS = {"1": {"maybe": 20.0, "no": 20.0}, "maybe": {"1": 4.0, "no": 3.0}, "no": {"1": 1.0, "maybe": 1.0}}


def _planned(folder: Path, *settings: str) -> tuple[Solution, Run]:
    rng, n = np.random.default_rng(4), 900
    kind = rng.choice(3, n, p=[0.8, 0.15, 0.05])
    x = rng.normal(0, 1, (n, 3)) + kind[:, None] * [0.5, 0.8, 1.2]
    rows = (",".join(f"{v:.4f}" for v in row) + f",{['no', 'maybe', '1'][k]}" for row, k in zip(x, kind, strict=True))
    (folder / "ill.csv").write_text("q0,q1,l0,ill\n" + "\n".join(rows) + "\n")
    (folder / "ill.yaml").write_text(SPEC)
    run = run_in(folder / "run", base=folder)
    return solve_spec(spec_of(folder / "ill.yaml", *settings), run), run


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Solution:
    return _planned(tmp_path_factory.mktemp("ill"))[0]


def _cost(names: tuple[str, ...], answer: Any, truth: Any) -> np.ndarray:
    """Return what answers cost by hand, as a share of what the dearest answers to all cases would cost on average."""
    pairs = zip(answer, truth, strict=True)
    return np.array([0.0 if a == t else WEIGHTS[names[t]][names[a]] for a, t in pairs])


def _scale(found: Solution) -> float:
    names, labels = found.problem.dataset.names, found.problem.dataset.labels
    return float(np.mean([max(WEIGHTS[names[label]].values()) for label in labels]))


def test_predictions_minimize_the_expected_cost(found: Solution) -> None:
    """Of all answers the one of least expected cost is given, by hand the same; its confidence falls with that cost."""
    names, stakes = found.problem.dataset.names, found.tables.error_costs
    p = np.random.default_rng(0).dirichlet([1, 1, 1], 200)
    cost = np.array([[0.0 if a == t else WEIGHTS[t][a] for a in names] for t in names])
    expected = p @ cost
    assert stakes.decide(p).tolist() == expected.argmin(axis=1).tolist()
    assert np.array_equal(np.argsort(stakes.confidence(p)), np.argsort(-expected.min(axis=1)))


def test_equal_error_costs_change_nothing() -> None:
    """If each error costs the same, answers, losses and confidences are those of a goal without costs."""
    p = np.random.default_rng(1).dirichlet([1, 1, 1], 200)
    truth, said = np.arange(200) % 3, p.argmax(axis=1)
    alike = build_error_costs({"a": 5.0, "b": 5.0, "c": {"a": 5.0, "b": 5.0}}, ("a", "b", "c"), truth)
    assert alike.decide(p).tolist() == EQUAL_COSTS.decide(p).tolist() == said.tolist()
    assert alike.losses(said, truth) == pytest.approx(EQUAL_COSTS.losses(said, truth))
    assert alike.confidence(p) == pytest.approx(EQUAL_COSTS.confidence(p))


def test_front_and_baseline_losses_are_error_costs(found: Solution) -> None:
    """The loss of each cascade of the front is the mean cost of its errors; the reference loses least of the single."""
    rows, labels, names = found.problem.dataset.rows.train, found.problem.dataset.labels, found.problem.dataset.names
    scale = _scale(found)
    for loss, policy in zip(found.front.loss, found.front.policies, strict=True):
        answer = follow(found.tables, policy, rows).answer
        assert loss == pytest.approx(_cost(names, answer, labels[rows]).mean() / scale)
    single = [_cost(names, found.tables.candidates.answer[rows, m], labels[rows]).mean() for m in range(2)]
    assert found.baseline.index == int(np.argmin(single))


def test_certificates_bound_the_cost_of_errors(found: Solution) -> None:
    """Certified differences are within [-1, 1], and those of the cost of errors, as shares of the dearest one."""
    given, certify = found.problem.dataset, found.problem.dataset.rows.calibrate
    every = np.arange(len(found.front.policies))
    d = paired_differences(found.tables, found.front, every, found.baseline, given.labels, certify)
    assert np.abs(d).max() <= 1.0
    answer = follow(found.tables, found.front.policies[0], certify).answer
    both = (_cost(given.names, one, given.labels[certify]) for one in (answer, found.baseline.answer[certify]))
    assert d[0] == pytest.approx(np.subtract(*both) / 20.0)


def test_the_bound_within_a_budget_is_near_the_best_wager() -> None:
    """With rare, expensive errors, some of them mended, the bound within a budget is near that of the best wager."""
    rng = np.random.default_rng(0)
    labels = (rng.random(2250) < 0.1).astype(np.int64)
    answer = np.where(rng.random((2250, 2)) < [0.35, 0.2], 0, labels[:, None])
    sides, score = (frozenset[str](), frozenset[str]()), np.ones((2250, 2))
    question = ScoreTable(
        "s", "all", ("small", "large"), answer, score, np.array([1.0, 9.0]), sides, np.full(2, np.nan)
    )
    zoo = ScoreTables(question, {}, question, {}, {}, "$", build_error_costs({"1": 25.0}, ("0", "1"), labels))
    front = PolicyFront(np.array([0.1]), np.array([1.0]), (Policy(StagePolicy((0,), ()), {}),))
    tune, certify = np.arange(1500), np.arange(1500, 2250)
    base, goal = select_baseline(zoo, labels, tune), Goal(budget=2.0)
    d = paired_differences(zoo, front, np.array([0]), base, labels, certify)[0]
    best = min(upper_bound(d, 0.95, Rule("betting", wager)) for wager in np.linspace(0.02, 1.0, 50))
    assert (
        select_cascade(zoo, front, base, labels, tune, certify, goal).certified_loss
        < 1.5 * best * zoo.error_costs.maximum
    )


def test_balanced_errors_are_balanced_accuracy(tmp_path: Path) -> None:
    """With balanced errors, 1 less the mean loss over all cases is the balanced accuracy of scikit-learn."""
    found, _ = _planned(tmp_path, "goal.errors=balanced")
    labels, answer = found.problem.dataset.labels, found.baseline.answer
    loss = found.tables.error_costs.losses(answer, labels).mean()
    assert 1 - loss == pytest.approx(balanced_accuracy_score(labels, answer))


def test_expensive_errors_are_avoided(tmp_path: Path) -> None:
    """Where an error on the rare label is dear, more of its cases are found than where all errors cost the same."""
    right = []
    for folder, setting in (("alike", "goal.errors=null"), ("dear", "goal.errors={'1': 40}")):
        (tmp_path / folder).mkdir()
        found, _ = _planned(tmp_path / folder, setting)
        rare = found.problem.dataset.labels == found.problem.dataset.names.index("1")
        right.append((found.baseline.answer[rare] == found.problem.dataset.labels[rare]).mean())
    assert right[0] + 0.2 < right[1]


def test_served_answers_minimize_the_expected_cost(tmp_path: Path) -> None:
    """A served cascade gives the answers that its plan was judged by, other ones than the likeliest among them."""
    found, run = _planned(tmp_path)
    spec = spec_of(tmp_path / "ill.yaml")
    baseline_plan = {"decision": train(spec, run).decision, "seed": run.seed, "spec_sha256": fingerprint(dump(spec))}
    run = replace(run, options={"plan": baseline_plan})
    loaded = load_served(spec, run)
    model, _ = build_cascade(loaded, run, lambda _way: None)
    x = load_matrix(spec, run, found.problem.dataset)
    rows = np.concatenate([found.problem.dataset.rows.calibrate, found.problem.dataset.rows.test])
    planned = follow(loaded.tables, loaded.policy, rows).answer
    assert np.mean(np.array(model.follow(x[rows]).answer) == planned) > 0.995
    likeliest = (
        model.first_stage[0]
        .model.predict(BatchRows({np.float32: x.astype(np.float32), np.float64: x}), rows)
        .argmax(axis=1)
    )
    assert (found.tables.first_stage.answer[rows, loaded.policy.first_stage.chain[0]] != likeliest).any()


def test_error_costs_apply_to_recorded_predictions(tmp_path: Path) -> None:
    """A recorded answer that is not a label costs as much as the worst one that is."""
    rng = np.random.default_rng(0)
    y = np.where(rng.random(400) < 0.1, "sick", "well")
    said = rng.choice(["well", "?!"], 400)
    rows = (f"{t},{a},{q:.3f},{t},0.9" for t, a, q in zip(y, said, rng.random(400), strict=True))
    (tmp_path / "log.csv").write_text("y,a,qa,b,qb\n" + "\n".join(rows) + "\n")
    (tmp_path / "log.yaml").write_text(
        "version: 1\nkind: cascade\nname: log\ndata: {source: recorded, path: log.csv}\nstages:\n  - name: s\n"
        "    target: {column: y}\n    models:\n"
        "      - {name: a, price: 1, recorded: {prediction: a, confidence: qa}}\n"
        "      - {name: b, price: 9, recorded: {prediction: b, confidence: qb}}\n"
        "cost: {by: price}\ngoal: {max_loss: 5%, errors: {sick: {well: 20}}}\n"
    )
    found = solve_spec(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "run", base=tmp_path))
    sick = found.problem.dataset.names.index("sick")
    cost = found.tables.error_costs.losses(np.array([sick, 1 - sick, 2]), np.full(3, sick))
    assert cost[0] == 0.0
    assert cost[1] == cost[2] == found.tables.error_costs.maximum


def test_an_unknown_label_is_an_error(tmp_path: Path) -> None:
    """A cost of errors on a label that does not occur is a mistake at its key, with what was meant."""
    with pytest.raises(UnfoldError, match="no label") as raised:
        _planned(tmp_path, "goal.errors={mabye: 2}")
    assert raised.value.diagnostics[0].key == "goal.errors"
    assert "maybe" in raised.value.diagnostics[0].hint


def test_the_report_states_the_costs_of_errors(tmp_path: Path) -> None:
    """The loss of a report is the difference of its two weighted accuracies, and a line says what errors cost."""
    _, run = _planned(tmp_path)
    report = plan(spec_of(tmp_path / "ill.yaml"), run)
    own, base = (float(report.metrics[f"{who}_weighted_accuracy"].value or 0) for who in ("cascade", "baseline"))
    assert report.metrics["loss_points"].value == pytest.approx(100 * (base - own))
    assert 'an error on "1" costs 20' in dict(report.lines)["errors"]
