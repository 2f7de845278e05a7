"""The subnets of a trained search space as layer tables for the accelerator model."""

from __future__ import annotations

from collections.abc import Sequence

from unfold_supernet.accelerator.layers import Family, Layer, tabulate_subnet
from unfold_supernet.networks.space import Conv, Space, count_attention_macs, count_macs, list_convolutions


def build_trained_family(name: str, space: Space, accuracies: Sequence[float]) -> Family:
    """Build the accelerator's view of a trained supernet, smallest subnet first.

    A layer of a table loads weights, so attention's products of activations are left out; ``about`` says so.

    Args:
        name: Name of the family.
        space: The trained space.
        accuracies: In percent, by subnet of ``space``.
    """
    layer_names = (*(conv.name for conv in list_convolutions(space, space.largest)), "head")
    subnets = []
    for subnet, accuracy in zip(space.subnets, accuracies, strict=True):
        convs = list_convolutions(space, subnet)
        layers = {conv.name: _convert_layer(conv) for conv in convs}
        width = convs[-1].out + space.extra
        layers["head"] = Layer(space.classes, width, (1, 1), (1, 1), width)
        subnets.append(tabulate_subnet(subnet.name, layer_names, layers, accuracy))
    subnets.sort(key=lambda subnet: int(subnet.weights.sum()))
    about = "the trained subnets"
    if space.attention:
        omitted = max(count_attention_macs(space, subnet) / count_macs(space, subnet) for subnet in space.subnets)
        about += f"; attention's products of activations, up to {omitted:.0%} of the operations, are not included"
    return Family(name, layer_names, tuple(subnets), about)


def _convert_layer(conv: Conv) -> Layer:
    height, width = (*conv.size, 1)[:2]
    out_height, out_width = (*conv.out_size, 1)[:2]
    window = (conv.kernel, conv.kernel if len(conv.size) == 2 else 1)
    return Layer(conv.out, conv.into, window, (out_height, out_width), conv.into * height * width)
