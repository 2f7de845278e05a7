"""One more hour of many cases: what ``moves`` does to whole trajectories, for rows that come one at a time.

The order in which models are asked, and what is bought for them, is that of ``walk_kernel``; a test holds the two
together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unfold_cascade._types import IntArray
from unfold_cascade.schema.temporal import Moves
from unfold_cascade.temporal.data.features import Purchase
from unfold_cascade.temporal.simulation.trajectories import Ladder

Ask = Callable[[int, Sequence[int], tuple[float, ...]], Sequence[float]]
Free = Callable[[int, int, Sequence[int]], bool]


@dataclass(slots=True)
class Trail:
    """Where a case stands in its (S,) stages: those entered, hours in a row that said yes, models to begin with."""

    entered: list[bool]
    streak: list[int]
    begin: list[int]


@dataclass(frozen=True, slots=True)
class Rung:
    """One stage: the models asked in turn, and the cuts of each, equal for the last; ``owned`` as in ``Ladder``."""

    chain: tuple[int, ...]
    spans: tuple[tuple[float, float], ...]
    owned: tuple[tuple[float, float], ...]
    parallel: bool


@dataclass(frozen=True, slots=True)
class Heard:
    """What one model said in one hour."""

    stage: int
    model: int
    p: float
    span: tuple[float, float]

    @property
    def verdict(self) -> str:
        """ICK1: sure to move on; ICK0: sure to stay; IDK: the next model is asked."""
        return "ICK1" if self.p >= self.span[1] else "ICK0" if self.p < self.span[0] else "IDK"


def rungs(ladder: Ladder) -> tuple[Rung, ...]:
    """Return the stages of a ladder, without what fills its rows up."""
    found = []
    for s, row in enumerate(ladder.chain):
        length = int((row >= 0).sum())
        spans = zip(ladder.lo[s, :length].tolist(), ladder.hi[s, :length].tolist(), strict=True)
        owned = zip(*ladder.owned[:, s, :length].tolist(), strict=True)
        found.append(Rung(tuple(row[:length].tolist()), tuple(spans), tuple(owned), bool(ladder.parallel[s])))
    return tuple(found)


def start(stages: int) -> Trail:
    """Return the trail of a case that was never seen."""
    return Trail([False] * stages, [0] * stages, [0] * stages)


def step(
    ladder: Sequence[Rung], moves: Moves, trails: Sequence[Trail], ask: Ask, free: Free
) -> tuple[list[int], list[list[Heard]]]:
    """Take every case through one hour: trails are changed in place.

    Args:
        ladder: the stages.
        moves: how cases move through them.
        trails: where each of B cases stands.
        ask: gives the answers of a model for some of the cases; told the cuts that they may be compared with.
        free: tells whether a case would buy nothing for a model, after others that were asked in this hour.

    Returns:
        the (B,) stage of each case, 0 for none, and what its models said in the order in which they were asked.
    """
    heard: list[list[Heard]] = [[] for _ in trails]
    asks, alarm = [True] * len(trails), [False] * len(trails)
    for s, rung in enumerate(ladder):
        here = [
            i
            for i, trail in enumerate(trails)
            if not trail.entered[-1] and not trail.entered[s] and (rung.parallel or asks[i])
        ]
        _asked(rung, s, {i: trails[i].begin[s] for i in here}, ask, free, heard)
        for i in here:
            moved = _settle(trails[i], s, heard[i], rung, moves)
            alarm[i] = moved if s == len(ladder) - 1 else alarm[i]
            trails[i].entered[s] = moved and (s < len(ladder) - 1 or moves.alarm == "latched")
            asks[i] = asks[i] if rung.parallel else moved and moves.advance == "same-step"
    return [_stage(trail, alarm[i]) for i, trail in enumerate(trails)], heard


def _asked(rung: Rung, s: int, left: dict[int, int], ask: Ask, free: Free, heard: list[list[Heard]]) -> None:
    """Ask the models of one stage until each case is decided, the cases at the same model together."""
    while left:
        place = min(left.values())
        rows, model = [i for i, at in left.items() if at == place], rung.chain[place]
        for i, p in zip(rows, ask(model, rows, (*rung.spans[place], *rung.owned[place])), strict=True):
            heard[i].append(Heard(s, model, p, _span(rung, place, i, heard[i], free)))
            left[i] = place + 1
            if heard[i][-1].verdict != "IDK":
                del left[i]


def _span(rung: Rung, place: int, case: int, heard: Sequence[Heard], free: Free) -> tuple[float, float]:
    """Return the cuts that count: those for what is owned, if the next model would buy nothing."""
    if rung.owned[place] == rung.spans[place]:
        return rung.spans[place]
    asked = [*(item.model for item in heard), rung.chain[place]]
    return rung.owned[place] if free(case, rung.chain[place + 1], asked) else rung.spans[place]


def _settle(trail: Trail, s: int, heard: Sequence[Heard], rung: Rung, moves: Moves) -> bool:
    """Keep what the stage said of this hour; return whether the case moves on."""
    last = heard[-1]
    yes, place = last.verdict == "ICK1", rung.chain.index(last.model)
    trail.begin[s] = max(place if yes else place - 1, 0) if moves.entry == "sticky" else 0
    trail.streak[s] = trail.streak[s] + 1 if yes else 0
    return trail.streak[s] >= moves.confirm


def _stage(trail: Trail, alarm: bool) -> int:
    stages = len(trail.entered)
    if alarm or trail.entered[-1]:
        return stages
    return max((s + 1 for s in range(stages - 1) if trail.entered[s]), default=0)


def bought(needs: int, hour: float, purchase: Purchase, since: list[float]) -> list[int]:
    """Return the groups that a call must buy at this hour; ``since`` (G,), when each was bought last, is changed."""
    found = []
    for g, valid in enumerate(purchase.valid_h.tolist()):
        if needs >> g & 1 and hour >= since[g] + valid and since[g] != hour:
            since[g] = hour
            found.append(g)
    return found


def owns(
    needs: IntArray, model: int, asked: Sequence[int], hour: float, purchase: Purchase, since: Sequence[float]
) -> bool:
    """Return whether a model costs no purchase at this hour, after those asked in it; ``since`` stays as it is."""
    then = list(since)
    for before in asked:
        bought(int(needs[before]), hour, purchase, then)
    return not any(purchase.price[group] for group in bought(int(needs[model]), hour, purchase, then))


def never(purchase: Purchase) -> list[float]:
    """Return the hours of the last purchases of a case that was never seen."""
    return [-math.inf] * len(purchase.valid_h)
