"""The ``stages`` section of a spec: the models of the pipeline and the flows between them."""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field

from unfold_pipeline.flow_syntax import REQUEST, ConditionError, parse_condition, split_source
from unfold_pipeline.schema.engine import EngineSpec, validate_engine
from unfold_pipeline.schema.hardware import Hardware
from unfoldkit.api import Duration, Fraction, Model, Problem, did_you_mean

BatchLatency = dict[Annotated[int, Field(ge=1, le=4096)], Duration]
MODEL_KEYS = ("file", "code", "estimator")


class ModelSpec(Model):
    """What a stage runs: a saved model, a function, or an estimator that ``unfold profile`` fits."""

    file: str | None = Field(default=None, description="XGBoost (.ubj, .json), scikit-learn (.skops) or .onnx")
    code: str | None = Field(default=None, pattern=r"^[\w.]+:[\w.]+$", description="module:function, with --allow-code")
    estimator: Literal["logistic-regression", "svc", "xgboost"] | None = Field(
        default=None, description="fitted by unfold profile"
    )
    dataset: Literal["digits"] = Field(default="digits", description="for the estimator")
    features: Annotated[int, Field(ge=1)] | None = Field(default=None, description="numbers per query, for code")
    columns: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None, description="which numbers of a query the model reads, from 0; default: all"
    )
    rows: str | None = Field(default=None, description="an NPZ file with queries to profile with, in an array x")
    outputs: dict[str, Annotated[int, Field(ge=1)]] | None = Field(
        default=None, description="by tensor: values per query that code returns; checked, and needed before a join"
    )
    start: Annotated[Duration, Field(gt=0)] | None = Field(
        default=None,
        description="how long a replica may take to load the model, and in unfold profile to answer; default: 3 min",
    )


class StageSpec(Model):
    """A model of the pipeline."""

    after: dict[str, Fraction] = Field(
        default={}, description="the upstream stages, and the fraction of their queries that continues here"
    )
    share: Annotated[Fraction, Field(gt=0)] = Field(
        default=1.0, description="fraction of all queries that enter here, for a stage without after"
    )
    when: str | dict[str, str] | None = Field(
        default=None,
        description='a test of the upstream output that decides which queries continue, such as label == "person"; '
        "with several upstream stages, one by stage. The fractions in after remain those of the plan",
    )
    inputs: dict[str, str | Annotated[tuple[str, ...], Field(min_length=1)]] | None = Field(
        default=None,
        description="by input of the model: what it gets when served, STAGE, STAGE.TENSOR or request; default: all "
        "that the upstream stages return, or the request",
    )
    missing: float | None = Field(
        default=None,
        description="stands for each value of an upstream stage that was skipped, or from which no followed edges "
        "lead here; default: NaN",
    )
    fan_out: Annotated[float, Field(gt=0, le=1000)] = Field(default=1.0, description="mean items per query")
    latency: dict[str, BatchLatency] = Field(
        default={}, description="by hardware: time of a batch by its size; overrides measured latencies"
    )
    perf_analyzer: dict[str, dict[Annotated[int, Field(ge=1, le=4096)], str]] = Field(
        default={}, description="by hardware: CSV files of perf_analyzer by batch size"
    )
    model: ModelSpec | None = Field(default=None, description="the model, to profile and to serve")
    engine: EngineSpec | None = Field(default=None, description="an LLM engine with continuous batching")
    wait: Duration = Field(default=0.0, description="how long a batch that is not full may be delayed")
    max_batch: Annotated[int, Field(ge=1)] | None = Field(default=None, description="the largest batch to plan with")


class FromRun(Model):
    """Stages taken from the run of a cascade: its models become stages, its exits the routes."""

    run: Annotated[str, Field(min_length=1)] = Field(alias="from", description="the run folder that unfold train wrote")
    max_batch: Annotated[int, Field(ge=1, le=4096)] = Field(default=32, description="the largest batch of any stage")


def validate_stages(stages: Mapping[str, StageSpec], hardware: Mapping[str, Hardware]) -> Iterable[Problem]:
    """Yield what is wrong with single stages and with the graph that they form."""
    for name, stage in stages.items():
        yield from _validate_stage(name, stage, stages)
        yield from _validate_latencies(("stages", name), stage, hardware)
        if stage.engine is not None:
            yield from _validate_engine_stage(("stages", name), stage, hardware)
    yield from _validate_engine_count(stages, hardware)
    yield from _validate_graph(stages)


def sort_stages(stages: Mapping[str, StageSpec]) -> list[str]:
    """Return the stage names in topological order; ties keep the order of the spec.

    Raises:
        graphlib.CycleError: The stages form a cycle.
    """
    sorter = graphlib.TopologicalSorter(
        {name: [parent for parent in stage.after if parent in stages] for name, stage in stages.items()}
    )
    sorter.prepare()
    position = {name: index for index, name in enumerate(stages)}
    ready: list[str] = []
    ordered: list[str] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=position.__getitem__)
        ordered.append(ready.pop(0))
        sorter.done(ordered[-1])
    return ordered


def _validate_stage(name: str, stage: StageSpec, stages: Mapping[str, StageSpec]) -> Iterable[Problem]:
    path = ("stages", name)
    for parent in stage.after:
        if parent not in stages:
            yield Problem((*path, "after", parent), "no such stage", hint=did_you_mean(parent, stages), at_key=True)
    if stage.after and stage.share != 1:
        yield Problem((*path, "share"), "only a stage without after has a share", hint="write it under after")
    if stage.after and not any(stage.after.values()):
        yield Problem((*path, "after"), "no query reaches this stage", hint="a share above 0")
    if stage.fan_out != 1 and len(stage.after) != 1:
        yield Problem((*path, "fan_out"), "fan_out needs exactly one upstream stage")
    if not stage.latency and not stage.perf_analyzer and stage.model is None and stage.engine is None:
        hint = "latency: {cpu: {1: 10 ms, 8: 60 ms}}, or a model to profile"
        yield Problem(path, "has no latency", hint=hint, at_key=True)
    if stage.model is not None:
        sources = [key for key in MODEL_KEYS if getattr(stage.model, key) is not None]
        if len(sources) != 1:
            yield Problem((*path, "model"), "needs exactly one of file, code, estimator")
        if stage.model.outputs is not None and stage.model.code is None:
            yield Problem((*path, "model", "outputs"), "only code has outputs to state", hint="a file holds its own")
    yield from _validate_conditions((*path, "when"), stage)


def list_conditions(stage: StageSpec) -> Mapping[str, str]:
    """Return the condition of each upstream stage that has one."""
    if stage.when is None or isinstance(stage.when, dict):
        return stage.when or {}
    return {next(iter(stage.after), ""): stage.when}


def list_inputs(stage: StageSpec) -> Mapping[str, tuple[str, ...]]:
    """Return the sources of each input that the spec states."""
    inputs = (stage.inputs or {}).items()
    return {tensor: (sources,) if isinstance(sources, str) else sources for tensor, sources in inputs}


def _validate_conditions(path: tuple[str, ...], stage: StageSpec) -> Iterable[Problem]:
    if stage.when is None:
        return
    if isinstance(stage.when, str) and len(stage.after) != 1:
        yield Problem(path, "needs the upstream stage of the test", hint='when: {STAGE: label == "person"}')
        return
    for parent, text in list_conditions(stage).items():
        key = (*path, parent) if isinstance(stage.when, dict) else path
        if parent not in stage.after:
            yield Problem(key, "no upstream stage in after", hint=did_you_mean(parent, stage.after), at_key=True)
        try:
            parse_condition(text)
        except ConditionError as error:
            yield Problem(key, f"not a condition: {error}", hint='such as label == "person" or max(scores) > 0.5')


def _validate_inputs(stages: Mapping[str, StageSpec]) -> Iterable[Problem]:
    """Yield sources that are no tensor of a stage upstream; the stages form no cycle."""
    upstream: dict[str, set[str]] = {}
    for name in sort_stages(stages):
        parents = [parent for parent in stages[name].after if parent in stages]
        upstream[name] = {*parents, *(other for parent in parents for other in upstream[parent])}
        for tensor, sources in list_inputs(stages[name]).items():
            key = ("stages", name, "inputs", tensor)
            for source in sources:
                stage, _ = split_source(source, {*stages, REQUEST})
                if not stage:
                    known = did_you_mean(source.partition(".")[0], {*upstream[name], REQUEST})
                    yield Problem(key, f"{source} is not a stage", hint=known or "STAGE, STAGE.TENSOR or request")
                elif stage not in upstream[name] and (REQUEST in stages or source != REQUEST):
                    hint = f"one of: {', '.join([*sorted(upstream[name]), REQUEST])}"
                    is_request = stage == REQUEST and stage not in stages
                    reason = "a request has one tensor" if is_request else f"{stage} is not upstream of {name}"
                    yield Problem(key, reason, hint=hint)
        if stages[name].inputs == {}:
            yield Problem(("stages", name, "inputs"), "has no input", hint="leave it out")


def _validate_engine_stage(
    path: tuple[str, ...], stage: StageSpec, hardware: Mapping[str, Hardware]
) -> Iterable[Problem]:
    if stage.engine is None:
        return
    for key in ("latency", "perf_analyzer", "model", "max_batch", "when", "inputs"):
        if getattr(stage, key):
            yield Problem((*path, key), "does not apply to an engine", hint="leave one of them out")
    if stage.fan_out != 1 or stage.wait:
        yield Problem((*path, "engine"), "an engine has neither fan_out nor wait", at_key=True)
    yield from validate_engine((*path, "engine"), stage.engine, hardware)


def _validate_engine_count(stages: Mapping[str, StageSpec], hardware: Mapping[str, Hardware]) -> Iterable[Problem]:
    engines = [name for name, stage in stages.items() if stage.engine is not None]
    if len(engines) == 1 and len(stages) > 1:
        yield from _validate_line(stages)
        yield from _validate_shared_hardware(engines[0], stages, hardware)
    for name in engines[1:]:
        yield Problem(
            ("stages", name, "engine"), "only one stage can be an engine", hint=f"plan {name} in a spec of its own"
        )


def _validate_line(stages: Mapping[str, StageSpec]) -> Iterable[Problem]:
    """Yield what is not planned around an engine: other than a line of stages that every request passes once."""
    parents: dict[str, str] = {}
    entries = [name for name, stage in stages.items() if not stage.after]
    for name in entries[1:]:
        hint = "after: STAGE; every request passes one stage after the other"
        yield Problem(("stages", name), "stages beside an engine are not planned", hint=hint, at_key=True)
    for name, stage in stages.items():
        path = ("stages", name)
        if len(stage.after) > 1:
            yield Problem((*path, "after"), "a join around an engine is not planned", hint="one upstream stage")
        for parent, fraction in stage.after.items():
            if parent in parents:
                message = f"{parents[parent]} and {name} both follow {parent}, which is not planned around an engine"
                yield Problem((*path, "after"), message, hint="one stage after the other")
            parents[parent] = name
            if fraction < 1:
                message = "a part of the requests is not planned around an engine"
                yield Problem((*path, "after", parent), message, hint=f"{parent}: 1")
        if stage.share < 1 or stage.fan_out != 1:
            key = "share" if stage.share < 1 else "fan_out"
            yield Problem((*path, key), "every request passes each stage around an engine once", hint="leave it out")
        if stage.when:
            yield Problem((*path, "when"), "conditions are not planned around an engine", hint="leave it out")


def _validate_shared_hardware(
    engine: str, stages: Mapping[str, StageSpec], hardware: Mapping[str, Hardware]
) -> Iterable[Problem]:
    """Yield hardware that the engine or both sides of it would share."""
    spec = stages[engine].engine
    users: dict[str, str] = {}
    for name, stage in stages.items():
        for key, options in (("latency", stage.latency), ("perf_analyzer", stage.perf_analyzer)):
            for option in options:
                path = ("stages", name, key, option)
                if spec is not None and option in spec.steps:
                    hint = "the same under another name, with a quota of its own"
                    yield Problem(path, f"{option} runs the engine; sharing it is not planned", hint=hint, at_key=True)
                elif (
                    option in hardware and hardware[option].per_instance > 1 and users.setdefault(option, name) != name
                ):
                    message = f"{option} has several replicas an instance; sharing it around an engine is not planned"
                    yield Problem(path, message, hint="the same under another name", at_key=True)


def _validate_latencies(path: tuple[str, ...], stage: StageSpec, hardware: Mapping[str, Hardware]) -> Iterable[Problem]:
    for name, files in stage.perf_analyzer.items():
        key = (*path, "perf_analyzer", name)
        yield from _validate_batches(key, name, dict.fromkeys(files, 1.0), hardware)
        if name in stage.latency:
            yield Problem(key, "the latency on this hardware is given twice", hint="leave one of them out", at_key=True)
    for name, latencies in stage.latency.items():
        yield from _validate_batches((*path, "latency", name), name, latencies, hardware)


def _validate_batches(
    path: tuple[str | int, ...], name: str, latencies: BatchLatency, hardware: Mapping[str, Hardware]
) -> Iterable[Problem]:
    if name not in hardware:
        yield Problem(path, "no such hardware", hint=did_you_mean(name, hardware), at_key=True)
    if 1 not in latencies:
        yield Problem(path, f'latency for batch 1 is missing for "{name}"', at_key=True)
    for batch, seconds in latencies.items():
        if seconds <= 0:
            yield Problem((*path, str(batch)), "a batch must take more than 0 s")


def _validate_graph(stages: Mapping[str, StageSpec]) -> Iterable[Problem]:
    try:
        sort_stages(stages)
    except graphlib.CycleError as error:
        cycle = [str(name) for name in error.args[1]]
        yield Problem(("stages", cycle[0], "after"), f"the stages form a cycle: {' → '.join(cycle)}")
        return
    yield from _validate_inputs(stages)
    for name in _find_joins_after_fan_out(stages):
        yield Problem(("stages", name, "after"), "cannot join what several items of a fan_out return")


def _find_joins_after_fan_out(stages: Mapping[str, StageSpec]) -> Iterable[str]:
    fanned_out: set[str] = set()
    for name in sort_stages(stages):
        parents = [parent for parent in stages[name].after if parent in stages]
        if len(parents) > 1 and fanned_out.intersection(parents):
            yield name
        if stages[name].fan_out > 1 or fanned_out.intersection(parents):
            fanned_out.add(name)
