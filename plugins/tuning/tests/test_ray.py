"""The executor on Ray: real raylets on this machine, added and removed between stages."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from unfold_tuning.cluster.provider import own
from unfold_tuning.cluster.ray import RayCluster
from unfold_tuning.cluster.ray_nodes import Here
from unfold_tuning.executor.executor import Executor, Outcome, Task
from unfold_tuning.job.allocation import Deal, Plan
from unfold_tuning.job.profile import Machine, Profile, Spread
from unfold_tuning.job.schedule import Stage, custom
from unfold_tuning.schema.models import Trainable, Uniform
from unfold_tuning.trial.ledger import Ledger, opened
from unfold_tuning.trial.trainable import Work
from unfoldkit.catalog.billing import Billing

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
NODE = Machine("p", 2, 3600.0, limit=3, billing=Billing(0.0, 0.0))
PROFILE = Profile(Spread(0.05), ((1, 1.0), (2, 1.9), (4, 3.0)))


@dataclass(slots=True)
class Watched:
    """A cluster that writes down its placement groups just before it closes."""

    inner: RayCluster
    groups: list[Any] = field(default_factory=list)

    def close(self) -> None:
        """Look, then close."""
        import ray

        if ray.is_initialized():
            self.groups += ray.util.placement_group_table().values()
        self.inner.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.fixture(autouse=True)
def _log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLEEPER_LOG", str(tmp_path / "log"))
    # raylets and their workers are given this process's environment
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def carried_out(
    ledger: Ledger, folder: Path, stages: tuple[Stage, ...], plan: Plan, function: str = "train",
    timeout: str | None = None,
) -> tuple[Outcome, list[Any]]:  # fmt: skip
    """Carry a plan out on Ray and return how it ended, with the placement groups that there were."""
    space = {"ceiling": Uniform(uniform=(0.0, 1.0))}
    given = {"function": f"sleeper:{function}", "space": space} | ({"timeout": timeout} if timeout else {})
    trainable = Trainable.model_validate(given)
    task = Task(stages, plan, NODE, PROFILE, trainable, folder / "trials", 0, 1, deadline=600.0, replan=False)
    cluster = Watched(RayCluster(Work(trainable), 2, own(ledger, 3600.0), Here(2)))
    return Executor(task, ledger, cluster).run(), cluster.groups


def test_raylets_come_and_go_as_the_plan_says(tmp_path: Path) -> None:
    """Of 2, 1, 2 nodes each stage holds its number; each trial's part has a group and a ready worker of its own."""
    stages = custom([(4, 2), (2, 2), (1, 2)])
    plan = (Deal(2, 1, 4), Deal(1, 1, 2), Deal(2, 4, 1))
    with opened(tmp_path / "l.sqlite", NODE, "a") as ledger:
        outcome, groups = carried_out(ledger, tmp_path, stages, plan, "dated")
        first = min(began for _, _, _, began, _ in ledger.parts())
        ends = [ended for _, _, ended, _ in ledger.stages()]
        held = [sum(life.since < end <= (life.until or end) for life in ledger.lives()) for end in ends]
        moved = {trial: [node for _, t, node, _, _ in ledger.parts() if t == trial] for trial in range(1, 5)}
    assert held == [2, 1, 2]
    assert outcome.winner is not None
    assert outcome.winner.iters == 6
    ran = Counter((tmp_path / "log").read_text().splitlines())
    assert set(ran.values()) == {1}
    assert sum(ran.values()) == 4 * 2 + 2 * 2 + 2
    loaded = [float(line) for line in (tmp_path / "log.loaded").read_text().splitlines()]
    assert len(loaded) == 4
    assert max(loaded) < first, "a trial waited for its worker to start"
    assert len(groups) == 4 + 2 + 1
    strategies = Counter(group["strategy"] for group in groups)
    assert strategies == {"STRICT_PACK": 6, "PACK": 1}
    # the survivors share a node, so that the other one could be given back
    survivors = [nodes[1] for nodes in moved.values() if len(nodes) > 1]
    assert len(survivors) == 2
    assert len(set(survivors)) == 1


def test_a_lost_raylet_costs_only_the_last_step(tmp_path: Path) -> None:
    """When a node's raylet is killed its trials go on from their checkpoints on a node that takes its place."""
    with opened(tmp_path / "l.sqlite", NODE, "a") as ledger:
        outcome, _ = carried_out(ledger, tmp_path, custom([(2, 3)]), (Deal(1, 1, 2),), "murderous")
        assert outcome.lost == 1
        assert len(ledger.lives()) == 2
        assert {trial.iters for trial in ledger.trials()} == {3}
    ran = Counter((tmp_path / "log").read_text().splitlines())
    assert len(ran) == 2 * 3
    # the other trial of the node may have been in the middle of a step that was not noted yet
    assert sum(ran.values()) <= 2 * 3 + 2


def test_a_trial_that_hangs_is_ended_alone(tmp_path: Path) -> None:
    """A trial without a checkpoint within the timeout is left out; its node stays, and the others' trials with it."""
    with opened(tmp_path / "l.sqlite", NODE, "a") as ledger:
        outcome, _ = carried_out(ledger, tmp_path, custom([(6, 2)]), (Deal(1, 1, 2),), "hanging", "2 s")
        assert ledger.failed() == {6: "no checkpoint in 2.00 s"}
        assert (outcome.lost, len(ledger.lives())) == (0, 1)
        assert [trial.iters for trial in ledger.trials()] == [2] * 5 + [1]


RESUMED = """
version: 1
kind: tuning
name: t
search: {algorithm: successive-halving, trials: 3, min_iters: 8, max_iters: 24, eta: 3}
trainable: {function: "sleeper:train", space: {ceiling: {uniform: [0, 1]}}}
deadline: 60 min
cloud: {provider: local, instances: [{type: p, accelerators: 1, price: $3.6/h}], limit: 1}
profile: {iteration: {mean: 60 s}, provision: {mean: 0 s}, startup: {mean: 1 s}, sync: {mean: 0 s}, error: 0%}
samples: 100
"""


def test_a_driver_that_is_killed_goes_on_with_a_new_head(tmp_path: Path) -> None:
    """After kill -9 no raylet stays, what a checkpoint held is not run again, and all ends as if undisturbed."""
    (tmp_path / "t.yaml").write_text(RESUMED)
    log = tmp_path / "log"
    with subprocess.Popen(_trains(tmp_path, "run", "ray"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as driver:
        _until(lambda: len(_lines(log)) >= 3 or driver.poll() is not None)
        assert driver.poll() is None, driver.communicate()
        driver.kill()
        driver.wait()
    _until(lambda: not _raylets(log))
    before = _lines(log)
    done = {f"{json.loads(config)['ceiling']:.9f}": iters for config, iters, _ in _trials(tmp_path / "run")}
    ended = subprocess.run(_trains(tmp_path, "run", "ray"), capture_output=True, text=True, check=False, timeout=280)
    assert ended.returncode == 0, ended.stderr[-3000:]
    again = [line.split() for line in _lines(log)[len(before) :]]
    assert not [line for line in again if int(line[1]) < done[line[0]]]
    assert len(set(_lines(log))) == 3 * 8 + 16
    subprocess.run(_trains(tmp_path, "fresh", "local"), capture_output=True, check=True, timeout=280)
    assert _trials(tmp_path / "run") == _trials(tmp_path / "fresh")


def _trains(folder: Path, name: str, engine: str) -> list[str]:
    words = ["train", str(folder / "t.yaml"), "--run", str(folder / name), "--engine", engine, "--allow-code"]
    return [sys.executable, "-m", "unfoldkit", *words]


def _until(done: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < 200, "waited in vain"
        time.sleep(0.05)


def _lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def _raylets(log: Path) -> list[Path]:
    """Return the nodes' raylets that live in the environment of this test."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            ours = str(log).encode() in (path / "environ").read_bytes()
            if ours and b"unfold-node-" in (path / "cmdline").read_bytes():
                found.append(path)
        except OSError:
            continue
    return found


def _trials(run: Path) -> list[tuple[str, int, float | None]]:
    with closing(sqlite3.connect(run / "ledger.sqlite")) as base:
        return base.execute("SELECT config, iters, metric FROM trials ORDER BY id").fetchall()


TWICE = """
import os, sys, time
from pathlib import Path
from unfold_tuning.verbs.profile import profile
from unfold_tuning.schema.models import TuningSpec
from unfold_tuning.verbs.train import train
from unfoldkit.api import Run, RunDir
from unfoldkit.engines.ray import RayEngine
from unfoldkit.spec.yaml_reader import parse
from unfoldkit.spec.validate import validate

spec = validate(TuningSpec, parse(Path(sys.argv[1]).read_text(), "t.yaml"))
run = Run(directory=RunDir(Path(sys.argv[2])), engine=RayEngine(), allow_code=True)
group = os.getpgrp()
profile(spec, run)
report = train(spec, run)
assert os.getpgrp() == group, "moved out of its process group: Ctrl-C would not reach it"
time.sleep(70)
print("alive", report.verdict.value)
"""
SPEC = """
version: 1
kind: tuning
name: t
search: {algorithm: successive-halving, trials: 3, min_iters: 2, max_iters: 6, eta: 3}
trainable: {function: "sleeper:train", space: {ceiling: {uniform: [0, 1]}}}
deadline: 30 min
cloud: {provider: local, instances: [{type: p, accelerators: 1, price: $3.6/h}], limit: 1}
samples: 200
"""


def test_a_process_outlives_the_heads_that_it_had(tmp_path: Path) -> None:
    """Profile, then train, in one process that lives on for longer than Ray waits for a head that is gone."""
    (tmp_path / "t.yaml").write_text(SPEC)
    command = [sys.executable, "-c", TWICE, str(tmp_path / "t.yaml"), str(tmp_path / "run")]
    # after 60 s a process that still asks for a head is ended
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=290)
    assert (ended.returncode, ended.stdout.strip()) == (0, "alive yes"), ended.stderr[-3000:]
