"""Writes that may take long, as those that a silent admission webhook holds up: each in a thread of its own.

What the server answers within a moment is awaited, so a decision is usually carried out once it is made. The rest goes
on meanwhile, and its outcome is taken up later: one slow write delays no other, as with the workers of a controller of
Kubernetes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

Outcome = TypeVar("Outcome")
WORKERS = 64
"""Writes at a time; more wait for their turn."""
QUICK_S = 0.5
"""How long writes are awaited; one that takes longer is slow."""


@dataclass(frozen=True, slots=True)
class Write:
    """A write that was begun.

    Attributes:
        keys: What it changes, tasks or workloads: no other write of these begins before its outcome is taken up.
        future: Its outcome.
        finish: Takes up the outcome, in the thread of the decisions.
        began_s: When it began, by the monotonic clock.
    """

    keys: frozenset[str]
    future: Future[Any]
    finish: Callable[[Any], None]
    began_s: float

    @property
    def is_slow(self) -> bool:
        """Whether it is no longer awaited."""
        return time.monotonic() - self.began_s > QUICK_S


@dataclass(slots=True)
class BackgroundWrites:
    """The writes that were begun and have outcomes yet to be taken up.

    Attributes:
        notify: Called from the thread of a write that has ended.
        writes: The writes, in order of their beginning.
        pool: Their threads.
    """

    notify: Callable[[], None]
    writes: list[Write] = field(default_factory=list)
    pool: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, WORKERS, "write"))

    @property
    def busy(self) -> frozenset[str]:
        """What is being changed."""
        return frozenset().union(*(write.keys for write in self.writes))

    @property
    def has_ended(self) -> bool:
        """Whether the outcome of a write can be taken up."""
        return any(write.future.done() for write in self.writes)

    def begin(self, keys: Collection[str], call: Callable[[], Outcome], finish: Callable[[Outcome], None]) -> None:
        """Begin a write; ``finish`` receives what ``call`` returned."""
        future = self.pool.submit(call)
        future.add_done_callback(lambda _: self.notify())
        self.writes.append(Write(frozenset(keys), future, finish, time.monotonic()))

    def settle(self) -> None:
        """Await the writes that are not slow yet, and take up every outcome that there is.

        Raises:
            Exception: What a write raised.
        """
        quick = [write for write in self.writes if not write.is_slow]
        if quick:
            wait([write.future for write in quick], max(0.0, quick[-1].began_s + QUICK_S - time.monotonic()))
        ended = [write for write in self.writes if write.future.done()]
        self.writes = [write for write in self.writes if write not in ended]
        errors = [error for write in ended if (error := write.future.exception()) is not None]
        for write in ended:
            if write.future.exception() is None:
                write.finish(write.future.result())
        if errors:
            raise errors[0]

    def describe_slow(self) -> str:
        """Return what has waited longest for an answer, with its time; empty where nothing is slow."""
        slow = [write for write in self.writes if write.is_slow]
        if not slow:
            return ""
        elapsed_s = time.monotonic() - slow[0].began_s
        return f"the server has not answered the write of {min(slow[0].keys)} for {elapsed_s:.0f} s"
