"""Serve a plan over time: load its models, prove on the probe that they match the simulation, start the application."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_cascade._types import Float32, IntArray
from unfold_cascade.models import onnx_runtime
from unfold_cascade.models.zoo import RESUME_HINT
from unfold_cascade.report.dashboard import build_reader
from unfold_cascade.temporal.data.online_features import build_online_features, compute_probe_features
from unfold_cascade.temporal.data.table import Timeline
from unfold_cascade.temporal.data.windows import LARGEST_VALUE
from unfold_cascade.temporal.evaluation.baselines import latch_stages
from unfold_cascade.temporal.problem import CostOptions
from unfold_cascade.temporal.report import sentences
from unfold_cascade.temporal.serving.metrics import CascadeMetrics, build_metrics
from unfold_cascade.temporal.serving.model import (
    HourResult,
    ServedBaseline,
    ServedModel,
    TemporalModel,
    output_fields,
)
from unfold_cascade.temporal.serving.plan_loader import LoadedPlan
from unfold_cascade.temporal.simulation.online_step import build_online_stages
from unfold_cascade.temporal.simulation.policy import ALWAYS_EVALUATED, build_policy_arrays
from unfold_cascade.temporal.simulation.trajectories import ModelScores, Trajectories, simulate_reference
from unfoldkit.api import Run, Service, fingerprint, user_error
from unfoldkit.serving.model import Field
from unfoldkit.serving.observability.dashboard import request_dashboard
from unfoldkit.serving.oip.app import build_application
from unfoldkit.serving.oip.app import build_service as build_oip_service
from unfoldkit.serving.state.entity_model import EntityStateModel
from unfoldkit.serving.state.store import open_store

STATE_FILE = "serving/entities.sqlite"
SECOND_H = 1.0 / 3600.0


def build_service(plan: LoadedPlan, run: Run) -> Service:
    """Build the service of a plan; nothing is fitted and no table is read.

    Raises:
        UnfoldError: The models behave differently from the plan's simulation, or the stored states belong to another
            plan.
    """
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    metrics = build_metrics(plan, registry)
    model = build_model(plan, run, metrics)
    verify_replay(plan, model, run)
    state_file = run.directory.resolve(STATE_FILE)
    store = open_store(state_file, made_from=model.version, durability=plan.problem.durability)
    metrics.export_entity_count(registry, store.count)
    stateful = EntityStateModel(model, store, round(1.0 / model.tick_h), LARGEST_VALUE)
    app = build_application([stateful], registry=registry, close=store.close, log=run.log, clock=run.clock)
    metrics.enable()
    memory = sentences.describe_memory(store.count(), str(state_file), is_synced=plan.problem.durability == "full")
    lines = (*_describe_service(plan, model), ("memory", memory))
    reader = build_reader(name_cost_unit(plan.problem.cost))
    watch = request_dashboard(plan.problem.name, "cascade", app.source.read, reader)
    return build_oip_service(plan.problem.name, app, lines=lines, watch=watch)


def build_model(plan: LoadedPlan, run: Run, metrics: CascadeMetrics) -> TemporalModel:
    """Build the stateful model of a plan."""
    features, problem = build_online_features(plan.features), plan.problem
    x, rows = compute_probe_features(features, plan.probe), plan.probe.rows
    numbers = [] if plan.serves_baseline else plan.policy_models
    served_models = {number: _load_model(plan, run, number, x, rows) for number in numbers}
    policy = build_online_stages(build_policy_arrays(plan.policy, plan.parallel))
    longest = 1 if plan.serves_baseline else sum(len(stage.chain) for stage in policy)
    return TemporalModel(
        name=problem.name,
        version=_fingerprint_plan(plan),
        inputs=(Field("x", "FP64", (len(features.columns),), missing=True, columns=features.columns),),
        outputs=output_fields(longest),
        facts=_list_facts(plan, served_models),
        features=features,
        policy=policy,
        transitions=problem.transitions,
        stages=problem.stage_names,
        models=tuple(slot.place for slot in plan.slots),
        served_models=served_models,
        baseline=_load_baseline(plan, run),
        needs=plan.needs,
        purchase=plan.purchase,
        call_costs=plan.call_costs,
        tick_h=1.0 if plan.has_whole_hours else SECOND_H,
        count=metrics.count,
    )


def verify_replay(plan: LoadedPlan, model: TemporalModel, run: Run) -> None:
    """Replay the probe hour by hour and compare it with the plan's simulation.

    Raises:
        UnfoldError: A stage, a call or a purchase differs.
    """
    replayed = replay_probe(model, plan)
    expected = simulate_probe(plan)
    calls = np.zeros_like(expected.trajectories.calls)
    purchases = np.zeros_like(expected.trajectories.purchases)
    for entity, hours in enumerate(replayed):
        for hour in hours:
            np.add.at(calls[entity], [call.model for call in hour.calls], 1)
            np.add.at(purchases[entity], list(hour.purchases), 1)
    stages = np.array([hour.stage for hours in replayed for hour in hours])
    differs = stages != expected.stage
    same_calls = (calls == expected.trajectories.calls).all()
    same_purchases = (purchases == expected.trajectories.purchases).all()
    if differs.any() or not same_calls or not same_purchases:
        message = f"the models of this run behave differently from its plan: {differs.sum()} of {len(stages)} hours"
        raise user_error(message, file=str(run.directory.path), hint=RESUME_HINT)


def replay_probe(model: TemporalModel, plan: LoadedPlan) -> list[list[HourResult]]:
    """Advance the model through every hour of each entity of the probe, one hour at a time."""
    probe, replayed = plan.probe, list[list[HourResult]]()
    for begin, end in zip(probe.starts[:-1], probe.starts[1:], strict=True):
        memory, entity_hours = None, list[HourResult]()
        for row in range(begin, end):
            values = probe.values[row : row + 1].astype(np.float64)
            hours, memories = model.advance(values, probe.hour[row : row + 1], [memory])
            memory = memories[0]
            entity_hours += hours
        replayed.append(entity_hours)
    return replayed


@dataclass(frozen=True, slots=True)
class SimulatedProbe:
    """The (n,) stages of the probe by the plan's simulation, and its trajectories."""

    stage: IntArray
    trajectories: Trajectories


def simulate_probe(plan: LoadedPlan) -> SimulatedProbe:
    """Simulate the probe on the stored predictions."""
    probe = plan.probe
    p = np.array([prediction.p[probe.rows, -1] for prediction in plan.predictions])
    scores, timeline = ModelScores(p, plan.needs, plan.purchase), Timeline(probe.starts, probe.hour)
    policy = plan.baseline.policy if plan.serves_baseline else plan.policy
    parallel = ALWAYS_EVALUATED if plan.serves_baseline else plan.parallel
    arrays = build_policy_arrays(policy, parallel)
    trajectories = simulate_reference(timeline, scores, arrays, plan.problem.transitions)
    if not plan.serves_baseline:
        return SimulatedProbe(trajectories.stage.astype(np.int64), trajectories)
    stage = latch_stages(plan.predictions[-1].p[probe.rows], probe.starts, plan.baseline.cuts or ())
    return SimulatedProbe(np.where(trajectories.stage == 1, len(plan.problem.stages), stage), trajectories)


def _load_model(plan: LoadedPlan, run: Run, number: int, x: Float32, rows: IntArray) -> ServedModel:
    slot = plan.slots[number]
    native = onnx_runtime.shrink_engine(
        onnx_runtime.build_native_engine(run, slot, "decides near a threshold", dtype=np.float32)
    )
    engine = onnx_runtime.choose_engine(run, slot, plan.predictions[number].p[rows], x)
    if engine.name == onnx_runtime.NATIVE:
        native = onnx_runtime.Engine(native.predict, native.dtype, native.name, engine.reason)
        return ServedModel(native, native, slot.columns)
    return ServedModel(engine, native, slot.columns)


def _load_baseline(plan: LoadedPlan, run: Run) -> ServedBaseline:
    number = len(plan.slots) - 1
    native = onnx_runtime.build_native_engine(run, plan.slots[number], "the baseline", dtype=np.float32)
    return ServedBaseline(
        number=number,
        model=ServedModel(native, native, plan.slots[number].columns),
        stage=build_online_stages(build_policy_arrays(plan.baseline.policy, ALWAYS_EVALUATED))[0],
        cuts=plan.baseline.cuts or (),
        audit_share=plan.problem.audit_share,
        serves_all=plan.serves_baseline,
    )


def _fingerprint_plan(plan: LoadedPlan) -> str:
    """Fingerprint all that stored states depend on; its layout is fixed, because stored states carry it."""
    cuts = [[list(stage.chain), [list(span) for span in stage.spans], stage.cut, *stage.owned] for stage in plan.policy]
    rule = [plan.baseline.policy[-1].cut, list(plan.baseline.cuts or ()), plan.serves_baseline]
    made_from = [slot.made_from for slot in plan.slots]
    return fingerprint(plan.problem.documents.spec, repr(cuts), repr(rule), made_from)[:12]


def _list_facts(plan: LoadedPlan, served_models: Mapping[int, ServedModel]) -> dict[str, Any]:
    return {
        "kind": "cascade",
        "serves": "monolith" if plan.serves_baseline else "cascade",
        "stages": list(plan.problem.stage_names),
        "time": "hour" if plan.has_whole_hours else "second",
        "audit": plan.problem.audit_share,
        "engines": {
            plan.slots[number].place: {"engine": model.fast.name, "why": model.fast.reason}
            for number, model in served_models.items()
        },
    }


def name_cost_unit(cost: CostOptions) -> str:
    """Name the unit of the costs counted while serving: always prices, whatever the cascade was selected by."""
    return sentences.name_cost_unit(cost.unit if cost.by == "price" else None)


def _describe_service(plan: LoadedPlan, model: TemporalModel) -> list[tuple[str, str]]:
    if plan.serves_baseline:
        return [("serves", sentences.describe_served_baseline())]
    lines = [("serves", sentences.describe_served_cascade())]
    for name, stage in zip(model.stages, model.policy, strict=True):
        chain = [model.models[number].split("/", 1)[1] for number in stage.chain]
        lines.append((name, sentences.describe_chain(chain, is_parallel=stage.parallel)))
    engines = _describe_engines(list(model.served_models.values()))
    return [*lines, ("engine", engines), ("audit", sentences.describe_audit(plan.problem.audit_share))]


def _describe_engines(models: Sequence[ServedModel]) -> str:
    converted = sum(model.fast.name == onnx_runtime.ONNX for model in models)
    return sentences.describe_engines(onnx_runtime.ONNX, converted, len(models))
