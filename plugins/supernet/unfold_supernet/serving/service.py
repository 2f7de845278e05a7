"""The service of a trained supernet: requests with deadlines in, and a subnet selected for each batch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from unfold_supernet.family.artifacts import SPACE_FILE, SupernetRecord
from unfold_supernet.family.checkpoint import NORMS_FILE, WEIGHTS_FILE, read_supernet
from unfold_supernet.family.space_builder import InputShape, SpaceOptions, build_space
from unfold_supernet.modules.onnx_members import MEMBERS_FILE, OnnxFamily, locate_member, read_members
from unfold_supernet.networks.space import Space
from unfold_supernet.networks.supernet import EscalationPair, Supernet
from unfold_supernet.replay.baselines import make_adaptive
from unfold_supernet.replay.problem import ServingOptions
from unfold_supernet.report import sentences
from unfold_supernet.scheduling.accuracy_levels import build_accuracy_levels
from unfold_supernet.scheduling.escalation import get_small_subnet, set_pair_latency
from unfold_supernet.scheduling.policies import SubnetProfile
from unfold_supernet.serving.metrics import make_dashboard, register_counter
from unfold_supernet.serving.model import SupernetModel
from unfold_supernet.training import latency
from unfoldkit.api import RunDir, Service, fingerprint, user_error
from unfoldkit.serving.batching.batcher import Limits
from unfoldkit.serving.batching.request_queue import DeadlineQueue
from unfoldkit.serving.model import Batch, Call, Field, PathChoice
from unfoldkit.serving.observability.dashboard import request_dashboard
from unfoldkit.serving.oip.app import build_application
from unfoldkit.serving.oip.app import build_service as build_oip_service

ROUNDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceProblem:
    """A resolved service.

    Attributes:
        name: Name of the spec.
        options: How requests are served.
        space_options: The spec's search space, which the run's must match; ``None`` for a user's module.
        record: Measurements of the trained supernet.
        profiles: Subnets and escalation pairs that meet the guard.
        directory: The run.
        clock: Source of time, in seconds.
        log: Receives warnings.
    """

    name: str
    options: ServingOptions
    space_options: SpaceOptions | None
    record: SupernetRecord
    profiles: tuple[SubnetProfile, ...]
    directory: RunDir
    clock: Callable[[], float]
    log: logging.Logger


def build_service(problem: ServiceProblem) -> Service:
    """Build the service; nothing is trained, but latencies are measured anew on this machine.

    Raises:
        UnfoldError: The run holds no supernet, or one with another space.
    """
    from prometheus_client import CollectorRegistry

    torch.set_num_threads(1)
    registry, options = CollectorRegistry(), problem.options
    model = build_model(problem, registry)
    make_policy = partial(make_adaptive, options.policy, options.slo_s)
    levels = build_accuracy_levels(model.profiles, make_policy, model.slowdown)

    def make_queue() -> DeadlineQueue:
        return DeadlineQueue(levels, options.slo_s, problem.clock)

    # never in the event loop: requests must be accepted and stamped while a subnet runs
    limits = Limits(batch_rows=max(profile.max_batch for profile in model.profiles), loop_seconds=0.0)
    app = build_application(
        [model], limits=limits, line=make_queue, registry=registry, log=problem.log, clock=problem.clock
    )
    dashboard = make_dashboard(model.profiles, options.min_attainment)
    watch = request_dashboard(problem.name, "supernet", app.source.read, dashboard)
    return build_oip_service(problem.name, app, lines=_write_lines(options, model), watch=watch)


def build_model(problem: ServiceProblem, registry: Any) -> SupernetModel:
    """Build the served model with latencies measured on this machine.

    Raises:
        UnfoldError: As :func:`build_service`.
    """
    directory, options = problem.directory, problem.options
    supernet = _read_family(problem)
    is_module = isinstance(supernet, OnnxFamily)
    files = [locate_member(name) for name in supernet.bound] if is_module else [WEIGHTS_FILE, NORMS_FILE]
    models = tuple(
        supernet.select(get_small_subnet(profile), profile.fallback, options.escalate_below)
        for profile in problem.profiles
    )
    model = SupernetModel(
        name=problem.name,
        version=fingerprint(*(directory.read(name).hex() for name in files))[:12],
        inputs=_describe_inputs(supernet),
        facts={},
        classes=problem.record.classes,
        profiles=problem.profiles,
        bound=models,
        count_batch=register_counter(registry, problem.profiles),
        clock=problem.clock,
    )
    profiles = tuple(measure_profile(model, index) for index in range(len(problem.profiles)))
    facts = _describe_facts(options, profiles, problem.record.classes)
    return replace(model, profiles=profiles, facts=facts)


def _read_family(problem: ServiceProblem) -> Supernet | OnnxFamily:
    """Read the members of the run: views of shared weights, or the ONNX models of a user's module."""
    directory, is_module = problem.directory, problem.space_options is None
    if not directory.has(MEMBERS_FILE if is_module else SPACE_FILE):
        raise user_error("this run holds no supernet", file=str(directory.path), hint="unfold train SPEC")
    if problem.space_options is None:
        return read_members(directory)
    supernet = read_supernet(directory)
    _check_space(problem.space_options, supernet.space)
    return supernet


def measure_profile(model: SupernetModel, index: int) -> SubnetProfile:
    """Measure the median latency of each batch size on this machine; load is left to the slowdown.

    A pair's subnets are measured separately: trial inputs say nothing about how many rows would be unsure.
    """
    profile, bound = model.profiles[index], model.bound[index]
    if isinstance(bound, EscalationPair):
        split = replace(model, profiles=(profile, profile), bound=(bound.small, bound.large))
        return set_pair_latency(profile, _measure_single(split, 0), _measure_single(split, 1))
    return _measure_single(model, index)


def _measure_single(model: SupernetModel, index: int) -> SubnetProfile:
    seconds, longest = [], 0.0
    for size in latency.BATCHES:
        call = partial(model.predict, _make_trial(model, size, index))
        latency.time_rounds(call, 2, latency.ENOUGH_S / 10, min_rounds=1)
        times = latency.time_rounds(call, ROUNDS, latency.ENOUGH_S)
        # a larger batch measured as faster is noise
        longest = max(longest, float(np.median(times)))
        seconds.append((size, longest))
    return replace(model.profiles[index], seconds=tuple(seconds))


def _make_trial(model: SupernetModel, rows: int, subnet: int) -> Batch:
    inputs = {field.name: np.zeros((rows, *field.shape)) for field in model.inputs}
    return Batch(inputs, (Call(rows),), trial=True, turn=PathChoice(subnet, (0.0,), 0.0))


def _check_space(options: SpaceOptions, stored: Space) -> None:
    shape = InputShape(stored.channels, stored.size, stored.extra, stored.classes)
    expected = build_space(options, shape)
    is_same = replace(expected, subnets=()) == replace(stored, subnets=())
    if not is_same or not set(stored.subnets) <= set(expected.subnets):
        raise user_error("the supernet of this run has another space", key="space", hint="unfold train SPEC")


def _describe_inputs(family: Supernet | OnnxFamily) -> tuple[Field, ...]:
    if isinstance(family, OnnxFamily):
        return (Field("x", "FP64", family.size),)
    space = family.space
    x = Field("x", "FP64", (space.channels, *space.size))
    return (x, Field("extra", "FP64", (space.extra,))) if space.extra else (x,)


def _describe_facts(
    options: ServingOptions, profiles: tuple[SubnetProfile, ...], classes: tuple[str, ...]
) -> dict[str, Any]:
    return {
        "kind": "supernet",
        "policy": options.policy,
        "slo_ms": options.slo_s * 1e3,
        "guard": dict(options.guard),
        "labels": list(classes),
        "nets": {
            profile.name: {
                "expected_accuracy": profile.accuracy / 100,
                "ms": {str(size): time * 1e3 for size, time in profile.seconds},
            }
            for profile in profiles
        },
    }


def _write_lines(options: ServingOptions, model: SupernetModel) -> tuple[tuple[str, str], ...]:
    subnets = [
        sentences.describe_served_subnet(profile.name, profile.accuracy, profile.estimate_latency(1) * 1e3)
        for profile in model.profiles
    ]
    return (
        ("subnets", " · ".join(subnets)),
        ("policy", sentences.explain_policy(options.policy, model.profiles[0].name)),
        ("accuracy", sentences.explain_min_accuracy()),
        ("deadline", sentences.explain_deadline(options.slo_s * 1e3)),
    )
