"""The report of a cascade of language models, and the plan in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.language_models.planning.call_log import (
    Outcome,
    Route,
    accumulate_chain,
    find_answers,
    find_entries,
)
from unfold_cascade.language_models.planning.certificate import (
    find_smallest_deadline,
    row_differences,
    unit_differences,
)
from unfold_cascade.language_models.planning.planner import RoutingSolution, has_fractions, labelled_rows
from unfold_cascade.language_models.planning.problem import SMALL_CHAIN, SMALL_LOG
from unfold_cascade.language_models.planning.prompt_features import LENGTH
from unfold_cascade.language_models.report import sentences
from unfold_cascade.language_models.report.route_flow import draw_route_flow, list_gates
from unfold_cascade.planner.paired_test import upper_proportion
from unfold_cascade.report.gate_quality import draw_reliability, draw_risk_coverage
from unfold_cascade.report.sentences import choice_of_models, copied_rows, label_bounds
from unfoldkit.api import AnyFigure, Cell, Column, Figure, Metric, Report, RunDir, Series, Table, Verdict, label_metrics

SCHEMA = "unfold_cascade.routing/1"
INTERVAL = 0.95
Z = 1.959964
WEAK_AUC = 0.6
METRIC_LABELS = {
    "cost_ratio": "cost, as a share of the reference's",
    "saving_low": "saving, lower end (95 %)",
    "saving_high": "saving, upper end (95 %)",
    "loss_points": "loss measured on test rows",
    "loss_bound_points": "loss, upper bound",
}


def build_routing_report(solution: RoutingSolution, directory: RunDir, verb: str) -> Report:
    """Build the report on the test rows, which nothing before has read."""
    problem = solution.problem
    outcome = solution.outcome(solution.served_route, problem.parts.test)
    reference = solution.outcome(Route((solution.reference,), ()), problem.parts.test)
    return Report(
        kind="cascade",
        verb=verb,
        name=problem.name,
        verdict=Verdict.YES if solution.route is not None else Verdict.NO,
        question=sentences.question(problem.log.models[solution.reference], problem.limits.max_loss),
        headline=_headline(solution, outcome, reference),
        subtitle=(choice_of_models(len(problem.log.models)), f"{len(problem.log):,} requests"),
        metrics=label_metrics(
            _build_metrics(solution, outcome, reference), METRIC_LABELS | label_bounds(1.0 - problem.limits.delta)
        ),
        tables=(_build_model_table(solution), *_build_route_tables(solution, outcome)),
        figures=_build_figures(solution, outcome),
        lines=tuple(_list_lines(solution, outcome, reference)),
        next=_next_command(solution, directory),
        decision=build_decision(solution),
        provenance={"inputs": {"data": problem.digest}},
    )


def build_decision(solution: RoutingSolution) -> dict[str, Any]:
    """Build the plan: the chain, its cuts and calibrations, and what is promised. It holds no key and no prompt."""
    problem, route = solution.problem, solution.served_route
    names = problem.log.models
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "models": list(names),
        "reference": names[solution.reference],
        "chain": [names[m] for m in route.chain],
        "cuts": list(route.cuts),
        "calibrations": {names[m]: solution.calibrations[m].to_document() for m in route.chain[:-1]},
        "entry": _describe_entry(solution, route),
        "confidence": dict(problem.confidence),
        "goal": dict(problem.goal),
        "longest_prompt": problem.longest_prompt,
        "scripts": list(problem.scripts),
        "expected": _expect_costs(solution, route),
        "promise": None,
    }
    step = solution.step
    if step is not None:
        document["promise"] = {
            "max_loss": problem.limits.max_loss,
            "confidence": 1.0 - problem.limits.delta,
            "test": step.test,
            "units": solution.certifying_units,
            "unit": problem.unit_name,
            "worse": step.worse,
            "better": step.better,
            **_count_disagreement(solution, route),
        }
    return document


def _describe_entry(solution: RoutingSolution, route: Route) -> dict[str, Any] | None:
    """Describe the gate before the first model; ``None`` if every request enters there."""
    if route.entry is None or solution.scorer is None:
        return None
    names = solution.problem.log.models
    return {
        "features": list(LENGTH),
        "embedding": solution.problem.embedding,
        "models": list(names),
        "price": route.entry.price,
        "costs_usd": list(route.entry.costs),
        "scorer": solution.scorer.to_document(),
    }


def _expect_costs(solution: RoutingSolution, route: Route) -> dict[str, float]:
    """Return the mean cost of a request and of the reference on rows that took no part in tuning."""
    parts = solution.problem.parts
    rows = np.concatenate([parts.certify, parts.test])
    whole_chain = accumulate_chain(solution.problem.log, route.chain)[0][:, -1]
    return {
        "cost_usd": float(solution.outcome(route, rows).cost.mean()),
        "largest_cost_usd": float(whole_chain.max()),
        "reference_cost_usd": float(solution.outcome(Route((solution.reference,), ()), rows).cost.mean()),
    }


def _count_disagreement(solution: RoutingSolution, route: Route) -> dict[str, float]:
    """Return the share of certifying rows answered by another text, with its upper bound; nothing without texts."""
    log, rows = solution.problem.log, solution.problem.parts.certify
    if log.answer is None:
        return {}
    part = log.take(rows)
    differs = find_answers(part, route, solution.outcome(route, rows).exit) != log.answer[rows, solution.reference]
    limit = upper_proportion(int(differs.sum()), len(rows), solution.problem.limits.delta)
    return {"disagreement": float(differs.mean()), "disagreement_limit": limit}


def _headline(solution: RoutingSolution, outcome: Outcome, reference: Outcome) -> str:
    limits, name = solution.problem.limits, solution.problem.log.models[solution.reference]
    if solution.route is not None:
        saving = 1.0 - float(outcome.cost.mean()) / float(reference.cost.mean())
        return sentences.headline(saving, name, float(reference.cost.mean()), limits.max_loss, 1.0 - limits.delta)
    if solution.problem.leaks:
        return sentences.leaked_confidence(solution.problem.leaks)
    if solution.extra_cost is not None:
        return sentences.costs_more(name, solution.extra_cost)
    if solution.late_break:
        return sentences.late_break(name, solution.late_break)
    if solution.sequence is None:
        return sentences.no_cheaper(name)
    return sentences.refusal(limits.max_loss, 1.0 - limits.delta, name, solution.smallest_limit)


def _build_metrics(solution: RoutingSolution, outcome: Outcome, reference: Outcome) -> dict[str, Metric]:
    limits, cost, whole = solution.problem.limits, float(outcome.cost.mean()), float(reference.cost.mean())
    low, high = saving_interval(outcome.cost, reference.cost, _test_units(solution))
    bound = solution.bound()
    metrics = {
        "cost_ratio": Metric(cost / whole if whole else None),
        "saving_low": Metric(low),
        "saving_high": Metric(high),
        "cost_usd": Metric(cost, "$"),
        "reference_cost_usd": Metric(whole, "$"),
        "loss_points": Metric(round(100 * _test_loss(solution), 9), "points"),
        "certified_loss_points": Metric(
            100 * limits.max_loss if solution.route is not None else None,
            "points",
            target=f"≤ {100 * limits.max_loss:g}",
            ok=solution.route is not None,
        ),
        "loss_bound_points": Metric(None if bound is None else round(100 * bound, 6), "points"),
        "accuracy": Metric(_measure_accuracy(solution, solution.served_route)),
        "reference_accuracy": Metric(_measure_accuracy(solution, Route((solution.reference,), ()))),
        "certifying_units": Metric(solution.certifying_units),
    }
    if solution.problem.log.has_latency:
        metrics["latency_p95_ms"] = Metric(float(np.quantile(outcome.latency_ms, 0.95)), "ms")
        metrics["reference_latency_p95_ms"] = Metric(float(np.quantile(reference.latency_ms, 0.95)), "ms")
    if solution.route is None:
        smallest = solution.smallest_limit
        metrics["smallest_limit_points"] = Metric(None if smallest is None else 100 * smallest, "points")
        metrics["units_needed"] = Metric(solution.units_needed)
    return metrics


def saving_interval(cost: FloatArray, reference: FloatArray, unit: IntArray) -> tuple[float, float]:
    """Compute the 95 % interval of one minus the ratio of mean costs, by the delta method on independent units.

    Args:
        cost: (n,) cost of each request.
        reference: (n,) cost of the reference.
        unit: (n,) number of the unit of each request.
    """
    _, index = np.unique(unit, return_inverse=True)
    paid, whole = np.bincount(index, cost), np.bincount(index, reference)
    if whole.sum() <= 0.0 or len(paid) < 2:
        return 0.0, 0.0
    ratio = paid.sum() / whole.sum()
    deviation = float(np.std(paid - ratio * whole, ddof=1)) / float(whole.mean()) / np.sqrt(len(paid))
    return float(1.0 - ratio - Z * deviation), float(min(1.0 - ratio + Z * deviation, 1.0))


def area_under_curve(confidence: FloatArray, is_correct: BoolArray) -> float | None:
    """Compute the probability that a correct answer has the higher confidence (ties count half)."""
    usable = ~np.isnan(confidence)
    value, good = confidence[usable], is_correct[usable]
    if not 0 < int(good.sum()) < good.size:
        return None
    positive = int(good.sum())
    _, index, counts = np.unique(value, return_inverse=True, return_counts=True)
    # equal values share the mean of their ranks
    ranks_of_correct = float((np.cumsum(counts) - (counts - 1) / 2)[index][good].sum())
    return (ranks_of_correct - positive * (positive + 1) / 2) / (positive * (good.size - positive))


def _test_units(solution: RoutingSolution) -> IntArray:
    return solution.problem.log.unit[solution.problem.parts.test]


def _test_loss(solution: RoutingSolution) -> float:
    rows = solution.problem.parts.test
    log = solution.problem.log.take(rows)
    return float(row_differences(log, solution.score[rows], solution.served_route, solution.reference).mean())


def _measure_accuracy(solution: RoutingSolution, route: Route) -> float | None:
    """Measure the share of right answers on the test rows where every answer has a score; ``None`` if none has."""
    rows = labelled_rows(solution.problem.log, solution.problem.parts.test)
    return 1.0 - float(solution.outcome(route, rows).loss.mean()) if len(rows) else None


def _build_model_table(solution: RoutingSolution) -> Table:
    log, rows = solution.problem.log, solution.problem.parts.tune
    judged = labelled_rows(log, rows)
    columns = (
        Column("model"),
        Column("correct", "%", 1),
        Column("cost of a call", "$ per 1,000", 4),
        Column("of a confidence", "$ per 1,000", 4),
        Column("AUC of the confidence", "", 2),
        Column("mean latency", "ms", 0),
    )
    table = tuple(
        (
            name,
            100 * float(log.is_correct[judged, m].mean()),
            1000 * float(log.cost[rows, m].mean()),
            1000 * float(log.confidence_cost[rows, m].mean()),
            area_under_curve(log.confidence[judged, m], log.trusted_correct[judged, m]),
            float(log.latency_ms[rows, m].mean()) if log.has_latency else None,
        )
        for m, name in enumerate(log.models)
    )
    return Table("models (tuning rows)", columns, table, accent=solution.reference)


def _build_route_tables(solution: RoutingSolution, outcome: Outcome) -> Iterator[Table]:
    route, log = solution.served_route, solution.problem.log
    cuts: list[float | None] = [*route.cuts, None]
    rows: list[tuple[Cell, ...]] = [
        (log.models[m], cuts[k], 100 * float((outcome.exit == k).mean())) for k, m in enumerate(route.chain)
    ]
    columns = (Column("model"), Column("trusted from P(correct)", "", 3), Column("answers", "%", 1))
    yield Table("route (test rows)", columns, tuple(rows))


def _build_figures(solution: RoutingSolution, outcome: Outcome) -> tuple[AnyFigure, ...]:
    sequence, problem = solution.sequence, solution.problem
    if sequence is None:
        return ()
    route = solution.served_route
    flow = (draw_route_flow(problem.log.take(problem.parts.test), route, outcome),) if len(route.chain) > 1 else ()
    rows = problem.parts.test
    outcomes = [solution.outcome(route, rows) for route in sequence.routes]
    cost = tuple(1000 * float(each.cost.mean()) for each in outcomes)
    correct = tuple(100 * (_measure_accuracy(solution, each) or 0.0) for each in sequence.routes)
    alone = Route((solution.reference,), ())
    reference = solution.outcome(alone, rows)
    point = (1000 * float(reference.cost.mean()),), (100 * (_measure_accuracy(solution, alone) or 0.0),)
    series = [
        Series("routes of the chain, test rows", cost, correct, "line"),
        Series(f"{problem.log.models[solution.reference]} alone", *point, "points"),
    ]
    if solution.route is not None:
        k = sequence.routes.index(solution.route)
        series.append(Series("selected", (cost[k],), (correct[k],), "points"))
    title = f"{problem.name}: correct answers and cost"
    gates = list_gates(problem.log.take(rows), solution.score[rows], route, outcome)
    quality = (draw_risk_coverage(gates, timed=False), draw_reliability(gates, timed=False))
    routes = Figure("routes", title, "$ per 1,000 requests", "correct %", tuple(series))
    return *flow, routes, *(figure for figure in quality if figure is not None)


def _list_notes(solution: RoutingSolution) -> Iterator[tuple[str, str]]:
    """Yield notes on the rows of the log."""
    problem = solution.problem
    if problem.unanswered:
        yield "note", sentences.unanswered_rows(problem.unanswered, problem.source)
    if problem.log.is_answered is not None and not problem.log.is_answered[:, solution.reference].all():
        failed = int((~problem.log.is_answered[:, solution.reference]).sum())
        yield "note", sentences.failed_reference(problem.log.models[solution.reference], failed, len(problem.log))
    if problem.repeated_prompts:
        units = len(np.unique(problem.log.unit))
        yield "note", sentences.repeated_prompts(problem.repeated_prompts, len(problem.log), units)
    if problem.copies is not None:
        counts = problem.copies.identical, problem.copies.near
        yield "note", copied_rows(*counts, problem.source, are_grouped=True)


def _list_lines(solution: RoutingSolution, outcome: Outcome, reference: Outcome) -> Iterator[tuple[str, str]]:
    problem, limits = solution.problem, solution.problem.limits
    yield from _certificate_lines(solution)
    low, high = saving_interval(outcome.cost, reference.cost, _test_units(solution))
    yield "saving", sentences.saving_interval(low, high, INTERVAL, len(problem.parts.test))
    if solution.uncertified is not None:
        yield "uncertified", _uncertified_line(solution, solution.uncertified)
    if problem.log.has_latency:
        figures = [
            f(each.latency_ms) for each in (outcome, reference) for f in (np.mean, lambda x: np.quantile(x, 0.95))
        ]
        yield "latency", sentences.latency(*map(float, figures))
    if limits.deadline_ms is not None and solution.route is not None:
        yield "deadline", sentences.certified_latency(problem.quantile, limits.deadline_ms, 1.0 - limits.delta)
    yield "gates", sentences.confidence_source(problem.confidence)
    if solution.scorer is not None:
        route, rows = solution.served_route, problem.parts.test
        entries = find_entries(problem.log.take(rows), route)
        share, has_embedding = float((entries > 0).mean()), bool(problem.embedding)
        yield "entry", sentences.entry(share, problem.log.models[route.chain[0]], has_embedding=has_embedding)
    yield from _score_lines(solution)
    if solution.rows_to_label:
        yield "labels", sentences.labels(solution.rows_to_label)
    yield from _list_notes(solution)
    if problem.max_models == SMALL_CHAIN and len(problem.log) < SMALL_LOG and len(problem.log.models) > SMALL_CHAIN:
        yield "chains", sentences.chain_length(len(problem.log), SMALL_LOG)
    yield (
        "split",
        sentences.split(*(len(part) for part in (problem.parts.tune, problem.parts.certify, problem.parts.test))),
    )


def _certificate_lines(solution: RoutingSolution) -> Iterator[tuple[str, str]]:
    problem, units = solution.problem, solution.certifying_units
    step = None if solution.walk is None else solution.walk.passed
    if step is not None:
        test, counts = step.test, (step.worse, step.better)
        yield (
            "certificate",
            sentences.certificate(test, units, problem.unit_name, *counts, step.p_value, solution.bound()),
        )
        if len(solution.walks) > 1:
            yield "chains tested", sentences.tested_chains(_list_chains(solution))
        if has_fractions(solution) or problem.unit_name != "request":
            yield "covers", sentences.average_unit(problem.unit_name)
    elif solution.steps:
        first, limits = solution.steps[0], problem.limits
        counts = (first.worse, first.better)
        yield (
            "certificate",
            sentences.failed_certificate(first.test, units, problem.unit_name, *counts, first.p_value),
        )
        smallest_ms = _smallest_deadline(solution)
        if limits.deadline_ms is None or smallest_ms is None:
            yield "needed", sentences.units_needed(solution.units_needed, problem.unit_name, units)
        else:
            refusal = sentences.refused_latency(first.late, units, problem.quantile, limits.deadline_ms, smallest_ms)
            yield "deadline", refusal


def _list_chains(solution: RoutingSolution) -> list[tuple[str, float]]:
    """List the chains that were tested, the selected one first, and at which probability of a false promise."""
    names = solution.problem.log.models
    walks = sorted(solution.walks, key=lambda walk: walk is not solution.walk)
    return [(" → ".join(names[model] for model in walk.sequence.chain), walk.delta) for walk in walks]


def _smallest_deadline(solution: RoutingSolution) -> float | None:
    """Return the smallest deadline that the first route keeps; ``None`` if the latency is not what fails."""
    rows = solution.problem.parts.certify
    log, score = solution.problem.log.take(rows), solution.score[rows]
    limits = replace(solution.problem.limits, delta=solution.delta)
    return find_smallest_deadline(solution.steps[0].route, log, score, limits)


def _uncertified_line(solution: RoutingSolution, route: Route) -> str:
    rows = solution.problem.parts.certify
    log, score = solution.problem.log.take(rows), solution.score[rows]
    cost = solution.outcome(route, rows).cost.mean()
    whole = solution.outcome(Route((solution.reference,), ()), rows).cost.mean()
    loss = float(unit_differences(log, score, route, solution.reference).mean())
    return sentences.uncertified(1.0 - float(cost / whole), loss)


def _score_lines(solution: RoutingSolution) -> Iterator[tuple[str, str]]:
    log, rows = solution.problem.log, labelled_rows(solution.problem.log, solution.problem.parts.tune)
    auc = [area_under_curve(log.confidence[rows, m], log.trusted_correct[rows, m]) for m in range(len(log.models))]
    reversed_models = [name for name, each in zip(log.models, solution.calibrations, strict=True) if each.slope < 0]
    weak = [name for name, area in zip(log.models, auc, strict=True) if area is not None and 0.4 < area < WEAK_AUC]
    if reversed_models:
        yield "confidence", sentences.reversed_scores(reversed_models)
    if weak:
        yield "confidence", sentences.weak_scores(weak)


def _next_command(solution: RoutingSolution, directory: RunDir) -> str:
    if solution.route is None and solution.smallest_limit is not None:
        return f"unfold plan {directory.word} --set goal.max_loss={100 * solution.smallest_limit:g}%"
    if solution.steps and solution.route is None:
        smallest_ms, quantile = _smallest_deadline(solution), solution.problem.quantile
        if smallest_ms is not None and smallest_ms < float("inf"):
            limit = f"goal.max_latency.{quantile}='{np.ceil(smallest_ms):.0f} ms'"
            return f"unfold plan {directory.word} --set {limit}"
    if solution.route is None:
        return ""
    is_servable = solution.problem.is_servable
    return f"unfold serve {directory.word}" if is_servable else f"unfold plan {directory.word} --out plan.yaml"
