"""The process in which trials run: it takes a job, trains, checkpoints, reports, and dies with its parent."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from unfold_tuning.trial.estimators import Train
from unfold_tuning.trial.trainable import Work, make
from unfoldkit.engines.local import start_worker
from unfoldkit.errors import Diagnostic, UnfoldError, cut
from unfoldkit.run_directory import write_atomically
from unfoldkit.safe_io.files import read_bytes


@dataclass(frozen=True, slots=True)
class Job:
    """A trial's part of a stage: from ``done`` to ``target`` iterations, a checkpoint every ``every`` of them.

    ``checkpoint`` is the folder of the trial's states, one file an iteration count.
    """

    trial: int
    config: dict[str, Any]
    done: int
    target: int
    every: int
    gang: int
    seed: int
    checkpoint: Path


@dataclass(frozen=True, slots=True)
class Told:
    """What a worker says: it is ``ready``, a trial has got to ``iters`` (``step``), or its function ``failed``.

    A checkpoint that could not be written (``unkept``) is no fault of the trial. Where there is nothing to train with,
    no function or bad data (``unfit``), ``faults`` are the mistakes.

    ``seconds`` are those of a step, its checkpoint included, which took ``saved`` of them.
    """

    what: Literal["ready", "step", "failed", "unkept", "unfit"]
    trial: int = -1
    iters: int = 0
    metric: float = 0.0
    seconds: float = 0.0
    saved: float = 0.0
    error: str = ""
    faults: tuple[Diagnostic, ...] = ()


def work_for(parent: int, pipe: Connection, work: Work) -> None:
    """Serve jobs from a pipe until it closes."""
    start_worker(parent)
    _say_aside()
    train, told = made(work)
    pipe.send(told)
    while train is not None:
        try:
            job: Job = pipe.recv()
        except EOFError:
            return
        try:
            state = state_of(job)
            for told in perform(job, train, state, lambda iters, new: _laid(job, iters, new)):  # noqa: B023
                pipe.send(told)
        except _Unkept as error:
            pipe.send(Told("unkept", job.trial, error=str(error)))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's function may raise anything; the driver decides
            pipe.send(Told("failed", job.trial, error=f"{type(error).__name__}: {error}"))


def made(work: Work) -> tuple[Train | None, Told]:
    """Return the function that trains, if there is one, and what to tell of it."""
    try:
        return make(work), Told("ready")
    except UnfoldError as error:
        return None, Told("unfit", faults=error.diagnostics)


def _say_aside() -> None:
    """Let what a trial prints, its libraries included, go to stderr as it comes: stdout is the report's."""
    os.dup2(2, 1)
    sys.stdout = sys.stderr


class _Unkept(Exception):  # noqa: N818 - said to the driver, which makes an error of it
    """A checkpoint could not be written."""


def _laid(job: Job, iters: int, state: bytes) -> None:
    try:
        keep(job, iters, state)
    except UnfoldError as error:
        raise _Unkept(str(error)) from error


def perform(job: Job, train: Train, state: bytes | None, kept: Callable[[int, bytes], None]) -> Iterator[Told]:
    """Run a job and yield what to tell after each checkpoint, which ``kept`` has by then."""
    done = job.done
    while done < job.target:
        began = time.perf_counter()
        iters = min(job.every, job.target - done)
        metric, state = answered(train(job.config, state, iters, job.gang, job.seed))
        done += iters
        trained = time.perf_counter()
        kept(done, state)
        ended = time.perf_counter()
        yield Told("step", job.trial, done, metric, ended - began, ended - trained)


def answered(found: object) -> tuple[float, bytes]:
    """Return what a function has returned, its metric as a number that a ledger holds.

    Raises:
        TypeError: it is not (metric, state).
    """
    form = "a trial's function returns (metric, state), a number and bytes"
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise TypeError(f"{form}; this one returned {cut(repr(found))}")
    metric, state = found
    if not isinstance(state, (bytes, bytearray, memoryview)):
        raise TypeError(f"{form}; its state is {cut(repr(state))}")
    try:
        return float(metric), bytes(state)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{form}; its metric is {cut(repr(metric))}") from error


def whole(job: Job, log: logging.Logger) -> Job:
    """Return a job as it can be carried out: from the beginning, where its checkpoint is gone."""
    if not job.done or state_file(job.checkpoint, job.done).exists():
        return job
    log.warning("the checkpoint of trial %d is gone; it begins again", job.trial)
    return replace(job, done=0)


def state_of(job: Job) -> bytes | None:
    """Return the state from which a job goes on."""
    return read_bytes(state_file(job.checkpoint, job.done)) if job.done else None


def keep(job: Job, iters: int, state: bytes) -> None:
    """Lay a state on disk, before anyone counts on it."""
    write_atomically(state_file(job.checkpoint, iters), state)


def state_file(folder: Path, iters: int) -> Path:
    """Return where a trial's state after ``iters`` iterations lies."""
    return folder / f"{iters}.state"
