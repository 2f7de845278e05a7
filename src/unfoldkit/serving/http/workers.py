"""A supervisor for several processes on one port (SO_REUSEPORT): it replaces each that dies or hangs."""

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
from unfoldkit.worker_process import blocking_interrupts

START_TIMEOUT_S = 300.0
HEARTBEAT_TIMEOUT_S = 10.0
EARLY_EXIT_S = 5.0
POLL_S = 0.5
STOP_TIMEOUT_S = 20.0
MAX_EARLY_EXITS = 3
RETRY_S = 10.0
"""Seconds after which a process that could not start beside others is started again."""

Work = Callable[[int, Callable[[], object]], object]
"""What a process does, given its number and a heartbeat to call while it is well. Must be picklable."""


def ending_signals(*, reloads: bool = False) -> tuple[signal.Signals, ...]:
    """Return the signals that end a service.

    SIGHUP (a closed terminal) is one of them where the system has it, unless it is ignored (nohup) or reloads the
    certificate.
    """
    hangup = hangup_signal()
    ends = hangup is not None and not reloads and signal.getsignal(hangup) is not signal.SIG_IGN
    return (signal.SIGTERM, signal.SIGINT, *((hangup,) if hangup and ends else ()))


def hangup_signal() -> signal.Signals | None:
    """Return SIGHUP, which Windows lacks."""
    return getattr(signal, "SIGHUP", None)


@dataclass(slots=True)
class Worker:
    """A process: its end of the heartbeat pipe, its start and last heartbeat (monotonic s), and whether it had one."""

    number: int
    process: BaseProcess
    parent_conn: Connection
    started_s: float
    last_beat_s: float
    is_ready: bool = False


@dataclass(slots=True)
class Supervisor:
    """Keeps ``count`` processes running until a signal ends them.

    A process that ends before its first heartbeat, or soon after its start, counts as an early exit; after a few in a
    row the supervisor gives up. A process that exits with a code which blames the caller is not replaced: all are
    ``rejected``. While others serve, neither holds for one that cannot start: a file that is now missing must not end
    them.

    Args:
        work: What each process does.
        count: The number of processes.
        notify: Receives messages for the user.
        reloads: SIGHUP is passed on to the processes, which reload their certificate.
        heartbeat_timeout_s: A ready process without a heartbeat for so long is replaced.
    """

    work: Work
    count: int
    notify: Callable[[str], object]
    reloads: bool = False
    heartbeat_timeout_s: float = HEARTBEAT_TIMEOUT_S
    workers: dict[int, Worker] = field(default_factory=dict)
    early_exits: int = 0
    signal: int = 0
    rejected: bool = False
    last_check_s: float = field(default_factory=time.monotonic)
    next_start_s: float = 0.0

    def run(self) -> int:
        """Serve until one of ``ending_signals``; return it after the last process ended, or 0 if all are rejected.

        Raises:
            UnfoldError: The processes end repeatedly before they serve.
        """
        with _handle_signals(self._note_signal, reloads=self.reloads):
            try:
                while not self.signal and not self.rejected:
                    self._start_missing()
                    self._receive_heartbeats()
                    self._check_workers()
            finally:
                self._stop_all()
        return self.signal

    def _note_signal(self, number: int, _frame: Any) -> None:
        if not self.reloads or number != hangup_signal():
            self.signal = number
            return
        for worker in list(self.workers.values()):
            if worker.is_ready and worker.process.pid:
                os.kill(worker.process.pid, number)

    def _start_missing(self) -> None:
        """Start what is missing; the first process alone, since the others use what it prepares on disk."""
        if self._has_ready() and time.monotonic() < self.next_start_s:
            return
        for number in range(self.count if self._has_ready() else 1):
            if number not in self.workers:
                self.workers[number] = _start_worker(self.work, number)

    def _has_ready(self) -> bool:
        return any(worker.is_ready for worker in self.workers.values())

    def _receive_heartbeats(self) -> None:
        workers = {worker.parent_conn: worker for worker in self.workers.values()}
        for connection in wait(list(workers), timeout=POLL_S):
            worker = workers[connection]  # type: ignore[index]
            try:
                worker.parent_conn.recv_bytes()
            except (EOFError, OSError):
                worker.process.join(1.0)
            else:
                worker.last_beat_s, worker.is_ready = time.monotonic(), True

    def _check_workers(self) -> None:
        now = time.monotonic()
        # if the machine slept or this process got no time, the workers had none either
        paused_s, self.last_check_s = max(now - self.last_check_s - 2 * POLL_S, 0.0), now
        for worker in list(self.workers.values()):
            worker.last_beat_s += paused_s
            timeout_s = self.heartbeat_timeout_s if worker.is_ready else START_TIMEOUT_S
            if worker.process.is_alive() and now - worker.last_beat_s > timeout_s:
                self.notify(f"process {worker.process.pid} does not respond; it is replaced")
                worker.process.kill()
                worker.process.join()
            if not worker.process.is_alive() and not self.signal:
                self._handle_exit(worker)

    def _handle_exit(self, worker: Worker) -> None:
        self.workers.pop(worker.number)
        worker.parent_conn.close()
        if not worker.is_ready and self._has_ready():
            self.next_start_s = time.monotonic() + RETRY_S
            ending = f"process {worker.process.pid} ended with {worker.process.exitcode} before it served"
            self.notify(f"{ending}; others serve, and another one starts in {RETRY_S:.0f} s")
            return
        if not worker.is_ready and worker.process.exitcode == ExitCode.USAGE:
            self.rejected = True
            return
        self.notify(f"process {worker.process.pid} ended with {worker.process.exitcode}; another one replaces it")
        is_early = not worker.is_ready or time.monotonic() - worker.started_s < EARLY_EXIT_S
        self.early_exits = self.early_exits + 1 if is_early else 0
        if self.early_exits > MAX_EARLY_EXITS:
            raise internal_error(f"the service ended {self.early_exits} times in a row right after its start")

    def _stop_all(self) -> None:
        for worker in self.workers.values():
            if worker.process.is_alive() and worker.process.pid:
                os.kill(worker.process.pid, signal.SIGTERM)
        for worker in self.workers.values():
            worker.process.join(STOP_TIMEOUT_S)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def _start_worker(work: Work, number: int) -> Worker:
    context = multiprocessing.get_context("spawn")
    parent_conn, child_conn = context.Pipe(duplex=False)
    process = context.Process(target=_run_worker, args=(work, number, child_conn), name=f"unfold-serve-{number}")
    with blocking_interrupts():
        process.start()
    child_conn.close()
    now = time.monotonic()
    return Worker(number, process, parent_conn, now, now)


def _run_worker(work: Work, number: int, child_conn: Connection) -> None:
    def beat() -> None:
        try:
            child_conn.send_bytes(b".")
        except OSError:
            # without a supervisor, no process would replace or end this one
            os.kill(os.getpid(), signal.SIGTERM)

    work(number, beat)


@contextmanager
def _handle_signals(handler: Callable[[int, Any], None], *, reloads: bool) -> Iterator[None]:
    """Handle the signals of the supervisor while it runs, then restore the previous handlers."""
    hangup = hangup_signal()
    numbers = (*ending_signals(reloads=reloads), *((hangup,) if reloads and hangup else ()))
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
