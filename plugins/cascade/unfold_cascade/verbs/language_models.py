"""The verbs of cascades of language models: a few lines each."""

from __future__ import annotations

from unfold_cascade.language_models.build import (
    build_collection,
    build_gateway_plan,
    build_routing_problem,
    list_exports,
)
from unfold_cascade.language_models.collection.report import collect_log
from unfold_cascade.language_models.gateway.service import build_gateway
from unfold_cascade.language_models.planning.planner import solve_routing
from unfold_cascade.language_models.report.plan import build_routing_report
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.schema.language_models import Collection
from unfoldkit.api import Report, Run, Service, user_error


def profile(spec: CascadeSpec, run: Run) -> Report:
    """Call every endpoint on every prompt, within a spending cap, and leave the log in the run."""
    task, identity = build_collection(spec, run)
    return collect_log(spec.name, task, identity, (spec.collect or Collection()).retries, run)


def train(spec: CascadeSpec, run: Run) -> Report:
    """Plan: nothing is fitted but the calibrations."""
    return _plan(spec, run, "train")


def plan(spec: CascadeSpec, run: Run) -> Report:
    """Find the cheapest certified route through the models of a log."""
    return _plan(spec, run, "plan")


def validate(spec: CascadeSpec, run: Run) -> Report:
    """Reject the verb: a route is validated by a plan on the new log, or by the audit of its gateway.

    Raises:
        UnfoldError: Always.
    """
    hint = f"unfold plan SPEC --set data.path={run.options['data']} certifies on the new log; the gateway audits itself"
    raise user_error(f"{spec.name}: routes of language models are not validated on other data", key="data", hint=hint)


def serve(spec: CascadeSpec, run: Run) -> Service:
    """Build the gateway of the plan that the run stores; keys come from the environment."""
    return build_gateway(build_gateway_plan(spec, run.options.get("plan") or {}), run.directory.path, run.log)


def _plan(spec: CascadeSpec, run: Run, verb: str) -> Report:
    solution = solve_routing(build_routing_problem(spec, run), run.progress)
    if solution.route is not None:
        for name, text in list_exports(spec, solution):
            run.directory.write(f"exports/{name}", text.encode())
    return build_routing_report(solution, run.directory, verb)
