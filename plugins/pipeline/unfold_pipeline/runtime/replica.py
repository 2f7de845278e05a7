"""A serving process: it loads a model, says that it is ready, and answers batches until its pipe closes."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline.runtime.model_loader import Predict, Rows, Source, brief
from unfoldkit.api import UnfoldError

READY = "ready"


@dataclass(frozen=True, slots=True)
class Failed:
    """What a model's code raised on a batch, in a line and with the places in its code."""

    line: str
    trace: str


Told = tuple[NDArray[Any], float, float, float]
WAITED = "/proc/self/schedstat"


@dataclass(frozen=True, slots=True)
class Replica:
    """A process and the pipe to it.

    A batch is sent as an array; the answer is ``(outputs, seconds in the model, seconds that a core worked for it,
    seconds that it waited for a core)``, or :class:`Failed`.
    """

    process: SpawnProcess
    pipe: Connection

    def end(self, patience: float = 1.0) -> str:
        """Say in words how its process ended, which it has just done."""
        self.process.join(patience)
        code = self.process.exitcode
        return "its process ended" if code is None else f"its process ended {told(code)}"

    def stop(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join(2.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def told(code: int) -> str:
    """Return an exit code of a process in words."""
    return f"with exit code {code}" if code >= 0 else f"by signal {-code} ({signal.Signals(-code).name})"


def launch(source: Source) -> Replica:
    """Start a replica; it is ready only once it says so."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=work, args=(there, source, os.getpid()), daemon=True)
    process.start()
    there.close()
    return Replica(process, here)


def work(pipe: Connection, source: Source, parent: int) -> None:
    """Be a replica."""
    from threadpoolctl import threadpool_limits

    from unfold_pipeline.runtime.model_loader import load
    from unfoldkit.engines.local import start_worker

    start_worker(parent)
    try:
        predict = load(source)
        # the libraries were loaded before the variables were set, and a replica must not take its neighbours' cores
        threadpool_limits(1)
    except Exception as error:  # noqa: BLE001  # whatever it is, the one who waits must be told
        pipe.send(str(error) if isinstance(error, UnfoldError) else f"{type(error).__name__}: {brief(error)}")
        return
    # an end of the pipe is that of the service, or of a replica that is taken away before it is ready
    with contextlib.suppress(EOFError, OSError):
        pipe.send(READY)
        while True:
            # what is waited for between an answer and this is no part of the next batch
            before = waited()
            _tell(pipe, answer(predict, pipe.recv(), before))


def answer(predict: Predict, rows: Rows, before: float = 0.0) -> Told | Failed:
    """Return what a model says to a batch; whatever its code raises ends the batch, and not the process.

    ``before`` is what :func:`waited` was when the batch was handed over.
    """
    began, worked = time.perf_counter(), time.process_time()
    try:
        outputs = np.asarray(predict(rows))
        if outputs.shape[:1] != (len(rows),):
            return Failed(f"{len(rows)} rows were asked, and the answer has shape {outputs.shape}", "")
    except BaseException as error:  # noqa: BLE001  # it is the model's code that raises, and it may want to exit
        return failed(error)
    return outputs, time.perf_counter() - began, time.process_time() - worked, waited() - before


def waited() -> float:
    """Return the seconds that this process could have run and had no core (Linux; 0 elsewhere)."""
    try:
        with open(WAITED, encoding="ascii") as file:  # noqa: PTH123  # a hundred times a second and more
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def failed(error: BaseException) -> Failed:
    """Return an error as it is told through a pipe."""
    return Failed(f"{type(error).__name__}: {brief(error)}", "".join(traceback.format_exception(error)))


def unread(error: BaseException) -> Failed:
    """Return as a failure that the outputs of a model cannot be read in another process than its own."""
    return Failed(
        f"its outputs are of a type that only its own code knows ({type(error).__name__}: {brief(error)})", ""
    )


def _tell(pipe: Connection, told: Told | Failed) -> None:
    try:
        pipe.send(told)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001  # outputs that are no numbers may be of types that no pipe takes
        pipe.send(failed(error))
