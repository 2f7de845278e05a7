"""Channel sorting."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")

from plugins.supernet.tests.helpers import (  # noqa: E402
    make_list_space,
)
from unfold_supernet.networks import channel_sorting, supernet  # noqa: E402

pytestmark = pytest.mark.torch


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([(9, 7), (11,)]))
def test_sorting_preserves_the_largest_subnet(seed: int, size: tuple[int, ...]) -> None:
    """After sorting, the largest subnet gives the same logits, and importances descend in each group."""
    whole = replace(make_list_space(), size=size)
    weights = supernet.init_weights(whole, seed)
    x, extra = torch.randn((6, 3, *size)), torch.randn((6, 2))
    places = channel_sorting.rank_channels(whole, weights)
    after = channel_sorting.sort_channels(whole, weights, places)
    one, other = (supernet.train_forward(whole, each, whole.largest, x, extra) for each in (weights, after))
    assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)
    again = channel_sorting.rank_channels(whole, after)
    assert all(torch.equal(found, torch.arange(len(found))) for found in again.values())
