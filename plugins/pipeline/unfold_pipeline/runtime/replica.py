"""A serving process: it loads a model, reports that it is ready, and answers batches until its pipe closes."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline._types import Tensors
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.runtime.models.data_flow import count_rows
from unfold_pipeline.runtime.models.model_loader import Predict, load_model, summarize_error
from unfoldkit.api import UnfoldError
from unfoldkit.serving.oip.errors import find_refused_input
from unfoldkit.worker_process import blocking_interrupts, start_worker

READY = "ready"
SCHEDULER_STATS = "/proc/self/schedstat"


@dataclass(frozen=True, slots=True)
class BatchFailure:
    """An error that a model raised on a batch.

    Attributes:
        message: One line.
        trace: The traceback.
        refused_input: Why the model does not take an input, as for an id that an embedding lacks; else empty.
    """

    message: str
    trace: str = ""
    refused_input: str = ""


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """The outputs for a batch, and how its seconds were spent.

    Attributes:
        outputs: One per row, by name if the model returns several tensors.
        model_s: Seconds in the model.
        cpu_s: Seconds of these in which a core was busy.
        waited_s: Seconds since the hand-over in which the process waited for a core.
    """

    outputs: Tensors
    model_s: float
    cpu_s: float
    waited_s: float


@dataclass(frozen=True, slots=True)
class Replica:
    """A process and the pipe to it.

    Batches are sent as arrays; each answer is a :class:`BatchAnswer` or a :class:`BatchFailure`.
    """

    process: SpawnProcess
    pipe: Connection

    def describe_end(self, timeout_s: float = 1.0) -> str:
        """Describe how the process ended, which it has just done."""
        self.process.join(timeout_s)
        code = self.process.exitcode
        return "its process ended" if code is None else f"its process ended {_describe_exit_code(code)}"

    def stop(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join(2.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def launch_replica(source: ModelSource) -> Replica:
    """Start a replica. It is ready once it sends ``READY``."""
    context = get_context("spawn")
    parent_end, child_end = context.Pipe()
    process = context.Process(target=run_replica, args=(child_end, source, os.getpid()), daemon=True)
    with blocking_interrupts():
        process.start()
    child_end.close()
    return Replica(process, parent_end)


def run_replica(pipe: Connection, source: ModelSource, parent_pid: int) -> None:
    """Load the model and answer batches: the main function of the process."""
    from threadpoolctl import threadpool_limits

    start_worker(parent_pid)
    _leave_termination_to_service()
    try:
        predict = load_model(source)
        # the libraries were loaded before the environment was set, and a replica must not use its neighbours' cores
        threadpool_limits(1)
    except Exception as error:  # noqa: BLE001  # every error must reach the parent
        message = str(error) if isinstance(error, UnfoldError) else _format_error(error)
        pipe.send(message)
        return
    # the pipe closes with the service, or when the replica is removed before it is ready
    with contextlib.suppress(EOFError, OSError):
        pipe.send(READY)
        while True:
            # waiting between an answer and here is not part of the next batch
            waited_before_s = read_cpu_wait()
            _send_answer(pipe, answer_batch(predict, pipe.recv(), waited_before_s))


def _leave_termination_to_service() -> None:
    """Go on at SIGTERM: a service manager sends it to all processes at once, and the service still drains.

    A handler, unlike ``SIG_IGN``, is not inherited by programs that the model's code starts.
    """
    signal.signal(signal.SIGTERM, _continue)
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=partial(signal.signal, signal.SIGTERM, signal.SIG_DFL))


def _continue(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the pipe closes at the end of the service."""


def answer_batch(predict: Predict, batch: Tensors, waited_before_s: float = 0.0) -> BatchAnswer | BatchFailure:
    """Return what a model answers to a batch; an error in its code ends the batch, not the process.

    ``waited_before_s`` is what :func:`read_cpu_wait` returned when the batch was handed over.
    """
    start_s, cpu_start_s = time.perf_counter(), time.process_time()
    try:
        outputs = _convert_outputs(predict(batch))
        rows = count_rows(batch)
        for tensor in outputs.values() if isinstance(outputs, dict) else (outputs,):
            if tensor.shape[:1] != (rows,):
                return BatchFailure(f"{rows} rows were sent, and the answer has shape {tensor.shape}")
    except BaseException as error:  # noqa: BLE001  # the model's code may raise anything, even SystemExit
        return _build_failure(error)
    seconds, cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_start_s
    return BatchAnswer(outputs, seconds, cpu_s, read_cpu_wait() - waited_before_s)


def _convert_outputs(answer: Any) -> Tensors:
    """Return what a model returned as arrays; a mapping holds several tensors."""
    if isinstance(answer, Mapping):
        if not answer:
            raise ValueError("the answer holds no tensor")
        return {str(name): _convert_tensor(tensor) for name, tensor in answer.items()}
    return _convert_tensor(answer)


def _convert_tensor(tensor: Any) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(tensor)
    # NumPy drops the zeros at the end of bytes
    return array if array.dtype.kind != "S" or isinstance(tensor, np.ndarray) else np.array(tensor, object)


def read_cpu_wait() -> float:
    """Return the seconds in which this process was runnable and had no core (Linux; 0 elsewhere)."""
    try:
        with open(SCHEDULER_STATS, encoding="ascii") as file:  # noqa: PTH123  # called hundreds of times a second
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def describe_unreadable_outputs(error: BaseException) -> BatchFailure:
    """Return the failure of a model with outputs that cannot be unpickled outside its own process."""
    return BatchFailure(f"its outputs are of a type that only its own code knows ({_format_error(error)})")


def _format_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {summarize_error(error)}"


def _build_failure(error: BaseException) -> BatchFailure:
    refused = find_refused_input(error)
    return BatchFailure(_format_error(error), "".join(traceback.format_exception(error)), str(refused or ""))


def _describe_exit_code(code: int) -> str:
    return f"with exit code {code}" if code >= 0 else f"by signal {-code} ({signal.Signals(-code).name})"


def _send_answer(pipe: Connection, answer: BatchAnswer | BatchFailure) -> None:
    try:
        pipe.send(answer)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001  # outputs that are not numbers may be of types that cannot be pickled
        pipe.send(_build_failure(error))
