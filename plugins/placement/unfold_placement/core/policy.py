"""The protocol of a placement policy (see docs/how-to/write-a-policy.md), and the bounds that keep one from looping.

Nothing within one instant may go on for ever. A policy that stops a task it has just started, yields transactions
without end, or wakes itself at once is reported with its file and line.
"""

from __future__ import annotations

import inspect
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from traceback import extract_tb
from typing import Any, Protocol

import unfoldkit
from unfold_placement.core.cluster_view import View
from unfold_placement.core.types import Ask, Event, Task, Transactions, Wait
from unfoldkit.api import Diagnostic, UnfoldError

MAX_STOPS = 10
"""Preemptions of one task within one instant."""
MAX_WAKES = 1000
"""Timers that fire within one instant."""
MAX_TRANSACTIONS = 1000
"""Transactions with which a policy may respond to one event, besides ten per task and node."""


MAX_OPERATIONS = 100_000
"""Operations of one transaction, besides ten per task and node."""


MAX_MESSAGE = 200
"""Characters of the message of an exception that a policy raised."""


class Policy(Protocol):
    """Decides which ephemeral resources tasks request, and where and when these exist.

    ``request`` depends on the task alone. ``react`` yields transactions: the operations of one take effect together,
    and tasks that can start then do so before the next transaction is computed.

    A policy may have three more methods. ``describe_wait(task, view)`` returns a ``Wait``: why it does not admit a
    task. ``audit(log)`` yields violations of its rules in a replay, given as :class:`AuditEvent` objects. ``state()``
    returns a hashable value that replaces the policy's fields in ``unfold check --verify``.

    It may have two more attributes, which the view reads for all policies. ``gathers`` names the field of tasks that
    start together. ``patience_s`` is for how many seconds others may pass what waits at the head of a queue.
    """

    @property
    def phase(self) -> int:
        """``STATIC``, ``QUEUE``, ``PACK`` or ``GANG``."""

    @property
    def watches(self) -> frozenset[str]:
        """Kinds of events that ``react`` receives."""

    def request(self, task: Task) -> Iterable[Ask]:
        """Return the ephemeral resources that a task requests."""

    def react(self, event: Event, view: View) -> Transactions:
        """Yield the transactions with which the policy responds to an event."""


POLICY_FAILURES = (Exception, SystemExit, GeneratorExit)
"""What a policy may raise that is its own error: one that exits must not end the controller."""


@dataclass(slots=True)
class InstantBudget:
    """Counts what happens within one instant, and raises where it goes on for ever.

    Attributes:
        instant_s: The instant in seconds.
        stops: Preemptions of each task at it.
        wakes: Timers that fired at it.
    """

    instant_s: float = math.nan
    stops: Counter[str] = field(default_factory=Counter)
    wakes: int = 0

    def count_stop(self, now: float, task: Task, policy: Policy | None) -> None:
        """Count a preemption.

        Raises:
            UnfoldError: The policy has stopped the task too often at this instant.
        """
        self._enter(now)
        self.stops[task.name] += 1
        if self.stops[task.name] > MAX_STOPS and policy is not None:
            raise policy_error(policy, "react", f"it stops and starts {task.name} for ever at {now:g} s")

    def count_wake(self, now: float, policy: Policy | None) -> None:
        """Count a timer.

        Raises:
            UnfoldError: Too many timers fire at this instant.
        """
        self._enter(now)
        self.wakes += 1
        if self.wakes > MAX_WAKES and policy is not None:
            raise policy_error(policy, "react", f"it wakes itself for ever at {now:g} s")

    def _enter(self, now: float) -> None:
        if now != self.instant_s:
            self.instant_s, self.wakes = now, 0
            self.stops.clear()


def loading_error(error: BaseException) -> Diagnostic:
    """Return the file, line and message of what a policy's module or constructor raised; no file if it is unknown."""
    if isinstance(error, SyntaxError) and error.filename:
        return Diagnostic(f"{type(error).__name__}: {error.msg}", error.filename, error.lineno or 0)
    file, line = find_user_line((frame.filename, frame.lineno or 0) for frame in extract_tb(error.__traceback__))
    return Diagnostic(describe_error(error), file, line)


def find_user_line(frames: Iterable[tuple[str, int]]) -> tuple[str, int]:
    """Return the user's first file among the frames of a call, outermost first, and the last line in it, or ("", 0)."""
    known = [(file, line) for file, line in frames if Path(file).is_file()]
    # the frames from the import or the call to the user's first file are this program's and the interpreter's
    own = next((file for file, _ in known if not _is_installed(file)), "")
    lines = [line for file, line in known if file == own]
    return (own, lines[-1]) if own else ("", 0)


def call_loader(name: str, load: Callable[[], Any]) -> Any:
    """Import or build a user's policy; a function of its own, so that the watchdog finds it on the stack.

    Args:
        name: The policy, as the spec names it.
        load: Imports or builds it.
    """
    loaded = load()
    del name  # until here the watchdog reads it from the frame
    return loaded


def _is_installed(file: str) -> bool:
    """Return whether a file belongs to this package or to Python's standard library, wherever both are installed."""
    if Path(file).is_relative_to(Path(__file__).parents[1]):
        return True
    return "site-packages" not in file and Path(file).is_relative_to(Path(inspect.__file__).parent)


def is_own(file: str) -> bool:
    """Return whether a file is one of the user's own, not of an installed package, and not empty."""
    return bool(file) and "site-packages" not in file and not Path(file).is_relative_to(Path(unfoldkit.__file__).parent)


def is_shipped(kind: type) -> bool:
    """Return whether a class of policies is one of this package."""
    return kind.__module__.partition(".")[0] == __name__.partition(".")[0]


def policy_error(policy: Policy, method: str, message: str, *, line: int = 0, hint: str = "") -> UnfoldError:
    """Build the error of a policy that misbehaves, with the file and line of its method."""
    file, first_line = _find_source(policy, method)
    name = type(policy).__name__
    return UnfoldError(Diagnostic(f"policy {name}: {message}", file, line or first_line, key="policy", hint=hint))


def exception_error(policy: Policy, method: str, error: BaseException) -> UnfoldError:
    """Build the error of a policy that raised, with the line of its file that did."""
    file, _ = _find_source(policy, method)
    lines = [frame.lineno or 0 for frame in extract_tb(error.__traceback__) if frame.filename == file]
    return policy_error(policy, method, f"{method} raised {describe_error(error)}", line=lines[-1] if lines else 0)


def describe_failure(error: UnfoldError) -> str:
    """Return what a policy did wrong, after the name of its file and the line."""
    found = error.diagnostics[0]
    place = f"{Path(found.file).name}:{found.line}: " if found.file else ""
    return f"{place}{found.message}"


def describe_error(error: BaseException) -> str:
    """Return the class of an exception and the first line of its message."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # noqa: BLE001 - a class of the user may fail in its own text
        lines = []
    return f"{type(error).__name__}: {lines[0][:MAX_MESSAGE]}" if lines else type(error).__name__


def call_hook(policy: Policy, method: str, *arguments: object, max_items: int = 0) -> Any:
    """Return what an optional method of a policy returns, as a list where ``max_items`` bounds it.

    Raises:
        UnfoldError: The method raised, or returned more items.
    """
    step = time.monotonic_ns()  # noqa: F841 - the watchdog reads it from the frame
    try:
        result = getattr(policy, method)(*arguments)
        if max_items and isinstance(result, str):
            raise policy_error(policy, method, f"{method} must return a list, or yield, not a text")
        items = list(islice(result, max_items + 1)) if max_items else []
    except UnfoldError:
        raise
    except POLICY_FAILURES as error:
        raise exception_error(policy, method, error) from error
    if len(items) > max_items:
        raise policy_error(policy, method, f"{method} returned more than {max_items:,} items")
    return items if max_items else result


def describe_policy_wait(policy: Policy, task: Task, view: View) -> Wait | None:
    """Return why a policy does not admit a task; None if it does, or does not say.

    Raises:
        UnfoldError: Its ``describe_wait`` raised, or returned something else.
    """
    if not hasattr(policy, "describe_wait"):
        return None
    wait = call_hook(policy, "describe_wait", task, view)
    if wait is not None and not isinstance(wait, Wait):
        hint = f"it returned {str(wait)[:60]!r}"
        raise policy_error(policy, "describe_wait", "describe_wait must return a Wait or None", hint=hint)
    return wait


def _find_source(policy: Policy, method: str) -> tuple[str, int]:
    try:
        function = inspect.unwrap(getattr(type(policy), method))
        file, line = inspect.getsourcefile(function) or "", inspect.getsourcelines(function)[1]
    except (AttributeError, OSError, TypeError):
        return _find_class(type(policy))
    return (file, line) if Path(file).exists() else ("", 0)


def _find_class(kind: type) -> tuple[str, int]:
    try:
        return inspect.getsourcefile(kind) or "", inspect.getsourcelines(kind)[1]
    except (OSError, TypeError):
        return "", 0
