"""Replays workloads through Kueue's queues: arrivals, cycles, ends, and the retry one second after a release."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from unfold_placement.kueue.objects import QueueSnapshot, Workload
from unfold_placement.kueue.quota_tree import build_quota_tree
from unfold_placement.kueue.scheduler import PendingQueue, Scheduler
from unfold_placement.kueue.state import AdmissionState, Entry
from unfoldkit.api import format_names

RETRY_DELAY_S = 1.0
"""Kueue tries inadmissible workloads again this long after a release (``requeueBatchPeriod``)."""
MAX_PREEMPTING_CYCLES = 20_000
"""Cycles with preemption and without an arrival or end, after which queues preempt each other for ever."""
USUAL_PREEMPTING_CYCLES = 50
"""After so many the states are compared: one that recurs recurs for ever."""
MAX_NAMES = 4
"""Names of workloads in a reason."""
END, ARRIVAL, RETRY = range(3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What a replay did with a workload. Times are seconds from the beginning.

    Attributes:
        workload: The workload.
        first_start_s: When it started first, infinity for never.
        start_s: When the run began that was not interrupted, infinity for never.
        end_s: When it ended, infinity for never.
        preemptions: How often it was preempted.
        reason: Why it was not admitted when it was tried last; empty if it was.
    """

    workload: Workload
    first_start_s: float = math.inf
    start_s: float = math.inf
    end_s: float = math.inf
    preemptions: int = 0
    reason: str = ""

    @property
    def wait_s(self) -> float:
        """The time from its arrival to its first start."""
        return self.first_start_s - self.workload.arrival_s


@dataclass(slots=True, eq=False)
class KueueReplay:
    """A replay in progress.

    Attributes:
        scheduler: The scheduler.
        events: Time, kind, number, entry or root cohort, and attempt.
        retries: Roots that will be retried.
        admissions: Entries in the order in which they were admitted.
        count: Events so far, which orders those of one instant and kind.
        preempting_cycles: Cycles with preemption since the last arrival or end.
        preempted: How often entries were preempted since then.
        loops: Reasons of workloads that preempt each other for ever.
    """

    scheduler: Scheduler
    events: list[tuple[float, int, int, Entry | str, int]] = field(default_factory=list)
    retries: set[str] = field(default_factory=set)
    admissions: list[Entry] = field(default_factory=list)
    count: int = 0
    preempting_cycles: int = 0
    preempted: Counter[Entry] = field(default_factory=Counter)
    loops: dict[str, str] = field(default_factory=dict)

    def add(self, at_s: float, kind: int, subject: Entry | str, attempt: int = 0) -> None:
        """Schedule an event."""
        self.count += 1
        heapq.heappush(self.events, (at_s, kind, self.count, subject, attempt))

    def run(self, on_step: Callable[[int], None]) -> None:
        """Run to the end; ``on_step`` receives the number of admissions so far."""
        while self.events:
            now_s = self.events[0][0]
            self.scheduler.state.now_s = now_s
            while self.events and self.events[0][0] == now_s:
                _, kind, _, subject, attempt = heapq.heappop(self.events)
                self._apply(kind, subject, attempt)
            self._run_cycles(now_s)
            on_step(len(self.admissions))

    def _apply(self, kind: int, subject: Entry | str, attempt: int) -> None:
        if isinstance(subject, str):
            self.retries.discard(subject)
            for queue in self.scheduler.queues.values():
                if self._root(queue.queue.name) == subject:
                    queue.retry()
        elif kind == ARRIVAL:
            self._reset_cycles()
            self.scheduler.queues[subject.queue.name].push(subject)
        elif attempt == subject.attempt and subject.reserved_s is not None:
            self._reset_cycles()
            subject.ended_s = self.scheduler.state.now_s
            self._release(subject)

    def _run_cycles(self, now_s: float) -> None:
        seen: set[Hashable] = set()
        states: set[Hashable] = set()
        while True:
            if (signature := self.scheduler.signature()) in seen:
                # Kueue goes on trying its heads, with the same result until quota is released
                return
            seen.add(signature)
            admitted, preempted = self.scheduler.run_cycle()
            for entry in admitted:
                entry.attempt += 1
                entry.starts_s.append(now_s)
                self.admissions.append(entry)
                self.add(now_s + entry.workload.run_s, END, entry, entry.attempt)
            for entry in preempted:
                entry.preemptions += 1
                self._release(entry)
                self.scheduler.queues[entry.queue.name].push(entry)
            self.preempted.update(preempted)
            self.preempting_cycles += bool(preempted)
            if admitted or preempted:
                seen.clear()
            if preempted and self.preempting_cycles > USUAL_PREEMPTING_CYCLES:
                whole = self.scheduler.whole_state()
                if whole in states or self.preempting_cycles >= MAX_PREEMPTING_CYCLES:
                    self._set_aside(preempted)
                states.add(whole)

    def _reset_cycles(self) -> None:
        self.preempting_cycles = 0
        self.preempted.clear()

    def _set_aside(self, latest: Sequence[Entry]) -> None:
        """Let workloads that preempt each other for ever neither end nor be tried again.

        Kueue goes on stopping and starting them, and they use its quota meanwhile: those that run now keep it.

        Args:
            latest: The entries that were preempted last.
        """
        entries = {entry for entry, count in self.preempted.items() if count > 1} | set(latest)
        names = sorted(entry.workload.name for entry in entries)
        listed = format_names(names, MAX_NAMES)
        for entry in entries:
            self.loops[entry.workload.name] = f"preempted over and over, as the rules of its cohort allow: {listed}"
            entry.attempt += 1
            if entry.reserved_s is None:
                self.scheduler.queues[entry.queue.name].remove(entry)
        self._reset_cycles()

    def _release(self, entry: Entry) -> None:
        self.scheduler.state.release(entry)
        entry.usage, entry.reserved_s = {}, None
        root = self._root(entry.queue.name)
        if root not in self.retries:
            self.retries.add(root)
            self.add(self.scheduler.state.now_s + RETRY_DELAY_S, RETRY, root)

    def _root(self, queue: str) -> str:
        # a ClusterQueue and a cohort may have the same name
        root = self.scheduler.state.nodes[queue].root
        return f"{'cohort' if root.queues or root.cohorts else 'queue'} {root.name}"


def replay_queues(snapshot: QueueSnapshot, on_step: Callable[[int], None] = lambda _count: None) -> list[Admission]:
    """Replay the workloads of a snapshot, and return what happened to each, in the snapshot's order.

    Pods start when their workload is admitted: nodes, images and other admission checks take no time. A preempted
    workload starts over; those that preempt each other for ever never end.

    Args:
        snapshot: The quota system at its beginning.
        on_step: Called with the number of admissions so far.
    """
    nodes = build_quota_tree(snapshot.queues, snapshot.cohorts)
    state = AdmissionState(snapshot.flavors, nodes)
    replay = KueueReplay(Scheduler(state, {name: PendingQueue(queue) for name, queue in snapshot.queues.items()}))
    entries = []
    for workload in snapshot.workloads:
        queue = snapshot.queues[workload.queue]
        entry = Entry(workload, queue, nodes[queue.name])
        entries.append(entry)
        _begin(replay, entry)
    replay.run(on_step)
    reasons = {**replay.scheduler.reasons, **replay.scheduler.describe_blocked(), **replay.loops}
    return [_admission(entry, reasons.get(entry.workload.name, "")) for entry in entries]


def _begin(replay: KueueReplay, entry: Entry) -> None:
    workload = entry.workload
    if workload.admitted_s is None or entry.queue.is_drained:
        replay.add(max(workload.arrival_s, 0.0), ARRIVAL, entry)
        return
    entry.usage, entry.reserved_s, entry.attempt = dict(workload.usage), workload.admitted_s, 1
    entry.starts_s.append(workload.admitted_s)
    replay.scheduler.state.admit(entry)
    replay.add(max(workload.admitted_s + workload.run_s, 0.0), END, entry, entry.attempt)


def _admission(entry: Entry, reason: str) -> Admission:
    starts_s = entry.starts_s
    is_over = math.isfinite(entry.ended_s)
    return Admission(
        workload=entry.workload,
        first_start_s=starts_s[0] if starts_s else math.inf,
        start_s=starts_s[-1] if is_over else math.inf,
        end_s=entry.ended_s,
        preemptions=entry.preemptions,
        reason="" if is_over else reason,
    )
