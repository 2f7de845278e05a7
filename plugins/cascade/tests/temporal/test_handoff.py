"""Execution paths of a plan over time equal the plan's simulation of unseen hours."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from plugins.cascade.tests.runs import run_in
from plugins.cascade.tests.temporal.conftest import TrainedWards
from unfold_cascade._types import IntArray
from unfold_cascade.learners import estimators
from unfold_cascade.report.handoff import EXITS_FILE, SCHEMA
from unfold_cascade.temporal.data.serving_probe import load_probe
from unfold_cascade.temporal.handoff import ROWS_FILE, build_exits, write_exits
from unfold_cascade.temporal.models.study import load_study
from unfold_cascade.temporal.models.training import predict_probabilities
from unfold_cascade.temporal.problem import Transitions
from unfold_cascade.temporal.search.planner import SearchResult, Solution, evaluate_solution
from unfold_cascade.temporal.simulation.policy import Policy, StagePolicy, build_policy_arrays
from unfold_cascade.temporal.simulation.trajectories import simulate
from unfoldkit.api import dump, fingerprint

# model numbers by stage: ward, chart | glance, watch, full; the baseline model is the last
CHAINS = (
    StagePolicy((0, 1), ((0.2, 0.6),), 0.5),
    StagePolicy((2, 3, 4), ((0.05, 0.9), (0.1, 0.95)), 0.5),
)


@pytest.fixture(scope="module")
def solution(search: SearchResult) -> Solution:
    """The solution for the wards, with a cascade of longer chains in place of the selected one."""
    plain = evaluate_solution(search)
    point = replace(plain.selection.point, policy=CHAINS)
    return replace(plain, selection=replace(plain.selection, point=point, is_certified=True))


def count_calls(solution: Solution, policy: Policy, parallel: list[bool]) -> IntArray:
    """Count the calls of each model in all unseen hours."""
    study, arrays = solution.study, build_policy_arrays(policy, np.array(parallel))
    calls = [
        simulate(cohort.timeline, cohort.scores, arrays, solution.problem.transitions).calls.sum(axis=0)
        for cohort in (study.calibrate, study.test)
    ]
    return calls[0] + calls[1]


@pytest.mark.e2e
def test_paths_contain_every_simulated_call(solution: Solution) -> None:
    """Models on the paths are called as often as in the plan's simulation, and every hour has a path."""
    data = build_exits(solution)
    expected = count_calls(solution, CHAINS, [False, True])
    assert data["cases"] == sum(path["cases"] for path in data["ways"]) > 2000
    for index, model in enumerate(data["models"]):
        count = sum(path["cases"] for path in data["ways"] if index in path["models"])
        number = solution.study.models.index(f"{model['stage']}/{model['model']}")
        assert count == model["cases"] == expected[number]
    assert [model["name"] for model in data["models"]][:2] == ["sirs-ward", "sirs-chart"]


def test_shares_equal_those_of_the_paths(solution: Solution) -> None:
    """A first model has its share of all hours, a later one its share of the previous model's hours."""
    data = build_exits(solution)
    count = {model["name"]: model["cases"] for model in data["models"]}
    for model in data["models"]:
        ((previous, share),) = (model["after"] or {"": model["share"]}).items()
        assert share == pytest.approx(count[model["name"]] / count.get(previous, data["cases"]))
    assert sum(not model["after"] for model in data["models"]) == 2


def test_training_writes_the_paths_of_the_plan(wards: TrainedWards) -> None:
    """Training writes the paths of the plan's spec; their models and rows are in the manifest."""
    directory = wards.run.directory
    data = json.loads(directory.read(EXITS_FILE))
    assert data["spec_sha256"] == fingerprint(dump(wards.spec))
    assert data["schema"] == SCHEMA
    assert all(directory.read(model["file"]) for model in data["models"])
    assert directory.read(data["probe"])


def test_stored_rows_reproduce_stored_predictions(wards: TrainedWards, solution: Solution) -> None:
    """A stored model predicts the rows stored for it as its predictions of the same hours."""
    directory = wards.run.directory
    stored, probe = load_study(solution.problem, wards.run), load_probe(wards.run)
    with np.load(io.BytesIO(directory.read(ROWS_FILE))) as arrays:
        rows = arrays["x"]
    for described in build_exits(solution)["models"]:
        number, file = solution.study.models.index(f"{described['stage']}/{described['model']}"), described["file"]
        model = estimators.from_bytes(directory.read(file), ubjson=file.endswith(".ubj"), file="")
        p = predict_probabilities(model, rows[:, described["columns"]], 2, None)
        assert np.abs(p - stored.predictions[number].p[probe.rows]).max() < 1e-5


def test_without_a_certificate_the_baseline_is_the_only_model(solution: Solution) -> None:
    """Without a certified cascade, hours reach the baseline or, once its latched alarm is on, no model."""
    data = build_exits(replace(solution, selection=replace(solution.selection, is_certified=False)))
    assert [model["name"] for model in data["models"]] == ["baseline-monolith"]
    assert data["models"][0]["file"].startswith("models/baseline/")
    assert data["models"][0]["cases"] == count_calls(solution, solution.rule.policy, [True])[-1]


@pytest.mark.parametrize("transitions", [Transitions(entry="sticky"), Transitions(advance="same-step")])
def test_plans_without_fixed_paths_write_none(solution: Solution, tmp_path: Path, transitions: Transitions) -> None:
    """If hours start by memory, or an answer opens a stage within the same hour, no file is written."""
    problem = replace(solution.problem, transitions=transitions)
    run = run_in(tmp_path)
    write_exits(replace(solution, study=replace(solution.study, problem=problem)), run)
    assert not run.directory.has(EXITS_FILE)


def test_a_check_leaves_the_paths_unchanged(wards: TrainedWards, solution: Solution) -> None:
    """Checking a plan on other hours writes no paths."""
    before = wards.run.directory.files()[EXITS_FILE]
    write_exits(solution, replace(wards.run, options={"baseline_plan": {"decision": {}}}))
    assert wards.run.directory.files()[EXITS_FILE] == before
