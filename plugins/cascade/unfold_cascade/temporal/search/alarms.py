"""Alarm candidates: policies of the last stage, from cheap to expensive, that all alert at the same rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import FloatArray
from unfold_cascade.gates.chains import Chain
from unfold_cascade.gates.exact_search import search_exact_front
from unfold_cascade.gates.pareto import Front, thin_front
from unfold_cascade.temporal.early_warning_metrics import find_cut_at_rate
from unfold_cascade.temporal.evaluation.evaluate import Quality, evaluate_policy, measure_quality, tune_final_cut
from unfold_cascade.temporal.models.study import Cohort
from unfold_cascade.temporal.problem import GateOptions
from unfold_cascade.temporal.search.candidates import (
    CostBasis,
    StageHours,
    estimate_call_costs,
    find_buying_gates,
    order_chains,
)
from unfold_cascade.temporal.simulation.policy import ALWAYS_EVALUATED, Span, StagePolicy

POINTS_PER_CHAIN = 10
BINS = 48


@dataclass(frozen=True, slots=True)
class AlarmCandidate:
    """A policy of the last stage, evaluated at every hour of a cohort: its quality, and its relative cost per hour."""

    stage_policy: StagePolicy
    quality: Quality
    cost: float


def search_alarms(
    cohort: Cohort,
    hours: StageHours,
    models: Sequence[int],
    basis: CostBasis,
    per_100h: float,
    gates: GateOptions,
) -> list[AlarmCandidate]:
    """Search policies of the last stage that all alert at the same rate, single models among them; sorted by cost.

    Gates come from the exact search with the utility of an hour as gain, because utility is a sum over hours. Models
    before the last may only rule an hour out: the last model alone alerts. Its cut is first the one at which it meets
    the rate on its own; then every policy gets the final cut that meets the rate.
    """
    alarms = []
    for stage_policy in _search_gates(cohort, hours, models, basis, per_100h, gates):
        policy = tune_final_cut(cohort, (stage_policy,), ALWAYS_EVALUATED, basis.transitions, per_100h)
        if policy is None:
            continue
        outcome = evaluate_policy(cohort, policy, ALWAYS_EVALUATED, basis.transitions, basis.call_costs)
        quality = measure_quality(cohort, outcome)
        alarms.append(AlarmCandidate(policy[0], quality, basis.compare(quality.bill)))
    return sorted(alarms, key=lambda alarm: alarm.cost)


def _search_gates(
    cohort: Cohort,
    hours: StageHours,
    models: Sequence[int],
    basis: CostBasis,
    per_100h: float,
    gates: GateOptions,
) -> Iterator[StagePolicy]:
    gain = cohort.utility.alert - cohort.utility.silence
    scale = max(float(gain[cohort.utility.optimal].sum()), 1e-9) / len(gain)
    for chain in order_chains(hours, models, basis, gates):
        p = cohort.scores.p[list(chain)].T.astype(np.float64)
        cut = find_cut_at_rate(p[:, -1], cohort.events.event_free, per_100h)
        loss = np.zeros_like(p)
        # only the last model alerts: an hour that an earlier one rules out gains nothing
        loss[:, -1] = -np.where(p[:, -1] >= cut, gain / scale, 0.0)
        front = search_exact_front(-p[:, :-1], loss, estimate_call_costs(cohort.scores, basis, chain), bins=BINS)
        spans = [_ask_from(cuts) for cuts in _keep_useful(front).cuts]
        yield from (StagePolicy(chain, chain_spans, cut) for chain_spans in spans)
        yield from _widen_free_gates(chain, spans, cut, find_buying_gates(cohort.scores, chain))


def _keep_useful(front: Front) -> Front:
    """Thin a front evenly over the points that keep half of its gain; others are useless as alarms.

    Where even the best point loses by its alerts, as with few events, it alone is kept.
    """
    useful = front.take(np.flatnonzero(front.loss <= max(front.loss[-1] / 2, front.loss[-1])))
    return useful.take(thin_front(useful, POINTS_PER_CHAIN))


def _widen_free_gates(
    chain: Chain, spans: Sequence[tuple[Span, ...]], cut: float, buying_gates: set[int]
) -> Iterator[StagePolicy]:
    """Yield policies that evaluate the next model more often, or always, where it needs no purchase."""
    widest = [(min(chain_spans[k][0] for chain_spans in spans), float("inf")) for k in range(len(chain) - 1)]
    for chain_spans in spans if buying_gates else ():
        for wide in (widest, [(-float("inf"), float("inf"))] * len(chain_spans)):
            owned = tuple(wide[k] if k in buying_gates else span for k, span in enumerate(chain_spans))
            if owned != chain_spans:
                yield StagePolicy(chain, chain_spans, cut, owned)


def _ask_from(cuts: FloatArray) -> tuple[Span, ...]:
    """Convert (G, 2) cuts that stop at scores ``-p >= hi`` into the probabilities that evaluate the next model."""
    return tuple((float(np.nextafter(-hi, np.inf)), float("inf")) for _, hi in cuts)
