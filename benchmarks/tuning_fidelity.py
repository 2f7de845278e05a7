"""Predicted against actual time and cost of three executed tuning plans, on local processes and on Ray.

Trials sleep as long as an iteration is said to take, so that four nodes fit on a small machine; nodes (processes, or
raylets), workers, checkpoints, barriers, ledger and the shrinking of the cluster are real. The start of so many nodes
at once as a plan begins with is measured just before, on the same engine.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from benchmarks import sleeper
from unfold_tuning.cluster.interface import Cluster
from unfold_tuning.cluster.local import LocalCluster
from unfold_tuning.cluster.provider import build_local_provider
from unfold_tuning.cluster.ray import RayCluster
from unfold_tuning.cluster.ray_nodes import LocalRayNodes
from unfold_tuning.executor.executor import Executor
from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig, RunOutcome
from unfold_tuning.job.allocation import Allocation, Plan
from unfold_tuning.job.problem import TrainableConfig
from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import Stage, build_random_search, build_successive_halving
from unfold_tuning.job.search_space import Uniform
from unfold_tuning.planner.planner import evaluate_machine
from unfold_tuning.simulator.execution_model import build_execution_model
from unfold_tuning.simulator.plan_cost import SimulatedPlan, simulate_early_release
from unfold_tuning.trial.ledger import Ledger, open_ledger
from unfold_tuning.trial.trainable import WorkerSetup
from unfoldkit.catalog.billing import Billing

NODE = Machine("node", 2, 3.6, billing=Billing(0.0, 0.0))
SHARE = 0.5
WAVES = 3


@dataclass(frozen=True, slots=True)
class Start:
    """Measured seconds: of the start of a node, and of a trial's start beside its iterations."""

    node: LogNormal
    trial: LogNormal


@dataclass(frozen=True, slots=True)
class Engine:
    """Where plans are carried out: ``local`` or ``ray``, with at most ``limit`` nodes.

    A raylet takes seconds of processor time to start, so there are fewer of them on a small machine, and longer trials.
    """

    name: str
    limit: int
    stages: tuple[Stage, ...]

    @property
    def node(self) -> Machine:
        """The node type, as the planner sees it."""
        return replace(NODE, max_instances=self.limit)

    def cluster(self, trainable: TrainableConfig, ledger: Ledger) -> Cluster:
        """Return a cluster that is not open yet."""
        setup, provider = WorkerSetup(trainable), build_local_provider(ledger, NODE.usd_per_hour)
        if self.name == "local":
            return LocalCluster(setup, NODE.accelerators, provider)
        return RayCluster(setup, NODE.accelerators, provider, LocalRayNodes(NODE.accelerators))


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:  # noqa: ARG001 - no data is needed
    """Carry out three plans (one, on local processes, if quick) and compare.

    Args:
        quick: The fastest plan only, without Ray.
        seed: Seed of the trials.
        data: Not used.

    Returns:
        ``metrics``, ``tables`` and ``notes``.
    """
    there = importlib.util.find_spec("ray") is not None
    local = Engine("local", 4, build_successive_halving(12, 2, 18, 3))
    engines = [local, *([Engine("ray", 2, build_successive_halving(12, 3, 27, 3))] if there and not quick else [])]
    rows = [row for engine in engines for row in compared(engine, quick, seed)]
    of = {engine.name: [row for row in rows if row["engine"] == engine.name] for engine in engines}
    metrics = _errors(rows, "") | {"plans": len(rows) // len(engines)}
    for name in ("local", "ray"):
        metrics |= _errors(of.get(name, []), f"_{name}")
    notes = [
        "Iterations sleep; processes or raylets, checkpoints, barriers, ledger and the shrinking are real.",
        "On a busy machine the start of a node varies; it is part of the error.",
        "A prediction is of the mean run; what is executed is one run, with spread of its own.",
    ]
    missing = [] if "ray" in of else ["Not measured on Ray: quick, or it is not installed."]
    return {"metrics": metrics, "tables": {"plans": rows}, "notes": notes + missing}


def compared(engine: Engine, quick: bool, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of an engine: three plans of its curve, fastest first, or that one only."""
    start = measured(engine, engine.limit)
    model = build_execution_model(engine.stages, profile_of(start), engine.node, 2000, seed)
    plans = evaluate_machine(model, SHARE).plans
    last = len(plans) - 1
    for plan in [plans[index].plan for index in ([0] if quick else [0, last // 2, last])]:
        # just before, as a machine that others use too is not the same a few minutes later
        profile = profile_of(measured(engine, plan[0].instances))
        predicted = simulate_early_release(build_execution_model(engine.stages, profile, engine.node, 2000, seed), plan)
        row = _row(predicted, *carried_out(engine, predicted, profile, seed))
        yield {"engine": engine.name, **row, "start_s": profile.startup.mean}


def profile_of(start: Start) -> Profile:
    """Return the profile of the sleeper with what was measured of its start."""
    iteration = LogNormal(sleeper.MEAN, sleeper.DEVIATION)
    speedup = tuple(sleeper.GAIN.items())
    return Profile(iteration, speedup, startup=start.node, start=start.trial, sync=LogNormal(0.05))


def measured(engine: Engine, count: int) -> Start:
    """Measure the start of ``count`` nodes side by side, and what a trial takes beside its sleep."""
    places = count * NODE.accelerators
    with tempfile.TemporaryDirectory() as folder, open_ledger(Path(folder) / "l", NODE, "") as ledger:
        stages = build_random_search(WAVES * places, 1)
        _run(engine, folder, ledger, Profile(LogNormal(1.0)), 0, stages, (Allocation(count, 1, places),))
        node = ledger.list_parts()[0].began - ledger.read_fact("began")
        extra = list(beside(ledger, places))
    return Start(LogNormal(node), LogNormal(max(1e-4, fmean(extra)), pstdev(extra)))


def beside(ledger: Ledger, places: int) -> Iterator[float]:
    """Yield what each trial took beside its steps, up to when its place was given to the next one."""
    slept = {step.trial: step.seconds for step in ledger.list_checkpoints()}
    lives = sorted((part.ended or 0.0, part.began, slept[part.trial]) for part in ledger.list_parts())
    taken = sorted(began for _, began, _ in lives)[places:]
    turn = fmean(again - ended for again, (ended, _, _) in zip(taken, lives, strict=False))
    yield from (ended - began - asleep + turn for ended, began, asleep in lives)


def carried_out(engine: Engine, plan: SimulatedPlan, profile: Profile, seed: int) -> tuple[float, float]:
    """Carry a plan out and return its seconds and dollars."""
    with tempfile.TemporaryDirectory() as folder, open_ledger(Path(folder) / "l", NODE, "") as ledger:
        outcome = _run(engine, folder, ledger, profile, seed, engine.stages, plan.plan)
        return outcome.seconds, outcome.spent_usd


def _run(
    engine: Engine, folder: str, ledger: Ledger, profile: Profile, seed: int, stages: tuple[Stage, ...], plan: Plan
) -> RunOutcome:
    trainable = TrainableConfig(function="benchmarks.sleeper:train", space={"ceiling": Uniform(0.0, 1.0)})
    config = ExecutionConfig(
        stages=stages,
        plan=plan,
        machine=engine.node,
        profile=profile,
        trainable=trainable,
        folder=Path(folder) / "trials",
        seed=seed,
        checkpoint_iters=2,
        is_replanning=False,
    )
    return Executor(config, ledger, engine.cluster(trainable, ledger)).run()


def _errors(rows: Sequence[dict[str, Any]], suffix: str) -> dict[str, float | None]:
    return {
        f"{name}_error_percent_max{suffix}": max((abs(row[f"{name}_error_percent"]) for row in rows), default=None)
        for name in ("time", "cost")
    }


def _row(plan: SimulatedPlan, seconds: float, dollars: float) -> dict[str, Any]:
    return {
        "instances": [allocation.instances for allocation in plan.plan],
        "accelerators_per_trial": [allocation.workers for allocation in plan.plan],
        "predicted_s": plan.mean_seconds,
        "executed_s": seconds,
        "time_error_percent": (plan.mean_seconds / seconds - 1) * 100,
        "predicted_usd": plan.mean_cost_usd,
        "executed_usd": dollars,
        "cost_error_percent": (plan.mean_cost_usd / dollars - 1) * 100,
    }
