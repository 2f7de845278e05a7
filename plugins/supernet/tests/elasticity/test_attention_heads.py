"""Heads of attention as a dimension of a family."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
pytest.importorskip("torch_pruning", reason="needs the extra torch: nox -s torch")
pytest.importorskip("onnxscript", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")

from torch import Tensor, nn  # noqa: E402

from unfold_supernet import elastic  # noqa: E402
from unfold_supernet.elasticity.attention_heads import SelectedHeads, find_head_groups  # noqa: E402

pytestmark = pytest.mark.torch
EMBED, HEADS, TOKENS = 24, 3, 9


class Encoder(nn.Module):  # type: ignore[misc,unused-ignore]
    """A BERT-style encoder over token numbers."""

    def __init__(self, *, batch_first: bool, norm_first: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, EMBED), nn.Linear(EMBED, 4)
        layer = nn.TransformerEncoderLayer(EMBED, HEADS, 48, batch_first=batch_first, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.batch_axis = 0 if batch_first else 1

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) if self.batch_axis == 0 else self.embed(tokens).transpose(0, 1)
        result: Tensor = self.head(self.encoder(x).mean(1 - self.batch_axis))
        return result


class PackedLayer(nn.Module):  # type: ignore[misc,unused-ignore]
    """Attention as timm writes it; ``scale`` other than 1 makes it attention of another kind."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.factor = HEADS, EMBED // HEADS, scale
        self.qkv, self.proj = nn.Linear(EMBED, 3 * EMBED), nn.Linear(EMBED, EMBED)
        self.q_norm, self.k_norm = nn.LayerNorm(self.head_dim), nn.LayerNorm(self.head_dim)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        packed = self.qkv(x).reshape(rows, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = packed.unbind(0)
        scores = self.q_norm(query) @ self.k_norm(key).transpose(-2, -1) * self.head_dim**-0.5 * self.factor
        result: Tensor = self.proj((scores.softmax(-1) @ value).transpose(1, 2).reshape(rows, tokens, width))
        return result


class VisionBlock(nn.Module):  # type: ignore[misc,unused-ignore]
    """Attention and a feed-forward layer with residual sums."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.first, self.attn, self.second = nn.LayerNorm(EMBED), PackedLayer(scale), nn.LayerNorm(EMBED)
        self.mlp = nn.Sequential(nn.Linear(EMBED, 48), nn.GELU(), nn.Linear(48, EMBED))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.first(x))
        result: Tensor = x + self.mlp(self.second(x))
        return result


class VisionTransformer(nn.Module):  # type: ignore[misc,unused-ignore]
    """Patches, blocks and a head."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, EMBED, 4, 4), nn.Linear(EMBED, 4)
        self.blocks = nn.Sequential(VisionBlock(scale), VisionBlock(scale))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))
        return result


def make_case(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    if name == "vision":
        return VisionTransformer().eval(), torch.randn(2, 3, 12, 12)
    batch_first, norm_first = "time" not in name, "pre" in name
    return Encoder(batch_first=batch_first, norm_first=norm_first).eval(), torch.randint(0, 50, (2, TOKENS))


@pytest.mark.parametrize("name", ["vision", "post-norm", "pre-norm", "post-norm time-first"])
def test_narrow_members_have_fewer_heads_and_feed_forward_units(name: str) -> None:
    """The full member returns what the module does; a narrow one has a head less and equals its ONNX model."""
    module, example = make_case(name)
    family = elastic(module, example, widths=(0.67, 1))
    small, large = family.members()
    assert len(family.heads) == 2
    assert all("attn" not in part.path or "mlp" in part.path for part in family.inelastic)
    with torch.no_grad():
        assert torch.equal(family(large.name, example), module(example))
        outputs = family.extract(small.name)(example).numpy()
    shapes = {key: tuple(tensor.shape) for key, tensor in small.skeleton.named_parameters()}
    width = EMBED // HEADS * 2
    packed = [shape for key, shape in shapes.items() if key.endswith(("in_proj_weight", "qkv.weight"))]
    hidden = [shape for key, shape in shapes.items() if key.endswith(("linear1.weight", "mlp.0.weight"))]
    assert packed == [(3 * width, EMBED)] * 2
    assert hidden == [(32, EMBED)] * 2
    session = onnxruntime.InferenceSession(family.export("onnx", small.name))
    np.testing.assert_allclose(session.run(None, {"x": example.numpy()})[0], outputs, atol=1e-5)


def test_least_important_heads_are_left_out() -> None:
    """A head with zero weights goes first, and leaving it out changes nothing."""
    module, example = make_case("vision")
    for block in module.blocks:
        size = EMBED // HEADS
        with torch.no_grad():
            block.attn.proj.weight[:, size : 2 * size] = 0
            block.attn.qkv.weight.view(3, HEADS, size, EMBED)[:, 1] = 0
    family = elastic(module, example, widths=(0.67, 1))
    assert [group.keep(0.67) for group in family.heads] == [(0, 2)] * 2
    heads_only = {key: index for key, index in family.members()[0].indices.items() if "attn" in key}
    assert heads_only["blocks.0.attn.qkv.weight"][0].tolist()[:8] == list(range(8))


def test_attention_of_another_kind_keeps_its_heads() -> None:
    """A layer with a replacement that returns something else is shared in full."""
    torch.manual_seed(0)
    module, example = VisionTransformer(scale=3.0).eval(), torch.randn(2, 3, 12, 12)
    assert find_head_groups(module, example)[0] == ()


@pytest.mark.parametrize("mask", ["causal", "boolean", "padding", "both"])
def test_masks_mean_what_they_mean_in_torch(mask: str) -> None:
    """With all heads, masked attention equals torch's."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(EMBED, HEADS, batch_first=True).eval()
    chosen = SelectedHeads(layer, range(HEADS)).eval()
    chosen.load_state_dict(layer.state_dict())
    x = torch.randn(2, TOKENS, EMBED)
    boolean = torch.triu(torch.ones(TOKENS, TOKENS, dtype=torch.bool), 1)
    padding = torch.zeros(2, TOKENS, dtype=torch.bool)
    padding[1, 6:] = True
    options: dict[str, Any] = {
        "causal": {"attn_mask": torch.zeros(TOKENS, TOKENS).masked_fill(boolean, float("-inf"))},
        "boolean": {"attn_mask": boolean},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": boolean, "key_padding_mask": padding},
    }[mask]
    with torch.no_grad():
        expected = layer(x, x, x, need_weights=False, **options)[0]
        torch.testing.assert_close(chosen(x, x, x, **options)[0], expected, atol=1e-5, rtol=1e-4)


def test_gradients_reach_every_head() -> None:
    """The full member trains all heads, the narrow one the heads that it keeps."""
    module, example = make_case("vision")
    family = elastic(module, example, widths=(0.34, 1))
    family(family.members()[0].name, example).sum().backward()
    gradient = family.weights["blocks.0.attn.qkv.weight"].grad
    assert gradient is not None
    by_head = gradient.reshape(3, HEADS, -1).abs().sum((0, 2))
    assert int((by_head > 0).sum()) == 1
