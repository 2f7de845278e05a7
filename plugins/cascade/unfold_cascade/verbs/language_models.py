"""The verbs of cascades of language models: a few lines each."""

from __future__ import annotations

from unfold_cascade.language_models.build import build_gateway_plan, build_routing_problem
from unfold_cascade.language_models.gateway.service import build_gateway
from unfold_cascade.language_models.planning.planner import solve_routing
from unfold_cascade.language_models.report.plan import build_routing_report
from unfold_cascade.schema.cascade import CascadeSpec
from unfoldkit.api import Report, Run, Service, user_error


def profile(spec: CascadeSpec, run: Run) -> Report:
    """Call every endpoint on every prompt, within a spending cap, and leave the log in the run."""
    raise user_error(f"{spec.name}: profile needs data: {{source: endpoints}}", file=str(run.directory.path))


def train(spec: CascadeSpec, run: Run) -> Report:
    """Plan: nothing is fitted but the calibrations."""
    return _plan(spec, run, "train")


def plan(spec: CascadeSpec, run: Run) -> Report:
    """Find the cheapest certified route through the models of a log."""
    return _plan(spec, run, "plan")


def serve(spec: CascadeSpec, run: Run) -> Service:
    """Build the gateway of the plan that the run stores; keys come from the environment."""
    return build_gateway(build_gateway_plan(spec, run.options.get("plan") or {}), run.directory.path, run.log)


def _plan(spec: CascadeSpec, run: Run, verb: str) -> Report:
    return build_routing_report(solve_routing(build_routing_problem(spec, run)), run.directory, verb)
