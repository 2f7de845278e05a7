"""Trajectories: simulate every entity hour after hour through the stages of a cascade (UnfoldML, happens-before order).

At each hour the current stage evaluates its models from cheap to expensive. A model with ``p < lo`` confidently keeps
the entity in its stage (ICK0, "I confidently know"), ``p >= hi`` confidently moves it on (ICK1); in between (IDK, "I
don't know") the next model is evaluated. A second pair of cuts may apply where the next model needs no purchase. An
entity never returns to a stage, so a false transition costs accuracy in every later hour.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfold_cascade._types import BoolArray, Float32, FloatArray, IntArray
from unfold_cascade.temporal.data.features import PurchaseTerms
from unfold_cascade.temporal.data.table import Timeline
from unfold_cascade.temporal.data.windows import TOLERANCE_H
from unfold_cascade.temporal.problem import Transitions
from unfoldkit.jit import compiled

Int8 = NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class ModelScores:
    """Scores of M models at every hour.

    Attributes:
        p: (M, n) probabilities that the entity has entered the model's stage.
        needs: (M,) bit masks of the feature sets that each model needs.
        purchase: Terms on which the sets are bought.
    """

    p: Float32
    needs: IntArray
    purchase: PurchaseTerms


@dataclass(frozen=True, slots=True)
class PolicyArrays:
    """The S stages of a policy as arrays of K positions.

    Attributes:
        chain: (S, K) model numbers in evaluation order, -1 beyond the end of a chain.
        lo: (S, K) lower cuts.
        hi: (S, K) upper cuts; equal to the lower ones for the last model, which must decide.
        parallel: (S,) stages that are evaluated at every hour.
        owned: (2, S, K) the cuts that apply where evaluating the next model needs no purchase.
    """

    chain: IntArray
    lo: FloatArray
    hi: FloatArray
    parallel: BoolArray
    owned: FloatArray


@dataclass(frozen=True, slots=True)
class Trajectories:
    """What happened to P entities in n hours.

    Attributes:
        stage: (n,) stage of each hour, 0 for none.
        evaluated: (n, S) number of models evaluated in each stage.
        calls: (P, M) calls of each model.
        purchases: (P, G) purchases of each feature set.
    """

    stage: Int8
    evaluated: Int8
    calls: IntArray
    purchases: IntArray


def simulate(timeline: Timeline, scores: ModelScores, policy: PolicyArrays, transitions: Transitions) -> Trajectories:
    """Simulate every entity from its first hour to its last with the compiled kernel."""
    return _simulate(_compile_kernel(), timeline, scores, policy, transitions)


def simulate_reference(
    timeline: Timeline, scores: ModelScores, policy: PolicyArrays, transitions: Transitions
) -> Trajectories:
    """Simulate with the same kernel in plain Python: the reference implementation of ``simulate``."""
    return _simulate(trajectory_kernel, timeline, scores, policy, transitions)


def _simulate(
    kernel: Any, timeline: Timeline, scores: ModelScores, policy: PolicyArrays, transitions: Transitions
) -> Trajectories:
    n, entities = len(timeline.hour), len(timeline.starts) - 1
    stage = np.zeros(n, dtype=np.int8)
    evaluated = np.zeros((n, len(policy.chain)), dtype=np.int8)
    calls = np.zeros((entities, len(scores.p)), dtype=np.int64)
    purchases = np.zeros((entities, len(scores.purchase.price)), dtype=np.int64)
    options = (
        transitions.entry == "sticky",
        transitions.confirm,
        transitions.advance == "same-step",
        transitions.alarm == "latched",
    )
    gates = (policy.chain, policy.lo, policy.hi, policy.owned, policy.parallel)
    terms = (scores.needs, scores.purchase.price, scores.purchase.valid_h)
    kernel(timeline.starts, timeline.hour, scores.p, *terms, *gates, *options, stage, evaluated, calls, purchases)
    return Trajectories(stage, evaluated, calls, purchases)


@cache
def _compile_kernel() -> Any:
    return compiled(trajectory_kernel)


def trajectory_kernel(  # noqa: C901, PLR0912 - one loop nest, compiled as a whole
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
    stage: Any,
    evaluated: Any,
    calls: Any,
    purchases: Any,
) -> None:
    """Fill the last four arrays; the others are those of ``ModelScores``, ``PolicyArrays`` and ``Transitions``."""
    stages, groups, lasts_h = chain.shape[0], valid_h.shape[0], valid_h - TOLERANCE_H
    for entity in range(starts.shape[0] - 1):
        entered = np.zeros(stages, dtype=np.bool_)
        streak = np.zeros(stages, dtype=np.int64)
        begin = np.zeros(stages, dtype=np.int64)
        purchased_at = np.full(groups, -np.inf)
        for row in range(starts[entity], starts[entity + 1]):
            alarm, gate_open = False, True
            for s in range(stages):
                if entered[stages - 1] or entered[s] or not (parallel[s] or gate_open):
                    continue
                position, positive, decided = begin[s], False, False
                while not decided:
                    model, value = chain[s, position], p[chain[s, position], row]
                    calls[entity, model] += 1
                    for g in range(groups):
                        expired = hour[row] >= purchased_at[g] + lasts_h[g] and purchased_at[g] != hour[row]
                        if needs[model] >> g & 1 and expired:
                            purchased_at[g] = hour[row]
                            purchases[entity, g] += 1
                    low, high = lo[s, position], hi[s, position]
                    if owned[0, s, position] != low or owned[1, s, position] != high:
                        is_free, next_needs = True, needs[chain[s, position + 1]]
                        for g in range(groups):
                            expired = hour[row] >= purchased_at[g] + lasts_h[g] and purchased_at[g] != hour[row]
                            if next_needs >> g & 1 and price[g] > 0 and expired:
                                is_free = False
                        if is_free:
                            low, high = owned[0, s, position], owned[1, s, position]
                    positive = value >= high
                    decided = positive or value < low
                    position += 1
                evaluated[row, s] = position
                begin[s] = max(position - (1 if positive else 2), 0) if sticky else 0
                streak[s] = streak[s] + 1 if positive else 0
                moves_on = streak[s] >= confirm
                if s == stages - 1:
                    alarm = moves_on
                entered[s] = moves_on and (s < stages - 1 or latched)
                if not parallel[s]:
                    gate_open = moves_on and same_step
            stage[row] = stages if alarm or entered[stages - 1] else 0
            for s in range(stages - 1):
                if entered[s]:
                    stage[row] = max(stage[row], s + 1)
