"""Layers of a user's module that are replaced by others which compute the same, before channels are followed.

Channels are followed through torch's own layers with plain weights. So weights under weight norm become plain ones,
spectral norm by hooks becomes a parametrization, and linear layers in the user's own code become torch's.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from unfold_supernet.elasticity.inputs import refuse_copy

TOLERANCE = 1e-4
"""Largest difference, relative and absolute, at which two layers compute the same."""


def find_tied_layers(module: nn.Module) -> dict[str, str]:
    """Find the layers that share a parameter with another layer, by path; the value names the other one."""
    first, tied = dict[int, str](), dict[str, str]()
    # a layer that is called twice is a single one, and no tie
    for path, layer in module.named_modules():
        for parameter in layer.parameters(recurse=False):
            other = first.setdefault(id(parameter), path)
            if other != path:
                tied |= {path: other, other: path}
    return tied


def replace_layer(module: nn.Module, layer: nn.Module, replacement: nn.Module) -> None:
    """Replace a layer under each name by which a module holds it, in place."""
    for path, candidate in [*module.named_modules(remove_duplicate=False)]:
        if candidate is layer:
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, replacement)


def fold_weight_norms(module: nn.Module) -> nn.Module:
    """Replace length and direction of weights under weight norm by the weights, in place; outputs stay the same.

    The length of a row is over all inputs, so that a member with fewer inputs would compute other weights.
    """
    for layer in module.modules():
        if not parametrize.is_parametrized(layer):
            continue
        chains: Any = layer.parametrizations
        if not all(isinstance(part, parametrizations._WeightNorm) for chain in chains.values() for part in chain):  # noqa: SLF001
            continue
        values = {name: getattr(layer, name).detach().clone() for name in chains}
        # torch's own way deletes from a class that copies share with the user's module
        layer.__class__ = type(layer).__bases__[0]
        del layer.parametrizations
        for name, value in values.items():
            layer.register_parameter(name, nn.Parameter(value))
    return module


def copy_unnormed(module: nn.Module) -> nn.Module:
    """Copy a module; weights that ``torch.nn.utils`` computes in hooks are replaced.

    Those of ``weight_norm`` become plain weights; those of ``spectral_norm`` are parametrized, as torch does it now.

    Raises:
        UnfoldError: Something of the module has no copy; the message names it.
    """
    computed = {
        id(weight): weight.detach().clone()
        for layer in module.modules()
        for weight in (getattr(layer, hook.name) for hook in _list_norm_hooks(layer))
    }
    try:
        copied = copy.deepcopy(module, {**computed})
    # the user's objects may raise anything
    except Exception as error:
        raise refuse_copy(module, error, computed) from error
    for layer in copied.modules():
        for hook in _list_norm_hooks(layer):
            if isinstance(hook, WeightNorm):
                nn.utils.remove_weight_norm(layer, hook.name)
            else:
                _parametrize_spectral_norm(layer, hook)
    return copied


def _parametrize_spectral_norm(layer: nn.Module, hook: Any) -> None:
    """Replace the hook of ``torch.nn.utils.spectral_norm`` by a parametrization with the same vectors, in place."""
    name = hook.name
    weight, *vectors = (getattr(layer, f"{name}_{part}").detach().clone() for part in ("orig", "u", "v"))
    nn.utils.remove_spectral_norm(layer, name)
    getattr(layer, name).data = weight
    parametrizations.spectral_norm(layer, name, hook.n_power_iterations, hook.eps, hook.dim)
    chains: Any = layer.parametrizations
    chains[name][0]._u, chains[name][0]._v = vectors  # noqa: SLF001 - it has no public name


def replace_linear_code(module: nn.Module) -> nn.Module:
    """Replace layers that compute what ``nn.Linear`` does, such as GPT-2's ``Conv1D``, by it, in place.

    Channels are followed through torch's own layers only.
    """
    tied, made = find_tied_layers(module), dict[nn.Module, nn.Linear | None]()
    for path, layer in [*module.named_modules(remove_duplicate=False)]:
        if not path or path in tied:
            continue
        if layer not in made:
            made[layer] = _find_linear(layer)
        linear, (parent, _, name) = made[layer], path.rpartition(".")
        if linear is not None:
            setattr(module.get_submodule(parent), name, linear)
    return module


def _find_linear(layer: nn.Module) -> nn.Linear | None:
    """Find the linear layer that computes what a layer of the user's does with its only weight, turned or not."""
    own = dict(layer.named_parameters())
    weight, bias = own.get("weight"), own.get("bias")
    parts = (*layer.children(), *layer.buffers(), *layer._forward_hooks, *layer._forward_pre_hooks)  # noqa: SLF001
    if weight is None or weight.ndim != 2 or {*own} - {"weight", "bias"} or parts or _is_of_torch(layer):
        return None
    for matrix in (weight.T, weight):
        if not weight.is_floating_point() or (bias is not None and bias.shape != matrix.shape[:1]):
            continue
        linear = nn.Linear(matrix.shape[1], matrix.shape[0], bias is not None, dtype=weight.dtype)
        linear.weight = nn.Parameter(matrix.detach().clone(memory_format=torch.contiguous_format), weight.requires_grad)
        if bias is not None:
            linear.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
        if all(_computes_equally(layer, linear, rows) for rows in ((3,), (2, 3))):
            # the code around it may read attributes of the user's
            for name, value in vars(layer).items():
                vars(linear).setdefault(name, value)
            return linear
    return None


def _is_of_torch(layer: nn.Module) -> bool:
    return type(layer).__module__.startswith("torch.")


def _computes_equally(layer: nn.Module, linear: nn.Linear, rows: tuple[int, ...]) -> bool:
    """Check that a layer returns what a linear one does, with its gradients, in training and at inference."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        x = torch.randn(*rows, linear.in_features, dtype=linear.weight.dtype, requires_grad=True)
        expected = linear(x)
        (slope,) = torch.autograd.grad(expected.square().sum(), x)
        for mode in (True, False):
            try:
                outputs = layer.train(mode)(x)
                (found,) = torch.autograd.grad(outputs.square().sum(), x)
            # the user's code may raise anything
            except Exception:  # noqa: BLE001
                return False
            if outputs.shape != expected.shape or not torch.allclose(outputs, expected, TOLERANCE, TOLERANCE):
                return False
            if not torch.allclose(found, slope, TOLERANCE, TOLERANCE):
                return False
    return True


def _list_norm_hooks(layer: nn.Module) -> list[Any]:
    hooks = layer._forward_pre_hooks.values()  # noqa: SLF001
    return [hook for hook in hooks if isinstance(hook, WeightNorm | SpectralNorm)]
