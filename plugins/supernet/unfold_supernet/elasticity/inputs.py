"""Inputs of a module, and whether its outputs depend on nothing else.

The inputs are one tensor ``x``, and a second one, ``extra``, if its code takes two. Accuracies, calibrated confidences
and ONNX models of a module that answers a row in two ways would describe one draw of its answers.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from unfoldkit.api import UnfoldError, user_error

Inputs: TypeAlias = Tensor | tuple[Tensor, ...]
"""Inputs (n, *size), or these and (n, *other) beside them."""
INPUT_NAMES = ("x", "extra")
"""Names of the inputs in ONNX models, data and requests."""
REPEAT_TOLERANCE = 1e-4
"""Difference between two calls, relative to the largest output, up to which they agree."""
ROW_TOLERANCE = 1e-2
"""The same for a row alone and in a batch: sums are rounded by batch, and a sign near zero may flip."""


@dataclass(frozen=True, slots=True)
class _Call:
    """What a layer was given and what it returned."""

    path: str
    inputs: tuple[Tensor, ...]
    outputs: Tensor


def list_tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    """List the tensors of inputs."""
    return (inputs,) if isinstance(inputs, Tensor) else inputs


def run_module(module: nn.Module, inputs: Inputs) -> Any:
    """Call a module with its inputs."""
    return module(*list_tensors(inputs))


def take_two_rows(inputs: Inputs) -> tuple[Tensor, ...]:
    """Repeat a single row: it would be taken for a constant axis, and has no spread that is normalized."""
    return tuple(tensor if len(tensor) > 1 else torch.cat([tensor, tensor]) for tensor in list_tensors(inputs))


def copy_module(module: nn.Module) -> nn.Module:
    """Copy a module without what its code computed with gradients, which has no copies.

    Raises:
        UnfoldError: Something else of it has no copy; the message names it.
    """
    drop_computed(module)
    try:
        return copy.deepcopy(module)
    # the user's objects may raise anything
    except Exception as error:
        raise refuse_copy(module, error) from error


def refuse_copy(module: nn.Module, error: Exception, copied: Mapping[int, Any] = MappingProxyType({})) -> UnfoldError:
    """Make the error for a module that cannot be copied; the message names the attribute that keeps it from that.

    Args:
        module: The module.
        error: What was raised when it was copied.
        copied: What stands for objects in the copy, by their ids.
    """
    computed = _find_computed(module, copied)
    if computed:
        reason = f"{computed} is computed from weights"
        hint = "call torch.nn.utils.prune.remove for pruned weights, or parametrizations instead of hooks"
        hint += "; a module that caches what it computes is called under torch.no_grad() only"
    else:
        reason = f"{_find_uncopied(module, copied)}{' '.join(str(error).split()[:30])}"
        hint = "keep locks, files, sockets and generators outside the module, or leave them out in its __getstate__"
    return user_error(f"the module cannot be copied: {reason}", key="model.from", hint=hint)


def _find_computed(module: nn.Module, copied: Mapping[int, Any]) -> str:
    """Find an attribute that holds a tensor with a history of gradients, as caches do; empty if there is none."""
    for path, layer in module.named_modules():
        for name, value in vars(layer).items():
            values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            tensors = (tensor for tensor in values if isinstance(tensor, Tensor) and id(tensor) not in copied)
            if any(not tensor.is_leaf for tensor in tensors):
                return f"{path}.{name}".lstrip(".")
    return ""


def _find_uncopied(module: nn.Module, copied: Mapping[int, Any]) -> str:
    """Find the attribute that has no copy, in the innermost layer; empty if there is none."""
    for path, layer in reversed([*module.named_modules()]):
        for name, value in vars(layer).items():
            if name == "_modules":
                continue
            try:
                copy.deepcopy(value, {**copied})
            # the user's objects may raise anything
            except Exception:  # noqa: BLE001
                return f"{path}.{name}".lstrip(".") + ": "
    return ""


def drop_computed(module: nn.Module) -> None:
    """Drop tensors that a module's code computed with gradients: those that it keeps, and caches by device or size."""
    for layer in module.modules():
        for name, value in [*vars(layer).items()]:
            if isinstance(value, Tensor) and value.grad_fn:
                setattr(layer, name, None)
            # torch's own dictionaries hold parameters and buffers
            elif type(value) is dict and not name.startswith("_"):
                for key in [key for key, item in value.items() if isinstance(item, Tensor) and item.grad_fn]:
                    del value[key]


def list_required(module: nn.Module) -> list[str]:
    """List the arguments that the code of a module needs."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = _list_parameters(module)
    return [
        argument.name for argument in parameters if argument.kind in positional and argument.default is argument.empty
    ]


def list_required_keywords(module: nn.Module) -> list[str]:
    """List the arguments that the code of a module needs by name."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = _list_parameters(module)
    return [argument.name for argument in parameters if argument.kind is keyword and argument.default is argument.empty]


def list_positional(module: nn.Module) -> list[str]:
    """List the arguments that the code of a module takes by position, without those in ``*args``."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [argument.name for argument in _list_parameters(module) if argument.kind in positional]


def count_named(module: nn.Module) -> int | None:
    """Count the arguments before ``*args`` in the code of a module; ``None`` if it has none."""
    kinds = [argument.kind for argument in _list_parameters(module)]
    return len(list_positional(module)) if inspect.Parameter.VAR_POSITIONAL in kinds else None


def takes_extra(module: nn.Module) -> bool:
    """Check whether a module takes a second input: its code needs two, or names the second one ``extra``."""
    names = [each.name for each in _list_parameters(module)]
    return len(list_required(module)) == len(INPUT_NAMES) or names[1:2] == [INPUT_NAMES[1]]


def check_repeatability(module: nn.Module, example: Inputs) -> None:
    """Check that outputs depend on the row alone.

    Args:
        module: The module, in inference mode; it runs on the example.
        example: Inputs (n, *size).

    Raises:
        UnfoldError: They depend on random numbers, earlier calls or other rows; the message names the layer.
    """
    rows = tuple(tensor[:2] for tensor in take_two_rows(example))
    first = _run(module, rows)
    if _differ(first, _run(module, rows), REPEAT_TOLERANCE):
        where = _find_layer(module, (rows, rows), REPEAT_TOLERANCE)
        message = f"{where} returns other outputs for the same inputs at the next call, at inference too"
        hint = "F.dropout needs training=self.training; draw no random numbers, and keep nothing between calls"
        raise user_error(message, key="model.from", hint=hint)
    alone = tuple(tensor[:1] for tensor in rows)
    try:
        single = _run(module, alone)
    # code that fixes the number of rows is reported with its reason when it is exported
    except Exception:  # noqa: BLE001
        return
    if single.shape == first[:1].shape and _differ(first[:1], single, ROW_TOLERANCE):
        where = _find_layer(module, (rows, alone), ROW_TOLERANCE)
        message = f"in {where}, the outputs of a row depend on the other rows of its batch, at inference too"
        hint = "compute no mean, maximum or norm over axis 0; nn.BatchNorm1d keeps statistics of the training rows"
        raise user_error(message, key="model.from", hint=hint)


def _list_parameters(module: nn.Module) -> list[inspect.Parameter]:
    try:
        return [*inspect.signature(module.forward).parameters.values()]
    # what torch.jit has compiled has no signature
    except ValueError:
        return []


def _run(module: nn.Module, rows: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        outputs: Tensor = run_module(module, rows)
    return outputs.clone()


def _find_layer(module: nn.Module, pair: tuple[Inputs, Inputs], tolerance: float) -> str:
    """Name the innermost layer with outputs that differ for equal inputs; layers that return first stand first."""
    first, second = (_record(module, inputs) for inputs in pair)
    for before, after in zip(first, second, strict=False):
        if before.path != after.path or len(before.inputs) != len(after.inputs):
            break
        inputs = zip(_align(before.inputs, after.inputs), after.inputs, strict=True)
        if any(_differ(a, b, tolerance) for a, b in inputs):
            continue
        outputs = _align((before.outputs,), (after.outputs,))
        if before.path and _differ(outputs[0], after.outputs, tolerance):
            return f"layer {before.path}"
    return "the module"


def _record(module: nn.Module, inputs: Inputs) -> list[_Call]:
    """Record the calls of all layers that take and return tensors, in the order in which they return."""
    calls = list[_Call]()

    def keep(path: str, given: tuple[Any, ...], result: Any) -> None:
        tensors = tuple(item.clone() for item in given if isinstance(item, Tensor))
        if tensors and isinstance(result, Tensor):
            calls.append(_Call(path, tensors, result.clone()))

    hooks = [
        layer.register_forward_hook(lambda _layer, given, result, path=path: keep(path, given, result))
        for path, layer in module.named_modules()
    ]
    try:
        _run(module, list_tensors(inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _align(tensors: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Take the rows that others have too."""
    return tuple(
        tensor[: len(other)] if tensor.ndim and other.ndim else tensor
        for tensor, other in zip(tensors, others, strict=True)
    )


def _differ(tensor: Tensor, other: Tensor, tolerance: float) -> bool:
    """Compare tensors; those of unlike shape differ."""
    if tensor.shape != other.shape:
        return True
    if not tensor.numel():
        return False
    kind = torch.complex128 if tensor.is_complex() else torch.float64
    exact = tensor.to(kind)
    scale: float = max(float(exact.abs().max()), torch.finfo(torch.float32).tiny)
    difference = float((exact - other.to(kind)).abs().max())
    return difference > tolerance * scale
