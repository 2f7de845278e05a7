"""The verb ``plan``: which nets, what to keep on chip, and what it saves."""

from __future__ import annotations

from unfold_supernet.replay import simulated
from unfold_supernet.simulated import accelerator_plan
from unfold_supernet.spec import SupernetSpec
from unfoldkit.api import Report, Run


def plan(spec: SupernetSpec, run: Run) -> Report:
    """Return the plan of a family on a simulated accelerator; with a replay, of a trace that it answers."""
    if run.options.get("replay"):
        return simulated(spec, run)
    return accelerator_plan(spec, run)
