"""Compiled kernels against their reference implementations."""

from __future__ import annotations

import numpy as np
import pytest
import tuning_jobs as jobs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import nbinom

from unfold_tuning.job.allocation import compute_makespan
from unfold_tuning.planner.frontier import build_stage_costs, search_frontier
from unfold_tuning.simulator.execution_model import build_execution_model
from unfold_tuning.simulator.kernels import (
    count_preemptions,
    count_preemptions_reference,
    merge_fronts_reference,
    schedule_slots,
    schedule_slots_reference,
    schedule_trials,
    schedule_trials_reference,
    search_labels_reference,
)

Points = list[tuple[float, float]]


@given(st.lists(st.floats(0.1, 100.0), min_size=1, max_size=30), st.integers(1, 12))
def test_three_schedulers_agree(lengths: list[float], slots: int) -> None:
    """Compiled, plain and heapq scheduling agree; the end is at least the longest job and the mean load."""
    rows = np.array([lengths])
    slots = min(slots, len(lengths))
    ends = [
        float(schedule_trials(rows, slots)[0]),
        float(schedule_trials_reference(rows, slots)[0]),
        compute_makespan(lengths, slots),
    ]
    assert ends[1:] == pytest.approx([ends[0], ends[0]])
    assert ends[0] >= max(*lengths, sum(lengths) / slots) - 1e-9


@given(st.lists(st.sampled_from([0.0, 1.0, 2.5, 4.0]), min_size=1, max_size=30), st.integers(1, 12))
def test_every_slot_ends_as_in_a_search_of_all(lengths: list[float], slots: int) -> None:
    """Each job takes the first of the slots that are free first, compiled or not; the last end is the makespan."""
    rows, free_at = np.array([lengths]), [0.0] * slots
    for length in lengths:
        free_at[free_at.index(min(free_at))] += length
    assert schedule_slots(rows, slots)[0].tolist() == schedule_slots_reference(rows, slots)[0].tolist() == free_at
    assert max(free_at) == float(schedule_trials(rows, slots)[0])


points = st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), max_size=12)


@given(points, points, st.floats(0, 5), st.floats(0, 5))
def test_a_merge_is_the_pareto_front_of_both(first: Points, second: Points, dt: float, dc: float) -> None:
    """Every point of either front is matched or dominated by a merged one, and no merged point is dominated."""
    a, b = _select_front(first), _select_front(second)
    ids = [np.arange(len(front), dtype=np.int64) for front in (a, b)]
    time, cost, _ = merge_fronts_reference(a[:, 0], a[:, 1], ids[0], b[:, 0], b[:, 1], ids[1], dt, dc)
    for t, c in np.vstack([a, b + np.array([dt, dc])]):
        assert ((time <= t + 1e-7) & (cost <= c + 1e-8)).any()
    assert (np.diff(time) >= 0).all()
    assert (np.diff(cost) < 0).all()


def test_compiled_label_search_equals_its_reference() -> None:
    """The compiled label search returns the same front as the Python that it is compiled from."""
    model = build_execution_model(jobs.JOBS["J3"][0], jobs.noisy_profile("J3"), jobs.P3, 100, 0)
    costs = build_stage_costs(model)
    frontier = search_frontier(costs)
    time, cost, _, _, last = search_labels_reference(
        costs.seconds, costs.cost_usd, costs.growth_s, costs.growth_usd, np.inf
    )
    assert np.array_equal(time[last], frontier.seconds)
    assert np.array_equal(cost[last], frontier.cost_usd)


@given(st.floats(0.001, 2.0), st.floats(1.0, 60.0), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_preemptions_are_negative_binomial(risk: float, intervals: float, seed: int) -> None:
    """Compiled and plain counts agree with scipy's quantiles, and the residual of the uniform is between 0 and 1."""
    uniform = np.random.default_rng(seed).random((3, 2))
    tables = np.full((3, 2), risk), np.full((3, 2), intervals)
    count, residual = count_preemptions(uniform, *tables)
    assert np.array_equal(count, count_preemptions_reference(uniform, *tables)[0])
    assert np.array_equal(count, nbinom.ppf(uniform, intervals, np.exp(-risk)))
    assert ((residual >= 0) & (residual <= 1)).all()


def _select_front(points: Points) -> np.ndarray:
    front: Points = []
    for t, c in sorted(points):
        if not front or c < front[-1][1]:
            front.append((t, c))
    return np.array(front, dtype=float).reshape(-1, 2)
