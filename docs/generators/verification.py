"""The page of verified policies: every shipped policy and pair, by property, from the stored benchmark."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from docs.generators.markdown import code, table

PAGE = "docs/reference/placement-verification.md"
INTRO = """# Verified policies

What `unfold check --verify` finds for every shipped policy, and for every pair of them that a spec may name, with
default options. [Verify a policy](../how-to/verify-a-policy.md) explains the menu of clusters and jobs, the properties,
and how to read actions. Policies with equal results share a row.

"""
NOTES = """
*holds* means: no violation up to the bound of its row, in a complete search; larger cases are not covered. A cell with
actions names the affected job, then the shortest list of actions that a replay confirmed. *by design* marks a
consequence of a strict order or of priority classes. The jobs of the menu have no roles, types, data, deadlines or
predecessors, so policies for these add nothing here. `history` and `locality` depend on real time: nothing is
claimed for them.
"""
BOUND = "nodes,"


def page(folder: Path) -> str:
    """Return the page from the stored result in ``folder``."""
    path = folder / "results" / "placement-verify.json"
    if not path.is_file():
        return f"{INTRO}Not measured yet: `python -m benchmarks placement-verify --write`.\n"
    data: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
    rows: Sequence[Mapping[str, Any]] = data["tables"]["shipped"]
    properties = [name for name in rows[0] if name not in {"policies", "states"}]
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row[name]) for name in properties), []).append(str(row["policies"]))
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    lines = [[", ".join(map(code, names)), _bound(cells), *map(_cell, cells)] for cells, names in ordered]
    return f"{INTRO}{table(['policies', 'bound', *properties], lines)}{NOTES}"


def _bound(cells: Sequence[str]) -> str:
    """Return the bound that the cells state, which is one for a row."""
    return next((cell for cell in cells if BOUND in cell and ":" not in cell), "")


def _cell(text: str) -> str:
    if BOUND in text and ":" not in text:
        return "holds"
    victim, colon, actions = text.rpartition(": ")
    return f"{victim}{colon}{code(actions)}" if colon else text
