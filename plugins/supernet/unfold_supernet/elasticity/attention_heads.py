"""Heads of attention: a member keeps the most important heads of every attention layer; the embedding stays whole.

Two layouts are replaced: ``torch.nn.MultiheadAttention``, and the packed ``qkv`` and ``proj`` layers of timm's vision
transformers, if the replacement with all heads returns what the layer returns. Others keep their code.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unfold_supernet.elasticity.inputs import Inputs, copy_module, run_module
from unfold_supernet.elasticity.layer_replacement import replace_layer
from unfold_supernet.elasticity.projected_heads import (
    HeadGroup,
    ProjectedHeads,
    ReplacedHeads,
    find_projected_heads,
    keep_projected_heads,
)
from unfold_supernet.elasticity.width_groups import Indices

TOLERANCE = 1e-4
"""Largest difference at which a replacement counts as equal, relative to the largest output."""


class PackedAttention(nn.Module):  # type: ignore[misc,unused-ignore]
    """Attention of timm's vision transformers with any number of heads."""

    def __init__(self, layer: nn.Module, heads: Sequence[int]) -> None:
        super().__init__()
        self.num_heads, self.head_dim = len(heads), int(layer.head_dim)
        width, embed = self.num_heads * self.head_dim, layer.qkv.in_features
        self.qkv = nn.Linear(embed, 3 * width, bias=layer.qkv.bias is not None)
        self.proj = nn.Linear(width, layer.proj.out_features, bias=layer.proj.bias is not None)
        self.q_norm, self.k_norm = (copy.deepcopy(getattr(layer, name, nn.Identity())) for name in ("q_norm", "k_norm"))
        self.norm = copy.deepcopy(getattr(layer, "norm", nn.Identity()))
        self.proj_drop = copy.deepcopy(getattr(layer, "proj_drop", nn.Identity()))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
        """Compute attention over tokens (n, tokens, embedding)."""
        rows, tokens, _embed = x.shape
        query, key, value = self.qkv(x).reshape(rows, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(self.q_norm(query), self.k_norm(key), value, attn_mask=attn_mask)
        merged = self.norm(out.transpose(1, 2).reshape(rows, tokens, self.num_heads * self.head_dim))
        result: Tensor = self.proj_drop(self.proj(merged))
        return result


class SelectedHeads(nn.Module):  # type: ignore[misc,unused-ignore]
    """``torch.nn.MultiheadAttention`` with any number of heads; its parameters have the same names."""

    def __init__(self, layer: nn.MultiheadAttention, heads: Sequence[int]) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.embed_dim = len(heads), layer.head_dim, layer.embed_dim
        self.batch_first = layer.batch_first
        # torch's fused encoder layers read this, and leave other layers alone
        self._qkv_same_embed_dim = False
        width = self.num_heads * self.head_dim
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, layer.embed_dim))
        has_bias = layer.in_proj_bias is not None
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width)) if has_bias else None
        self.out_proj = nn.Linear(width, layer.embed_dim, bias=has_bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Compute attention; the weights are not returned."""
        del need_weights, average_attn_weights, is_causal
        inputs = (query, key, value) if self.batch_first else tuple(x.transpose(0, 1) for x in (query, key, value))
        width = self.num_heads * self.head_dim
        parts = []
        for index, x in enumerate(inputs):
            # slices: the exporter cannot fold a split into chunks
            rows = slice(index * width, (index + 1) * width)
            bias = None if self.in_proj_bias is None else self.in_proj_bias[rows]
            split = functional.linear(x, self.in_proj_weight[rows], bias).unflatten(-1, (self.num_heads, self.head_dim))
            parts.append(split.transpose(1, 2))
        queries, keys, values = parts
        mask = _merge_masks(attn_mask, key_padding_mask, queries)
        out = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        merged: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return (merged if self.batch_first else merged.transpose(0, 1)), None


def find_head_groups(module: nn.Module, example: Inputs) -> tuple[tuple[HeadGroup, ...], frozenset[str]]:
    """Find the attention layers that may lose heads; each is tried on the example.

    Args:
        module: The user's module, in inference mode.
        example: Inputs (n, *size).

    Returns:
        The layers, and the paths of linear layers that seem to compute heads which cannot be left out.
    """
    with torch.no_grad():
        expected = run_module(module, example)
    groups = []
    for path, layer in module.named_modules():
        count = _count_heads(layer)
        if count < 2:
            continue
        scores = _score_heads(layer, count)
        group = ReplacedHeads(path, tuple(torch.argsort(scores, descending=True, stable=True).tolist()))
        if _is_equal(module, example, group, expected):
            groups.append(group)
    known = [group.path for group in groups]
    known += [path for path, layer in module.named_modules() if isinstance(layer, nn.MultiheadAttention)]
    projected, unfollowed = find_projected_heads(module, example, known)
    return (*groups, *projected), unfollowed


def keep_heads(module: nn.Module, groups: Sequence[HeadGroup], width: float) -> dict[str, Indices]:
    """Replace attention layers by ones with fewer heads, in place; their values are undefined.

    Args:
        module: A copy of the user's module.
        groups: The layers.
        width: Fraction of the heads that remain.

    Returns:
        The kept indices of each parameter that became smaller.
    """
    indices: dict[str, Indices] = {}
    for group in groups:
        heads = group.keep(width)
        if len(heads) == len(group.order):
            continue
        if isinstance(group, ProjectedHeads):
            indices |= keep_projected_heads(module, group, heads)
        else:
            indices |= _replace_layer(module, group, heads)
    return indices


def _replace_layer(module: nn.Module, group: ReplacedHeads, heads: Sequence[int]) -> dict[str, Indices]:
    layer = module.get_submodule(group.path)
    is_torch = isinstance(layer, nn.MultiheadAttention)
    replacement = SelectedHeads(layer, heads) if is_torch else PackedAttention(layer, heads)
    replace_layer(module, layer, replacement.train(layer.training))
    size = int(layer.head_dim)
    channels = (torch.tensor(heads)[:, None] * size + torch.arange(size)).flatten()
    packed = torch.cat([channels + part * len(group.order) * size for part in range(3)])
    weight, bias, out = (
        ("in_proj_weight", "in_proj_bias", "out_proj.weight") if is_torch else ("qkv.weight", "qkv.bias", "proj.weight")
    )
    kept: Mapping[str, Indices] = {weight: (packed, None), bias: (packed,), out: (None, channels)}
    present = {key for key, _ in replacement.named_parameters()}
    return {f"{group.path}.{key}": index for key, index in kept.items() if key in present}


def _count_heads(layer: nn.Module) -> int:
    """Count the heads of a layer of a known layout; 0 for any other."""
    if isinstance(layer, nn.MultiheadAttention):
        is_plain = layer._qkv_same_embed_dim and layer.bias_k is None and not layer.add_zero_attn  # noqa: SLF001
        return int(layer.num_heads) if is_plain else 0
    qkv, proj = getattr(layer, "qkv", None), getattr(layer, "proj", None)
    heads, size = getattr(layer, "num_heads", 0), getattr(layer, "head_dim", 0)
    if not isinstance(qkv, nn.Linear) or not isinstance(proj, nn.Linear):
        return 0
    return int(heads) if qkv.out_features == 3 * heads * size and proj.in_features == heads * size else 0


def _score_heads(layer: Any, count: int) -> Tensor:
    """Score heads by the squares of the weights that they read and write with."""
    is_torch = isinstance(layer, nn.MultiheadAttention)
    packed = layer.in_proj_weight if is_torch else layer.qkv.weight
    out = layer.out_proj.weight if is_torch else layer.proj.weight
    read = packed.detach().reshape(3, count, -1).square().sum((0, 2))
    written = out.detach().reshape(len(out), count, -1).square().sum((0, 2))
    return read + written


def _is_equal(module: nn.Module, example: Inputs, group: ReplacedHeads, expected: Tensor) -> bool:
    """Check that the replacement with all heads changes nothing."""
    changed = copy_module(module)
    try:
        state = {key: value.clone() for key, value in changed.get_submodule(group.path).state_dict().items()}
        _replace_layer(changed, group, range(len(group.order)))
        changed.get_submodule(group.path).load_state_dict(state)
        with torch.no_grad():
            outputs = run_module(changed, example)
    # a layer of another kind may raise anything: its heads stay
    except Exception:  # noqa: BLE001
        return False
    return bool((outputs - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp(min=1e-6))


def _merge_masks(attn_mask: Tensor | None, padding: Tensor | None, query: Tensor) -> Tensor | None:
    """Merge torch's masks into one that is added to the scores; a boolean mask marks what is left out."""
    merged = None
    if attn_mask is not None:
        merged = _to_additive(attn_mask, query)
        if merged.ndim == 3:
            merged = merged.unflatten(0, (len(query), -1))[:, :1]
    if padding is not None:
        column = _to_additive(padding, query)[:, None, None, :]
        merged = column if merged is None else merged + column
    return merged


def _to_additive(mask: Tensor, query: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(query.dtype)
    return torch.zeros(mask.shape, dtype=query.dtype).masked_fill(mask, float("-inf"))
