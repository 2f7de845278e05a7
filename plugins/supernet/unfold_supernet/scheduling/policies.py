"""Rules that say, at each moment, which net answers how many of the requests whose deadlines are nearest.

Requests wait in the order of their deadlines. A rule sees the slack of the first and how many wait.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

BUCKETS = 64
SHORTEST = 0.05
"""Share of the time to live over which a rate is seen at least: a few at once are no stream."""


@dataclass(frozen=True, slots=True)
class Served:
    """A net as the rules see it: accuracy in percent, seconds by batch size, ascending.

    ``then`` names the net that is asked again for the share of the answers that this one is ``unsure`` of.
    """

    name: str
    accuracy: float
    seconds: tuple[tuple[int, float], ...]
    then: str | None = None
    unsure: float = 0.0

    def takes(self, count: int) -> float:
        """Return the seconds of a batch, between measured sizes by a straight line."""
        # by hand, as a rule asks several nets for every batch, and an array for each costs what a small net does
        at = bisect_left(self.seconds, (count,))
        if at == 0 or at == len(self.seconds) or self.seconds[at][0] == count:
            return self.seconds[min(at, len(self.seconds) - 1)][1]
        (size, time), (more, longer) = self.seconds[at - 1], self.seconds[at]
        return time + (longer - time) * (count - size) / (more - size)

    @property
    def share(self) -> float:
        """Its accuracy as a share."""
        return self.accuracy / 100

    @property
    def most(self) -> int:
        """The largest batch that was measured."""
        return self.seconds[-1][0]


@dataclass(frozen=True, slots=True)
class Choice:
    """A net by its place, and a batch size."""

    net: int
    batch: int


Rule = Callable[[float, int], Choice | None]
"""From the slack of the first request in seconds and how many wait to a choice; ``None`` gives the first one up."""


def served(item: Mapping[str, Any]) -> Served:
    """Return a net from what a run knows of it."""
    times = sorted((int(batch), seconds) for batch, seconds in item["seconds"].items())
    # a larger batch that was measured quicker is noise
    rising = [(batch, max(time for _, time in times[: at + 1])) for at, (batch, _) in enumerate(times)]
    return Served(item["name"], item["accuracy"], tuple(rising))


def slower(nets: Sequence[Served], factor: float) -> tuple[Served, ...]:
    """Return the nets with all times multiplied."""
    return tuple(replace(net, seconds=tuple((size, time * factor) for size, time in net.seconds)) for net in nets)


def slackfit(nets: Sequence[Served], buckets: int = BUCKETS) -> Rule:
    """Return SuperServe's rule: buckets of equal width over latency, in each the largest batch (tie: most accurate).

    The largest bucket whose edge is within the slack is taken; below the first, nothing is in time.
    """
    pairs = [(time, size, at) for at, net in enumerate(nets) for size, time in net.seconds]
    low, high = min(pair[0] for pair in pairs), max(pair[0] for pair in pairs)
    edges = np.linspace(low, high, buckets).tolist()
    table = [
        max(
            (pair for pair in pairs if pair[0] <= edge * (1 + 1e-12)),
            key=lambda pair: (pair[1], nets[pair[2]].accuracy),
        )
        for edge in edges
    ]

    def choose(slack: float, _waiting: int) -> Choice | None:
        place = bisect_right(edges, slack) - 1
        return Choice(table[place][2], table[place][1]) if place >= 0 else None

    return choose


def fitted(nets: Sequence[Served]) -> Rule:
    """Return our rule: the most accurate net that answers all that wait within the slack; if none, the quickest net.

    Where even that is late for all, as many as the quickest net answers in time.
    """
    order = sorted(range(len(nets)), key=lambda at: nets[at].accuracy, reverse=True)
    quick = min(range(len(nets)), key=lambda at: nets[at].takes(nets[at].most))

    def choose(slack: float, waiting: int) -> Choice | None:
        for at in order:
            if waiting <= nets[at].most and nets[at].takes(waiting) <= slack:
                return Choice(at, waiting)
        return _largest(nets, quick, slack, waiting)

    return choose


def steady(nets: Sequence[Served], slo: float) -> Rule:
    """Return a rule that looks at the rate too: the most accurate net that answers what waits and keeps up with it.

    A net that is only in time for those who wait now leaves a crowd behind that only the smallest net can clear, and
    accuracy is concave in capacity: a middle net all along serves more of it than turns of the largest and smallest.
    Who arrives after the head tells the rate, less one standard deviation, as few requests tell little. A net's pace is
    that of its best batch of which two in a row are in time; it keeps up for a while with a higher rate where slack is
    left, as the queue takes the rest. ``slo`` is the time to live of a request, in seconds.
    """
    order = sorted(range(len(nets)), key=lambda at: nets[at].accuracy, reverse=True)
    quick = min(order, key=lambda at: nets[at].takes(nets[at].most))
    last = shedding(nets, quick, slo)
    peak = [capacity(net, slo) for net in nets]

    def choose(slack: float, waiting: int) -> Choice | None:
        since, more = slo - slack, waiting - 1
        rate = (more - math.sqrt(more)) / max(since, slo * SHORTEST) if since > 0 and more > 0 else 0.0
        for at in order:
            count = min(waiting, nets[at].most)
            # who waits for a second batch must be in time as well
            left = slack - nets[at].takes(count) * waiting / count
            if left >= 0 and rate <= peak[at] * (1 + left / slo):
                return Choice(at, count)
        return last(slack, waiting)

    return choose


def capacity(net: Served, slo: float) -> float:
    """Return the requests a second that a net answers by its best batch of which two in a row are in time; 0: none."""
    return max((size / time for size, time in net.seconds if 2 * time <= slo), default=0.0)


def shedding(nets: Sequence[Served], at: int, slo: float) -> Rule:
    """Return one net all the time that gives up the most urgent where many wait, rather than answer in small batches.

    Under overload the slack of the head is spent, so that what fits it is a batch of few, which makes it worse.
    """
    fits = [pair for pair in nets[at].seconds if 2 * pair[1] <= slo]
    size, time = max(fits, key=lambda pair: pair[0] / pair[1], default=(1, 0.0))

    def choose(slack: float, waiting: int) -> Choice | None:
        return None if waiting >= size and slack < time else _largest(nets, at, slack, waiting)

    return choose


def patient(rule: Rule, most: int) -> Rule:
    """Return a rule that looks past one batch: where more than ``most`` wait, each full batch gets its share of slack.

    Where no net answers a full batch within its share, ``rule`` decides as before.
    """

    def choose(slack: float, waiting: int) -> Choice | None:
        if waiting > most:
            shared = rule(slack * most / waiting, most)
            if shared is not None and shared.batch == most:
                return shared
        return rule(slack, waiting)

    return choose


def fixed(nets: Sequence[Served], at: int) -> Rule:
    """Return one net all the time, with as large a batch as is in time (Clipper with deadlines)."""
    return lambda slack, waiting: _largest(nets, at, slack, waiting)


def cheapest(nets: Sequence[Served]) -> Rule:
    """Return the cheapest net all the time (INFaaS without a floor of accuracy)."""
    # a large batch, as the time of one request is mostly overhead and its noise
    return fixed(nets, min(range(len(nets)), key=lambda at: nets[at].takes(nets[at].most)))


def _largest(nets: Sequence[Served], at: int, slack: float, waiting: int) -> Choice | None:
    fits = [size for size, time in nets[at].seconds if time <= slack]
    return Choice(at, min(waiting, max(fits))) if fits else None
