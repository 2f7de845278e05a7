"""The verb ``profile``: latency, load time and memory of each model of a list."""

from __future__ import annotations

from unfold_supernet.members.profile import measure_members
from unfold_supernet.report.members import build_members_report
from unfold_supernet.schema.supernet import SupernetSpec
from unfold_supernet.verbs.build import build_member_list
from unfoldkit.api import Report, Run, user_error


def profile(spec: SupernetSpec, run: Run) -> Report:
    """Measure the members of a list, and store the figures in the run.

    Raises:
        UnfoldError: The spec lists no members, or a file cannot be served.
    """
    if spec.members is None:
        message, hint = "a family is measured when it is trained", "unfold train SPEC, or list members"
        raise user_error(message, key="members", hint=hint)
    members = measure_members(build_member_list(spec, run), run.directory, run.progress, again=True)
    return build_members_report(spec.name, members, "profile")
