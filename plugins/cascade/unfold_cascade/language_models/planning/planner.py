"""The planner of language models: calibrate, search, choose a chain, and certify the cheapest route that passes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.data.case_order import average_in_order, find_late_break
from unfold_cascade.gates.chains import list_chains
from unfold_cascade.language_models.planning.calibration import Calibration, fit_calibration
from unfold_cascade.language_models.planning.call_log import (
    CallLog,
    Outcome,
    Route,
    follow_route,
    score_log,
    select_reference,
)
from unfold_cascade.language_models.planning.certificate import (
    GRID,
    RouteSequence,
    Step,
    Walk,
    certify_routes,
    choose_uncertified,
    choose_walk,
    count_rows_to_label,
    estimate_rows_needed,
    find_smallest_limit,
    list_sequences,
    rank_sequences,
    row_differences,
    unit_differences,
)
from unfold_cascade.language_models.planning.loss_test import betting_p_value, is_ternary
from unfold_cascade.language_models.planning.problem import RoutingProblem
from unfold_cascade.language_models.planning.prompt_gate import PRICES, EntryRule, PromptScorer, cross_fit, fit_scorer
from unfold_cascade.planner.paired_test import MAX_CASES, smallest_excluded_loss
from unfoldkit.api import Progress, ignore_progress, user_error

MIN_UNITS = 20
"""Units that tuning and certifying need at least."""
LOSS, COST, LATENCY = "loss", "cost", "latency"
"""What is promised of a route."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingSolution:
    """The certified route, or why there is none.

    Attributes:
        problem: The problem.
        calibrations: Of each model.
        score: (n, M) calibrated probabilities of all rows.
        reference: The model to compare with.
        walks: The tests of one chain or two; none if no route is cheaper than the reference.
        uncertified: The cheapest route within the limit as counted on tuning rows, without a test.
        smallest_limit: Of a refusal, the smallest loss that would pass.
        units_needed: Of a refusal, about how many certifying units would do.
        rows_to_label: Unlabelled rows for which labels could help.
        scorer: Of prompts, if a gate before the first model was searched.
        extra_cost: What the certified route costs above the reference, as a share of that, on rows that took no part
            in tuning; ``None`` if it saves, or none is certified.
        late_break: The promise of the certified route which the last requests break, such as ``LOSS``; or empty.
    """

    problem: RoutingProblem
    calibrations: tuple[Calibration, ...]
    score: FloatArray
    reference: int
    walks: tuple[Walk, ...]
    uncertified: Route | None
    smallest_limit: float | None
    units_needed: int | None
    rows_to_label: int
    scorer: PromptScorer | None = None
    extra_cost: float | None = None
    late_break: str = ""

    @property
    def walk(self) -> Walk | None:
        """The walk that ends at the selected route; the first one if no route is certified."""
        return choose_walk(self.walks)

    @property
    def sequence(self) -> RouteSequence | None:
        """The routes of the chosen chain by falling cost; ``None`` if no route is cheaper than the reference."""
        return None if self.walk is None else self.walk.sequence

    @property
    def steps(self) -> tuple[Step, ...]:
        """The tests of that chain, up to the first failure."""
        return () if self.walk is None else self.walk.steps

    @property
    def delta(self) -> float:
        """The p-value at which that chain was tested."""
        return self.problem.limits.delta if self.walk is None else self.walk.delta

    @property
    def step(self) -> Step | None:
        """The test of the selected route; ``None`` if none is certified, or the certified one is refused."""
        return None if self.walk is None or self.extra_cost is not None or self.late_break else self.walk.passed

    @property
    def route(self) -> Route | None:
        """The selected route; ``None`` if none is certified, or the certified one is refused."""
        return None if self.step is None else self.step.route

    @property
    def served_route(self) -> Route:
        """The route to serve: the certified one, or the reference alone."""
        return self.route or Route((self.reference,), ())

    @property
    def certifying_units(self) -> int:
        """The number of independent units of the certificate."""
        problem = self.problem
        return len(np.unique(problem.log.unit[problem.parts.certify]))

    def bound(self) -> float | None:
        """Return the upper confidence bound of the loss; ``None`` without a certified route.

        It is that of the exact test, or of the betting test in tenths of a point where that one certified the route.
        """
        step, units = self.step, self.certifying_units
        if step is not None and step.test == "betting":
            return self._bound_by_betting(step)
        if step is None or units > MAX_CASES:
            return None
        return smallest_excluded_loss(step.worse, step.better, units, self.delta)

    def _bound_by_betting(self, step: Step) -> float:
        problem, rows = self.problem, self.problem.parts.certify
        d = unit_differences(problem.log.take(rows), self.score[rows], step.route, self.reference)
        steps = range(int(problem.limits.max_loss * GRID), -1, -1)
        passed = itertools.takewhile(lambda step: betting_p_value(d, step / GRID) <= self.delta, steps)
        return min((step / GRID for step in passed), default=problem.limits.max_loss)

    def outcome(self, route: Route, rows: IntArray) -> Outcome:
        """Follow a route on some rows."""
        return follow_route(self.problem.log.take(rows), self.score[rows], route)


def solve_routing(problem: RoutingProblem, progress: Progress = ignore_progress) -> RoutingSolution:
    """Find the cheapest certified route; ``progress`` receives the chains that are searched.

    Raises:
        UnfoldError: Too few rows to tune or to certify on.
    """
    log, parts, limits = problem.log, problem.parts, problem.limits
    tune_rows = labelled_rows(log, parts.tune)
    _check_size(problem, tune_rows)
    log, scorer = score_prompts(log, tune_rows)
    problem = replace(problem, log=log)
    calibrations = fit_calibrations(log.take(tune_rows), problem)
    score = score_log(log, calibrations)
    tune, certify = log.take(tune_rows), log.take(parts.certify)
    reference = select_reference(log, tune_rows)
    listed = list_chains(tune.cost.mean(axis=0), order=problem.order, max_models=problem.max_models)
    # a confidence that has seen the label certifies nothing
    chains = [] if problem.leaks else [chain for chain in listed if chain != (reference,)]
    reference_cost = float(tune.cost[:, reference].mean())
    rules = [] if scorer is None else list_rules(tune, reference)
    sequences = list_sequences(tune, score[tune_rows], chains, reference, rules, progress)
    ranked = rank_sequences(sequences, limits.max_loss, reference_cost)
    walks = certify_routes(ranked, certify, score[parts.certify], reference, limits)
    refused = (
        [] if any(walk.passed for walk in walks) else [(walk, replace(limits, delta=walk.delta)) for walk in walks]
    )
    needed = [estimate_rows_needed(walk.sequence, reference_cost, at) for walk, at in refused]
    smallest = [
        find_smallest_limit(walk.sequence, certify, score[parts.certify], reference, at) for walk, at in refused
    ]
    routes = [step.route for walk in walks for step in walk.steps]
    return RoutingSolution(
        problem=problem,
        calibrations=calibrations,
        score=score,
        reference=reference,
        walks=walks,
        uncertified=choose_uncertified(ranked[0], limits.max_loss) if ranked else None,
        smallest_limit=min((limit for limit in smallest if limit is not None), default=None),
        units_needed=min((units for units in needed if units is not None), default=None),
        rows_to_label=count_rows_to_label(certify, score[parts.certify], routes, reference),
        scorer=scorer,
        extra_cost=measure_extra_cost(log, score, choose_walk(walks), reference, (parts.certify, parts.test)),
        late_break=find_broken_promise(problem, score, choose_walk(walks), reference),
    )


def find_broken_promise(problem: RoutingProblem, score: FloatArray, walk: Walk | None, reference: int) -> str:
    """Find the promise of the certified route of a walk that the last requests break; empty if there is none.

    A random split hides a change over time, such as a provider that replaces its model, as every part holds early and
    late requests.
    """
    if walk is None or walk.passed is None or problem.rank is None:
        return ""
    rows, route, limits = np.argsort(problem.rank), walk.passed.route, problem.limits
    log, part = problem.log.take(rows), score[rows]
    outcome, alone = follow_route(log, part, route), follow_route(log, part, Route((reference,), ()))
    excesses = {
        LOSS: row_differences(log, part, route, reference) - limits.max_loss,
        COST: outcome.cost - alone.cost,
    }
    if limits.deadline_ms is not None:
        excesses[LATENCY] = (outcome.latency_ms > limits.deadline_ms).astype(np.float64) - limits.late_share
    return find_late_break({name: average_in_order(each, log.unit) for name, each in excesses.items()}) or ""


def measure_extra_cost(
    log: CallLog, score: FloatArray, walk: Walk | None, reference: int, parts: Sequence[IntArray]
) -> float | None:
    """Measure what the certified route of a walk costs above the reference, as a share; ``None`` if it saves.

    Routes are chosen by their cost on tuning rows, which may be cheaper than the parts here by chance or by copies.
    """
    if walk is None or walk.passed is None:
        return None
    rows = np.concatenate(parts)
    cost, whole = (
        float(follow_route(log.take(rows), score[rows], route).cost.mean())
        for route in (walk.passed.route, Route((reference,), ()))
    )
    return None if cost < whole else cost / whole - 1.0 if whole else 0.0


def score_prompts(log: CallLog, tune_rows: IntArray) -> tuple[CallLog, PromptScorer | None]:
    """Add the probabilities of correct answers by prompt to a log with features: cross-fitted on tuning rows."""
    if log.features is None:
        return log, None
    tune = log.take(tune_rows)
    assert tune.features is not None  # noqa: S101 - for the type checker
    scorer = fit_scorer(tune.features, tune.is_correct)
    scores = scorer.probabilities(log.features)
    scores[tune_rows] = cross_fit(tune.features, tune.is_correct, tune.unit)
    return replace(log, entry_score=scores), scorer


def list_rules(tune: CallLog, reference: int) -> list[EntryRule]:
    """List the entry rules to search, with mean costs of tuning rows."""
    costs = tuple(float(cost) for cost in tune.cost.mean(axis=0))
    return [EntryRule(price / max(costs[reference], 1e-12), costs) for price in PRICES]


def fit_calibrations(tune: CallLog, problem: RoutingProblem) -> tuple[Calibration, ...]:
    """Fit the calibration of each model on tuning rows."""
    columns = range(len(tune.models))
    return tuple(fit_calibration(tune.confidence[:, m], tune.trusted_correct[:, m], problem.scale) for m in columns)


def has_fractions(solution: RoutingSolution) -> bool:
    """Whether some certifying unit has a loss that is not a multiple of 1."""
    problem, route = solution.problem, solution.served_route
    rows = problem.parts.certify
    return not is_ternary(unit_differences(problem.log.take(rows), solution.score[rows], route, solution.reference))


def labelled_rows(log: CallLog, rows: IntArray) -> IntArray:
    """Keep the rows with known correctness for every model: on others, no accuracy can be measured."""
    return rows if log.is_unlabelled is None else rows[~log.is_unlabelled[rows].any(axis=1)]


def _check_size(problem: RoutingProblem, tune_rows: IntArray) -> None:
    parts, unit = problem.parts, problem.log.unit
    for name, rows in (("tune", tune_rows), ("certify", parts.certify)):
        units = len(np.unique(unit[rows]))
        if units < MIN_UNITS:
            message = (
                f"{problem.source} leaves {units} {problem.unit_name}s to {name} on; at least {MIN_UNITS} are needed"
            )
            raise user_error(message, key="data.path", file="")
    if len(parts.test) == 0:
        raise user_error(f"{problem.source} leaves no rows for the report", key="data.split")
