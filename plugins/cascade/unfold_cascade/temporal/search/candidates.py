"""Candidates for one stage: exact gates on the rows in the stage, then complete trajectories, then small steps around.

The exact search of the spine adds up losses over rows. A case that moves on never comes back, so its loss is no such
sum: the exact gates are the starting points, and what counts is their simulation on whole trajectories.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.gates.chains import Chain, list_chains
from unfold_cascade.gates.exact import search_exact_front
from unfold_cascade.gates.induction import induce_gates
from unfold_cascade.gates.pareto import find_pareto_points, thin_front
from unfold_cascade.gates.soft import COST_WEIGHTS, MAX_ROWS, learn_gates
from unfold_cascade.schema.parts import GateSpec
from unfold_cascade.schema.temporal import Moves
from unfold_cascade.temporal.models.study import Part
from unfold_cascade.temporal.simulation.cost import Rates, bill, relative
from unfold_cascade.temporal.simulation.policy import Span, Step, ladder
from unfold_cascade.temporal.simulation.trajectories import Clock, Zoo, walk

CUTS = (0.5, 0.6, 0.7, 0.8, 0.9)
POINTS = 8
BINS = 16
KEPT = 48
SHIFTS = (-0.06, -0.02, 0.02, 0.06)
ROUNDS = 2
LEARNT_CUT = 0.7
OWNED: tuple[Span, ...] = ((0.05, 0.95), (-np.inf, np.inf))


@dataclass(frozen=True, slots=True)
class Field:
    """Where the steps of one stage are simulated: the hours from the entry into the stage before, and what is true."""

    clock: Clock
    zoo: Zoo
    on: BoolArray
    gates: BoolArray


@dataclass(frozen=True, slots=True)
class Yard:
    """By which cost steps are compared: as a share of the monolith's ``base`` bill, by the notions of ``by``."""

    rates: Rates
    base: dict[str, float]
    by: str
    moves: Moves


@dataclass(frozen=True, slots=True)
class Candidate:
    """A step, its loss (share of the hours of its field with a wrong answer) and its relative cost an hour there."""

    step: Step
    loss: float
    cost: float


def field(part: Part, s: int, own: BoolArray) -> Field:
    """Return the field of stage ``s``; ``own`` (n,) are the hours that its models would learn from.

    Gates are searched on these hours: they are the ones that a case which has not yet moved on is likely to be in.
    """
    inside = np.ones(len(own), dtype=np.bool_) if s == 0 else part.on[:, s - 1]
    rows = np.flatnonzero(inside)
    sizes = np.add.reduceat(inside, part.clock.starts[:-1])
    starts = np.concatenate(([0], np.cumsum(sizes[sizes > 0]))).astype(np.int64)
    zoo = Zoo(np.ascontiguousarray(part.zoo.p[:, rows]), part.zoo.needs, part.zoo.purchase)
    return Field(Clock(starts, part.clock.hour[rows]), zoo, part.on[rows, s], own[rows])


def candidates(where: Field, models: Sequence[int], yard: Yard, gates: GateSpec) -> list[Candidate]:
    """Return the steps that no other beats in both loss and cost, by ascending cost."""
    tried = [*_exact(where, models, yard, gates), *learnt(where, models, yard, gates)]
    front = _front([_simulated(where, step, yard) for step in tried])
    own = [_simulated(where, step, yard) for one in front for step in owning(one.step, where.zoo)]
    front = _front([*front, *own])
    for _ in range(ROUNDS):
        near = [_simulated(where, step, yard) for one in front for step in neighbours(one.step)]
        front = _front([*front, *near])
    return front


def rough_costs(zoo: Zoo, yard: Yard, chain: Chain) -> FloatArray:
    """Return (K,) the relative cost of one call of each model, a purchase being spread over its validity."""
    prices = zoo.purchase.price / np.maximum(zoo.purchase.valid_h, 1.0)
    have, costs = 0, []
    for model in chain:
        fresh = int(zoo.needs[model]) & ~have
        have |= fresh
        paid = sum(price for g, price in enumerate(prices) if fresh >> g & 1)
        call = {notion: float(getattr(yard.rates, notion)[model]) for notion in yard.base}
        costs.append(relative(call | {"price": call["price"] + paid}, yard.base, yard.by))
    return np.array(costs)


def ordered_chains(where: Field, models: Sequence[int], yard: Yard, gates: GateSpec) -> list[Chain]:
    """Return the chains of a stage's models, by ascending cost or in every order."""
    dear = np.array([rough_costs(where.zoo, yard, (model,))[0] for model in models])
    chains = list_chains(dear, order=gates.order or "sorted", max_models=gates.max_models)
    return [tuple(models[place] for place in chain) for chain in chains]


def buying(zoo: Zoo, chain: Chain) -> set[int]:
    """Return the gates behind which something is bought that stays valid: there it matters whether it is owned."""
    lasting = sum(1 << g for g, price in enumerate(zoo.purchase.price) if price > 0 and zoo.purchase.valid_h[g] > 0)
    have, found = 0, set()
    for place, (model, after) in enumerate(pairwise(chain)):
        have |= int(zoo.needs[model])
        found |= {place} if int(zoo.needs[after]) & ~have & lasting else set()
    return found


def owning(step: Step, zoo: Zoo) -> Iterator[Step]:
    """Yield the steps that nearly always, or always, ask the next model where what it reads is paid already."""
    places = buying(zoo, step.chain)
    for wide in OWNED if places else ():
        yield replace(step, owned=tuple(wide if k in places else span for k, span in enumerate(step.spans)))


def neighbours(step: Step) -> Iterator[Step]:
    """Yield the steps with one cut moved a little."""
    for shift in SHIFTS:
        yield step.with_cut(min(max(step.cut + shift, 0.0), 1.0))
        for place, side in product(range(len(step.spans)), (0, 1)):
            yield from _shifted(step, place, side, shift)


def _shifted(step: Step, place: int, side: int, shift: float) -> Iterator[Step]:
    """Yield the step with one gate moved; its cuts for what is owned are moved by themselves, if they are others."""
    spans = _moved(step.spans, place, side, shift)
    apart = bool(step.owned) and step.owned[place] != step.spans[place]
    yield replace(step, spans=spans, owned=step.owned if apart or not step.owned else _with(step.owned, place, spans))
    if apart and np.isfinite(step.owned[place][side]):
        yield replace(step, owned=_moved(step.owned, place, side, shift))


def _with(owned: tuple[Span, ...], place: int, spans: tuple[Span, ...]) -> tuple[Span, ...]:
    return (*owned[:place], spans[place], *owned[place + 1 :])


def _moved(spans: tuple[Span, ...], place: int, side: int, shift: float) -> tuple[Span, ...]:
    lo, hi = spans[place]
    lo, hi = (lo + shift, hi) if side == 0 else (lo, hi + shift)
    changed = (min(lo, hi), hi) if side == 0 else (lo, max(lo, hi))
    return (*spans[:place], changed, *spans[place + 1 :])


def learnt(where: Field, models: Sequence[int], yard: Yard, gates: GateSpec) -> Iterator[Step]:
    """Yield steps whose gates are learnt, at several prices of cost: by gradient (soft), or by backward induction.

    They are simulated beside the exact ones, so that offering them never makes the front worse.
    """
    every = np.flatnonzero(where.gates)
    rows = every[:: max(len(every) // MAX_ROWS, 1)]
    for chain in ordered_chains(where, models, yard, gates) if gates.learnt else ():
        p = where.zoo.p[np.ix_(np.array(chain), rows)].T.astype(np.float64)
        loss = ((p >= LEARNT_CUT) != where.on[rows][:, None]).astype(np.float64)
        costs = rough_costs(where.zoo, yard, chain)
        for lam, kind in product(COST_WEIGHTS if len(chain) > 1 else (), gates.learnt):
            cuts = _soft(p, loss, costs, lam) if kind == "soft" else induce_gates(p[:, :-1], loss, costs, lam)
            yield Step(chain, _spans(cuts), LEARNT_CUT)


def _soft(p: FloatArray, loss: FloatArray, costs: FloatArray, lam: float) -> FloatArray:
    """Return (G, 2) spans of probabilities: a gate asks on below a confidence, so around one half."""
    confidence = np.maximum(p[:, :-1], 1 - p[:, :-1])
    below = np.clip(learn_gates(confidence, loss, costs, lam, 0).spans()[:, 1], 0.5, 1.0)
    return np.stack((1 - below, below), axis=1)


def _exact(where: Field, models: Sequence[int], yard: Yard, gates: GateSpec) -> Iterator[Step]:
    rows = np.flatnonzero(where.gates)
    truth = where.on[rows]
    for chain in ordered_chains(where, models, yard, gates):
        p = where.zoo.p[np.ix_(np.array(chain), rows)].T.astype(np.float64)
        costs = rough_costs(where.zoo, yard, chain)
        for cut in CUTS:
            loss = ((p >= cut) != truth[:, None]).astype(np.float64)
            front = search_exact_front(p[:, :-1], loss, costs, bins=BINS, two_sided=True)
            for point in thin_front(front, POINTS) if len(front) > 1 else [0]:
                yield Step(chain, _spans(front.cuts[point]), cut)


def _spans(cuts: FloatArray) -> tuple[Span, ...]:
    return tuple((float(lo), float(hi)) for lo, hi in cuts)


def _simulated(where: Field, step: Step, yard: Yard) -> Candidate:
    alone = Moves(entry=yard.moves.entry, confirm=yard.moves.confirm, alarm="latched")
    went = walk(where.clock, where.zoo, ladder((step,), np.array([False])), alone)
    cost = relative(bill(went, where.zoo, yard.rates), yard.base, yard.by)
    return Candidate(step, float(((went.answer > 0) != where.on).mean()), cost)


def _front(found: Iterable[Candidate]) -> list[Candidate]:
    every = list(found)
    best = find_pareto_points(np.array([one.loss for one in every]), np.array([one.cost for one in every]))
    return [every[place] for place in _spread(best)]


def _spread(best: IntArray) -> IntArray:
    if len(best) <= KEPT:
        return best
    return best[np.unique(np.linspace(0, len(best) - 1, KEPT).round().astype(np.int64))]
