"""One thread that does what it is given, in order; the end of the process does not wait for it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Job = tuple[Callable[[], Any], Callable[[Any], object]]


@dataclass(slots=True)
class Thread:
    """A thread, begun with its first job. Unlike an executor's, a job that never ends keeps no process alive."""

    name: str
    jobs: queue.SimpleQueue[Job | None] = field(default_factory=queue.SimpleQueue)
    thread: threading.Thread | None = None
    working: threading.Lock = field(default_factory=threading.Lock)

    def run(self, work: Callable[[], Any], told: Callable[[Any], object]) -> None:
        """Do ``work``, which raises nothing, in the thread, and tell its result there."""
        if self.thread is None:
            self.thread = threading.Thread(target=self._loop, name=self.name, daemon=True)
            self.thread.start()
        self.jobs.put((work, told))

    def rest(self, seconds: float) -> None:
        """Leave the processor to the job under way until it ends, but at most ``seconds``."""
        if self.working.acquire(timeout=seconds):
            self.working.release()

    def close(self) -> None:
        """Wait for the jobs that were given."""
        if self.thread is not None:
            self.jobs.put(None)
            self.thread.join()

    def _loop(self) -> None:
        while (job := self.jobs.get()) is not None:
            work, told = job
            with self.working:
                told(work())
