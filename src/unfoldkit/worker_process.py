"""Processes that work for another one: one thread each, and an end with their parent, which alone receives Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@contextmanager
def blocking_interrupts() -> Iterator[None]:
    """Start processes in the block that never receive Ctrl-C, not even while they import.

    A terminal sends it to all processes at once, and the parent ends those that it started. This process receives a
    Ctrl-C of the block after it. Children inherit the signal mask (POSIX, ``exec``).
    """
    if sys.platform == "win32":
        yield
        return
    # it starts with the first process, and unblocks the signal
    resource_tracker.ensure_running()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def start_worker(parent: int) -> None:
    """Initialize a worker process: it dies with its parent and uses one thread.

    Args:
        parent: The process id of the parent. If another process has adopted this one since, it ends at once.
    """
    for name in ("SIGINT", "SIGHUP"):
        # a terminal sends them to all processes at once, and the parent ends its workers; Windows has no SIGHUP
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    limit_threads()
    _die_with_parent(parent)


def limit_threads() -> None:
    """Limit numeric libraries that are loaded from now on to one thread."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = "1"


def _die_with_parent(parent: int) -> None:
    # without this, the workers of a pool outlive a parent that was killed with SIGKILL
    import ctypes

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
