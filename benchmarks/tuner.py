"""The tuner beside coarse-grained and usual autoscalers: misses and price of every rule on every trace, in simulation.

Planned on the first quarter of a trace, played on the rest. "Equal misses": the coarse-grained tuner's head-room (1 to
2.5) and rate window (1 or 5 s) are swept with hindsight on the live trace for the least price with at most 0.1 %
misses, and so is the margin of our table rule (0.9 to 2.5), in as many settings.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pipeline_plan import NAMES, pipeline_of, spec_of
from unfold_pipeline import coarse, planner, policies
from unfold_pipeline.graph import Plan, needed
from unfold_pipeline.judge import Judge
from unfold_pipeline.play import play
from unfold_pipeline.policies import Setting
from unfold_pipeline.replay import all_rules
from unfold_pipeline.sample import Sample, draw
from unfoldkit.arrivals import processes, shapes, traces

MISSES = 0.001
HEADROOMS = tuple(float(item) for item in np.arange(1.0, 2.51, 0.1))
WINDOWS = (1.0, 5.0)
# both sides are set with hindsight, so both have as many settings to choose from
MARGINS = tuple(float(item) for item in np.linspace(0.9, 2.5, len(HEADROOMS) * len(WINDOWS)))
BURSTY = "azure-code"


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:
    """Measure every rule on every trace."""
    setting = Setting()
    rows: list[list[Any]] = []
    equal: list[list[Any]] = []
    for name in NAMES[1:3] if quick else NAMES:
        for trace, times in kinds(quick, seed, data):
            found = case(name, times, seed, setting)
            if found is None:
                continue
            judge, plan, live = found
            entries = list(all_rules(judge, plan, live, setting))
            rows += [
                [name, trace, e.name, e.played.missed(judge.limit) * 100, e.played.cost, live.size, e.told]
                for e in entries
            ]
            equal.append([name, trace, *at_equal_misses(judge, plan, live, setting)])
    columns = ["pipeline", "trace", "rule", "misses_percent", "cost_per_hour", "queries", "set_to"]
    tables = [
        {"name": "rules", "columns": columns, "rows": rows},
        {"name": "equal_misses", "columns": ["pipeline", "trace", "ours", "coarse"], "rows": equal},
    ]
    notes = [
        f"activation delay {setting.delay:g} s; CG window 5 s, hold 120 s; shapes AutoScale-like, latencies our own",
        "miss ratios count fewer than three late queries as three, and above some hundred rest on few queries",
        "equal misses: cases in which either side never gets down to 0.1 % (steps within the activation delay) are out",
    ]
    if data is None:
        notes.append("no data folder: the Azure traces were not played")
    return {"metrics": metrics(rows, equal), "peers": {}, "tables": tables, "notes": notes}


def kinds(quick: bool, seed: int, data: Path | None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the traces: AutoScale-like shapes, and the Azure traces with each 10-s count times 20."""
    names = ["big-spike", "quickly-varying"] if quick else list(shapes.AUTOSCALE_LIKE)
    for index, name in enumerate(names):
        yield name, processes.pieces(shapes.named(name), shapes.PIECE_S, np.random.default_rng([seed, index]))
    if data is None or quick:
        return
    folder = next((item for item in (data / "traces", data / "data" / "traces") if item.is_dir()), None)
    for index, name in enumerate(("conv", "code") if folder else ()):
        times = traces.read(Path(str(folder)) / f"azure_llm_2023_{name}.csv.gz")
        rng = np.random.default_rng([seed, 100 + index])
        yield f"azure-{name}", processes.pieces(shapes.thicken(times, 20.0), 10.0, rng)


def case(name: str, times: np.ndarray, seed: int, _setting: Setting) -> tuple[Judge, Plan, Sample] | None:
    """Return the judge and plan of the first quarter, and the rest as live traffic."""
    spec = spec_of(name)
    pipeline = pipeline_of(spec)
    first, rest = traces.split(times, 0.25)
    judge = planner.judge_of(pipeline, [draw(pipeline, first, np.random.default_rng([seed, 2]))], spec.slo.p99)
    outcome = planner.solve(judge, planner.Effort(proof=False), lambda _step, _done, _total: None)
    live = draw(pipeline, rest, np.random.default_rng([seed, 5]))
    return None if outcome is None else (judge, outcome.plan, live)


def at_equal_misses(judge: Judge, plan: Plan, live: Sample, setting: Setting) -> tuple[float | None, float | None]:
    """Return the least $ an hour with at most 0.1 % misses: of our table rule, and of the coarse-grained tuner."""
    own = policies.brief(judge.pipeline, plan, judge.estimators[0].sample, judge.limit)
    steps = policies.ladder(own, setting.most)
    ours = []
    for margin in MARGINS:
        targets = policies.table(own, live, replace(setting, margin=margin, floor=False), steps)
        ours.append(play(judge.pipeline, live, plan, targets, setting.delay))
    unit = coarse.unit(judge)
    theirs = []
    for headroom, window in itertools.product(HEADROOMS, WINDOWS) if unit else ():
        if unit is not None:
            count = needed(judge.estimators[0].sample.rate * headroom, unit.throughput)
            units = policies.units(
                unit.throughput, live, count, window=window, headroom=headroom, hold=120.0, most=setting.most
            )
            start = unit.times(count)
            theirs.append(play(judge.pipeline, live, start, policies.same(units, start), setting.delay))
    return _least(ours, judge.limit), _least(theirs, judge.limit)


def _least(played: list[Any], limit: float) -> float | None:
    return min((item.cost for item in played if item.missed(limit) <= MISSES), default=None)


def metrics(rows: list[list[Any]], equal: list[list[Any]]) -> Mapping[str, float | None]:
    """Return the figures over all cases but the bursty one."""
    ratios = [theirs / ours for _, trace, ours, theirs in equal if ours and theirs and trace != BURSTY]
    cases = {(row[0], row[1]): {} for row in rows}  # type: ignore[var-annotated]
    for row in rows:
        cases[row[0], row[1]][row[2]] = row
    gains, peaks = [], []
    for (_, trace), rules in cases.items():
        if trace == BURSTY or "CG-Mean" not in rules:
            continue
        ours, mean, peak = rules["table"], rules["CG-Mean"], rules["CG-Peak"]
        least = 300.0 / ours[5]
        gains.append((mean[3] / max(ours[3], least), ours[4] / mean[4]))
        peaks.append(ours[4] / peak[4])
    cheap = [item for item in gains if item[1] <= 1]
    best = max(cheap, default=(None, None))
    return {
        "equal_miss_cost_ratio_geomean": float(np.exp(np.mean(np.log(ratios)))) if ratios else None,
        "equal_miss_cases": len(ratios),
        "miss_ratio_max": best[0],
        "cost_ratio_at_max": best[1],
        "peak_cost_ratio_median": statistics.median(peaks) if peaks else None,
        "cases": len(cases),
    }
