"""The executor on Ray: real raylets on this machine, added and removed between stages."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from unfold_tuning.deals import Deal, Plan
from unfold_tuning.executor import Executor, Outcome, Task
from unfold_tuning.facts import Machine, Profile, Spread
from unfold_tuning.fleet import own
from unfold_tuning.ledger import Ledger, opened
from unfold_tuning.ray_cluster import RayCluster
from unfold_tuning.raylets import Here
from unfold_tuning.spec import Trainable, Uniform
from unfold_tuning.stages import Stage, custom
from unfold_tuning.trainables import Work
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
    ledger: Ledger, folder: Path, stages: tuple[Stage, ...], plan: Plan, function: str = "train"
) -> tuple[Outcome, list[Any]]:
    """Carry a plan out on Ray and return how it ended, with the placement groups that there were."""
    trainable = Trainable(function=f"sleeper:{function}", space={"ceiling": Uniform(uniform=(0.0, 1.0))})
    task = Task(stages, plan, NODE, PROFILE, trainable, folder / "trials", 0, 1, deadline=600.0, replan=False)
    cluster = Watched(RayCluster(Work(trainable), 2, own(ledger, 3600.0), Here(2)))
    return Executor(task, ledger, cluster).run(), cluster.groups


def test_raylets_come_and_go_as_the_plan_says(tmp_path: Path) -> None:
    """Of 2, 1, 2 nodes each stage holds its number; each trial's part has a group of its own; nothing runs twice."""
    stages = custom([(4, 2), (2, 2), (1, 2)])
    plan = (Deal(2, 1, 4), Deal(1, 1, 2), Deal(2, 4, 1))
    with opened(tmp_path / "l.sqlite", NODE, "a") as ledger:
        outcome, groups = carried_out(ledger, tmp_path, stages, plan)
        ends = [ended for _, _, ended, _ in ledger.stages()]
        held = [sum(life.since < end <= (life.until or end) for life in ledger.lives()) for end in ends]
        moved = {trial: [node for _, t, node, _, _ in ledger.parts() if t == trial] for trial in range(1, 5)}
    assert held == [2, 1, 2]
    assert outcome.winner is not None
    assert outcome.winner.iters == 6
    ran = Counter((tmp_path / "log").read_text().splitlines())
    assert set(ran.values()) == {1}
    assert sum(ran.values()) == 4 * 2 + 2 * 2 + 2
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


TWICE = """
import os, sys, time
from pathlib import Path
from unfold_tuning.measure import profile
from unfold_tuning.spec import TuningSpec
from unfold_tuning.train import train
from unfoldkit.api import Run, RunDir
from unfoldkit.engines.ray import RayEngine
from unfoldkit.spec.loader import parse
from unfoldkit.spec.validate import validate

spec = validate(TuningSpec, parse(Path(sys.argv[1]).read_text(), "t.yaml"))
run = Run(directory=RunDir(Path(sys.argv[2])), engine=RayEngine(), allow_code=True)
group = os.getpgrp()
profile(spec, run)
report = train(spec, run)
assert os.getpgrp() == group, "moved out of its process group: Ctrl-C would not reach it"
time.sleep(25)
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
    # 60 s by default, which is when a process that still asks for a head is ended
    environment = {**os.environ, "RAY_gcs_rpc_server_reconnect_timeout_s": "10"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert (ended.returncode, ended.stdout.strip()) == (0, "alive yes"), ended.stderr[-3000:]


GIVEN = (
    SPEC.replace("min_iters: 2, max_iters: 6", "min_iters: 20, max_iters: 40")
    + "profile: {iteration: {mean: 50 ms}, provision: {mean: 0 s}, startup: {mean: 20 s}, sync: {mean: 0 s}}\n"
)


def test_a_driver_that_is_killed_leaves_no_raylet_and_goes_on(tmp_path: Path) -> None:
    """After kill -9 Ray's processes end by themselves; the same command goes on and finds the winner of a quiet run."""
    (tmp_path / "t.yaml").write_text(GIVEN)
    words = ["train", str(tmp_path / "t.yaml"), "--engine", "ray", "--allow-code", "--run"]
    command = [sys.executable, "-m", "unfoldkit", *words]
    with subprocess.Popen([*command, str(tmp_path / "run")], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as driver:
        wait_until(lambda: driver.poll() is not None or ran(tmp_path) >= 5)
        driver.send_signal(signal.SIGKILL)
    before = ran(tmp_path)
    assert 5 <= before < 3 * 20 + 20, "it was killed in the middle"
    wait_until(lambda: not raylets_of(tmp_path / "run"))
    covered = {f"{json.loads(config)['ceiling']:.9f}": iters for config, iters in rows_of(tmp_path / "run", TRIALS)}
    ended = subprocess.run([*command, str(tmp_path / "run")], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    counts = Counter((tmp_path / "log").read_text().splitlines())
    assert len(counts) == 3 * 20 + 20
    # a worker may go on for a moment after its driver: what nobody has noted is run again, and nothing else
    again = [line.split() for line, count in counts.items() if count > 1]
    assert all(int(step) >= covered[ceiling] for ceiling, step in again)
    assert len({ceiling for ceiling, _ in again}) <= 1
    quiet = subprocess.run([*command[:6], "local", *command[7:], str(tmp_path / "quiet")], check=False)
    assert quiet.returncode == 0
    assert winner(tmp_path / "run") == winner(tmp_path / "quiet")
    assert not raylets_of(tmp_path / "run")


TRIALS = "SELECT config, iters FROM trials"


def wait_until(there: Callable[[], bool]) -> None:
    """Wait until something is so, as long as a slow machine may take."""
    began = time.monotonic()
    while not there():
        assert time.monotonic() - began < 200
        time.sleep(0.05)


def ran(folder: Path) -> int:
    """Return how many iterations have begun."""
    return len((folder / "log").read_text().splitlines()) if (folder / "log").exists() else 0


def winner(run: Path) -> Any:
    """Return the file of the best trial."""
    return json.loads((run / "winner.json").read_text())


def rows_of(run: Path, text: str) -> list[Any]:
    """Return rows of a run's ledger."""
    with closing(sqlite3.connect(run / "ledger.sqlite")) as base:
        return base.execute(text).fetchall()


def raylets_of(run: Path) -> list[str]:
    """Return the processes of this machine that name a node of a run's ledger."""
    nodes = [row[0] for row in rows_of(run, "SELECT id FROM nodes")]
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(path.read_bytes().decode(errors="replace"))
    return [text for text in found if any(f"unfold-{node}" in text for node in nodes)]
