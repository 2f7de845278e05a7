"""Models that raise errors: the bad row fails, all others are answered, and no process ends."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from plugins.pipeline.tests.helpers import plan_stages
from unfold_pipeline.estimator.replica_schedule import ScalingState
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.pipeline import HardwareOption, Pipeline, Stage, StageConfig, interpolate_latency
from unfold_pipeline.problem.quotas import QuotaLimits
from unfold_pipeline.report.plan_file import PlannedEnvelope
from unfold_pipeline.runtime.live_tuner import LiveTuner
from unfold_pipeline.runtime.local import MAX_CONSECUTIVE_FAILURES, LocalRuntime
from unfold_pipeline.runtime.replica import READY, BatchAnswer, Replica, launch_replica
from unfold_pipeline.runtime.stage import read_clock
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.serving.app import PipelineApp, build_app
from unfold_pipeline.serving.dashboard import PlannedService, ServiceRecord, build_watch
from unfold_pipeline.serving.inference import ServiceSettings
from unfold_pipeline.verbs.profile import profile
from unfoldkit.api import Run, RunDir, UnfoldError
from unfoldkit.engines.local import LocalEngine
from unfoldkit.serving.observability.dashboard import Dashboard
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

CODE = """import numpy as np
import os
import signal
import sys
import time

def picky(rows):
    if (rows > 99).any():
        raise ValueError("secret of the code")
    if (rows < -99).any():
        raise LookupError("another one")
    time.sleep(0.02)
    return rows.sum(axis=1)

def wide(rows):
    return rows[:, :1] * np.ones((1, 300_000))

def short(rows):
    return rows[:1].sum(axis=1) if rows[0, 0] > 99 else rows.sum(axis=1)[: len(rows) - 1]

def odd(rows):
    return [lambda: row for row in rows]

class Label:
    pass

def labels(rows):
    return [Label() for row in rows]

def words(rows):
    return [1j for row in rows]

class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")

def deadly(rows):
    if (rows > 99).any():
        os.kill(os.getpid(), signal.SIGKILL)
    return rows.sum(axis=1)

def leaving(rows):
    if (rows > 99).any():
        sys.exit(3)
    return rows.sum(axis=1)

def mute(rows):
    if (rows > 99).any():
        raise Mute
    return rows.sum(axis=1)

def stuck(rows):
    if (rows > 99).any():
        time.sleep(600)
    return rows.sum(axis=1)

def alone(rows):
    if len(rows) > 1:
        raise RuntimeError("one at a time")
    return rows
"""
ALONE = Pipeline((Stage("a", (), (HardwareOption("core", 0.05, interpolate_latency([(1, 0.02), (8, 0.02)])),)),))
PLAN = (StageConfig(0, 8, 1),)


def runtime(folder: Path, name: str, patience: float = math.inf) -> LocalRuntime:
    """One replica of a function of this file."""
    (folder / "failing.py").write_text(CODE)
    source = ModelSource(code=f"failing:{name}", folder=str(folder))
    return LocalRuntime(plan_stages(["a"], [source], PLAN, hang_timeout_s=patience))


async def ask(app: PipelineApp, value: float | str, path: str = "/v2/models/pipe/infer") -> tuple[int, str]:
    """Ask for one row that begins with a value; return the status and the body."""
    sent: list[Any] = []
    data = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [value, 1.0]}
    body = json.dumps({"inputs": [data]}).encode()

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    method = "POST" if path.endswith("infer") else "GET"
    await app({"type": "http", "method": method, "path": path, "headers": []}, receive, send)
    return int(sent[0]["status"]), sent[1]["body"].decode()


async def until(is_so: Callable[..., bool]) -> None:
    """Wait until a condition holds."""
    while not is_so():  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.02)


def asked(running: LocalRuntime, values: list[float]) -> tuple[list[tuple[int, str]], tuple[int, str]]:
    """Ask for all values at once; return the answers, and what readiness says afterwards."""
    app = build_app("pipe", ALONE, running, 2, ServiceSettings(0))

    async def scene() -> tuple[list[tuple[int, str]], tuple[int, str]]:
        await running.start()
        try:
            found = await asyncio.gather(*(ask(app, value) for value in values))
            return list(found), await ask(app, 0.0, "/v2/health/ready")
        finally:
            await running.stop()

    return asyncio.run(asyncio.wait_for(scene(), 60))


def test_bad_row_fails_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only the rows on which the model raises get 500, without its message; no replica is replaced."""
    running = runtime(tmp_path, "picky")
    logging.getLogger("unfoldkit").propagate = True
    found, ready = asked(running, [1.0, 2.0, 1e9, 3.0, 1e9, 4.0])
    assert [code for code, _ in found] == [200, 200, 500, 200, 500, 200]
    assert "the model of stage a failed on this input" in found[2][1]
    assert "secret" not in found[2][1]
    assert running.count_replaced() == 0
    assert ready[0] == 200
    assert running.list_status()[0]["failed"] == 2
    # the log says it once a minute, however many there are
    assert sum("secret of the code" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop needs Unix")
def test_outputs_may_be_larger_than_the_buffer_of_a_pipe(tmp_path: Path) -> None:
    """Outputs of megabytes are answered under uvloop too, which a service runs on, and cost no replica."""
    import uvloop

    running = runtime(tmp_path, "wide")
    app = build_app("pipe", ALONE, running, 2, ServiceSettings(0))

    async def scene() -> list[tuple[int, str]]:
        await running.start()
        try:
            return [await ask(app, value) for value in (1.0, 2.0)]
        finally:
            await running.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(asyncio.wait_for(scene(), 60))
    assert [code for code, _ in found] == [200, 200]
    assert min(len(text) for _, text in found) > 300_000
    assert running.count_replaced() == 0


def test_each_kind_of_failure_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A row that a client sends again and again hides no other failure of the stage."""
    running = runtime(tmp_path, "picky")
    logging.getLogger("unfoldkit").propagate = True
    found, _ = asked(running, [1e9, 1e9, -1e9, 1e9, -1e9])
    assert [code for code, _ in found] == [500] * 5
    messages = [record.getMessage().splitlines()[0] for record in caplog.records]
    assert [sum(text in message for message in messages) for text in ("secret of the code", "another one")] == [1, 1]


@pytest.mark.parametrize("name", ["leaving", "mute"])
def test_model_errors_end_no_process(tmp_path: Path, name: str) -> None:
    """A model that calls sys.exit, or raises an error without a message, fails on its row alone."""
    running = runtime(tmp_path, name)
    found, ready = asked(running, [1.0, 1e9, 2.0])
    assert [code for code, _ in found] == [200, 500, 200]
    assert running.count_replaced() == 0
    assert ready[0] == 200


@pytest.mark.e2e
@pytest.mark.parametrize(("name", "patience"), [("deadly", math.inf), ("stuck", 2.0)])
def test_row_that_kills_its_process_fails_alone(tmp_path: Path, name: str, patience: float) -> None:
    """A row that ends or blocks the process of its model gets 500; the other rows are answered."""
    running = runtime(tmp_path, name, patience)
    app = build_app("pipe", ALONE, running, 2, ServiceSettings(0))

    async def scene() -> None:
        await running.start()
        try:
            found = await asyncio.gather(*(ask(app, value) for value in (1.0, 1e9, 2.0, 1e9, 3.0)))
            assert [code for code, _ in found] == [200, 500, 200, 500, 200]
            assert "the model of stage a failed on this input" in found[1][1]
            assert (await ask(app, 4.0))[0] == 200
            assert (await ask(app, 0.0, "/v2/health/ready"))[0] == 200
        finally:
            await running.stop()

    asyncio.run(asyncio.wait_for(scene(), 100))
    assert running.list_status()[0]["failed"] == 2
    assert running.count_replaced() >= 2


@pytest.mark.e2e
def test_replicas_restart_after_repeated_deaths(tmp_path: Path) -> None:
    """After the last of many idle replicas has died, queries are rejected at once, and answered after a delay."""
    running = runtime(tmp_path, "picky")
    app = build_app("pipe", ALONE, running, 2, ServiceSettings(0))

    async def scene() -> None:
        await running.start()
        try:
            for _ in range(MAX_CONSECUTIVE_FAILURES + 1):
                await until(lambda: running.serving_replicas()[0] == 1)
                worker = running.stages[0].workers[0]
                os.kill(worker.replica.process.pid or 0, signal.SIGKILL)
                await until(lambda gone=worker: gone not in running.stages[0].workers)
            assert (await ask(app, 1.0))[0] == 503
            await until(lambda: running.serving_replicas()[0] == 1)
            assert (await ask(app, 1.0))[0] == 200
        finally:
            await running.stop()

    asyncio.run(asyncio.wait_for(scene(), 100))


@dataclass(slots=True)
class ProcessStub:
    """Stands for the process of a replica."""

    exitcode: int = 1
    pid: int = 0

    def join(self, _timeout_s: float) -> None:
        """Do not wait."""

    def is_alive(self) -> bool:
        """Return that it has ended."""
        return False


def test_status_says_why_no_replica_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """While added replicas end, those from before serve; the reason goes once no replica is missing."""
    launched: list[Connection] = []

    def launch(_source: ModelSource) -> Replica:
        ours, theirs = Pipe()
        launched.append(theirs)
        theirs.send(READY if len(launched) == 1 else "the file has changed")
        return Replica(cast("SpawnProcess", ProcessStub()), ours)

    monkeypatch.setattr("unfold_pipeline.runtime.local.launch_replica", launch)
    running = LocalRuntime(plan_stages(["a"], [ModelSource(code="a:b")], (StageConfig(0, 1, 1),)))

    async def scene() -> None:
        await running.start()
        try:
            running.set_target(0, 2)
            await until(lambda: running.list_status()[0]["start_error"])
            assert running.list_status()[0]["start_error"] == "the file has changed"
            assert running.serving_replicas() == (1,)
            running.set_target(0, 1)
            assert not running.list_status()[0]["start_error"]
        finally:
            await running.stop()

    asyncio.run(asyncio.wait_for(scene(), 30))


def test_replicas_that_cannot_start_are_delayed_beside_one_that_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of an old replica do not excuse new ones that end at once, nor do these reject what waits for it."""
    launched: list[Connection] = []

    def launch(_source: ModelSource) -> Replica:
        ours, theirs = Pipe()
        launched.append(theirs)
        if len(launched) <= 2:
            theirs.send(READY)
        else:
            theirs.close()
        return Replica(cast("SpawnProcess", ProcessStub()), ours)

    monkeypatch.setattr("unfold_pipeline.runtime.local.launch_replica", launch)
    running = LocalRuntime(plan_stages(["a"], [ModelSource(code="a:b")], (StageConfig(0, 1, 2),)))
    app = build_app("pipe", ALONE, running, 2, ServiceSettings(0))

    async def scene() -> None:
        await running.start()
        try:
            waiting = [asyncio.create_task(ask(app, 1.0)) for _ in range(30)]
            await until(launched[0].poll)
            launched[1].close()
            while not all(task.done() for task in waiting):
                if launched[0].poll():
                    launched[0].recv()
                    launched[0].send(BatchAnswer(np.ones(1), 0.01, 0.01, 0.0))
                await asyncio.sleep(0.01)
            assert [code for code, _ in await asyncio.gather(*waiting)] == [200] * 30
        finally:
            await running.stop()

    asyncio.run(asyncio.wait_for(scene(), 30))
    assert len(launched) <= 2 + MAX_CONSECUTIVE_FAILURES + 1


@pytest.mark.parametrize(("name", "value"), [("short", 1.0), ("odd", 1.0), ("words", 1.0), ("labels", 1.0)])
def test_malformed_answers_are_failures(tmp_path: Path, name: str, value: float) -> None:
    """Answers of another length, or of types without a pickle or JSON form, give 500, and the replica stays."""
    running = runtime(tmp_path, name)
    found, ready = asked(running, [value, value])
    assert {code for code, _ in found} == {500}
    assert running.count_replaced() == 0
    assert ready[0] == 200


def test_model_without_batching_answers_row_by_row(tmp_path: Path) -> None:
    """A model that accepts no batch answers every row of one."""
    found, _ = asked(runtime(tmp_path, "alone"), [1.0, 2.0, 3.0])
    assert [code for code, _ in found] == [200, 200, 200]


def test_outputs_of_private_classes_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Outputs of a class that only the model's code defines fail with a clear message."""
    logging.getLogger("unfoldkit").propagate = True
    found, _ = asked(runtime(tmp_path, "labels"), [1.0])
    assert found[0][0] == 500
    assert "of a type that only its own code knows" in caplog.text


def test_profile_reports_the_failing_batch(tmp_path: Path) -> None:
    """A model that accepts no batch is not measured: the profile reports stage, batch size and error."""
    (tmp_path / "failing.py").write_text(CODE)
    text = """
version: 1
kind: pipeline
name: single
slo: {p99: 600 ms}
arrivals: {process: poisson, rate: 15/s, duration: 20 s}
hardware: {core: {price: $0.05/h}}
stages:
  a: {model: {code: "failing:alone", features: 2}, max_batch: 4}
"""
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path, allow_code=True)
    output = "stages.a.model: the model fails on a batch of 2: RuntimeError: one at a time"
    with pytest.raises(UnfoldError, match=output):
        profile(validate(PipelineSpec, parse(text, "single.yaml")), run)


def test_a_query_behind_a_hung_model_is_refused_by_its_name(tmp_path: Path) -> None:
    """The client and the operator see which stage is silent, long before its replica counts as hung."""
    running = runtime(tmp_path, "stuck", 30.0)
    nothing = np.empty(0)
    promise = PlannedService(0.5, 0.99, ALONE.stages[0].options, PlannedEnvelope(nothing, nothing.astype(np.int64)))
    app = build_app("pipe", ALONE, running, 2, ServiceSettings(0, None, promise))

    async def scene() -> tuple[list[tuple[int, str]], tuple[int, str]]:
        await running.start()
        try:
            await ask(app, 1.0)
            found = await asyncio.gather(*(ask(app, value) for value in (1e9, 2.0)))
            return list(found), await ask(app, 0.0, "/status")
        finally:
            await running.stop()

    found, (_, status) = asyncio.run(asyncio.wait_for(scene(), 60))
    assert [code for code, _ in found] == [503, 503]
    for _, text in found:
        assert "shed: the deadline could not be met: stage a has not answered for " in text
    assert json.loads(status)["stages"][0]["silent_s"] > 1


def test_metrics_and_page_count_every_outcome(tmp_path: Path) -> None:
    """Rows, batches, times, replicas, queues and outcomes are counted; the page also counts bad requests."""
    running = runtime(tmp_path, "picky")
    nothing = np.empty(0)
    promise = PlannedService(30.0, 0.99, ALONE.stages[0].options, PlannedEnvelope(nothing, nothing.astype(np.int64)))
    diary = ServiceRecord(read_clock())
    app = build_app("pipe", ALONE, running, 2, ServiceSettings(0, None, promise), diary)
    page = build_watch("pipe", running, diary, promise, app.gateway.metrics.requests)

    async def scene() -> tuple[str, Dashboard]:
        await running.start()
        try:
            for value in (1.0, 2.0, 1e9, "no number"):
                await ask(app, value)
            return (await ask(app, 0.0, "/metrics"))[1], page()
        finally:
            await running.stop()

    output, board = asyncio.run(asyncio.wait_for(scene(), 60))
    for line in (
        'unfold_requests_total{code="200",model="pipe"} 2.0',
        'unfold_requests_total{code="400",model="pipe"} 1.0',
        'unfold_requests_total{code="500",model="pipe"} 1.0',
        'unfold_rows_total{model="pipe"} 2.0',
        'unfold_batch_rows_count{model="pipe/a"} 2.0',
        'unfold_predict_duration_seconds_count{model="pipe/a"} 2.0',
        'unfold_pipeline_replicas{stage="a",state="paid"} 1.0',
        'unfold_pipeline_replicas{stage="a",state="serving"} 1.0',
        'unfold_pipeline_queue_rows{stage="a"} 0.0',
        'unfold_pipeline_rows_total{stage="a"} 2.0',
        'unfold_pipeline_failed_rows_total{stage="a"} 1.0',
        'unfold_pipeline_queries_total{model="pipe",outcome="in time"} 2.0',
        'unfold_pipeline_queries_total{model="pipe",outcome="failed"} 1.0',
        'unfold_pipeline_queries_total{model="pipe",outcome="shed"} 0.0',
        "unfold_pipeline_attainment 0.6666666666666666",
    ):
        assert line in output.splitlines()
    assert 'unfold_batch_rows_count{model="pipe"}' not in output
    codes, _, paid, serving = board.lines
    assert codes.values == {"200": 2.0, "400": 1.0, "500": 1.0}
    assert board.grids[0].rows == (("a", "0", "1", "1", "8", "2", "1"),)
    # the time of a failed query says nothing about the latency of answers
    assert sum(board.spreads[0].counts) == 2
    assert (paid.title, paid.values) == ("billed replicas", {"a": 1.0})
    assert (serving.title, serving.values) == ("serving replicas", {"a": 1.0})
    assert {tile.label: tile.value for tile in board.tiles}.items() >= {
        "failed": "1",
        "rejected": "1",
        "lost": "0",
    }.items()


@pytest.mark.e2e
def test_missing_replicas_start_when_processes_are_available_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While no process can be started, existing replicas keep serving, and the missing ones follow later."""
    running, left = runtime(tmp_path, "picky"), [0]

    def scarce(source: ModelSource) -> Replica:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.EMFILE, "Too many open files")
        return launch_replica(source)

    monkeypatch.setattr("unfold_pipeline.runtime.local.launch_replica", scarce)
    app = build_app("pipe", ALONE, running, 2, ServiceSettings(0))

    async def scene() -> int:
        await running.start()
        try:
            left[0] = 2
            running.set_target(0, 3)
            code = (await ask(app, 1.0))[0]
            await until(lambda: running.serving_replicas()[0] == 3)
            return code
        finally:
            await running.stop()

    assert asyncio.run(asyncio.wait_for(scene(), 60)) == 200


def test_start_without_processes_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the first replica cannot be started, the service ends with the reason."""

    def none(_source: ModelSource) -> Replica:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr("unfold_pipeline.runtime.local.launch_replica", none)
    with pytest.raises(UnfoldError, match="no process can be started: Resource temporarily unavailable"):
        asyncio.run(asyncio.wait_for(runtime(tmp_path, "picky").start(), 60))


def test_rule_that_fails_once_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scaling rule that raises an error in one second is called again in the next."""
    monkeypatch.setattr("unfold_pipeline.serving.autoscale_loop.TICK_S", 0.05)
    running, asked_for = runtime(tmp_path, "picky"), list[float]()

    def rule(_past: object, now: float) -> ScalingState:
        asked_for.append(now)
        if len(asked_for) == 1:
            raise ValueError("no rule for that")
        return ScalingState((2,), (8,))

    tuner = LiveTuner(rule=rule, limits=QuotaLimits(*[np.zeros(0, np.int64)] * 3))
    app = build_app("pipe", ALONE, running, 2, ServiceSettings(0, tuner))

    async def scene() -> None:
        begun, ends = asyncio.Event(), asyncio.Event()

        async def receive() -> dict[str, object]:
            if begun.is_set():
                await ends.wait()
            return {"type": "lifespan"}

        async def send(_message: object) -> None:
            begun.set()

        lives = asyncio.create_task(app({"type": "lifespan"}, receive, send))
        await begun.wait()
        await ask(app, 1.0)
        await until(lambda: running.serving_replicas()[0] == 2)
        ends.set()
        await lives

    asyncio.run(asyncio.wait_for(scene(), 60))
    assert len(asked_for) > 1


def test_replica_removed_while_loading_exits_quietly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A replica with a pipe that closes while it loads its model exits without a traceback."""
    (tmp_path / "failing.py").write_text(CODE)
    replica = launch_replica(ModelSource(code="failing:picky", folder=str(tmp_path)))
    replica.pipe.close()
    replica.process.join(60.0)
    assert replica.process.exitcode == 0
    assert capfd.readouterr().err == ""


CHILDREN = """
import os, signal, subprocess, time

def start(batch):
    with open("asked", "w"):
        pass
    time.sleep(1.0)
    child = os.fork() or time.sleep(60)
    program = subprocess.Popen(["sleep", "60"])
    time.sleep(0.2)
    for pid in (child, program.pid):
        os.kill(pid, signal.SIGTERM)
    return [[-os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), -program.wait(30)]] * len(batch)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_replica_answers_after_a_signal_to_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What systemd sends to each process of a service ends no batch; processes of the model's code end by it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "children.py").write_text(CHILDREN)
    replica = launch_replica(ModelSource(code="children:start", folder=str(tmp_path)))
    try:
        assert replica.pipe.recv() == READY
        replica.pipe.send(np.zeros((1, 2)))
        while not (tmp_path / "asked").exists():
            time.sleep(0.01)
        os.kill(replica.process.pid or 0, signal.SIGTERM)
        answer = replica.pipe.recv()
        assert isinstance(answer, BatchAnswer)
        assert np.asarray(answer.outputs).tolist() == [[signal.SIGTERM, signal.SIGTERM]]
    finally:
        replica.stop()
    assert replica.process.exitcode == 0
