"""A trace of arrivals played through a rule, simulated by latencies or measured on the nets themselves."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_supernet.arrays import Floats
from unfold_supernet.scheduling.policies import Rule, Served

Work = Callable[[int, int, int], None]
"""Answers, by the net of a place, the requests from a first up to a last one."""


@dataclass(frozen=True, slots=True)
class Played:
    """How a trace went: of each request the net that answered (-1: given up) and whether in time; batches, swaps.

    ``size`` is the batch that a request was answered in, 0 if it was given up; ``enough`` whether the net was as
    accurate as the request asked, where requests ask for that.
    """

    net: np.ndarray
    in_time: np.ndarray
    batches: int
    swaps: int
    size: np.ndarray
    enough: np.ndarray | None = None

    @property
    def kept(self) -> float:
        """Share of the requests that got all that they asked for: in time, and from a net accurate enough."""
        return float((self.in_time if self.enough is None else self.in_time & self.enough).mean())

    @property
    def attainment(self) -> float:
        """Share of the requests that were answered in time."""
        return float(self.in_time.mean())

    def accuracy(self, nets: Sequence[Served]) -> float:
        """Return the mean accuracy, in percent, of the nets over the requests that were answered in time."""
        if not self.in_time.any():
            return 0.0
        return float(np.array([net.accuracy for net in nets])[self.net[self.in_time]].mean())

    def shares(self, nets: Sequence[Served]) -> dict[str, float]:
        """Return the share of the answered requests by net, of those that answered any."""
        counts = np.bincount(self.net[self.net >= 0], minlength=len(nets))
        return {net.name: float(count / counts.sum()) for net, count in zip(nets, counts, strict=True) if count}


def simulate(arrivals: Floats, slo: float, nets: Sequence[Served], rule: Rule, swap: float = 0.0) -> Played:
    """Play a trace in simulated time, on one server; ``swap`` is what another net than the last one costs in seconds.

    All requests have the same time to live, so that the order of arrival is that of the deadlines.
    """
    net, in_time, size = np.full(arrivals.size, -1), np.zeros(arrivals.size, bool), np.zeros(arrivals.size, np.int64)
    now, head, batches, swaps, last, times = 0.0, 0, 0, 0, -1, arrivals.tolist()
    while head < len(times):
        now = max(now, times[head])
        waiting = bisect_right(times, now, head) - head
        choice = rule(times[head] + slo - now, waiting)
        if choice is None:
            head += 1
            continue
        count = min(choice.batch, waiting)
        changed = choice.net != last
        now += nets[choice.net].takes(count) + (swap if changed else 0.0)
        net[head : head + count], size[head : head + count] = choice.net, count
        in_time[head : head + count] = now <= arrivals[head : head + count] + slo
        batches, swaps, last = batches + 1, swaps + changed, choice.net
        head += count
    return Played(net, in_time, batches, swaps, size)


def measure(
    arrivals: Floats,
    slo: float,
    rule: Rule,
    work: Work,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Played:
    """Play a trace in real time, open loop: ``work(net, first, last)`` answers those requests.

    Requests count from when they are due, whether or not the server was listening; ``clock`` and ``sleep`` are in s.
    """
    net, in_time, size = np.full(arrivals.size, -1), np.zeros(arrivals.size, bool), np.zeros(arrivals.size, np.int64)
    # plain numbers: a search in an array, once for every choice, takes longer than the choice
    head, batches, swaps, last, times = 0, 0, 0, -1, arrivals.tolist()
    began = clock() - times[0] + 0.01
    while head < len(times):
        now = clock() - began
        if now < times[head]:
            # asleep until just before it is due, then awake: a timer wakes too late
            sleep(max(0.0, times[head] - now - 0.0005))
            continue
        waiting = bisect_right(times, now, head) - head
        choice = rule(times[head] + slo - now, waiting)
        if choice is None:
            head += 1
            continue
        count = min(choice.batch, waiting)
        work(choice.net, head, head + count)
        ended = clock() - began
        net[head : head + count], size[head : head + count] = choice.net, count
        in_time[head : head + count] = ended <= arrivals[head : head + count] + slo
        batches, swaps, last = batches + 1, swaps + (choice.net != last), choice.net
        head += count
    return Played(net, in_time, batches, swaps, size)
