"""The verbs of cascades over time. Each resolves the spec once; nothing below this module sees it."""

from __future__ import annotations

from dataclasses import replace

from unfold_cascade.build import find_checked_spec
from unfold_cascade.drift.temporal_recalibration import recalibrate_hours
from unfold_cascade.drift.temporal_validation import validate_hours
from unfold_cascade.report.certificate import add_left_out_sites
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.serving.loader import load_plan
from unfold_cascade.temporal.build import build_temporal_problem
from unfold_cascade.temporal.data.labels import HOURS_FILE, are_hours_current
from unfold_cascade.temporal.handoff import write_exits
from unfold_cascade.temporal.models.study import fit_study
from unfold_cascade.temporal.problem import PsvSource, TemporalProblem
from unfold_cascade.temporal.report.plan import build_plan_report, build_profile_report
from unfold_cascade.temporal.search.planner import evaluate_patient_sites, record_certificate, solve
from unfold_cascade.temporal.serving.plan_loader import load_temporal_plan
from unfold_cascade.temporal.serving.service import build_service
from unfoldkit.api import Report, Run, Service


def profile(spec: CascadeSpec, run: Run) -> Report:
    """Fit the models that the run does not hold yet and report what one call of each costs."""
    return build_profile_report(fit_study(build_temporal_problem(spec, run), run), run.directory)


def train(spec: CascadeSpec, run: Run) -> Report:
    """Fit all models, find the cheapest cascade that is certified, and save it in the run."""
    return _plan(build_temporal_problem(spec, run), run, "train")


def plan(spec: CascadeSpec, run: Run) -> Report:
    """Find the cheapest certified cascade; models that the run does not hold yet are fitted first.

    With new data and a plan to check, no plan is made: the plan's cascade is run on the new hours instead.
    """
    problem = build_temporal_problem(spec, run)
    if run.options.get("recalibrate"):
        return recalibrate_hours(_with_data(problem, run, run.options["recalibrate"]), problem, run)
    checked = find_checked_spec(spec, run, HOURS_FILE, lambda: are_hours_current(problem, run))
    if checked is not None:
        return validate_hours(problem, build_temporal_problem(checked, run), run, "plan")
    return _plan(problem, run, "plan")


def validate(spec: CascadeSpec, run: Run) -> Report:
    """Compare the promises of the run's plan with new patients."""
    problem = build_temporal_problem(spec, run)
    return validate_hours(_with_data(problem, run, run.options["data"]), problem, run, "validate")


def serve(spec: CascadeSpec, run: Run) -> Service:
    """Serve the plan that ``train`` or ``plan`` left in the run; nothing is fitted and no table is read.

    Raises:
        UnfoldError: The run holds no plan of this spec, a file was changed, the models behave differently now, or the
            stored states belong to another plan.
    """
    problem = build_temporal_problem(spec, run)
    document = load_plan(problem.documents.spec, run, HOURS_FILE)
    return build_service(load_temporal_plan(problem, run, document), run)


def _with_data(problem: TemporalProblem, run: Run, path: str) -> TemporalProblem:
    """Replace the table of a problem by new data, all patients of it."""
    resolved = str(run.path(path).resolve())
    if isinstance(problem.source, PsvSource):
        return replace(problem, source=PsvSource(resolved))
    return replace(problem, source=replace(problem.source, path=resolved, split_column=""))


def _plan(problem: TemporalProblem, run: Run, verb: str) -> Report:
    study = fit_study(problem, run)
    run.log.info("searching the gates on %d hours", len(study.train.highest))
    solution = solve(study, run.progress)
    write_exits(solution, run)
    report = build_plan_report(solution, verb, run.directory, record_certificate(solution, run))
    return add_left_out_sites(report, evaluate_patient_sites(problem, run), problem.goal.max_loss)
