"""The page of the figures: every table is made from ``benchmarks/results/*.json``."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.frame import names
from docs.generators.markdown import code, table

INTRO = """# Benchmarks

Figures of one machine, named beside them, beside peers that ran in the same call on the same input. A target that
was not reached is shown as such. `python -m benchmarks NAME --write` measures one again, `python -m benchmarks --all`
all of them; the files that they write are what this page is made from.

"""


def page(folder: Path) -> str:
    """Return the tables of every benchmark in ``folder``."""
    return INTRO + "\n".join(_section(folder, name) for name in names(folder))


def _section(folder: Path, name: str) -> str:
    source = (folder / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    head = f"## {name}\n\n{(ast.get_docstring(ast.parse(source)) or '').replace('``', '`')}\n"
    results = folder / "results" / f"{name}.json"
    if not results.is_file():
        return f"{head}\nNot measured yet: there is no `benchmarks/results/{name}.json`.\n"
    data = json.loads(results.read_text(encoding="utf-8"))
    return "\n".join(part for part in (head, _figures(data), _tables(data), _where(data)) if part)


def _figures(data: Mapping[str, Any]) -> str:
    peers: Mapping[str, Any] = data.get("peers", {})
    aims: Mapping[str, str] = data.get("aims", {})
    metrics = dict.fromkeys([*data["metrics"], *(name for peer in peers.values() for name in peer)])
    rows = [
        [code(name), number(data["metrics"].get(name)), *(number(peer.get(name)) for peer in peers.values())]
        + ([aims.get(name, "")] if aims else [])
        for name in metrics
    ]
    return table(["metric", "unfold", *peers, *(["aim"] if aims else [])], rows)


def _tables(data: Mapping[str, Any]) -> str:
    found = data.get("tables") or {}
    named = found.items() if isinstance(found, Mapping) else [(one["name"], _rows(one)) for one in found]
    return "\n".join(f"### {name}\n\n{_table(rows)}" for name, rows in named if rows)


def _rows(one: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [dict(zip(one["columns"], row, strict=True)) for row in one["rows"]]


def _table(rows: list[Mapping[str, Any]]) -> str:
    heads = list(rows[0])
    return table(heads, [[number(row.get(head)) for head in heads] for row in rows])


def _where(data: Mapping[str, Any]) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in data["machine"].items())
    versions = ", ".join(f"{key} {value}" for key, value in data["versions"].items())
    run = "quick run" if data.get("quick") else "full run"
    notes = "".join(f"- {note}\n" for note in data.get("notes", []))
    return f"Measured on: {machine}; {versions}; {run}, seed {data.get('seed', 0)}.\n" + (f"\n{notes}" if notes else "")


def number(value: Any) -> str:
    """Return a figure with four digits that matter, a missing one as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
