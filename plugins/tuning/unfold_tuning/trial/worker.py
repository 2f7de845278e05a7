"""The process in which trials run: it receives a job, trains, checkpoints, reports, and ends with its parent."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import current_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from unfold_tuning.job.problem import Mode, score_metric
from unfold_tuning.trial.estimators import TrainFunction
from unfold_tuning.trial.process_group import ProcessRank, set_environment
from unfold_tuning.trial.trainable import WorkerSetup, build_train_function
from unfoldkit.errors import Diagnostic, UnfoldError, shorten
from unfoldkit.run_directory import write_atomically
from unfoldkit.safe_io.files import open_regular, read_bytes
from unfoldkit.worker_process import start_worker

RESULT_FORM = "a trial's function returns (metric, state), a number and bytes"
HASHED_BYTES = 1 << 20
MAX_ERROR = 500
"""Characters of an error of a function that are reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialJob:
    """A trial's work in one stage.

    Attributes:
        trial: Number of the trial.
        config: Its configuration.
        done: Iterations that it has run.
        target: Iterations that it runs to.
        checkpoint_iters: Iterations between two checkpoints.
        workers: Accelerators.
        seed: Seed of the run.
        folder: Folder of the trial's states, one file per iteration count.
        mode: Whether a smaller or a larger metric is better.
        rank: The process that it is for, if the trial spans instances.
    """

    trial: int
    config: dict[str, Any]
    done: int
    target: int
    checkpoint_iters: int
    workers: int
    seed: int
    folder: Path
    mode: Mode = "max"
    rank: ProcessRank | None = None

    @property
    def is_reporting(self) -> bool:
        """Whether this process reports and stores checkpoints: of several, the first does."""
        return self.rank is None or self.rank.rank == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerMessage:
    """A message from a worker to the driver.

    Attributes:
        kind: The worker is ``ready``; a trial reached a checkpoint (``step``); its function ``failed``; a checkpoint
            could not be written (``unsaved``), without a fault of the trial; or nothing can be trained (``invalid``).
        trial: Number of the trial.
        iters: Iterations that it has run.
        metric: Its ranking score.
        seconds: Seconds since the previous checkpoint, this checkpoint included.
        save_s: Seconds of writing the checkpoint.
        sha256: The SHA-256 of the trial's state in hexadecimal digits.
        error: What failed.
        diagnostics: What is wrong with the trainable, of an ``invalid`` one.
    """

    kind: Literal["ready", "step", "failed", "unsaved", "invalid"]
    trial: int = -1
    iters: int = 0
    metric: float = 0.0
    seconds: float = 0.0
    save_s: float = 0.0
    sha256: str = ""
    error: str = ""
    diagnostics: tuple[Diagnostic, ...] = ()


class _StateNotSavedError(Exception):
    """A checkpoint could not be written; the driver turns it into an error."""


def serve_jobs(parent: int, pipe: Connection, setup: WorkerSetup) -> None:
    """Run jobs from a pipe until it closes; a job ends at a checkpoint if by then the pipe has another, or ``None``."""
    start_worker(parent)
    _allow_processes()
    _redirect_stdout()
    train, ready = prepare_training(setup)
    pipe.send(ready)
    while train is not None:
        try:
            job: TrialJob | None = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        if job is None:
            continue
        try:
            for message in run_job(job, train, load_state(job), lambda iters, state: _save_or_raise(job, iters, state)):  # noqa: B023
                if job.is_reporting:
                    pipe.send(message)
                if pipe.poll():
                    break
        except _StateNotSavedError as error:
            pipe.send(WorkerMessage(kind="unsaved", trial=job.trial, error=str(error)))
        except BaseException as error:  # noqa: BLE001 - a user's function may raise anything; the driver decides
            pipe.send(describe_failure(job, error))


def prepare_training(setup: WorkerSetup) -> tuple[TrainFunction | None, WorkerMessage]:
    """Build the training function, and the message that reports whether that worked."""
    try:
        return build_train_function(setup), WorkerMessage(kind="ready")
    except UnfoldError as error:
        return None, WorkerMessage(kind="invalid", diagnostics=error.diagnostics)


def describe_failure(job: TrialJob, error: BaseException) -> WorkerMessage:
    """Build the message that a trial's function raised an error."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the error is a user's class
        text = "its message cannot be read"
    return WorkerMessage(kind="failed", trial=job.trial, error=shorten(f"{type(error).__name__}: {text}", MAX_ERROR))


def _allow_processes() -> None:
    """Let trials start processes, such as those of a data loader, in a group that ends with this process."""
    current_process().daemon = False
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def _redirect_stdout() -> None:
    """Redirect everything that trials and their libraries print to stderr: stdout carries the report only."""
    os.dup2(2, 1)
    sys.stdout = sys.stderr


def _save_or_raise(job: TrialJob, iters: int, state: bytes) -> None:
    try:
        save_state(job, iters, state)
    except UnfoldError as error:
        raise _StateNotSavedError(str(error)) from error


def run_job(
    job: TrialJob, train: TrainFunction, state: bytes | None, save: Callable[[int, bytes], None]
) -> Iterator[WorkerMessage]:
    """Run a job and yield a message after each checkpoint; only the process that reports stores it.

    Args:
        job: The job.
        train: The training function.
        state: The state to continue from; ``None`` for a new trial.
        save: Stores the state at an iteration count; returns before the message is yielded.
    """
    set_environment(job.rank)
    done = job.done
    while done < job.target:
        began = time.perf_counter()
        iters = min(job.checkpoint_iters, job.target - done)
        metric, state = check_result(_train_here(train, copy.deepcopy(job.config), state, iters, job.workers, job.seed))
        done += iters
        trained = time.perf_counter()
        sha256 = ""
        if job.is_reporting:
            sha256 = hashlib.sha256(state).hexdigest()
            save(done, state)
        ended = time.perf_counter()
        yield WorkerMessage(
            kind="step",
            trial=job.trial,
            iters=done,
            metric=score_metric(metric, job.mode),
            seconds=ended - began,
            save_s=ended - trained,
            sha256=sha256,
        )


def _train_here(train: TrainFunction, *arguments: Any) -> object:
    """Train; a process that the function forked and that leaves it too ends: only its parent has the result."""
    process = os.getpid()
    try:
        return train(*arguments)
    finally:
        if os.getpid() != process:
            os._exit(0)


def check_result(result: object) -> tuple[float, bytes]:
    """Check the result of a training function and convert its metric to a number that a ledger holds.

    Raises:
        TypeError: It is not (metric, state).
    """
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise TypeError(f"{RESULT_FORM}; this one returned {shorten(repr(result))}")
    metric, state = result
    if not isinstance(state, (bytes, bytearray, memoryview)):
        raise TypeError(f"{RESULT_FORM}; its state is {shorten(repr(state))}")
    try:
        return float(metric), bytes(state)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{RESULT_FORM}; its metric is {shorten(repr(metric))}") from error


def restart_without_state(job: TrialJob, log: logging.Logger) -> TrialJob:
    """Return the job from its beginning if its checkpoint is gone, otherwise unchanged."""
    if not job.done or get_state_path(job.folder, job.done).exists():
        return job
    log.warning("the checkpoint of trial %d is gone; the trial restarts", job.trial)
    return replace(job, done=0)


def set_aside_changed_state(folder: Path, iters: int, sha256: str, log: logging.Logger) -> None:
    """Rename the state of a trial that was changed after it was stored: half a state, or another one, misleads it.

    Args:
        folder: Folder of the trial's states.
        iters: Iterations after which it was stored.
        sha256: Its SHA-256 then, in hexadecimal digits.
        log: Receives a warning.
    """
    path = get_state_path(folder, iters)
    if not path.exists():
        return
    if path.is_file():
        digest = hashlib.sha256()
        with open_regular(path) as stream:
            while part := stream.read(HASHED_BYTES):
                digest.update(part)
        if digest.hexdigest() == sha256:
            return
    changed = path.replace(path.with_name(f"{path.name}.changed"))
    log.warning("a checkpoint was changed after it was stored, and is set aside: %s", changed)


def load_state(job: TrialJob) -> bytes | None:
    """Load the state from which a job continues."""
    return read_bytes(get_state_path(job.folder, job.done)) if job.done else None


def save_state(job: TrialJob, iters: int, state: bytes) -> None:
    """Write a state to disk atomically, before any message refers to it."""
    write_atomically(get_state_path(job.folder, iters), state)


def name_trial_folder(trial: int) -> str:
    """Name the folder of the states of a trial of the ledger, which numbers them from 1."""
    return f"trial-{trial:05d}"


def get_state_path(folder: Path, iters: int) -> Path:
    """Return the path of a trial's state after ``iters`` iterations."""
    return folder / f"{iters}.state"
