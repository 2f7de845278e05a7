"""``unfold export``: the cascade of a run as one ONNX graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from unfold_cascade.build import build_problem
from unfold_cascade.data.dataset import load_stored_dataset
from unfold_cascade.models.onnx_runtime import ONNX, load_probe
from unfold_cascade.planner.planner import FRONT_FILE
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.serving.loader import load_plan, load_stored_plan
from unfold_cascade.serving.onnx_graph import build_graph, run_graph
from unfold_cascade.serving.service import build_cascade, build_model_finder
from unfoldkit.api import Run, dump, internal_error, user_error


def export_onnx(spec: CascadeSpec, run: Run) -> bytes:
    """Export the cascade of a run, and prove on its probe that the graph answers as the service does.

    Raises:
        UnfoldError: The run has no plan, or its cascade has no form in one graph.
    """
    if spec.over_time:
        raise user_error("a cascade over time keeps a state per entity, which one graph cannot", key="data.source")
    if spec.data.source == "recorded":
        raise user_error("recorded predictions cannot be exported: no model was fitted", key="data.source")
    plan = load_plan(dump(spec), run, FRONT_FILE)
    problem = build_problem(spec, replace(run, seed=int(plan["seed"])), load_stored_dataset(run.directory))
    loaded = load_stored_plan(problem, plan, run.directory)
    if loaded.tables.error_costs.matrix is not None:
        raise user_error("decisions by error costs have no form in one ONNX graph", key="goal")
    if any(stage.curves for _, stage in loaded.evaluated_stages()):
        raise user_error("calibrated gates have no form in one ONNX graph", key="gates.confidence")
    cascade, engines = build_cascade(loaded, run, _ignore_paths)
    for name, engine in engines.items():
        if engine.name != ONNX:
            raise user_error(f"the model {name} has no form in ONNX: {engine.reason}")
    confidence = problem.gates.confidence or "max-probability"
    data = build_graph(cascade, build_model_finder(loaded, run, engines), confidence)
    probe = load_probe(problem.data, problem.dataset, run.directory)
    expected, result = cascade.follow(probe.x), run_graph(data, probe.x)
    labels = [cascade.paths.labels[answer] for answer in expected.answer]
    pairs = zip(zip(result.label, result.path, strict=True), zip(labels, expected.path, strict=True), strict=True)
    differing = sum(mine != theirs for mine, theirs in pairs)
    if differing:
        raise internal_error(f"the graph answers {differing} of {len(labels)} rows otherwise than the service")
    return data


def _ignore_paths(_paths: Any) -> None:
    """Count nothing: no request is answered."""
