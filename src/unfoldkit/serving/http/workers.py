"""Several processes behind one port: each listens by SO_REUSEPORT, and one that dies or hangs is replaced."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from unfoldkit.errors import ExitCode, internal_error

START_S = 300.0
SILENT_S = 10.0
QUICK_S = 5.0
LOOK_S = 0.5
MOST_QUICK = 3

Work = Callable[[int, Callable[[], object]], object]
"""What a process does: it is given its number and what it calls again and again while it is well. Must be picklable."""


def endings() -> tuple[signal.Signals, ...]:
    """Return the signals that end a service; a closed terminal does, unless somebody said that it should not."""
    closed = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return (signal.SIGTERM, signal.SIGINT, *((signal.SIGHUP,) if closed else ()))


@dataclass(slots=True)
class Worker:
    """A process in its place: when it began and was last heard (seconds), and whether it ever was."""

    number: int
    process: BaseProcess
    ear: Connection
    began: float
    heard: float
    ready: bool = False


@dataclass(slots=True)
class Crew:
    """The processes that serve, kept complete until the end.

    A process that dies before it was well, or soon after, is a quick end; after a few in a row all is given up.
    One whose exit code says that its caller is at fault is not started again: all are ``refused``.
    """

    work: Work
    count: int
    say: Callable[[str], object]
    silent_s: float = SILENT_S
    workers: dict[int, Worker] = field(default_factory=dict)
    quick: int = 0
    signal: int = 0
    refused: bool = False
    looked: float = field(default_factory=time.monotonic)

    def run(self) -> int:
        """Serve until one of ``endings``; return which, after the last process has ended; 0 where all are refused.

        Raises:
            UnfoldError: the processes end again and again before they serve.
        """
        with _heard(self._note):
            try:
                while not self.signal and not self.refused:
                    self._fill()
                    self._listen()
                    self._look()
            finally:
                self._end()
        return self.signal

    def _note(self, number: int, _frame: Any) -> None:
        self.signal = number

    def _fill(self) -> None:
        """Start what is missing; the first alone, so that what it prepares on disk is there for the others."""
        first_is_well = any(worker.ready for worker in self.workers.values())
        for number in range(self.count if first_is_well else 1):
            if number not in self.workers:
                self.workers[number] = _started(self.work, number)

    def _listen(self) -> None:
        ears = {worker.ear: worker for worker in self.workers.values()}
        for ear in wait(list(ears), timeout=LOOK_S):
            worker = ears[ear]  # type: ignore[index]
            try:
                worker.ear.recv_bytes()
            except (EOFError, OSError):
                worker.process.join(1.0)
            else:
                worker.heard, worker.ready = time.monotonic(), True

    def _look(self) -> None:
        now = time.monotonic()
        # a machine that slept, or was too busy for this process, had no time for the others either
        asleep, self.looked = max(now - self.looked - 2 * LOOK_S, 0.0), now
        for worker in list(self.workers.values()):
            worker.heard += asleep
            limit = self.silent_s if worker.ready else START_S
            if worker.process.is_alive() and now - worker.heard > limit:
                self.say(f"process {worker.process.pid} does not answer; it is replaced")
                worker.process.kill()
                worker.process.join()
            if not worker.process.is_alive() and not self.signal:
                self._lost(worker)

    def _lost(self, worker: Worker) -> None:
        self.workers.pop(worker.number)
        worker.ear.close()
        if not worker.ready and worker.process.exitcode == ExitCode.USAGE:
            self.refused = True
            return
        self.say(f"process {worker.process.pid} ended with {worker.process.exitcode}; another one takes its place")
        soon = not worker.ready or time.monotonic() - worker.began < QUICK_S
        self.quick = self.quick + 1 if soon else 0
        if self.quick > MOST_QUICK:
            raise internal_error(f"the service ended {self.quick} times in a row as soon as it began")

    def _end(self) -> None:
        for worker in self.workers.values():
            if worker.process.is_alive() and worker.process.pid:
                os.kill(worker.process.pid, signal.SIGTERM)
        for worker in self.workers.values():
            worker.process.join(20.0)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def _started(work: Work, number: int) -> Worker:
    context = multiprocessing.get_context("spawn")
    ear, mouth = context.Pipe(duplex=False)
    process = context.Process(target=_working, args=(work, number, mouth), name=f"unfold-serve-{number}")
    process.start()
    mouth.close()
    now = time.monotonic()
    return Worker(number, process, ear, now, now)


def _working(work: Work, number: int, mouth: Connection) -> None:
    def beat() -> None:
        try:
            mouth.send_bytes(b".")
        except OSError:
            # nobody is there to replace or to end this process any more
            os.kill(os.getpid(), signal.SIGTERM)

    work(number, beat)


@contextmanager
def _heard(note: Callable[[int, Any], None]) -> Iterator[None]:
    """Have the signals of the end noted for as long as the crew is at work."""
    before = {number: signal.signal(number, note) for number in endings()}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
