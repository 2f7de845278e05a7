"""Channel sorting before narrow subnets join training: subnets keep the first channels, so the best go first (OFA)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from unfold_supernet.networks.layers import Weights
from unfold_supernet.networks.space import Space, list_convolutions


def rank_channels(space: Space, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rank the channels of each group by the L1 norm of the weights that read them.

    Blocks of a stage add to each other and form one group; the stem is another. In a transformer, the units of each
    feed-forward layer form a group.

    Returns:
        Channel indices by group, most important first.
    """
    totals: dict[str, Tensor] = {}
    for group, name in _iterate_readers(space):
        weight = weights[name].detach().abs()
        norm = weight.sum([axis for axis in range(weight.ndim) if axis != 1])
        totals[group] = totals[group] + norm if group in totals else norm
    return {group: torch.argsort(total, descending=True, stable=True) for group, total in totals.items()}


def sort_channels(space: Space, weights: Weights, order: Mapping[str, Tensor]) -> Weights:
    """Reorder the channels of every group; the largest subnet computes the same function as before.

    Args:
        space: The search space.
        weights: The shared weights, or the momentum of the same tensors.
        order: Channel indices by group, from :func:`rank_channels`.

    Returns:
        The tensors in the new order.
    """
    result = dict(weights)
    for group, name in _iterate_writers(space):
        if name in result:
            result[name] = result[name][order[group]]
    for group, name in _iterate_readers(space):
        if name in result:
            result[name] = result[name].index_select(1, order[group])
    return {name: tensor.contiguous() for name, tensor in result.items()}


def _group_of(name: str) -> str:
    return name.partition(".")[0]


def _iterate_writers(space: Space) -> Iterator[tuple[str, str]]:
    """Yield each group with the name of a tensor that has one row for each of its channels."""
    convs = list_convolutions(space, space.largest)
    if space.attention:
        units = [conv.name.rpartition(".")[0] for conv in convs if conv.name.endswith(".up")]
        yield from ((block, f"{block}.up.{suffix}") for block in units for suffix in ("weight", "bias"))
        return
    for conv in convs:
        yield from ((_group_of(conv.name), f"{conv.name}.{suffix}") for suffix in ("weight", "gamma", "beta"))


def _iterate_readers(space: Space) -> Iterator[tuple[str, str]]:
    """Yield each group with the name of a tensor that reads its channels along the second axis."""
    convs = list_convolutions(space, space.largest)
    if space.attention:
        down = [conv.name for conv in convs if conv.name.endswith(".down")]
        yield from ((name.rpartition(".")[0], f"{name}.weight") for name in down)
        return
    for writer, reader in itertools.pairwise(convs):
        yield _group_of(writer.name), f"{reader.name}.weight"
    yield _group_of(convs[-1].name), "head.weight"
