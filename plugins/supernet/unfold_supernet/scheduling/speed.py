"""How much longer than its profile a batch takes now, and rules that go by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unfold_supernet.scheduling.policies import Choice, Rule, Served, slower

UP, DOWN, EVEN = 1.018, 0.998, 1.006
STEPS = 20
"""In which the pace of a factor of e is cut: a rule is made for each."""
Make = Callable[[Sequence[Served]], Rule]


@dataclass(slots=True)
class Pace:
    """How much longer than its profile a batch takes now, learned as batches pass.

    ``scale`` is where nine in ten are quicker, ``usual`` where half are.
    """

    scale: float = 1.0
    usual: float = 1.0

    def learn(self, expected: float, seconds: float) -> None:
        """Take a measured batch into account."""
        factor = seconds / expected
        self.scale = min(max(self.scale * (UP if factor > self.scale else DOWN), 0.5), 20.0)
        self.usual = min(max(self.usual * (EVEN if factor > self.usual else 1 / EVEN), 0.5), 20.0)


def paced(make: Make, nets: Sequence[Served], pace: Pace) -> Rule:
    """Return the rule that ``make`` gives for the nets, at each choice by their times at the pace of now.

    A crowd takes many batches, whose sum goes by the usual pace; the one that is started must be in time even if it is
    a slow one, else the rule decides by slow ones.
    """
    made: dict[int, Rule] = {}

    def at(scale: float) -> Rule:
        step = round(math.log(scale) * STEPS)
        if step not in made:
            made[step] = make(slower(nets, math.exp(step / STEPS)))
        return made[step]

    def choose(slack: float, waiting: int) -> Choice | None:
        choice = at(pace.usual)(slack, waiting)
        if choice and nets[choice.net].takes(min(choice.batch, waiting)) * pace.scale <= slack:
            return choice
        return at(max(pace.scale, pace.usual))(slack, waiting)

    return choose
