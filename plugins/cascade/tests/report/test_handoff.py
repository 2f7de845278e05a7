"""What a cascade reports about its exits, for kinds that read its run."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.cascade.tests.runs import CONFIGS, TUMOURS, run_in, solve_spec, spec_of
from unfold_cascade.planner.planner import Solution
from unfold_cascade.planner.policy import follow
from unfold_cascade.report import handoff
from unfold_cascade.verbs import plan, train
from unfoldkit.api import Run, dump, fingerprint

DIGITS = (
    "stages[0].models=[{name: linear, estimator: logistic-regression}, {name: whole, estimator: baseline}]",
    "stages[1].models=[{name: linear, estimator: logistic-regression}, {name: whole, estimator: baseline}]",
    "baseline.candidates=[{estimator: svc, params: {C: 10, gamma: 0.001}, scale: false}]",
)


@pytest.fixture(scope="module", params=["one question", "two questions"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Solution, Run]:
    spec = spec_of(TUMOURS) if request.param == "one question" else spec_of(CONFIGS / "digits.yaml", *DIGITS)
    run = run_in(tmp_path_factory.mktemp("exits"))
    train(spec, run)
    return solve_spec(spec, run), run


def read_exits(run: Run) -> dict[str, Any]:
    return dict(json.loads(run.directory.read(handoff.EXITS_FILE)))


@given(st.dictionaries(st.frozensets(st.integers(1, 6), max_size=5), st.integers(1, 50), min_size=1))
def test_transition_shares_conserve_cases(ways: dict[frozenset[int], int]) -> None:
    """The cases at a place are those that enter there and, by the shares, those that are passed on to it."""
    rows = {(0, *sorted(way)): count for way, count in ways.items()}
    shares = handoff.transition_shares(rows)
    at = Counter[int]()
    for way, count in rows.items():
        at.update(dict.fromkeys(way, count))
    for place in set(at) - {0}:
        came = sum(share * at[parent] for (parent, child), share in shares.items() if child == place)
        assert came == pytest.approx(at[place])
    assert all(0 < share <= 1 for share in shares.values())


def test_path_times_add_up_to_the_plan(trained: tuple[Solution, Run]) -> None:
    """The models on the ways take, case by case, the time that the cascade takes on the same cases."""
    found, run = trained
    data = read_exits(run)
    zoo, policy = handoff.select_served_policy(found)
    rows = np.concatenate([found.problem.dataset.rows.calibrate, found.problem.dataset.rows.test])
    times = [model["latency_us"] for model in data["models"]]
    total = sum(way["cases"] * sum(times[m] for m in way["models"]) for way in data["ways"])
    assert data["cases"] == len(rows)
    assert total / len(rows) == pytest.approx(float(follow(zoo, policy, rows).latency_us.mean()))


def test_every_model_is_stored_in_the_run(trained: tuple[Solution, Run]) -> None:
    """Each listed model has a file in the manifest, and names are both keys and files."""
    found, run = trained
    data = read_exits(run)
    assert data["schema"] == handoff.SCHEMA
    assert data["spec_sha256"] == fingerprint(found.problem.identity)
    names = [model["name"] for model in data["models"]] + data["unasked"]
    assert len(set(names)) == len(names)
    for model in data["models"]:
        assert run.directory.read(model["file"])
        assert "/" not in model["name"]
    assert run.directory.read(data["probe"])


def test_the_baseline_is_evaluated_once(trained: tuple[Solution, Run]) -> None:
    """No way holds two places where the monolith answers."""
    data = read_exits(trained[1])
    base = {index for index, model in enumerate(data["models"]) if "/baseline/" in f"/{model['file']}"}
    assert all(len(base.intersection(way["models"])) <= 1 for way in data["ways"])


def test_without_a_cascade_the_baseline_is_the_only_model(tmp_path: Path) -> None:
    """Where only the monolith keeps the promise, every case goes to it, and nowhere else."""
    run = run_in(tmp_path)
    found = solve_spec(spec_of(TUMOURS), run)
    alone = replace(found, selection=replace(found.selection, point=None))
    data = handoff.describe_exits(alone, run.directory)
    assert [way["models"] for way in data["ways"]] == [[0]]
    assert data["models"][0]["file"].startswith("models/baseline/")
    assert data["ways"][0]["cases"] == data["cases"]


def test_another_goal_has_other_exits(tmp_path: Path) -> None:
    """Planning anew writes the exits of the new plan; a check leaves those of the run."""
    run = run_in(tmp_path)
    train(spec_of(TUMOURS), run)
    before = run.directory.read(handoff.EXITS_FILE)
    other = spec_of(TUMOURS, "goal.max_loss=30%")
    plan(other, replace(run, options={"baseline_plan": {"decision": {}}}))
    assert run.directory.read(handoff.EXITS_FILE) == before
    plan(other, run)
    assert read_exits(run)["spec_sha256"] == fingerprint(dump(other)) != json.loads(before)["spec_sha256"]


def test_recorded_predictions_have_no_exits(tmp_path: Path) -> None:
    """Where there are no models, no file describes exits."""
    run = run_in(tmp_path)
    plan(spec_of(CONFIGS / "api-logs.yaml"), run)
    assert not run.directory.has(handoff.EXITS_FILE)
