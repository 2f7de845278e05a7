"""The controller of a live cluster: the policies of the simulator, driven by what happens on a backend."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from unfold_placement.core import kernel
from unfold_placement.core.controller import Controller, controller
from unfold_placement.core.explain import History, watched
from unfold_placement.core.resources import book
from unfold_placement.core.types import Policy, Task
from unfold_placement.live import backend as kinds
from unfold_placement.live.actuator import Hands, hands
from unfold_placement.live.backend import Backend, Change, Snapshot
from unfold_placement.live.recovery import adopt, end, take
from unfoldkit.api import UnfoldError

ROWS = 20_000
"""Tasks that a loop keeps in mind before it starts afresh from a snapshot."""
FAILURES = 20
"""Errors in a row after which a controller gives up."""


@dataclass(slots=True)
class Live:
    """Runs policies against a backend while it leads; ``who`` is this process, ``owner`` whose the names are.

    ``ttl`` is how long (s) it leads, and ``lease`` how long its names live, without a sign of life.
    """

    backend: Backend
    make: Callable[[], Sequence[Policy]]
    who: str
    owner: str
    ttl: float = 5.0
    lease: float = 15.0
    hands: Hands | None = None
    after: int = 0
    leads: bool = False
    again: float = 0.0
    failures: int = 0
    history: History = field(default_factory=History)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def step(self, timeout: float = 1.0) -> bool:
        """Deal with what happens within ``timeout`` seconds at most; return whether this one leads.

        Raises:
            UnfoldError: the same again and again, whatever the backend is asked.
        """
        try:
            if self._leading():
                self.hands = self._adopted() if self.hands is None else self._listened(self.hands, timeout)
                self.failures = 0
        except UnfoldError:
            # somebody else leads, or what this one knows has passed: a snapshot tells
            self.hands, self.again, self.failures = None, 0.0, self.failures + 1
            if self.failures > FAILURES:
                raise
        return self.leads

    def stop(self) -> None:
        """Let another lead. What runs goes on; names live on for their lease, for whoever adopts them."""
        self.hands = None
        if self.leads:
            self.leads = False
            self.backend.resign()

    def _leading(self) -> bool:
        now = self.backend.now()
        if now >= self.again:
            led, self.leads = self.leads, self.backend.lead(self.who, self.ttl)
            self.again = now + self.ttl / 4
            if self.leads:
                self.backend.renew(self.owner, self.lease)
            if not self.leads or not led:
                self.hands = None
        return self.leads

    def _adopted(self) -> Hands:
        seen = self.backend.snapshot()
        self.after = seen.after
        loop = self._fresh(seen)
        self.history = watched(loop)
        refused = adopt(loop, seen.records, self.backend.now())
        waiting = {record.task.name for record in seen.records if record.state == kinds.WAITING}
        for task in waiting & refused.keys():
            self.backend.refuse(task, refused[task])
        attempts = [(record.task.name, record.attempt) for record in seen.records]
        loop.sink = made = hands(self.backend, loop, self.owner, self.lease, attempts)
        made.reconcile(seen.names)
        loop.pump()
        made.flush()
        return made

    def _fresh(self, seen: Snapshot) -> Controller:
        made = controller(book(sorted(seen.nodes, key=lambda node: node.name)), self.make())
        made.timed = False
        return made

    def _listened(self, mine: Hands, timeout: float) -> Hands | None:
        loop = mine.loop
        now = self.backend.now()
        changes = self.backend.watch(self.after, max(0.0, min(timeout, loop.due - now, self.again - now)))
        if changes is None or len(loop.book.tasks) > ROWS or any(self._strange(loop, change) for change in changes):
            return None
        now = self.backend.now()
        with self.lock:
            loop.book.arena.clock[0] = max(loop.book.now, now)
            for change in changes:
                self.after = change.number
                self._hear(mine, change)
            loop.tick() if loop.due <= loop.book.now else loop.pump()
        mine.flush()
        return mine

    def _strange(self, loop: Controller, change: Change) -> bool:
        expired = change.kind == kinds.EXPIRED and change.by == self.owner
        return expired or (change.kind == kinds.JOINED and change.node not in loop.book.place)

    def _hear(self, mine: Hands, change: Change) -> None:
        loop = mine.loop
        if change.kind in {kinds.JOINED, kinds.LEFT}:
            up = change.kind == kinds.JOINED
            if loop.book.arena.up[loop.book.place[change.node]] != up:
                loop.turn(change.node, up=up)
        elif change.kind == kinds.SUBMITTED and change.record is not None:
            self._come(loop, change.record.task)
        elif change.task in loop.book.index and change.by != self.who:
            self._happened(mine, change)

    def _come(self, loop: Controller, task: Task) -> None:
        try:
            take(loop, task)
        except UnfoldError as error:
            self.backend.refuse(task.name, error.diagnostics[0].message)

    def _happened(self, mine: Hands, change: Change) -> None:
        loop, row = mine.loop, mine.loop.book.index[change.task]
        if change.kind in {kinds.ENDED, kinds.WITHDRAWN}:
            end(loop, change.task, done=change.kind == kinds.ENDED)
        elif change.kind in {kinds.FAILED, kinds.PREEMPTED} and self._last(mine, change):
            mine.gated.add(change.task)
            loop.preempt(loop.book.tasks[row])

    def _last(self, mine: Hands, change: Change) -> bool:
        runs = mine.loop.book.arena.state[mine.loop.book.index[change.task]] == kernel.RUNNING
        return bool(runs) and change.record is not None and change.record.attempt == mine.attempts.get(change.task)


def run(live: Live, stopped: Callable[[], bool], pause: Callable[[float], object]) -> None:
    """Step until it is to stop; ``pause`` waits for so many seconds, or less."""
    try:
        while not stopped():
            if not live.step() or live.hands is None:
                pause(live.ttl / 20)
    finally:
        live.stop()
