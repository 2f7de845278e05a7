"""Reference implementation of the search in plain Python, for property tests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

Cut = tuple[float, float]
Point = tuple[float, float]


def list_cuts(scores: Sequence[float], *, two_sided: bool) -> list[Cut]:
    """List every cut of one gate that separates these scores differently."""
    edges = [-math.inf, *sorted(set(scores))[1:], math.inf]
    if not two_sided:
        return [(-math.inf, edge) for edge in edges]
    return [(-math.inf, -math.inf)] + [(a, b) for a in edges for b in edges if a < b]


def run_cascade(
    score: Sequence[Sequence[float]],
    loss: Sequence[Sequence[float]],
    cost: Sequence[Sequence[float]],
    cuts: Sequence[Cut],
) -> Point:
    """Evaluate models in order for each row, and return the mean (loss, cost)."""
    total_loss = total_cost = 0.0
    for scores, losses, costs in zip(score, loss, cost, strict=True):
        model = 0
        total_cost += costs[0]
        while model < len(cuts) and cuts[model][0] <= scores[model] < cuts[model][1]:
            model += 1
            total_cost += costs[model]
        total_loss += losses[model]
    return total_loss / len(loss), total_cost / len(loss)


def list_points(
    score: Sequence[Sequence[float]],
    loss: Sequence[Sequence[float]],
    cost: Sequence[Sequence[float]],
    *,
    two_sided: bool = False,
) -> Iterator[Point]:
    """Yield the mean (loss, cost) of every vector of cuts at distinct scores."""
    gates = range(len(loss[0]) - 1)
    choices = [list_cuts([row[gate] for row in score], two_sided=two_sided) for gate in gates]
    return (run_cascade(score, loss, cost, cuts) for cuts in product(*choices))


def select_non_dominated(points: Sequence[Point]) -> list[Point]:
    """Select the undominated (loss, cost) points, by ascending cost."""
    return sorted((p for p in set(points) if not any(_dominates(q, p) for q in points)), key=lambda p: p[1])


def _dominates(q: Point, p: Point) -> bool:
    return q[0] <= p[0] and q[1] <= p[1] and q != p
