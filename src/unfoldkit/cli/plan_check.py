"""`plan --check plan.yaml`: does the plan still come out as it was committed?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from unfoldkit.errors import Diagnostic, UnfoldError, shorten
from unfoldkit.io.yaml12 import PLAN_SCHEMA
from unfoldkit.report import Cell, Column, Report, Table, Verdict, plain
from unfoldkit.spec.yaml_reader import read_document

TOLERANCE = 1e-9
MISSING = "absent"


def read_plan(path: Path) -> Mapping[str, Any]:
    """Return a committed plan.

    Raises:
        UnfoldError: the file is not a plan.
    """
    data = read_document(str(path)).data
    if not isinstance(data, dict) or data.get("schema") != PLAN_SCHEMA or not isinstance(data.get("decision"), dict):
        raise UnfoldError(Diagnostic("not a plan", str(path), 1, 1, hint="unfold plan SPEC --out plan.yaml writes one"))
    return data


def compare(report: Report, baseline: Mapping[str, Any], file: str) -> Report:
    """Return the report with its drift from ``baseline``: verdict no, and a table, if the decisions differ."""
    found = list(differences(baseline["decision"], plain(report.decision or {})))
    if report.verdict is Verdict.NO and report.decision is baseline["decision"]:
        # the committed plan itself was judged, not planned again: the report says why it does not do
        return report
    if not found:
        return replace(report, lines=(*report.lines, ("check", f"the plan is still that of {file}")))
    rows: tuple[tuple[Cell, ...], ...] = tuple((key, _cell(old), _cell(new)) for key, old, new in found)
    table = Table("drift", (Column("key"), Column(f"in {file}"), Column("now")), rows)
    places = "1 place" if len(found) == 1 else f"{len(found)} places"
    reasons = [key for key in ("spec_sha256", "seed", "versions", "inputs") if _changed(baseline, report, key)]
    why = f"changed since: {', '.join(reasons)}" if reasons else "spec, seed, inputs and versions are the same"
    return replace(
        report,
        verdict=Verdict.NO,
        headline=f"the plan drifted from {file} in {places}",
        tables=(*report.tables, table),
        lines=(*report.lines, ("drift", why)),
    )


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield ``(key, old, new)`` for every leaf that differs; numbers may differ by rounding."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            yield from differences(
                old.get(name, MISSING), new.get(name, MISSING), f"{key}.{name}" if key else str(name)
            )
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from differences(left, right, f"{key}[{index}]")
    elif not _same(old, new):
        yield key, old, new


def _same(old: Any, new: Any) -> bool:
    numbers = (int, float)
    if isinstance(old, numbers) and isinstance(new, numbers) and not isinstance(old, bool):
        return math.isclose(old, new, rel_tol=TOLERANCE, abs_tol=1e-12)
    return bool(old == new)


def _changed(baseline: Mapping[str, Any], report: Report, key: str) -> bool:
    return bool(baseline.get(key) != plain(report.provenance.get(key)))


def _cell(value: Any) -> Cell:
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return shorten(str(value))
