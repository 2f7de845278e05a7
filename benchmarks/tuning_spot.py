"""Thrifty plans (spot, wait, on demand when slack runs out) on recorded markets: share on time, and cost.

Markets are the availability traces of one accelerator a zone (us-west-2, October 2022); a zone's loss takes all of a
run's instances. Plans know the three days before a run begins, and the run replays what followed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.tuning_replay import read_speedup
from unfold_tuning.job.availability import AvailabilityLog, read_availability
from unfold_tuning.job.profile import LogNormal, Machine, Profile, SpotTerms
from unfold_tuning.job.schedule import build_successive_halving
from unfold_tuning.planner.planner import Candidate, evaluate_machine
from unfold_tuning.planner.spot_or_on_demand import run_thrifty, select_thrifty
from unfold_tuning.simulator.execution_model import build_execution_model
from unfold_tuning.simulator.plan_cost import SimulatedPlan
from unfold_tuning.simulator.spot_or_on_demand import STEP_S
from unfoldkit.catalog.billing import Billing

STAGES = build_successive_halving(64, 4, 52, 3)
PRICE, SPOT_PRICE = 5.672, 5.672 * 0.35
EPOCH_S = (60.0, 240.0)
FACTORS = (1.3, 2.0, 3.0, 5.0)
PROMISE = 0.95
TICK_S = 600.0
TRAILING_TICKS = 432
MARKETS = {
    "2a": ("us-west-2a_v100_1",),
    "2b": ("us-west-2b_v100_1",),
    "both": ("us-west-2a_v100_1", "us-west-2b_v100_1"),
}
AIMS = {"on_time_percent_min": "≥ 97", "cost_ratio_max": "≤ 1.12", "cap_kept_percent": "90–97"}


def run(quick: bool, seed: int, data: Path) -> dict[str, Any]:
    """Plan and replay both jobs in every market at every deadline.

    Args:
        quick: Three starts of one job instead of ten of both.
        seed: Of the draws.
        data: Folder that holds ``spot`` and ``scaling``.

    Returns:
        ``metrics``, ``tables``, ``aims`` and ``notes``.
    """
    rows = []
    for epoch_s in EPOCH_S[:1] if quick else EPOCH_S:
        candidate = plan_on_demand(data, epoch_s, seed)
        for market, zones in MARKETS.items():
            path = data / "spot" / "aws_2022-10-26_availability.csv"
            log = read_availability(path, zones, TICK_S, "cloud.availability")
            for factor in FACTORS:
                rows += list(judge(candidate, log, market, epoch_s, factor, seed, 3 if quick else 10))
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["market"], row["epoch_s"], row["factor"]), []).append(row)
    on_time = {cell: 100 * fmean(row["on_time"] for row in part) for cell, part in cells.items()}
    cost = {cell: _sum(part, "usd") / _sum(part, "hindsight_usd") for cell, part in cells.items()}
    metrics = {
        "on_time_percent_min": min(on_time.values()),
        "on_time_percent": 100 * fmean(row["on_time"] for row in rows),
        "cost_ratio_max": max(cost.values()),
        "cost_ratio": _sum(rows, "usd") / _sum(rows, "hindsight_usd"),
        "on_demand_ratio": _sum(rows, "usd") / _sum(rows, "on_demand_usd"),
        "cap_kept_percent": 100 * fmean(row["cap_kept"] for row in rows),
        "runs": sum(row["runs"] for row in rows),
    }
    return {"metrics": metrics, "tables": {"starts": rows}, "aims": AIMS, "notes": _notes()}


def plan_on_demand(data: Path, epoch_s: float, seed: int) -> Candidate:
    """Evaluate the plans of a job on demand."""
    profile = Profile(
        LogNormal(epoch_s, 0.2 * epoch_s),
        read_speedup(data),
        provision=LogNormal(45.0, 22.5),
        startup=LogNormal(60.0, 9.0),
        sync=LogNormal(10.0),
        trial_cv=0.2,
        error_cv=0.1,
    )
    machine = Machine("g5.12xlarge", 4, PRICE, max_instances=32, billing=Billing(1.0, 60.0))
    return evaluate_machine(build_execution_model(STAGES, profile, machine, 1000, seed), PROMISE)


def judge(
    candidate: Candidate, log: AvailabilityLog, market: str, epoch_s: float, factor: float, seed: int, starts: int
) -> Iterator[dict[str, Any]]:
    """Yield how plans end that begin at random moments, each knowing the three days before."""
    deadline_s = factor * float(candidate.guaranteed_s.min())
    rng = np.random.default_rng([seed, round(epoch_s), round(10 * factor)])
    ticks, steps = len(log.states[0]), int(np.ceil(deadline_s / STEP_S)) + 1
    horizon = int(np.ceil(steps * STEP_S / TICK_S)) + 1
    for start in rng.integers(TRAILING_TICKS, ticks - horizon, starts):
        past = AvailabilityLog(
            log.zones, TICK_S, tuple(item[start - TRAILING_TICKS : start + 1] for item in log.states)
        )
        machine = replace(candidate.model.machine, market="thrifty", spot=SpotTerms(SPOT_PRICE, 0.2, past))
        thrifty = replace(candidate, model=candidate.model.with_machine(machine))
        selected = select_thrifty([thrifty], deadline_s, PROMISE, int(start))
        if selected is None:
            continue
        plan = selected.on_demand
        future = log.to_array()[:, start : start + horizon]
        index = (np.arange(steps) * STEP_S / TICK_S).astype(int)
        runs = 40
        available = np.broadcast_to(future[:, None, index], (len(log.zones), runs, steps))
        fresh = _shift_samples(plan, runs)
        begin = len(plan.seconds) - runs
        seen = run_thrifty(thrifty, plan, np.asarray(available), deadline_s, begin)
        cap_usd = float(np.quantile(selected.runs.cost_usd, 0.95))
        yield {
            "market": market, "epoch_s": epoch_s, "factor": factor, "start": int(start), "runs": runs,
            "on_time": float((seen.seconds <= deadline_s).mean()), "usd": float(seen.cost_usd.mean()),
            "predicted_usd": selected.selection.plan.mean_cost_usd, "on_demand_usd": plan.mean_cost_usd,
            "hindsight_usd": compute_hindsight_usd(fresh, future, deadline_s), "cap_usd": cap_usd,
            "cap_kept": float((seen.cost_usd <= cap_usd + 1e-9).mean()),
            "instances": [allocation.instances for allocation in plan.plan],
        }  # fmt: skip


def compute_hindsight_usd(plan: SimulatedPlan, future: Any, deadline_s: float) -> float:
    """Compute the dollars of the same plan with spot in every minute in which a zone had it: a lower bound."""
    available_s = min(float(future.any(axis=0).sum()) * TICK_S, deadline_s)
    lengths = np.diff(plan.ends, axis=0, prepend=0.0)
    instances = np.array([allocation.instances for allocation in plan.plan])
    usd = []
    for run in range(lengths.shape[1]):
        missing_s, total = max(0.0, float(lengths[:, run].sum()) - available_s), 0.0
        # what must run on demand is the part with the fewest instances
        for index in np.argsort(instances):
            demand_s = min(missing_s, float(lengths[index, run]))
            missing_s -= demand_s
            total += instances[index] * (demand_s * PRICE + (lengths[index, run] - demand_s) * SPOT_PRICE) / 3600.0
        usd.append(total)
    return fmean(usd)


def _shift_samples(plan: SimulatedPlan, runs: int) -> SimulatedPlan:
    """Return the last runs of a plan, which its choice has not been compared on."""
    return replace(
        plan,
        seconds=plan.seconds[-runs:],
        cost_usd=plan.cost_usd[-runs:],
        stage_ends=tuple(end[-runs:] for end in plan.stage_ends),
    )


def _sum(rows: list[dict[str, Any]], key: str) -> float:
    return float(sum(row[key] for row in rows))


def _notes() -> list[str]:
    return [
        "Availability of one V100 a zone, us-west-2, October 2022 (SkyPilot spot-traces), 600 s a tick.",
        "A loss takes all instances of a zone (pessimistic); one that can be had stands for all (optimistic).",
        "On-demand capacity is taken as given. Every start knows the three days before it.",
        "cost_ratio: over the same plan with spot in every minute in which a zone had it, without losses or changes.",
        "on_time_percent_min and cost_ratio_max: the worst of all markets, jobs and deadlines (1.3 to 5 times).",
        "cap_kept_percent: runs within the 95 % quantile of the simulated bill.",
    ]
