"""What the trials of a worker process start, which ends with the worker even in a session of its own.

Each worker has a mark in its environment. What it forks or executes inherits the mark, as the processes of a build do
in Jenkins (its ``ProcessTreeKiller``). A system without ``/proc`` shows no marks; there, a process group ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "UNFOLD_WORKER"
PROCESSES = Path("/proc")


@contextmanager
def marking_processes(mark: str) -> Iterator[None]:
    """Mark the processes that start in the block; within a marked process, add to its mark.

    Args:
        mark: A text that no other worker on this machine has.
    """
    outer = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = f"{outer or ''}/{mark}"
    try:
        yield
    finally:
        if outer is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = outer


def kill_marked(mark: str) -> None:
    """Kill every process with a mark, and what these start meanwhile.

    Args:
        mark: The mark of a worker, or a part that several have in common.
    """
    killed: set[int] = set()
    while found := {process for process in _list_processes() if _has_mark(process, mark)} - killed:
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        killed |= found


def _list_processes() -> list[int]:
    return [int(entry.name) for entry in PROCESSES.glob("[0-9]*")] if PROCESSES.is_dir() else []


def _has_mark(process: int, mark: str) -> bool:
    """Return whether a process of this user has a mark; one that has ended has none."""
    with contextlib.suppress(OSError):
        variables = (PROCESSES / str(process) / "environ").read_bytes().split(b"\0")
        return any(item.startswith(f"{VARIABLE}=".encode()) and mark.encode() in item for item in variables)
    return False
