"""Planned residency on traces over many members, against an exhaustive choice and against LRU and LFU."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unfold_supernet.replay.problem import ReplayProblem, ServingOptions
from unfold_supernet.replay.residency import (
    complete_plan,
    list_contenders,
    make_planned,
    plan_residency,
    rank_by_accuracy,
    read_plan,
    simulate_resident,
    write_plan,
)
from unfold_supernet.replay.simulated import simulate_replay
from unfold_supernet.report import sentences
from unfold_supernet.report.replay import WINDOWS, build_simulated_report
from unfold_supernet.scheduling.policies import SubnetProfile
from unfold_supernet.scheduling.requests import RequestTargets
from unfold_supernet.scheduling.residency import MemberCost
from unfoldkit.api import Figure, RunDir

OPTIONS = ServingOptions(
    slo_s=0.08, policy="steady", backend="cpu", load=None, min_attainment=0.9, escalate_below=None, guard={}
)


def make_problem(count: int, budget: float, seed: int, requests: int = 1500) -> ReplayProblem:
    """Make members of growing cost, and requests that mostly demand a few of their accuracies."""
    rng = np.random.default_rng(seed)
    latency_s = np.geomspace(0.0005, 0.03, count)
    accuracies = np.linspace(70.0, 95.0, count)
    profiles = tuple(
        SubnetProfile(f"m{index}", float(accuracies[index]), ((1, float(time_s)), (16, float(time_s) * 4)))
        for index, time_s in enumerate(latency_s)
    )
    sizes = np.geomspace(5e6, 80e6, count).astype(int)
    costs = tuple(MemberCost(int(size), float(size) * 1e-9 + 0.002) for size in rng.permutation(sizes))
    popularity = 1.0 / (1 + rng.permutation(count)) ** 1.2
    levels = rng.choice(count, requests, p=popularity / popularity.sum())
    return ReplayProblem(
        name="many",
        options=OPTIONS,
        arrivals=np.cumsum(rng.exponential(1 / 100, requests)),
        profiles=profiles,
        switch_s=None,
        seed=0,
        targets=RequestTargets(np.full(requests, 0.08), accuracies[levels] / 100 - 1e-9),
        costs=costs,
        memory_bytes=int(sum(cost.bytes for cost in costs) * budget),
    )


def test_plan_of_a_short_list_is_the_best_of_every_set() -> None:
    """For four members, no set of pinned members serves more requests than the planned one."""
    problem = make_problem(4, 0.5, 3, requests=400)
    ranked = rank_by_accuracy([profile.accuracy for profile in problem.profiles])
    best = 0.0
    for size in range(5):
        for pinned in itertools.combinations(range(4), size):
            if sum(problem.costs[index].bytes for index in pinned) <= (problem.memory_bytes or 0):
                plan = complete_plan(problem.costs, problem.memory_bytes or 0, pinned, ranked)
                best = max(best, simulate_resident(problem, make_planned(problem, plan)).outcome.satisfied_fraction)
    planned = simulate_resident(problem, make_planned(problem, plan_residency(problem)))
    assert planned.outcome.satisfied_fraction >= best - 5e-3


def test_plan_beats_lru_and_lfu_on_later_traces() -> None:
    """Plans from some traces serve more requests of later ones than LRU and LFU on average, and load less."""
    satisfied, loads_s = np.zeros(3), np.zeros(3)
    for seed in range(3):
        problem = make_problem(8, 0.4, seed, requests=600)
        plan = plan_residency(problem)
        assert problem.targets is not None
        order = np.random.default_rng(100 + seed).permutation(problem.arrivals.size)
        later = replace(problem, targets=problem.targets.select(order))
        outcomes = [simulate_resident(later, contender) for contender in list_contenders(later, plan)[:3]]
        satisfied += [result.outcome.satisfied_fraction for result in outcomes]
        loads_s += [result.load_s for result in outcomes]
    assert satisfied[0] > max(satisfied[1:])
    assert loads_s[0] < min(loads_s[1:])


def test_plan_of_a_long_trace_considers_its_later_part() -> None:
    """Requests that differ from those at the start of a trace are not left to members outside the memory."""
    problem = make_problem(4, 0.5, 3, requests=10_000)
    is_early = np.arange(10_000) < 4_000
    needed = np.where(is_early, problem.profiles[3].accuracy, problem.profiles[2].accuracy) / 100 - 1e-9
    targets = RequestTargets(np.where(is_early, 0.2, 0.01), needed)
    problem = replace(problem, targets=targets, costs=(MemberCost(10, 1.0),) * 4, memory_bytes=12)
    contenders = list_contenders(problem, plan_residency(problem))
    planned, *others = [simulate_resident(problem, each).outcome.satisfied_fraction for each in contenders]
    assert planned >= max(others)


def test_report_names_pinned_and_unused_members(tmp_path: Path) -> None:
    """The report tabulates the role of every member; the plan is read back for the same memory only."""
    problem = make_problem(6, 0.4, 1, requests=300)
    replayed = simulate_replay(problem)
    report = build_simulated_report(replayed)
    names = [result.name for result in replayed.results]
    assert names[:3] == ["steady", "least recently used", "least frequently used"]
    assert names[-1] == "memory for all"
    assert {row[-1] for row in report.tables[-1].rows} <= {"pinned", "on demand", "not used"}
    (figure,) = report.figures
    assert isinstance(figure, Figure)
    answered = {series.name: sum(series.y) for series in figure.series if series.name != sentences.TOO_LATE}
    served = int((replayed.results[0].outcome.subnet >= 0).sum())
    window_s = float(problem.arrivals[-1] - problem.arrivals[0]) / WINDOWS
    assert sum(answered.values()) * window_s == pytest.approx(served)
    assert "MB allowed" in dict(report.lines)["memory"]
    plan = replayed.residency
    assert plan is not None
    directory = RunDir(tmp_path)
    write_plan(directory, problem, plan)
    members = [profile.name for profile in problem.profiles]
    assert read_plan(directory, members, problem.memory_bytes or 0) == plan
    assert read_plan(directory, members, 1) is None
    assert read_plan(directory, members[1:], problem.memory_bytes or 0) is None
