"""The verb ``serve``: requests with deadlines over HTTP, or a trace against the nets of the run in real time."""

from __future__ import annotations

from unfold_supernet.replay.report import measured
from unfold_supernet.schema.models import SupernetSpec
from unfold_supernet.verbs.train import need_torch
from unfoldkit.api import Report, Run, Service


def serve(spec: SupernetSpec, run: Run) -> Service | Report:
    """Return the service of a trained family; with a replay, the report of one that was measured.

    Raises:
        UnfoldError: the run holds no family of this spec, a file of it was changed, or torch is missing.
    """
    need_torch()
    if run.options.get("replay"):
        return measured(spec, run)
    from unfold_supernet.serving.service import service

    return service(spec, run)
