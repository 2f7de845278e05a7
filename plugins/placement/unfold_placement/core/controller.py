"""Hands events to policies and carries out what they answer: the same on every backend."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from unfold_placement.core import bulk, kernel, kernel_calls, state_arrays, types
from unfold_placement.core.resources import Book
from unfold_placement.core.types import Ask, Drop, Event, Op, Policy, Put, Refuse, Task, Wake
from unfold_placement.core.view import View
from unfoldkit.api import UnfoldError, fail

NOTHING = kernel.ALL_PHASES
KINDS = (types.SUBMITTED, types.STARTED, types.ENDED, types.PREEMPTED, types.REFUSED)
LEAVING = frozenset({types.ENDED, types.PREEMPTED})


class Sink(Protocol):
    """What carries decisions out on a real cluster."""

    def put(self, name: str, node: str, amount: int) -> None:
        """Make a name be there with this amount."""

    def drop(self, name: str, node: str) -> None:
        """Make a name be gone."""

    def start(self, task: Task, node: str) -> None:
        """Start a task that was matched here."""

    def stop(self, task: Task) -> None:
        """Preempt a task."""

    def refuse(self, task: Task, reason: str) -> None:
        """Tell that a task never runs."""


@dataclass(slots=True)
class Controller:
    """The loop of a backend: ``timed`` if the book knows when tasks end, ``matching`` if it decides who starts.

    While is told who ``left``, nothing starts: ``held`` is then the first phase of those that changed something.
    """

    book: Book
    policies: tuple[Policy, ...]
    view: View
    sink: Sink | None = None
    timed: bool = True
    matching: bool = True
    cursor: int = 0
    inbox: deque[Event] = field(default_factory=deque)
    left: deque[Event] = field(default_factory=deque)
    timers: list[float] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    watched: frozenset[str] = frozenset()
    begun: bool = False
    held: int | None = None

    @property
    def due(self) -> float:
        """When the next timer or lease ends, or infinity."""
        return min(self.timers[0] if self.timers else math.inf, self.book.soonest)

    @property
    def mask(self) -> int:
        """The kinds of events at which the event loop must stop, as bits."""
        names = self.watched | (LEAVING if self.watched - {types.BEGAN} else set())
        names |= {types.SUBMITTED} if types.QUIET in self.watched else set()
        return sum(1 << place for place, kind in enumerate(KINDS) if kind in names)

    def begin(self) -> None:
        """Tell the policies that it begins."""
        self.begun = True
        self.dispatch(Event(types.BEGAN, self.book.now))
        self.pump()

    def pump(self) -> None:
        """Deal with everything that happened, until nothing more can start."""
        while True:
            self.collect()
            told = bool(self.inbox or self.left)
            while self.inbox or self.left:
                if self.left:
                    self._leaving()
                else:
                    self.dispatch(self.inbox.popleft())
            if told and types.QUIET in self.watched:
                self.dispatch(Event(types.QUIET, self.book.now))
            if not self.inbox and not self.left and not self.match():
                return

    def tick(self) -> None:
        """Tell of timers that are due, and let leases end."""
        due = False
        while self.timers and self.timers[0] <= self.book.now:
            heapq.heappop(self.timers)
            due = True
        for gone in self.book.expire():
            if self.sink is not None:
                self.sink.drop(gone.name, gone.node)
        if due:
            self.inbox.append(Event(types.TIMER, self.book.now))
        self.pump()

    def collect(self) -> None:
        """Read what the event loop wrote: starts are told at once, the rest waits for its turn."""
        while self.cursor < self.book.arena.mark[kernel.LOGGED]:
            a, at = self.book.arena, self.cursor
            self.cursor += 1
            task = self.book.tasks[a.log_task[at]]
            node = self.book.nodes[a.log_node[at]].name if a.log_node[at] >= 0 else types.ANYWHERE
            event = Event(KINDS[a.log_kind[at]], float(a.log_time[at]), task, node)
            if event.kind != types.STARTED:
                (self.left if event.kind in LEAVING else self.inbox).append(event)
                continue
            if self.sink is not None and self.matching:
                self.sink.start(task, node)
            if types.STARTED in self.watched:
                self._tell(event)

    def dispatch(self, event: Event) -> None:
        """Tell every policy that watches such events, in the order of phases."""
        if event.task is not None and event.kind == types.SUBMITTED:
            self.view.admit(event.task)
        if event.task is not None and event.kind in LEAVING:
            self._release(event.task)
        if event.task is not None and event.kind == types.ENDED:
            self.view.leave(event.task, done=True)
        self._tell(event)

    def match(self) -> bool:
        """Start what fits; where starts are watched, one at a time. Return whether anything started."""
        mark = self.book.arena.mark
        if not self.matching or not (mark[kernel.FRESH] or mark[kernel.DIRTY]):
            return False
        self.room()
        most = 1 if types.STARTED in self.watched else 1 << 30
        started = kernel_calls.settle(self.book.arena, most, self.timed) > 0
        if started:
            self.collect()
        return started

    def apply(self, ops: Iterable[Op], policy: Policy) -> None:
        """Carry one transaction out, tell later phases of it, and start what can start now."""
        if not isinstance(ops, Iterable):
            raise _misused(policy, "react", ops, "a list of operations: yield [Put(name, node)]")
        whole = list(ops)
        changed = [self._many(whole, policy)] if bulk.alike(whole) else [self._one(op, policy) for op in whole]
        if not any(changed):
            return
        if self.held is not None:
            self.held = min(self.held, policy.phase)
        else:
            self._changed(policy.phase)

    def _leaving(self) -> None:
        """Tell of all that ended or was stopped before anything starts: no policy then counts who has left.

        Nor is any told that a task was stopped once it runs again.
        """
        self.held = NOTHING
        while self.left:
            self.dispatch(self.left.popleft())
        phase, self.held = self.held, None
        if phase != NOTHING:
            self._changed(phase)

    def _changed(self, phase: int) -> None:
        event = Event(types.CREATED, self.book.now)
        for later in self.policies:
            if later.phase > phase and types.CREATED in later.watches:
                self._answer(later, event)
        while self.match():
            pass

    def _tell(self, event: Event) -> None:
        for policy in self.policies:
            if event.kind in policy.watches:
                self._answer(policy, event)

    def _answer(self, policy: Policy, event: Event) -> None:
        for ops in policy.react(event, self.view):
            self.apply(ops, policy)

    def _one(self, op: Op, policy: Policy) -> bool:
        if isinstance(op, Put):
            return self._put(op, policy)
        if isinstance(op, Drop):
            return self._drop(op)
        if isinstance(op, Wake):
            heapq.heappush(self.timers, op.at)
        elif isinstance(op, Refuse):
            self._refuse(op)
        else:
            raise _misused(policy, "react", op, "a Put, Drop, Wake or Refuse: yield [Put(name, node)]")
        return False

    def _many(self, ops: Sequence[Put | Drop], policy: Policy) -> bool:
        """Carry out what is alike on many nodes at once."""
        first, nodes = ops[0], [op.node for op in ops]
        return self._put_all(first, nodes, policy) if isinstance(first, Put) else self._drop_all(first.name, nodes)

    def _put_all(self, op: Put, nodes: Sequence[str], policy: Policy) -> bool:
        changed = self.book.put_all(op.name, nodes, op.amount, owner=self._owner(op.name, policy))
        self.book.arena.mark[kernel.GROWN] += len(changed) if policy.phase < types.PACK else 0
        if self.sink is not None:
            for node in changed:
                self.sink.put(op.name, node, op.amount)
        return bool(changed)

    def _drop_all(self, name: str, nodes: Sequence[str]) -> bool:
        gone = self.book.delete_all(name, nodes)
        if name not in self.book.entries:
            self.owners.pop(name, None)
        if self.sink is not None:
            for node in gone:
                self.sink.drop(name, node)
        return bool(gone)

    def _owner(self, name: str, policy: Policy) -> str:
        return self.owners.setdefault(name, type(policy).__name__)

    def _put(self, op: Put, policy: Policy) -> bool:
        owner = self._owner(op.name, policy)
        changed = self.book.put(op.name, op.node, op.amount, owner=owner, until=op.until)
        self.book.arena.mark[kernel.GROWN] += changed and policy.phase < types.PACK
        if changed and self.sink is not None:
            self.sink.put(op.name, op.node, op.amount)
        return changed

    def _drop(self, op: Drop) -> bool:
        if op.node not in self.book.entries.get(op.name, {}):
            return False
        holders = self.book.delete(op.name, op.node, force=op.force)
        if op.name not in self.book.entries:
            self.owners.pop(op.name, None)
        if self.sink is not None:
            self.sink.drop(op.name, op.node)
        for task in holders:
            self.preempt(task)
        return True

    def preempt(self, task: Task) -> None:
        """Stop a running task and let it wait again."""
        self.room()
        a, row = self.book.arena, self.book.index[task.name]
        kernel.finish(a, row, kernel.K_PREEMPTED)
        kernel.enqueue(a, row)
        self.view.again(task)
        if self.sink is not None:
            self.sink.stop(task)
        self.collect()

    def room(self) -> None:
        """Make room in the log for what one step can write."""
        mark = self.book.arena.mark
        wanted = int(mark[kernel.LOGGED] + mark[kernel.HEAPED] + mark[kernel.QUEUED]) + 64
        self.book.arena = state_arrays.with_log(self.book.arena, wanted)

    def turn(self, node: str, *, up: bool) -> None:
        """Let a node go (what runs there is preempted) or come back."""
        self.room()
        a, row = self.book.arena, self.book.place[node]
        a.up[row] = up
        self.view.totals.clear()
        a.mark[kernel.GROWN] += 1
        kernel_calls.touch(a, row)
        lost = [] if up else [task for task, place, _ in self.view.running() if place == node]
        for task in lost:
            self.preempt(task)
        self.inbox.append(Event(types.JOINED if up else types.LEFT, self.book.now, node=node))
        self.pump()

    def _refuse(self, op: Refuse) -> None:
        row = self.book.index[op.task]
        self.drop(row)
        self.refused[op.task] = op.reason
        if self.sink is not None:
            self.sink.refuse(self.book.tasks[row], op.reason)

    def drop(self, row: int) -> None:
        """Take a waiting task out of the queue for good."""
        a = self.book.arena
        a.state[row] = kernel.REFUSED
        kernel.note(a, kernel.K_REFUSED, row, -1)
        if a.fresh[row] != kernel.NEW:
            # so that the next look at the queue takes it out
            a.fresh[row] = kernel.NEW
            a.mark[kernel.FRESH] += 1

    def _release(self, task: Task) -> None:
        for name, node in self.book.leases.get(task.name, ()):
            self.owners.pop(name, None)
            if self.sink is not None and node in self.book.entries.get(name, {}):
                self.sink.drop(name, node)
        self.book.release(task)


def controller(book: Book, policies: Sequence[Policy]) -> Controller:
    """Return the loop for a book, policies ordered by phase (within one, as they are given)."""
    ordered = tuple(sorted(policies, key=lambda policy: policy.phase))
    by = next((str(getattr(policy, "gathers", "")) for policy in ordered if getattr(policy, "gathers", "")), "")
    watched = frozenset(kind for policy in ordered for kind in policy.watches)
    return Controller(book, ordered, View(book, by), watched=watched)


def requests(policies: Iterable[Policy], task: Task) -> list[tuple[Ask, int]]:
    """Return the names that a task asks for under some policies, each with the phase of who asks.

    Raises:
        UnfoldError: a policy asks for something else.
    """
    return [(_asked(ask, policy), policy.phase) for policy in policies for ask in policy.request(task)]


def _asked(ask: object, policy: Policy) -> Ask:
    if not isinstance(ask, Ask):
        raise _misused(policy, "request", ask, "an Ask: return [Ask(name)]")
    return ask


def _misused(policy: Policy, method: str, found: object, wanted: str) -> UnfoldError:
    hint = f"{type(policy).__name__}.{method} gave {str(found)[:60]!r}"
    return fail(f"what {method} of a policy gives is {wanted}", key="policy.own.policy", hint=hint)
