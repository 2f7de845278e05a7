"""Laws of cautious cascades: those that make few cases worse, which a certificate tests first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.cascade.tests.runs import CONFIGS, load_served, recorded_spec, run_in, solve_spec, spec_of
from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.planner.planner import Solution, read_fronts, write_fronts
from unfold_cascade.planner.policy import Policy, follow
from unfold_cascade.planner.policy_search import search_policies
from unfold_cascade.planner.problem import GateOptions
from unfold_cascade.planner.score_tables import ScoreTable, ScoreTables
from unfold_cascade.planner.select import select_cascade
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.verbs import plan
from unfoldkit.api import UnfoldError, dump, fingerprint


def _draw_log(seed: int, cases: int) -> tuple[IntArray, IntArray, FloatArray]:
    """Draw (n,) labels, and (n, 2) answers and confidences of two models that find the same cases hard."""
    rng = np.random.default_rng(seed)
    margin = np.array([1.2, 2.0]) - rng.normal(size=(cases, 1)) + 0.6 * rng.normal(size=(cases, 2))
    labels = rng.integers(0, 3, cases)
    answers = np.where(margin > 0, labels[:, None], (labels[:, None] + 1) % 3)
    return labels, answers, np.round(np.abs(margin), 3).astype(np.float64)


def _write_spec(folder: Path, seed: int) -> CascadeSpec:
    labels, answers, confidences = _draw_log(seed, 1200)
    rows = zip(labels, answers, confidences, strict=True)
    text = "".join(f"{y},{a},{qa},{b},{qb}\n" for y, (a, b), (qa, qb) in rows)
    (folder / "log.csv").write_text("y,a,qa,b,qb\n" + text)
    (folder / "log.yaml").write_text(recorded_spec("cautious", "2%"))
    return spec_of(folder / "log.yaml")


def _solve(folder: Path, seed: int) -> Solution:
    folder.mkdir(exist_ok=True)
    return solve_spec(_write_spec(folder, seed), run_in(folder / "run", base=folder, seed=seed))


def _cuts(policy: Policy) -> tuple[tuple[int, ...], tuple[float, ...]]:
    return policy.first_stage.chain, policy.first_stage.cuts


@given(st.integers(0, 10_000))
def test_the_cautious_front_counts_what_is_lost_beside_the_baseline(seed: int) -> None:
    """Each point reproduces its added loss; no other cascade adds less at the same cost, and one adds nothing."""
    labels, answer, score = _draw_log(seed, 60)
    prices, groups = np.array([1.0, 9.0]), (frozenset[str](),) * 2
    table = ScoreTable("answer", "all", ("a", "b"), answer, score, prices, groups, np.full(2, np.nan))
    tables, rows = ScoreTables(table, {}, table, {}, {}, "$"), np.arange(len(labels))
    baseline = (answer[:, 1] != labels).astype(np.float64)

    def added_loss(answers: IntArray) -> float:
        return float(np.maximum((answers != labels) - baseline, 0.0).mean())

    cautious = search_policies(tables, labels, labels, rows, GateOptions(), baseline=answer[:, 1])
    for loss, policy in zip(cautious.loss, cautious.policies, strict=True):
        assert added_loss(follow(tables, policy, rows).answer) == pytest.approx(loss)
    assert cautious.loss[-1] == 0.0
    for policy in search_policies(tables, labels, labels, rows, GateOptions()).policies:
        outcome = follow(tables, policy, rows)
        affordable = cautious.loss[cautious.cost <= outcome.cost.mean() + 1e-9]
        assert affordable.min() <= added_loss(outcome.answer) + 1e-9


@given(st.integers(0, 10_000))
def test_cautious_cascades_of_two_stages_count_what_is_lost_beside_the_baseline(seed: int) -> None:
    """Each point reproduces its added loss and its cost, and the baseline in both stages adds nothing."""
    labels, answer, score = _draw_log(seed, 60)
    rng, rows, groups = np.random.default_rng(seed), np.arange(len(labels)), np.array([0, 0, 1])
    shared, times = (frozenset[str](),) * 2, np.full(2, np.nan)
    first = ScoreTable("group", "all", ("a", "b"), groups[answer], score, np.array([1.0, 9.0]), shared, times)
    # the second model of each stage is the baseline
    other = np.where(rng.random(len(labels)) < 0.7, answer[:, 1], rng.integers(0, 3, len(labels)))
    answers = np.column_stack((other, answer[:, 1]))
    second = {
        number: ScoreTable("label", str(number), ("c", "d"), answers, score, np.array([2.0, 20.0]), shared, times)
        for number in (0, 1)
    }
    tables = ScoreTables(first, second, first, {}, {}, "$")
    lost = (answer[:, 1] != labels).astype(np.float64)
    cautious = search_policies(tables, labels, groups, rows, GateOptions(), baseline=answer[:, 1])
    for loss, cost, policy in zip(cautious.loss, cautious.cost, cautious.policies, strict=True):
        outcome = follow(tables, policy, rows)
        assert float(np.maximum((outcome.answer != labels) - lost, 0.0).mean()) == pytest.approx(loss)
        assert float(outcome.cost.mean()) == pytest.approx(cost)
    assert cautious.loss[-1] == 0.0


@pytest.mark.e2e
def test_cautious_cascades_turn_refusals_into_savings(tmp_path: Path) -> None:
    """Over splits of the shipped log a front alone is refused more often: its points look better than they are."""
    spec, refused = spec_of(CONFIGS / "api-logs.yaml", "gates.bins=64"), np.zeros(2)
    for seed in range(10):
        solution = solve_spec(spec, run_in(tmp_path / str(seed), seed=seed))
        problem = solution.problem
        labels, rows = problem.dataset.labels, problem.dataset.rows
        for index, cascades in enumerate((solution.front, solution.candidates)):
            selection = select_cascade(
                solution.tables, cascades, solution.baseline, labels, rows.train, rows.calibrate, problem.goal
            )
            refused[index] += selection.point is None
    assert refused[1] <= refused[0] - 2


def test_a_cautious_cascade_is_stored_and_served(tmp_path: Path) -> None:
    """A cascade that is not on the front is selected, reported beside its ends, and found again in the run."""
    solution = _solve(tmp_path / "solved", 4)
    assert solution.policy is not None
    assert all(policy is not solution.policy for policy in solution.front.policies)
    assert (np.diff(solution.front.loss) < 0).all()
    again = read_fronts(write_fronts(solution.fronts), "front.json")
    assert [_cuts(each) for each in again.front.policies + again.cautious.policies] == [
        _cuts(each) for each in solution.candidates.policies
    ]
    spec, run = _write_spec(tmp_path, 4), run_in(tmp_path / "run", base=tmp_path, seed=4)
    report = plan(spec, run)
    assert [row[0] for row in report.tables[0].rows[1:]] == [
        "cascade, certified", "cascade, most accurate", "cascade, cheapest"
    ]  # fmt: skip
    stored = {"spec_sha256": fingerprint(dump(spec)), "seed": run.seed, "decision": report.decision}
    assert _cuts(load_served(spec, replace(run, options={"plan": stored})).policy) == _cuts(solution.policy)
    for stages, problem in ((5, "not the plan"), ([-1], "not the plan"), ([], "no such cascade")):
        damaged = {**stored, "decision": {**stored["decision"], "cascade": stages}}
        with pytest.raises(UnfoldError, match=rf"plan\.yaml: .*{problem}") as error:
            load_served(spec, replace(run, options={"plan": damaged}))
        assert error.value.code == 2
