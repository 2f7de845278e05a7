"""Subnets as modules of their own: built from standard layers, with copies of the shared tensors."""

from __future__ import annotations

import torch
from safetensors.torch import save
from torch import Tensor

from unfold_supernet.networks import transformer_export
from unfold_supernet.networks.layers import downsample
from unfold_supernet.networks.space import Conv, Space
from unfold_supernet.networks.supernet import BoundConvNet, BoundSubnet
from unfold_supernet.networks.transformer import BoundTransformer
from unfold_supernet.networks.transformer_export import StandaloneTransformer


class StandaloneConvNet(torch.nn.Module):  # type: ignore[misc,unused-ignore]
    """A convolutional subnet built from standard modules. Attribute names are a stored format."""

    def __init__(self, space: Space, layers: tuple[Conv, ...], shrink: int = 1) -> None:
        super().__init__()
        self.shrink = shrink
        conv, norm = (
            (torch.nn.Conv1d, torch.nn.BatchNorm1d) if len(space.size) == 1 else (torch.nn.Conv2d, torch.nn.BatchNorm2d)
        )
        self.layers = layers
        self.convs = torch.nn.ModuleList(
            conv(layer.into, layer.out, layer.kernel, layer.stride, layer.kernel // 2, bias=False) for layer in layers
        )
        self.norms = torch.nn.ModuleList(norm(layer.out) for layer in layers)
        self.head = torch.nn.Linear(layers[-1].out + space.extra, space.classes)

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        """Compute logits (n, classes) for inputs (n, channels, *size) and (n, extra)."""
        x = downsample(x, self.shrink)
        for layer, conv, norm in zip(self.layers, self.convs, self.norms, strict=True):
            out = norm(conv(x))
            x = torch.relu(out + x if layer.identity else out)
        logits: Tensor = self.head(torch.cat([x.flatten(2).mean(2), extra], 1))
        return logits


StandaloneModel = StandaloneConvNet | StandaloneTransformer


def build_empty_model(space: Space, bound: BoundSubnet) -> StandaloneModel:
    """Build the standalone module of a subnet without its tensors."""
    model: StandaloneModel = (
        StandaloneTransformer(space, bound)
        if isinstance(bound, BoundTransformer)
        else StandaloneConvNet(space, bound.convs, bound.shrink)
    ).eval()
    return model


def extract_model(space: Space, bound: BoundSubnet) -> StandaloneModel:
    """Copy a subnet into a standalone module."""
    if isinstance(bound, BoundTransformer):
        return transformer_export.extract_transformer(space, bound)
    return _extract_conv_net(space, bound)


def _extract_conv_net(space: Space, bound: BoundConvNet) -> StandaloneConvNet:
    module: StandaloneConvNet = StandaloneConvNet(space, bound.convs, bound.shrink).eval()
    with torch.no_grad():
        layers = zip(module.convs, module.norms, bound.views, bound.statistics, strict=True)
        for conv, norm, (weight, gamma, beta), (mean, variance) in layers:
            for target, source in zip(
                (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var),
                (weight, gamma, beta, mean, variance),
                strict=True,
            ):
                target.copy_(source)
        # the exported head holds the temperature: every runtime returns calibrated logits
        weight, extra_weight, bias = (tensor / bound.temperature for tensor in bound.head)
        module.head.weight.copy_(torch.cat([weight, extra_weight], 1))
        module.head.bias.copy_(bias)
    return module


def serialize_state(module: StandaloneModel) -> bytes:
    """Serialize a standalone module's state as safetensors."""
    return bytes(save({name: tensor.contiguous() for name, tensor in module.state_dict().items()}))
