"""Elastic plans against Ray Tune's ASHA on a static cluster of the same deadline, replayed on recorded learning curves.

The curves are those of a surrogate of LCBench (YAHPO Gym), not measured runs. Both sides try the same configurations in
the same order, on the same instances, with the same first rung and reduction factor. ASHA is Ray Tune's own scheduler
class, driven by a virtual clock; its deadline is when it ends on a static cluster, known to it exactly and to our plan
as a number to promise.
"""

from __future__ import annotations

import csv
import gzip
import heapq
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.tuning_stage import PlayedTrial, play_stage
from unfold_tuning.job.allocation import Plan
from unfold_tuning.job.profile import LogNormal, Machine, Profile, compute_log_sigma
from unfold_tuning.job.schedule import Group, build_successive_halving
from unfold_tuning.planner.planner import evaluate_machine
from unfold_tuning.planner.replan import Posterior, build_prior, estimate_slowdowns, replan_remaining
from unfold_tuning.simulator.execution_model import ExecutionModel, TrialSlowdowns, build_execution_model
from unfold_tuning.simulator.plan_cost import BilledInstances, release_oldest
from unfoldkit.catalog.billing import Billing

Floats = npt.NDArray[np.float64]
TRIALS, FIRST, EPOCHS, ETA = 64, 4, 52, 3
STAGES = build_successive_halving(TRIALS, FIRST, EPOCHS, ETA)
NODE = Machine("g5.12xlarge", 4, 5.672, max_instances=32, billing=Billing(1.0, 60.0))
PROVISION, STARTUP, SYNC = 45.0, 60.0, 10.0
STATIC = (2, 4, 8)
SHARE = 0.95
PROFILED = 8
SAMPLES = 1000
AIMS = {"cost_ratio_asha_median": "≤ 0.7", "cost_ratio_asha_worst_task": "≤ 1.05"}


@dataclass(frozen=True, slots=True)
class Table:
    """Recorded curves of one task: ``accuracy`` and ``elapsed`` seconds are [configurations, epochs + 1]."""

    task: str
    accuracy: Floats
    elapsed: Floats

    def shuffled(self, seed: int) -> Table:
        """Return the first configurations of a random order, which both sides try."""
        order = np.random.default_rng([seed, 7]).permutation(len(self.accuracy))[:TRIALS]
        return Table(self.task, self.accuracy[order], self.elapsed[order])


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: seconds from the request for instances, dollars, accuracy of the best trial."""

    seconds: float
    dollars: float
    accuracy: float


def run(quick: bool, seed: int, data: Path) -> dict[str, Any]:
    """Replay both sides over tasks, orders and static sizes.

    Args:
        quick: One order instead of ten.
        seed: Of the first order.
        data: Folder that holds ``hpo`` and ``scaling``.

    Returns:
        ``metrics``, ``peers``, ``tables`` and ``notes``.
    """
    tables, speedup = list(read_tables(data)), read_speedup(data)
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("fsspec") is None:
        return {"metrics": {"cost_ratio_asha": None}, "notes": ["Ray Tune is not installed: nothing to compare with."]}
    orders = range(seed, seed + (1 if quick else 10))
    rows = [row for table in tables for order in orders for row in compared(table.shuffled(order), speedup, order)]
    reached = [row for row in rows if row["accuracy"] >= row["asha_accuracy"]]
    metrics = {
        "cost_ratio_asha": _sum(rows, "usd") / _sum(rows, "asha_usd"),
        "cost_ratio_asha_median": float(np.median([row["usd"] / row["asha_usd"] for row in rows])),
        "cost_ratio_asha_worst_task": max(_ratio(rows, task=table.task) for table in tables),
        "cost_ratio_asha_where_reached": _sum(reached, "usd") / _sum(reached, "asha_usd") if reached else None,
        "cost_ratio_asha_promised": _part(rows, promised=True)[0],
        "cost_ratio_asha_promised_median": _part(rows, promised=True)[1],
        "cost_ratio_asha_promised_worst_task": max(
            (
                _ratio(own, task=table.task)
                for table in tables
                if (own := [row for row in rows if row["promised"] and row["task"] == table.task])
            ),
            default=None,
        ),
        "cost_ratio_asha_refused": _part(rows, promised=False)[0],
        "cost_ratio_asha_refused_median": _part(rows, promised=False)[1],
        "reached_share": len(reached) / len(rows),
        "accuracy_mean": fmean(row["accuracy"] for row in rows),
        "on_time_share": fmean(row["seconds"] <= row["deadline_s"] for row in rows),
        "promised_share": fmean(row["promised"] for row in rows),
        "pairs": len(rows),
    }
    peers = {"ray-tune-asha": {"accuracy_mean": fmean(row["asha_accuracy"] for row in rows), "on_time_share": 1.0}}
    by_size = {f"cost_ratio_asha_{size}": _ratio(rows, asha_instances=size) for size in STATIC}
    versions = {"ray": importlib.metadata.version("ray")}
    return {
        "metrics": metrics | by_size, "peers": peers, "tables": {"pairs": rows}, "versions": versions, "aims": AIMS
    } | _notes()  # fmt: skip


def compared(table: Table, speedup: tuple[tuple[int, float], ...], seed: int) -> Iterator[dict[str, Any]]:
    """Yield a pair of runs for each static size."""
    profile = profiled(table, speedup, seed)
    assumed = build_execution_model(STAGES, profile, NODE, SAMPLES, seed)
    candidate = evaluate_machine(assumed, SHARE)
    for size in STATIC:
        asha = asha_run(table, size, seed)
        cheapest = candidate.select_cheapest(asha.seconds)
        earliest = candidate.plans[candidate.earliest_index].plan
        # as train does without a guarantee: the cheapest of the plans that are nearly the most likely to be on time
        plan = cheapest.plan if cheapest else replan_remaining(assumed, earliest, asha.seconds, SHARE).plan
        ours, held = elastic_run(table, assumed, plan, asha.seconds)
        yield {
            "task": table.task, "order": seed, "asha_instances": size, "deadline_s": asha.seconds,
            "promised": cheapest is not None, "instances": held, "seconds": ours.seconds, "usd": ours.dollars,
            "accuracy": ours.accuracy, "asha_usd": asha.dollars, "asha_accuracy": asha.accuracy,
        }  # fmt: skip


def asha_run(table: Table, size: int, seed: int) -> Ended:
    """Play Ray Tune's ASHA on ``size`` instances, a trial on each accelerator, until every trial has ended.

    An instance is released once its last trial has ended. Trials fill one instance after another, which frees the
    others as early as possible.
    """
    from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

    scheduler = AsyncHyperBandScheduler("epoch", "accuracy", "max", EPOCHS, FIRST, ETA)
    np.random.seed(seed)  # noqa: NPY002 - Ray Tune's scheduler draws from it
    free = [instance for instance in range(size) for _ in range(NODE.accelerators)]
    waiting, best, ended = list(range(len(table.accuracy))), 0.0, 0.0
    events: list[tuple[float, int, int]] = []
    place, last_end = dict[int, int](), [0.0] * size
    while waiting or events:
        while waiting and free:
            trial = waiting.pop(0)
            place[trial] = heapq.heappop(free)
            scheduler.on_trial_add(SimpleNamespace(), SimpleNamespace(trial_id=trial))
            heapq.heappush(events, (ended + table.elapsed[trial, 1], trial, 1))
        ended, trial, epoch = heapq.heappop(events)
        result, of = {"epoch": epoch, "accuracy": table.accuracy[trial, epoch]}, SimpleNamespace(trial_id=trial)
        if epoch == EPOCHS or scheduler.on_trial_result(SimpleNamespace(), of, result) == TrialScheduler.STOP:
            best = max(best, float(table.accuracy[trial, epoch]))
            heapq.heappush(free, place[trial])
            last_end[place[trial]] = ended
        else:
            spent = table.elapsed[trial, epoch + 1] - table.elapsed[trial, epoch]
            heapq.heappush(events, (ended + spent, trial, epoch + 1))
    dollars = sum(float(NODE.billing.cost(STARTUP + end, NODE.usd_per_hour)) for end in last_end)
    return Ended(PROVISION + STARTUP + ended, dollars, best)


def elastic_run(table: Table, assumed: ExecutionModel, plan: Plan, deadline: float) -> tuple[Ended, list[int]]:
    """Run a plan on the table as ``train`` does: planned again at each barrier, and before it while nodes are idle."""
    profile, clock, dollars = assumed.profile, np.zeros(1), np.zeros(1)
    noise = compute_log_sigma(profile.trial_cv) + compute_log_sigma(profile.iteration.std / profile.iteration.mean)
    posterior, held, trials = build_prior(profile), list[BilledInstances](), list(range(len(table.accuracy)))
    for index, stage in enumerate(STAGES):
        allocation, group = plan[index], stage.groups[0]
        new = allocation.instances - sum(holding.count for holding in held)
        if new < 0:
            held, paid = release_oldest(held, -new, clock, NODE)
            dollars = dollars + paid
        elif new > 0:
            held, clock = [*held, BilledInstances(new, clock + PROVISION)], clock + PROVISION + STARTUP
        trials = sorted(trials, key=lambda trial: -table.accuracy[trial, group.done])[: group.trials]
        own = [float(table.elapsed[t, group.done + group.iters] - table.elapsed[t, group.done]) for t in trials]
        gain = profile.get_speedup(allocation.workers, NODE.accelerators)
        clock = clock + (SYNC if index else 0.0)
        ratios = [max(s, 1e-9) / (group.iters * profile.iteration.mean) for s in own]
        later = Later(index, assumed.with_profile(posterior.update(ratios, noise).apply_to(profile)), plan)

        def replan(
            now: float, played: Sequence[PlayedTrial], later: Later = later, begin: float = float(clock[0])
        ) -> int:
            return later.count_needed(now, played, deadline - begin - max(trial.end for trial in played))

        kept = plan[index + 1].instances if index + 1 < len(STAGES) else 1
        played = play_stage([seconds / gain for seconds in own], allocation, NODE.accelerators, kept, replan)
        for moment in played.released:
            held, paid = release_oldest(held, 1, clock + moment, NODE)
            dollars = dollars + paid
        clock, plan = clock + played.end, later.plan
        posterior = posterior.update(ratios, noise)
        if index + 1 < len(STAGES):
            corrected = assumed.with_profile(posterior.apply_to(profile))
            slowdowns = _slowdowns(table, trials, STAGES[index + 1].groups[0], profile, posterior)
            running = sum(holding.count for holding in held)
            remaining = corrected.select_remaining(index + 1, running).with_slowdowns(slowdowns)
            replanned = replan_remaining(remaining, plan[index + 1 :], deadline - float(clock[0]), SHARE)
            plan = (*plan[: index + 1], *replanned.plan)
    dollars = dollars + release_oldest(held, sum(holding.count for holding in held), clock, NODE)[1]
    best = max(float(table.accuracy[trial, EPOCHS]) for trial in trials)
    return Ended(float(clock[0]), float(dollars[0]), best), [allocation.instances for allocation in plan]


@dataclass(slots=True)
class Later:
    """What follows a running stage: the job under the profile that its trials show, and the plan, which may shrink."""

    index: int
    corrected: ExecutionModel
    plan: Plan

    def count_needed(self, now: float, played: Sequence[PlayedTrial], left: float) -> int:
        """Count the instances that the next stage needs, once every trial has run an epoch."""
        index, group = self.index, STAGES[self.index].groups[0]
        if index + 1 == len(STAGES):
            return 1
        planned = self.plan[index + 1].instances
        if all(trial.begin + (trial.end - trial.begin) / group.iters <= now for trial in played):
            remaining = self.corrected.select_remaining(index + 1, self.plan[index].instances)
            replan = replan_remaining(remaining, self.plan[index + 1 :], left, SHARE)
            if not replan.is_late and replan.plan[0].instances < planned:
                self.plan = (*self.plan[: index + 1], *replan.plan)
        return self.plan[index + 1].instances


def _slowdowns(
    table: Table, trials: Sequence[int], group: Group, profile: Profile, posterior: Posterior
) -> TrialSlowdowns:
    """Estimate the slowdowns of the trials that continue, from what each took so far."""
    going = sorted(trials, key=lambda trial: -table.accuracy[trial, group.done])[: group.trials]
    ratios = [float(table.elapsed[trial, group.done]) / (group.done * profile.iteration.mean) for trial in going]
    return estimate_slowdowns(ratios, group.done, profile, posterior)


def profiled(table: Table, speedup: tuple[tuple[int, float], ...], seed: int) -> Profile:
    """Return what the first epochs of a few configurations show, as ``unfold profile`` would."""
    chosen = np.random.default_rng([seed, 8]).permutation(len(table.elapsed))[:PROFILED]
    each = table.elapsed[chosen, 3] / 3
    mean, cv = float(each.mean()), float(each.std() / each.mean())
    return Profile(
        LogNormal(mean), speedup, provision=LogNormal(PROVISION, PROVISION / 2), startup=LogNormal(STARTUP, 9.0),
        sync=LogNormal(SYNC), trial_cv=cv, error_cv=0.1,
    )  # fmt: skip


def read_tables(data: Path) -> Iterator[Table]:
    """Yield the tasks, rows in any order; elapsed seconds never fall, and epoch 0 is the start."""
    with gzip.open(data / "hpo" / "lcbench_surrogate_replay.csv.gz", "rt", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    for task in sorted({row["task_id"] for row in rows}):
        own = [row for row in rows if row["task_id"] == task]
        own.sort(key=lambda row: (int(row["config_id"]), int(row["epoch"])))
        if [int(row["epoch"]) for row in own] != list(range(1, EPOCHS + 1)) * (len(own) // EPOCHS):
            raise ValueError(f"task {task}: not {EPOCHS} epochs of each configuration")
        pair = [np.array([float(row[key]) for row in own]).reshape(-1, EPOCHS) for key in ("val_accuracy", "elapsed_s")]
        accuracy, elapsed = (np.pad(values, ((0, 0), (1, 0))) for values in pair)
        yield Table(task, accuracy, np.maximum.accumulate(elapsed, axis=1))


def read_speedup(data: Path) -> tuple[tuple[int, float], ...]:
    """Return the measured speed-up of ResNet-50 on CIFAR-10 within an instance."""
    with (data / "scaling" / "speedup_v100.csv").open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if (row["model"], row["dataset"]) == ("resnet50", "cifar10")]
    return tuple((int(row["gpus"]), float(row["speedup"])) for row in rows if int(row["gpus"]) <= NODE.accelerators)


def _sum(rows: Sequence[dict[str, Any]], key: str) -> float:
    return float(sum(row[key] for row in rows))


def _ratio(rows: Sequence[dict[str, Any]], **chosen: Any) -> float:
    """Return the ratio of all dollars, of the pairs that have some values."""
    own = [row for row in rows if all(row[key] == value for key, value in chosen.items())]
    return _sum(own, "usd") / _sum(own, "asha_usd")


def _part(rows: Sequence[dict[str, Any]], *, promised: bool) -> tuple[float | None, float | None]:
    """Return the ratio of all dollars and the median ratio, of pairs with a promised deadline, or of the others."""
    own = [row for row in rows if row["promised"] == promised]
    if not own:
        return None, None
    return _sum(own, "usd") / _sum(own, "asha_usd"), float(np.median([row["usd"] / row["asha_usd"] for row in own]))


def _notes() -> dict[str, Any]:
    return {
        "notes": [
            "Surrogate learning curves (YAHPO Gym's model of LCBench), not measured runs; a virtual clock.",
            "ASHA: Ray Tune's AsyncHyperBandScheduler, one accelerator a trial, on 2, 4 or 8 instances.",
            "Each of its instances is released once its last trial has ended.",
            "The deadline of our plan is the moment at which ASHA ended, the wait for its instances included.",
            "cost_ratio_asha: dollars of all our runs over dollars of all of ASHA's, reached accuracy or not.",
            "reached_share: pairs in which our best trial is at least as accurate as ASHA's best.",
            "promised_share: pairs whose deadline could be promised; else a plan that is nearly the likeliest.",
            "cost_ratio_asha_refused: those others, where unfold plan answers no; hurrying then costs more than ASHA.",
            "After a stage the paces of the trials that go on are known, and the rest is planned with them.",
            "Our idle instances are released before a barrier, too, except those that the next stage has.",
            "Speed-up of a trial on several accelerators: ResNet-50's on V100, borrowed; the curves have none.",
        ]
    }
