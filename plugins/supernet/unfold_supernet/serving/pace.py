"""How much longer than its profile a batch takes now, and rules that go by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unfold_supernet.serving.policies import Choice, Rule, Served, slower

UP, DOWN = 1.018, 0.998
STEPS = 20
"""In which the pace of a factor of e is cut: a rule is made for each."""
Make = Callable[[Sequence[Served]], Rule]


@dataclass(slots=True)
class Pace:
    """How much longer than its profile a batch takes now, learned as batches pass: where nine in ten are quicker."""

    scale: float = 1.0

    def learn(self, expected: float, seconds: float) -> None:
        """Take a measured batch into account."""
        slower = seconds > self.scale * expected
        self.scale = min(max(self.scale * (UP if slower else DOWN), 0.5), 20.0)


def paced(make: Make, nets: Sequence[Served], pace: Pace) -> Rule:
    """Return the rule that ``make`` gives for the nets, at each choice by their times at the pace of now."""
    made: dict[int, Rule] = {}

    def choose(slack: float, waiting: int) -> Choice | None:
        step = round(math.log(pace.scale) * STEPS)
        if step not in made:
            made[step] = make(slower(nets, math.exp(step / STEPS)))
        return made[step](slack, waiting)

    return choose
