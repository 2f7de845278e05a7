"""What a cascade over time tells of its exits: the ways of unseen hours are those of the plan's simulation."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.cascade.tests.runs import CONFIGS, run_in, spec_of
from unfold_cascade.learners import estimators
from unfold_cascade.temporal import handoff
from unfold_cascade.temporal.data.holdout import FILE as PROBE_FILE
from unfold_cascade.temporal.data.holdout import read
from unfold_cascade.temporal.models.study import stored
from unfold_cascade.temporal.models.training import said
from unfold_cascade.temporal.search.planner import Findings, decide
from unfold_cascade.temporal.simulation.policy import Step, ladder
from unfold_cascade.temporal.simulation.trajectories import walk
from unfold_cascade.verbs import train
from unfoldkit.api import Run, dump, fingerprint

WARDS = CONFIGS / "wards.yaml"
# stage by stage the models are ward, chart | glance, watch, full; the monolith is the last
CHAINS = (Step((0, 1), ((0.2, 0.6),), 0.5), Step((2, 3, 4), ((0.05, 0.9), (0.1, 0.95)), 0.5))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the made-up wards, trained once."""
    run = run_in(tmp_path_factory.mktemp("exits"))
    train(spec_of(WARDS), run)
    return run


@pytest.fixture(scope="module")
def found(run: Run) -> Findings:
    """What was found on them, with a cascade of chains in place of the one that was chosen."""
    plain = decide(spec_of(WARDS), run)
    point = replace(plain.choice.point, policy=CHAINS)
    return replace(plain, choice=replace(plain.choice, point=point, promised=True))


def calls(found: Findings, policy: Any, parallel: Any) -> Any:
    """Return the calls of each model in all unseen hours."""
    whole, how = found.study, ladder(policy, np.array(parallel))
    parts = (whole.calibrate, whole.test)
    moves = found.study.spec.moves or handoff.Moves()
    return sum(walk(part.clock, part.zoo, how, moves).calls.sum(axis=0) for part in parts)


def test_the_ways_hold_every_call_of_the_plan(found: Findings) -> None:
    """The models on the ways are asked as often as the simulation of the plan asks them, and every hour has a way."""
    data = handoff.exits(found)
    expected = calls(found, CHAINS, [False, True])
    assert data["cases"] == sum(way["cases"] for way in data["ways"]) > 2000
    for index, model in enumerate(data["models"]):
        count = sum(way["cases"] for way in data["ways"] if index in way["models"])
        assert count == model["cases"] == expected[found.study.models.index(f"{model['stage']}/{model['model']}")]
    assert [model["name"] for model in data["models"]][:2] == ["sirs-ward", "sirs-chart"]


def test_shares_are_those_of_the_ways(found: Findings) -> None:
    """A first model has the share of all hours that it is asked in, a later one that of its predecessor's hours."""
    data = handoff.exits(found)
    count = {model["name"]: model["cases"] for model in data["models"]}
    for model in data["models"]:
        before = model["after"] or {"": model["share"]}
        ((name, share),) = before.items()
        assert share == pytest.approx(count[model["name"]] / count.get(name, data["cases"]))
    assert sum(not model["after"] for model in data["models"]) == 2


def test_the_run_tells_what_was_planned(run: Run) -> None:
    """Training writes exits of the plan's spec, whose models and rows stand in the manifest."""
    data = json.loads(run.directory.read(handoff.EXITS_FILE))
    assert data["spec_sha256"] == fingerprint(dump(spec_of(WARDS)))
    assert data["schema"] == handoff.SCHEMA
    assert all(run.directory.read(model["file"]) for model in data["models"])
    assert run.directory.read(data["probe"])


def test_models_say_of_the_rows_what_they_said_of_the_hours(run: Run, found: Findings) -> None:
    """A stored model answers the rows that are kept for it as its log answers the same hours."""
    held, probe = stored(spec_of(WARDS), run), read(run.directory.read(PROBE_FILE))
    with np.load(io.BytesIO(run.directory.read(handoff.ROWS_FILE))) as kept:
        rows = kept["x"]
    for told in handoff.exits(found)["models"]:
        at = found.study.models.index(f"{told['stage']}/{told['model']}")
        model = estimators.from_bytes(run.directory.read(told["file"]), ubjson=told["file"].endswith(".ubj"), file="")
        p = said(model, rows[:, told["columns"]], 2, None)
        assert np.abs(p - held.logs[at].p[probe.rows]).max() < 1e-5


def test_without_a_promise_the_monolith_is_the_only_model(found: Findings) -> None:
    """Where no cascade is promised, hours go to the monolith or, their alarm being latched, nowhere."""
    data = handoff.exits(replace(found, choice=replace(found.choice, promised=False)))
    assert [model["name"] for model in data["models"]] == ["baseline-monolith"]
    assert data["models"][0]["file"].startswith("models/baseline/")
    assert data["models"][0]["cases"] == calls(found, found.rule.policy, [True])[-1]


@pytest.mark.parametrize("moves", ["{entry: sticky}", "{advance: same-step}"])
def test_what_no_route_tells_has_no_exits(found: Findings, tmp_path: Path, moves: str) -> None:
    """Where an hour begins by memory, or an answer decides in the same hour who is next, no file tells of exits."""
    spec = spec_of(WARDS, f"moves={moves}")
    fresh = run_in(tmp_path)
    handoff.keep(replace(found, study=replace(found.study, spec=spec)), fresh)
    assert not fresh.directory.has(handoff.EXITS_FILE)


def test_a_check_leaves_the_exits(run: Run, found: Findings) -> None:
    """A check of a plan against other hours writes no exits."""
    before = run.directory.files()[handoff.EXITS_FILE]
    handoff.keep(found, replace(run, options={"baseline_plan": {"decision": {}}}))
    assert run.directory.files()[handoff.EXITS_FILE] == before
