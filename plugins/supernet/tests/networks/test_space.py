"""Costs of subnets."""

from __future__ import annotations

import pytest

from plugins.supernet.tests.helpers import make_space
from unfold_supernet.networks.space import count_macs, count_parameters
from unfold_supernet.schema.space import SpaceSpec

STAGES = ({"width": 16}, {"width": 32}, {"width": 64})
ECG = {"form": "conv1d", "stages": STAGES, "stem": {"kernel": 7, "stride": 2}, "kernel": (5,)}


def test_macs_and_parameters_match_the_study() -> None:
    """The heart-beat subnets have the operations and parameters counted in the study of the recipe."""
    given_ = SpaceSpec.model_validate({**ECG, "expand": (0.25, 0.5, 0.5, 0.75, 0.75, 1.0), "depth": (1, 1, 2, 2, 3, 3)})
    space = make_space(given_, 1, (128,), 2, 4)
    counted = {one.name: count_macs(space, one) for one in space.subnets}
    thousands = {name: round(count / 1000) for name, count in counted.items()}
    assert thousands == {
        "0.25x1k5": 22, "0.5x1k5": 86, "0.5x2k5": 229, "0.75x2k5": 512, "0.75x3k5": 835, "1x3k5": 1482,
    }  # fmt: skip
    assert count_parameters(space, space.largest) == pytest.approx(68_000, rel=0.02)
