"""The certificate: routes of a chain, tested from expensive to cheap until the first failure.

Chains are ranked and their routes ordered on tuning rows alone, so testing in a fixed sequence needs no correction
(Angelopoulos et al. 2021, Learn then Test): with probability ``1 - delta`` no route tested before the first failure
loses more than epsilon. Routes of one chain share most of their decisions, so their p-values rise slowly with falling
cost.

The rank of a chain is noise at some hundred tuning rows, and a chain that ends at another model than the reference may
fail at its first route. The best two are therefore tested, the first at most of delta and the second at the rest
(Bonferroni).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.language_models.planning.call_log import (
    CallLog,
    Route,
    find_answers,
    find_entries,
    follow_route,
)
from unfold_cascade.language_models.planning.loss_test import (
    CHEAP,
    MAX_ROWS_NEEDED,
    LossTest,
    choose_test,
    expected_counts,
    late_p_value,
    loss_p_value,
    mean_per_unit,
)
from unfold_cascade.language_models.planning.prompt_gate import EntryRule
from unfold_cascade.language_models.planning.proposals import search_chain
from unfold_cascade.planner.certificate import count_discordant
from unfold_cascade.planner.paired_test import exact_paired_p_value
from unfoldkit.api import Progress, ignore_progress

SEQUENCE = 100
"""Routes of a sequence."""
FIRST_SHARE = 0.8
"""Share of delta at which the first of two chains is tested."""
GRID = 1000
"""Relaxed limits are searched in steps of 1 / GRID."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is promised: the loss, with which probability of a false promise, and the latency.

    Attributes:
        max_loss: Accuracy that may be lost against the reference, in [0, 1).
        delta: Probability of a false certificate.
        test: The test of the loss, ``None`` to choose it on tuning rows.
        deadline_ms: Latency that at most ``late_share`` of requests may exceed, ``None`` without a limit.
        late_share: Share of requests.
    """

    max_loss: float
    delta: float
    test: LossTest | None = None
    deadline_ms: float | None = None
    late_share: float = 0.05


@dataclass(frozen=True, slots=True)
class RouteSequence:
    """(m,) routes of one chain by falling cost, and their (m, units) differences and costs on tuning rows."""

    chain: tuple[int, ...]
    routes: tuple[Route, ...]
    cost: FloatArray
    difference: tuple[FloatArray, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The test of one route.

    Attributes:
        route: The route.
        test: The test of its loss.
        p_value: The largest p-value of its limits.
        worse: Certifying units which the route makes worse.
        better: Units which it makes better.
        late: Certifying units with a request above the deadline.
    """

    route: Route
    test: LossTest
    p_value: float
    worse: int
    better: int
    late: int


@dataclass(frozen=True, slots=True)
class Walk:
    """The tests of the routes of one chain at ``delta``, up to the first failure."""

    sequence: RouteSequence
    steps: tuple[Step, ...]
    delta: float

    @property
    def passed(self) -> Step | None:
        """The test of the cheapest certified route: the last one that passed."""
        passed = [step for step in self.steps if step.p_value <= self.delta]
        return passed[-1] if passed else None

    @property
    def cost(self) -> float:
        """The mean cost of the cheapest certified route on tuning rows; infinite if none is certified."""
        step = self.passed
        return float("inf") if step is None else float(self.sequence.cost[self.sequence.routes.index(step.route)])


def list_sequences(
    log: CallLog,
    score: FloatArray,
    chains: Sequence[tuple[int, ...]],
    reference: int,
    rules: Sequence[EntryRule] = (),
    progress: Progress = ignore_progress,
) -> list[RouteSequence]:
    """Search every chain on tuning rows, without and with each entry rule; routes as costly as the reference are out.

    Routes of one sequence share their rule, so that neighbours share most decisions.
    """
    limit = float(log.cost[:, reference].mean())
    pairs = [(chain, rule) for rule in (None, *rules) for chain in chains if rule is None or _skips(log, chain, rule)]
    sequences = []
    for index, (chain, rule) in enumerate(pairs):
        progress("chains", index, len(pairs))
        sequences.append(_build_sequence(log, score, chain, reference, limit, rule))
    progress("chains", len(pairs), len(pairs))
    return [sequence for sequence in sequences if sequence.routes]


def rank_sequences(sequences: Sequence[RouteSequence], max_loss: float, reference_cost: float) -> list[RouteSequence]:
    """Order sequences by their mean cost over the losses up to the limit, as counted on tuning rows.

    One point of a front is noise at some hundred rows; its mean over several losses is steadier.
    """
    levels = np.linspace(0.0, max_loss, 4)

    def mean_cost(sequence: RouteSequence) -> float:
        loss = np.maximum.accumulate([float(d.mean()) for d in sequence.difference])
        count = np.searchsorted(loss, levels + 1e-12, side="right")
        return float(np.mean([sequence.cost[k - 1] if k else reference_cost for k in count]))

    return sorted(sequences, key=mean_cost)


def choose_uncertified(sequence: RouteSequence, max_loss: float) -> Route | None:
    """Choose the cheapest route within the limit as counted on tuning rows, without a test."""
    within = [k for k, d in enumerate(sequence.difference) if float(d.mean()) <= max_loss]
    return sequence.routes[min(within, key=lambda k: sequence.cost[k])] if within else None


def certify_routes(
    ranked: Sequence[RouteSequence], log: CallLog, score: FloatArray, reference: int, limits: Limits
) -> tuple[Walk, ...]:
    """Test the routes of the first chain, and those of the next one that differs; all that pass hold together.

    Args:
        ranked: The sequences, best first.
        log: The certifying rows.
        score: (n, M) calibrated probabilities.
        reference: The model to compare with.
        limits: What is promised.

    Returns:
        one walk or two; none without a sequence.
    """
    if not ranked:
        return ()
    first = ranked[0]
    second = next((sequence for sequence in ranked[1:] if _is_other(sequence, first)), None)
    if second is None:
        return (_walk(first, log, score, reference, limits),)
    share = FIRST_SHARE * limits.delta
    parts = ((first, share), (second, limits.delta - share))
    return tuple(_walk(sequence, log, score, reference, replace(limits, delta=delta)) for sequence, delta in parts)


def _is_other(sequence: RouteSequence, first: RouteSequence) -> bool:
    """Whether a sequence is of another chain, and has routes which that one lacks."""
    return sequence.chain != first.chain and any(route not in first.routes for route in sequence.routes)


def _walk(sequence: RouteSequence, log: CallLog, score: FloatArray, reference: int, limits: Limits) -> Walk:
    steps: list[Step] = []
    units = len(np.unique(log.unit))
    for route, tuning in zip(sequence.routes, sequence.difference, strict=True):
        test = limits.test or choose_test(tuning, limits.max_loss, units, limits.delta)
        steps.append(run_test(route, test, log, score, reference, limits))
        if steps[-1].p_value > limits.delta:
            break
    return Walk(sequence, tuple(steps), limits.delta)


def choose_walk(walks: Sequence[Walk]) -> Walk | None:
    """Choose the walk with the cheapest certified route; the first if none is certified, ``None`` of none."""
    return min(walks, key=lambda walk: walk.cost, default=None)


def run_test(route: Route, test: LossTest, log: CallLog, score: FloatArray, reference: int, limits: Limits) -> Step:
    """Test one route. With a latency limit the p-value is the larger of two (Berger 1982, intersection-union test)."""
    d = unit_differences(log, score, route, reference)
    # other tests count fractions, such as means of conversations, as whole
    worse, better = (int((d > 0).sum()), int((d < 0).sum())) if test == "betting" else count_discordant(d)
    p_value, late = loss_p_value(d, limits.max_loss, test), 0
    if limits.deadline_ms is not None:
        slowest = _slowest_per_unit(log, score, route)
        late = int((slowest > limits.deadline_ms).sum())
        p_value = max(p_value, late_p_value(late, slowest.size, limits.late_share))
    return Step(route=route, test=test, p_value=p_value, worse=worse, better=better, late=late)


def unit_differences(log: CallLog, score: FloatArray, route: Route, reference: int) -> FloatArray:
    """Compute the loss of a route minus that of the reference, per independent unit."""
    return mean_per_unit(row_differences(log, score, route, reference), log.unit)


def row_differences(log: CallLog, score: FloatArray, route: Route, reference: int) -> FloatArray:
    """Compute the (n,) loss of a route minus that of the reference.

    Where a correctness is unknown, equal answers differ by nothing, and other answers count as made worse. Without
    texts, only answers of the reference itself are equal to its own.
    """
    outcome = follow_route(log, score, route)
    loss = outcome.loss - (1.0 - log.is_correct[:, reference])
    if log.is_unlabelled is None:
        return loss
    rows, model = np.arange(len(log)), np.array(route.chain)[outcome.exit]
    is_unknown = log.is_unlabelled[rows, model], log.is_unlabelled[:, reference]
    worst = np.where(is_unknown[0], 1.0, outcome.loss) - np.where(
        is_unknown[1], 0.0, 1.0 - log.is_correct[:, reference]
    )
    is_equal = _find_equal(log, route, outcome.exit, reference)
    return np.where(is_unknown[0] | is_unknown[1], np.where(is_equal, 0.0, worst), loss)


def count_rows_to_label(log: CallLog, score: FloatArray, routes: Sequence[Route], reference: int) -> int:
    """Count the unlabelled requests which some route answers otherwise than the reference: only these need labels."""
    if log.is_unlabelled is None or not routes:
        return 0
    rows, needed = np.arange(len(log)), np.zeros(len(log), dtype=np.bool_)
    for route in routes:
        exits = follow_route(log, score, route).exit
        is_unknown = log.is_unlabelled[rows, np.array(route.chain)[exits]] | log.is_unlabelled[:, reference]
        needed |= is_unknown & ~_find_equal(log, route, exits, reference)
    return int(needed.sum())


def _find_equal(log: CallLog, route: Route, exits: IntArray, reference: int) -> BoolArray:
    """Mark (n,) the requests that a route answers with the text of the reference."""
    if log.answer is None:
        return np.asarray(np.array(route.chain)[exits] == reference, dtype=np.bool_)
    is_equal: BoolArray = find_answers(log, route, exits) == log.answer[:, reference]
    return is_equal


def find_smallest_limit(
    sequence: RouteSequence, log: CallLog, score: FloatArray, reference: int, limits: Limits
) -> float | None:
    """Find the smallest loss, in tenths of a point, that the first route of the sequence would pass.

    Returns:
        ``None`` if no loss below one half suffices, or the latency is what fails.
    """
    route = sequence.routes[0]
    if find_smallest_deadline(route, log, score, limits) is not None:
        return None
    d = unit_differences(log, score, route, reference)
    tuning = sequence.difference[0]

    def passes(step: int) -> bool:
        epsilon = step / GRID
        test = limits.test or choose_test(tuning, epsilon, d.size, limits.delta)
        return loss_p_value(d, epsilon, test) <= limits.delta

    low = int(limits.max_loss * GRID)
    return next((step / GRID for step in range(low + 1, GRID // 2) if passes(step)), None)


def find_smallest_deadline(route: Route, log: CallLog, score: FloatArray, limits: Limits) -> float | None:
    """Find the smallest deadline in ms that a route would keep, if it misses the one which is promised.

    Returns:
        ``None`` if the deadline is kept, or there is none; infinity if there are too few units for any.
    """
    if limits.deadline_ms is None:
        return None
    slowest = _slowest_per_unit(log, score, route)
    late = int((slowest > limits.deadline_ms).sum())
    if late_p_value(late, slowest.size, limits.late_share) <= limits.delta:
        return None
    falling = np.sort(slowest)[::-1]
    allowed = next(
        (k for k in range(late, -1, -1) if late_p_value(k, falling.size, limits.late_share) <= limits.delta), -1
    )
    return float(falling[allowed]) if allowed >= 0 else float("inf")


def estimate_rows_needed(sequence: RouteSequence, reference_cost: float, limits: Limits) -> int | None:
    """Estimate how many certifying units would certify a saving, if they resemble the tuning rows.

    Returns:
        the number, in steps of one fifth; ``None`` if no number up to 100,000 would.
    """
    points = np.flatnonzero(sequence.cost <= CHEAP * reference_cost)
    if not points.size:
        return None
    # the first saving point of the sequence is the one to reach
    tuning = sequence.difference[int(points[0])]
    if float(tuning.mean()) >= limits.max_loss:
        return None
    units = 100.0
    while units <= MAX_ROWS_NEEDED:
        worse, better = expected_counts(tuning, int(units))
        if exact_paired_p_value(worse, better, int(units), limits.max_loss) <= limits.delta:
            return int(units)
        units *= 1.2
    return None


def _slowest_per_unit(log: CallLog, score: FloatArray, route: Route) -> FloatArray:
    """Compute the largest latency of each independent unit, in ms."""
    _, index = np.unique(log.unit, return_inverse=True)
    slowest = np.zeros(index.max() + 1)
    np.maximum.at(slowest, index, follow_route(log, score, route).latency_ms)
    return slowest


def _skips(log: CallLog, chain: tuple[int, ...], rule: EntryRule) -> bool:
    """Whether some request skips a model of the chain."""
    return bool(find_entries(log, Route(chain, (), rule)).any())


def _build_sequence(
    log: CallLog, score: FloatArray, chain: tuple[int, ...], reference: int, limit: float, rule: EntryRule | None
) -> RouteSequence:
    routes = search_chain(log, score, chain, SEQUENCE, rule)
    cost = np.array([follow_route(log, score, route).cost.mean() for route in routes])
    order = [int(k) for k in np.argsort(-cost, kind="stable") if cost[k] < limit]
    differences = tuple(unit_differences(log, score, routes[k], reference) for k in order)
    return RouteSequence(chain, tuple(routes[k] for k in order), cost[order], differences)
