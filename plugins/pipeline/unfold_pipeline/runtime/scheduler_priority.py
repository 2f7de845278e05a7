"""Ask the scheduler to let a thread that mostly waits run soon after it is woken, though the cores are busy."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

SLICE_NS = 100_000
CALLS = {"x86_64": 314, "aarch64": 274}  # of sched_setattr(2)
RESET_ON_FORK = 1


def prompt() -> bool:
    """Give the calling thread short turns; its share of the cores stays the same. Return whether it was done.

    Linux from 6.12 on lets a thread of short turns go before one of long turns (EEVDF's ``sched_runtime``); elsewhere
    nothing is done. Threads and processes that it starts do not inherit it.
    """
    call = CALLS.get(platform.machine())
    if sys.platform != "linux" or call is None:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    # struct sched_attr: size, policy (0: other), flags, nice, priority, runtime, deadline, period
    attributes = struct.pack("=IIQiIQQQ", 48, 0, RESET_ON_FORK, nice, 0, SLICE_NS, 0, 0)
    return int(ctypes.CDLL(None).syscall(call, 0, ctypes.create_string_buffer(attributes, 48), 0)) == 0
