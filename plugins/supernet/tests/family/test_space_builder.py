"""From lists to subnets."""

from __future__ import annotations

import pytest

from plugins.supernet.tests.helpers import (
    make_list_space,
    make_space,
)
from unfold_supernet.schema.space import SpaceSpec
from unfoldkit.api import UnfoldError

STAGES = ({"width": 16}, {"width": 32}, {"width": 64})


def test_independent_lists_are_multiplied() -> None:
    """Every combination is a subnet, once; compound lists are coupled entry by entry."""
    lists = {"expand": (0.5, 1.0), "depth": (1, 2), "kernel": (3, 5)}
    for coupling, count in (("independent", 8), ("compound", 2)):
        given_ = SpaceSpec.model_validate({"stages": STAGES, **lists, "coupling": coupling})
        assert len(make_space(given_, 1, (8, 8), 0, 10).subnets) == count


def test_patch_larger_than_the_smallest_input_is_refused() -> None:
    """A patch larger than the smallest input is refused with its key once the input size is known."""
    lists = {"form": "transformer", "stages": STAGES, "attention": {"patch": 5}, "resolution": (1.0, 0.5)}
    with pytest.raises(UnfoldError, match=r"space\.attention\.patch.*at most 4"):
        make_space(SpaceSpec.model_validate(lists), 1, (9,), 0, 2)


def test_stages_choose_their_own_entries() -> None:
    """With scope stage, every stage chooses its own entries (CompOFA), without duplicates."""
    lists = {"expand": (0.5, 1.0), "depth": (1, 2), "kernel": (3,)}
    compound = make_list_space(**lists, coupling="compound", scope="stage", resolution=(1.0, 0.5))
    every = make_list_space(**lists, scope="stage")
    assert len(compound.subnets) == len(set(compound.subnets)) == 2**2 * 2
    assert len(every.subnets) == len({one.name for one in every.subnets}) == 4**2
    assert compound.largest in compound.subnets
