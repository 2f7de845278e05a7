"""Stage tables of successive halving, Hyperband, random search and custom lists.

A stage ends at a barrier: every trial has reported, and the best continue. Their number is known before the first
trial starts, which makes the job plannable (RubberBand, EuroSys 2021, abstract). Published end rules of successive
halving differ; :func:`build_successive_halving` states the one used here, and every report prints the table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import zip_longest


@dataclass(frozen=True, slots=True)
class Group:
    """``trials`` of one bracket that each run ``iters`` further iterations after ``done`` earlier ones."""

    trials: int
    iters: int
    done: int = 0
    bracket: int = 0


@dataclass(frozen=True, slots=True)
class Stage:
    """The trials between two barriers: one group, or one per bracket if brackets run in parallel."""

    groups: tuple[Group, ...]

    @property
    def trials(self) -> int:
        """Number of trials in the stage."""
        return sum(group.trials for group in self.groups)

    @property
    def trial_iterations(self) -> int:
        """Iterations that the stage runs in total: trials times iterations, summed over its groups."""
        return sum(group.trials * group.iters for group in self.groups)

    def list_iterations(self) -> list[int]:
        """List the iterations of each trial, longest first: the order in which trials start."""
        return sorted((group.iters for group in self.groups for _ in range(group.trials)), reverse=True)


def build_successive_halving(trials: int, min_iters: int, max_iters: int, eta: int) -> tuple[Stage, ...]:
    """Build the stages of SHA(n, r, R, eta).

    Cumulative targets are ``c_i = min(r * eta**i, R)``; ``n_i = max(1, n_{i-1} // eta)``. The last stage is the first
    that reaches R or has one trial; its survivors run to R.

    Args:
        trials: n, the trials of the first stage.
        min_iters: r, the iterations of the first stage.
        max_iters: R, the total iterations of a survivor.
        eta: The reduction factor.
    """
    stages, done, target, count = [], 0, min_iters, trials
    while True:
        is_last = target >= max_iters or count == 1
        target = max_iters if is_last else target
        stages.append(Stage((Group(count, target - done, done),)))
        if is_last:
            return tuple(stages)
        done, target, count = target, min(target * eta, max_iters), max(1, count // eta)


def build_hyperband(max_iters: int, eta: int, *, parallel: bool = False) -> tuple[Stage, ...]:
    """Build the stages of Hyperband(R, eta) (Li et al., JMLR 2018, algorithm 1).

    Bracket s = s_max..0 starts ``ceil((s_max+1)/(s+1) * eta**s)`` trials and has s + 1 stages, which end when a trial
    has run ``R * eta**-s``, ..., ``R/eta``, R iterations; fractions of an iteration are rounded down.

    Args:
        max_iters: R, the maximum iterations of a trial.
        eta: The reduction factor.
        parallel: Run the brackets side by side instead of one after another.
    """
    max_bracket = int(math.log(max_iters) / math.log(eta) + 1e-9)
    brackets = [_build_bracket(max_iters, eta, max_bracket, s) for s in range(max_bracket, -1, -1)]
    return merge_brackets(brackets) if parallel else tuple(stage for bracket in brackets for stage in bracket)


def _build_bracket(max_iters: int, eta: int, max_bracket: int, s: int) -> tuple[Stage, ...]:
    trials = -(-(max_bracket + 1) * eta**s // (s + 1))
    return _build_rungs(trials, [max_iters // eta**rung for rung in range(s, -1, -1)], eta, max_bracket - s)


@lru_cache(maxsize=64)
def build_brackets(method: str, trials: int, min_iters: int, max_iters: int, eta: int) -> tuple[tuple[Stage, ...], ...]:
    """Build the stages of each bracket of a method for a given number of trials.

    The brackets of Hyperband share the trials in the proportions of its own table, the largest first; with fewer trials
    than brackets, the first ones have a trial each. ASHA (Li et al., MLSys 2020) has the rungs of one bracket, of
    which each trial reaches the next as soon as it may.

    Args:
        method: ``sha``, ``hyperband`` or ``asha``.
        trials: Trials of all brackets together.
        min_iters: r, the iterations of the first stage.
        max_iters: R, the iterations of the last one.
        eta: The reduction factor.

    Raises:
        ValueError: The method is unknown.
    """
    if method == "sha":
        return (build_successive_halving(trials, min_iters, max_iters, eta),)
    largest = int(math.log(max_iters / min_iters) / math.log(eta) + 1e-9)
    if method == "asha":
        targets = [min_iters * eta**rung for rung in range(largest + 1)]
        return (_build_rungs(trials, [*(target for target in targets if target < max_iters), max_iters], eta, 0),)
    if method != "hyperband":
        raise ValueError(method)
    table = [_build_bracket(max_iters, eta, largest, s) for s in range(largest, -1, -1)]
    counts = share_proportionally(trials, [stages[0].trials for stages in table])
    return tuple(
        _build_rungs(count, [stage.groups[0].done + stage.groups[0].iters for stage in stages], eta, index)
        for index, (count, stages) in enumerate(zip(counts, table, strict=True))
        if count
    )


def _build_rungs(trials: int, targets: Sequence[int], eta: int, bracket: int) -> tuple[Stage, ...]:
    """Build the stages of a bracket; its trials have run ``targets`` iterations when they end."""
    stages, done = [], 0
    for target in targets:
        stages.append(Stage((Group(trials, target - done, done, bracket),)))
        trials, done = max(1, trials // eta), target
    return tuple(stages)


def share_proportionally(total: int, weights: Sequence[int]) -> list[int]:
    """Share a number in proportion to weights by largest remainders, at least 1 each as far as it goes."""
    counts = [1] * min(total, len(weights)) + [0] * (len(weights) - min(total, len(weights)))
    scale = max(total, 1) / sum(weights)
    while sum(counts) < total:
        # the one that lacks most of its share
        index = max(range(len(weights)), key=lambda item: (scale * weights[item] - counts[item], -item))
        counts[index] += 1
    return counts


def merge_brackets(brackets: Sequence[Sequence[Stage]]) -> tuple[Stage, ...]:
    """Merge brackets that share a cluster: the i-th stages of all brackets run together up to a common barrier."""
    rows = zip_longest(*brackets)
    return tuple(Stage(tuple(group for stage in row if stage for group in stage.groups)) for row in rows)


def build_random_search(trials: int, iters: int) -> tuple[Stage, ...]:
    """Build the single stage of a random search."""
    return (Stage((Group(trials, iters),)),)


def build_custom_stages(counts: Sequence[tuple[int, int]]) -> tuple[Stage, ...]:
    """Build stages from ``(trials, further iterations)``; where the number of trials grows, a new bracket begins."""
    stages: list[Stage] = []
    group = Group(0, 0, bracket=-1)
    for trials, iters in counts:
        is_new = trials > group.trials
        done = 0 if is_new else group.done + group.iters
        group = replace(group, trials=trials, iters=iters, done=done, bracket=group.bracket + is_new)
        stages.append(Stage((group,)))
    return tuple(stages)
