"""Results of training functions, and what happens to functions that return something else."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import numpy as np
import pytest
from tuning_runs import SPEC, train_spec

from unfold_tuning.job.problem import TrainableConfig
from unfold_tuning.trial.trainable import WorkerSetup
from unfold_tuning.trial.worker import TrialJob, WorkerMessage, check_result, describe_failure, serve_jobs
from unfoldkit.api import ExitCode, UnfoldError, Verdict

pytestmark = pytest.mark.usefixtures("sleeper_log")


@pytest.mark.parametrize(
    ("metric", "state", "message"),
    [(None, b"", "its metric is None"), (0.5, {"epoch": 1}, "its state is {'epoch': 1}"), (b"", 0.5, "its state is")],
)
def test_a_result_is_a_number_and_bytes(metric: object, state: object, message: str) -> None:
    """A result in another form is an error that names what is wrong in it."""
    with pytest.raises(TypeError, match=message):
        check_result((metric, state))
    assert check_result([np.float32(0.5), bytearray(b"x")]) == (0.5, b"x")


def test_a_worker_ends_with_its_pipe() -> None:
    """A worker that is released before its first message was read ends without an error."""
    pipe, process = _start_worker("sleeper:train")
    assert pipe.poll(60.0)
    pipe.close()
    process.join(60.0)
    assert process.exitcode == 0


def test_a_forked_process_that_returns_ends(tmp_path: Path) -> None:
    """A process that a function forks and that returns from it as well reports nothing, and receives no job."""
    pipe, process = _start_worker("sleeper:returning_twice")
    pipe.send(_build_job(tmp_path, 2))
    messages: list[WorkerMessage] = []
    with contextlib.suppress(EOFError):
        while pipe.poll(60.0) and len(messages) < 8:
            messages.append(pipe.recv())
            if messages[-1].iters == 2:
                process.join(0.5)
                process.kill()
    process.kill()
    assert [message.iters for message in messages] == [0, 1, 2]


class UnreadableError(Exception):
    """An error of a user whose message cannot be read."""

    def __str__(self) -> str:
        """Fail, as an error with a wrong format may."""
        raise KeyError("name")


@pytest.mark.parametrize(
    ("error", "message"),
    [(ValueError("z" * 100_000), r"ValueError: z{400,500}\.\.\."), (UnreadableError(), "UnreadableError: its message")],
)
def test_errors_of_a_function_are_reported_in_short(tmp_path: Path, error: Exception, message: str) -> None:
    """A long message is cut, and an error that has none to read fails its trial, not the node."""
    described = describe_failure(_build_job(tmp_path, 1), error).error
    assert re.match(message, described)
    assert len(described) <= 500


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("silent", r"returns \(metric, state\), a number and bytes; this one returned None"),
        ("leaving", "the last error: SystemExit: no data"),
        ("panicking", "the last error: PanicError: index out of bounds"),
    ],
)
def test_functions_without_a_result_end_the_run_with_their_error(tmp_path: Path, function: str, message: str) -> None:
    """A function that returns nothing, or exits, is an error of the spec, not a lost node."""
    with pytest.raises(UnfoldError, match=message):
        train_spec(tmp_path, SPEC.replace("sleeper:train", f"sleeper:{function}"))


def test_a_function_may_change_its_configuration_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that empties its configuration and leaves its folder fails nowhere and repeats no iteration."""
    monkeypatch.chdir(tmp_path)
    report = train_spec(Path(), SPEC.replace("sleeper:train", "sleeper:changing"))
    assert "failed trials" not in dict(report.lines)
    iterations = (tmp_path / "log").read_text().splitlines()
    assert len(iterations) == len(set(iterations)) == 6 * 2 + 2 * 4 + 1 * 6


@pytest.mark.e2e
@pytest.mark.parametrize("function", ["forking", "detaching"])
def test_processes_of_trials_end_with_them(tmp_path: Path, function: str) -> None:
    """A function may start processes; they neither hide the end of their worker nor outlive the run."""
    report = train_spec(tmp_path, SPEC.replace("sleeper:train", f"sleeper:{function}"))
    assert report.verdict is Verdict.YES
    assert report.metrics["lost_nodes"].value == 1
    _await_end(_list_children(tmp_path))


@pytest.mark.e2e
def test_processes_of_trials_end_when_a_killed_run_continues(tmp_path: Path) -> None:
    """A driver that is killed ends its workers, not what these have started in sessions of their own."""
    spec = tmp_path / "t.yaml"
    spec.write_text(SPEC.replace("sleeper:train", "sleeper:orphaning").replace("30 s", "10 min"))
    command = [sys.executable, "-m", "unfoldkit", "train", str(spec), "--run", str(tmp_path / "run"), "--allow-code"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as driver:
        while not (tmp_path / "log").exists():
            assert driver.poll() is None
            time.sleep(0.02)
        driver.kill()
    children = _list_children(tmp_path)
    assert any(map(_is_alive, children))
    assert train_spec(tmp_path, spec.read_text()).verdict is Verdict.YES
    _await_end(children)


def test_a_missing_function_is_an_error_of_the_spec(tmp_path: Path) -> None:
    """A function that cannot be loaded ends the run at once with an error at its key and exit code 2."""
    with pytest.raises(UnfoldError, match=r"trainable\.function: cannot load 'sleeper:train2'") as caught:
        train_spec(tmp_path, SPEC.replace("sleeper:train", "sleeper:train2"))
    assert caught.value.code is ExitCode.USAGE


def test_a_bad_cell_of_a_table_is_an_error_with_its_location(tmp_path: Path) -> None:
    """A table that a worker cannot read ends the run at once with an error at its line."""
    (tmp_path / "t.csv").write_text("a,target\n1,0\nsoft,1\n")
    trainable = '{function: "sleeper:train", space: {ceiling: {uniform: [0, 1]}}}'
    with pytest.raises(UnfoldError, match=r"t\.csv:3:1") as caught:
        train_spec(tmp_path, SPEC.replace(trainable, f"{{estimator: sgd, data: {tmp_path}/t.csv}}"))
    assert caught.value.code is ExitCode.USAGE


def test_output_of_trials_goes_to_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever trials print goes to stderr, so that stdout carries the report only."""
    train_spec(tmp_path, SPEC.replace("sleeper:train", "sleeper:talking"))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "epoch 1" in captured.err


def _list_children(folder: Path) -> list[Path]:
    children = [Path("/proc") / pid for pid in (folder / "log.children").read_text().split()]
    assert children
    return children


def _await_end(processes: list[Path]) -> None:
    # a signal that kills takes a moment to do so
    end = time.monotonic() + 5
    while any(map(_is_alive, processes)):
        assert time.monotonic() < end
        time.sleep(0.02)


def _is_alive(process: Path) -> bool:
    try:
        return "Z" not in (process / "stat").read_text().split()[2]
    except OSError:
        return False


def _start_worker(function: str) -> tuple[Connection, SpawnProcess]:
    context = get_context("spawn")
    pipe, worker_pipe = context.Pipe()
    setup = WorkerSetup(TrainableConfig(function=function))
    process = context.Process(target=serve_jobs, args=(os.getpid(), worker_pipe, setup), daemon=True)
    process.start()
    worker_pipe.close()
    return pipe, process


def _build_job(folder: Path, target: int) -> TrialJob:
    return TrialJob(trial=0, config={}, done=0, target=target, checkpoint_iters=1, workers=1, seed=0, folder=folder)
