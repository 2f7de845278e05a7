"""Trained subnets as layer tables."""

from __future__ import annotations

from plugins.supernet.tests.helpers import make_space
from unfold_supernet.accelerator.layer_table import build_trained_family
from unfold_supernet.networks.space import count_attention_macs, count_macs, list_convolutions
from unfold_supernet.schema.space import SpaceSpec

STAGES = ({"width": 16}, {"width": 32}, {"width": 64})
ECG = {"form": "conv1d", "stages": STAGES, "stem": {"kernel": 7, "stride": 2}, "kernel": (5,)}


def test_layer_tables_have_the_macs_of_the_space() -> None:
    """As layer tables, the subnets have the operations that the space counts."""
    given_ = SpaceSpec.model_validate({**ECG, "expand": (0.5, 1.0), "depth": (1, 2)})
    space = make_space(given_, 1, (128,), 2, 4)
    family = build_trained_family("f", space, [90.0, 95.0])
    assert [int(net.macs.sum()) for net in family.subnets] == [count_macs(space, one) for one in space.subnets]
    assert len(family.layers) == len(list_convolutions(space, space.largest)) + 1


def test_layer_tables_omit_only_attention_products() -> None:
    """As layer tables, transformers have all operations except attention's two products."""
    lists = {"attention": {"patch": 2, "width": 12, "heads": 3}, "expand": (0.25, 1.0), "depth": (1, 3)}
    given_ = SpaceSpec.model_validate({"form": "transformer", "stages": STAGES[:1], "resolution": (0.5, 1.0), **lists})
    space = make_space(given_, 3, (9, 8), 2, 4)
    family = build_trained_family("f", space, [90.0, 95.0])
    by_name = {net.name: int(net.macs.sum()) for net in family.subnets}
    assert by_name == {one.name: count_macs(space, one) - count_attention_macs(space, one) for one in space.subnets}
    assert count_attention_macs(space, space.subnets[0]) == 2 * 4**2 * 12
    share = max(count_attention_macs(space, one) / count_macs(space, one) for one in space.subnets)
    assert f"up to {100 * share:.0f} %" in family.about
