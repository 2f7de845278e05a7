"""CPU affinity and scheduler priority of local processes.

Pinned replicas get a core of their own as long as there are enough cores. Threads that mostly wait can ask the
scheduler to run them soon after they wake up.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from unfoldkit.api import user_error

SLICE_NS = 100_000
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # numbers of the system call sched_setattr(2)
RESET_ON_FORK = 1


# not frozen: replicas come and go
@dataclass(slots=True)
class CoreAllocator:
    """The numbers of some cores, and how many replicas are pinned to each."""

    cores: Sequence[int]
    pinned: dict[int, int] = field(default_factory=dict)

    def take_core(self) -> int:
        """Return the core with the fewest replicas, the first of several, and count another one there."""
        core = min(self.cores, key=lambda number: self.pinned.get(number, 0))
        self.pinned[core] = self.pinned.get(core, 0) + 1
        return core

    def release_core(self, core: int) -> None:
        """Count one replica less on a core."""
        self.pinned[core] -= 1


def list_local_cores() -> CoreAllocator:
    """Return the cores that this process may use.

    Raises:
        UnfoldError: The system cannot pin a process to a core.
    """
    if not hasattr(os, "sched_setaffinity"):
        message = "this system cannot pin a process to a core"
        raise user_error(message, key="placement.pin", hint="leave pin out, or run on Linux")
    return CoreAllocator(sorted(os.sched_getaffinity(0)))


def pin_process(pid: int | None, core: int) -> None:
    """Pin a process to a core; a process that does not exist (any more) is ignored."""
    if pid is None:
        # 0 would mean this process
        return
    with contextlib.suppress(ProcessLookupError):
        os.sched_setaffinity(pid, {core})


def assign_cores(replicas: Sequence[int], cores: int) -> list[tuple[int, ...]]:
    """Return the core, from 0, of each replica of each stage of a plan, as the running pipeline assigns them."""
    allocator = CoreAllocator(range(cores))
    return [tuple(allocator.take_core() for _ in range(count)) for count in replicas]


def shorten_time_slice() -> bool:
    """Give the calling thread short time slices, so that it runs soon after a wake-up although the cores are busy.

    Linux 6.12 and later schedule a thread with short slices before one with long ones (EEVDF's ``sched_runtime``); its
    share of the cores stays the same. Threads and processes that it starts do not inherit it.

    Returns:
        Whether the system supports it.
    """
    call = SCHED_SETATTR.get(platform.machine())
    if sys.platform != "linux" or call is None:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    # struct sched_attr: size, policy (0: other), flags, nice, priority, runtime, deadline, period
    attributes = struct.pack("=IIQiIQQQ", 48, 0, RESET_ON_FORK, nice, 0, SLICE_NS, 0, 0)
    return int(ctypes.CDLL(None).syscall(call, 0, ctypes.create_string_buffer(attributes, 48), 0)) == 0
