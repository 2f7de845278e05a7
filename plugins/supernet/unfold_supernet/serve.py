"""The verb ``serve``: a trace against the nets of the run, in real time."""

from __future__ import annotations

from unfold_supernet.replay import measured
from unfold_supernet.spec import SupernetSpec
from unfold_supernet.train import need_torch
from unfoldkit.api import Report, Run, fail


def serve(spec: SupernetSpec, run: Run) -> Report:
    """Return the report of a replay that was measured.

    Raises:
        UnfoldError: there is no trace to replay (requests over HTTP are not answered yet), or torch is missing.
    """
    if not run.options.get("replay"):
        raise fail("a family is served against a trace only, so far", hint="unfold serve SPEC --replay TRACE.csv")
    need_torch()
    return measured(spec, run)
