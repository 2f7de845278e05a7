"""From a spec to what the algorithms take: a pipeline, and samples of its traffic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline.planner.planner import Effort
from unfold_pipeline.problem import perf_analyzer
from unfold_pipeline.problem import pipeline as graph
from unfold_pipeline.problem.latency_profile import latency_of, stored, wake_of, where
from unfold_pipeline.problem.pricing import prices
from unfold_pipeline.problem.sample import Sample, draw, with_recorded
from unfold_pipeline.schema.models import (
    LENGTH,
    Arrivals,
    BatchLatency,
    PipelineSpec,
    StageSpec,
    machine,
    order,
    traffic_keys,
)
from unfoldkit.api import CsvRow, Diagnostic, Run, UnfoldError, csv_rows, fail
from unfoldkit.arrivals import processes, rate_profiles, traces

Times = NDArray[np.float64]


def pipeline(spec: PipelineSpec, run: Run) -> graph.Pipeline:
    """Return the pipeline; warns of latencies that fall with the batch."""
    names = order(spec.named)
    places = {name: index for index, name in enumerate(names)}
    paid = {name: item.price for name, item in prices(spec, run).items()}
    stages = tuple(_stage(name, spec.named[name], places, spec, paid, run) for name in names)
    quotas = tuple((name, item.quota) for name, item in spec.hardware.items() if item.quota is not None)
    built = graph.Pipeline(stages, quotas)
    return with_recorded(built, recorded(run.path(spec.visits, key="visits"), stages)) if spec.visits else built


def effort(spec: PipelineSpec) -> Effort:
    """Return how hard a spec wants the search to be."""
    return Effort(most_items=spec.search.limit, proof=spec.search.proof, compound=spec.search.compound)


def samples(spec: PipelineSpec, built: graph.Pipeline, run: Run) -> tuple[Sample, ...]:
    """Return a sample for each traffic of the spec; arrivals and routes have random streams of their own."""
    table = recorded(run.path(spec.visits, key="visits"), built.stages) if spec.visits else None
    result = []
    for index, (key, item) in enumerate(traffic_keys(spec)):
        times = arrivals(item, run, np.random.default_rng([run.seed, 1, index]), key=key)
        result.append(draw(built, times, np.random.default_rng([run.seed, 2, index]), table))
    return tuple(result)


def arrivals(
    item: Arrivals, run: Run, rng: np.random.Generator, key: str = "arrivals", likely: Arrivals | None = None
) -> Times:
    """Return the arrival times in s that a spec asks for; ``key`` is where it asks, ``likely`` has columns to look for.

    Raises:
        UnfoldError: the trace cannot be read, nothing arrives, or all of it at one instant, which is no rate.
    """
    if item.trace is not None:
        path = run.path(item.trace, key=f"{key}.trace" if key.startswith("arrivals") else key)
        times = _read(item, path, likely or Arrivals(), run)
        times = traces.compress(times, item.compress)
        times = traces.scale(times, item.scale, rng) if item.scale != 1 else times
    else:
        times = _made(item, rng)
    if item.share < 1 and times.size:
        times = traces.window(times, 0.0, float(times[-1]) * item.share)
    if times.size == 0:
        raise fail("no query arrives in the sample", key=key, hint="a longer duration or a larger share")
    if times[-1] <= times[0]:
        told = "one query is" if times.size == 1 else f"{times.size:,} queries at one instant are"
        raise fail(f"{told} no traffic: there is no rate", key=key, hint="a sample that lasts")
    return times


def _read(item: Arrivals, path: Path, likely: Arrivals, run: Run) -> Times:
    return traces.read(
        path,
        column=item.column,
        likely=likely.column,
        counts=item.counts,
        likely_counts=likely.counts,
        match=item.match or "",
        rates=item.rates,
        likely_rates=likely.rates,
        tell=run.log.warning,
    )


def scv(item: Arrivals) -> float:
    """Return the squared coefficient of variation of the gaps."""
    if item.process == "constant":
        return 0.0
    return item.scv if item.scv is not None else (item.cv if item.cv is not None else 1.0) ** 2


def recorded(path: Path, stages: Sequence[graph.Stage]) -> NDArray[np.int64]:
    """Return the visits of recorded queries, shape (queries, stages).

    Raises:
        UnfoldError: a stage has no column, a cell is not a count, or a query came to a stage as no query can.
    """
    rows = list(csv_rows(path, [stage.name for stage in stages]))
    if not rows:
        raise UnfoldError(Diagnostic("no query is recorded", str(path), 1, 1))
    return np.array([_route(row, stages) for row in rows])


def _route(row: CsvRow, stages: Sequence[graph.Stage]) -> list[int]:
    counts = [_count(row, stage.name) for stage in stages]
    for stage, count in zip(stages, counts, strict=True):
        above = [edge.parent for edge in stage.parents]
        if count and above and not any(counts[parent] for parent in above):
            told = " or ".join(stages[parent].name for parent in above)
            raise row.wrong(f"visited without {told} before it", stage.name, "see after in the spec")
        if count > 1 and len(above) > 1:
            raise row.wrong(f"{count} visits where flows join", stage.name, "a query comes there once")
    return counts


def _count(row: CsvRow, name: str) -> int:
    if not row[name].isdecimal():
        raise row.wrong(f"{row[name][:40]!r} is not a count of visits", name)
    return int(row[name])


def _made(item: Arrivals, rng: np.random.Generator) -> Times:
    if item.shape is not None:
        return processes.pieces(
            rate_profiles.named(item.shape) * item.scale, rate_profiles.PIECE_S, rng, scv=scv(item) or 1.0
        )
    rate = (item.rate or 0.0) * item.scale
    return processes.gamma(rate, item.duration if item.duration is not None else LENGTH, rng, scv=scv(item))


def _stage(
    name: str,
    stage: StageSpec,
    places: Mapping[str, int],
    spec: PipelineSpec,
    paid: Mapping[str, float],
    run: Run,
) -> graph.Stage:
    parents = tuple(graph.Edge(places[parent], share) for parent, share in stage.after.items() if share > 0)
    read = {
        hardware: perf_analyzer.latency_of(files, f"stages.{name}.perf_analyzer.{hardware}", run)
        for hardware, files in stage.perf_analyzer.items()
    }
    here = machine(spec)
    measured = {here: latency_of(name, run)} if by_profile(name, spec, run) else {}
    wake = {hardware: wake_of(name, run) for hardware in measured}
    options = tuple(
        graph.Option(
            hardware,
            paid[hardware],
            _table(name, hardware, points, stage.max_batch, run),
            wake.get(hardware, 0.0),
            spec.hardware[hardware].per_instance,
        )
        for hardware, points in {**stage.latency, **read, **measured}.items()
    )
    return graph.Stage(name, parents, options, stage.share, stage.fan_out, stage.wait)


def by_profile(name: str, spec: PipelineSpec, run: Run) -> bool:
    """Whether a stage is planned by its profile on this machine: what the spec gives goes before, and may do alone."""
    stage = spec.named[name]
    given = {*stage.latency, *stage.perf_analyzer}
    return stage.model is not None and machine(spec) not in given and (not given or stored(name, run) is not None)


def sources(spec: PipelineSpec, run: Run) -> tuple[tuple[str, str], ...]:
    """Return the lines of a report on what was measured: on which hardware and machine, and what was not taken."""
    here, lines = machine(spec), []
    kept = [name for name in order(spec.named) if spec.named[name].model and stored(name, run) is not None]
    taken = [name for name in kept if by_profile(name, spec, run)]
    for place in dict.fromkeys(where(name, run) for name in taken):
        names = ", ".join(name for name in taken if where(name, run) == place)
        lines.append(("measured", f"{names} on {here}, which is {place or 'the machine that measured it'}"))
    if unused := [name for name in kept if name not in taken]:
        lines.append(("given", f"{', '.join(unused)} on {here}: the latency of the spec counts, not what was measured"))
    return tuple(lines)


def _table(stage: str, hardware: str, points: BatchLatency, most: int | None, run: Run) -> graph.Table:
    known = sorted(points.items())
    if any(later < sooner for (_, sooner), (_, later) in itertools.pairwise(known)):
        run.log.warning("stages.%s.latency.%s: a larger batch is quicker than a smaller one", stage, hardware)
    result = graph.table(known)
    return result if most is None else result[: min(most, math.inf, result.size - 1) + 1]
