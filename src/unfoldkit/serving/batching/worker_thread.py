"""One thread that runs jobs in order; the end of the process does not wait for it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Job = tuple[Callable[[], Any], Callable[[Any], object]]


@dataclass(slots=True)
class WorkerThread:
    """A thread that starts with its first job. Unlike in an executor, a job that never ends keeps no process alive."""

    name: str
    jobs: queue.SimpleQueue[Job | None] = field(default_factory=queue.SimpleQueue)
    thread: threading.Thread | None = None
    is_working: threading.Lock = field(default_factory=threading.Lock)

    def run(self, work: Callable[[], Any], on_result: Callable[[Any], object]) -> None:
        """Run ``work``, which must not raise, in the thread, and pass its result to ``on_result`` there."""
        if self.thread is None:
            self.thread = threading.Thread(target=self._loop, name=self.name, daemon=True)
            self.thread.start()
        self.jobs.put((work, on_result))

    def yield_to_job(self, seconds: float) -> None:
        """Block the caller until the current job ends, at most ``seconds``, so that the job has the processor."""
        if self.is_working.acquire(timeout=seconds):
            self.is_working.release()

    def close(self) -> None:
        """Wait for the submitted jobs."""
        if self.thread is not None:
            self.jobs.put(None)
            self.thread.join()

    def _loop(self) -> None:
        while (job := self.jobs.get()) is not None:
            work, on_result = job
            with self.is_working:
                on_result(work())
