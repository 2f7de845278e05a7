"""Ctrl-C, SIGTERM and SIGHUP: the first one ends a verb in order, a later one at once, and none shows a traceback."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

DOUBLE_PRESS_S = 1.0
"""A signal this soon after another one is the same wish: wrappers forward what a terminal has already sent."""
PROBE_EVERY_S = 0.5
HANDLED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Windows has no SIGHUP."""


@dataclass(slots=True)
class StopHandler:
    """Handles the signals that end a process.

    Attributes:
        is_guarded: Whether a verb runs, which cleans up when it is stopped. Before it nothing needs that.
        is_over: Whether the answer is written and the interpreter ends. A signal then ends the process without a word.
        number: The signal that stops the verb; ``None`` before it.
        last_s: When the last signal arrived.
        is_probe: Whether the next signal only looks whether the first one's exception was lost.
        lock: Held while a probe is sent, or the verb ends.
        ended: Set when the verb has ended.
        end: Ends the process at once with an exit code.
        clock: A clock in s.
        describe_leftovers: Describes what the verb leaves behind if the process ends at once; empty for nothing.
    """

    is_guarded: bool = False
    is_over: bool = False
    number: int | None = None
    last_s: float = 0.0
    is_probe: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)
    end: Callable[[int], Any] = os._exit
    clock: Callable[[], float] = time.monotonic
    describe_leftovers: Callable[[], str] = str

    def __call__(self, number: int, frame: FrameType | None = None) -> None:
        """Stop the verb at the first signal; end the process at a later one, or if no verb runs.

        Raises:
            KeyboardInterrupt: At the first signal, unless an event loop runs: its tasks are cancelled instead.
        """
        del frame
        if self.is_probe:
            self.is_probe = False
            if self.is_guarded and not _is_handling_stop():
                raise KeyboardInterrupt
            return
        if self.is_over:
            self.end(stop_code(self.number or number))
        is_first, now_s = self.number is None, self.clock()
        is_repeated = now_s - self.last_s < DOUBLE_PRESS_S
        self.last_s = now_s
        if is_repeated and not is_first:
            return
        if not self.is_guarded:
            self._end_at_once(number, stop_word(number))
        elif is_first:
            self.number = number
            if not _cancel_tasks():
                self.ended.clear()
                threading.Thread(target=self._probe, name="probe", daemon=True).start()
                raise KeyboardInterrupt
        else:
            message = f"{stop_word(number)} again: ended before the verb had cleaned up"
            self._end_at_once(number, "; ".join(filter(None, (message, self._name_leftovers()))))

    def _probe(self) -> None:
        """Signal from time to time until the verb ends: callbacks and compilers drop exceptions that pass them."""
        main = threading.main_thread().ident
        while not self.ended.wait(PROBE_EVERY_S):
            with self.lock:
                if self.ended.is_set() or main is None or self.number is None or not hasattr(signal, "pthread_kill"):
                    return
                self.is_probe = True
                signal.pthread_kill(main, self.number)

    def _name_leftovers(self) -> str:
        """Name what is left behind; empty if the verb, which may be anywhere, cannot describe it any more."""
        self.ended.set()
        try:
            return self.describe_leftovers()
        except BaseException:  # noqa: BLE001 - the process ends, whatever happens
            return ""

    def _end_at_once(self, number: int, message: str) -> None:
        # not through sys.stderr, to which the code that was interrupted may be writing
        with suppress(OSError):
            os.write(2, f"{message}\n".encode())
        self.end(stop_code(number))


def stop_code(number: int) -> int:
    """Return the exit code of a process that a signal ends, as shells count it: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + number


def stop_word(number: int) -> str:
    """Return what a signal does to a verb, in a word."""
    return "interrupted" if number == signal.SIGINT else "terminated"


def describe_stop(number: int, error: BaseException) -> str:
    """Describe what a stopped verb leaves, by the last note of the exception if it has one."""
    notes = getattr(error, "__notes__", None) or ["nothing was changed"]
    return f"{stop_word(number)}; {notes[-1]}"


def find_handler() -> StopHandler | None:
    """Return the handler of this process; ``None`` if there is none, as in a thread or in a worker."""
    handlers = map(signal.getsignal, HANDLED)
    return next((handler for handler in handlers if isinstance(handler, StopHandler)), None)


def find_stop() -> int | None:
    """Return the signal that stops the verb of this process; ``None`` if none has arrived."""
    handler = find_handler()
    return handler.number if handler else None


def name_leftovers(describe: Callable[[], str]) -> None:
    """Let the handler of this process print a description if it ends before the verb has cleaned up."""
    handler = find_handler()
    if handler is not None:
        handler.describe_leftovers = describe


@contextmanager
def handling_stops(*, is_process: bool) -> Iterator[None]:
    """Handle the signals that end a process in the block; one that the parent process ignores stays ignored.

    Args:
        is_process: Whether the process ends after the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler, hook = StopHandler(), sys.unraisablehook
    previous = {number: signal.getsignal(number) for number in HANDLED}
    handled = {number: old for number, old in previous.items() if old not in (signal.SIG_IGN, None)}
    sys.unraisablehook = _build_hook(handler, hook)
    if is_process:
        # it runs last of all: then the interpreter forgets its handlers, and a signal would replace the exit code
        atexit.register(_ignore_signals, handled)
    try:
        for number in handled:
            signal.signal(number, handler)
        yield
    finally:
        handler.is_over = True
        # CPython remembers a stop that has passed through exec() of a text, though it was handled since, and would end
        # "python -m" by SIGINT; the next text makes it forget
        exec("")  # noqa: S102
        for number, old in handled.items():
            if not is_process:
                signal.signal(number, old)
        sys.unraisablehook = hook


def _ignore_signals(numbers: Iterable[int]) -> None:
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def guarding_verb() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block when a signal arrives, so that it can clean up."""
    handler = find_handler()
    if handler is None or handler.is_guarded:
        yield
        return
    handler.is_guarded = True
    try:
        yield
    finally:
        with handler.lock:
            handler.ended.set()
        handler.is_guarded, handler.describe_leftovers = False, str


def _is_handling_stop() -> bool:
    """Return whether the code that the signal finds cleans up after a stop, however deep."""
    error = sys.exc_info()[1]
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _cancel_tasks() -> bool:
    """Cancel the tasks of the event loop that runs in this thread; return whether one runs."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return False
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return False

    def cancel() -> None:
        for task in asyncio.all_tasks(loop):
            task.cancel()

    # a loop that waits for input would go on waiting when this handler returns
    loop.call_soon_threadsafe(cancel)
    return True


def _build_hook(handler: StopHandler, hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a hook for exceptions that cannot be raised. That of a stop is not printed: the next probe raises it."""

    def handle(lost: Any) -> None:
        if not isinstance(lost.exc_value, KeyboardInterrupt) or handler.number is None:
            hook(lost)

    return handle
