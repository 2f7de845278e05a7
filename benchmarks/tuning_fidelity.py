"""Tuning plans carried out: predicted against executed time and cost of three plans, on local processes.

Trials sleep as long as an iteration is said to take, so that four nodes fit on a small machine; nodes, workers,
checkpoints, barriers, ledger and the shrinking of the cluster are real. The start of so many nodes at once as a plan
begins with is measured just before.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any

from benchmarks import sleeper
from unfold_tuning.cluster import LocalCluster
from unfold_tuning.deals import Deal, Plan
from unfold_tuning.executor import Executor, Outcome, Task
from unfold_tuning.facts import Machine, Profile, Spread
from unfold_tuning.fleet import own
from unfold_tuning.ledger import Ledger, opened
from unfold_tuning.planner import offer
from unfold_tuning.score import Score, score
from unfold_tuning.spec import Trainable, Uniform
from unfold_tuning.stages import Stage, random_search, successive_halving
from unfold_tuning.tables import model
from unfold_tuning.trainables import Work
from unfoldkit.catalog.billing import Billing

STAGES = successive_halving(12, 2, 18, 3)
NODE = Machine("node", 2, 3.6, limit=4, billing=Billing(0.0, 0.0))
SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Start:
    """Measured seconds: of the start of a node, and of a trial's start beside its iterations."""

    node: Spread
    trial: Spread


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:  # noqa: ARG001 - no data is needed
    """Carry out three plans (one if quick) and compare.

    Args:
        quick: The fastest plan only.
        seed: Seed of the trials.
        data: Not used.

    Returns:
        ``metrics``, ``tables`` and ``notes``.
    """
    repeats = 1 if quick else 3
    found = offer(model(STAGES, profile_of(measured(NODE.limit, repeats)), NODE, 2000, seed), SHARE)
    last = len(found.scores) - 1
    chosen = [found.scores[index].plan for index in ([0] if quick else [0, last // 2, last])]
    rows = [_compared(plan, repeats, seed) for plan in chosen]
    metrics = {
        "time_error_percent_max": max(abs(row["time_error_percent"]) for row in rows),
        "cost_error_percent_max": max(abs(row["cost_error_percent"]) for row in rows),
        "plans": len(rows),
        "node_start_s": max(row["start_s"] for row in rows),
    }
    notes = [
        "Local processes only; not measured on Ray.",
        "Iterations sleep; processes, checkpoints, barriers, ledger and the shrinking of the cluster are real.",
        "On a busy machine the start of a node varies; it is part of the error.",
    ]
    return {"metrics": metrics, "tables": {"plans": rows}, "notes": notes}


def profile_of(start: Start) -> Profile:
    """Return the profile of the sleeper with what was measured of its start."""
    iteration = Spread(sleeper.MEAN, sleeper.DEVIATION)
    speedup = tuple(sleeper.GAIN.items())
    return Profile(iteration, speedup, startup=start.node, start=start.trial, sync=Spread(0.05))


def measured(count: int, repeats: int) -> Start:
    """Measure the start of ``count`` nodes side by side, and what a trial takes beside its sleep."""
    starts, extra = [], []
    places = count * NODE.accelerators
    for index in range(repeats):
        with tempfile.TemporaryDirectory() as folder, opened(Path(folder) / "l", NODE, "") as ledger:
            plan = (Deal(count, 1, places),)
            _, began = _run(folder, ledger, Profile(Spread(1.0)), index, random_search(places, 1), plan)
            parts = ledger.parts()
            slept = {trial: seconds for trial, _, _, seconds, _ in ledger.steps()}
            starts.append(min(part[3] for part in parts) - began)
            extra += [(part[4] or 0.0) - part[3] - slept[part[1]] for part in parts]
    return Start(Spread(median(starts)), Spread(max(1e-4, fmean(extra)), pstdev(extra)))


def _compared(plan: Plan, repeats: int, seed: int) -> dict[str, Any]:
    profile = profile_of(measured(plan[0].instances, repeats))
    predicted = score(model(STAGES, profile, NODE, 2000, seed), plan)
    row = _row(predicted, *carried_out(predicted, profile, seed))
    return row | {"start_s": profile.startup.mean}


def carried_out(plan: Score, profile: Profile, seed: int) -> tuple[float, float]:
    """Carry a plan out and return its seconds and dollars."""
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder) / "l", NODE, "") as ledger:
        outcome, _ = _run(folder, ledger, profile, seed, STAGES, plan.plan)
        return outcome.ended - outcome.began, outcome.spent


def _run(
    folder: str, ledger: Ledger, profile: Profile, seed: int, stages: tuple[Stage, ...], deals: Plan
) -> tuple[Outcome, float]:
    trainable = Trainable(function="benchmarks.sleeper:train", space={"ceiling": Uniform(uniform=(0.0, 1.0))})
    task = Task(stages, deals, NODE, profile, trainable, Path(folder) / "trials", seed, every=2, replan=False)
    cluster = LocalCluster(Work(trainable), NODE.accelerators, own(ledger, NODE.price))
    began = time.time()
    return Executor(task, ledger, cluster).run(), began


def _row(plan: Score, seconds: float, dollars: float) -> dict[str, Any]:
    return {
        "instances": [deal.instances for deal in plan.plan],
        "accelerators_per_trial": [deal.gang for deal in plan.plan],
        "predicted_s": plan.mean_seconds,
        "executed_s": seconds,
        "time_error_percent": (plan.mean_seconds / seconds - 1) * 100,
        "predicted_usd": plan.cost,
        "executed_usd": dollars,
        "cost_error_percent": (plan.cost / dollars - 1) * 100,
    }
