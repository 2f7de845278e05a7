"""The verb ``serve`` with ``--target``: the scaling rule in charge of an existing deployment."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace

from unfold_pipeline._types import CountArray
from unfold_pipeline.control.controller import DeploymentController, ObservedTuner, ScaleStep, StepLimits
from unfold_pipeline.control.demand import DemandSource, SignalError
from unfold_pipeline.control.http import HttpError, build_authorization, open_client, read_key_file, split_credentials
from unfold_pipeline.control.prometheus import PrometheusSource, escape_label, select_queries
from unfold_pipeline.control.scaled_workloads import ScalingTarget, build_kubernetes_target, find_workloads
from unfold_pipeline.estimator.slo import build_slo_checker
from unfold_pipeline.problem.build import build_problem, resolve_stages
from unfold_pipeline.problem.pipeline import Plan
from unfold_pipeline.problem.problem import Problem
from unfold_pipeline.problem.quotas import build_quota_limits
from unfold_pipeline.report.control import build_control_report
from unfold_pipeline.report.plan_file import parse_saved_plan
from unfold_pipeline.runtime.live_tuner import LiveTuner
from unfold_pipeline.schema.control import ControlSpec
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.tuner.calibration import build_live_rule
from unfold_pipeline.tuner.envelope_rule import build_scaling_context
from unfold_pipeline.tuner.replica_table import build_fixed_batch_table
from unfoldkit.api import Report, Run, Service, UnfoldError, user_error
from unfoldkit.kubernetes.api import ApiError, Patience, connect_api

PREVIEW_TIMEOUT_S = 30.0
PREVIEW_PAUSE_S = 2.0
PATIENCE = Patience(read_s=10.0, tries=2)
"""The next decision repeats what failed, and a longer wait would hide that nothing is scaled."""


def serve_target(spec: PipelineSpec, run: Run, target_name: str) -> Service | Report:
    """Return the controller as a service; with ``--dry-run``, the report of what it would change now.

    Raises:
        UnfoldError: The spec, the plan or the deployment is at fault.
    """
    if spec.engine_stage is not None:
        raise user_error("--target scales no LLM engine", key=f"stages.{spec.engine_stage}.engine")
    if spec.tuner.policy == "fixed":
        raise user_error("the policy scales nothing", key="tuner.policy", hint="leave it out, or table")
    problem = build_problem(resolve_stages(spec, run), run)
    plan = parse_saved_plan(run.options.get("plan"), problem.pipeline)
    if plan is None:
        raise user_error("--target needs a plan", hint="unfold plan SPEC -o plan.yaml; unfold serve plan.yaml --target")
    control = spec.control
    names = tuple(stage.name for stage in problem.pipeline.stages)
    target, source = _open_deployment(problem, control, names, target_name)
    faults, warnings = _check_target(target)
    controller = DeploymentController(
        names=names,
        build_tuner=build_tuner_factory(problem, plan),
        source=source,
        target=target,
        limits=build_step_limits(problem, plan, control),
        log=run.log,
    )
    if run.options.get("dry_run"):
        if faults:
            raise faults[0]
        _require_access(target)
        return build_control_report(spec.name, controller, preview_steps(controller), warnings, control.every)
    # the controller logs the faults: a workload may be created, or freed, after it has started
    for warning in warnings:
        run.log.warning("%s", warning)
    return _build_service(spec.name, controller, control.every)


def _check_target(target: ScalingTarget) -> tuple[list[UnfoldError], list[str]]:
    """Return why workloads cannot be scaled now, and warnings about the others.

    Raises:
        UnfoldError: The deployment does not respond, or refuses access.
    """
    try:
        faults = [replicas.fault for replicas in target.read_replicas() if replicas.fault is not None]
        return faults, target.list_warnings()
    except ApiError as error:
        raise user_error(f"the cluster rejects the request: {error.message}", key="control.kubernetes") from error


def _require_access(target: ScalingTarget) -> None:
    """Refuse an account that may read the deployment and not scale it.

    Raises:
        UnfoldError: A right is missing, or the deployment does not respond.
    """
    try:
        denied = target.list_denied()
    except ApiError as error:
        raise user_error(f"the cluster rejects the request: {error.message}", key="control.kubernetes") from error
    if denied:
        hint = "unfold plan SPEC --format tuner-roles | kubectl apply -f -"
        raise user_error(f"this account may not {', '.join(denied)}", key="control.kubernetes", hint=hint)


def build_tuner_factory(problem: Problem, plan: Plan) -> Callable[[CountArray], ObservedTuner]:
    """Return what makes the rule that a service and a replay apply, in charge of a deployment with some replicas.

    Batch sizes of an existing deployment stay as they are, so that the table has those of the plan only.
    """
    context = build_scaling_context(problem.pipeline, plan, problem.samples, problem.slo_s, problem.spares)
    checker = build_slo_checker(problem.pipeline, problem.samples, problem.slo_s, problem.spares)
    # what another system refuses is unknown, so that no queue of the model is cut
    settings = replace(problem.tuner.admit_plan(plan), max_wait_s=math.inf)
    table = build_fixed_batch_table(checker, plan, settings.max_replicas)

    def build_tuner(replicas: CountArray) -> ObservedTuner:
        rule = build_live_rule(problem.tuner_policy, context, settings, table)
        rule.begin(replicas)
        limits = build_quota_limits(problem.pipeline, plan)
        tuner = LiveTuner(rule=rule, limits=limits, set_delay=rule.set_delay)
        return ObservedTuner(
            tuner=tuner, observe=rule.observe, activation_s=settings.delay_s, expected_s=settings.delay_s
        )

    return build_tuner


def build_step_limits(problem: Problem, plan: Plan, control: ControlSpec) -> StepLimits:
    """Return the bounds of a decision."""
    stages = [control.find_stage(stage.name) for stage in problem.pipeline.stages]
    max_replicas = problem.tuner.admit_plan(plan).max_replicas
    return StepLimits(
        add=control.add,
        remove=control.remove,
        minimum=tuple(stage.min for stage in stages),
        maximum=tuple(max_replicas if stage.max is None else stage.max for stage in stages),
    )


def preview_steps(controller: DeploymentController) -> tuple[ScaleStep, ...]:
    """Return the next steps; wait until counters that are read here have two samples.

    Raises:
        UnfoldError: The demand stays unknown, or the deployment does not respond.
    """
    end_s = time.monotonic() + PREVIEW_TIMEOUT_S
    while True:
        try:
            return controller.propose_steps()
        except SignalError as error:
            is_prometheus = isinstance(controller.source, PrometheusSource)
            if error.reason != "no data" or is_prometheus or time.monotonic() > end_s:
                key = "control.prometheus" if is_prometheus and error.reason == "unreachable" else "control.arrivals"
                raise user_error(str(error), key=key, hint=error.hint) from error
        except ApiError as error:
            raise user_error(f"the cluster rejects the request: {error.message}", key="control.kubernetes") from error
        time.sleep(PREVIEW_PAUSE_S)


def _open_deployment(
    problem: Problem, control: ControlSpec, names: tuple[str, ...], target_name: str
) -> tuple[ScalingTarget, DemandSource]:
    if target_name == "kubernetes":
        return open_kubernetes(problem.name, control, names)
    return _open_ray_serve(problem, control, names)


def open_kubernetes(name: str, control: ControlSpec, names: tuple[str, ...]) -> tuple[ScalingTarget, DemandSource]:
    """Return workloads of Kubernetes and the demand that Prometheus counts.

    Args:
        name: Name of the spec.
        control: The deployment.
        names: Name of each stage.

    Raises:
        UnfoldError: There is no such context or workload, or no server with the demand.
    """
    access = control.kubernetes
    workloads = find_workloads({stage: control.find_stage(stage).workload for stage in names})
    arrivals = control.arrivals or select_queries(name)
    queues = [control.find_stage(stage).queue or "" for stage in names]
    source = _open_prometheus(control, arrivals, queues)
    api = connect_api(
        access.context,
        kubeconfig=access.kubeconfig,
        namespace=access.namespace,
        key="control.kubernetes",
        patience=PATIENCE,
    )
    holder = f"{socket.gethostname()}-{os.getpid()}"
    return build_kubernetes_target(api, workloads, holder, access.lease), source


def _open_ray_serve(
    problem: Problem, control: ControlSpec, names: tuple[str, ...]
) -> tuple[ScalingTarget, DemandSource]:
    from unfold_pipeline.control.ray_serve import (
        ARRIVALS,
        DASHBOARD_TIMEOUT_S,
        QUEUED,
        REFUSALS,
        RayMetricsSource,
        RayServeTarget,
        read_dashboard_url,
        read_token,
    )
    from unfoldkit.engines.ray import connect_ray

    application = control.ray.application
    workloads = tuple(control.find_stage(name).workload or name for name in names)
    ray = connect_ray(control.ray.address)
    target = RayServeTarget(
        ray=ray,
        client=open_client(read_token(), DASHBOARD_TIMEOUT_S),
        dashboard=read_dashboard_url(ray),
        application=application,
        workloads=workloads,
    )
    share, codes = max(sample.share(0) for sample in problem.samples), target.read_refusal_codes()
    if control.prometheus is None:
        _require_no_promql(control, names)
        return target, RayMetricsSource(
            ray=ray,
            client=open_client(),
            application=application,
            workloads=workloads,
            share=share,
            stale_s=control.stale,
            refusal_codes=codes,
        )
    labels = [f'{{application="{escape_label(application)}",deployment="{escape_label(name)}"}}' for name in workloads]
    queues = [
        control.find_stage(name).queue or f"sum({QUEUED}{label})" for name, label in zip(names, labels, strict=True)
    ]
    if control.arrivals is not None:
        return target, _open_prometheus(control, control.arrivals, queues)
    statuses = f'application="{escape_label(application)}",error_code=~"{"|".join(sorted(codes))}"'
    refusals = f'{{__name__=~"{"|".join(REFUSALS)}",{statuses}}}'
    return target, _open_prometheus(control, f"{ARRIVALS}{labels[0]}", queues, share=share, refusals=refusals)


def _require_no_promql(control: ControlSpec, names: tuple[str, ...]) -> None:
    """Refuse signals that only Prometheus could answer, where none is named."""
    queries = {"control.arrivals": control.arrivals}
    queries |= {f"control.stages.{name}.queue": control.find_stage(name).queue for name in names}
    for key, query in queries.items():
        if query is not None:
            hint = "prometheus: http://prometheus.monitoring:9090, or leave it out to read Ray's own metrics"
            raise user_error("no Prometheus server answers this", key=key, hint=hint)


def _open_prometheus(
    control: ControlSpec, arrivals: str, queues: list[str], *, share: float = 1.0, refusals: str = ""
) -> DemandSource:
    if control.prometheus is None:
        hint = "prometheus: http://prometheus.monitoring:9090"
        raise user_error("no server with the demand", key="control.prometheus", hint=hint)
    # messages and the status show the address
    url, credentials = split_credentials(control.prometheus)
    return PrometheusSource(
        client=open_client(authorization=_find_authorization(control, credentials)),
        url=url,
        arrivals=arrivals,
        queues=tuple(queues),
        stale_s=control.stale,
        share=share,
        refusals=refusals,
    )


def _find_authorization(control: ControlSpec, credentials: tuple[str, str] | None) -> Callable[[], str] | None:
    """Return what builds the header for each request to Prometheus, or nothing where it needs none."""
    if control.key_file is not None:
        path = control.key_file
        try:
            read_key_file(path)
        except HttpError as error:
            raise user_error(str(error), key="control.key_file") from error
        return lambda: build_authorization(read_key_file(path), control.user)
    if control.key_env is not None:
        key = os.environ.get(control.key_env, "").strip()
        if not key:
            message = f"the environment variable {control.key_env} is not set"
            raise user_error(message, key="control.key_env", hint=f"export {control.key_env}=...")
        return lambda: build_authorization(key, control.user)
    if credentials is not None:
        user, password = credentials
        return lambda: build_authorization(password, user)
    return None


def _build_service(name: str, controller: DeploymentController, every_s: float) -> Service:
    # this module loads the HTTP stack, which a dry run does not need
    from unfold_pipeline.control.app import PATHS, build_control_app

    app = build_control_app(name, controller, every_s)
    lines = (("target", controller.target.location), ("demand", controller.source.location))
    return Service(name, app, PATHS, lines=lines)
