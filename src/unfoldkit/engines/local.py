"""Jobs in processes of this machine, one BLAS/OpenMP thread each."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import active_children, get_context
from typing import Any

from unfoldkit.errors import internal_error

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """Runs jobs in ``workers`` processes; with one worker or one job, in this process."""

    workers: int = field(default_factory=available_cores)
    name: str = "local"

    def map(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        on_result: Callable[[int, Any], None] | None = None,
    ) -> list[Any]:
        """Run the jobs; see :class:`~unfoldkit.engines.base.Engine`."""
        told = on_result or _ignore
        if min(self.workers, len(items)) <= 1:
            return [_tell(index, function(item), told) for index, item in enumerate(items)]
        try:
            return self._side_by_side(function, items, told)
        except BrokenProcessPool as error:
            raise internal_error(
                "a worker process died",
                hint="out of memory? fewer --jobs need less; the run resumes where it was",
            ) from error

    def _side_by_side(
        self, function: Callable[[Any], Any], items: Sequence[Any], told: Callable[[int, Any], None]
    ) -> list[Any]:
        results: dict[int, Any] = {}
        others = set(active_children())
        workers = min(self.workers, len(items))
        with ProcessPoolExecutor(
            workers, get_context("spawn"), initializer=start_worker, initargs=(os.getpid(),)
        ) as pool:
            waiting: dict[Future[Any], int] = {pool.submit(function, item): index for index, item in enumerate(items)}
            try:
                while waiting:
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        index = waiting.pop(future)
                        results[index] = _tell(index, future.result(), told)
            except BaseException:
                # what runs now may take hours, and nobody waits for it any more
                for worker in set(active_children()) - others:
                    worker.kill()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [results[index] for index in range(len(items))]


def _ignore(_index: int, _result: Any) -> None:
    return None


def _tell(index: int, result: Any, told: Callable[[int, Any], None]) -> Any:
    told(index, result)
    return result


def start_worker(parent: int) -> None:
    """Make the worker die with its parent and keep to one thread."""
    for number in (signal.SIGINT, signal.SIGHUP):
        # a terminal sends them to all at once, and the parent says what becomes of its workers
        signal.signal(number, signal.SIG_IGN)
    one_thread()
    _die_with_parent(parent)


def one_thread() -> None:
    """Keep numeric libraries that are loaded from now on to one thread."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = "1"


def _die_with_parent(parent: int) -> None:
    # a pool's workers outlive a parent that was killed with SIGKILL, unless the kernel is asked
    import ctypes
    import sys

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
