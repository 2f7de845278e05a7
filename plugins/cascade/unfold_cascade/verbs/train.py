"""`train`: fit, calibrate, certify, compare with the monolith, save."""

from __future__ import annotations

from dataclasses import replace

from unfold_cascade.data.dataset import left_out
from unfold_cascade.models.onnx_runtime import keep_probe
from unfold_cascade.planner.planner import decide
from unfold_cascade.report import handoff
from unfold_cascade.report.plan import tell
from unfold_cascade.schema.models import CascadeSpec
from unfold_cascade.verbs import temporal
from unfoldkit.api import Report, Run


def train(spec: CascadeSpec, run: Run) -> Report:
    """Fit every model of the cascade and of the baseline, tune and certify the gates, and save all of it in the run."""
    if spec.over_time:
        return temporal.train(spec, run)
    found = decide(spec, run)
    if spec.data.source != "recorded":
        keep_probe(spec, run, found.given)
    handoff.keep(found, run)
    report = tell(found, run, "train")
    return replace(report, notes=(*report.notes, *left_out(found.given)))
