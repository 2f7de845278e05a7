"""The service of a plan: the selected cascade answers requests, or the baseline where none was selected."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from unfold_cascade.data.dataset import number_label_groups
from unfold_cascade.models.onnx_runtime import (
    ConvertedModel,
    Engine,
    Probe,
    choose_slot_engine,
    convert_model,
    load_probe,
)
from unfold_cascade.models.zoo import RESUME_HINT
from unfold_cascade.planner.policy import StagePolicy, describe_policy, follow
from unfold_cascade.planner.score_tables import ScoreTable, select_confidence
from unfold_cascade.report import sentences
from unfold_cascade.report.dashboard import build_reader
from unfold_cascade.serving.loader import LoadedPlan
from unfold_cascade.serving.metrics import CountPaths, build_path_counter
from unfold_cascade.serving.model import Cascade, Link, ServedBaseline, ServedModel
from unfold_cascade.serving.routes import build_path_table, encode_outputs, list_outputs
from unfoldkit.api import Run, Service, fingerprint, user_error
from unfoldkit.serving.model import Field
from unfoldkit.serving.observability.dashboard import request_dashboard
from unfoldkit.serving.oip.app import build_application
from unfoldkit.serving.oip.app import build_service as build_oip_service

Engines = Mapping[str, Engine]


def build_service(loaded: LoadedPlan, run: Run) -> Service:
    """Build the service of a loaded plan.

    Raises:
        UnfoldError: A file of the run was changed, or its models predict differently now.
    """
    from prometheus_client import CollectorRegistry

    registry, name = CollectorRegistry(), loaded.problem.name
    model, engines = build_cascade(loaded, run, build_counter(loaded, registry))
    app = build_application([model], registry=registry, log=run.log, clock=run.clock)
    reader = build_reader(loaded.tables.unit, loaded.baseline.cost)
    watch = request_dashboard(name, "cascade", app.source.read, reader)
    return build_oip_service(name, app, lines=tuple(_list_lines(loaded, engines)), watch=watch)


def build_counter(loaded: LoadedPlan, registry: Any) -> CountPaths:
    """Build the counter of the execution paths of a loaded plan."""
    paths = build_path_table(loaded.tables, loaded.policy, loaded.problem.dataset.names)
    return build_path_counter(paths, loaded.tables.unit, registry)


def build_cascade(loaded: LoadedPlan, run: Run, count: CountPaths) -> tuple[Cascade, dict[str, Engine]]:
    """Build the model to serve, and the engine of each of its parts.

    Raises:
        UnfoldError: The model routes the probe otherwise than the plan.
    """
    probe = load_probe(loaded.problem.data, loaded.problem.dataset, run.directory)
    for native in (False, True):
        engines = _choose_engines(loaded, run, probe, native=native)
        model = _build_model(loaded, engines, probe, count)
        deviations = count_deviations(loaded, model, probe)
        if not deviations:
            return model, engines
        run.log.warning("%d of %d probe rows differ from the plan; trying native models", deviations, len(probe.rows))
    message = "the models of this run predict differently than in planning"
    raise user_error(message, file=str(run.directory.path), hint=RESUME_HINT)


def count_deviations(loaded: LoadedPlan, model: Cascade, probe: Probe) -> int:
    """Count the rows of the probe that differ from the plan in answer or cost."""
    planned = follow(loaded.tables, loaded.policy, probe.rows)
    result = model.follow(probe.x)
    is_same_cost = np.isclose(model.paths.cost[result.path], planned.cost, rtol=1e-9)
    return int((~((result.answer == planned.answer) & is_same_cost)).sum())


def _choose_engines(loaded: LoadedPlan, run: Run, probe: Probe, *, native: bool) -> dict[str, Engine]:
    keys = {loaded.stored_key(table, m): None for table, stage in loaded.evaluated_stages() for m in stage.chain}
    return {"/".join(key): choose_slot_engine(run, *loaded.models[key], probe, native=native) for key in keys}


def _build_model(loaded: LoadedPlan, engines: Engines, probe: Probe, count: CountPaths) -> Cascade:
    problem, tables, policy = loaded.problem, loaded.tables, loaded.policy
    paths = build_path_table(tables, policy, problem.dataset.names)
    order = problem.dataset.order
    single_labels = {
        group: int(tables.second_stage[group].answer[0, 0])
        for group in policy.second_stage
        if tables.second_stage[group].is_single_label
    }
    second_stage = {
        group: _build_links(loaded, engines, tables.second_stage[group], stage, group)
        for group, stage in policy.second_stage.items()
        if group not in single_labels
    }
    return Cascade(
        name=problem.name,
        version=fingerprint(problem.identity, describe_policy(tables, policy))[:12],
        inputs=(Field("x", "FP64", (len(order),), missing=probe.has_gaps, columns=order),),
        outputs=list_outputs(paths),
        facts=_describe_service(loaded, engines),
        first_stage=_build_links(loaded, engines, tables.first_stage, policy.first_stage, None),
        second_stage=second_stage,
        single_labels=single_labels,
        confidence=select_confidence(problem.gates.confidence, tables.error_costs),
        paths=paths,
        encoded=encode_outputs(paths),
        dtypes=tuple({engine.dtype for engine in engines.values()}),
        count=count,
    )


def _build_links(
    loaded: LoadedPlan, engines: Engines, table: ScoreTable, stage: StagePolicy, group: int | None
) -> tuple[Link, ...]:
    models = [_build_link_model(loaded, engines, table, m, group) for m in stage.chain]
    cuts = [*stage.cuts, -np.inf]
    curves = [*(stage.curves or [None] * len(stage.cuts)), None]
    costs = loaded.tables.error_costs
    return tuple(Link(model, cut, curve, costs) for model, cut, curve in zip(models, cuts, curves, strict=True))


def _build_link_model(
    loaded: LoadedPlan, engines: Engines, table: ScoreTable, m: int, group: int | None
) -> ServedModel | ServedBaseline:
    dataset, key = loaded.problem.dataset, loaded.stored_key(table, m)
    slot, _ = loaded.models[key]
    reads_all = np.array_equal(slot.columns, np.arange(len(dataset.order)))
    model = ServedModel(engines["/".join(key)], None if reads_all else slot.columns, slot.answers)
    if not loaded.is_last_resort(table, m):
        return model
    group_of_label = number_label_groups(loaded.problem.data.label_groups, dataset.names)
    identity = np.eye(len(group_of_label))
    if group is not None:
        labels = np.flatnonzero(group_of_label == group)
        return ServedBaseline(model, identity[:, labels], is_normalized=True, answers=labels)
    if group_of_label.max() == 0:
        return ServedBaseline(model, identity, is_normalized=False, answers=np.arange(len(identity)))
    count = int(group_of_label.max()) + 1
    return ServedBaseline(model, np.eye(count)[group_of_label], is_normalized=False, answers=np.arange(count))


def build_model_finder(loaded: LoadedPlan, run: Run, engines: Engines) -> Callable[[Link], ConvertedModel]:
    """Build what finds the converted model of a link: the slot of its engine, converted for one graph."""
    slots = {}
    for table, stage in loaded.evaluated_stages():
        for m in stage.chain:
            key = loaded.stored_key(table, m)
            slots[id(engines["/".join(key)])] = loaded.models[key][0]

    def find(link: Link) -> ConvertedModel:
        served = link.model.model if isinstance(link.model, ServedBaseline) else link.model
        slot = slots[id(served.engine)]
        return convert_model(run, slot, served.engine.dtype, served.engine.decimals)

    return find


def _describe_service(loaded: LoadedPlan, engines: Engines) -> dict[str, Any]:
    return {
        "kind": "cascade",
        "serves": "cascade" if loaded.is_cascade else "monolith",
        "baseline": loaded.baseline.name,
        "labels": list(loaded.problem.dataset.names),
        "cost_unit": loaded.tables.unit,
        "steps": describe_policy(loaded.tables, loaded.policy),
        "engines": {name: {"engine": engine.name, "why": engine.reason} for name, engine in engines.items()},
    }


def _list_lines(loaded: LoadedPlan, engines: Engines) -> Iterator[tuple[str, str]]:
    """Yield the lines that a starting service prints."""
    yield "serves", sentences.served_policy(loaded.baseline.name, is_cascade=loaded.is_cascade)
    for stage in describe_policy(loaded.tables, loaded.policy):
        yield f"{stage['stage']}/{stage['group']}", " → ".join(stage["models"])
    by_engine: dict[str, list[str]] = {}
    for name, engine in engines.items():
        by_engine.setdefault(f"{engine.name}, {engine.reason}", []).append(name)
    for how, names in by_engine.items():
        yield "engine", sentences.engines(how, names, is_only_one=len(by_engine) == 1)
