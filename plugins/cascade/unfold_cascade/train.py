"""`train`: fit, calibrate, certify, compare with the monolith, save."""

from __future__ import annotations

from unfold_cascade.plan import decide
from unfold_cascade.spec import CascadeSpec
from unfoldkit.api import Report, Run


def train(spec: CascadeSpec, run: Run) -> Report:
    """Fit every model of the cascade and of the baseline, tune and certify the gates, and save all of it in the run."""
    from unfold_cascade.story import tell

    return tell(decide(spec, run), run, "train")
