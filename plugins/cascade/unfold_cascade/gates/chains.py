"""Search over chains: which models to evaluate and in which order, with all their cuts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Literal

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.gates.exact_search import evaluate_cuts, search_exact_front
from unfold_cascade.gates.pareto import Front, find_pareto_points

Chain = tuple[int, ...]
Order = Literal["sorted", "all"]
Tables = tuple[FloatArray, FloatArray, FloatArray]


@dataclass(frozen=True, slots=True)
class ChainFront:
    """The Pareto front over several chains.

    Attributes:
        front: (m) points with (m, G, 2) cuts, G the gates of the longest chain; shorter chains are padded with
            ``(-inf, -inf)``.
        chain: (m,) index of the chain of each point.
        chains: Models of each chain, in execution order.
    """

    front: Front
    chain: IntArray
    chains: tuple[Chain, ...]

    def policy(self, point: int) -> tuple[Chain, FloatArray]:
        """Return the chain of a point and its (len(chain) - 1, 2) cuts."""
        chain = self.chains[self.chain[point]]
        return chain, self.front.cuts[point, : len(chain) - 1]


def search_all_chains(
    score: FloatArray,
    loss: FloatArray,
    price: FloatArray,
    *,
    order: Order = "sorted",
    max_models: int = 3,
    bins: int | None = None,
) -> ChainFront:
    """Search the exact front over all chains of up to ``max_models`` models, single models included.

    Args:
        score: (n, M) score that the gate of each model reads.
        loss: (n, M) loss of each model's answer.
        price: (n, M) or (M,) cost of a call of each model.
        order: "sorted" takes the chains of ascending mean price only, "all" every order.
        max_models: Longest chain, from 1 to 5.
        bins: Bins per gate, as for ``search_exact_front``.

    Returns:
        The merged front; of equal points that of the shorter, earlier chain.
    """
    mean_price = np.broadcast_to(price, loss.shape).mean(axis=0)
    chains = list_chains(mean_price, order=order, max_models=max_models)
    return search_chains(chains, lambda c: select_chain_tables(score, loss, price, c), bins=bins)


def list_chains(price: FloatArray, *, order: Order, max_models: int) -> tuple[Chain, ...]:
    """List the chains to search, shorter ones first.

    Args:
        price: (M,) mean cost of a call of each model.
        order: "sorted" takes the chains of ascending price only, "all" every order.
        max_models: Longest chain.
    """
    models = [int(model) for model in np.argsort(price, kind="stable")]
    lengths = range(1, min(max_models, len(models)) + 1)
    arrange = permutations if order == "all" else combinations
    return tuple(chain for length in lengths for chain in arrange(models, length))


def select_chain_tables(score: FloatArray, loss: FloatArray, price: FloatArray, chain: Chain) -> Tables:
    """Select score (n, K-1), loss (n, K) and cost (n, K) or (K,) of a chain; its last model has no gate."""
    models = list(chain)
    return score[:, models[:-1]], loss[:, models], price[..., models]


def search_chains(
    chains: Iterable[Chain],
    tables: Callable[[Chain], Tables],
    *,
    bins: int | None = None,
    also: Callable[[Tables], Iterable[FloatArray]] = lambda _tables: (),
) -> ChainFront:
    """Merge the exact fronts of some chains.

    Args:
        chains: Chains to search, at least one.
        tables: Computes score (n, K-1), loss (n, K) and marginal cost (n, K) or (K,) of a chain. Features that
            an earlier model paid for may cost nothing, and scores may depend on earlier predictions.
        bins: Bins per gate, as for ``search_exact_front``.
        also: Computes more (G, 2) cuts of a chain to try, beside those of the exact search over bins.

    Raises:
        ValueError: There is no chain, or ``search_exact_front`` rejects a table.
    """
    chains = tuple(chains)
    fronts = []
    for chain in chains:
        table = tables(chain)
        exact = search_exact_front(*table, bins=bins)
        fronts.append(_append_cuts(exact, table, also(table)))
    gates = max(front.cuts.shape[1] for front in fronts)
    merged = Front(
        np.concatenate([front.loss for front in fronts]),
        np.concatenate([front.cost for front in fronts]),
        np.concatenate([_pad_gates(front.cuts, gates) for front in fronts]),
    )
    best = find_pareto_points(merged.loss, merged.cost)
    origin = np.repeat(np.arange(len(fronts)), [len(front) for front in fronts])
    return ChainFront(merged.take(best), origin[best], chains)


def _append_cuts(front: Front, table: Tables, more: Iterable[FloatArray]) -> Front:
    """Append points with the cuts ``more``; the result is not sorted."""
    cuts = list(more)
    if not cuts:
        return front
    loss, cost = np.array([evaluate_cuts(*table, each) for each in cuts]).T
    return Front(
        np.concatenate((front.loss, loss)),
        np.concatenate((front.cost, cost)),
        np.concatenate((front.cuts, np.array(cuts))),
    )


def _pad_gates(cuts: FloatArray, gates: int) -> FloatArray:
    missing = gates - cuts.shape[1]
    return np.pad(cuts, ((0, 0), (0, missing), (0, 0)), constant_values=-np.inf)
