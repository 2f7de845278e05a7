"""Resolve a spec into a :class:`Problem`: the only module below ``verbs/`` that reads a ``PipelineSpec``."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.flow_syntax import REQUEST
from unfold_pipeline.problem.exported_plan import ExportedPlan, ExportedStage, assign_labels
from unfold_pipeline.problem.from_cascade import (
    CascadeStage,
    build_cascade_stages,
    read_exits,
    summarize_cascade,
    write_routes,
)
from unfold_pipeline.problem.latency_profile import (
    load_activation,
    load_perf_analyzer_latencies,
    load_profile,
    load_profile_machine,
    require_profile,
)
from unfold_pipeline.problem.model_source import (
    DEFAULT_START_S,
    MODEL_SUFFIXES,
    ModelSource,
    fingerprint_source,
    fit_estimator,
)
from unfold_pipeline.problem.pipeline import (
    HardwareOption,
    Pipeline,
    Stage,
    build_edges,
    build_inputs,
    interpolate_latency,
)
from unfold_pipeline.problem.pricing import ReplicaPrice, price_hardware
from unfold_pipeline.problem.problem import (
    LatencySources,
    MeasuredStages,
    PlacementPolicy,
    Problem,
    SearchBudget,
    TunerSettings,
    compute_wait_bound,
)
from unfold_pipeline.problem.sample import Sample, Sampler, cap_shares, draw_fresh_arrivals, draw_sample
from unfold_pipeline.problem.traffic import ignore_order, load_arrivals, read_visits
from unfold_pipeline.schema.arrivals import Arrivals, label_arrivals
from unfold_pipeline.schema.hardware import Hardware, Placement
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.schema.saved_plan import find_plan_mistakes
from unfold_pipeline.schema.stages import (
    BatchLatency,
    FromRun,
    ModelSpec,
    StageSpec,
    list_conditions,
    list_inputs,
    sort_stages,
)
from unfoldkit.api import Report, Run, UnfoldError, user_error
from unfoldkit.catalog.instances import gpu_names, is_same_gpu
from unfoldkit.catalog.price_books import load_catalog
from unfoldkit.io.yaml12 import to_yaml
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

UNLISTED_GPUS = ("gpu", "k80", "p100")
"""Names of GPUs that no instance type of the catalog has."""


def build_problem(spec: PipelineSpec, run: Run) -> Problem:
    """Read every file that a spec names and return the planning problem.

    Raises:
        UnfoldError: A file is missing, damaged or contradicts the spec; a stage has no latency or no price.
    """
    resolved = resolve_stages(spec, run)
    prices = price_hardware(spec.hardware, spec.region, spec.prices, run)
    pipeline = build_pipeline(resolved, prices, run)
    visits = _read_recorded_visits(resolved, pipeline, run)
    if visits is not None:
        pipeline = cap_shares(pipeline, visits)
    samples = _draw_samples(resolved, pipeline, visits, run)
    activation_s = _read_activation([stage.name for stage in pipeline.stages], run)
    return Problem(
        name=spec.name,
        pipeline=pipeline,
        samples=samples,
        slo_s=spec.target_s,
        sheds=spec.slo.shed,
        seed=run.seed,
        budget=SearchBudget(
            max_simulated_queries=spec.search.limit, prove=spec.search.proof, compound=spec.search.compound
        ),
        frontier_slos_s=spec.search.frontier,
        prices=prices,
        latency_sources=_trace_latencies(resolved, run),
        tuner_policy=spec.tuner.policy,
        tuner=_build_tuner_settings(spec, activation_s),
        activation_s=activation_s,
        samplers=_build_samplers(resolved, pipeline, samples, visits, run),
        traces=tuple(
            sample.arrivals
            for (_, traffic), sample in zip(label_arrivals(resolved.arrivals), samples, strict=True)
            if traffic.trace is not None
        ),
        confidence=spec.slo.confidence,
        spares=spec.slo.survive,
        placement=build_placement(spec.placement),
        recorded_visits=visits,
        cascade=None
        if not isinstance(spec.stages, FromRun)
        else summarize_cascade(
            spec.stages.run,
            read_exits(spec.stages.run, run),
            tuple(name for name in resolved.stages_by_name if load_profile(name, run) is None),
            len(resolved.stages_by_name),
        ),
        serve_command=find_serve_command(spec),
    )


def _read_activation(stages: Sequence[str], run: Run) -> dict[str, float]:
    """Return the activation time of each stage that was measured in this run, or else when its plan was made.

    A check of a committed plan takes the times of that plan: a machine that starts replicas sooner makes no other plan.
    """
    committed = run.options.get("baseline_plan")
    saved = ((committed or run.options.get("plan") or {}).get("decision") or {}).get("activation_s", {})
    planned = saved if isinstance(saved, Mapping) else {}
    measured = planned if committed else {**planned, **load_activation(run)}
    known = ((name, measured.get(name)) for name in stages)
    return {name: float(seconds) for name, seconds in known if isinstance(seconds, (int, float)) and seconds > 0}


def _build_tuner_settings(spec: PipelineSpec, activation_s: Mapping[str, float]) -> TunerSettings:
    """Return the settings of the rules; an activation time that was measured replaces 5 s."""
    settings = TunerSettings(
        has_floor=spec.tuner.floor,
        margin=spec.tuner.margin,
        hold_s=spec.tuner.hold,
        max_replicas=spec.tuner.most,
        sheds=spec.slo.shed,
        max_wait_s=compute_wait_bound(spec.target_s),
        stores_table=spec.tuner.table,
    )
    if spec.tuner.activation is not None:
        return replace(settings, delay_s=spec.tuner.activation, delay_source="spec")
    if activation_s:
        return replace(settings, delay_s=max(activation_s.values()), delay_source="measured")
    return settings


def build_pipeline(spec: PipelineSpec, prices: Mapping[str, ReplicaPrice], run: Run) -> Pipeline:
    """Return the stages in topological order with their hardware options; warn of latencies that fall with the batch.

    Args:
        spec: A spec with its stages written out.
        prices: Price of a replica on each hardware.
        run: Holds the measured latencies.
    """
    names = sort_stages(spec.stages_by_name)
    positions = {name: index for index, name in enumerate(names)}
    quotas = tuple((name, kind.quota) for name, kind in spec.hardware.items() if kind.quota is not None)
    return Pipeline(tuple(_build_stage(name, positions, spec, prices, run) for name in names), quotas)


def build_flows(spec: PipelineSpec) -> tuple[Stage, ...]:
    """Return the stages with their edges and inputs and no hardware, in topological order."""
    names = sort_stages(spec.stages_by_name)
    positions = {name: index for index, name in enumerate(names)}
    return tuple(_build_flow(name, spec.stages_by_name[name], positions) for name in names)


def build_placement(placement: Placement) -> PlacementPolicy:
    """Return the placement section of a spec as a plain policy."""
    return PlacementPolicy(
        has_gangs=placement.has_gangs,
        strategy="PACK" if placement.spread is None else "SPREAD",
        max_per_node=placement.max_per_node,
        is_pinned=placement.pin is not None,
    )


def build_live_sample(spec: PipelineSpec, problem: Problem, trace: Path, run: Run) -> Sample:
    """Return a trace as live traffic with newly drawn routes.

    The trace is read with the columns, the unit and the text to match that the spec gives for its own traces, where it
    has them and states none itself.
    """
    known = [traffic for _, traffic in label_arrivals(spec.arrivals)]
    match = next((t.match for t in known if t.match and _is_table(str(t.trace)) == _is_table(trace)), None)
    likely = Arrivals(
        column=next((traffic.column for traffic in known if traffic.column), None),
        counts=next((traffic.counts for traffic in known if traffic.counts is not None), None),
        rates=next((traffic.rates for traffic in known if traffic.rates), None),
        unit=next((traffic.unit for traffic in known if traffic.unit), None),
    )
    live = Arrivals(trace=str(trace.absolute()), match=match)
    times = load_arrivals(live, run, np.random.default_rng([run.seed, 4]), key="--replay", likely=likely)
    return draw_sample(problem.pipeline, times, np.random.default_rng([run.seed, 5]), problem.recorded_visits)


def resolve_stages(spec: PipelineSpec, run: Run, *, check_profiles: bool = True) -> PipelineSpec:
    """Return the spec with the stages of a cascade's run written out; unchanged if its stages are.

    Args:
        spec: The spec as written.
        run: Receives the routes of the cascade as a table of visits.
        check_profiles: Refuse stored profiles of other models than those of the cascade's run.

    Raises:
        UnfoldError: The run holds no usable cascade, or it was trained again after its models were profiled.
    """
    if not isinstance(spec.stages, FromRun):
        return spec
    exits = read_exits(spec.stages.run, run)
    stages = {stage.name: _convert_cascade_stage(stage, spec, run) for stage in build_cascade_stages(exits)}
    resolved = spec.model_copy(update={"stages": stages, "visits": write_routes(exits, run)})
    if check_profiles:
        _check_profiles(resolved, run)
    return resolved


def locate_model(stage: str, model: ModelSpec, run: Run) -> ModelSource:
    """Return where the model of a stage is; an estimator is fitted and stored in the run first.

    Raises:
        UnfoldError: A file is missing or of an unknown kind, or the spec names code without permission.
    """
    if model.code is not None:
        if not run.allow_code:
            hint = "--allow-code permits it; only for specs that you trust"
            raise user_error(
                f"{model.code} is code, which a spec may not run", key=f"stages.{stage}.model.code", hint=hint
            )
        return _build_source(model, run, code=model.code, folder=str(run.base.absolute()))
    if model.file is not None:
        path = run.path(model.file, key=f"stages.{stage}.model.file")
        if path.suffix not in MODEL_SUFFIXES:
            hint = "one of: .ubj, .json (XGBoost), .skops (scikit-learn), .onnx"
            raise user_error(f"cannot load a model that ends in {path.suffix!r}", file=str(path), hint=hint)
        return _build_source(model, run, path=str(path.absolute()))
    return _build_source(model, run, path=str(fit_estimator(stage, str(model.estimator), model.dataset, run)))


def locate_served_model(stage: str, spec: PipelineSpec, run: Run) -> ModelSource:
    """Locate the model of a stage that is served, as :func:`locate_model` does.

    Raises:
        UnfoldError: The stage names no model, or its file is missing.
    """
    model = spec.stages_by_name[stage].model
    if model is None:
        raise user_error("has no model to serve", key=f"stages.{stage}", hint="model: {file: model.onnx}")
    return locate_model(stage, model, run)


def fingerprint_model(source: ModelSource, model: ModelSpec, *, is_pinned: bool = False) -> str:
    """Return the fingerprint of a model with its options in the spec; ``is_pinned`` replicas have other latencies."""
    options = model.model_dump(mode="json", exclude_none=True, exclude={"start", "outputs"})
    return fingerprint_source(source, options | ({"pin": "core"} if is_pinned else {}))


def find_serve_command(spec: PipelineSpec) -> str:
    """Return the command that serves a plan, empty if a stage has no model; a cascade runs under a trace only."""
    if isinstance(spec.stages, FromRun):
        return "unfold serve SPEC --replay TRACE"
    return "unfold serve SPEC" if all(stage.model for stage in spec.stages_by_name.values()) else ""


def build_exported_plan(report: Report) -> ExportedPlan:
    """Return the plan of a report, with the spec that the report states.

    Raises:
        UnfoldError: The report is of another kind, holds no plan of stages, or its stages come from the run of a
            cascade.
    """
    configs: Mapping[str, Any] = (report.decision or {}).get("stages", {})
    if (report.decision or {}).get("engines"):
        hint = "--format vllm, kubernetes, kserve or ray-serve"
        raise user_error("a plan of LLM engines has no form in this format", hint=hint)
    if report.kind != "pipeline" or not configs or "spec" not in report.provenance:
        raise user_error("there is no plan of a pipeline to export", hint="unfold plan SPEC --format ray-serve")
    spec = validate(PipelineSpec, parse(str(to_yaml(report.provenance["spec"])), "the plan"))
    if isinstance(spec.stages, FromRun):
        hint = f"unfold serve {spec.stages.run} serves the cascade"
        raise user_error("the models of a cascade's run cannot be exported as a pipeline", key="stages.from", hint=hint)
    if mistakes := list(find_plan_mistakes(spec, report.decision or {})):
        raise UnfoldError(*mistakes)
    labels = assign_labels(spec.stages_by_name)
    stages = tuple(_build_exported_stage(name, labels[name], spec, configs[name]) for name in spec.stages_by_name)
    return ExportedPlan(report.name, stages, build_placement(spec.placement))


def _convert_cascade_stage(stage: CascadeStage, spec: PipelineSpec, run: Run) -> StageSpec:
    max_batch = spec.stages.max_batch if isinstance(spec.stages, FromRun) else 1
    # a measured latency replaces the cascade's estimate, which would otherwise override it
    is_measured = stage.file is not None and load_profile(stage.name, run) is not None
    latency = {spec.local_hardware: {size: f"{stage.latency_s * size:.12g} s" for size in (1, max_batch)}}
    body = {
        "after": stage.after,
        # the models of a cascade read the features of the case, whatever the models before them answered
        "inputs": {"x": REQUEST},
        "share": stage.share,
        "latency": {} if is_measured else latency,
        "max_batch": max_batch,
    }
    model = None
    if stage.file is not None:
        model = ModelSpec(file=stage.file, features=stage.features, columns=stage.columns, rows=stage.rows_file)
    return StageSpec.model_validate_json(json.dumps(body)).model_copy(update={"model": model})


def _check_profiles(spec: PipelineSpec, run: Run) -> None:
    is_pinned = build_placement(spec.placement).is_pinned
    for name, stage in spec.stages_by_name.items():
        if stage.model is None or load_profile(name, run) is None:
            continue
        made_from = fingerprint_model(locate_model(name, stage.model, run), stage.model, is_pinned=is_pinned)
        if load_profile(name, run, made_from=made_from) is None:
            message = "the stored profile belongs to another model: the cascade was trained again"
            raise user_error(message, key=f"stages.{name}", hint="unfold profile SPEC measures it again")


def _build_source(model: ModelSpec, run: Run, *, path: str = "", code: str = "", folder: str = "") -> ModelSource:
    return ModelSource(
        path=path,
        code=code,
        folder=folder,
        columns=model.columns or (),
        start_s=model.start or DEFAULT_START_S,
        features=model.features,
        rows_file="" if model.rows is None else str(run.path(model.rows, key="stages")),
        outputs=tuple((model.outputs or {}).items()),
    )


def _build_stage(
    name: str, positions: Mapping[str, int], spec: PipelineSpec, prices: Mapping[str, ReplicaPrice], run: Run
) -> Stage:
    stage = spec.stages_by_name[name]
    imported = {
        hardware: load_perf_analyzer_latencies(files, f"stages.{name}.perf_analyzer.{hardware}", run)
        for hardware, files in stage.perf_analyzer.items()
    }
    profile = {timing.batch: timing for timing in require_profile(name, run)} if _uses_profile(name, spec, run) else {}
    measured = {spec.local_hardware: {batch: timing.mean for batch, timing in profile.items()}} if profile else {}
    wake_s = max((timing.wake for timing in profile.values()), default=0.0)
    options = tuple(
        HardwareOption(
            hardware,
            prices[hardware].usd_per_hour,
            _build_latency(name, hardware, points, stage.max_batch, run),
            wake_s if hardware in measured else 0.0,
            spec.hardware[hardware].per_instance,
        )
        for hardware, points in {**stage.latency, **imported, **measured}.items()
    )
    return replace(_build_flow(name, stage, positions), options=options)


def _build_flow(name: str, stage: StageSpec, positions: Mapping[str, int]) -> Stage:
    return Stage(
        name,
        build_edges(stage.after, list_conditions(stage), positions),
        (),
        stage.share,
        stage.fan_out,
        stage.wait,
        build_inputs(list_inputs(stage), positions),
        math.nan if stage.missing is None else stage.missing,
    )


def _build_latency(stage: str, hardware: str, points: BatchLatency, max_batch: int | None, run: Run) -> FloatArray:
    measured = sorted(points.items())
    if any(larger < smaller for (_, smaller), (_, larger) in itertools.pairwise(measured)):
        run.log.warning("stages.%s.latency.%s: a larger batch is faster than a smaller one", stage, hardware)
    latency_s = interpolate_latency(measured)
    return latency_s if max_batch is None else latency_s[: min(max_batch, math.inf, latency_s.size - 1) + 1]


def _uses_profile(name: str, spec: PipelineSpec, run: Run) -> bool:
    """Return whether a stage is planned by its profile on this machine.

    Latencies of the spec override a profile; with latencies on other hardware only, a stored profile is optional.
    """
    stage = spec.stages_by_name[name]
    hardware = {*stage.latency, *stage.perf_analyzer}
    if stage.model is None or spec.local_hardware in hardware:
        return False
    return not hardware or load_profile(name, run) is not None


def _trace_latencies(spec: PipelineSpec, run: Run) -> LatencySources:
    """Return which stages have a profile, which of them are planned by it, and where it was measured."""
    stages = spec.stages_by_name
    loaded = {name: load_profile(name, run) for name in sort_stages(stages)}
    profiles = {name: timings for name, timings in loaded.items() if timings is not None}
    with_model = [name for name in profiles if stages[name].model]
    measured = [name for name in with_model if _uses_profile(name, spec, run)]
    processors = {name: load_profile_machine(name, run) for name in measured}
    return LatencySources(
        machine=spec.local_hardware,
        profiles=profiles,
        measured=tuple(
            MeasuredStages(tuple(name for name in measured if processors[name] == processor), processor)
            for processor in dict.fromkeys(processors.values())
        ),
        overridden=tuple(name for name in with_model if name not in measured),
    )


def _read_recorded_visits(spec: PipelineSpec, pipeline: Pipeline, run: Run) -> CountArray | None:
    return read_visits(run.path(spec.visits, key="visits"), pipeline.stages) if spec.visits else None


def _draw_samples(spec: PipelineSpec, pipeline: Pipeline, recorded: CountArray | None, run: Run) -> tuple[Sample, ...]:
    """Return a sample for each traffic of the spec; arrivals and routes have separate random streams."""
    samples = []
    # recorded visits are those of the rows, in their order
    on_order = ignore_order if recorded is None else None
    for index, (key, traffic) in enumerate(label_arrivals(spec.arrivals)):
        rng = np.random.default_rng([run.seed, 1, index])
        arrivals = load_arrivals(traffic, run, rng, key=key, on_newest_first=on_order, on_unsorted=on_order)
        samples.append(draw_sample(pipeline, arrivals, np.random.default_rng([run.seed, 2, index]), recorded))
    return tuple(samples)


def _build_samplers(
    spec: PipelineSpec, pipeline: Pipeline, samples: Sequence[Sample], recorded: CountArray | None, run: Run
) -> tuple[Sampler, ...]:
    """Return samplers of fresh traffic: from its process or from blocks of its trace; recorded routes are mixed."""

    def draw_fresh(key: str, traffic: Arrivals, sample: Sample, rng: np.random.Generator) -> Sample:
        if traffic.trace is not None:
            arrivals = draw_fresh_arrivals(sample.arrivals, rng)
        else:
            arrivals = load_arrivals(traffic, run, rng, key=key)
        routes = None if recorded is None else recorded[rng.integers(0, len(recorded), len(recorded))]
        return draw_sample(pipeline, arrivals, rng, routes)

    labelled = label_arrivals(spec.arrivals)
    return tuple(
        partial(draw_fresh, key, traffic, sample) for (key, traffic), sample in zip(labelled, samples, strict=True)
    )


def _is_table(trace: str | Path) -> bool:
    """Return whether a trace is a table by its name; text to match in a log does not apply to tables."""
    return ".csv" in Path(trace).suffixes


def _build_exported_stage(name: str, label: str, spec: PipelineSpec, config: Mapping[str, Any]) -> ExportedStage:
    stage, hardware = spec.stages_by_name[name], spec.hardware[config["hardware"]]
    instance = "" if hardware.price is not None else hardware.instance or config["hardware"]
    return ExportedStage(
        name=name,
        label=label,
        after=stage.after,
        share=stage.share,
        fan_out=stage.fan_out,
        max_wait_s=stage.wait,
        conditions=list_conditions(stage),
        inputs=list_inputs(stage),
        missing=stage.missing,
        columns=(stage.model.columns or ()) if stage.model else (),
        features=stage.model.features if stage.model else None,
        outputs=(stage.model.outputs or {}) if stage.model else {},
        model_estimator=(stage.model.estimator or "") if stage.model else "",
        per_instance=hardware.per_instance,
        model_file=stage.model.file if stage.model else None,
        model_code=stage.model.code if stage.model else None,
        hardware=config["hardware"],
        instance=instance,
        gpus=_divide_gpus(_count_gpus(config["hardware"], hardware, instance, spec.region), hardware.per_instance),
        batch=config["batch"],
        replicas=config["replicas"],
    )


def _divide_gpus(gpus: int, replicas: int) -> float:
    """Return the GPUs of each of ``replicas`` on an instance: whole ones, or an equal part of a single GPU."""
    if gpus == 0:
        return 0.0
    return float(gpus // replicas) if gpus >= replicas else 1 / math.ceil(replicas / gpus)


def _count_gpus(name: str, hardware: Hardware, instance: str, region: str) -> int:
    """Return the GPUs of a catalog instance type; of priced hardware, one if it is a GPU by its spec or name."""
    catalog = load_catalog(region)
    if not instance:
        known = (*UNLISTED_GPUS, *gpu_names(map(catalog.find, catalog.names())))
        return int(hardware.gpu is not None or any(is_same_gpu(name, each) for each in known))
    with contextlib.suppress(UnfoldError):
        return catalog.find(instance).gpus
    return 0
