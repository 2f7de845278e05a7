"""Check the files that a spec names without planning: traces, visits, prices, measurements and models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from unfold_pipeline.engine.build import build_engine_problem, build_engine_stages, find_engine
from unfold_pipeline.problem.build import build_flows
from unfold_pipeline.problem.from_cascade import read_exits
from unfold_pipeline.problem.latency_profile import load_perf_analyzer_latencies
from unfold_pipeline.problem.pricing import price_hardware
from unfold_pipeline.problem.traffic import ignore_order, load_arrivals, read_visits
from unfold_pipeline.schema.arrivals import label_arrivals
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.schema.stages import FromRun
from unfoldkit.api import Diagnostic, Run, run_checks

Check = Callable[[], object]


def check_inputs(spec: PipelineSpec, run: Run) -> Iterator[Diagnostic]:
    """Yield what is wrong with the files that a spec names. Nothing is written, and no model is loaded."""
    yield from run_checks(_list_checks(spec, run))


def _list_checks(spec: PipelineSpec, run: Run) -> Iterator[Check]:
    if isinstance(spec.stages, FromRun):
        yield partial(read_exits, spec.stages.run, run)
    if spec.engine_stage is not None:
        yield partial(build_engine_problem, spec, run)
        yield partial(build_engine_stages, spec, run)
        stage, engine = find_engine(spec)
        if engine.local is not None and engine.local.weights is not None:
            yield partial(run.path, engine.local.weights, key=f"stages.{stage}.engine.local.weights")
        return
    # recorded visits are those of the rows, in their order
    on_order = ignore_order if spec.visits is None else None
    read = partial(load_arrivals, on_newest_first=on_order, on_unsorted=on_order)
    for key, traffic in label_arrivals(spec.arrivals):
        if traffic.trace is not None:
            yield partial(read, traffic, run, np.random.default_rng(0), key=key)
    if spec.visits is not None:
        yield partial(_check_visits, spec, spec.visits, run)
    yield partial(price_hardware, spec.hardware, spec.region, spec.prices, run)
    yield from _list_stage_checks(spec, run)


def _list_stage_checks(spec: PipelineSpec, run: Run) -> Iterator[Check]:
    for name, stage in spec.stages_by_name.items():
        for hardware, files in stage.perf_analyzer.items():
            yield partial(load_perf_analyzer_latencies, files, f"stages.{name}.perf_analyzer.{hardware}", run)
        for key in ("file", "rows"):
            if stage.model is not None and (text := getattr(stage.model, key)) is not None:
                yield partial(run.path, text, key=f"stages.{name}.model.{key}")


def _check_visits(spec: PipelineSpec, file: str, run: Run) -> None:
    read_visits(run.path(file, key="visits"), build_flows(spec))
