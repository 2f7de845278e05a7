"""`plan`: tune the gates for the goal, without fitting again what is fitted."""

from __future__ import annotations

from dataclasses import replace

from unfold_cascade.data.dataset import left_out
from unfold_cascade.drift.static import check, new_data
from unfold_cascade.planner.planner import decide
from unfold_cascade.report import handoff
from unfold_cascade.report.plan import tell
from unfold_cascade.schema.models import CascadeSpec
from unfold_cascade.verbs import temporal
from unfoldkit.api import Report, Run


def plan(spec: CascadeSpec, run: Run) -> Report:
    """Return the cheapest certified cascade, or the most accurate within the budget, with the whole front.

    Models that the run does not hold yet are fitted first.
    """
    if spec.over_time:
        return temporal.plan(spec, run)
    before = new_data(spec, run)
    if before is not None:
        return check(spec, before, run)
    found = decide(spec, run)
    handoff.keep(found, run)
    report = tell(found, run, "plan")
    return replace(report, notes=(*report.notes, *left_out(found.given)))
