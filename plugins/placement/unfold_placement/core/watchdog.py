"""A watchdog for policies that do not return: it finds them on the stack of the thread in which they run.

A policy is not slowed down. Four times a second the watchdog looks at the frames of one thread. It warns of a policy
if the same call, for the same transaction, is still there after a second, and stops it after a limit.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import FrameType
from typing import NoReturn

from unfold_placement.core.controller import Controller, call_policy, collect_requests
from unfold_placement.core.policy import (
    Policy,
    call_hook,
    call_loader,
    find_user_line,
    is_own,
    is_shipped,
    loading_error,
    policy_error,
)
from unfoldkit.api import Diagnostic, UnfoldError

LIMIT_S = 10.0
"""How long a policy may compute one transaction or the requests of one task."""
PATIENT_FACTOR = 3
"""Loading may take this many times the limit, and so may a policy of this package, since a cluster may be huge."""
WARN_S = 1.0
"""Computing for so long is worth a warning."""
PERIOD_S = 0.25
SLEEP_FACTOR = 3
"""A policy that waits may take this many times the limit."""
BUSY_FACTOR = 30
"""A policy that computes on a busy machine may take this many times the limit by the clock."""
IDLE_SHARE = 0.1
"""A policy that uses the processor for a smaller share of the time waits."""
WAKE_SIGNAL = getattr(signal, "SIGUSR2", signal.SIGINT)
"""Interrupts a policy: not with the signal of Ctrl-C, which ends the verb, where the system has another one."""
HANDLERS = ("unfoldkit.", "unfold_placement.")
"""Modules with handlers of signals."""
MAX_INTERRUPTS = 5
"""A policy that catches this many interrupts and does not return ends the process."""
COMPILER = f"{os.sep}numba{os.sep}"
"""Part of the path of files that compile: the first call of a compiled function takes its time once."""
CALLERS = {
    Controller.call_react.__code__: "react",
    call_policy.__code__: "react",
    collect_requests.__code__: "request",
    call_hook.__code__: "",
}
"""Functions that call a policy held in their variable ``policy``, and the method that each calls; empty where the
variable ``method`` names it."""
LOCKED_S = 60.0
"""Processor time for which one call in C may keep the interpreter, so that no other thread runs."""
STDERR = 2
"""File descriptor."""
TIMERS = {"SIGALRM": "ITIMER_REAL", "SIGVTALRM": "ITIMER_VIRTUAL"}
"""Timers of the system by the signal that they send, which ends a process."""
OTHER_CALLEES = {call_policy.__code__, Controller.apply.__code__}
"""What the same functions call besides a policy."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a policy that is on a stack, or the import or construction of one.

    Attributes:
        policy: The policy; None while it is loaded.
        name: Its method, or how the spec names a policy that is loaded.
        identity: The frame of the policy, which no other call has while it is kept, and the transaction.
        line: Line of the policy's file that is executed; 0 if unknown.
        file: The user's file that is executed while a policy is loaded; empty if unknown.
        innermost: File and line that are executed, where that is another file.
        is_compiling: A function that it calls is compiled.
    """

    policy: Policy | None
    name: str
    identity: tuple[FrameType, object]
    line: int
    file: str = ""
    innermost: str = ""
    is_compiling: bool = False


def find_call(thread_id: int) -> Call | None:
    """Return the innermost call of a policy on the stack of a thread, or None."""
    # the documented way to see another thread's stack
    return find_call_below(sys._current_frames().get(thread_id))  # noqa: SLF001


def find_call_below(frame: FrameType | None) -> Call | None:
    """Return the innermost call of a policy on the stack of a frame, or None."""
    inner: FrameType | None = None
    lines: list[tuple[str, int]] = []
    while frame is not None:
        if frame.f_code is call_loader.__code__:
            file, line = find_user_line(reversed(lines))
            innermost = f"{lines[0][0]}:{lines[0][1]}" if lines and lines[0][0] != file else ""
            return Call(None, str(frame.f_locals.get("name")), (frame, None), line, file, innermost)
        method = CALLERS.get(frame.f_code)
        if method is not None and inner is not None and inner.f_code not in OTHER_CALLEES:
            policy, progress = frame.f_locals.get("policy"), frame.f_locals.get("step")
            if policy is not None:
                method = method or str(frame.f_locals.get("method"))
                is_compiling = any(COMPILER in file for file, _ in lines)
                return Call(policy, method, (inner, progress), inner.f_lineno, is_compiling=is_compiling)
        lines.append((frame.f_code.co_filename, frame.f_lineno))
        inner, frame = frame, frame.f_back
    return None


def _ignore(_message: str) -> None:
    return None


@dataclass(slots=True)
class Watchdog:
    """Watches the policies of one thread.

    Attributes:
        thread_id: The thread.
        limit_s: Processor time that a call of a user's policy may take; on a busy machine more time passes.
        warn: Receives a line about a policy that has not returned for a while, once for each of its methods.
        identity: The call that was seen last.
        since_s: Since when it is seen, by the monotonic clock.
        used_s: Processor time of the process at that moment.
    """

    thread_id: int
    limit_s: float = LIMIT_S
    warn: Callable[[str], None] = _ignore
    identity: tuple[FrameType, object] | None = None
    since_s: float = 0.0
    used_s: float = 0.0
    warned: set[tuple[int, str]] = field(default_factory=set)

    def check(self) -> UnfoldError | None:
        """Look at the thread; return the error of a policy that has not returned for too long, or None."""
        call, now = find_call(self.thread_id), time.monotonic()
        if call is None or call.is_compiling or call.identity != self.identity:
            self.identity, self.since_s = call.identity if call else None, now
            self.used_s = time.process_time()
            return None
        elapsed_s = now - self.since_s
        used_s = time.process_time() - self.used_s
        used_s = max(used_s, elapsed_s / (SLEEP_FACTOR if used_s < IDLE_SHARE * elapsed_s else BUSY_FACTOR))
        if call.policy is None or is_shipped(type(call.policy)):
            return stall_error(call, elapsed_s) if used_s >= PATIENT_FACTOR * self.limit_s else None
        if used_s >= self.limit_s:
            return stall_error(call, elapsed_s)
        key = id(call.policy), call.name
        if used_s >= WARN_S and key not in self.warned:
            self.warned.add(key)
            self.warn(f"{stall_error(call, elapsed_s)}; it is stopped after {self.limit_s:g} s of computing")
        return None


def stall_error(call: Call, elapsed_s: float | None = None) -> UnfoldError:
    """Build the error of a policy that does not return, with the line that it executes."""
    suffix = f" for {elapsed_s:.0f} s" if elapsed_s is not None else ""
    if call.policy is None:
        message = f"{call.name} has been loading{suffix}; its import or construction does not return"
        hint = f"it is at {call.innermost}" if call.innermost else ""
        return UnfoldError(Diagnostic(message, call.file, call.line, key="policy", hint=hint))
    return policy_error(call.policy, call.name, f"it has not returned from {call.name}{suffix}", line=call.line)


def end_process(error: UnfoldError) -> None:
    """End the process with an error, where the policy that it names catches every exception."""
    sys.stderr.write(f"{error}\n")
    sys.stderr.flush()
    os._exit(error.code)  # no exception can end it


@contextlib.contextmanager
def contain_policies(warn: Callable[[str], None], limit_s: float = LIMIT_S) -> Iterator[None]:
    """Keep policies within bounds: none may hang or exit.

    The working folder is the same afterwards, as the run's is relative to it.

    Raises:
        UnfoldError: A policy did not return, or raised where no caller expects it.
        KeyboardInterrupt: The user stopped the verb.
    """
    threads = threading.enumerate()
    with (
        keep_process(),
        keep_recursion_limit(),
        end_forked_processes(),
        report_timers(),
        contextlib.chdir("."),
        interrupt_stalled_policies(limit_s, warn),
    ):
        try:
            yield
            _warn_of_threads(threads, warn)
        except UnfoldError:
            raise
        except BaseException as error:
            # such as a cancellation of asyncio, or what a class of the user raises when it is hashed or compared
            fault = loading_error(error)
            if not is_own(fault.file) or _is_from_signal(error):
                raise
            raise UnfoldError(replace(fault, key="policy")) from error


def _is_from_signal(error: BaseException) -> bool:
    """Return whether a handler of signals raised an interrupt, rather than the policy that it interrupts."""
    if not isinstance(error, KeyboardInterrupt):
        return False
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # the default handler has no frame of its own
    return is_default or str(innermost.f_globals.get("__name__")).startswith(HANDLERS)


@contextlib.contextmanager
def keep_process() -> Iterator[None]:
    """Let ``os._exit`` of a policy raise ``SystemExit``, so that no plan ends without a report and with exit code 0."""
    leave, process_id = os._exit, os.getpid()

    def exit_policy(status: int) -> NoReturn:
        # a child process of a policy may exit
        if os.getpid() == process_id and find_call(threading.get_ident()) is not None:
            raise SystemExit(status)
        leave(status)

    os._exit = exit_policy
    try:
        yield
    finally:
        os._exit = leave


@contextlib.contextmanager
def keep_recursion_limit() -> Iterator[None]:
    """Let a policy that lowers the recursion limit raise ``ValueError``: the limit is that of the whole program."""
    set_limit, least = sys.setrecursionlimit, sys.getrecursionlimit()

    def set_limit_of_policy(limit: int, /) -> None:
        if limit < least and find_call(threading.get_ident()) is not None:
            raise ValueError(f"a recursion limit of {limit}: it is that of the whole program, which needs {least}")
        set_limit(limit)

    sys.setrecursionlimit = set_limit_of_policy
    try:
        yield
    finally:
        sys.setrecursionlimit = set_limit
        set_limit(least)


@contextlib.contextmanager
def end_forked_processes() -> Iterator[None]:
    """End a child process that leaves the policy which forked it: it would decide and report a second time."""
    fork = getattr(os, "fork", None)
    if fork is None:
        yield
        return

    def fork_policy() -> int:
        process_id = int(fork())
        if process_id == 0 and find_call(threading.get_ident()) is not None:
            sys.setprofile(_end_where_policy_returns)
        return process_id

    os.fork = fork_policy
    try:
        yield
    finally:
        os.fork = fork


def _end_where_policy_returns(frame: FrameType, event: str, _value: object) -> None:
    caller = frame.f_back
    if event != "return" or caller is None or caller.f_code not in CALLERS:
        return
    call = find_call_below(frame)
    if call is not None and call.policy is not None:
        message = f"a process that it forked returned from {call.name} and was ended"
        end_process(policy_error(call.policy, call.name, message, line=call.line))


@contextlib.contextmanager
def report_timers() -> Iterator[None]:
    """Let a signal of a timer that a policy has set raise an error there, rather than end the process."""
    timers = {getattr(signal, name): getattr(signal, timer) for name, timer in TIMERS.items() if hasattr(signal, name)}
    is_main = threading.current_thread() is threading.main_thread()
    unused = [number for number in timers if is_main and signal.getsignal(number) == signal.SIG_DFL]
    for number in unused:
        signal.signal(number, _report_timer)
    try:
        yield
    finally:
        for number in unused:
            signal.setitimer(timers[number], 0.0)
            signal.signal(number, signal.SIG_DFL)


def _report_timer(number: int, frame: FrameType | None) -> None:
    # it must not fire again while the error is reported
    signal.setitimer(getattr(signal, TIMERS[signal.Signals(number).name]), 0.0)
    if find_call_below(frame) is not None:
        raise RuntimeError(f"the process would end by a timer that a policy has set ({signal.Signals(number).name})")


def _warn_of_threads(known: Sequence[threading.Thread], warn: Callable[[str], None]) -> None:
    """Name the threads of users' files that still run, as the process does not end before they do."""
    frames = sys._current_frames()  # noqa: SLF001 - as above
    for thread in threading.enumerate():
        if thread.daemon or thread in known:
            continue
        stack = reversed(list(traceback.walk_stack(frames.get(thread.ident or 0))))
        file, line = find_user_line((frame.f_code.co_filename, number) for frame, number in stack)
        if file:
            warn(
                f"{file}:{line}: a policy's thread {thread.name} still runs, so the process cannot end: use daemon=True"
            )


@contextlib.contextmanager
def interrupt_stalled_policies(limit_s: float = LIMIT_S, warn: Callable[[str], None] = _ignore) -> Iterator[None]:
    """Raise the error of a policy that does not return within the block; only the main thread can be interrupted.

    Raises:
        UnfoldError: A policy did not return; it names the file and the line that was executed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watchdog, ended, errors = Watchdog(threading.get_ident(), limit_s, warn), threading.Event(), list[UnfoldError]()
    previous = signal.signal(WAKE_SIGNAL, interrupt_policy)
    try:
        with end_locked_process() as postpone_end:
            watch = partial(watch_policies, watchdog, ended, errors, postpone_end)
            thread = threading.Thread(target=watch, daemon=True)
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()
    except KeyboardInterrupt:
        if not errors:
            raise
    finally:
        signal.signal(WAKE_SIGNAL, previous)
    if errors:
        raise errors[0]


@contextlib.contextmanager
def end_locked_process() -> Iterator[Callable[[], None]]:
    """Yield a function that postpones the end of the process by ``LOCKED_S`` of processor time.

    A policy in a call in C may keep every thread from running, the watchdog included, and no exception ends it. The
    system does then, once the stacks of all threads, with file and line of the policy, are on stderr.
    """
    number = getattr(signal, "SIGPROF", None)
    if number is None or signal.getsignal(number) != signal.SIG_DFL:
        yield lambda: None
        return

    def postpone_end() -> None:
        signal.setitimer(signal.ITIMER_PROF, LOCKED_S)

    faulthandler.register(number, STDERR, chain=True)
    postpone_end()
    try:
        yield postpone_end
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        faulthandler.unregister(number)


def watch_policies(
    watchdog: Watchdog, ended: threading.Event, errors: list[UnfoldError], postpone_end: Callable[[], None]
) -> None:
    """Interrupt a policy that does not return, again and again if it catches that, until the block has ended.

    Args:
        watchdog: Watches the thread of the block.
        ended: Set when the block has ended.
        errors: Receives the error of the policy.
        postpone_end: Called as long as this thread runs.
    """
    interrupts = 0
    while not ended.wait(min(PERIOD_S, watchdog.limit_s / 4)):
        postpone_end()
        if not errors and (error := watchdog.check()) is not None:
            errors.append(error)
        if errors and not ended.is_set():
            if interrupts == MAX_INTERRUPTS:
                end_process(errors[0])
            signal.pthread_kill(watchdog.thread_id, WAKE_SIGNAL)
            interrupts += 1


def interrupt_policy(_signal: int, frame: FrameType | None) -> None:
    """Raise ``KeyboardInterrupt`` where a policy runs."""
    if find_call_below(frame) is not None:
        raise KeyboardInterrupt
