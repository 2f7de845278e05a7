"""Training phases and random subnets."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.supernet.tests.helpers import (
    make_form_space,
    make_list_space,
    make_options,
)
from unfold_supernet.networks.space import Subnet
from unfold_supernet.training import (
    curriculum,
)

LARGEST, SMALLEST = (Subnet((e, e), (d, d), (k, k), r) for e, d, k, r in ((1.0, 2, 5, 1.0), (0.25, 1, 3, 0.5)))


def test_sandwich_sample_depends_on_its_arguments_only() -> None:
    """A step's subnets depend on seed, epoch, batch and index only; largest and smallest are always included."""
    subnets = make_form_space("conv1d").subnets
    given = make_options(rule="sandwich", samples=2, delay=1)
    late, same = (
        curriculum.find_phase(curriculum.build_phases(found, given), 2) for found in (subnets, list(reversed(subnets)))
    )
    first = [curriculum.draw_subnets(late, 3, 2, batch) for batch in range(50)]
    again = [curriculum.draw_subnets(same, 3, 2, batch) for batch in range(50)]
    assert first == again
    assert all(one[0] == LARGEST and one[-1] == SMALLEST and len(one) == 4 for one in first)
    assert len({one[1] for one in first}) > 5
    assert curriculum.draw_subnets(curriculum.build_phases(subnets, given)[0], 3, 0, 0) == [LARGEST]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.booleans())
def test_shrinking_enables_one_dimension_after_the_other(epochs: int, sort: bool) -> None:
    """Phases are contiguous, their lists grow to all subnets, and channels are sorted once."""
    subnets = make_list_space().subnets
    found = curriculum.build_phases(subnets, make_options(epochs=epochs, rule="progressive", sort=sort))
    assert [one.start_epoch for one in found] == [0, *(one.end_epoch for one in found[:-1])]
    assert len(found[0].subnets) == 1
    for before, after in pairwise(found):
        assert set(before.subnets) <= set(after.subnets)
    assert set(found[-1].subnets) == set(subnets)
    assert sum(one.sorts_channels for one in found) == sort
    assert not any(min(one.expand) < 1 for phase in found for one in phase.subnets if phase.samples in (1, 2))


def test_shrinking_trains_every_resolution() -> None:
    """If only the resolution is elastic, all subnets join after the largest one."""
    subnets = make_list_space(expand=(1.0,), depth=(2,), kernel=(3,), resolution=(0.5, 1.0)).subnets
    found = curriculum.build_phases(subnets, make_options(epochs=18, rule="progressive"))
    assert [(one.start_epoch, one.epochs, len(one.subnets), one.has_teacher) for one in found] == [
        (0, 18, 1, False),
        (18, 13, 2, True),
    ]
