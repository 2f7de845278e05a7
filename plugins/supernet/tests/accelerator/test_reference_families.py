"""The published families."""

from __future__ import annotations

import math

import pytest

from unfold_supernet.accelerator import reference_families
from unfold_supernet.accelerator.layers import count_weights, tabulate_subnet


@pytest.mark.parametrize("name", sorted(reference_families.get_reference_spaces()))
def test_families_grow_and_contain_the_smallest(name: str) -> None:
    """Seven subnets grow in size, operations and accuracy; each contains the smallest, and every map fits 1 MiB."""
    family = reference_families.build_reference_family(name)
    bytes_ = [int(net.weights.sum()) for net in family.subnets]
    assert bytes_ == sorted(bytes_)
    assert [net.accuracy for net in family.subnets] == sorted(net.accuracy for net in family.subnets)
    assert int(count_weights(family.core).sum()) == bytes_[0]
    assert max(int(net.outputs.max()) for net in family.subnets) <= 2**20


def test_spaces_have_the_sizes_of_ofa() -> None:
    """OFA's smallest ResNet-50 has 6.52 MB and its largest 48.0 MB; a compound space has 243 subnets."""
    space = reference_families.get_reference_spaces()["ofa-resnet50"]
    assert math.prod(space.levels) == 243
    extremes = [tuple(0 for _ in space.levels), tuple(count - 1 for count in space.levels)]
    tables = [space.build(choice) for choice in extremes]
    nets = [tabulate_subnet("", tuple(layers), layers, 0.0) for layers in tables]
    smallest, largest = (int(net.weights.sum()) / 1e6 for net in nets)
    assert smallest == pytest.approx(6.52, abs=0.01)
    assert largest == pytest.approx(48.0, abs=0.05)
