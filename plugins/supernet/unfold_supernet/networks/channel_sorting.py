"""Channels by importance, before narrow nets are cut from a wide one: the first channels are what they keep (OFA)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from unfold_supernet.networks.layers import Weights
from unfold_supernet.networks.space import Space, convs


def order(space: Space, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return, by group of channels, the places of the most important first.

    The blocks of a stage add to each other, so that they are one group; the stem is another. Of a transformer, the
    units of each feed-forward layer are one. A channel's importance is the L1 norm of the weights that read it.
    """
    found: dict[str, Tensor] = {}
    for group, name in _readers(space):
        weight = weights[name].detach().abs()
        read = weight.sum([axis for axis in range(weight.ndim) if axis != 1])
        found[group] = found[group] + read if group in found else read
    return {group: torch.argsort(total, descending=True, stable=True) for group, total in found.items()}


def sort(space: Space, weights: Weights, places: Mapping[str, Tensor]) -> Weights:
    """Return the tensors with the channels of each group in order; the largest net answers as before.

    ``weights`` may be the momentum of the same tensors, which moves with them.
    """
    result = dict(weights)
    for group, name in _written(space):
        if name in result:
            result[name] = result[name][places[group]]
    for group, name in _readers(space):
        if name in result:
            result[name] = result[name].index_select(1, places[group])
    return {name: tensor.contiguous() for name, tensor in result.items()}


def _group(name: str) -> str:
    return name.partition(".")[0]


def _written(space: Space) -> Iterator[tuple[str, str]]:
    """Yield each group of channels with the name of a tensor that has a row for each of them."""
    found = convs(space, space.largest)
    if space.attention:
        units = [conv.name.rpartition(".")[0] for conv in found if conv.name.endswith(".up")]
        yield from ((block, f"{block}.up.{part}") for block in units for part in ("weight", "bias"))
        return
    for conv in found:
        yield from ((_group(conv.name), f"{conv.name}.{part}") for part in ("weight", "gamma", "beta"))


def _readers(space: Space) -> Iterator[tuple[str, str]]:
    """Yield each group of channels with the name of a tensor that reads it along its second axis."""
    found = convs(space, space.largest)
    if space.attention:
        down = [conv.name for conv in found if conv.name.endswith(".down")]
        yield from ((name.rpartition(".")[0], f"{name}.weight") for name in down)
        return
    for before, conv in itertools.pairwise(found):
        yield _group(before.name), f"{conv.name}.weight"
    yield _group(found[-1].name), "head.weight"
