"""The plan that a run holds, or that was named: what is served, and what new data is held against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unfold_cascade.spec import CascadeSpec
from unfold_cascade.zoo import AGAIN
from unfoldkit.api import Run, dump, fail, fingerprint


def planned(spec: CascadeSpec, run: Run, file: str) -> Mapping[str, Any]:
    """Return the plan to serve; ``file`` is what a trained run holds.

    Raises:
        UnfoldError: there is none, or it was made for another spec.
    """
    plan: Mapping[str, Any] = run.options.get("plan") or {}
    if not plan or not run.directory.has(file):
        hint = "unfold train SPEC fits, tunes and certifies it first"
        raise fail("this cascade was not trained: the run holds no plan", file=str(run.directory.path), hint=hint)
    if plan.get("spec_sha256") != fingerprint(dump(spec)):
        raise fail("the plan was made for another spec", file=str(run.directory.path), hint=AGAIN)
    return plan
