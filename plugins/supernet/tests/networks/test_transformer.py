"""Transformer subnets: costs, positions, sorting, attention."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")

from plugins.supernet.tests.torch_helpers import draw_inputs, make_random_transformer, make_token_space, token_spaces  # noqa: E402
from unfold_supernet.networks import channel_sorting, supernet, transformer  # noqa: E402
from unfold_supernet.networks.space import Space, compute_token_grid, count_macs  # noqa: E402

pytestmark = pytest.mark.torch


def test_macs_match_a_hand_count() -> None:
    """Operations are those of embedding, projections, attention products, feed-forward layers and head."""
    of = make_token_space((8, 8), 2, 2, 4, (16,), extra=0)
    least, most = min(count_macs(of, one) for one in of.subnets), count_macs(of, of.largest)
    assert most == 16 * 8 * 8 + 2 * (16 * (4 * 64 + 2 * 8 * 16) + 2 * 16**2 * 8) + 8 * 4
    assert least == 4 * 8 * 8 + 4 * (4 * 64 + 2 * 8 * 4) + 2 * 4**2 * 8 + 8 * 4


def test_lower_resolution_takes_every_second_position() -> None:
    """At half the input there are half the tokens along each axis, at every second position."""
    of = make_token_space((9, 8), 2, 1, 4, (8,))
    found = make_random_transformer(of, 1)
    half = next(one for one in of.subnets if one.resolution < 1)
    assert compute_token_grid(of, half) == (2, 2)
    positions = found.weights["positions"]
    assert torch.equal(found.bound[half.name].views[0][0], positions[:, 0:4:2, 0:4:2])


@settings(max_examples=8, deadline=None)
@given(token_spaces(), st.integers(0, 1000))
def test_sorting_units_preserves_the_largest_subnet(of: Space, seed: int) -> None:
    """After sorting feed-forward units, the largest subnet gives the same logits, and importances descend."""
    weights = dict(make_random_transformer(of, seed).weights)
    after = channel_sorting.sort_channels(of, weights, channel_sorting.rank_channels(of, weights))
    x, extra = draw_inputs(of)
    one, other = (supernet.train_forward(of, each, of.largest, x, extra) for each in (weights, after))
    assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)
    again = channel_sorting.rank_channels(of, after)
    assert len(again) == sum(of.largest.depth)
    assert all(torch.equal(found, torch.arange(len(found))) for found in again.values())


def test_every_weight_has_a_gradient() -> None:
    """The loss of the largest subnet has a gradient for every tensor."""
    of = make_token_space((9, 8), 2, 2, 4, (8,))
    weights = {name: one.clone().requires_grad_() for name, one in supernet.init_weights(of, 0).items()}
    x, extra = draw_inputs(of)
    supernet.train_forward(of, weights, of.largest, x, extra).logsumexp(1).sum().backward()
    assert [name for name, one in weights.items() if one.grad is None] == []


def test_attention_equals_the_formula() -> None:
    """Attention is softmax(Q K^T / sqrt(d)) V, head by head."""
    x = torch.randn((3, 6, 24), generator=torch.Generator().manual_seed(0))
    query, key, value = (part.reshape(3, 6, 2, 4).transpose(1, 2) for part in x.split(8, 2))
    shares = torch.softmax(query @ key.transpose(2, 3) / 2.0, -1)
    wanted = (shares @ value).transpose(1, 2).reshape(3, 6, 8)
    assert torch.allclose(transformer.attend(x, 2), wanted, atol=1e-5)
