"""The report of ``unfold plan``: what to cache on an accelerator, and what that saves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from unfold_supernet.accelerator.cost_model import count_missing_bytes, count_multipliers, estimate_energy
from unfold_supernet.report import sentences
from unfold_supernet.report.tables import choose_buffer_unit, scale_column
from unfold_supernet.study.strategies import StrategyOutcome, count_core_bytes
from unfold_supernet.study.study import DeadlineMissed, Study, StudyProblem, build_decision
from unfold_supernet.study.sweep import CacheSetup, Savings
from unfoldkit.api import Cell, Column, Figure, Metric, Report, Series, Table, Verdict, format_bytes, format_count

LOG_RATIO = 50
"""Ratio of buffer sizes from which an even axis would crowd the small ones at its edge."""
ADAPTIVE_STRATEGIES = slice(2, 6)
"""Among a study's strategies, those with a cache that follows the queries."""


def build_study_report(problem: StudyProblem, study: Study | DeadlineMissed) -> Report:
    """Report what a cached subgraph saves on an accelerator, or why no subnet meets the deadline."""
    if isinstance(study, DeadlineMissed):
        return _build_refusal(problem, study)
    return Report(
        kind="supernet",
        verb="plan",
        name=problem.name,
        verdict=Verdict.YES,
        question=sentences.ASK_FOR_STUDY,
        headline=_write_headline(problem, study),
        subtitle=_write_subtitle(problem, study),
        metrics=_collect_metrics(problem, study),
        tables=(
            _tabulate_subnets(study),
            _tabulate_buffers(study),
            _tabulate_strategies(problem, study),
            _tabulate_targets(problem, study),
            *((_tabulate_claims(study),) if study.claims else ()),
        ),
        figures=(_plot_savings(study), draw_roofline(study.setup)),
        lines=_write_lines(problem, study),
        notes=sentences.list_study_notes(
            max(point.persistent_bytes for point in study.points) if study.claims else None,
            is_reference=problem.is_reference,
        ),
        decision=build_decision(study.family, study.setup, problem.queries.policy, problem.queries.keep),
        next="unfold plan SPEC --out report.html",
        provenance={"inputs": dict(problem.inputs)} if problem.inputs else {},
    )


def _build_refusal(problem: StudyProblem, missed: DeadlineMissed) -> Report:
    """Build the report for a deadline that no subnet meets: the binding constraint and the minimal relaxation."""
    setup, deadline_ms = missed.setup, (problem.queries.deadline_s or 0.0) * 1e3
    latencies = setup.layered.seconds[:, setup.static_column]
    index = int(latencies.argmin())
    subnet, latency_s = missed.family.subnets[index], float(latencies[index])
    compute_s = float(setup.works[index].compute_s.sum())
    bottleneck = "computation" if latency_s - compute_s < compute_s else "memory"
    relaxed_ms = math.ceil(latency_s * 1e5) / 100
    return Report(
        kind="supernet",
        verb="plan",
        name=problem.name,
        verdict=Verdict.NO,
        headline=sentences.state_deadline_missed(missed.family.name, deadline_ms),
        subtitle=(),
        metrics={"fastest_ms": Metric(latency_s * 1e3, "ms", target=f"≤ {deadline_ms:g}", ok=False)},
        lines=(
            ("binding constraint", sentences.state_fastest_subnet(subnet.name, latency_s * 1e3, bottleneck)),
            ("lower bound", sentences.state_compute_bound(compute_s * 1e3)),
            ("minimal relaxation", sentences.propose_deadline(relaxed_ms, subnet.accuracy)),
        ),
    )


def _write_headline(problem: StudyProblem, study: Study) -> str:
    """State what the cache saves; under deadlines, the accuracy gained, because saved time goes into larger subnets."""
    queries, setup = problem.queries, study.setup
    saved = _measure_scheduled_savings(problem, study)
    if queries.keep == "fixed":
        cache = sentences.describe_static_cache(setup.cached_bytes, setup.cached.source)
    else:
        cache = sentences.describe_adaptive_cache(study.actual.persistent_bytes, queries.keep, queries.every)
    if queries.policy == "strict-latency":
        baseline, outcome = study.strategies[0], _get_spec_strategy(problem, study)
        points = outcome.layered.accuracy - baseline.layered.accuracy
        points_fair = outcome.deep.accuracy - baseline.deep.accuracy
        return sentences.state_accuracy_gain(cache, saved["traffic"], points, points_fair)
    return sentences.state_latency_saving(cache, saved["traffic"], saved["latency"], saved["latency_fair"])


def _get_spec_strategy(problem: StudyProblem, study: Study) -> StrategyOutcome:
    return study.strategies[study.find_strategy(problem.queries.keep)]


def _measure_scheduled_savings(problem: StudyProblem, study: Study) -> dict[str, float]:
    """Measure the fractions that the spec's strategy saves, refills included."""
    baseline, outcome = study.strategies[0], _get_spec_strategy(problem, study)
    return {
        "traffic": 1 - outcome.layered.bytes / baseline.layered.bytes,
        "latency": 1 - outcome.layered.seconds / baseline.layered.seconds,
        "latency_fair": 1 - outcome.deep.seconds / baseline.deep.seconds,
    }


def _write_subtitle(problem: StudyProblem, study: Study) -> tuple[str, ...]:
    machine, queries = study.setup.machine, problem.queries
    return (
        format_count(len(study.family.subnets), "subnet"),
        machine.engine,
        sentences.format_bandwidth(machine.bandwidth),
        sentences.describe_queries(queries.count, queries.pattern, queries.file),
        queries.policy,
    )


def _collect_metrics(problem: StudyProblem, study: Study) -> dict[str, Metric]:
    """Collect the fractions saved, at the buffer of the spec and at every other size."""
    metrics = {f"{name}_saving": Metric(value) for name, value in _list_savings(study.actual).items()}
    scheduled = _measure_scheduled_savings(problem, study)
    metrics |= {f"scheduled_{name}_saving": Metric(value) for name, value in scheduled.items()}
    outcome = _get_spec_strategy(problem, study).layered
    metrics |= {
        "in_time": Metric(outcome.in_time),
        "accurate_enough": Metric(outcome.accurate_enough),
        "both_targets": Metric(outcome.both),
        "accuracy_served": Metric(outcome.accuracy, "%"),
        "accuracy_gain_points": Metric(study.actual.points, "points"),
        "accuracy_gain_points_fair": Metric(study.actual.points_fair, "points"),
    }
    for point in _select_bandwidth(study):
        size = format_bytes(point.persistent_bytes).replace(" ", "")
        metrics |= {f"{name}_saving_{size}": Metric(value) for name, value in _list_savings(point).items()}
    return metrics


def _list_savings(point: Savings) -> dict[str, float]:
    return {
        "traffic": point.traffic,
        "latency": point.latency,
        "latency_fair": point.latency_fair,
        "energy": point.traffic,
        "whole_energy": point.energy,
        "traffic_best": point.traffic_best,
        "latency_best": point.latency_best,
        "latency_fair_best": point.latency_fair_best,
    }


def _select_bandwidth(study: Study) -> list[Savings]:
    return [point for point in study.points if point.bandwidth == study.setup.machine.bandwidth]


def _tabulate_subnets(study: Study) -> Table:
    """Tabulate what each subnet costs with an empty cache and with the cached subgraph."""
    setup = study.setup
    subnets = [work.subnet for work in setup.works]
    energy = [estimate_energy(work, setup.cached.graph, setup.machine) for work in setup.works]
    columns = (
        (Column("subnet"), [subnet.name for subnet in subnets]),
        (Column("accuracy", "%", 1), [subnet.accuracy for subnet in subnets]),
        scale_column("weights", "MB", [float(work.weights.sum()) for work in setup.works]),
        scale_column("operations", "GMAC", [float(subnet.macs.sum()) for subnet in subnets]),
        scale_column("no cache", "ms", setup.layered.seconds[:, 0].tolist()),
        scale_column("static cache", "ms", setup.layered.seconds[:, setup.static_column].tolist()),
        scale_column("off-chip", "MB", setup.layered.bytes[:, setup.static_column].tolist()),
        scale_column("energy", "mJ", energy),
    )
    return _join_columns("subnets", columns)


def _join_columns(name: str, columns: Sequence[tuple[Column, Sequence[Cell]]], accent: int | None = None) -> Table:
    rows = tuple(zip(*(values for _, values in columns), strict=True))
    return Table(name, tuple(column for column, _ in columns), rows, accent=accent)


def _tabulate_buffers(study: Study) -> Table:
    """Tabulate the fractions saved by buffer size: over the stream, and for the subnet that gains most."""
    points = _select_bandwidth(study)
    unit, unit_bytes = choose_buffer_unit([point.persistent_bytes for point in study.points])
    sizes = [point.persistent_bytes / unit_bytes for point in points]
    columns = (
        (Column("buffer", unit, 2), sizes),
        (Column("traffic", "%", 1), [point.traffic * 100 for point in points]),
        (Column("best traffic", "%", 1), [point.traffic_best * 100 for point in points]),
        (Column("latency", "%", 1), [point.latency * 100 for point in points]),
        (Column("best latency", "%", 1), [point.latency_best * 100 for point in points]),
        (Column("deep latency", "%", 1), [point.latency_fair * 100 for point in points]),
        (Column("best deep latency", "%", 1), [point.latency_fair_best * 100 for point in points]),
        (Column("energy", "%", 1), [point.energy * 100 for point in points]),
    )
    return _join_columns("savings by buffer", columns, accent=sizes.index(study.actual.persistent_bytes / unit_bytes))


def _name_strategies(problem: StudyProblem, study: Study) -> list[str]:
    queries, core_bytes = problem.queries, count_core_bytes(study.setup)
    return [
        sentences.name_strategy(outcome.strategy, queries.every, queries.batch, core_bytes)
        for outcome in study.strategies
    ]


def _tabulate_strategies(problem: StudyProblem, study: Study) -> Table:
    """Tabulate every strategy on the stream: latency, traffic, hits and refills of a query."""
    layered = [outcome.layered for outcome in study.strategies]
    columns = (
        (Column("strategy"), _name_strategies(problem, study)),
        scale_column("latency", "ms", [outcome.seconds for outcome in layered], 3),
        scale_column("deep latency", "ms", [outcome.deep.seconds for outcome in study.strategies], 3),
        scale_column("off-chip", "MB", [outcome.bytes for outcome in layered]),
        (Column("hits", "%", 0), [outcome.hit * 100 for outcome in layered]),
        (Column("refills", "% of time", 2), [outcome.refill / outcome.seconds * 100 for outcome in layered]),
        (Column("cache changes"), [outcome.changes for outcome in layered]),
    )
    return _join_columns("strategies", columns, accent=study.find_strategy(problem.queries.keep))


def _tabulate_targets(problem: StudyProblem, study: Study) -> Table:
    """Tabulate the fractions of queries that meet their targets; latencies include refills."""
    layered = [outcome.layered for outcome in study.strategies]
    columns = (
        (Column("strategy"), _name_strategies(problem, study)),
        (Column("mean accuracy", "%", 2), [outcome.accuracy for outcome in layered]),
        (Column("accurate enough", "%", 1), [outcome.accurate_enough * 100 for outcome in layered]),
        (Column("in time", "%", 1), [outcome.in_time * 100 for outcome in layered]),
        (Column("both targets", "%", 1), [outcome.both * 100 for outcome in layered]),
        (Column("both targets, deep", "%", 1), [outcome.deep.both * 100 for outcome in study.strategies]),
    )
    return _join_columns("targets met", columns, accent=study.find_strategy(problem.queries.keep))


def _tabulate_claims(study: Study) -> Table:
    """Tabulate published and obtained figures, for the subnet that gains most."""
    unit, unit_bytes = choose_buffer_unit([point.persistent_bytes for point in study.points])
    columns = (
        Column("source"),
        Column("quantity"),
        Column("claimed"),
        Column("bandwidth", "GB/s", 1),
        Column("obtained"),
        Column("deep"),
        Column("buffer", unit, 2),
        Column("deep buffer", unit, 2),
    )
    rows: list[tuple[Cell, ...]] = []
    for check in study.claims:
        claim, is_points = check.claim, check.claim.quantity == "accuracy points"
        claimed, obtained, fair = (
            f"{value:.2f}" if is_points else sentences.format_percent(value)
            for value in (claim.value, check.layered, check.fair)
        )
        needs = [
            None if needed is None else needed / unit_bytes for needed in (check.needed_bytes, check.needed_bytes_fair)
        ]
        rows.append((claim.version, claim.quantity, claimed, check.bandwidth / 1e9, obtained, fair, *needs))
    return Table("published claims", columns, tuple(rows))


def _plot_savings(study: Study) -> Figure:
    """Plot the fractions saved against the size of the buffer."""
    points = _select_bandwidth(study)
    unit, unit_bytes = choose_buffer_unit([point.persistent_bytes for point in points])
    sizes = tuple(point.persistent_bytes / unit_bytes for point in points)
    series = (
        Series("traffic and off-chip energy", sizes, tuple(point.traffic * 100 for point in points)),
        Series("latency", sizes, tuple(point.latency * 100 for point in points)),
        Series("deep latency", sizes, tuple(point.latency_fair * 100 for point in points)),
    )
    is_wide = max(sizes) > LOG_RATIO * min(sizes) > 0
    return Figure("savings", "Savings of the persistent buffer", f"buffer {unit}", "saved %", series, log_x=is_wide)


def draw_roofline(setup: CacheSetup) -> Figure:
    """Draw the layers of the largest subnet below the bounds of the array and of the memory interface.

    A layer takes the longer of its computation and its transfers; what is cached does not cross the interface. The
    bounds are those of the roofline model (Williams et al. 2009, CACM 52).
    """
    machine, work = setup.machine, max(setup.works, key=lambda work: int(work.subnet.macs.sum()))
    transfer = count_missing_bytes(work, setup.cached.graph) + work.activations
    is_drawn = (work.subnet.macs > 0) & (transfer > 0)
    macs, moved, compute_s = work.subnet.macs[is_drawn], transfer[is_drawn], work.compute_s[is_drawn]
    intensity, transfer_s = macs / moved, moved / machine.bandwidth
    rate = macs / np.maximum(compute_s, transfer_s) / 1e9
    peak = count_multipliers(machine) * machine.clock_hz / 1e9
    slope = machine.bandwidth / 1e9
    low, high = float(intensity.min()) / 2, max(float(intensity.max()), peak / slope) * 2
    series = [Series("bound", (low, peak / slope, high), (low * slope, peak, peak))]
    for name, mask in (
        (sentences.WAITS_FOR_MEMORY, transfer_s > compute_s),
        (sentences.WAITS_FOR_ARRAY, transfer_s <= compute_s),
    ):
        if mask.any():
            series.append(Series(name, tuple(intensity[mask].tolist()), tuple(rate[mask].tolist()), "points"))
    title = sentences.title_roofline(work.subnet.name)
    return Figure("roofline", title, "MAC per byte off chip", "GMAC/s", tuple(series), log_x=True, log_y=True)


def _write_lines(problem: StudyProblem, study: Study) -> tuple[tuple[str, str], ...]:
    setup, actual = study.setup, study.actual
    layers = int((setup.cached.graph.prod(axis=1) > 0).sum())
    strategies = list(zip(_name_strategies(problem, study), study.strategies, strict=True))
    static = study.strategies[1].layered.seconds
    name, best = min(strategies[ADAPTIVE_STRATEGIES], key=lambda pair: pair[1].layered.seconds)
    cached = setup.cached
    return (
        ("cached subgraph", sentences.describe_cached_layers(setup.cached_bytes, layers, cached.source, cached.order)),
        ("adaptive cache", sentences.state_adaptive_gain(name, 1 - best.layered.seconds / static)),
        ("energy", sentences.state_energy_saving(actual.traffic, actual.energy)),
        ("family", study.family.about),
        ("precision", sentences.describe_precision(setup.machine)),
        ("accuracy", sentences.state_accuracy_points(actual.points, actual.points_fair)),
    )
