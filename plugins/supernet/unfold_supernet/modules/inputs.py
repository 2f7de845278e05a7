"""Inputs of a module: one tensor ``x``, and a second one, ``extra``, if its code takes two."""

from __future__ import annotations

import copy
import inspect
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Inputs: TypeAlias = Tensor | tuple[Tensor, ...]
"""Inputs (n, *size), or these and (n, *other) beside them."""
INPUT_NAMES = ("x", "extra")
"""Names of the inputs in ONNX models, data and requests."""


def list_tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    """List the tensors of inputs."""
    return (inputs,) if isinstance(inputs, Tensor) else inputs


def run_module(module: nn.Module, inputs: Inputs) -> Any:
    """Call a module with its inputs."""
    return module(*list_tensors(inputs))


def take_two_rows(inputs: Inputs) -> tuple[Tensor, ...]:
    """Repeat a single row: it would be taken for a constant axis, and has no spread that is normalised."""
    return tuple(tensor if len(tensor) > 1 else torch.cat([tensor, tensor]) for tensor in list_tensors(inputs))


def copy_module(module: nn.Module) -> nn.Module:
    """Copy a module without what its code computed with gradients, which has no copies."""
    drop_computed(module)
    return copy.deepcopy(module)


def drop_computed(module: nn.Module) -> None:
    """Drop tensors that a module's code computed with gradients and keeps, by device or size; it computes them anew."""
    for layer in module.modules():
        for name, value in vars(layer).items():
            # torch's own dictionaries hold parameters and buffers
            if type(value) is dict and not name.startswith("_"):
                for key in [key for key, item in value.items() if isinstance(item, Tensor) and item.grad_fn]:
                    del value[key]


def list_required(module: nn.Module) -> list[str]:
    """List the arguments that the code of a module needs."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [each.name for each in _list_parameters(module) if each.kind in positional and each.default is each.empty]


def takes_extra(module: nn.Module) -> bool:
    """Check whether a module takes a second input: its code needs two, or names the second one ``extra``."""
    names = [each.name for each in _list_parameters(module)]
    return len(list_required(module)) == len(INPUT_NAMES) or names[1:2] == [INPUT_NAMES[1]]


def _list_parameters(module: nn.Module) -> list[inspect.Parameter]:
    try:
        return [*inspect.signature(module.forward).parameters.values()]
    # what torch.jit has compiled has no signature
    except ValueError:
        return []
