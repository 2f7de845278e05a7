"""The paper's greedy search, HARDGATING: one gate at a time under a budget (UnfoldML, Algorithm 1).

At gate j the rows with ``score < cut`` pass on to model j + 1 and pay for it. Under a budget, greedy takes the cut of
least loss that the remaining budget allows, of equal losses the cheapest. What gate 1 spends is lost to gate 2: compare
``search_exact_front``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.gates.exact_search import check_tables
from unfold_cascade.gates.pareto import find_pareto_points


@dataclass(frozen=True, slots=True)
class GreedyPolicy:
    """One vector of cuts with its mean loss and mean cost; ``cuts`` is (G, 2) as in ``Front``."""

    loss: float
    cost: float
    cuts: FloatArray


@dataclass(frozen=True, slots=True)
class GreedyProblem:
    """(G, n) bins of the scores among the candidate cuts of each gate, (n, K) losses and (n, K) costs."""

    bins: IntArray
    loss: FloatArray
    cost: FloatArray
    candidates: tuple[FloatArray, ...]


@dataclass(frozen=True, slots=True)
class GreedyState:
    """Cuts so far, the (n,) rows that pass all of them, total loss and cost, and the budgets [floor, ceiling)."""

    cuts: tuple[float, ...]
    is_passing: BoolArray
    loss: float
    cost: float
    floor: float = -math.inf
    ceiling: float = math.inf


def search_greedy_for_loss(
    score: FloatArray,
    loss: FloatArray,
    cost: FloatArray,
    target: float,
    *,
    bins: int = 64,
    candidates: Sequence[FloatArray] | None = None,
) -> GreedyPolicy | None:
    """Search the smallest budget under which greedy reaches a target loss, and return its policy.

    The cut at a gate changes only at the costs of undominated cuts, so the intervals between these cover all budgets.

    Args:
        score: (n, G) score that gate j reads, as for ``search_exact_front``.
        loss: (n, K) loss of model j's prediction, K = G + 1.
        cost: (n, K) or (K,) marginal cost of model j.
        target: Mean loss per row to reach.
        bins: Cuts to try per gate, evenly from 0 to 1 (the paper's nBins and maxA).
        candidates: G ascending arrays of cuts to try instead.

    Returns:
        The policy, or ``None`` if no budget reaches the target.

    Raises:
        ValueError: Shapes do not match, there is no row, or a value is not finite.
    """
    grids = [np.linspace(0.0, 1.0, bins)] * score.shape[1] if candidates is None else candidates
    problem = build_greedy_problem(score, loss, cost, grids)
    state = _search_budgets(problem, start_greedy(problem), target)
    return None if state is None else build_greedy_policy(problem, state)


def build_greedy_problem(
    score: FloatArray, loss: FloatArray, cost: FloatArray, grids: Sequence[FloatArray]
) -> GreedyProblem:
    """Sort the scores of each gate into the bins between its cuts; a cut at which all rows exit is added."""
    candidates = tuple(np.unique(np.concatenate(([-np.inf], grid))) for grid in grids)
    score, loss, cost = check_tables(score, loss, cost)
    columns = [np.searchsorted(cuts, column, side="right") for cuts, column in zip(candidates, score.T, strict=True)]
    bins = np.array(columns, dtype=np.int64).reshape(score.shape[::-1])
    return GreedyProblem(bins, loss, np.broadcast_to(cost, loss.shape), candidates)


def start_greedy(problem: GreedyProblem) -> GreedyState:
    """Return the state before the first gate: every row is evaluated by model 1."""
    everything = np.ones(len(problem.loss), dtype=np.bool_)
    return GreedyState((), everything, float(problem.loss[:, 0].sum()), float(problem.cost[:, 0].sum()))


def total_after_cuts(problem: GreedyProblem, state: GreedyState) -> tuple[FloatArray, FloatArray]:
    """Compute the total loss and the total cost after each candidate cut of the next gate."""
    gate, rows = len(state.cuts), state.is_passing
    size, bins = problem.candidates[gate].size, problem.bins[gate, rows]
    loss_change = problem.loss[rows, gate + 1] - problem.loss[rows, gate]
    call_cost = problem.cost[rows, gate + 1]
    losses = state.loss + np.cumsum(np.bincount(bins, loss_change, size + 1), dtype=np.float64)[:size]
    costs = state.cost + np.cumsum(np.bincount(bins, call_cost, size + 1), dtype=np.float64)[:size]
    return losses, costs


def apply_cut(
    problem: GreedyProblem, state: GreedyState, candidate: int, losses: FloatArray, costs: FloatArray
) -> GreedyState:
    """Advance by one gate with one of its candidate cuts."""
    gate = len(state.cuts)
    cut = float(problem.candidates[gate][candidate])
    is_passing = state.is_passing & (problem.bins[gate] <= candidate)
    return GreedyState((*state.cuts, cut), is_passing, float(losses[candidate]), float(costs[candidate]))


def build_greedy_policy(problem: GreedyProblem, state: GreedyState) -> GreedyPolicy:
    """Convert the final state to means per row."""
    rows = len(problem.loss)
    cuts = np.array([(-math.inf, cut) for cut in state.cuts]).reshape(-1, 2)
    return GreedyPolicy(state.loss / rows, state.cost / rows, cuts)


def _search_budgets(problem: GreedyProblem, state: GreedyState, target: float) -> GreedyState | None:
    """Return the final state of the lowest interval of budgets in which greedy reaches the target."""
    if len(state.cuts) == len(problem.candidates):
        return state if state.loss / len(problem.loss) <= target else None
    losses, costs = total_after_cuts(problem, state)
    candidates = find_pareto_points(losses, costs)
    ends = [*costs[candidates[1:]].tolist(), math.inf]
    for candidate, end in zip(candidates.tolist(), ends, strict=True):
        floor, ceiling = max(state.floor, float(costs[candidate])), min(state.ceiling, end)
        if floor < ceiling:
            after = apply_cut(problem, state, candidate, losses, costs)
            bounded = GreedyState(after.cuts, after.is_passing, after.loss, after.cost, floor, ceiling)
            final = _search_budgets(problem, bounded, target)
            if final is not None:
                return final
    return None
