"""How time and memory grow with size, on one machine, and what ten times more would take.

Each point runs in a process of its own, within bounds of time and memory; a point that would break one, going by the
point before it, is not run, and the table says so.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BASE_MIB = 190
Size = tuple[int, ...]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of one curve, growing; ``names`` of the numbers of a size, and how many of the last make the work."""

    name: str
    names: tuple[str, ...]
    sizes: tuple[Size, ...]
    counted: int = 2

    def work(self, size: Size) -> int:
        """Return the product of the numbers that make the work."""
        return math.prod(size[-self.counted :])


@dataclass(frozen=True, slots=True)
class Bounds:
    """Seconds of a point and of all, and bytes of a point."""

    point: float
    total: float
    memory: int


CURVES = (
    Curve("estimator", ("queries", "stages"), tuple((10**n, k) for k in (3, 20) for n in (5, 6, 7, 8))),
    # a tree finds room, so that a task costs nearly the same on any number of nodes
    Curve("placement", ("nodes", "tasks"), ((1000, 10**4), (10_000, 10**5), (100_000, 10**6)), counted=1),
    Curve("tuning", ("instances", "stages"), ((64, 6), (250, 8), (1000, 10), (1000, 12))),
    Curve("gates", ("rows",), ((10**4,), (10**5,), (10**6,), (10**7,))),
    Curve("server", ("processes",), ((1,), (2,), (4,), (8,))),
)
QUICK = (
    Curve("estimator", ("queries", "stages"), ((10**5, 3), (10**6, 3))),
    Curve("placement", ("nodes", "tasks"), ((100, 1000), (1000, 10**4)), counted=1),
    Curve("tuning", ("instances", "stages"), ((64, 6), (250, 8))),
    Curve("gates", ("rows",), ((10**4,), (10**5,))),
)


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:
    """Measure the curves.

    Args:
        quick: The first points only, and no server.
        seed: Seed of all inputs.
        data: Not used.
    """
    del data
    bounds = Bounds(20.0, 50.0, _free() // 2) if quick else Bounds(240.0, 600.0, _free() * 3 // 4)
    end = time.monotonic() + bounds.total
    rows = {curve.name: list(measured(curve, seed, bounds, end, point)) for curve in (QUICK if quick else CURVES)}
    growths = {name: growth(found) for name, found in rows.items() if name != "server"}
    metrics = {f"{name}_growth": value for name, value in growths.items()}
    tables = {name: [_shown(row) for row in found] for name, found in rows.items()}
    return {"metrics": metrics, "tables": tables, "notes": _notes(rows, growths)}


def measured(
    curve: Curve, seed: int, bounds: Bounds, end: float, measure: Callable[[list[str], Bounds], Row]
) -> Iterator[Row]:
    """Yield a row for each size: what was measured, or why it was not."""
    last: Row | None = None
    for size in curve.sizes:
        row: Row = {**dict(zip(curve.names, size, strict=True)), "work": curve.work(size)}
        why = refusal(curve.name, row, last, bounds, end - time.monotonic())
        if not why:
            row |= measure([curve.name, str(seed), *map(str, size)], bounds)
            why = row.get("not_run", "")
        if not why:
            last = row
        yield {**row, "not_run": why}


def refusal(name: str, row: Row, last: Row | None, bounds: Bounds, left: float) -> str:
    """Return why a point is not run, going by the one before; nothing if it is."""
    if name == "server":
        cores = len(os.sched_getaffinity(0))
        return f"this machine has {cores} cores" if row["work"] > cores else ""
    if left <= 0:
        return "out of time for all curves"
    if last is None or last["work"] >= row["work"]:
        return ""
    times = row["work"] / last["work"]
    # making the input takes about as long as the work; starting and compiling does not grow
    wall = last["wall"] + 2 * last["seconds"] * (times - 1)
    if wall > min(bounds.point, left):
        return f"would take about {wall:,.0f} s; {min(bounds.point, left):,.0f} s are left for it"
    need = BASE_MIB + max(0, last["peak_mib"] - BASE_MIB) * times
    if name != "estimator" and need * 2**20 > bounds.memory:
        return f"would need about {need / 1024:,.0f} GiB"
    return ""


def point(words: list[str], bounds: Bounds) -> Row:
    """Measure one point in a process that may not take more than its bounds."""
    began = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.scale_point", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (bounds.memory,) * 2),  # noqa: PLW1509
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=bounds.point)
    except subprocess.TimeoutExpired:
        # with all that it started: a server would outlive it
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"not_run": f"stopped after {bounds.point:,.0f} s"}
    if process.returncode:
        said = err.strip().splitlines()[-1:] or [f"exit {process.returncode}"]
        return {"not_run": f"failed: {said[0][-120:]}"}
    sys.stderr.write(f"scale: {' '.join(words)}: {out}")
    return {**json.loads(out.splitlines()[-1]), "wall": time.monotonic() - began}


def growth(rows: Sequence[Row]) -> float | None:
    """Return the exponent of seconds over work between the two largest points that were measured."""
    there = sorted((row["work"], row["seconds"]) for row in rows if "seconds" in row)
    pairs = [(a, b) for a, b in itertools.pairwise(there) if b[0] > a[0]]
    if not pairs:
        return None
    (work, seconds), (more, longer) = pairs[-1]
    return math.log(longer / seconds) / math.log(more / work)


def _shown(row: Row) -> Row:
    last = ("seconds", "peak_mib", "what", "not_run")
    sizes = {key: value for key, value in row.items() if key not in (*last, "work", "wall")}
    return sizes | {key: row.get(key) for key in last}


def _notes(rows: dict[str, list[Row]], growths: dict[str, float | None]) -> list[str]:
    found = ["seconds are of the work alone; growth: the power of work (the product of sizes; of placement, tasks)"]
    for name, value in growths.items():
        there = [row for row in rows[name] if "seconds" in row]
        if value is not None and there:
            largest = max(there, key=lambda row: row["work"])
            sizes = f"{largest['seconds'] * 10**value:,.3g} s"
            found.append(f"{name}: ten times the work of the largest point would take about {sizes}")
    return found


def _free() -> int:
    """Return the bytes of memory that are available."""
    path = Path("/proc/meminfo")
    lines = path.read_text("ascii").splitlines() if path.is_file() else []
    kib = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), 4 * 2**20)
    return kib * 1024
