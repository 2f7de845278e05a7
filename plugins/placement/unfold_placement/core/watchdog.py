"""A watchdog for policies that do not return: it finds them on the stack of the thread in which they run.

A policy is not slowed down. Once a second the watchdog looks at the frames of one thread. It reports a policy if the
same call, for the same transaction, is still there after a limit.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from unfold_placement.core.controller import Controller, call_policy, collect_requests
from unfold_placement.core.policy import Policy, call_hook, policy_error
from unfoldkit.api import UnfoldError

LIMIT_S = 30.0
"""How long a policy may compute one transaction, or the requests of one task."""
PERIOD_S = 1.0
SLEEP_FACTOR = 10
"""A policy that uses no processor may take this many times the limit."""
WAKE_SIGNAL = getattr(signal, "SIGUSR2", signal.SIGINT)
"""Interrupts a policy: not with the signal of Ctrl-C, which ends the verb, where the system has another one."""
CALLERS = {
    Controller.call_react.__code__: "react",
    call_policy.__code__: "react",
    collect_requests.__code__: "request",
    call_hook.__code__: "",
}
"""Functions that call a policy held in their variable ``policy``, and the method that each calls; empty where the
variable ``method`` names it."""
OTHER_CALLEES = {call_policy.__code__, Controller.apply.__code__}
"""What the same functions call besides a policy."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a policy that is on a stack.

    Attributes:
        policy: The policy.
        method: Its method.
        identity: Changes with every call and every transaction.
        line: Line of the policy's file that is executed; 0 if unknown.
    """

    policy: Policy
    method: str
    identity: tuple[int, object]
    line: int


def find_call(thread_id: int) -> Call | None:
    """Return the innermost call of a policy on the stack of a thread, or None."""
    inner: FrameType | None = None
    frame = sys._current_frames().get(thread_id)  # noqa: SLF001 - the documented way to see another thread's stack
    while frame is not None:
        method = CALLERS.get(frame.f_code)
        if method is not None and inner is not None and inner.f_code not in OTHER_CALLEES:
            policy, progress = frame.f_locals.get("policy"), frame.f_locals.get("step")
            if policy is not None:
                name = method or str(frame.f_locals.get("method"))
                return Call(policy, name, (id(frame), progress), inner.f_lineno)
        inner, frame = frame, frame.f_back
    return None


@dataclass(slots=True)
class Watchdog:
    """Watches the policies of one thread.

    Attributes:
        thread_id: The thread.
        limit_s: Processor time that one call may take; on a busy machine more time passes.
        identity: The call that was seen last.
        since_s: Since when it is seen, by the monotonic clock.
        used_s: Processor time of the process at that moment.
    """

    thread_id: int
    limit_s: float = LIMIT_S
    identity: tuple[int, object] | None = None
    since_s: float = 0.0
    used_s: float = 0.0

    def check(self) -> UnfoldError | None:
        """Look at the thread; return the error of a policy that has not returned for too long, or None."""
        call, now = find_call(self.thread_id), time.monotonic()
        if call is None or call.identity != self.identity:
            self.identity, self.since_s = call.identity if call else None, now
            self.used_s = time.process_time()
            return None
        is_busy = time.process_time() - self.used_s >= self.limit_s
        if not is_busy and now - self.since_s < SLEEP_FACTOR * self.limit_s:
            return None
        return stall_error(call, now - self.since_s)


def stall_error(call: Call, elapsed_s: float | None = None) -> UnfoldError:
    """Build the error of a policy that does not return, with the line that it executes."""
    suffix = f" for {elapsed_s:.0f} s" if elapsed_s is not None else ""
    return policy_error(call.policy, call.method, f"it has not returned from {call.method}{suffix}", line=call.line)


@contextlib.contextmanager
def contain_policies(limit_s: float = LIMIT_S) -> Iterator[None]:
    """Keep policies within bounds: stdout is the report's, so what they print goes to stderr, and none may hang.

    Raises:
        UnfoldError: a policy did not return.
    """
    with contextlib.redirect_stdout(sys.stderr), interrupt_stalled_policies(limit_s):
        yield


@contextlib.contextmanager
def interrupt_stalled_policies(limit_s: float = LIMIT_S) -> Iterator[None]:
    """Raise the error of a policy that does not return within the block; only the main thread can be interrupted.

    Raises:
        UnfoldError: a policy did not return; it names the file and the line that was executed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watchdog, ended, errors = Watchdog(threading.get_ident(), limit_s), threading.Event(), list[UnfoldError]()

    def watch() -> None:
        while not ended.wait(min(PERIOD_S, limit_s / 4)):
            if (error := watchdog.check()) is not None and not ended.is_set():
                errors.append(error)
                signal.pthread_kill(watchdog.thread_id, WAKE_SIGNAL)
                return

    previous = signal.signal(WAKE_SIGNAL, signal.default_int_handler)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if errors:
            raise errors[0] from None
        raise
    finally:
        ended.set()
        thread.join()
        signal.signal(WAKE_SIGNAL, previous)
