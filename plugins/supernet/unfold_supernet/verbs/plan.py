"""The verb ``plan``: which nets, what to keep on chip, and what it saves."""

from __future__ import annotations

from unfold_supernet.replay.report import simulated
from unfold_supernet.schema.models import SupernetSpec
from unfold_supernet.study.plan import accelerator_plan
from unfoldkit.api import Report, Run


def plan(spec: SupernetSpec, run: Run) -> Report:
    """Return the plan of a family on a simulated accelerator; with a replay, of a trace that it answers."""
    if run.options.get("replay"):
        return simulated(spec, run)
    return accelerator_plan(spec, run)
