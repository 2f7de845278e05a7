"""Online step: advance many entities by one hour, as the simulation does for complete trajectories.

Models are evaluated and features bought in the same order as in ``trajectory_kernel``; a test asserts the equality.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unfold_cascade._types import IntArray
from unfold_cascade.temporal.data.features import PurchaseTerms
from unfold_cascade.temporal.data.table import Timeline
from unfold_cascade.temporal.data.windows import TOLERANCE_H
from unfold_cascade.temporal.problem import Transitions
from unfold_cascade.temporal.simulation.trajectories import ModelScores, PolicyArrays

# model number, entities, cuts that the answers may be compared with -> probabilities
Predict = Callable[[int, Sequence[int], tuple[float, ...]], Sequence[float]]
# entity, model number, models already evaluated in this hour -> whether the call needs no purchase
IsFree = Callable[[int, int, Sequence[int]], bool]


@dataclass(slots=True)
class CaseState:
    """Where an entity stands in its S stages. The field names are part of the stored format.

    Attributes:
        entered: (S,) stages entered.
        streak: (S,) consecutive positive hours.
        begin: (S,) position of the model to start with.
    """

    entered: list[bool]
    streak: list[int]
    begin: list[int]


@dataclass(frozen=True, slots=True)
class OnlineStage:
    """One stage: models in evaluation order and their cuts, equal for the last; ``owned`` as in ``PolicyArrays``."""

    chain: tuple[int, ...]
    spans: tuple[tuple[float, float], ...]
    owned: tuple[tuple[float, float], ...]
    parallel: bool


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One evaluation of a model: stage, model number, probability, and the cuts that applied."""

    stage: int
    model: int
    p: float
    span: tuple[float, float]

    @property
    def verdict(self) -> str:
        """``ICK1``: confidently moves on; ``ICK0``: confidently stays; ``IDK``: the next model decides."""
        return "ICK1" if self.p >= self.span[1] else "ICK0" if self.p < self.span[0] else "IDK"


@dataclass(frozen=True, slots=True)
class HourStep:
    """The (B,) stages after an hour, 0 for none, and the calls of each entity in evaluation order."""

    stages: list[int]
    calls: list[list[ModelCall]]


def build_online_stages(policy: PolicyArrays) -> tuple[OnlineStage, ...]:
    """Convert simulation arrays into stages without padding."""
    stages = []
    for s, row in enumerate(policy.chain):
        length = int((row >= 0).sum())
        spans = zip(policy.lo[s, :length].tolist(), policy.hi[s, :length].tolist(), strict=True)
        owned = zip(*policy.owned[:, s, :length].tolist(), strict=True)
        stages.append(OnlineStage(tuple(row[:length].tolist()), tuple(spans), tuple(owned), bool(policy.parallel[s])))
    return tuple(stages)


def new_case_state(stages: int) -> CaseState:
    """Make the state of an entity without past hours."""
    return CaseState([False] * stages, [0] * stages, [0] * stages)


def advance_hour(
    stages: Sequence[OnlineStage],
    transitions: Transitions,
    states: Sequence[CaseState],
    predict: Predict,
    is_free: IsFree,
) -> HourStep:
    """Advance every entity by one hour; ``states`` change in place.

    Args:
        stages: The stages of the policy.
        transitions: How entities move through them.
        states: Where each of B entities stands.
        predict: Evaluates a model for some entities; receives the cuts that the answers may be compared with.
        is_free: Checks whether a call would need no purchase, given the calls of this hour.
    """
    calls: list[list[ModelCall]] = [[] for _ in states]
    gate_open, alarm = [True] * len(states), [False] * len(states)
    for s, stage in enumerate(stages):
        active = [
            i
            for i, state in enumerate(states)
            if not state.entered[-1] and not state.entered[s] and (stage.parallel or gate_open[i])
        ]
        _evaluate_stage(stage, s, {i: states[i].begin[s] for i in active}, predict, is_free, calls)
        for i in active:
            moves_on = _record_decision(states[i], s, calls[i], stage, transitions)
            alarm[i] = moves_on if s == len(stages) - 1 else alarm[i]
            states[i].entered[s] = moves_on and (s < len(stages) - 1 or transitions.alarm == "latched")
            gate_open[i] = gate_open[i] if stage.parallel else moves_on and transitions.advance == "same-step"
    return HourStep([_current_stage(state, alarm=alarm[i]) for i, state in enumerate(states)], calls)


def _evaluate_stage(
    stage: OnlineStage,
    s: int,
    undecided: dict[int, int],
    predict: Predict,
    is_free: IsFree,
    calls: list[list[ModelCall]],
) -> None:
    """Evaluate the models of one stage until every entity is decided; entities at the same model share one batch.

    ``undecided`` maps each entity to its position in the chain and is emptied.
    """
    while undecided:
        position = min(undecided.values())
        rows = [i for i, entity_position in undecided.items() if entity_position == position]
        model, cuts = stage.chain[position], (*stage.spans[position], *stage.owned[position])
        for i, p in zip(rows, predict(model, rows, cuts), strict=True):
            calls[i].append(ModelCall(s, model, p, _select_span(stage, position, i, calls[i], is_free)))
            undecided[i] = position + 1
            if calls[i][-1].verdict != "IDK":
                del undecided[i]


def _select_span(
    stage: OnlineStage, position: int, entity: int, calls: Sequence[ModelCall], is_free: IsFree
) -> tuple[float, float]:
    """Select the cuts that apply: the owned ones if the next model would need no purchase."""
    if stage.owned[position] == stage.spans[position]:
        return stage.spans[position]
    evaluated = [*(call.model for call in calls), stage.chain[position]]
    free = is_free(entity, stage.chain[position + 1], evaluated)
    return stage.owned[position] if free else stage.spans[position]


def _record_decision(
    state: CaseState, s: int, calls: Sequence[ModelCall], stage: OnlineStage, transitions: Transitions
) -> bool:
    """Record the decision of a stage in the state; returns whether the entity moves on."""
    final = calls[-1]
    positive, position = final.verdict == "ICK1", stage.chain.index(final.model)
    state.begin[s] = max(position if positive else position - 1, 0) if transitions.entry == "sticky" else 0
    state.streak[s] = state.streak[s] + 1 if positive else 0
    return state.streak[s] >= transitions.confirm


def _current_stage(state: CaseState, *, alarm: bool) -> int:
    stages = len(state.entered)
    if alarm or state.entered[-1]:
        return stages
    return max((s + 1 for s in range(stages - 1) if state.entered[s]), default=0)


def buy_feature_sets(needs: int, hour: float, purchase: PurchaseTerms, purchased_at: list[float]) -> list[int]:
    """Buy the sets that a call needs and that have expired; ``purchased_at`` (G,) changes in place.

    Returns:
        The numbers of the sets bought.
    """
    purchases = []
    for g, valid_h in enumerate(purchase.valid_h.tolist()):
        if needs >> g & 1 and hour + TOLERANCE_H >= purchased_at[g] + valid_h and purchased_at[g] != hour:
            purchased_at[g] = hour
            purchases.append(g)
    return purchases


def is_call_free(
    needs: IntArray,
    model: int,
    evaluated: Sequence[int],
    hour: float,
    purchase: PurchaseTerms,
    purchased_at: Sequence[float],
) -> bool:
    """Check whether a call would cost no purchase after the calls of this hour; ``purchased_at`` stays as it is."""
    simulated = list(purchased_at)
    for earlier in evaluated:
        buy_feature_sets(int(needs[earlier]), hour, purchase, simulated)
    return not any(purchase.price[g] for g in buy_feature_sets(int(needs[model]), hour, purchase, simulated))


def replay_entity(
    timeline: Timeline, scores: ModelScores, policy: PolicyArrays, transitions: Transitions, entity: int
) -> list[HourStep]:
    """Advance one entity from its first hour to its last; each step holds its stage and its calls."""
    stages, state = build_online_stages(policy), new_case_state(len(policy.chain))
    purchased_at, steps = no_purchases(scores.purchase), []
    for row in range(int(timeline.starts[entity]), int(timeline.starts[entity + 1])):
        hour = float(timeline.hour[row])

        def predict(model: int, batch: Sequence[int], _: tuple[float, ...], row: int = row) -> list[float]:
            return [float(scores.p[model, row])] * len(batch)

        def is_free(_: int, model: int, evaluated: Sequence[int], hour: float = hour) -> bool:
            return is_call_free(scores.needs, model, evaluated, hour, scores.purchase, purchased_at)

        steps.append(advance_hour(stages, transitions, [state], predict, is_free))
        for call in steps[-1].calls[0]:
            buy_feature_sets(int(scores.needs[call.model]), hour, scores.purchase, purchased_at)
    return steps


def no_purchases(purchase: PurchaseTerms) -> list[float]:
    """Make the (G,) purchase hours of an entity without past hours."""
    return [-math.inf] * len(purchase.valid_h)
