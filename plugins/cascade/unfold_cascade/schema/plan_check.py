"""The spec of a plan under check (``plan --check``), and whether a new spec differs from it in its data only."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from unfold_cascade.schema.cascade import CascadeSpec
from unfoldkit.api import Run, dump, fail


def find_checked_spec(spec: CascadeSpec, run: Run, file: str, is_same_data: Callable[[], bool]) -> CascadeSpec | None:
    """Find the spec of the plan to check, if the run stores ``file`` and ``spec`` names other data.

    Args:
        spec: the new spec.
        run: names the plan to check among its options, if there is one.
        file: a file that every trained run stores.
        is_same_data: whether the run was made from the data of ``spec``.

    Raises:
        UnfoldError: other keys than the data changed, so there is no single cause to check.
    """
    plan: Mapping[str, Any] = run.options.get("baseline_plan") or {}
    if not plan or not run.directory.has(file) or "spec" not in plan:
        return None
    # validated as JSON: only there may a list stand for a tuple
    checked = CascadeSpec.model_validate_json(json.dumps(plan["spec"]))
    is_same_source = dump(checked.data) == dump(spec.data)
    if is_same_source and (dump(checked) != dump(spec) or is_same_data()):
        return None
    if dump(checked.model_copy(update={"data": spec.data})) != dump(spec):
        hint = "check the new data with the spec of the plan: unfold plan --check PLAN --set data.path=..."
        raise fail("the data and other keys of the spec changed together", key="data", hint=hint)
    return checked
