"""Stage tables."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfold_tuning.job.schedule import (
    build_custom_stages,
    build_hyperband,
    build_random_search,
    build_successive_halving,
)


@pytest.mark.parametrize(
    ("arguments", "table", "work"),
    [
        ((32, 1, 50, 3), [(32, 1), (10, 2), (3, 6), (1, 41)], 111),
        ((64, 4, 508, 2), [(64, 4), (32, 4), (16, 8), (8, 16), (4, 32), (2, 64), (1, 380)], 1276),
        ((81, 1, 81, 3), [(81, 1), (27, 2), (9, 6), (3, 18), (1, 54)], 297),
        ((128, 1, 128, 4), [(128, 1), (32, 3), (8, 12), (2, 48), (1, 64)], 480),
    ],
)
def test_successive_halving_matches_hand_computed_tables(
    arguments: tuple[int, int, int, int], table: list[tuple[int, int]], work: int
) -> None:
    """Four shapes have the trials, iterations and total work that were computed by hand."""
    stages = build_successive_halving(*arguments)
    assert [(stage.trials, stage.groups[0].iters) for stage in stages] == table
    assert sum(stage.trial_iterations for stage in stages) == work


@given(st.integers(1, 500), st.integers(1, 50), st.integers(0, 500), st.integers(2, 5))
def test_survivors_run_to_the_maximum(trials: int, low: int, more: int, eta: int) -> None:
    """Trials never grow, iterations are positive, stages continue each other, and the last stage reaches R."""
    stages = build_successive_halving(trials, low, low + more, eta)
    groups = [stage.groups[0] for stage in stages]
    assert groups[0].trials == trials
    assert all(group.iters > 0 for group in groups)
    for before, after in itertools.pairwise(groups):
        assert after.trials == max(1, before.trials // eta)
        assert after.done == before.done + before.iters
    assert groups[-1].done + groups[-1].iters == low + more


@given(st.integers(1, 300), st.integers(2, 5))
def test_parallel_brackets_have_the_work_of_sequential_ones(iters: int, eta: int) -> None:
    """Hyperband has the same trial-iterations in parallel as in sequence, in no more stages."""
    sequence, parallel = build_hyperband(iters, eta), build_hyperband(iters, eta, parallel=True)
    assert sum(stage.trial_iterations for stage in sequence) == sum(stage.trial_iterations for stage in parallel)
    assert len(parallel) <= len(sequence)


@given(st.integers(1, 20_000), st.integers(2, 7))
def test_brackets_have_the_rungs_of_the_paper(iters: int, eta: int) -> None:
    """Bracket s has s + 1 stages, which end at R / eta**s, ..., R iterations; fractions are rounded down."""
    stages = [stage.groups[0] for stage in build_hyperband(iters, eta)]
    max_bracket = stages[-1].bracket
    for s in range(max_bracket + 1):
        groups = [group for group in stages if group.bracket == max_bracket - s]
        assert [group.done + group.iters for group in groups] == [iters // eta**rung for rung in range(s, -1, -1)]
        starts = -(-(max_bracket + 1) * eta**s // (s + 1))
        assert [group.trials for group in groups] == [starts // eta**rung for rung in range(s + 1)]


def test_hyperband_matches_the_table_of_the_paper() -> None:
    """R = 81, eta = 3 starts 81, 34, 15, 8 and 5 trials (Li et al., JMLR 2018, table 1)."""
    starts = [stage.trials for stage in build_hyperband(81, 3) if stage.groups[0].done == 0]
    assert starts == [81, 34, 15, 8, 5]


def test_custom_stages_begin_a_bracket_where_trials_grow() -> None:
    """Where the number of trials grows, a new bracket begins from nothing; elsewhere trials continue."""
    groups = [stage.groups[0] for stage in build_custom_stages([(8, 1), (2, 3), (4, 5)])]
    assert [(group.done, group.bracket) for group in groups] == [(0, 0), (1, 0), (0, 1)]
    assert build_random_search(5, 7)[0].trial_iterations == 35
