"""Candidates for the last stage: chains whose alarms keep the utility and the ranking of the monolith, by cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import FloatArray
from unfold_cascade.gates.chains import Chain
from unfold_cascade.gates.exact import search_exact_front
from unfold_cascade.gates.pareto import Front, thin_front
from unfold_cascade.schema.parts import GateSpec
from unfold_cascade.schema.temporal import Moves
from unfold_cascade.temporal.data import warning_metrics
from unfold_cascade.temporal.evaluation.evaluate import Quality, at_rate, outcome, quality
from unfold_cascade.temporal.models.study import Part
from unfold_cascade.temporal.search.candidates import Field, Yard, buying, ordered_chains, rough_costs
from unfold_cascade.temporal.simulation.policy import Span, Step

POINTS = 10
BINS = 48


@dataclass(frozen=True, slots=True)
class Alarm:
    """A step of the last stage, watched at every hour of a part: its quality, and its relative cost an hour."""

    step: Step
    found: Quality
    cost: float


def alarms(
    part: Part, where: Field, models: Sequence[int], yard: Yard, per_100h: float, gates: GateSpec
) -> list[Alarm]:
    """Return steps of the last stage that all warn at the same rate, single models among them.

    The gates come from the exact search, with the utility of an hour as its gain (it is additive over hours): the
    last model warns at the cut where it alone would meet the rate. Then each step gets the final cut that meets it.
    A cheap model may only say no: what it does not rule out the next one is asked, and the last one alone warns.
    """
    found = []
    alone = Moves(entry=yard.moves.entry, confirm=yard.moves.confirm, alarm=yard.moves.alarm)
    watched = np.array([True])
    for step in _exact(part, where, models, yard, per_100h, gates):
        policy = at_rate(part, (step,), watched, alone, per_100h)
        if policy is None:
            continue
        judged = quality(part, outcome(part, policy, watched, alone, yard.rates))
        share = {notion: judged.bill[notion] / yard.base[notion] for notion in yard.by.split("+")}
        found.append(Alarm(policy[0], judged, float(np.mean(list(share.values())))))
    return sorted(found, key=lambda one: one.cost)


def _exact(
    part: Part, where: Field, models: Sequence[int], yard: Yard, per_100h: float, gates: GateSpec
) -> Iterator[Step]:
    gain = part.utility.yes - part.utility.no
    best = max(float(gain[part.utility.best].sum()), 1e-9) / len(gain)
    for chain in ordered_chains(where, models, yard, gates):
        p = part.zoo.p[list(chain)].T.astype(np.float64)
        cut = warning_metrics.cut_at_rate(p[:, -1], part.events.free, per_100h)
        loss = np.zeros_like(p)
        # only the last warns: an hour that a model before it rules out gains nothing
        loss[:, -1] = -np.where(p[:, -1] >= cut, gain / best, 0.0)
        front = search_exact_front(-p[:, :-1], loss, rough_costs(part.zoo, yard, chain), bins=BINS)
        spans = [_above(cuts) for cuts in _useful(front).cuts]
        yield from (Step(chain, own, cut) for own in spans)
        yield from _owning(chain, spans, cut, buying(part.zoo, chain))


def _useful(front: Front) -> Front:
    """Return points of a front spread over those that keep half of its gain: no alarm that keeps less is of use."""
    kept = front.take(np.flatnonzero(front.loss <= front.loss[-1] / 2))
    return kept.take(thin_front(kept, POINTS))


def _owning(chain: Chain, spans: Sequence[tuple[Span, ...]], cut: float, places: set[int]) -> Iterator[Step]:
    """Yield steps that ask the next model more readily, or always, where what it reads is paid already."""
    loose = [(min(own[k][0] for own in spans), float("inf")) for k in range(len(chain) - 1)]
    for own in spans if places else ():
        for wide in (loose, [(-float("inf"), float("inf"))] * len(own)):
            mixed = tuple(wide[k] if k in places else span for k, span in enumerate(own))
            if mixed != own:
                yield Step(chain, own, cut, mixed)


def _above(cuts: FloatArray) -> tuple[Span, ...]:
    """Return the probabilities that ask on, where (G, 2) cuts stop the scores ``-p >= hi``."""
    return tuple((float(np.nextafter(-hi, np.inf)), float("inf")) for _, hi in cuts)
