"""What a certified cascade of language models saves, how often it breaks its promise, and its error next to peers.

Every log is pooled and stands for the population, so that the true loss and cost of a plan are known. From it 300
tuning rows and 600 or 1,500 certifying rows are drawn with replacement; the planner sees only these. A plan is broken
if its loss on the population exceeds the promise. The uncertified rule takes the cheapest route within the limit as
counted on the tuning rows. The reference of a draw is the best single model on its
tuning rows.

The area follows Zellinger and Thomson (2025, arXiv 2501.09345): cuts are tuned on the published training split, every
point is scored on the test split with their constant prices, and the mean error over their range of costs is compared
with the better of their two methods (stored results of theirs).
"""

from __future__ import annotations

import csv
import gzip
import itertools
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.gates.chains import list_chains
from unfold_cascade.language_models.planning.calibration import fit_calibration
from unfold_cascade.language_models.planning.call_log import CallLog, Route, follow_route, score_log, select_reference
from unfold_cascade.language_models.planning.certificate import (
    Limits,
    RouteSequence,
    certify_routes,
    choose_uncertified,
    choose_walk,
    list_sequences,
    rank_sequences,
)
from unfold_cascade.language_models.planning.problem import SMALL_CHAIN, SMALL_LOG
from unfold_cascade.language_models.planning.proposals import search_chain

TUNING_ROWS = 300
SIZES, QUICK_SIZES = (600, 1500), (600,)
LIMITS, QUICK_LIMITS = (0.01, 0.02, 0.03), (0.02, 0.03)
DRAWS, QUICK_DRAWS = 40, 3
DELTA = 0.05
NO_SAVING = 0.97
Cell = tuple[int, float]


@dataclass(frozen=True, slots=True)
class Result:
    """What one draw gave: the true cost ratio, whether the promise was broken, and the same without a certificate."""

    ratio: float
    is_broken: bool
    uncertified_ratio: float
    is_uncertified_broken: bool


def run(quick: bool, seed: int, data: Path) -> dict[str, Any]:
    """Measure cost ratios, broken promises and areas on every log in the folder.

    Args:
        quick: three draws of two limits at 600 rows, and the cascades of one task.
        seed: seed of the first draw.
        data: folder that holds ``llm-cascades``.
    """
    folder = data / "llm-cascades"
    names = sorted(path.name.removesuffix("_train.csv.gz") for path in folder.glob("*_train.csv.gz"))
    cells: dict[tuple[str, Cell], list[Result]] = defaultdict(list)
    for name in names:
        sys.stderr.write(f"cascade-llm: {name}\n")
        population = read_log(folder, name, ("train", "test"))
        for draw in range(QUICK_DRAWS if quick else DRAWS):
            for cell, result in evaluate_draw(population, seed, draw, quick=quick):
                cells[name, cell].append(result)
    areas = list(_compare_areas(folder, quick=quick))
    return {
        "metrics": _summarize(cells, names, quick=quick) | _summarize_areas(areas),
        "aims": {
            "cost_ratio_2pt_600": "≤ .87",
            "cost_ratio_3pt_600": "≤ .75",
            "cost_ratio_2pt_1500": "≤ .77",
            "cost_ratio_3pt_1500": "≤ .62",
            "broken_percent_max": "≤ 5",
            "broken_percent_mean": "≤ 2",
            "area_points": "≤ .05",
            "within_quarter": "≥ 50 of 52",
            "seconds_max": "≤ .3",
        },
        "tables": [_cell_table(cells), _area_table(areas)],
        "notes": [
            "rows are drawn with replacement from each log, which is then the truth",
            "the peer's areas and times are those stored with its paper's code, from another machine",
        ],
    }


def read_log(folder: Path, name: str, parts: tuple[str, ...]) -> CallLog:
    """Read the published parts of a log; its cost column holds the price of the confidence too."""
    rows: list[dict[str, str]] = []
    for part in parts:
        with gzip.open(folder / f"{name}_{part}.csv.gz", "rt", encoding="utf-8", newline="") as file:
            rows += csv.DictReader(file)
    models = [column.removesuffix("|correct") for column in rows[0] if column.endswith("|correct")]

    def read(field: str) -> FloatArray:
        cells = [[row[f"{model}|{field}"] for model in models] for row in rows]
        return np.array([[float(cell) if cell else np.nan for cell in line] for line in cells])

    return CallLog(
        models=tuple(models),
        is_correct=read("correct") > 0.5,
        confidence=read("logprob"),
        cost=np.nan_to_num(read("cost_usd")),
        confidence_cost=np.zeros((len(rows), len(models))),
        latency_ms=read("latency_ms"),
        unit=np.arange(len(rows)),
    )


def evaluate_draw(population: CallLog, seed: int, draw: int, *, quick: bool) -> Iterator[tuple[Cell, Result]]:
    """Plan on one draw, and judge every plan on the population."""
    rng = np.random.default_rng([seed, 11, draw])
    tune = _draw(population, rng, TUNING_ROWS)
    certifying = rng.integers(0, len(population), max(SIZES))
    calibrations = [fit_calibration(tune.confidence[:, m], tune.is_correct[:, m]) for m in range(len(tune.models))]
    tune_score, score = score_log(tune, calibrations), score_log(population, calibrations)
    reference = select_reference(tune, np.arange(TUNING_ROWS))
    reference_cost = float(tune.cost[:, reference].mean())
    for size in QUICK_SIZES if quick else SIZES:
        max_models = SMALL_CHAIN if TUNING_ROWS + size < SMALL_LOG else 3
        chains = list_chains(tune.cost.mean(axis=0), order="sorted", max_models=max_models)
        sequences = list_sequences(tune, tune_score, [c for c in chains if c != (reference,)], reference)
        rows = certifying[:size]
        certify = replace(population.take(rows), unit=np.arange(size))
        for limit in QUICK_LIMITS if quick else LIMITS:
            ranked = rank_sequences(sequences, limit, reference_cost)
            plan = _plan(ranked, certify, score[rows], reference, limit)
            naive = choose_uncertified(ranked[0], limit) if ranked else None
            figures = [_judge(population, score, route, reference) for route in (plan, naive)]
            (ratio, loss), (naive_ratio, naive_loss) = figures
            yield (size, limit), Result(ratio, loss > limit + 1e-12, naive_ratio, naive_loss > limit + 1e-12)


def _draw(population: CallLog, rng: np.random.Generator, size: int) -> CallLog:
    return replace(population.take(rng.integers(0, len(population), size)), unit=np.arange(size))


def _plan(
    ranked: list[RouteSequence], certify: CallLog, score: FloatArray, reference: int, limit: float
) -> Route | None:
    walks = certify_routes(ranked, certify, score, reference, Limits(max_loss=limit, delta=DELTA))
    walk = choose_walk(walks)
    return None if walk is None or walk.passed is None else walk.passed.route


def _judge(population: CallLog, score: FloatArray, route: Route | None, reference: int) -> tuple[float, float]:
    """Return the true cost ratio and the true loss of a plan; without one the reference serves."""
    if route is None:
        return 1.0, 0.0
    outcome = follow_route(population, score, route)
    loss = float(outcome.loss.mean()) - float(1.0 - population.is_correct[:, reference].mean())
    return float(outcome.cost.mean() / population.cost[:, reference].mean()), loss


def _summarize(
    cells: Mapping[tuple[str, Cell], list[Result]], names: list[str], *, quick: bool
) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {}
    for size, limit in itertools.product(QUICK_SIZES if quick else SIZES, QUICK_LIMITS if quick else LIMITS):
        ratios = [np.mean([result.ratio for result in cells[name, (size, limit)]]) for name in names]
        metrics[f"cost_ratio_{100 * limit:.0f}pt_{size}"] = round(float(np.mean(ratios)), 4)
    broken = [100 * float(np.mean([r.is_broken for r in results])) for results in cells.values()]
    naive = [100 * float(np.mean([r.is_uncertified_broken for r in results])) for results in cells.values()]
    return metrics | {
        "broken_percent_max": max(broken),
        "broken_percent_mean": round(float(np.mean(broken)), 3),
        "uncertified_broken_percent": round(float(np.mean(naive)), 2),
        "draws": len(next(iter(cells.values()))),
    }


def _cell_table(cells: Mapping[tuple[str, Cell], list[Result]]) -> dict[str, Any]:
    columns = [
        "log",
        "certifying rows",
        "limit, points",
        "cost ratio",
        "plans",
        "broken %",
        "uncertified ratio",
        "broken, uncertified %",
    ]
    rows = [
        [
            name,
            size,
            100 * limit,
            round(float(np.mean([r.ratio for r in results])), 3),
            round(100 * float(np.mean([r.ratio < NO_SAVING for r in results])), 1),
            round(100 * float(np.mean([r.is_broken for r in results])), 1),
            round(float(np.mean([r.uncertified_ratio for r in results])), 3),
            round(100 * float(np.mean([r.is_uncertified_broken for r in results])), 1),
        ]
        for (name, (size, limit)), results in cells.items()
    ]
    return {"name": "promises", "columns": columns, "rows": rows}


def _compare_areas(folder: Path, *, quick: bool) -> Iterator[tuple[str, str, float, float, float]]:
    """Yield task, cascade, our mean error and that of the better peer in percent, and our time in seconds."""
    if not (folder / "peer_curves.csv").exists():
        return
    with (folder / "peer_constants.csv").open(encoding="utf-8", newline="") as file:
        prices = {(row["task"], row["model"]): float(row["usd_per_million_queries"]) for row in csv.DictReader(file)}
    with (folder / "peer_curves.csv").open(encoding="utf-8", newline="") as file:
        peers = list(csv.DictReader(file))
    for task in sorted({row["task"] for row in peers})[: 1 if quick else None]:
        tune, test = (
            _with_prices(read_log(folder, f"{task}_llama", (part,)), task, prices) for part in ("train", "test")
        )
        calibrations = [fit_calibration(tune.confidence[:, m], tune.is_correct[:, m]) for m in range(len(tune.models))]
        tune_score, test_score = score_log(tune, calibrations), score_log(test, calibrations)
        for row in (row for row in peers if row["task"] == task):
            chain = tuple(tune.models.index(model) for model in row["cascade"].split(">"))
            begin = time.perf_counter()
            routes = search_chain(tune, tune_score, chain, 200)
            seconds = time.perf_counter() - begin
            error = _mean_error(test, test_score, routes, float(row["cost_low"]), float(row["cost_high"]))
            best = min(float(row[f"mean_error_percent_{method}"]) for method in ("continuous", "grid"))
            yield task, row["cascade"], error, best, seconds


def _with_prices(log: CallLog, task: str, prices: Mapping[tuple[str, str], float]) -> CallLog:
    return replace(log, cost=np.tile([prices[task, model] for model in log.models], (len(log), 1)))


def _mean_error(log: CallLog, score: FloatArray, routes: list[Route], low: float, high: float) -> float:
    """Compute the mean error in percent over a range of costs: the area under the curve through all points."""
    outcomes = [follow_route(log, score, route) for route in routes]
    cost = np.array([float(outcome.cost.mean()) for outcome in outcomes])
    loss = np.array([float(outcome.loss.mean()) for outcome in outcomes])
    order: IntArray = np.argsort(cost, kind="stable")
    inner = cost[(cost > low) & (cost < high)]
    x = np.unique(np.concatenate([[low, high], inner]))
    return float(100 * np.trapezoid(np.interp(x, cost[order], loss[order]), x) / (high - low))


def _summarize_areas(areas: list[tuple[str, str, float, float, float]]) -> dict[str, float | None]:
    if not areas:
        return {"area_points": None, "within_quarter": None, "seconds_max": None}
    excess = [error - best for _, _, error, best, _ in areas]
    return {
        "area_points": round(float(np.mean(excess)), 4),
        "within_quarter": sum(each <= 0.25 for each in excess),
        "cascades": len(areas),
        "seconds_max": round(max(area[4] for area in areas), 3),
    }


def _area_table(areas: list[tuple[str, str, float, float, float]]) -> dict[str, Any]:
    columns = ["task", "cascade", "mean error %", "better peer %", "seconds"]
    rows = [[task, name, round(error, 3), round(best, 3), round(t, 3)] for task, name, error, best, t in areas]
    return {"name": "areas", "columns": columns, "rows": rows}
