"""The verb ``train``: placement policies, metrics, edited plans and refusals."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tuning_runs import SPEC, load_spec, train_spec

from unfold_tuning.cluster.factory import build_cluster
from unfold_tuning.cluster.provider import build_local_provider
from unfold_tuning.executor.executor import Executor
from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig
from unfold_tuning.job.allocation import Allocation
from unfold_tuning.job.build import build_cluster_config, resolve_trainable
from unfold_tuning.job.problem import TrainableConfig
from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import build_custom_stages
from unfold_tuning.schema.tuning import TuningSpec
from unfold_tuning.trial.ledger import open_ledger
from unfold_tuning.trial.trainable import WorkerSetup
from unfold_tuning.verbs import train as verb
from unfold_tuning.verbs.train import train
from unfoldkit.api import Run, RunDir, UnfoldError, Verdict
from unfoldkit.engines.local import LocalEngine

pytestmark = pytest.mark.usefixtures("sleeper_log")


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("policy", "nodes"),
    [("", 1), ("placement: {gang: trial, pack: node}\n", 1), ("placement: {spread: {by: node}}\n", 2)],
)
def test_trials_are_placed_by_the_policy(tmp_path: Path, policy: str, nodes: int) -> None:
    """Two trials on two nodes of two accelerators share a node if packed, and have one each if spread."""
    spec, machine = load_spec(SPEC + policy), Machine("p", 2, 1.0)
    run = Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(1), allow_code=True)
    trainable = resolve_trainable(spec, run)
    config = ExecutionConfig(
        stages=build_custom_stages([(2, 2)]),
        plan=(Allocation(2, 1, 4),),
        machine=machine,
        profile=Profile(LogNormal(0.05)),
        trainable=trainable,
        folder=tmp_path / "trials",
        seed=0,
        checkpoint_iters=1,
    )
    with open_ledger(tmp_path / "l.sqlite", machine, "a") as ledger:
        provider = build_local_provider(ledger, 1.0)
        cluster = build_cluster(build_cluster_config(spec, run), WorkerSetup(trainable), 2, provider)
        Executor(config, ledger, cluster).run()
        assert len({part.node for part in ledger.list_parts()}) == nodes


def test_a_function_names_its_metric(tmp_path: Path) -> None:
    """A function's metric has the name that the spec gives; an estimator has its two only."""
    text = SPEC.replace("space:", "metric: my-score, space:")
    run = Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(1), allow_code=True)
    assert resolve_trainable(load_spec(text), run).metric_name == "my-score"
    assert TrainableConfig(estimator="sgd").metric_name == "accuracy"
    assert train_spec(tmp_path, text).metrics["best_my_score"].value is not None
    with pytest.raises(UnfoldError, match=r"no metric 'my-score'"):
        load_spec(text.replace('function: "sleeper:train"', "estimator: sgd, data: wine"))


def test_a_run_that_its_budget_does_not_pay_for_does_not_begin(tmp_path: Path, sleeper_log: Path) -> None:
    """Where ``plan`` says that no plan meets the deadline within the budget, ``train`` says so and spends nothing."""
    report = train_spec(tmp_path, SPEC + "budget: $0.0001\n")
    assert report.verdict is Verdict.NO
    assert report.verb == "train"
    assert dict(report.lines)["minimal relaxation"].startswith("budget $")
    assert not sleeper_log.exists()
    assert not (tmp_path / "run/ledger.sqlite").exists()


def _train_with_plan(folder: Path, spec: TuningSpec, stages: list[dict[str, object]]) -> None:
    plan = {"decision": {"stages": stages, "instance": "p", "market": "on-demand"}}
    run = Run(directory=RunDir(folder / "run"), engine=LocalEngine(2), allow_code=True, options={"plan": plan})
    train(spec, run)


def test_a_plan_without_speedups_is_refused(tmp_path: Path) -> None:
    """A plan with numbers of accelerators that the spec's profile lacks is refused before anything runs."""
    rows: list[dict[str, object]] = [
        {"trials": trials, "instances": 1, "accelerators_per_trial": 8, "at_a_time": 1, "iterations": 1}
        for trials in (6, 2, 1)
    ]
    with pytest.raises(UnfoldError, match="a trial of 8 accelerators over instances of 1, at an unknown speed"):
        _train_with_plan(tmp_path, load_spec(SPEC), rows)
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"instances": 1, "accelerators_per_trial": 2},
            "a trial of 2 accelerators over instances of 1, at an unknown speed",
        ),
        ({"instances": 50}, "50 instances, but cloud.limit is 3"),
        ({"instances": "many"}, 'expected an integer of at least 1, not "many"'),
        ({"accelerators_per_trial": 0}, "expected an integer of at least 1, not 0"),
    ],
)
def test_an_edited_plan_is_checked(tmp_path: Path, change: dict[str, object], message: str) -> None:
    """A plan that fits no trial, or exceeds the limit, is refused before anything is rented."""
    base = {"instances": 1, "accelerators_per_trial": 1, "at_a_time": 1}
    rows = [{"trials": trials} | base | change for trials in (6, 2, 1)]
    spec = load_spec(SPEC.replace("{mean: 50 ms}", "{mean: 50 ms}, speedup: {1: 1, 2: 1.9}"))
    with pytest.raises(UnfoldError, match=message):
        _train_with_plan(tmp_path, spec, rows)
    assert not (tmp_path / "run/ledger.sqlite").exists()


def test_other_clouds_are_planned_for_only(tmp_path: Path) -> None:
    """Training on a cloud that unfold cannot rent from is refused before anything runs."""
    text = SPEC.replace("provider: local", "provider: gcp")
    run = Run(directory=RunDir(tmp_path), engine=LocalEngine(2), allow_code=True)
    with pytest.raises(UnfoldError, match="cannot start instances of gcp"):
        train(load_spec(text), run)


def test_code_needs_permission(tmp_path: Path) -> None:
    """A spec that names code is refused without --allow-code."""
    run = Run(directory=RunDir(tmp_path), engine=LocalEngine(2))
    with pytest.raises(UnfoldError, match="names code"):
        train(load_spec(SPEC), run)


def test_missing_torch_is_reported_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spec with torch-mlp and no torch is refused with the command that installs it."""
    trainable = '{function: "sleeper:train", space: {ceiling: {uniform: [0, 1]}}}'
    spec = load_spec(SPEC.replace(trainable, "{estimator: torch-mlp, data: digits}"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UnfoldError, match="needs the package 'torch'"):
        resolve_trainable(spec, Run(directory=RunDir(tmp_path), engine=LocalEngine(1)))


def test_a_report_names_what_was_rented_in_place_of_the_plan(tmp_path: Path, sleeper_log: Path) -> None:
    """Where offers were refused, the report lists them and those that were granted; otherwise it is silent."""
    assert "offers" not in dict(train_spec(tmp_path).lines)
    attempts = [("g6 spot", False), ("g5 on-demand", False), ("g5 on-demand", True), ("g6 spot", False)]
    with closing(sqlite3.connect(tmp_path / "run/ledger.sqlite")) as base, base:
        base.executemany("INSERT INTO capacity VALUES (0, ?, ?)", attempts)
    assert dict(train_spec(tmp_path).lines)["offers"] == "rented g5 on-demand; refused: g6 spot"


@pytest.mark.e2e
@pytest.mark.parametrize("provider", ["aws", "local"])
def test_a_run_names_what_it_rents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    """A second Ctrl-C ends the process at once: it prints the instances that may still be billed, if any are rented."""
    spec, described, shown = load_spec(SPEC), list[Callable[[], str]](), list[str]()
    spec = spec.model_copy(update={"cloud": spec.cloud.model_copy(update={"provider": provider})})
    config = build_cluster_config(load_spec(SPEC), Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(1)))
    monkeypatch.setattr(verb, "build_cluster_config", lambda *_: config)
    monkeypatch.setattr(
        verb, "build_provider", lambda _, machine, ledger, *__: build_local_provider(ledger, machine.usd_per_hour)
    )
    run = Run(
        directory=RunDir(tmp_path / "run"),
        engine=LocalEngine(1),
        allow_code=True,
        name_leftovers=described.append,
        publish=lambda _: shown.extend(describe() for describe in described),
    )
    train(spec, run)
    if provider == "local":
        assert not described
    else:
        assert any(re.match(r"may still be billed: node-\w+.* and what was requested last \(", text) for text in shown)
