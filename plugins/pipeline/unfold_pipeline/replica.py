"""A serving process: it loads a model, says that it is ready, and answers batches until its pipe closes."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline.models import Rows, Source
from unfoldkit.api import UnfoldError, broken

READY = "ready"


@dataclass(frozen=True, slots=True)
class Replica:
    """A process and the pipe to it.

    A batch is sent as an array; the answer is ``(outputs, seconds in the model, seconds that a core worked for it)``.
    """

    process: SpawnProcess
    pipe: Connection

    def ready(self, patience: float = 120.0) -> None:
        """Wait until the model is loaded.

        Raises:
            UnfoldError: it cannot be loaded, or not in time.
        """
        try:
            told = self.pipe.recv() if self.pipe.poll(patience) else "it did not answer in time"
        except (EOFError, ConnectionResetError):
            told = "its process ended"
        if told != READY:
            self.stop()
            raise broken(f"a replica did not start: {told}")

    def call(self, rows: Rows) -> tuple[NDArray[Any], float]:
        """Return the outputs of a batch and the seconds from sending it to having them."""
        began = time.perf_counter()
        self.pipe.send(rows)
        outputs, *_ = self.pipe.recv()
        return outputs, time.perf_counter() - began

    def end(self) -> str:
        """Say in words how its process ended, which it has just done."""
        self.process.join(1.0)
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

    from unfold_pipeline.models import brief, load
    from unfoldkit.engines.local import start_worker

    start_worker(parent)
    try:
        predict = load(source)
        # the libraries were loaded before the variables were set, and a replica must not take its neighbours' cores
        threadpool_limits(1)
    except Exception as error:  # noqa: BLE001  # whatever it is, the one who waits must be told
        pipe.send(str(error) if isinstance(error, UnfoldError) else f"{type(error).__name__}: {brief(error)}")
        return
    pipe.send(READY)
    while True:
        try:
            rows = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        began, worked = time.perf_counter(), time.process_time()
        outputs = np.asarray(predict(rows))
        pipe.send((outputs, time.perf_counter() - began, time.process_time() - worked))
