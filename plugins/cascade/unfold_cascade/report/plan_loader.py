"""The plan that a run stores and a service answers by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unfold_cascade.models.zoo import RESUME_HINT
from unfoldkit.api import Run, fail, fingerprint


def load_plan(identity: Any, run: Run, file: str) -> Mapping[str, Any]:
    """Load the plan to serve.

    Args:
        identity: the spec as plain data.
        run: the run, which names the plan among its options.
        file: a file that every trained run stores.

    Raises:
        UnfoldError: there is no plan, or it was made for another spec.
    """
    plan: Mapping[str, Any] = run.options.get("plan") or {}
    if not plan or not run.directory.has(file):
        hint = "unfold train SPEC fits, tunes and certifies it first"
        raise fail("this cascade was not trained: the run holds no plan", file=str(run.directory.path), hint=hint)
    if plan.get("spec_sha256") != fingerprint(identity):
        raise fail("the plan was made for another spec", file=str(run.directory.path), hint=RESUME_HINT)
    return plan
