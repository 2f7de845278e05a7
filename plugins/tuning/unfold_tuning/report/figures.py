"""The pictures of a run: who ran where and when, and what the trials learnt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from unfold_tuning.executor.executor import Outcome, Task
from unfold_tuning.schema.models import Trainable
from unfold_tuning.trial.ledger import Ledger
from unfoldkit.api import Figure, Series

NAMED = 6
"""So many trials have a curve of their own; more names than colours tell nothing."""

Part = tuple[int, int, str, float, float | None, int]


def gantt(task: Task, ledger: Ledger, outcome: Outcome) -> Figure:
    """Return the parts of trials as bars: a lane for each accelerator, a colour for each stage."""
    each = task.machine.accelerators
    first = {life.id: index * each for index, life in enumerate(ledger.lives())}
    bars: dict[int, list[tuple[float, float, int]]] = {}
    free: dict[int, float] = {}
    for stage, _, node, began, ended, gang in ledger.sized_parts():
        for lane in _lanes(free, range(first[node], first[node] + each), min(gang, each), began):
            free[lane] = ended if ended is not None else outcome.ended
            bars.setdefault(stage, []).append((began - outcome.began, free[lane] - outcome.began, lane + 1))
    series = tuple(_bars(f"stage {stage + 1}", rows) for stage, rows in sorted(bars.items()))
    lanes = "accelerator" if each == 1 else f"accelerator, {each} of each node"
    return Figure("gantt", "Trials on nodes, one bar each", "seconds", lanes, series, timed=True)


def _lanes(free: dict[int, float], lanes: Sequence[int], count: int, now: float) -> list[int]:
    """Return lanes of a node that are free by now, those that have been for longest first."""
    order = sorted(lanes, key=lambda lane: (free.get(lane, 0.0) > now + 1e-6, lane))
    return order[:count]


def _bars(name: str, rows: Sequence[tuple[float, float, int]]) -> Series:
    x = tuple(moment for began, ended, _ in rows for moment in (began, ended))
    return Series(name, x, tuple(float(lane) for _, _, lane in rows for _ in range(2)), "segments")


def curves(ledger: Ledger, trainable: Trainable) -> Figure:
    """Return the learning curves: those that went furthest by name, the others together."""
    points: dict[int, list[tuple[int, float]]] = {}
    for trial, iters, value, _, _ in ledger.steps():
        if math.isinf(value):
            continue
        points.setdefault(trial, []).append((iters, value))
    order = sorted(points, key=lambda trial: (-points[trial][-1][0], -points[trial][-1][1], trial))
    points = {trial: [(at, trainable.shown(value)) for at, value in rows] for trial, rows in points.items()}
    grown = [trial for trial in order if len(points[trial]) > 1]
    series = [_series(f"trial {trial}", points[trial], "line") for trial in sorted(grown[:NAMED])]
    rest = [pair for trial in sorted(grown[NAMED:]) for pair in _pairs(points[trial])]
    single = [points[trial][0] for trial in sorted(order) if len(points[trial]) == 1]
    series += [_series("others", rest, "segments")] if rest else []
    series += [_series("stopped at their first checkpoint", single, "points")] if single else []
    return Figure("learning", "Learning curves", "iterations", trainable.measured, tuple(series))


def _series(name: str, points: Sequence[tuple[int, float]], style: Literal["line", "points", "segments"]) -> Series:
    return Series(name, tuple(float(i) for i, _ in points), tuple(value for _, value in points), style)


def _pairs(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return a curve as the ends of its segments."""
    return [point for pair in pairwise(points) for point in pair]
