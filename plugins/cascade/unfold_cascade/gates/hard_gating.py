"""The paper's HARDGATING: one gate at a time under a budget (Algorithm 1, reconstructed in section 1.5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.gates.exact import check_tables
from unfold_cascade.gates.pareto import find_pareto_points


@dataclass(frozen=True, slots=True)
class GreedyPolicy:
    """One vector of cuts with its mean loss and mean cost; ``cuts`` is (G, 2) as in ``Front``."""

    loss: float
    cost: float
    cuts: FloatArray


@dataclass(frozen=True, slots=True)
class _Problem:
    bins: IntArray
    loss: FloatArray
    cost: FloatArray
    candidates: tuple[FloatArray, ...]


@dataclass(frozen=True, slots=True)
class _Step:
    """Cuts of the gates passed, rows that are left, totals reached, and budgets [floor, ceiling)."""

    cuts: tuple[float, ...]
    reached: BoolArray
    loss: float
    cost: float
    floor: float = -math.inf
    ceiling: float = math.inf


def hard_gating(
    score: FloatArray,
    loss: FloatArray,
    cost: FloatArray,
    budget: float,
    *,
    max_cut: float = 1.0,
    bins: int = 64,
    candidates: Sequence[FloatArray] | None = None,
) -> GreedyPolicy | None:
    """Set one gate after the other to the cut of least loss that the rest of the budget allows.

    All rows start at model 1. At gate j the rows with ``score < cut`` move on to model j + 1 and pay for
    it; of equal losses the cheapest cut is taken. Money that gate 1 spends is lost to gate 2: compare
    ``exact_front``.

    Args:
        score: (n, G) score that gate j reads, as for ``exact_front``.
        loss: (n, K) loss of model j's answer, K = G + 1.
        cost: (n, K) or (K,) cost of asking model j once the row got there.
        budget: Mean cost per row that may be spent.
        max_cut: Upper bound on the cuts, the paper's maxA.
        bins: Cuts tried per gate, evenly from 0 to ``max_cut``, the paper's nBins.
        candidates: G ascending arrays of cuts to try instead.

    Returns:
        The policy, or None where model 1 alone exceeds the budget.

    Raises:
        ValueError: Shapes do not agree, there is no row, or a value is not finite.
    """
    problem = _problem(score, loss, cost, _candidates(score, max_cut, bins, candidates))
    step, rows = _start(problem), len(problem.loss)
    if step.cost / rows > budget:
        return None
    for _ in problem.candidates:
        losses, costs = _moves(problem, step)
        choices = find_pareto_points(losses, costs)
        within = np.searchsorted(costs[choices] / rows, budget, side="right") - 1
        step = _moved(problem, step, int(choices[within]), losses, costs)
    return _policy(problem, step)


def search_greedy_for_loss(
    score: FloatArray,
    loss: FloatArray,
    cost: FloatArray,
    target: float,
    *,
    max_cut: float = 1.0,
    bins: int = 64,
    candidates: Sequence[FloatArray] | None = None,
) -> GreedyPolicy | None:
    """Return what ``hard_gating`` finds under the smallest budget that brings its loss down to a target.

    The choice at a gate changes only at the costs of its non-dominated cuts, so all budgets are covered by
    the intervals between them; no budget is tried in vain.

    Args:
        score: (n, G) score that gate j reads, as for ``exact_front``.
        loss: (n, K) loss of model j's answer, K = G + 1.
        cost: (n, K) or (K,) cost of asking model j once the row got there.
        target: Mean loss per row to reach.
        max_cut: Upper bound on the cuts.
        bins: Cuts tried per gate, evenly from 0 to ``max_cut``.
        candidates: G ascending arrays of cuts to try instead.

    Returns:
        The policy, or None where no budget reaches the target.

    Raises:
        ValueError: Shapes do not agree, there is no row, or a value is not finite.
    """
    problem = _problem(score, loss, cost, _candidates(score, max_cut, bins, candidates))
    found = _cheapest(problem, _start(problem), target)
    return None if found is None else _policy(problem, found)


def _candidates(
    score: FloatArray, max_cut: float, bins: int, given: Sequence[FloatArray] | None
) -> tuple[FloatArray, ...]:
    grids = [np.linspace(0.0, max_cut, bins)] * score.shape[1] if given is None else given
    return tuple(np.unique(np.concatenate(([-np.inf], grid))) for grid in grids)


def _problem(score: FloatArray, loss: FloatArray, cost: FloatArray, candidates: tuple[FloatArray, ...]) -> _Problem:
    score, loss, cost = check_tables(score, loss, cost)
    columns = [np.searchsorted(cut, s, side="right") for cut, s in zip(candidates, score.T, strict=True)]
    bins = np.array(columns, dtype=np.int64).reshape(score.shape[::-1])
    return _Problem(bins, loss, np.broadcast_to(cost, loss.shape), candidates)


def _start(problem: _Problem) -> _Step:
    everyone = np.ones(len(problem.loss), dtype=np.bool_)
    return _Step((), everyone, float(problem.loss[:, 0].sum()), float(problem.cost[:, 0].sum()))


def _moves(problem: _Problem, step: _Step) -> tuple[FloatArray, FloatArray]:
    """Return total loss and cost after each cut of the next gate."""
    gate, rows = len(step.cuts), step.reached
    size, bins = problem.candidates[gate].size, problem.bins[gate, rows]
    change = problem.loss[rows, gate + 1] - problem.loss[rows, gate]
    paid = problem.cost[rows, gate + 1]
    losses = step.loss + np.cumsum(np.bincount(bins, change, size + 1), dtype=np.float64)[:size]
    costs = step.cost + np.cumsum(np.bincount(bins, paid, size + 1), dtype=np.float64)[:size]
    return losses, costs


def _moved(problem: _Problem, step: _Step, choice: int, losses: FloatArray, costs: FloatArray) -> _Step:
    gate = len(step.cuts)
    cut = float(problem.candidates[gate][choice])
    reached = step.reached & (problem.bins[gate] <= choice)
    return _Step((*step.cuts, cut), reached, float(losses[choice]), float(costs[choice]))


def _cheapest(problem: _Problem, step: _Step, target: float) -> _Step | None:
    """Return the end of the first interval of budgets, from below, in which greedy reaches the target."""
    if len(step.cuts) == len(problem.candidates):
        return step if step.loss / len(problem.loss) <= target else None
    losses, costs = _moves(problem, step)
    choices = find_pareto_points(losses, costs)
    ends = [*costs[choices[1:]].tolist(), math.inf]
    for choice, end in zip(choices.tolist(), ends, strict=True):
        floor, ceiling = max(step.floor, float(costs[choice])), min(step.ceiling, end)
        if floor < ceiling:
            after = _moved(problem, step, choice, losses, costs)
            bounded = _Step(after.cuts, after.reached, after.loss, after.cost, floor, ceiling)
            found = _cheapest(problem, bounded, target)
            if found is not None:
                return found
    return None


def _policy(problem: _Problem, step: _Step) -> GreedyPolicy:
    rows = len(problem.loss)
    cuts = np.array([(-math.inf, cut) for cut in step.cuts]).reshape(-1, 2)
    return GreedyPolicy(step.loss / rows, step.cost / rows, cuts)
