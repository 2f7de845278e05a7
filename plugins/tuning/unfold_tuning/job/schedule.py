"""Stage tables of successive halving, Hyperband, random search and custom lists.

A stage ends at a barrier: every trial has reported, the best go on. How many go on is known before the first trial
starts, which is what makes the job plannable (RubberBand, EuroSys 2021, abstract). The end rules of successive
halving differ between texts; ours are stated at :func:`successive_halving`, and every report prints the table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest


@dataclass(frozen=True, slots=True)
class Group:
    """``trials`` of one bracket that each run ``iters`` further iterations, having run ``done`` before."""

    trials: int
    iters: int
    done: int = 0
    bracket: int = 0


@dataclass(frozen=True, slots=True)
class Stage:
    """What runs between two barriers: one group, or one of each bracket where brackets run side by side."""

    groups: tuple[Group, ...]

    @property
    def trials(self) -> int:
        """How many trials run in the stage."""
        return sum(group.trials for group in self.groups)

    @property
    def work(self) -> int:
        """Trial-iterations of the stage."""
        return sum(group.trials * group.iters for group in self.groups)

    def lengths(self) -> list[int]:
        """Return the iterations of each trial, longest first (the order in which they are started)."""
        return sorted((group.iters for group in self.groups for _ in range(group.trials)), reverse=True)


def successive_halving(trials: int, min_iters: int, max_iters: int, eta: int) -> tuple[Stage, ...]:
    """Return the stages of SHA(n, r, R, eta).

    Cumulative targets are ``c_i = min(r * eta**i, R)``; ``n_i = max(1, n_{i-1} // eta)``. The last stage is the first
    that reaches R or has one trial, and its survivors run on to R.
    """
    stages, done, target, count = [], 0, min_iters, trials
    while True:
        last = target >= max_iters or count == 1
        target = max_iters if last else target
        stages.append(Stage((Group(count, target - done, done),)))
        if last:
            return tuple(stages)
        done, target, count = target, min(target * eta, max_iters), max(1, count // eta)


def hyperband(max_iters: int, eta: int, *, parallel: bool = False) -> tuple[Stage, ...]:
    """Return the stages of Hyperband(R, eta): its brackets one after another, or side by side.

    Bracket s = s_max..0 starts ``ceil((s_max+1)/(s+1) * eta**s)`` trials and has s + 1 stages, which end when a trial
    has run ``R * eta**-s``, ..., ``R/eta``, R iterations (Li et al., JMLR 2018, algorithm 1; fractions of an iteration
    are rounded down).
    """
    top = int(math.log(max_iters) / math.log(eta) + 1e-9)
    brackets = [_bracket(max_iters, eta, top, s) for s in range(top, -1, -1)]
    return side_by_side(brackets) if parallel else tuple(stage for bracket in brackets for stage in bracket)


def _bracket(max_iters: int, eta: int, top: int, s: int) -> list[Stage]:
    trials, done, found = -(-(top + 1) * eta**s // (s + 1)), 0, []
    for rung in range(s, -1, -1):
        target = max_iters // eta**rung
        found.append(Stage((Group(trials, target - done, done, top - s),)))
        trials, done = max(1, trials // eta), target
    return found


def side_by_side(brackets: Sequence[Sequence[Stage]]) -> tuple[Stage, ...]:
    """Return brackets that share a cluster: their first stages together, then their second, with a common barrier."""
    rows = zip_longest(*brackets)
    return tuple(Stage(tuple(group for stage in row if stage for group in stage.groups)) for row in rows)


def random_search(trials: int, iters: int) -> tuple[Stage, ...]:
    """Return the one stage of a random search."""
    return (Stage((Group(trials, iters),)),)


def custom(counts: Sequence[tuple[int, int]]) -> tuple[Stage, ...]:
    """Return stages from ``(trials, further iterations)``; where trials grow again a new bracket begins."""
    stages: list[Stage] = []
    group = Group(0, 0, bracket=-1)
    for trials, iters in counts:
        fresh = trials > group.trials
        done = 0 if fresh else group.done + group.iters
        group = replace(group, trials=trials, iters=iters, done=done, bracket=group.bracket + fresh)
        stages.append(Stage((group,)))
    return tuple(stages)
