"""Tuning plans: exact against greedy and static ones, the speed of the planner, and whether promises are kept.

Four successive-halving jobs at seven deadlines on 4-GPU instances at $12.24/h, with speed-ups measured on V100 by the
authors of HyperSched (SoCC 2019). Everything is simulated: planner and truth share one family of noise.
"""

from __future__ import annotations

import csv
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.replanned_run import simulate_replanned_run
from unfold_tuning.job import allocation
from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import Stage, build_successive_halving
from unfold_tuning.planner.baselines import Goal, select_cheapest, simulate_naive_clusters, simulate_static_clusters
from unfold_tuning.planner.frontier import build_stage_costs, search_frontier
from unfold_tuning.planner.planner import Candidate, evaluate_machine
from unfold_tuning.planner.rubberband_greedy import plan_greedily, plan_greedily_from_all
from unfold_tuning.simulator.execution_model import ExecutionModel, build_execution_model, scale_iteration
from unfold_tuning.simulator.plan_cost import SimulatedPlan, simulate_plan
from unfoldkit.catalog.billing import Billing

FACTORS = (1.05, 1.15, 1.3, 1.5, 2.0, 3.0, 5.0)
TIGHT = 1.1
PROMISE = 0.95
DOUBT = 0.1
HELD_SEED = 990_001
JOBS = (
    ("J1", (32, 1, 50, 3), ("resnet101", "cifar10"), 40.0),
    ("J2", (64, 4, 508, 2), ("resnet101", "cifar10"), 4.0),
    ("J3", (81, 1, 81, 3), ("resnet50", "imagenet"), 30.0),
    ("J4", (128, 1, 128, 4), ("resnet50", "cifar10"), 12.0),
)


@dataclass(frozen=True, slots=True)
class Job:
    """A job by name, with its stages and the profile without spread."""

    name: str
    stages: tuple[Stage, ...]
    profile: Profile

    @property
    def fastest(self) -> float:
        """The shortest time that the largest gang allows: every trial at once, one start-up, the barriers."""
        gain = self.profile.speedup[-1][1]
        work = sum(stage.groups[0].iters for stage in self.stages) * self.profile.iteration.mean / gain
        return work + self.profile.startup.mean + self.profile.sync.mean * (len(self.stages) - 1)


def run(quick: bool, seed: int, data: Path) -> dict[str, Any]:
    """Measure plans, times and promises.

    Args:
        quick: Fewer samples and runs.
        seed: Seed of the plans; the runs that judge them have another.
        data: Folder that holds ``scaling``.

    Returns:
        ``metrics``, ``peers``, ``tables`` and ``notes``.
    """
    jobs = list(read_jobs(data / "scaling" / "speedup_v100.csv"))
    cases = [row for job in jobs for row in mean_cases(job)]
    promises = [row for job in jobs for row in promised(job, 2000 if quick else 10_000, seed)]
    binding = [row["seen"] for row in promises if row["planned"] <= PROMISE + 0.02]
    runs = 3 if quick else 53
    wrong = [row for job in jobs for row in wrong_profile(job, runs, seed, DOUBT)]
    trusting = [row for job in jobs for row in wrong_profile(job, max(1, runs // 3), seed, DOUBT / 2)]
    tight = [row for row in cases if row["factor"] <= TIGHT]
    metrics = {
        "exact_seconds_64": max(exact_seconds(job, 64) for job in jobs),
        "exact_seconds_256": max(exact_seconds(job, 256) for job in jobs),
        "static_ratio_tight": min(row["static"] / row["exact"] for row in tight),
        "static_ratio_tight_max": max(row["static"] / row["exact"] for row in tight),
        "greedy_excess_percent_max": max(row["greedy"] / row["exact"] - 1 for row in cases) * 100,
        "greedy_excess_percent_mean": fmean(row["greedy"] / row["exact"] - 1 for row in cases) * 100,
        "exact_dearer_cases": sum(row["exact"] > min(row["greedy"], row["static"]) + 1e-9 for row in cases),
        "on_time_promised": PROMISE,
        "on_time_seen": fmean(binding),
        "on_time_seen_min": min(binding),
        "on_time_seen_max": max(binding),
        "on_time_seen_bad_profile": share(wrong, "replanned"),
        "on_time_seen_bad_profile_open": share(wrong, "open"),
        "on_time_seen_bad_profile_half_doubt": share(trusting, "replanned"),
        "bad_profile_runs": sum(row["runs"] for row in wrong),
    }
    tables = {"mean_model": cases, "promises": promises, "bad_profile": wrong, "bad_profile_half_doubt": trusting}
    return {"metrics": metrics, "peers": _peers(cases), "tables": tables, "notes": _notes(promises)}


def read_jobs(path: Path) -> Iterator[Job]:
    """Yield the four jobs with their measured speed-ups."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    for name, shape, (net, dataset), seconds in JOBS:
        found = [row for row in rows if (row["model"], row["dataset"]) == (net, dataset)]
        speedup = tuple((int(row["gpus"]), float(row["speedup"])) for row in found)
        # the published plans assume that a trial over several instances is as fast as within one
        profile = Profile(LogNormal(seconds), speedup, speedup, startup=LogNormal(60.0), sync=LogNormal(10.0))
        yield Job(name, build_successive_halving(*shape), profile)


def mean_cases(job: Job) -> Iterator[dict[str, Any]]:
    """Yield what each planner pays at each deadline when nothing varies."""
    model = build_execution_model(job.stages, job.profile, machine(64), 1, 0)
    candidate = evaluate_machine(model, PROMISE)
    statics, naives = simulate_static_clusters(model), simulate_naive_clusters(model)
    for factor in FACTORS:
        goal = Goal(factor * job.fastest, PROMISE)
        static = select_cheapest(statics, goal).plan
        exact = candidate.select_cheapest(goal.deadline_s)
        row = {
            "static": static,
            "naive": select_cheapest(naives, goal).plan,
            "greedy": plan_greedily(model, goal, static).plan,
            "greedy_multi_start": plan_greedily_from_all(model, goal, statics).plan,
            "exact": exact,
        }
        dollars = {name: item.mean_cost_usd if item else None for name, item in row.items()}
        counts = [allocation.instances for allocation in exact.plan] if exact else []
        yield {"job": job.name, "factor": factor, "deadline_s": goal.deadline_s, **dollars, "plan": counts}


def promised(job: Job, samples: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield, for each deadline that can be promised, the promise and how often 1,000 fresh runs keep it."""
    candidate = evaluate_machine(
        build_execution_model(job.stages, noisy(job.profile), machine(64), samples, seed), PROMISE
    )
    fresh = build_execution_model(job.stages, noisy(job.profile), machine(64), 1000, HELD_SEED)
    for factor in FACTORS:
        plan = candidate.select_cheapest(factor * job.fastest)
        if plan is not None:
            yield _seen(job, factor, plan, simulate_plan(fresh, plan.plan))
    yield {**_at_the_edge(job, candidate, fresh), "job": job.name}


def wrong_profile(job: Job, runs: int, seed: int, doubt: float) -> Iterator[dict[str, Any]]:
    """Yield how often runs are on time when iterations take 10 % longer and provisioning twice as long."""
    profile = noisy(job.profile, doubt)
    assumed = build_execution_model(job.stages, profile, machine(64), 400, seed)
    wait = profile.provision
    true = replace(scale_iteration(profile, 1.1), provision=LogNormal(2 * wait.mean, 2 * wait.std), error_cv=0.0)
    truth = build_execution_model(job.stages, true, machine(64), runs, HELD_SEED + 1)
    candidate = evaluate_machine(assumed, PROMISE)
    for factor in FACTORS:
        goal = Goal(factor * job.fastest, PROMISE)
        plan = candidate.select_cheapest(goal.deadline_s)
        if plan is not None:
            ends = [simulate_replanned_run(truth, index, assumed, plan.plan, goal) for index in range(runs)]
            kept = sum(end.seconds <= goal.deadline_s for end in ends)
            blind = round(simulate_plan(truth, plan.plan).estimate_on_time_probability(goal.deadline_s) * runs)
            open_usd = simulate_plan(truth, plan.plan).mean_cost_usd
            costs = {"dollars": fmean(end.cost_usd for end in ends), "dollars_open": open_usd}
            yield {"job": job.name, "factor": factor, "runs": runs, "replanned": kept, "open": blind, **costs}


def exact_seconds(job: Job, limit: int) -> float:
    """Return the seconds of the whole exact curve, stage times included, without the first call's compilation."""
    times = []
    for _ in range(4):
        # a planner that starts has no allocations cached
        allocation.list_faster_allocations.cache_clear()
        began = time.perf_counter()
        model = build_execution_model(job.stages, job.profile, machine(limit), 1, 0)
        search_frontier(build_stage_costs(model))
        times.append(time.perf_counter() - began)
    return min(times[1:])


def machine(limit: int) -> Machine:
    """Return the instance type of the study: 4 GPUs at $12.24/h, billed by the second."""
    return Machine("p3.8xlarge", 4, 12.24, max_instances=limit, billing=Billing(0.0, 0.0))


def noisy(profile: Profile, doubt: float = DOUBT) -> Profile:
    """Return the profile with mild spread, a provisioning delay, and doubt about itself."""
    mean = profile.iteration.mean
    return replace(
        profile,
        iteration=LogNormal(mean, 0.2 * mean),
        provision=LogNormal(30.0, 15.0),
        startup=LogNormal(60.0, 9.0),
        trial_cv=0.05,
        error_cv=doubt,
    )


def share(rows: Sequence[dict[str, Any]], key: str) -> float:
    """Return the share of all runs that were on time."""
    return float(sum(row[key] for row in rows) / sum(row["runs"] for row in rows))


def _seen(job: Job, factor: float, plan: SimulatedPlan, seen: SimulatedPlan) -> dict[str, Any]:
    deadline = factor * job.fastest
    row = {"job": job.name, "factor": factor, "deadline_s": deadline, "dollars": plan.mean_cost_usd}
    return row | {
        "planned": plan.estimate_on_time_probability(deadline),
        "seen": seen.estimate_on_time_probability(deadline),
    }


def _at_the_edge(job: Job, candidate: Candidate, fresh: ExecutionModel) -> dict[str, Any]:
    index = candidate.earliest_index
    deadline, plan = float(candidate.guaranteed_s[index]), candidate.plans[index]
    return _seen(job, deadline / job.fastest, plan, simulate_plan(fresh, plan.plan))


def _peers(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = ("static", "naive", "greedy", "greedy_multi_start")
    pairs = itertools.product(names, (1.05, 1.15, 1.3, 1.5, 2.0))
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    for name, factor in pairs:
        ratios = [row[name] / row["exact"] for row in cases if row["factor"] == factor and row[name]]
        if ratios:
            found[name][f"cost_ratio_mean_{factor:g}x"] = fmean(ratios)
    return found


def _notes(promises: Sequence[dict[str, Any]]) -> list[str]:
    edge = [row["factor"] for row in promises if row["factor"] not in FACTORS]
    return [
        "Everything is simulated; planner and truth share one family of noise: the promise shows honest sampling.",
        "Greedy is RubberBand's planner as it is known from its abstract and notes; its details are ours.",
        f"With 30 s of provisioning, 95 % can be promised from {min(edge):.2f}x to {max(edge):.2f}x of the fastest on.",
        "Shorter deadlines are answered with no plan and are not among the promises.",
        "on_time_seen: promises that bind, which are those whose planned probability is at most 97 %.",
        "Bad profile: iterations take 10 % longer, provisioning twice as long; planned again at each stage's end.",
        "Bad profile: every deadline of the seven that can be promised counts alike.",
        f"Plans doubt their profile by {DOUBT:.0%}, the default; half_doubt shows those that doubt it half as much.",
    ]
