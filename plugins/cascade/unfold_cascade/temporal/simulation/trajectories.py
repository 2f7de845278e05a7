"""What happens to a case hour after hour: complete trajectories through the stages (reference section 1.8).

At each hour the stage that a case is in asks its models from cheap to costly. A model that says ``p < lo`` is sure that
the case stays (ICK0), ``p >= hi`` that it moves on (ICK1); between the two (IDK) the next model is asked. Other cuts
may count where the next model would buy nothing. A case that moved on never comes back, so a false move is paid for in
every later hour.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfold_cascade._types import BoolArray, Float32, FloatArray, IntArray
from unfold_cascade.schema.temporal import Moves
from unfold_cascade.temporal.data.features import Purchase
from unfoldkit.jit import compiled

Int8 = NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Clock:
    """The hours of P entities: ``starts`` (P+1,) and ``hour`` (n,)."""

    starts: IntArray
    hour: FloatArray


@dataclass(frozen=True, slots=True)
class Zoo:
    """What every model says of every hour: (M, n) probabilities, and (M,) masks of the feature groups that it needs."""

    p: Float32
    needs: IntArray
    purchase: Purchase


@dataclass(frozen=True, slots=True)
class Ladder:
    """The stages of a policy.

    ``chain`` (S, K) are model numbers in the order asked, -1 beyond the end of a chain; ``lo`` and ``hi`` (S, K) their
    cuts, equal for the last of a chain, which must decide; ``parallel`` (S,) stages are asked at every hour. ``owned``
    (2, S, K) are the cuts that count where all that the next model reads is paid, so that asking it buys nothing.
    """

    chain: IntArray
    lo: FloatArray
    hi: FloatArray
    parallel: BoolArray
    owned: FloatArray


@dataclass(frozen=True, slots=True)
class Walk:
    """What happened.

    ``answer`` (n,) is the stage of each hour, 0 for none; ``asked`` (n, S) how many models of the stage were asked;
    ``calls`` (P, M) and ``buys`` (P, G) count the calls of models and purchases of feature groups of each entity.
    """

    answer: Int8
    asked: Int8
    calls: IntArray
    buys: IntArray


def walk(clock: Clock, zoo: Zoo, ladder: Ladder, moves: Moves) -> Walk:
    """Send every entity through the stages, from its first hour to its last."""
    return _walk(_compiled(), clock, zoo, ladder, moves)


def walk_plain(clock: Clock, zoo: Zoo, ladder: Ladder, moves: Moves) -> Walk:
    """Do the same without compiling anything: the reference of ``walk``."""
    return _walk(walk_kernel, clock, zoo, ladder, moves)


def _walk(kernel: Any, clock: Clock, zoo: Zoo, ladder: Ladder, moves: Moves) -> Walk:
    n, entities = len(clock.hour), len(clock.starts) - 1
    answer = np.zeros(n, dtype=np.int8)
    asked = np.zeros((n, len(ladder.chain)), dtype=np.int8)
    calls = np.zeros((entities, len(zoo.p)), dtype=np.int64)
    buys = np.zeros((entities, len(zoo.purchase.price)), dtype=np.int64)
    options = (moves.entry == "sticky", moves.confirm, moves.advance == "same-step", moves.alarm == "latched")
    stages = (ladder.chain, ladder.lo, ladder.hi, ladder.owned, ladder.parallel)
    bought = (zoo.needs, zoo.purchase.price, zoo.purchase.valid_h)
    kernel(clock.starts, clock.hour, zoo.p, *bought, *stages, *options, answer, asked, calls, buys)
    return Walk(answer, asked, calls, buys)


@cache
def _compiled() -> Any:
    return compiled(walk_kernel)


def walk_kernel(  # noqa: C901, PLR0912 - one loop nest, compiled as a whole
    starts: Any,
    hour: Any,
    p: Any,
    needs: Any,
    price: Any,
    valid_h: Any,
    chain: Any,
    lo: Any,
    hi: Any,
    owned: Any,
    parallel: Any,
    sticky: Any,
    confirm: Any,
    same_step: Any,
    latched: Any,
    answer: Any,
    asked: Any,
    calls: Any,
    buys: Any,
) -> None:
    """Fill ``answer``, ``asked``, ``calls`` and ``buys``; arguments as in ``Zoo``, ``Ladder`` and ``Moves``."""
    stages, groups = chain.shape[0], valid_h.shape[0]
    for entity in range(starts.shape[0] - 1):
        entered = np.zeros(stages, dtype=np.bool_)
        streak = np.zeros(stages, dtype=np.int64)
        begin = np.zeros(stages, dtype=np.int64)
        bought = np.full(groups, -np.inf)
        for row in range(starts[entity], starts[entity + 1]):
            alarm, ladder_asks = False, True
            for s in range(stages):
                if entered[stages - 1] or entered[s] or not (parallel[s] or ladder_asks):
                    continue
                position, yes, sure = begin[s], False, False
                while not sure:
                    model, value = chain[s, position], p[chain[s, position], row]
                    calls[entity, model] += 1
                    for g in range(groups):
                        due = hour[row] >= bought[g] + valid_h[g] and bought[g] != hour[row]
                        if needs[model] >> g & 1 and due:
                            bought[g] = hour[row]
                            buys[entity, g] += 1
                    low, high = lo[s, position], hi[s, position]
                    if owned[0, s, position] != low or owned[1, s, position] != high:
                        free, wanted = True, needs[chain[s, position + 1]]
                        for g in range(groups):
                            due = hour[row] >= bought[g] + valid_h[g] and bought[g] != hour[row]
                            if wanted >> g & 1 and price[g] > 0 and due:
                                free = False
                        if free:
                            low, high = owned[0, s, position], owned[1, s, position]
                    yes = value >= high
                    sure = yes or value < low
                    position += 1
                asked[row, s] = position
                begin[s] = max(position - (1 if yes else 2), 0) if sticky else 0
                streak[s] = streak[s] + 1 if yes else 0
                moved = streak[s] >= confirm
                if s == stages - 1:
                    alarm = moved
                entered[s] = moved and (s < stages - 1 or latched)
                if not parallel[s]:
                    ladder_asks = moved and same_step
            answer[row] = stages if alarm or entered[stages - 1] else 0
            for s in range(stages - 1):
                if entered[s]:
                    answer[row] = max(answer[row], s + 1)
