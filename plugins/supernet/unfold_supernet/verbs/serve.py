"""The verb ``serve``: requests with deadlines over HTTP, or a trace against the subnets of the run in real time."""

from __future__ import annotations

from typing import Any

import numpy as np

from unfold_supernet.members.profile import read_members
from unfold_supernet.members.runtime import MemberPool
from unfold_supernet.replay.measured import RequestRows, measure_replay
from unfold_supernet.replay.problem import ReplayProblem
from unfold_supernet.report.replay import build_measured_report
from unfold_supernet.scheduling.residency import Residency
from unfold_supernet.schema.supernet import SupernetSpec
from unfold_supernet.verbs.build import (
    build_dataset,
    build_member_list,
    build_replay_problem,
    build_service_problem,
)
from unfold_supernet.verbs.train import require_torch
from unfoldkit.api import Report, Run, Service

TRIAL_ROWS = 512
"""Random rows that the requests of a replay carry where the spec has no data."""


def serve(spec: SupernetSpec, run: Run) -> Service | Report:
    """Serve a trained supernet; with a replay, measure a trace and report it.

    Raises:
        UnfoldError: The run holds no supernet of this spec, a file of it was modified, or torch is missing.
    """
    if spec.members is None:
        require_torch()
    if not run.options.get("replay"):
        from unfold_supernet.serving.service import build_service

        return build_service(build_service_problem(spec, run))
    problem = build_replay_problem(spec, run)
    if spec.members is not None:
        return _measure_members(spec, run, problem)
    from unfold_supernet.family.checkpoint import read_supernet
    from unfold_supernet.modules.member_engines import bind_engines, bind_shares
    from unfold_supernet.modules.member_engines import read_members as read_module_members

    if spec.model is not None:
        family: Any = read_module_members(run.directory)
    else:
        family = read_supernet(run.directory)
        family = family if problem.engines is None else bind_engines(family, run.directory, problem.engines)
    data = build_dataset(spec, run)
    models = bind_shares(family, problem.profiles, problem.options.escalate_below, data.task)
    rows = RequestRows(data.x[data.test], data.extra[data.test])
    return build_measured_report(measure_replay(problem, models, rows, run.clock, run.progress))


def _measure_members(spec: SupernetSpec, run: Run, problem: ReplayProblem) -> Report:
    """Measure a trace against a list of members; requests carry normal numbers."""
    members = read_members(build_member_list(spec, run), run.directory)
    x = np.random.default_rng(run.seed).normal(size=(TRIAL_ROWS, *members.size)).astype(np.float32)
    everything = Residency(costs=members.costs, budget_bytes=members.memory_bytes or members.needed_bytes)
    pool = MemberPool(members.sources, everything, run.clock)
    rows = RequestRows(x, np.zeros((TRIAL_ROWS, 0), np.float32))
    return build_measured_report(measure_replay(problem, pool.bind(), rows, run.clock, run.progress, pool))
