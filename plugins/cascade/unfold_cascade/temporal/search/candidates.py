"""Stage candidates: exact gates on the rows of a stage, simulated on complete trajectories, then refined locally.

The exact search sums losses over rows. An entity that moves on never returns, so its loss is no such sum. The exact
gates are therefore only starting points; candidates are compared by their simulation on complete trajectories.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.gates.chains import Chain, list_chains
from unfold_cascade.gates.exact_search import search_exact_front
from unfold_cascade.gates.pareto import find_pareto_points, thin_front
from unfold_cascade.gates.soft import COST_WEIGHTS, MAX_ROWS, induce_gates, learn_gates
from unfold_cascade.temporal.data.table import Timeline
from unfold_cascade.temporal.models.study import Cohort
from unfold_cascade.temporal.problem import GateOptions, Transitions
from unfold_cascade.temporal.simulation.cost import CallCosts, compute_bill, compute_relative_cost
from unfold_cascade.temporal.simulation.policy import Span, StagePolicy, build_policy_arrays
from unfold_cascade.temporal.simulation.trajectories import ModelScores, simulate

FINAL_CUTS = (0.5, 0.6, 0.7, 0.8, 0.9)
POINTS_PER_CUT = 8
BINS = 16
MAX_CANDIDATES = 48
SHIFTS = (-0.06, -0.02, 0.02, 0.06)
REFINEMENT_ROUNDS = 2
LEARNT_CUT = 0.7
OWNED_SPANS: tuple[Span, ...] = ((0.05, 0.95), (-np.inf, np.inf))


@dataclass(frozen=True, slots=True)
class StageHours:
    """Where the policies of one stage are simulated: hours from the entry into the previous stage on.

    Attributes:
        timeline: The hours.
        scores: The scores of all models at these hours.
        entered: (n,) whether the stage was entered.
        in_stage: (n,) the hours on which gates are searched.
    """

    timeline: Timeline
    scores: ModelScores
    entered: BoolArray
    in_stage: BoolArray


@dataclass(frozen=True, slots=True)
class CostBasis:
    """How costs are compared: relative to the baseline's bill ``base``, in the currencies ``by``."""

    call_costs: CallCosts
    base: dict[str, float]
    by: str
    transitions: Transitions

    def compare(self, bill: dict[str, float]) -> float:
        """Compute a bill relative to that of the baseline model."""
        return compute_relative_cost(bill, self.base, self.by)


@dataclass(frozen=True, slots=True)
class StageCandidate:
    """A policy of one stage, its loss (share of hours with a wrong decision) and its relative cost per hour."""

    stage_policy: StagePolicy
    loss: float
    cost: float


def select_stage_hours(cohort: Cohort, s: int, in_stage: BoolArray) -> StageHours:
    """Select the hours of stage ``s``.

    Gates are searched on ``in_stage`` (n,), the hours its models learn from: an entity that has not yet moved on is
    most likely to be there.
    """
    reachable = np.ones(len(in_stage), dtype=np.bool_) if s == 0 else cohort.entered[:, s - 1]
    rows = np.flatnonzero(reachable)
    sizes = np.add.reduceat(reachable, cohort.timeline.starts[:-1])
    starts = np.concatenate(([0], np.cumsum(sizes[sizes > 0]))).astype(np.int64)
    scores = ModelScores(np.ascontiguousarray(cohort.scores.p[:, rows]), cohort.scores.needs, cohort.scores.purchase)
    return StageHours(Timeline(starts, cohort.timeline.hour[rows]), scores, cohort.entered[rows, s], in_stage[rows])


def search_stage(
    hours: StageHours, models: Sequence[int], basis: CostBasis, gates: GateOptions
) -> list[StageCandidate]:
    """Search the Pareto front of a stage's policies over loss and cost, by ascending cost.

    Args:
        hours: The hours of the stage.
        models: Its model numbers.
        basis: How costs are compared.
        gates: Limits of the search.
    """
    starting_points = [*_search_gates(hours, models, basis, gates), *learn_stage_gates(hours, models, basis, gates)]
    front = _select_front(_simulate_candidate(hours, policy, basis) for policy in starting_points)
    widened = [
        _simulate_candidate(hours, policy, basis)
        for candidate in front
        for policy in widen_free_gates(candidate.stage_policy, hours.scores)
    ]
    front = _select_front([*front, *widened])
    for _ in range(REFINEMENT_ROUNDS):
        neighbours = [
            _simulate_candidate(hours, policy, basis)
            for candidate in front
            for policy in list_neighbours(candidate.stage_policy)
        ]
        front = _select_front([*front, *neighbours])
    return front


def estimate_call_costs(scores: ModelScores, basis: CostBasis, chain: Chain) -> FloatArray:
    """Estimate (K,) the relative cost of one call of each model, with purchases spread over their validity."""
    hourly_prices = scores.purchase.price / np.maximum(scores.purchase.valid_h, 1.0)
    available, costs = 0, []
    for model in chain:
        needed = int(scores.needs[model]) & ~available
        available |= needed
        purchases = sum(price for g, price in enumerate(hourly_prices) if needed >> g & 1)
        bill = {currency: float(getattr(basis.call_costs, currency)[model]) for currency in basis.base}
        costs.append(basis.compare(bill | {"price": bill["price"] + purchases}))
    return np.array(costs)


def order_chains(hours: StageHours, models: Sequence[int], basis: CostBasis, gates: GateOptions) -> list[Chain]:
    """List the chains of a stage's models, by ascending cost or in every order."""
    cost = np.array([estimate_call_costs(hours.scores, basis, (model,))[0] for model in models])
    chains = list_chains(cost, order=gates.order, max_models=gates.max_models)
    return [tuple(models[position] for position in chain) for chain in chains]


def find_buying_gates(scores: ModelScores, chain: Chain) -> set[int]:
    """Find the gates behind which a model buys a set that stays valid: there it matters what is already owned."""
    purchase = scores.purchase
    lasting = sum(1 << g for g, price in enumerate(purchase.price) if price > 0 and purchase.valid_h[g] > 0)
    available, gates = 0, set()
    for gate, (model, following) in enumerate(pairwise(chain)):
        available |= int(scores.needs[model])
        gates |= {gate} if int(scores.needs[following]) & ~available & lasting else set()
    return gates


def widen_free_gates(policy: StagePolicy, scores: ModelScores) -> Iterator[StagePolicy]:
    """Yield policies that nearly always, or always, evaluate the next model where it needs no purchase."""
    buying_gates = find_buying_gates(scores, policy.chain)
    for wide in OWNED_SPANS if buying_gates else ():
        owned = tuple(wide if gate in buying_gates else span for gate, span in enumerate(policy.spans))
        yield replace(policy, owned=owned)


def list_neighbours(policy: StagePolicy) -> Iterator[StagePolicy]:
    """Yield the policies with one cut shifted a little."""
    for shift in SHIFTS:
        yield policy.with_cut(min(max(policy.cut + shift, 0.0), 1.0))
        for gate, side in product(range(len(policy.spans)), (0, 1)):
            yield from _shift_gate(policy, gate, side, shift)


def _shift_gate(policy: StagePolicy, gate: int, side: int, shift: float) -> Iterator[StagePolicy]:
    """Yield the policy with one gate shifted; separate cuts for owned features are shifted on their own."""
    spans = _shift_span(policy.spans, gate, side, shift)
    is_separate = bool(policy.owned) and policy.owned[gate] != policy.spans[gate]
    if is_separate or not policy.owned:
        yield replace(policy, spans=spans)
    else:
        yield replace(policy, spans=spans, owned=(*policy.owned[:gate], spans[gate], *policy.owned[gate + 1 :]))
    if is_separate and np.isfinite(policy.owned[gate][side]):
        yield replace(policy, owned=_shift_span(policy.owned, gate, side, shift))


def _shift_span(spans: tuple[Span, ...], gate: int, side: int, shift: float) -> tuple[Span, ...]:
    lo, hi = spans[gate]
    lo, hi = (lo + shift, hi) if side == 0 else (lo, hi + shift)
    shifted = (min(lo, hi), hi) if side == 0 else (lo, max(lo, hi))
    return (*spans[:gate], shifted, *spans[gate + 1 :])


def learn_stage_gates(
    hours: StageHours, models: Sequence[int], basis: CostBasis, gates: GateOptions
) -> Iterator[StagePolicy]:
    """Yield policies with learnt gates at several prices of cost: by gradient (soft) or by backward induction.

    They are simulated together with the exact ones, so they never make the front worse.
    """
    in_stage = np.flatnonzero(hours.in_stage)
    rows = in_stage[:: max(len(in_stage) // MAX_ROWS, 1)]
    for chain in order_chains(hours, models, basis, gates) if gates.learnt else ():
        p = hours.scores.p[np.ix_(np.array(chain), rows)].T.astype(np.float64)
        loss = ((p >= LEARNT_CUT) != hours.entered[rows][:, None]).astype(np.float64)
        costs = estimate_call_costs(hours.scores, basis, chain)
        for lam, method in product(COST_WEIGHTS if len(chain) > 1 else (), gates.learnt):
            is_soft = method == "soft"
            cuts = _learn_soft_gates(p, loss, costs, lam) if is_soft else induce_gates(p[:, :-1], loss, costs, lam)
            yield StagePolicy(chain, _spans_from_cuts(cuts), LEARNT_CUT)


def _learn_soft_gates(p: FloatArray, loss: FloatArray, costs: FloatArray, lam: float) -> FloatArray:
    """Learn (G, 2) spans of probabilities around one half: a gate defers below a confidence."""
    confidence = np.maximum(p[:, :-1], 1 - p[:, :-1])
    threshold = np.clip(learn_gates(confidence, loss, costs, lam, 0).spans()[:, 1], 0.5, 1.0)
    return np.stack((1 - threshold, threshold), axis=1)


def _search_gates(
    hours: StageHours, models: Sequence[int], basis: CostBasis, gates: GateOptions
) -> Iterator[StagePolicy]:
    rows = np.flatnonzero(hours.in_stage)
    truth = hours.entered[rows]
    for chain in order_chains(hours, models, basis, gates):
        p = hours.scores.p[np.ix_(np.array(chain), rows)].T.astype(np.float64)
        costs = estimate_call_costs(hours.scores, basis, chain)
        for cut in FINAL_CUTS:
            loss = ((p >= cut) != truth[:, None]).astype(np.float64)
            front = search_exact_front(p[:, :-1], loss, costs, bins=BINS, two_sided=True)
            for point in thin_front(front, POINTS_PER_CUT) if len(front) > 1 else [0]:
                yield StagePolicy(chain, _spans_from_cuts(front.cuts[point]), cut)


def _spans_from_cuts(cuts: FloatArray) -> tuple[Span, ...]:
    return tuple((float(lo), float(hi)) for lo, hi in cuts)


def _simulate_candidate(hours: StageHours, policy: StagePolicy, basis: CostBasis) -> StageCandidate:
    latched = Transitions(entry=basis.transitions.entry, confirm=basis.transitions.confirm, alarm="latched")
    arrays = build_policy_arrays((policy,), np.array([False]))
    trajectories = simulate(hours.timeline, hours.scores, arrays, latched)
    cost = basis.compare(compute_bill(trajectories, hours.scores, basis.call_costs))
    return StageCandidate(policy, float(((trajectories.stage > 0) != hours.entered).mean()), cost)


def _select_front(candidates: Iterable[StageCandidate]) -> list[StageCandidate]:
    pool = list(candidates)
    best = find_pareto_points(
        np.array([candidate.loss for candidate in pool]), np.array([candidate.cost for candidate in pool])
    )
    return [pool[index] for index in _thin_evenly(best)]


def _thin_evenly(best: IntArray) -> IntArray:
    if len(best) <= MAX_CANDIDATES:
        return best
    return best[np.unique(np.linspace(0, len(best) - 1, MAX_CANDIDATES).round().astype(np.int64))]
