"""The verbs for cases without time: a few lines each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from unfold_cascade.build import build_dataset_options, build_problem, build_table_source, find_checked_spec
from unfold_cascade.data.dataset import DATASET_FILE, dataset_fingerprint, load_stored_dataset
from unfold_cascade.data.table import TableSource
from unfold_cascade.drift.recalibration import recalibrate_cases
from unfold_cascade.drift.static_validation import validate_cases
from unfold_cascade.models.onnx_runtime import ONNX, load_probe
from unfold_cascade.models.zoo import fit_models
from unfold_cascade.planner.leave_one_site_out import evaluate_sites
from unfold_cascade.planner.planner import FRONT_FILE, solve
from unfold_cascade.planner.score_tables import build_tables
from unfold_cascade.report.certificate import add_left_out_sites
from unfold_cascade.report.handoff import write_handoff
from unfold_cascade.report.plan import build_plan_report
from unfold_cascade.report.profile import build_profile_report
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.serving.loader import LoadedPlan, load_plan, load_stored_plan
from unfold_cascade.serving.onnx_graph import build_graph, run_graph
from unfold_cascade.serving.service import build_cascade, build_model_finder, build_service
from unfoldkit.api import Report, Run, Service, dump, internal_error, user_error


def profile(spec: CascadeSpec, run: Run) -> Report:
    """Fit the models that the run does not store, and report the operations, bytes and time of one row."""
    if spec.data.source == "recorded":
        raise user_error("recorded models cannot be measured: the spec has their prices", key="data.source")
    problem = build_problem(spec, run)
    models = fit_models(problem.zoo, problem.data, problem.dataset, run)
    build_tables(problem, models)
    return build_profile_report(problem, models, run.directory)


def train(spec: CascadeSpec, run: Run) -> Report:
    """Fit all models, tune and certify the gates, and save everything in the run."""
    problem = build_problem(spec, run)
    solution = solve(problem, run)
    if not problem.is_recorded:
        load_probe(problem.data, problem.dataset, run.directory)
    write_handoff(solution, run)
    report = build_plan_report(solution, run.directory, "train")
    return add_left_out_sites(report, evaluate_sites(problem, run), problem.goal.max_loss)


def plan(spec: CascadeSpec, run: Run) -> Report:
    """Find the cheapest certified cascade, or compare new data with those of a plan (``--check``)."""
    if run.options.get("recalibrate"):
        return recalibrate_cases(*_load_with_data(spec, run, run.options["recalibrate"]), run)
    checked = find_checked_spec(spec, run, FRONT_FILE, lambda: _is_same_data(spec, run))
    if checked is not None:
        return _check(checked, spec, run)
    problem = build_problem(spec, run)
    solution = solve(problem, run)
    write_handoff(solution, run)
    report = build_plan_report(solution, run.directory, "plan")
    return add_left_out_sites(report, evaluate_sites(problem, run), problem.goal.max_loss)


def validate(spec: CascadeSpec, run: Run) -> Report:
    """Compare the promises of the run's plan with new cases."""
    return validate_cases(*_load_with_data(spec, run, run.options["data"]), run, "validate")


def serve(spec: CascadeSpec, run: Run) -> Service:
    """Build the service of the plan that the run stores."""
    if spec.data.source == "recorded":
        raise user_error("recorded predictions cannot be served: no model was fitted", key="data.source")
    plan_ = load_plan(dump(spec), run, FRONT_FILE)
    problem = build_problem(spec, replace(run, seed=int(plan_["seed"])), load_stored_dataset(run.directory))
    return build_service(load_stored_plan(problem, plan_, run.directory), run)


def export_onnx(spec: CascadeSpec, run: Run) -> bytes:
    """Export the cascade of a run, and prove on its probe that the graph answers as the service does.

    Raises:
        UnfoldError: The run has no plan, or its cascade has no form in one graph.
    """
    if spec.over_time:
        raise user_error("a cascade over time keeps a state per entity, which one graph cannot", key="data.source")
    if spec.data.source == "recorded":
        raise user_error("recorded predictions cannot be exported: no model was fitted", key="data.source")
    plan_ = load_plan(dump(spec), run, FRONT_FILE)
    problem = build_problem(spec, replace(run, seed=int(plan_["seed"])), load_stored_dataset(run.directory))
    loaded = load_stored_plan(problem, plan_, run.directory)
    if loaded.tables.error_costs.matrix is not None:
        raise user_error("decisions by error costs cannot be written as one ONNX graph", key="goal")
    if any(stage.curves for _, stage in loaded.evaluated_stages()):
        raise user_error("calibrated gates cannot be written as one ONNX graph", key="gates.confidence")
    cascade, engines = build_cascade(loaded, run, _ignore_paths)
    for name, engine in engines.items():
        if engine.name != ONNX:
            raise user_error(f"the model {name} cannot be exported: {engine.reason}")
    confidence = problem.gates.confidence or "max-probability"
    data = build_graph(cascade, build_model_finder(loaded, run, engines), confidence)
    probe = load_probe(problem.data, problem.dataset, run.directory)
    expected, result = cascade.follow(probe.x), run_graph(data, probe.x)
    labels = [cascade.paths.labels[answer] for answer in expected.answer]
    pairs = zip(zip(result.label, result.path, strict=True), zip(labels, expected.path, strict=True), strict=True)
    differing = sum(mine != theirs for mine, theirs in pairs)
    if differing:
        raise internal_error(f"the graph and the service disagree on {differing} of {len(labels)} rows")
    return data


def _load_with_data(spec: CascadeSpec, run: Run, path: str) -> tuple[LoadedPlan, TableSource]:
    """Load the plan of a run, and locate a table of new cases."""
    plan_ = run.options["plan"]
    problem = build_problem(spec, replace(run, seed=int(plan_["seed"])), load_stored_dataset(run.directory))
    source = replace(build_table_source(spec, run), path=path, locate=partial(run.path, path), bundled="")
    return load_stored_plan(problem, plan_, run.directory), source


def _is_same_data(spec: CascadeSpec, run: Run) -> bool:
    fingerprint = dataset_fingerprint(build_dataset_options(spec, run))
    return run.directory.has(DATASET_FILE, made_from=fingerprint)


def _check(checked: CascadeSpec, spec: CascadeSpec, run: Run) -> Report:
    """Compare the data of ``spec`` with the data of the plan, which has the spec ``checked``."""
    plan_ = run.options["baseline_plan"]
    problem = build_problem(checked, replace(run, seed=int(plan_["seed"])), load_stored_dataset(run.directory))
    return validate_cases(load_stored_plan(problem, plan_, run.directory), build_table_source(spec, run), run, "plan")


def _ignore_paths(_paths: Any) -> None:
    """Count nothing: no request is answered."""
