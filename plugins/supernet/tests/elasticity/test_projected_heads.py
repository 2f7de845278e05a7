"""Heads of attention with linear layers of their own: BERT, ViT, Llama and hand-written layers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
pytest.importorskip("torch_pruning", reason="needs the extra torch: nox -s torch")
pytest.importorskip("onnxscript", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from unfold_supernet import elastic  # noqa: E402
from unfold_supernet.elasticity.attention_heads import find_head_groups, keep_heads  # noqa: E402
from unfold_supernet.elasticity.projected_heads import ProjectedHeads, list_head_layers  # noqa: E402
from unfold_supernet.elasticity.width_groups import find_width_groups  # noqa: E402

pytestmark = pytest.mark.torch
EMBED, HEADS, SIZE, TOKENS = 24, 4, 6, 9


def attend(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    shared = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(shared, 1) for part in (key, value))
    return functional.scaled_dot_product_attention(query, key, value, **options).transpose(1, 2)


class Counted(nn.Module):  # type: ignore[misc,unused-ignore]
    """Separate layers; the code counts heads by attributes. The layer behind them belongs to another module."""

    def __init__(self, keys: int) -> None:
        super().__init__()
        self.num_attention_heads, self.num_key_value_heads, self.head_size = HEADS, keys, SIZE
        self.all_head_size = HEADS * SIZE
        self.key, self.value = nn.Linear(EMBED, keys * SIZE), nn.Linear(EMBED, keys * SIZE)
        self.query = nn.Linear(EMBED, HEADS * SIZE)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        counts = (self.num_key_value_heads, self.num_key_value_heads, self.num_attention_heads)
        key, value, query = (
            layer(x).unflatten(-1, (count, self.head_size)).transpose(1, 2)
            for layer, count in zip((self.key, self.value, self.query), counts, strict=True)
        )
        return (attend(query, key, value).reshape(*x.shape[:2], self.all_head_size),)


class Sibling(nn.Module):  # type: ignore[misc,unused-ignore]
    """Attention as BERT nests it."""

    def __init__(self, keys: int) -> None:
        super().__init__()
        self.attention, self.output = Counted(keys), nn.Sequential(nn.Linear(HEADS * SIZE, EMBED), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.output(self.attention(x)[0])
        return result


class Rotated(nn.Module):  # type: ignore[misc,unused-ignore]
    """Attention as Llama writes it: only the size of a head is an attribute, and channels are rotated by position."""

    def __init__(self, keys: int) -> None:
        super().__init__()
        self.head_dim, self.num_key_value_groups = SIZE, HEADS // keys
        self.q_proj, self.k_proj = nn.Linear(EMBED, HEADS * SIZE), nn.Linear(EMBED, keys * SIZE)
        self.v_proj, self.o_proj = nn.Linear(EMBED, keys * SIZE), nn.Linear(HEADS * SIZE, EMBED, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[1])[:, None] * torch.linspace(0.1, 1, SIZE)
        query, key, value = (
            layer(x).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = (part * angles.cos() + part.flip(-1) * angles.sin() for part in (query, key))
        rows, keys, tokens, size = key.shape
        key, value = (
            part[:, :, None].expand(rows, keys, self.num_key_value_groups, tokens, size).reshape(rows, -1, tokens, size)
            for part in (key, value)
        )
        result: Tensor = self.o_proj(attend(query, key, value).flatten(2))
        return result


class Sized(nn.Module):  # type: ignore[misc,unused-ignore]
    """Attention that takes the size of its outputs from its inputs."""

    def __init__(self, *, is_causal: bool) -> None:
        super().__init__()
        self.n_head, self.is_causal = HEADS, is_causal
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(EMBED, EMBED) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        query, key, value = (
            layer(x).view(rows, tokens, self.n_head, width // self.n_head).transpose(1, 2)
            for layer in (self.wq, self.wk, self.wv)
        )
        result: Tensor = self.wo(attend(query, key, value, is_causal=self.is_causal).reshape(rows, tokens, width))
        return result


class Packed(nn.Module):  # type: ignore[misc,unused-ignore]
    """Attention with packed keys and values, or with all in one layer; a table holds a bias for each head."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.heads, inner = HEADS, HEADS * SIZE
        sizes = {1: [3 * inner], 2: [inner, 2 * inner]}[layers]
        self.to_q = nn.Linear(EMBED, sizes[0])
        self.to_kv = nn.Linear(EMBED, sizes[1]) if layers > 1 else nn.Identity()
        self.bias = nn.Parameter(torch.randn(HEADS, 1, TOKENS))
        self.to_out = nn.Sequential(nn.Linear(inner, EMBED), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        first = self.to_q(x)
        parts = first.chunk(3, -1) if isinstance(self.to_kv, nn.Identity) else (first, *self.to_kv(x).chunk(2, -1))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        result: Tensor = self.to_out(attend(query, key, value, attn_mask=self.bias).flatten(2))
        return result


class Normed(Rotated):
    """Attention with a norm over the channels of all heads, of which none can be left out."""

    def __init__(self, keys: int) -> None:
        super().__init__(keys)
        self.o_proj = nn.Sequential(nn.LayerNorm(HEADS * SIZE), self.o_proj)


class Encoder(nn.Module):  # type: ignore[misc,unused-ignore]
    """Tokens, two attention layers with residual sums, and a head."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, EMBED), nn.Linear(EMBED, 4)
        self.layers, self.norms = nn.ModuleList(layers), nn.ModuleList([nn.LayerNorm(EMBED) for _ in layers])

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + layer(norm(x))
        result: Tensor = self.head(x.mean(1))
        return result


LAYERS: dict[str, tuple[Any, int]] = {
    "separate": (lambda: Sibling(HEADS), 2),
    "grouped": (lambda: Sibling(2), 1),
    "rotated": (lambda: Rotated(HEADS), 2),
    "rotated, grouped": (lambda: Rotated(2), 1),
    "rotated, one key": (lambda: Rotated(1), 2),
    "sized by inputs": (lambda: Sized(is_causal=False), 2),
    "causal": (lambda: Sized(is_causal=True), 2),
    "packed keys": (lambda: Packed(2), 2),
    "packed": (lambda: Packed(1), 2),
}
"""How to build a layer, and how many independent heads remain at half the width."""


def make_encoder(build: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Encoder([build(), build()]).eval(), torch.randint(0, 50, (3, TOKENS))


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_narrow_members_have_fewer_heads_and_equal_their_onnx_models(name: str) -> None:
    """The full member returns what the module does; all layers lose heads, and the embedding its channels."""
    build, kept = LAYERS[name]
    module, example = make_encoder(build)
    family = elastic(module, example, widths=(0.5, 1))
    assert [len(group.keep(0.5)) for group in family.heads] == [kept, kept]
    assert family.members()[0].macs < 0.5 * family.members()[1].macs
    for member in family.members():
        with torch.no_grad():
            outputs = family.extract(member.name)(example).numpy()
            np.testing.assert_allclose(family(member.name, example).numpy(), outputs, atol=1e-6)
        session = onnxruntime.InferenceSession(family.export("onnx", member.name))
        np.testing.assert_allclose(session.run(None, {"x": example.numpy()})[0], outputs, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(family("1x1", example), module(example), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_heads_that_are_left_out_are_heads_that_the_next_layer_ignores(name: str) -> None:
    """Entire heads go: a copy without some returns what the module does with zero weights for their outputs."""
    module, example = make_encoder(LAYERS[name][0])
    groups, _ = find_head_groups(module, example)
    without, silent = copy.deepcopy(module), copy.deepcopy(module)
    keep_heads(without, groups, 0.5)
    for group in groups:
        assert isinstance(group, ProjectedHeads)
        written: Any = silent.get_submodule(group.written.path)
        size = written.in_features // len(group.order)
        for head in {*group.order} - {*group.keep(0.5)}:
            written.weight.data[:, head * size : (head + 1) * size] = 0
    with torch.no_grad():
        torch.testing.assert_close(without(example), silent(example), atol=1e-5, rtol=1e-4)


def test_heads_that_cannot_be_left_out_keep_all_their_channels() -> None:
    """Channels of different heads are not mixed: a layer with heads that are not followed is shared in full."""
    module, example = make_encoder(lambda: Normed(2))
    family = elastic(module, example, widths=(0.5, 1))
    assert family.heads == ()
    reasons = {part.path: part.reason for part in family.inelastic}
    for name in ("q_proj", "k_proj", "v_proj"):
        assert "heads of attention" in reasons[f"layers.0.{name}"]
        assert family.members()[0].skeleton.get_submodule(f"layers.0.{name}").out_features > EMBED // 3


def test_gradients_reach_the_heads_that_remain() -> None:
    """The narrow member trains the heads that it keeps, and no others."""
    module, example = make_encoder(lambda: Rotated(2))
    family = elastic(module, example, widths=(0.5, 1))
    family("0.5x1", example).sum().backward()
    gradient = family.weights["layers.0.k_proj.weight"].grad
    assert gradient is not None
    by_head = gradient.reshape(2, -1).abs().sum(1)
    assert [bool(each > 0) for each in by_head] == [head in family.heads[0].keep(0.5) for head in range(2)]


class BiasedAttention(nn.Module):  # type: ignore[misc,unused-ignore]
    """Attention as of EfficientFormer: queries and keys are smaller than values, and biases are kept once computed."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.val_dim = 4, 3, 6
        self.val_attn_dim = self.val_dim * self.num_heads
        self.qkv, self.proj = nn.Linear(8, 4 * (3 + 3 + 6)), nn.Linear(24, 8)
        self.biases = nn.Parameter(torch.randn(4, 5))
        self.register_buffer("places", torch.randint(0, 5, (7, 7)))
        self.bias_cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> BiasedAttention:
        self.bias_cache = {}
        super().train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        if "cpu" not in self.bias_cache:
            self.bias_cache["cpu"] = self.biases[:, self.places]
        rows, tokens, _ = x.shape
        packed = self.qkv(x).reshape(rows, tokens, self.num_heads, -1).permute(0, 2, 1, 3)
        query, key, value = packed.split([self.key_dim, self.key_dim, self.val_dim], dim=3)
        shares = (query @ key.transpose(-2, -1) + self.bias_cache["cpu"]).softmax(-1)
        result: Tensor = self.proj((shares @ value).transpose(1, 2).reshape(rows, tokens, self.val_attn_dim))
        return result


def test_heads_with_smaller_keys_and_kept_biases_are_left_out() -> None:
    """Packed heads of unequal parts lose heads; biases that the code keeps are computed again, and do not hinder it."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), BiasedAttention(), nn.ReLU(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    example = torch.randn(2, 7, 5)
    family = elastic(module.eval(), example, widths=(0.5, 1))
    (group,) = family.heads
    assert group.path == "1"
    assert len(group.keep(0.5)) == 2
    assert "3" in {part.root for part in family.groups}
    with torch.no_grad():
        torch.testing.assert_close(family("1x1", example), module(example))
    # gradients reach biases through what is kept, and a member is still copied
    family("0.5x1", example).sum().backward()
    assert family.weights["1.biases"].grad is not None
    session = onnxruntime.InferenceSession(family.export("onnx", "0.5x1"))
    with torch.no_grad():
        expected = family.extract("0.5x1")(example).numpy()
    np.testing.assert_allclose(session.run(None, {"x": example.numpy()})[0], expected, atol=1e-5)


class Whole(nn.Module):  # type: ignore[misc,unused-ignore]
    """A network whose attention is written in the network itself, behind an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim = HEADS, SIZE
        self.embed = nn.Linear(5, EMBED)
        self.query, self.key, self.value, self.out = (nn.Linear(EMBED, EMBED) for _ in range(4))
        self.wide, self.head = nn.Linear(EMBED, 2 * EMBED), nn.Linear(2 * EMBED, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        x = x + self.out(attend(query, key, value).flatten(2))
        result: Tensor = self.head(self.wide(x).relu().mean(1))
        return result


def test_attention_in_the_network_itself_loses_heads() -> None:
    """Attention of the root module is found behind an embedding; its feed-forward layer is narrowed too."""
    torch.manual_seed(0)
    module, example = Whole().eval(), torch.randn(2, TOKENS, 5)
    (group,), unfollowed = find_head_groups(module, example)
    assert isinstance(group, ProjectedHeads)
    assert sorted(group.all_reads) == ["key", "query", "value"]
    assert not unfollowed
    groups, _ = find_width_groups(module, example, heads=list_head_layers([group], unfollowed))
    assert {part.root for part in groups} == {"embed", "wide"}


class WrittenOut(nn.Module):  # type: ignore[misc,unused-ignore]
    """An encoder layer with attention in its own code, which takes a size from its inputs."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.packed, self.merge, self.heads = nn.Linear(8, 24), nn.Linear(8, 8), 2
        self.wide, self.narrow, self.norm = nn.Linear(8, 16), nn.Linear(16, 8), norm or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Compute tokens (n, tokens, 8) from such tokens."""
        n, tokens, size = x.shape
        parts = self.packed(x).chunk(3, -1)
        query, key, value = (part.reshape(n, tokens, self.heads, -1).transpose(1, 2) for part in parts)
        shares = (self.norm(query) @ key.transpose(-2, -1) / (size // self.heads) ** 0.5).softmax(-1)
        x = x + self.merge((shares @ value).transpose(1, 2).reshape(n, tokens, -1))
        result: Tensor = x + self.narrow(self.wide(x).relu())
        return result


@pytest.mark.parametrize("seed", [0, 3])
def test_heads_that_are_written_out_lose_the_same_channels(seed: int) -> None:
    """All heads remain, and return what they do if the other channels of queries, keys and values are 0."""
    torch.manual_seed(seed)
    module, example = nn.Sequential(nn.Linear(4, 8), WrittenOut(), nn.Linear(8, 3)).eval(), torch.randn(2, 5, 4)
    (group,), _ = find_head_groups(module, example)
    without, silent = copy.deepcopy(module), copy.deepcopy(module)
    kept = keep_heads(without, [group], 0.5)
    rows = kept["1.packed.weight"][0]
    assert rows is not None
    assert torch.bincount(rows // 4, minlength=6).tolist() == [2] * 6
    dropped = torch.tensor([row not in rows.tolist() for row in range(24)])
    layer: Any = silent[1]
    with torch.no_grad():
        layer.packed.weight[dropped], layer.packed.bias[dropped] = 0, 0
        torch.testing.assert_close(without(example), silent(example))
    family = elastic(module, example, widths=(0.5, 1))
    assert {group.root for group in family.groups} == {"1.narrow", "1.wide"}
    assert family.members()[0].macs < 0.4 * family.members()[1].macs


def test_heads_with_a_norm_of_their_channels_keep_them() -> None:
    """A norm of a query depends on all of its channels: none is left out."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), WrittenOut(nn.LayerNorm(4)), nn.Linear(8, 3)).eval()
    assert find_head_groups(module, torch.randn(2, 5, 4))[0] == ()


class Added(Sized):
    """Attention that is added to its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def test_attention_that_is_added_to_its_inputs_loses_heads() -> None:
    """A block that holds nothing but attention and a residual sum is elastic."""
    torch.manual_seed(0)
    module, example = nn.Sequential(Added(is_causal=False), nn.Linear(EMBED, 3)).eval(), torch.randn(2, 5, EMBED)
    groups, _ = find_head_groups(module, example)
    assert [len(group.keep(0.5)) for group in groups] == [2]
