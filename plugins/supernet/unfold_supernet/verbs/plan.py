"""The verb ``plan``: which subnets, which cached subgraph, and what it saves."""

from __future__ import annotations

from unfold_supernet.members.profile import measure_members
from unfold_supernet.replay.residency import write_plan
from unfold_supernet.replay.simulated import simulate_replay
from unfold_supernet.report.accelerator import build_study_report
from unfold_supernet.report.members import build_members_report
from unfold_supernet.report.replay import build_simulated_report
from unfold_supernet.schema.supernet import SupernetSpec
from unfold_supernet.study.study import run_study
from unfold_supernet.verbs.build import build_member_list, build_replay_problem, build_study_problem
from unfoldkit.api import Report, Run


def plan(spec: SupernetSpec, run: Run) -> Report:
    """Plan the cached subgraph of a simulated accelerator; with a replay, the subnets that a trace needs.

    Raises:
        UnfoldError: A file is invalid, the supernet is not trained, or no kernel fits the buffers.
    """
    if run.options.get("replay"):
        problem = build_replay_problem(spec, run)
        replayed = simulate_replay(problem, run.progress)
        if replayed.residency is not None:
            write_plan(run.directory, replayed.problem, replayed.residency)
        return build_simulated_report(replayed)
    if spec.members is not None:
        members = measure_members(build_member_list(spec, run), run.directory, run.progress)
        return build_members_report(spec.name, members, "plan")
    study = build_study_problem(spec, run)
    return build_study_report(study, run_study(study, run.progress))
