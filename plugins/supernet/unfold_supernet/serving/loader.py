"""What a service runs: subnets of a trained run as views or ONNX models, or a list of ONNX files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from unfold_supernet._types import ShareModel, Task
from unfold_supernet.family.artifacts import SPACE_FILE, SupernetRecord, read_space
from unfold_supernet.family.space_builder import InputShape, SpaceOptions, build_space
from unfold_supernet.members.profile import MemberProfiles
from unfold_supernet.members.runtime import MemberPool
from unfold_supernet.networks.space import Space
from unfold_supernet.replay.problem import ServingOptions
from unfold_supernet.replay.residency import complete_plan, rank_by_accuracy, read_plan
from unfold_supernet.scheduling.engines import EnginePlan
from unfold_supernet.scheduling.escalation import get_small_subnet
from unfold_supernet.scheduling.policies import SubnetProfile
from unfold_supernet.scheduling.residency import Residency
from unfoldkit.api import RunDir, fingerprint, user_error
from unfoldkit.serving.model import Field


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceProblem:
    """A resolved service.

    Attributes:
        name: Name of the spec.
        options: How requests are served.
        space_options: The spec's search space, which the run's must match; ``None`` if it has none.
        members: The list of members, if the spec has one.
        classes: Names of the classes, labels or values.
        task: What the outputs are.
        profiles: Subnets and escalation pairs that meet the guard, or the members.
        record: What training measured; ``None`` for a list of members.
        directory: The run.
        clock: Source of time, in seconds.
        log: Receives warnings.
    """

    name: str
    options: ServingOptions
    space_options: SpaceOptions | None
    members: MemberProfiles | None
    classes: tuple[str, ...]
    task: Task = "classes"
    profiles: tuple[SubnetProfile, ...]
    record: SupernetRecord | None
    directory: RunDir
    clock: Callable[[], float]
    log: logging.Logger


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundModels:
    """Models to serve.

    Attributes:
        models: In the order of the service's profiles.
        inputs: Input tensors.
        version: Fingerprint of the weights.
        pool: Sessions of the members, if they are a list.
        usable: Indices of the models that fit the memory beside the pinned ones.
        has_plan: Whether a plan of this run says which members stay in memory, or all of them do.
        engines: The engine of each subnet of a space, as measured at the start; ``None`` where there is no choice.
    """

    models: tuple[ShareModel, ...]
    inputs: tuple[Field, ...]
    version: str
    pool: MemberPool | None = None
    usable: tuple[int, ...]
    has_plan: bool = True
    engines: EnginePlan | None = None


def bind_models(problem: ServiceProblem) -> BoundModels:
    """Bind what the service runs.

    Raises:
        UnfoldError: The run holds no supernet, or one with another space; or a file was modified.
    """
    return _bind_trained(problem) if problem.members is None else _bind_list(problem, problem.members)


def _bind_list(problem: ServiceProblem, members: MemberProfiles) -> BoundModels:
    names = [profile.name for profile in members.profiles]
    everything = tuple(range(len(names)))
    stored, budget_bytes = None, members.needed_bytes
    if members.memory_bytes is not None and not members.fits:
        budget_bytes = members.memory_bytes
        stored = read_plan(problem.directory, names, budget_bytes)
        if stored and sum(members.costs[index].bytes for index in stored.initial) > budget_bytes:
            # the members were measured again since, and need more
            stored = None
    ranked = rank_by_accuracy([profile.accuracy for profile in members.profiles])
    plan = stored or complete_plan(members.costs, budget_bytes, everything if members.fits else (), ranked)
    residency = Residency(
        costs=members.costs,
        budget_bytes=budget_bytes,
        pinned=frozenset(plan.pinned),
        resident=frozenset(plan.initial),
    )
    pool = MemberPool(members.sources, residency, problem.clock)
    # raised at the start, and logged afterwards
    pool.open_initial()
    pool.report = partial(problem.log.error, "%s: %s", problem.name)
    return BoundModels(
        models=pool.bind(),
        inputs=(Field("x", "FP64", members.size),),
        version=fingerprint(*(source.file.digest for source in members.sources))[:12],
        pool=pool,
        usable=plan.usable,
        has_plan=stored is not None or members.fits,
    )


def _bind_trained(problem: ServiceProblem) -> BoundModels:
    from unfold_supernet.family.checkpoint import NORMS_FILE, WEIGHTS_FILE, read_supernet
    from unfold_supernet.modules.member_engines import (
        MEMBERS_FILE,
        BoundFamily,
        bind_engines,
        bind_shares,
        locate_member,
        read_members,
    )
    from unfold_supernet.networks.supernet import Supernet

    directory, is_module = problem.directory, problem.space_options is None
    if not directory.has(MEMBERS_FILE if is_module else SPACE_FILE):
        raise user_error("this run holds no supernet", file=str(directory.path), hint="unfold train SPEC")
    family: Supernet | BoundFamily
    engines: EnginePlan | None = None
    if problem.space_options is None:
        family = read_members(directory)
        files = [locate_member(name) for name in family.bound]
        inputs = _describe_inputs(family.size, family.extra)
    else:
        family = read_supernet(directory)
        _check_space(problem.space_options, read_space(directory))
        files, inputs = (
            [WEIGHTS_FILE, NORMS_FILE],
            _describe_inputs((family.space.channels, *family.space.size), family.space.extra),
        )
        if problem.record is not None and problem.record.has_engines:
            engines = _choose_engines(problem, problem.record, family)
            family = bind_engines(family, directory, engines)
    return BoundModels(
        models=bind_shares(family, problem.profiles, problem.options.escalate_below, problem.task),
        inputs=inputs,
        version=fingerprint(*(directory.read(name).hex() for name in files))[:12],
        usable=tuple(range(len(problem.profiles))),
        engines=engines,
    )


def _choose_engines(problem: ServiceProblem, record: SupernetRecord, supernet: Any) -> EnginePlan:
    """Choose the engines again on this machine: both are measured for every subnet that is served."""
    from unfold_supernet.modules.member_engines import locate_member
    from unfold_supernet.training.engine_costs import compare_engines

    served = {get_small_subnet(profile) for profile in problem.profiles}
    served |= {profile.fallback for profile in problem.profiles if profile.fallback is not None}
    costs = {subnet.name: subnet.costs for subnet in record.subnets if subnet.name in served}
    if problem.options.engine == "auto":
        size, extra = (supernet.space.channels, *supernet.space.size), supernet.space.extra
        for name in costs:
            with problem.directory.decoding(locate_member(name), "an ONNX model of this supernet") as content:
                costs[name] = compare_engines(supernet.bound[name], content, size, extra)
    return problem.options.plan_engines(costs, record.shared_bytes)


def _check_space(options: SpaceOptions, stored: Space) -> None:
    shape = InputShape(stored.channels, stored.size, stored.extra, stored.classes)
    expected = build_space(options, shape)
    is_same = replace(expected, subnets=()) == replace(stored, subnets=())
    if not is_same or not set(stored.subnets) <= set(expected.subnets):
        raise user_error("the supernet of this run has another space", key="space", hint="unfold train SPEC")


def _describe_inputs(size: tuple[int, ...], extra: int) -> tuple[Field, ...]:
    x = Field("x", "FP64", size)
    return (x, Field("extra", "FP64", (extra,))) if extra else (x,)
