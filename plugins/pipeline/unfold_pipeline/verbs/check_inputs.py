"""Open what a spec names without planning: traces, visits, prices, measurements and models, each mistake told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from unfold_pipeline.problem import build, from_cascade, perf_analyzer, pipeline, pricing
from unfold_pipeline.schema.models import FromRun, PipelineSpec, order, traffic_keys
from unfoldkit.api import Diagnostic, Run, UnfoldError

Action = Callable[[], object]


def opened(spec: PipelineSpec, run: Run) -> Iterator[Diagnostic]:
    """Yield what is wrong with the files that a spec names; none of them is written, and no model is loaded."""
    for action in _actions(spec, run):
        try:
            action()
        except UnfoldError as error:
            yield from error.diagnostics


def _actions(spec: PipelineSpec, run: Run) -> Iterator[Action]:
    if isinstance(spec.stages, FromRun):
        yield partial(from_cascade.read, spec.stages, run)
    for key, item in traffic_keys(spec):
        if item.trace is not None:
            yield partial(build.arrivals, item, run, np.random.default_rng(0), key=key)
    if spec.visits is not None:
        yield partial(_visits, spec, spec.visits, run)
    yield partial(pricing.prices, spec, run)
    yield from _stages(spec, run)


def _stages(spec: PipelineSpec, run: Run) -> Iterator[Action]:
    for name, stage in spec.named.items():
        for hardware, files in stage.perf_analyzer.items():
            yield partial(perf_analyzer.latency_of, files, f"stages.{name}.perf_analyzer.{hardware}", run)
        for key in ("file", "rows"):
            if stage.model is not None and (text := getattr(stage.model, key)) is not None:
                yield partial(run.path, text, key=f"stages.{name}.model.{key}")


def _visits(spec: PipelineSpec, file: str, run: Run) -> None:
    build.recorded(run.path(file, key="visits"), _flows(spec))


def _flows(spec: PipelineSpec) -> tuple[pipeline.Stage, ...]:
    """Return the stages with what leads to them and nothing that serves them."""
    places = {name: index for index, name in enumerate(order(spec.named))}
    return tuple(
        pipeline.Stage(
            name, tuple(pipeline.Edge(places[above]) for above, share in spec.named[name].after.items() if share), ()
        )
        for name in places
    )
