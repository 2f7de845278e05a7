"""The exact curve and the rivals, without spread."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import jobs

from unfold_tuning.job.allocation import makespan
from unfold_tuning.job.profile import Machine, Profile
from unfold_tuning.job.schedule import Stage
from unfold_tuning.planner.baselines import Goal, cheapest, greedy, multi_start, static_scores
from unfold_tuning.planner.frontier import curve, grid
from unfold_tuning.planner.planner import offers
from unfold_tuning.simulator.execution_model import model
from unfold_tuning.simulator.kernels import labels_python, merge_python, schedule, schedule_python
from unfold_tuning.simulator.plan_cost import score, scores

# static, greedy, greedy from every start, exact: dollars of the study at deadlines of FACTORS times the fastest run
STUDY = {
    "J1": [
        (27.53, 9.69, 9.69, 9.69), (12.18, 6.65, 6.65, 6.65), (9.74, 6.26, 6.12, 6.12), (7.37, 5.34, 5.34, 5.34),
        (4.85, 4.85, 4.85, 4.85), (4.85, 4.53, 4.53, 4.53), (4.32, 4.32, 4.32, 4.32),
    ],
    "J2": [
        (33.23, 11.64, 11.64, 11.64), (13.27, 7.76, 7.76, 7.76), (11.22, 7.35, 7.25, 7.13), (7.93, 6.20, 6.20, 6.20),
        (5.48, 5.48, 5.48, 5.48), (5.48, 5.14, 5.14, 5.14), (4.90, 4.90, 4.90, 4.90),
    ],
    "J3": [
        (63.89, 19.65, 19.65, 19.65), (35.68, 14.96, 14.96, 14.96), (20.35, 13.30, 13.30, 12.92),
        (18.88, 12.06, 11.75, 11.75), (12.46, 11.14, 10.87, 10.87), (11.25, 10.53, 10.42, 10.31),
        (9.35, 9.35, 9.35, 9.35),
    ],
    "J4": [
        (42.24, 14.55, 14.55, 14.55), (22.25, 10.11, 10.11, 10.11), (12.68, 8.14, 8.14, 8.14),
        (11.13, 7.50, 7.50, 7.50), (7.96, 6.43, 6.43, 6.43), (6.02, 5.69, 5.69, 5.69), (5.41, 5.41, 5.41, 5.41),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", list(jobs.JOBS))
def test_the_28_cases_of_the_study(name: str) -> None:
    """Static optimum, greedy, its multi-start and the exact plan cost what an independent search found."""
    found = offers(jobs.JOBS[name][0], jobs.still(name), [jobs.P3], 0.95, 1, 0)[0]
    statics = static_scores(found.model)
    for factor, want in zip(jobs.FACTORS, STUDY[name], strict=True):
        goal = Goal(factor * jobs.fastest(name), 0.95)
        static = cheapest(statics, goal).best
        lowered, started = greedy(found.model, goal, static).best, multi_start(found.model, goal, statics).best
        got = [item.cost for item in (static, lowered, started, found.pick(goal.deadline)) if item]
        assert got == pytest.approx(want, abs=0.006), factor


@settings(max_examples=60, deadline=None)
@given(jobs.small_jobs())
def test_the_curve_is_that_of_all_plans(job: tuple[tuple[Stage, ...], Profile, Machine]) -> None:
    """No plan of any instances and sizes of trials beats the curve at any deadline, and its points are such plans."""
    stages, profile, machine = job
    drawn = model(stages, profile, machine, 1, 0)
    found = curve(grid(drawn))
    plans = scores(drawn, list(jobs.every_plan(drawn)))
    times, costs = np.array([p.mean_seconds for p in plans]), np.array([p.cost for p in plans])
    for deadline, dollars in zip(found.seconds, found.dollars, strict=True):
        assert costs[times <= deadline + 1e-6].min() == pytest.approx(dollars, rel=1e-6, abs=1e-6)
    assert times.min() == pytest.approx(found.seconds[0], rel=1e-9)
    for plan, dollars in zip(found.plans, found.dollars, strict=True):
        assert score(drawn, plan).cost == pytest.approx(dollars, rel=1e-6, abs=1e-6)


@given(st.lists(st.floats(0.1, 100.0), min_size=1, max_size=30), st.integers(1, 12))
def test_scheduling_is_the_same_three_times(lengths: list[float], places: int) -> None:
    """Compiled, plain and heapq scheduling agree; the end is at least the longest job and the mean load."""
    rows = np.array([lengths])
    places = min(places, len(lengths))
    ends = [float(schedule(rows, places)[0]), float(schedule_python(rows, places)[0]), makespan(lengths, places)]
    assert ends[1:] == pytest.approx([ends[0], ends[0]])
    assert ends[0] >= max(*lengths, sum(lengths) / places) - 1e-9


fronts = st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), max_size=12)


@given(fronts, fronts, st.floats(0, 5), st.floats(0, 5))
def test_a_merge_is_the_pareto_front_of_both(
    one: list[tuple[float, float]], two: list[tuple[float, float]], dt: float, dc: float
) -> None:
    """Every point of either front is matched or beaten in both by one that is kept, and none that is kept is beaten."""
    a, b = _front(one), _front(two)
    ids = [np.arange(len(item), dtype=np.int64) for item in (a, b)]
    time, cost, _ = merge_python(a[:, 0], a[:, 1], ids[0], b[:, 0], b[:, 1], ids[1], dt, dc)
    everything = np.vstack([a, b + np.array([dt, dc])])
    for t, c in everything:
        assert ((time <= t + 1e-7) & (cost <= c + 1e-8)).any()
    assert (np.diff(time) >= 0).all()
    assert (np.diff(cost) < 0).all()


def test_compiled_labels_are_the_plain_ones() -> None:
    """The compiled label search returns the same front as the Python that it is compiled from."""
    drawn = model(jobs.JOBS["J3"][0], jobs.noisy("J3"), jobs.P3, 100, 0)
    table = grid(drawn)
    found = curve(table)
    time, cost, _, _, last = labels_python(table.time, table.cost, table.grow_time, table.grow_cost, np.inf)
    assert np.array_equal(time[last], found.seconds)
    assert np.array_equal(cost[last], found.dollars)


def _front(points: list[tuple[float, float]]) -> np.ndarray:
    kept: list[tuple[float, float]] = []
    for t, c in sorted(points):
        if not kept or c < kept[-1][1]:
            kept.append((t, c))
    return np.array(kept, dtype=float).reshape(-1, 2)
