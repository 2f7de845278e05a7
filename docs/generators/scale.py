"""The page on scale: what stands in it as figures comes from ``benchmarks/results/scale.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docs.generators.benchmarks import number
from docs.generators.markdown import table

INTRO = """# Scale

How large a problem fits on one machine, how time and memory grow, and when you need another tool. The curves come from
`python -m benchmarks scale`. Each point runs in a process of its own, within limits of time and memory; if a point was
not run, its row gives the reason.

"""
ABOUT = {
    "estimator": "Queries through a chain of batching stages. One stage is in memory at a time, so memory grows with "
    "queries and not with stages; time grows with both.",
    "placement": "Tasks under dominant resource fairness, on nodes that are nine tenths busy.",
    "tuning": "The whole exact cost–deadline frontier of successive halving, without sampling.",
    "gates": "Exact gates of three models, with 64 bins each. The search itself depends on the number of bins; each "
    "row is counted once.",
    "server": "`unfold serve --processes N`, single rows, a closed loop with 16 connections a process; the generators "
    "share the cores.",
}
BEYOND = """## When Ray or Kubernetes takes over

- *Plans and replays* are computed on one machine; none of them can be spread over several. Where the tables show
  that ten times more would not fit, plan with a part of the trace: `arrivals.duration`, `workload.replay.first`.
- *Training* takes the cores of this machine; `--engine ray` takes those of a cluster. It pays when a single fit
  takes longer than a worker needs to start.
- *Serving* grows with processes up to the cores of one machine. Beyond that, several machines behind a load balancer
  can serve cascades without time unchanged; a cascade over time keeps the state of its cases on one machine. Pipelines
  run on Ray Serve (`--engine ray`), or are exported to KServe and Triton.
- *Placement* decides on one controller; tasks run on Ray or Kubernetes from the first task on.
"""


def page(folder: Path) -> str:
    """Return the page, with the tables of the stored results in ``folder``."""
    path = folder / "results" / "scale.json"
    data: Mapping[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return INTRO + "\n".join(_curve(name, data) for name in ABOUT) + "\n" + BEYOND


def _curve(name: str, data: Mapping[str, Any]) -> str:
    rows = data.get("tables", {}).get(name, [])
    head = f"## {name.capitalize()}\n\n{ABOUT[name]}\n\n"
    if not rows:
        return head + "Not measured yet: `python -m benchmarks scale --write`.\n"
    heads = list(rows[0])
    texts = [note for note in data.get("notes", []) if note.startswith(f"{name}:")]
    slope = data["metrics"].get(f"{name}_growth")
    grows = [f"Seconds grow as the power {slope:.2f} of the work."] if slope is not None else []
    words = " ".join([*grows, *(f"{note.partition(': ')[2].capitalize()}." for note in texts)])
    return (
        head + table(heads, [[number(row[key]) for key in heads] for row in rows]) + (f"\n{words}\n" if words else "")
    )
