"""The plan that a run holds, or that was named: what is served, and what new data is held against."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from unfold_cascade.models.zoo import AGAIN
from unfold_cascade.schema.models import CascadeSpec
from unfoldkit.api import Run, dump, fail, fingerprint


def renewed(spec: CascadeSpec, run: Run, file: str, current: Callable[[], bool]) -> CascadeSpec | None:
    """Return the spec of the plan to check, if the run holds ``file`` and ``spec`` names other data; else nothing.

    Args:
        spec: as given now.
        run: holds the plan to check among its options, if one is.
        file: what a trained run holds.
        current: tells whether the data of ``spec`` are those that the run was made from.

    Raises:
        UnfoldError: beside the data, something else in the spec changed too, so there is no one thing to check.
    """
    baseline: Mapping[str, Any] = run.options.get("baseline_plan") or {}
    if not baseline or not run.directory.has(file) or "spec" not in baseline:
        return None
    # read as JSON: only there may a list stand for a tuple
    before = CascadeSpec.model_validate_json(json.dumps(baseline["spec"]))
    same = dump(before.data) == dump(spec.data)
    if same and (dump(before) != dump(spec) or current()):
        return None
    if dump(before.model_copy(update={"data": spec.data})) != dump(spec):
        hint = "check the new data with the spec of the plan: unfold plan --check PLAN --set data.path=..."
        raise fail("the data and other keys of the spec changed together", key="data", hint=hint)
    return before


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
