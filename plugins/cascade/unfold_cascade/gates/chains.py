"""Search over chains: which models to ask and in which order, with all their cuts (section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.gates.evaluate import evaluate_cuts
from unfold_cascade.gates.exact import search_exact_front
from unfold_cascade.gates.pareto import Front, find_pareto_points

Chain = tuple[int, ...]
Order = Literal["sorted", "all"]
Tables = tuple[FloatArray, FloatArray, FloatArray]


@dataclass(frozen=True, slots=True)
class ChainFront:
    """The front over several chains; each point knows its chain.

    Attributes:
        front: (m) points with (m, G, 2) cuts, G the gates of the longest chain; a shorter chain is filled up
            with ``(-inf, -inf)``.
        chain: (m,) index into ``chains``.
        chains: Models of each chain searched, in the order in which they are asked.
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
    two_sided: bool = False,
) -> ChainFront:
    """Return the exact front over all chains of up to ``max_models`` models, single models included.

    Args:
        score: (n, M) score of each model, read by its gate.
        loss: (n, M) loss of each model's answer.
        price: (n, M) or (M,) cost of asking each model.
        order: "sorted" takes the chains of ascending mean price only, "all" every order.
        max_models: Models of a chain at most, from 1 to 5.
        bins: Bins a gate, as for ``search_exact_front``.
        two_sided: Search intervals, as for ``search_exact_front``.

    Returns:
        The merged front; of equal points the one of the shorter, earlier chain stays.
    """
    dearness = np.broadcast_to(price, loss.shape).mean(axis=0)
    chains = list_chains(dearness, order=order, max_models=max_models)
    return search_chains(chains, lambda c: select_chain_tables(score, loss, price, c), bins=bins, two_sided=two_sided)


def list_chains(price: FloatArray, *, order: Order, max_models: int) -> tuple[Chain, ...]:
    """Return the chains to search, the shorter ones first.

    Args:
        price: (M,) mean cost of asking each model.
        order: "sorted" takes the chains of ascending price only, "all" every order.
        max_models: Models of a chain at most.
    """
    models = [int(model) for model in np.argsort(price, kind="stable")]
    lengths = range(1, min(max_models, len(models)) + 1)
    chains = (chain for length in lengths for chain in permutations(models, length))
    rank = {model: place for place, model in enumerate(models)}
    keep = (lambda _: True) if order == "all" else (lambda c: list(c) == sorted(c, key=rank.__getitem__))
    return tuple(filter(keep, chains))


def select_chain_tables(score: FloatArray, loss: FloatArray, price: FloatArray, chain: Chain) -> Tables:
    """Return score (n, K-1), loss (n, K) and cost (n, K) or (K,) of a chain; the last model has no gate."""
    models = list(chain)
    return score[:, models[:-1]], loss[:, models], price[..., models]


def search_chains(
    chains: Iterable[Chain],
    tables: Callable[[Chain], Tables],
    *,
    bins: int | None = None,
    two_sided: bool = False,
    also: Callable[[Tables], Iterable[FloatArray]] = lambda _tables: (),
) -> ChainFront:
    """Merge the exact fronts of given chains.

    Args:
        chains: Chains to search, at least one.
        tables: Gives score (n, K-1), loss (n, K) and marginal cost (n, K) or (K,) of a chain. This is where a
            feature that an earlier model of the chain has paid for costs nothing, or where a score depends on
            what the chain has answered so far.
        bins: Bins a gate, as for ``search_exact_front``.
        two_sided: Search intervals, as for ``search_exact_front``.
        also: Gives (G, 2) cuts of a chain that are tried beside those of the exact search, which has its bins.

    Raises:
        ValueError: There is no chain, or a table is refused by ``search_exact_front``.
    """
    chains = tuple(chains)
    found = [tables(chain) for chain in chains]
    fronts = [_with(search_exact_front(*given, bins=bins, two_sided=two_sided), given, also(given)) for given in found]
    gates = max(front.cuts.shape[1] for front in fronts)
    merged = Front(
        np.concatenate([front.loss for front in fronts]),
        np.concatenate([front.cost for front in fronts]),
        np.concatenate([_padded(front.cuts, gates) for front in fronts]),
    )
    best = find_pareto_points(merged.loss, merged.cost)
    origin = np.repeat(np.arange(len(fronts)), [len(front) for front in fronts])
    return ChainFront(merged.take(best), origin[best], chains)


def _with(front: Front, given: Tables, more: Iterable[FloatArray]) -> Front:
    """Return a front with more points behind it, unsorted."""
    cuts = list(more)
    if not cuts:
        return front
    worth = np.array([evaluate_cuts(*given, one) for one in cuts])
    return Front(
        np.concatenate((front.loss, worth[:, 0])),
        np.concatenate((front.cost, worth[:, 1])),
        np.concatenate((front.cuts, np.array(cuts))),
    )


def _padded(cuts: FloatArray, gates: int) -> FloatArray:
    missing = gates - cuts.shape[1]
    return np.pad(cuts, ((0, 0), (0, missing), (0, 0)), constant_values=-np.inf)
