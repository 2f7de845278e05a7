"""Stage tables."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfold_tuning.job.schedule import custom, hyperband, random_search, successive_halving


@pytest.mark.parametrize(
    ("call", "table", "work"),
    [
        ((32, 1, 50, 3), [(32, 1), (10, 2), (3, 6), (1, 41)], 111),
        ((64, 4, 508, 2), [(64, 4), (32, 4), (16, 8), (8, 16), (4, 32), (2, 64), (1, 380)], 1276),
        ((81, 1, 81, 3), [(81, 1), (27, 2), (9, 6), (3, 18), (1, 54)], 297),
        ((128, 1, 128, 4), [(128, 1), (32, 3), (8, 12), (2, 48), (1, 64)], 480),
    ],
)
def test_tables_of_the_reference(call: tuple[int, int, int, int], table: list[tuple[int, int]], work: int) -> None:
    """The four shapes give the trials, iterations and total work that were worked out by hand."""
    stages = successive_halving(*call)
    assert [(stage.trials, stage.groups[0].iters) for stage in stages] == table
    assert sum(stage.work for stage in stages) == work


@given(st.integers(1, 500), st.integers(1, 50), st.integers(0, 500), st.integers(2, 5))
def test_survivors_run_to_the_end(trials: int, low: int, more: int, eta: int) -> None:
    """Trials never grow, iterations are positive, each stage goes on where the last ended, and the last reaches R."""
    stages = successive_halving(trials, low, low + more, eta)
    groups = [stage.groups[0] for stage in stages]
    assert groups[0].trials == trials
    assert all(group.iters > 0 for group in groups)
    for before, after in itertools.pairwise(groups):
        assert after.trials == max(1, before.trials // eta)
        assert after.done == before.done + before.iters
    assert groups[-1].done + groups[-1].iters == low + more


@given(st.integers(1, 300), st.integers(2, 5))
def test_brackets_together_or_in_turn_are_the_same_work(iters: int, eta: int) -> None:
    """Hyperband has the same trial-iterations side by side as in sequence, in no more stages."""
    turn, together = hyperband(iters, eta), hyperband(iters, eta, parallel=True)
    assert sum(stage.work for stage in turn) == sum(stage.work for stage in together)
    assert len(together) <= len(turn)


@given(st.integers(1, 20_000), st.integers(2, 7))
def test_a_bracket_has_the_rungs_of_the_paper(iters: int, eta: int) -> None:
    """Bracket s has s + 1 stages, which end at R / eta**s, ..., R iterations; fractions are rounded down."""
    stages = [stage.groups[0] for stage in hyperband(iters, eta)]
    top = stages[-1].bracket
    for s in range(top + 1):
        groups = [group for group in stages if group.bracket == top - s]
        assert [group.done + group.iters for group in groups] == [iters // eta**rung for rung in range(s, -1, -1)]
        starts = -(-(top + 1) * eta**s // (s + 1))
        assert [group.trials for group in groups] == [starts // eta**rung for rung in range(s + 1)]


def test_hyperband_of_the_paper() -> None:
    """R = 81, eta = 3 starts 81, 34, 15, 8 and 5 trials, as in the table of Li et al."""
    starts = [stage.trials for stage in hyperband(81, 3) if stage.groups[0].done == 0]
    assert starts == [81, 34, 15, 8, 5]


def test_custom_stages_start_anew_where_they_grow() -> None:
    """Where trials grow a new bracket begins from nothing; else they go on."""
    groups = [stage.groups[0] for stage in custom([(8, 1), (2, 3), (4, 5)])]
    assert [(group.done, group.bracket) for group in groups] == [(0, 0), (1, 0), (0, 1)]
    assert random_search(5, 7)[0].work == 35
