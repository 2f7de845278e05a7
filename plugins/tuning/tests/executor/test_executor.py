"""The executor on real local processes."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tuning_runs import SPEC, profile_spec, read_nodes, train_spec

from unfold_tuning.cluster.local import LocalCluster
from unfold_tuning.cluster.provider import build_local_provider
from unfold_tuning.executor.executor import Executor
from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig
from unfold_tuning.job.allocation import Allocation
from unfold_tuning.job.problem import TrainableConfig
from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import build_custom_stages
from unfold_tuning.job.search_space import Uniform
from unfold_tuning.trial.ledger import Ledger, open_ledger
from unfold_tuning.trial.trainable import WorkerSetup
from unfoldkit.api import UnfoldError, Verdict
from unfoldkit.catalog.billing import Billing

pytestmark = pytest.mark.usefixtures("sleeper_log")


def test_every_iteration_runs_once_and_the_best_wins(tmp_path: Path) -> None:
    """Each trial runs the iterations of its stages exactly once, and the best configuration wins."""
    report = train_spec(tmp_path)
    assert report.verdict is Verdict.YES
    iterations = Counter((tmp_path / "log").read_text().splitlines())
    assert set(iterations.values()) == {1}
    assert sum(iterations.values()) == 6 * 2 + 2 * 4 + 1 * 6
    ceilings = {float(line.split()[0]) for line in iterations}
    assert report.metrics["best_metric"].value == pytest.approx(max(ceilings) * (1 - 0.5**12))


def test_no_iteration_of_the_profile_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search adopts all profiled trials: also equal ones, and those that a kill kept an earlier attempt from."""
    text = SPEC.split("profile:")[0].replace("{uniform: [0, 1]}", "0.5")
    profile_spec(tmp_path / "run", text)
    profiled = (tmp_path / "log").read_text()
    calls, record = itertools.count(), Ledger.record_checkpoint

    def record_some(*arguments: Any) -> None:
        if next(calls) == 15:
            raise KeyboardInterrupt
        record(*arguments)

    monkeypatch.setattr(Ledger, "record_checkpoint", record_some)
    with pytest.raises(KeyboardInterrupt):
        train_spec(tmp_path, text)
    assert train_spec(tmp_path, text).verdict is Verdict.YES
    assert (tmp_path / "log").read_text() == profiled


@pytest.mark.e2e
@pytest.mark.parametrize("content", [b"", b'{"do', b'{"done": 7}'])
def test_a_state_that_was_changed_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    """It is truncated, or that of another trial: its trial begins again, and the best configuration still wins."""
    calls, record = itertools.count(), Ledger.record_checkpoint

    def record_some(*arguments: Any) -> None:
        if next(calls) == 13:
            raise KeyboardInterrupt
        record(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "record_checkpoint", record_some)
        with pytest.raises(KeyboardInterrupt):
            train_spec(tmp_path)
    states = list((tmp_path / "run/trials").rglob("*.state"))
    for path in states:
        path.write_bytes(content)
    report = train_spec(tmp_path)
    ceilings = {float(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines()}
    assert report.metrics["best_metric"].value == pytest.approx(max(ceilings) * (1 - 0.5**12))
    assert caplog.text.count("was changed after it was stored") == len(list((tmp_path / "run").rglob("*.changed"))) >= 6


def test_another_spec_is_refused_before_it_is_measured(tmp_path: Path) -> None:
    """Its profile would cost money, and replace the states of the trials that the search of the folder has."""
    text = SPEC.split("profile:")[0]
    train_spec(tmp_path, text)
    states = {path: path.read_bytes() for path in (tmp_path / "run/trials").rglob("*.state")}
    log = (tmp_path / "log").read_text()
    with pytest.raises(UnfoldError, match="begun with another spec"):
        train_spec(tmp_path, text.replace("[0, 1]", "[1, 2]"))
    assert (tmp_path / "log").read_text() == log
    assert {path: path.read_bytes() for path in (tmp_path / "run/trials").rglob("*.state")} == states


@pytest.mark.e2e
def test_the_cluster_follows_the_plan(tmp_path: Path) -> None:
    """A plan of 3, 1, 2 instances uses that many in each stage, and every lifetime is billed."""
    machine = Machine("p", 1, 3600.0, max_instances=3, billing=Billing(0.0, 0.0))
    trainable = TrainableConfig(function="sleeper:train", space={"ceiling": Uniform(0.0, 1.0)})
    config = ExecutionConfig(
        stages=build_custom_stages([(3, 2), (1, 2), (2, 2)]),
        plan=tuple(Allocation(count, 1, count) for count in (3, 1, 2)),
        machine=machine,
        profile=Profile(LogNormal(0.05)),
        trainable=trainable,
        folder=tmp_path / "trials",
        seed=0,
        checkpoint_iters=1,
    )
    with open_ledger(tmp_path / "run/ledger.sqlite", machine, "a") as ledger:
        cluster = LocalCluster(WorkerSetup(trainable), 1, build_local_provider(ledger, 3600.0))
        outcome = Executor(config, ledger, cluster).run()
        used = {(part.stage, part.node) for part in ledger.list_parts()}
        lifetimes = ledger.list_lifetimes()
    assert Counter(stage for stage, _ in used) == {0: 3, 1: 1, 2: 2}
    assert outcome.spent_usd == pytest.approx(sum((life.until or 0) - life.since for life in lifetimes))


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    """Training again in a finished run starts no process and gives the same result."""
    first = train_spec(tmp_path)
    lines, nodes = (tmp_path / "log").read_text(), read_nodes(tmp_path)
    second = train_spec(tmp_path)
    assert (tmp_path / "log").read_text() == lines
    assert read_nodes(tmp_path) == nodes
    for name in ("best_metric", "wall_s", "cost_usd"):
        assert second.metrics[name] == first.metrics[name]


@pytest.mark.e2e
def test_a_killed_driver_continues(tmp_path: Path) -> None:
    """After kill -9 at random moments the winner is the same, lifetimes are closed, and little runs twice."""
    spec = tmp_path / "t.yaml"
    spec.write_text(SPEC.replace("30 s", "10 min"))
    command = [sys.executable, "-m", "unfoldkit", "train", str(spec), "--run", str(tmp_path / "run"), "--allow-code"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    kills, rng = 0, np.random.default_rng(0)
    for _ in range(2):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            kills += _kill_at_random(process, tmp_path / "log", rng)
    completed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    assert kills >= 1
    iterations = Counter((tmp_path / "log").read_text().splitlines())
    assert sum(count - 1 for count in iterations.values()) <= kills * 3
    assert all(node[4] is not None for node in read_nodes(tmp_path))
    undisturbed = train_spec(tmp_path / "fresh", SPEC.replace("30 s", "10 min"))
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["metrics"]["best_metric"]["value"] == undisturbed.metrics["best_metric"].value


def _kill_at_random(process: subprocess.Popen[bytes], log: Path, rng: np.random.Generator) -> bool:
    before = log.stat().st_size if log.exists() else 0
    while process.poll() is None and (log.stat().st_size if log.exists() else 0) == before:
        time.sleep(0.02)
    time.sleep(rng.uniform(0.0, 0.4))
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True
