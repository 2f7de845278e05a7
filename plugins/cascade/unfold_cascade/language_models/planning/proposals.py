"""Routes to choose from: found by the exact search on plug-in losses, judged by counts.

At some 300 tuning rows the exact search on 0/1 losses overfits. It therefore minimizes the expected loss ``1 - p``
under the calibrated score p, and the 0/1 losses of the tuning rows judge the points of that front afterwards. The
expected loss is no estimate: it ignores that a request reaches a later model because earlier ones were unsure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.gates.exact_search import search_exact_front
from unfold_cascade.gates.pareto import Front
from unfold_cascade.language_models.planning.call_log import CallLog, Route, find_entries
from unfold_cascade.language_models.planning.prompt_gate import EntryRule

BINS = {3: 320, 4: 66, 5: 24}
"""Thresholds tried per gate, by the length of the chain; a pair tries all."""
POINTS = 200
"""Points of the front of a chain which are judged."""


def search_chain(
    log: CallLog, score: FloatArray, chain: tuple[int, ...], points: int = POINTS, entry: EntryRule | None = None
) -> list[Route]:
    """Search the cuts of one chain by expected loss, thinned to equal steps of cost.

    With an entry rule the tables are those of the models that a request does not skip, so the same search is exact.

    Returns:
        the routes by ascending cost.
    """
    if len(chain) == 1:
        return [Route(chain, ())]
    tables = _chain_tables(log, score, chain)
    if entry is not None:
        tables = _skip_models(tables, find_entries(log, Route(chain, (), entry)))
    front = search_exact_front(*tables, bins=BINS.get(len(chain)))
    kept = thin_by_cost(front, points)
    return [simplify_route(chain, front.cuts[point, :, 1].tolist(), entry) for point in kept]


def simplify_route(chain: tuple[int, ...], cuts: Sequence[float], entry: EntryRule | None = None) -> Route:
    """Leave out the models which never answer: those after a gate that trusts all, and those which no gate trusts."""
    models: list[int] = []
    finite: list[float] = []
    for model, cut in zip(chain, [*cuts, -np.inf], strict=True):
        if cut == np.inf:
            continue
        models.append(model)
        if cut == -np.inf:
            break
        finite.append(cut)
    return Route(tuple(models), tuple(finite), entry if len(models) > 1 else None)


def thin_by_cost(front: Front, points: int) -> IntArray:
    """Select the points of a front which are nearest to equal steps of cost, both ends among them."""
    targets = np.linspace(front.cost[0], front.cost[-1], points)
    after = np.minimum(np.searchsorted(front.cost, targets), len(front) - 1)
    before = np.maximum(after - 1, 0)
    is_nearer = targets - front.cost[before] < front.cost[after] - targets
    return np.unique(np.where(is_nearer, before, after))


def _skip_models(
    tables: tuple[FloatArray, FloatArray, FloatArray], entries: IntArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Let the models before an entry cost nothing, never be trusted, and lose if a gate trusts them anyway."""
    score, loss, cost = (table.copy() for table in tables)
    is_skipped = np.arange(loss.shape[1]) < entries[:, None]
    score[is_skipped[:, :-1]] = -np.inf
    loss[is_skipped] = 1.0
    cost[is_skipped] = 0.0
    return score, loss, cost


def _chain_tables(log: CallLog, score: FloatArray, chain: tuple[int, ...]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Build score, expected loss and marginal cost of a chain.

    The cuts of the search are ``score < lo or score >= hi``: with ``lo = -inf`` a row exits from ``hi`` upwards.
    """
    models = list(chain)
    expected = np.where(np.isfinite(score[:, models]), 1.0 - score[:, models], 1.0 - log.trusted_correct[:, models])
    if log.is_gated_correct is not None:
        # the last model answers without votes, and its score is that of a majority
        expected[:, -1] = 1.0 - log.is_correct[:, models[-1]]
    cost = log.cost[:, models] + np.where(np.arange(len(models)) < len(models) - 1, log.confidence_cost[:, models], 0.0)
    return score[:, models[:-1]], expected, cost
