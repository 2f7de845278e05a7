"""A trace whose requests name their own deadlines and accuracies, played as the server would answer it.

Requests wait in the server's own line: the earliest deadline first, none answered by a net that is less accurate than
it asks, and who cannot be in time answered late, when nobody else waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from unfold_supernet.arrays import Floats
from unfold_supernet.replay.baselines import Contender
from unfold_supernet.scheduling.accuracy_levels import ways
from unfold_supernet.scheduling.policies import Served
from unfold_supernet.scheduling.requests import Targets
from unfold_supernet.scheduling.simulator import Played
from unfold_supernet.scheduling.speed import Pace
from unfoldkit.serving.batching.request_queue import Deadlines, Waiting
from unfoldkit.serving.model import Call

AWAKE = 0.0005
"""Seconds before an arrival from which on it is waited for awake: a timer wakes too late."""
SOON = 0.01
"""Seconds until a trace begins."""
Answer = Callable[[int, Sequence[int]], None]
"""Answers, by the net of a place, the requests of some places."""


class Machine(Protocol):
    """What answers: a clock, and nets by their place."""

    def now(self) -> float:
        """Return the seconds since the trace began."""

    def until(self, moment: float) -> None:
        """Wait."""

    def work(self, net: int, places: Sequence[int]) -> None:
        """Answer the requests of some places by a net."""


@dataclass(slots=True)
class Simulated:
    """A machine in simulated time; ``swap`` is what another net than the last one costs in seconds."""

    nets: Sequence[Served]
    swap: float = 0.0
    clock: float = 0.0
    last: int = -1

    def now(self) -> float:
        """Return the seconds since the trace began."""
        return self.clock

    def until(self, moment: float) -> None:
        """Let time pass."""
        self.clock = max(self.clock, moment)

    def work(self, net: int, places: Sequence[int]) -> None:
        """Take as long as the profile says."""
        self.clock += self.nets[net].takes(len(places)) + (self.swap if net != self.last else 0.0)
        self.last = net


@dataclass(slots=True)
class Real:
    """This machine, in real time; the trace begins a moment after this is made."""

    answer: Answer
    began: float = field(default_factory=lambda: time.perf_counter() + SOON)

    def now(self) -> float:
        """Return the seconds since the trace began."""
        return time.perf_counter() - self.began

    def until(self, moment: float) -> None:
        """Sleep, and be awake just before."""
        time.sleep(max(0.0, moment - self.now() - AWAKE))
        while self.now() < moment:
            pass

    def work(self, net: int, places: Sequence[int]) -> None:
        """Answer by the net itself."""
        self.answer(net, places)


@dataclass(slots=True)
class _Moment:
    at: float = 0.0

    def read(self) -> float:
        return self.at


def play(
    arrivals: Floats, targets: Targets, rule: Contender, nets: Sequence[Served], pace: Pace, machine: Machine
) -> Played:
    """Play a trace by a rule, open loop; ``pace`` stretches what the profile of its nets says."""
    moment, own = _Moment(), rule.own(nets)
    line = Deadlines(ways(own, rule.make, pace), 0.0, moment.read)
    net, size = np.zeros(arrivals.size, np.int64), np.zeros(arrivals.size, np.int64)
    ended, times, most = np.zeros(arrivals.size), arrivals.tolist(), max(one.most for one in own)
    head, left, batches, swaps, last = 0, 0, 0, 0, -1
    while head < len(times) or left:
        if not left:
            machine.until(times[head])
        now = machine.now()
        while head < len(times) and times[head] <= now:
            # a request counts from when it came, whenever it was heard
            moment.at = times[head]
            line.add(_waiting(targets, head))
            head, left = head + 1, left + 1
        moment.at = now
        taken, turn = line.take(most)
        assert turn is not None  # noqa: S101 - somebody waits, and everybody is answered
        at, places = rule.places[turn.way], [item.call.time or 0 for item in taken]
        machine.work(at, places)
        ended[places], net[places], size[places] = machine.now(), at, len(places)
        left, batches, swaps, last = left - len(places), batches + 1, swaps + (at != last), at
    enough = np.array([one.share for one in nets])[net] >= targets.least
    return Played(net, ended <= arrivals + targets.deadlines, batches, swaps, size, enough)


def _waiting(targets: Targets, place: int) -> Waiting:
    call = Call(1, time=place, deadline=float(targets.deadlines[place]), least_accuracy=float(targets.least[place]))
    return Waiting({}, call, _unheard)


def _unheard(_answer: object) -> None:
    """Nobody waits for the answer of a replay."""
