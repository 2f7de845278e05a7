"""The verb ``serve``: requests with deadlines over HTTP, or a trace against the subnets of the run in real time."""

from __future__ import annotations

from unfold_supernet.schema.supernet import SupernetSpec
from unfold_supernet.verbs.build import build_dataset, build_replay_problem, build_service_problem
from unfold_supernet.verbs.train import require_torch
from unfoldkit.api import Report, Run, Service


def serve(spec: SupernetSpec, run: Run) -> Service | Report:
    """Serve a trained supernet; with a replay, measure a trace and report it.

    Raises:
        UnfoldError: The run holds no supernet of this spec, a file of it was modified, or torch is missing.
    """
    require_torch()
    if not run.options.get("replay"):
        from unfold_supernet.serving.service import build_service

        return build_service(build_service_problem(spec, run))
    from unfold_supernet.family.checkpoint import read_supernet
    from unfold_supernet.modules.onnx_members import read_members
    from unfold_supernet.replay.measured import measure_replay
    from unfold_supernet.report.replay import build_measured_report

    problem = build_replay_problem(spec, run)
    family = read_supernet(run.directory) if spec.model is None else read_members(run.directory)
    data = build_dataset(spec, run)
    return build_measured_report(measure_replay(problem, family, data, run.clock, run.progress))
