"""The executor on Ray: real raylets on this machine, added and removed between stages."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from unfold_tuning.cluster import local_ray_process, ray_nodes
from unfold_tuning.cluster.provider import build_local_provider
from unfold_tuning.cluster.ray import RayCluster
from unfold_tuning.cluster.ray_nodes import LocalRayNodes
from unfold_tuning.executor.executor import Executor
from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig, RunOutcome
from unfold_tuning.job.allocation import Allocation, Plan
from unfold_tuning.job.problem import EarlyStopRules, TrainableConfig
from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import Stage, build_custom_stages
from unfold_tuning.job.search_space import Uniform
from unfold_tuning.trial.ledger import Ledger, open_ledger
from unfold_tuning.trial.trainable import WorkerSetup
from unfoldkit.api import ExitCode, UnfoldError
from unfoldkit.catalog.billing import Billing
from unfoldkit.engines.ray import connect_ray

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_environment"),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
NODE = Machine("p", 2, 3600.0, max_instances=3, billing=Billing(0.0, 0.0))
PROFILE = Profile(LogNormal(0.05), ((1, 1.0), (2, 1.9)), ((4, 3.0),))


def test_an_address_at_which_nothing_listens_is_an_error_at_once() -> None:
    """Ray would try for ten minutes, in which nothing of the run would be visible."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(UnfoldError, match=rf"no Ray cluster responds at {address} .*RAY_AUTH_MODE=token"):
            ray_nodes.RemoteRayNodes(address).open()
        with pytest.raises(UnfoldError, match=rf"no Ray cluster responds at ray://{address}"):
            connect_ray(f"ray://{address}")
    # most of it is the import of Ray
    assert time.monotonic() - began < 30


def test_a_lost_head_is_an_error_before_ray_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray blocks in every call, and after a minute ends the process: instances would stay rented."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
    ray = Mock(get_runtime_context=lambda: SimpleNamespace(gcs_address=address))
    clock, exits = iter(range(0, 1000, 5)), Mock()
    monkeypatch.setattr(ray_nodes, "import_ray", lambda: ray)
    monkeypatch.setattr(ray_nodes, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))
    monkeypatch.setattr(ray_nodes, "atexit", exits)
    with pytest.raises(UnfoldError, match=rf"the Ray head at {address} is gone .*the same command continues"):
        ray_nodes.list_alive_nodes()
    ray_nodes.RemoteRayNodes(address).close()
    assert not ray.nodes.called
    assert not ray.shutdown.called
    exits.register.assert_called_once()


@dataclass(slots=True)
class ObservedCluster:
    """A cluster that records its placement groups just before it closes."""

    inner: RayCluster
    groups: list[Any] = field(default_factory=list)

    def close(self) -> None:
        """Record the groups, then close."""
        import ray

        if ray.is_initialized():
            self.groups += ray.util.placement_group_table().values()
        self.inner.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.fixture
def ray_environment(sleeper_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let raylets and their workers, which inherit this environment, import the trainables."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))


def run_on_ray(
    ledger: Ledger, folder: Path, stages: tuple[Stage, ...], plan: Plan, function: str = "train",
    timeout_s: float | None = None, wall: Callable[[], float] | None = None,
) -> tuple[RunOutcome, list[Any]]:  # fmt: skip
    """Run a plan on Ray and return its outcome and its placement groups; with a clock, without stragglers."""
    space, rules = {"ceiling": Uniform(0.0, 1.0)}, EarlyStopRules(ends_stragglers=wall is not None)
    trainable = TrainableConfig(function=f"sleeper:{function}", space=space, timeout_s=timeout_s, early_stop=rules)
    config = ExecutionConfig(
        stages=stages,
        plan=plan,
        machine=NODE,
        profile=PROFILE,
        trainable=trainable,
        folder=folder / "trials",
        seed=0,
        checkpoint_iters=1,
        deadline_s=600.0,
        is_replanning=wall is not None,
        wall=wall or time.time,
    )
    provider = build_local_provider(ledger, 3600.0)
    cluster = ObservedCluster(RayCluster(WorkerSetup(trainable), 2, provider, LocalRayNodes(2)))
    return Executor(config, ledger, cluster).run(), cluster.groups


def test_raylets_follow_the_plan(tmp_path: Path) -> None:
    """Of 2, 1, 2 nodes each stage uses its number; each trial's part has its own group and a ready worker."""
    stages = build_custom_stages([(4, 2), (2, 2), (1, 2)])
    plan = (Allocation(2, 1, 4), Allocation(1, 1, 2), Allocation(2, 4, 1))
    with open_ledger(tmp_path / "l.sqlite", NODE, "a") as ledger:
        outcome, groups = run_on_ray(ledger, tmp_path, stages, plan, "dated")
        first = min(part.began for part in ledger.list_parts())
        used = {(part.stage, part.node) for part in ledger.list_parts()}
        end = ledger.list_finished_stages()[-1].ended
        held = sum(life.since < end <= (life.until or end) for life in ledger.list_lifetimes())
        nodes_of = {trial: [part.node for part in ledger.list_parts() if part.trial == trial] for trial in range(1, 5)}
    # the part of a trial that spans nodes names the first of them
    assert Counter(stage for stage, _ in used) == {0: 2, 1: 1, 2: 1}
    assert held == 2
    assert outcome.winner is not None
    assert outcome.winner.iters == 6
    iterations = Counter((tmp_path / "log").read_text().splitlines())
    counts = sorted(iterations.values())
    assert counts[:-2] == [1] * (4 * 2 + 2 * 2)
    # the last trial spans two nodes: each of its four ranks runs the function, and begins after what is stored
    assert all(1 <= count <= 4 for count in counts[-2:])
    loaded = [float(line) for line in (tmp_path / "log.loaded").read_text().splitlines()]
    assert len(loaded) == 4
    assert max(loaded) < first, "a trial waited for its worker to start"
    assert len(groups) == 4 + 2 + 1
    strategies = Counter(group["strategy"] for group in groups)
    assert strategies == {"STRICT_PACK": 6, "PACK": 1}
    # the survivors share a node, so that the other one could be released
    survivors = [nodes[1] for nodes in nodes_of.values() if len(nodes) > 1]
    assert len(survivors) == 2
    assert len(set(survivors)) == 1


def test_a_lost_raylet_costs_only_the_last_step(tmp_path: Path) -> None:
    """If a node's raylet is killed, its trials continue from their checkpoints on a node that replaces it."""
    with open_ledger(tmp_path / "l.sqlite", NODE, "a") as ledger:
        outcome, _ = run_on_ray(ledger, tmp_path, build_custom_stages([(2, 3)]), (Allocation(1, 1, 2),), "murderous")
        assert outcome.lost_nodes == 1
        assert len(ledger.list_lifetimes()) == 2
        assert {trial.iters for trial in ledger.list_trials()} == {3}
    iterations = Counter((tmp_path / "log").read_text().splitlines())
    assert len(iterations) == 2 * 3
    # the other trial of the node may have been in the middle of a step
    assert sum(iterations.values()) <= 2 * 3 + 2


def test_processes_of_trials_end_with_their_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a trial starts in a session of its own inherits the mark of its raylet, and ends with it."""
    started: list[subprocess.Popen[bytes]] = []

    def add_node(**_: Any) -> None:
        started.append(subprocess.Popen(["sleep", "600"], start_new_session=True))  # noqa: S607 - a program of any system

    cluster = SimpleNamespace(add_node=add_node, remove_node=lambda *_, **__: None)
    supervisor: Any = SimpleNamespace(send=lambda command: local_ray_process._run_command(cluster, {}, command))
    monkeypatch.setattr(ray_nodes, "list_alive_nodes", lambda: {"a", "b"})
    nodes = LocalRayNodes(1, supervisor=supervisor)
    nodes.start(["a", "b"], lambda: None, lambda _: set())
    nodes.stop("a")
    assert started[0].wait(10) == -signal.SIGKILL
    assert started[1].poll() is None
    nodes.stop("b")
    assert started[1].wait(10) == -signal.SIGKILL


def test_a_hanging_trial_is_killed_alone(tmp_path: Path) -> None:
    """A trial without a checkpoint within the timeout is dropped; its node and the other trials stay."""
    with open_ledger(tmp_path / "l.sqlite", NODE, "a") as ledger:
        outcome, _ = run_on_ray(ledger, tmp_path, build_custom_stages([(6, 2)]), (Allocation(1, 1, 2),), "hanging", 2.0)
        assert ledger.list_failed() == {6: "no checkpoint in 2.00 s"}
        assert (outcome.lost_nodes, len(ledger.list_lifetimes())) == (0, 1)
        assert [trial.iters for trial in ledger.list_trials()] == [2] * 5 + [1]


def test_a_straggler_ends_at_once_and_leaves_its_place(tmp_path: Path) -> None:
    """Its task would sleep for twenty minutes, and the group of its trial is removed without waiting for it."""
    log, stages = tmp_path / "log", build_custom_stages([(6, 2)])
    with open_ledger(tmp_path / "l.sqlite", NODE, "a") as ledger:

        def read_clock() -> float:
            """Jump near to the deadline once five of six trials have ended."""
            lines, began = len(log.read_text().splitlines()) if log.exists() else 0, ledger.read_fact("began")
            has_ended = lines == 10 and time.time() - log.stat().st_mtime > 1.0
            return float(began) + 595.0 if has_ended and began is not None else time.time()

        outcome, _ = run_on_ray(ledger, tmp_path, stages, (Allocation(1, 1, 2),), "crawling", wall=read_clock)
        assert ledger.list_stragglers() == [6]
        assert ledger.list_failed() == {}
        assert (outcome.lost_nodes, len(ledger.list_lifetimes())) == (0, 1)
    assert outcome.winner is not None


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


def test_a_killed_driver_continues_with_a_new_head(tmp_path: Path) -> None:
    """After kill -9 no raylet stays, checkpointed work is not repeated, and the run ends as if undisturbed."""
    (tmp_path / "t.yaml").write_text(RESUMED)
    log = tmp_path / "log"
    with subprocess.Popen(
        _train_command(tmp_path, "run", "ray"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as driver:
        _wait_until(lambda: len(_read_lines(log)) >= 3 or driver.poll() is not None)
        assert driver.poll() is None, driver.communicate()
        driver.kill()
        driver.wait()
    _wait_until(lambda: not _list_raylets(log))
    before = _read_lines(log)
    done = {f"{json.loads(config)['ceiling']:.9f}": iters for config, iters, _ in _read_trials(tmp_path / "run")}
    ended = subprocess.run(
        _train_command(tmp_path, "run", "ray"), capture_output=True, text=True, check=False, timeout=280
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    repeated = [line.split() for line in _read_lines(log)[len(before) :]]
    assert not [line for line in repeated if int(line[1]) < done[line[0]]]
    assert len(set(_read_lines(log))) == 3 * 8 + 16
    subprocess.run(_train_command(tmp_path, "fresh", "local"), capture_output=True, check=True, timeout=280)
    assert _read_trials(tmp_path / "run") == _read_trials(tmp_path / "fresh")


def test_ray_does_not_take_over_the_signals_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is terminated cleans up in order: handlers which Ray installs or removes would end the process."""
    before = Mock()
    outer = signal.signal(signal.SIGTERM, before)
    ray = SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda **_: signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)),
        shutdown=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL),
    )
    monkeypatch.setattr(ray_nodes, "import_ray", lambda: ray)
    try:
        with socket.create_server(("127.0.0.1", 0)) as head:
            address = f"127.0.0.1:{head.getsockname()[1]}"
            supervisor = SimpleNamespace(address=address, close=lambda: None)
            monkeypatch.setattr(ray_nodes, "start_supervisor", lambda _: supervisor)
            for nodes in (ray_nodes.RemoteRayNodes(address), LocalRayNodes(1)):
                for step in (nodes.open, nodes.close):
                    step()
                    assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGTERM, outer)


def test_nodes_that_do_not_join_ray_are_named_while_they_cost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An image without Ray, or without the token of the head, is billed: a warning, then a user error."""
    clock = iter(range(0, 10_000, 50))
    monkeypatch.setattr(ray_nodes, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))
    monkeypatch.setattr(ray_nodes, "list_alive_nodes", set)
    with pytest.raises(UnfoldError, match=r"cloud: 2 nodes did not join Ray in 15.0 min .*token") as raised:
        ray_nodes.RemoteRayNodes("").start(["i-1", "i-2"], lambda: None, lambda _: set())
    assert raised.value.code == ExitCode.USAGE
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        "billed, but not in Ray after 2.5 min: i-1, i-2"
    ]


def test_nodes_that_end_before_they_join_are_not_awaited(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A spot instance that is lost while it boots costs the run seconds; the others are awaited as before."""
    now = [0.0]
    monkeypatch.setattr(ray_nodes, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _: None))
    monkeypatch.setattr(ray_nodes, "list_alive_nodes", lambda: {"i-2"} if now[0] > 60 else set())

    def watch() -> None:
        now[0] += 1

    nodes, queries = ray_nodes.RemoteRayNodes(""), list[set[str]]()

    def find_ended(names: Collection[str]) -> set[str]:
        queries.append(set(names))
        return {"i-1"} & set(names)

    assert nodes.start(["i-1", "i-2"], watch, find_ended) == {"i-2"}
    assert queries[:2] == [{"i-1", "i-2"}, {"i-2"}]
    assert caplog.messages == ["ended before they joined Ray: i-1"]
    assert nodes.start(["i-1"], watch, find_ended) == set()
    assert now[0] < 80


def _train_command(folder: Path, name: str, engine: str) -> list[str]:
    arguments = ["train", str(folder / "t.yaml"), "--run", str(folder / name), "--engine", engine, "--allow-code"]
    return [sys.executable, "-m", "unfoldkit", *arguments]


def _wait_until(done: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < 200, "waited in vain"
        time.sleep(0.05)


def _read_lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def _list_raylets(log: Path) -> list[Path]:
    """List the raylets in the environment of this test."""
    processes = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            ours = str(log).encode() in (path / "environ").read_bytes()
            if ours and b"unfold-node-" in (path / "cmdline").read_bytes():
                processes.append(path)
        except OSError:
            continue
    return processes


def _read_trials(run: Path) -> list[tuple[str, int, float | None]]:
    with closing(sqlite3.connect(run / "ledger.sqlite")) as base:
        return base.execute("SELECT config, iters, metric FROM trials ORDER BY id").fetchall()


TWICE = """
import os, sys, time
from pathlib import Path
from unfold_tuning.verbs.profile import profile
from unfold_tuning.schema.tuning import TuningSpec
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


def test_a_process_outlives_its_heads(tmp_path: Path) -> None:
    """Profile, then train, in one process that lives for longer than Ray waits for a lost head."""
    (tmp_path / "t.yaml").write_text(SPEC)
    command = [sys.executable, "-c", TWICE, str(tmp_path / "t.yaml"), str(tmp_path / "run")]
    # Ray ends a process that still queries a lost head, by default after 60 s
    impatient = {**os.environ, "RAY_gcs_rpc_server_reconnect_timeout_s": "20"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=290, env=impatient)
    assert (ended.returncode, ended.stdout.strip()) == (0, "alive yes"), ended.stderr[-3000:]
