"""Jobs in processes of this machine, one BLAS/OpenMP thread each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import active_children, get_context
from typing import Any

from unfoldkit.errors import internal_error
from unfoldkit.worker_process import blocking_interrupts, start_worker


def available_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """Runs jobs in ``workers`` processes, or in this process if there is one worker or one job."""

    workers: int = field(default_factory=available_cores)
    name: str = "local"

    def map(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        on_result: Callable[[int, Any], None] | None = None,
    ) -> list[Any]:
        """See :class:`~unfoldkit.engines.Engine`."""
        notify = on_result or _ignore
        if min(self.workers, len(items)) <= 1:
            return [_pass_on(index, function(item), notify) for index, item in enumerate(items)]
        try:
            return self._map_in_processes(function, items, notify)
        except BrokenProcessPool as error:
            raise internal_error(
                "a worker process died",
                hint="out of memory? use fewer --jobs; the run resumes where it was",
            ) from error

    def _map_in_processes(
        self, function: Callable[[Any], Any], items: Sequence[Any], notify: Callable[[int, Any], None]
    ) -> list[Any]:
        results: dict[int, Any] = {}
        unrelated = set(active_children())
        workers = min(self.workers, len(items))
        with ProcessPoolExecutor(
            workers, get_context("spawn"), initializer=start_worker, initargs=(os.getpid(),)
        ) as pool:
            try:
                with blocking_interrupts():
                    waiting: dict[Future[Any], int] = {pool.submit(function, item): i for i, item in enumerate(items)}
                while waiting:
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        index = waiting.pop(future)
                        results[index] = _pass_on(index, future.result(), notify)
            except BaseException:
                # the running jobs may take hours, and their results are not needed any more
                for worker in set(active_children()) - unrelated:
                    worker.kill()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [results[index] for index in range(len(items))]


def _ignore(_index: int, _result: Any) -> None:
    return None


def _pass_on(index: int, result: Any, notify: Callable[[int, Any], None]) -> Any:
    notify(index, result)
    return result
