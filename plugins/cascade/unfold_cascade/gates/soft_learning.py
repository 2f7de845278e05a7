"""Gates that are learnt at several prices of cost, offered beside those of the exact search."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Literal

import numpy as np

from unfold_cascade._types import FloatArray
from unfold_cascade.gates.chains import Tables
from unfold_cascade.gates.induction import induce_gates
from unfold_cascade.gates.soft import learn_gates

Learnt = Literal["soft", "induction"]
LAMBDAS = (0.03, 0.1, 0.3, 1.0)
ROWS = 5000


def learnt_cuts(tables: Tables, kinds: Iterable[Learnt]) -> Iterator[FloatArray]:
    """Yield (G, 2) cuts of one chain: soft gates, hardened, or backward induction; nothing for a single model.

    Each price of cost is a share of what answering wrongly costs, against the dearest call of the chain. A gate of
    cases without time stops the confident, so a gate that would stop the others asks on always.

    Args:
        tables: score (n, G), loss (n, K) and cost (n, K) or (K,) of the chain, K = G + 1.
        kinds: how gates are learnt.
    """
    score, loss, cost = (table[:: max(len(tables[0]) // ROWS, 1)] for table in _rowwise(tables))
    score, mean = _heard(score), cost.mean(axis=0)
    for lam, kind in product(LAMBDAS if score.shape[1] else (), kinds):
        priced = lam / max(float(mean.max()), 1e-300)
        found = learn_gates(score, loss, mean, priced, 0).spans() if kind == "soft" else None
        yield _one_sided(induce_gates(score, loss, mean, priced, one_sided=True) if found is None else found)


def _rowwise(tables: Tables) -> Tables:
    score, loss, cost = tables
    return score, loss, np.broadcast_to(cost, loss.shape)


def _heard(score: FloatArray) -> FloatArray:
    """Return scores that a gradient can work on: in the place of none, one below all."""
    known = np.isfinite(score)
    low = np.min(score, axis=0, initial=np.inf, where=known)
    high = np.max(score, axis=0, initial=-np.inf, where=known)
    with np.errstate(invalid="ignore"):
        below = np.where(np.isfinite(low), low - np.maximum(high - low, 1.0), 0.0)
    return np.where(known, score, below)


def _one_sided(cuts: FloatArray) -> FloatArray:
    """Return the cuts with nothing stopped from below."""
    never = np.full(len(cuts), -np.inf)
    return np.stack((never, cuts[:, 1]), axis=1)
