"""The service of a supernet or a list of members: requests with deadlines in, and a subnet selected for each batch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from unfold_supernet.replay.baselines import make_adaptive
from unfold_supernet.replay.problem import ServingOptions
from unfold_supernet.report import sentences
from unfold_supernet.report.tables import describe_engine_plan
from unfold_supernet.scheduling.accuracy_levels import build_accuracy_levels, build_resident_levels
from unfold_supernet.scheduling.escalation import set_pair_latency
from unfold_supernet.scheduling.policies import SubnetProfile
from unfold_supernet.scheduling.speed import ENOUGH_S, time_rounds
from unfold_supernet.serving.loader import BoundModels, ServiceProblem, bind_models
from unfold_supernet.serving.metrics import make_dashboard, register_counter
from unfold_supernet.serving.model import SupernetModel
from unfoldkit.api import Service
from unfoldkit.serving.batching.batcher import Limits
from unfoldkit.serving.batching.request_queue import DeadlineQueue, ExecutionPaths
from unfoldkit.serving.model import Batch, Call, PathChoice
from unfoldkit.serving.observability.dashboard import request_dashboard
from unfoldkit.serving.oip.app import build_application
from unfoldkit.serving.oip.app import build_service as build_oip_service

ROUNDS = 10


def build_service(problem: ServiceProblem) -> Service:
    """Build the service; nothing is trained, but latencies are measured again on this machine.

    Raises:
        UnfoldError: The run holds no supernet, or one with another space.
    """
    from prometheus_client import CollectorRegistry

    registry, options = CollectorRegistry(), problem.options
    bound = bind_models(problem)
    model = build_model(problem, bound, registry)
    levels = _build_levels(options, model, bound)

    def make_queue() -> DeadlineQueue:
        return DeadlineQueue(levels, options.slo_s, problem.clock)

    # never in the event loop: requests must be accepted and stamped while a subnet runs
    limits = Limits(batch_rows=max(profile.max_batch for profile in model.profiles), loop_seconds=0.0)
    app = build_application(
        [model], limits=limits, line=make_queue, registry=registry, log=problem.log, clock=problem.clock
    )
    dashboard = make_dashboard(model.profiles, options.min_attainment)
    watch = request_dashboard(problem.name, "supernet", app.source.read, dashboard)
    return build_oip_service(problem.name, app, lines=_write_lines(options, model, bound), watch=watch)


def build_model(problem: ServiceProblem, bound: BoundModels, registry: Any) -> SupernetModel:
    """Build the served model with latencies measured on this machine.

    Args:
        problem: The resolved service.
        bound: What it runs.
        registry: Where its counter is registered.
    """
    usable = [problem.profiles[index] for index in bound.usable]
    model = SupernetModel(
        name=problem.name,
        version=bound.version,
        inputs=bound.inputs,
        facts={},
        classes=problem.classes,
        task=problem.task,
        profiles=tuple(usable),
        bound=tuple(bound.models[index] for index in bound.usable),
        count_batch=register_counter(registry, usable),
        clock=problem.clock,
    )
    if bound.pool is None:
        profiles = tuple(measure_profile(model, index) for index in range(len(usable)))
    else:
        model, profiles = replace(model, take_load_s=bound.pool.take_load_s), _measure_list(model, bound)
    return replace(model, profiles=profiles, facts=_describe_facts(problem.options, model, profiles))


def _measure_list(model: SupernetModel, bound: BoundModels) -> tuple[SubnetProfile, ...]:
    """Measure the members one after the other, then bring back those that are resident at the start."""
    assert bound.pool is not None  # noqa: S101 - the caller checks
    residency = bound.pool.residency
    initial = residency.resident
    profiles = tuple(_measure_single(model, index) for index in range(len(model.profiles)))
    for index in sorted(initial):
        bound.pool.acquire(index)
    bound.pool.take_load_s()
    return profiles


def _build_levels(options: ServingOptions, model: SupernetModel, bound: BoundModels) -> ExecutionPaths:
    make_policy = partial(make_adaptive, options.policy, options.slo_s)
    if bound.pool is None or bound.pool.residency.holds_everything:
        return build_accuracy_levels(model.profiles, make_policy, model.slowdown)
    return build_resident_levels(model.profiles, bound.usable, bound.pool.residency, make_policy, model.slowdown)


def measure_profile(model: SupernetModel, index: int) -> SubnetProfile:
    """Measure the median latency of each batch size on this machine; load is left to the slowdown.

    A pair's subnets are measured separately: trial inputs say nothing about how many rows would be unsure.
    """
    profile = model.profiles[index]
    if profile.fallback is not None:
        from unfold_supernet.modules.member_engines import split_pair

        split = replace(model, profiles=(profile, profile), bound=split_pair(model.bound[index]))
        return set_pair_latency(profile, _measure_single(split, 0), _measure_single(split, 1))
    return _measure_single(model, index)


def _measure_single(model: SupernetModel, index: int) -> SubnetProfile:
    seconds, longest = [], 0.0
    # the sizes of the profile: training stops at batches that take too long to be of use
    for size, _ in model.profiles[index].seconds:
        call = partial(model.predict, _make_trial(model, size, index))
        time_rounds(call, 2, ENOUGH_S / 10, min_rounds=1)
        times = time_rounds(call, ROUNDS, ENOUGH_S)
        # a larger batch measured as faster is noise
        longest = max(longest, float(np.median(times)))
        seconds.append((size, longest))
    return replace(model.profiles[index], seconds=tuple(seconds))


def _make_trial(model: SupernetModel, rows: int, subnet: int) -> Batch:
    inputs = {field.name: np.zeros((rows, *field.shape)) for field in model.inputs}
    return Batch(inputs, (Call(rows),), trial=True, turn=PathChoice(subnet, (0.0,), 0.0))


def _describe_facts(
    options: ServingOptions, model: SupernetModel, profiles: tuple[SubnetProfile, ...]
) -> dict[str, Any]:
    # its output of this name is the score of the member that answered
    score = next(item.name for item in model.outputs if item.name.startswith("expected_"))
    return {
        "kind": "supernet",
        "policy": options.policy,
        "slo_ms": options.slo_s * 1e3,
        "guard": dict(options.guard),
        "task": model.task,
        "values" if model.task == "values" else "labels": list(model.classes),
        "nets": {
            profile.name: {
                score: profile.accuracy / 100,
                "ms": {str(size): time * 1e3 for size, time in profile.seconds},
            }
            for profile in profiles
        },
    }


def _write_lines(options: ServingOptions, model: SupernetModel, bound: BoundModels) -> tuple[tuple[str, str], ...]:
    subnets = [
        sentences.describe_served_subnet(profile.name, profile.accuracy, profile.estimate_latency(1) * 1e3)
        for profile in model.profiles
    ]
    memory = () if bound.has_plan else (("memory", sentences.explain_no_residency_plan()),)
    engines = () if bound.engines is None else describe_engine_plan(bound.engines)
    return (
        ("subnets", " · ".join(subnets)),
        *memory,
        *engines,
        ("policy", sentences.explain_policy(options.policy, model.profiles[0].name)),
        ("accuracy", sentences.explain_min_accuracy()),
        ("deadline", sentences.explain_deadline(options.slo_s * 1e3)),
    )
