"""``plan --check plan.yaml``: compare a plan with a committed one and report drift."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from unfoldkit.errors import Diagnostic, UnfoldError, shorten
from unfoldkit.io.yaml12 import PLAN_SCHEMA
from unfoldkit.report import Cell, Column, Report, Table, Verdict, to_plain
from unfoldkit.spec.resolve import refuse_other_schema
from unfoldkit.spec.yaml_reader import read_document

TOLERANCE = 1e-9
MISSING = "absent"


class Difference(NamedTuple):
    """A leaf of a decision that differs, with its old and new value."""

    key: str
    old: Any
    new: Any


def read_plan(path: Path) -> Mapping[str, Any]:
    """Read a committed plan.

    Raises:
        UnfoldError: The file is not a plan.
    """
    document = read_document(str(path))
    refuse_other_schema(document)
    data = document.data
    if not isinstance(data, dict) or data.get("schema") != PLAN_SCHEMA or not isinstance(data.get("decision"), dict):
        raise UnfoldError(Diagnostic("not a plan", str(path), 1, 1, hint="unfold plan SPEC --out plan.yaml writes one"))
    return data


def compare_plans(report: Report, baseline: Mapping[str, Any], file: str) -> Report:
    """Return the report with its drift from ``baseline``: verdict no and a table if the decisions differ."""
    differences = list(find_differences(baseline["decision"], to_plain(report.decision or {})))
    if report.verdict is Verdict.NO and report.decision is baseline["decision"]:
        # the verb evaluated the committed plan instead of planning again: its report gives the reasons
        return report
    if not differences:
        return replace(report, lines=(*report.lines, ("check", f"the plan is the same as in {file}")))
    rows: tuple[tuple[Cell, ...], ...] = tuple((key, to_cell(old), to_cell(new)) for key, old, new in differences)
    table = Table("drift", (Column("key"), Column(f"in {file}"), Column("now")), rows)
    places = "1 place" if len(differences) == 1 else f"{len(differences)} places"
    causes = [key for key in ("spec_sha256", "seed", "versions", "inputs") if _has_changed(baseline, report, key)]
    reason = f"changed since: {', '.join(causes)}" if causes else "spec, seed, inputs and versions are the same"
    return replace(
        report,
        verdict=Verdict.NO,
        headline=f"the plan drifted from {file} in {places}",
        tables=(*report.tables, table),
        lines=(*report.lines, ("drift", reason)),
    )


def find_differences(old: Any, new: Any, key: str = "") -> Iterator[Difference]:
    """Yield every leaf that differs; numbers may differ by rounding."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            child = f"{key}.{name}" if key else str(name)
            yield from find_differences(old.get(name, MISSING), new.get(name, MISSING), child)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from find_differences(left, right, f"{key}[{index}]")
    elif not _is_equal(old, new):
        yield Difference(key, old, new)


def _is_equal(old: Any, new: Any) -> bool:
    numbers = (int, float)
    if isinstance(old, numbers) and isinstance(new, numbers) and not isinstance(old, bool):
        return math.isclose(old, new, rel_tol=TOLERANCE, abs_tol=1e-12)
    return bool(old == new)


def _has_changed(baseline: Mapping[str, Any], report: Report, key: str) -> bool:
    return bool(baseline.get(key) != to_plain(report.provenance.get(key)))


def to_cell(value: Any) -> Cell:
    """Return a leaf of a decision as a cell of a table."""
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return shorten(str(value))
