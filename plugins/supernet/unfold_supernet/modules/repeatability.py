"""Check that a module answers a row alike at each call, and whatever other rows its batch holds.

Accuracies, calibrated confidences and ONNX models of other modules would describe one draw of their answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unfold_supernet.modules.inputs import Inputs, list_tensors, run_module, take_two_rows
from unfoldkit.api import user_error

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


def _run(module: nn.Module, rows: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        outputs: Tensor = run_module(module, rows)
    return outputs.clone()


def _find_layer(module: nn.Module, pair: tuple[Inputs, Inputs], tolerance: float) -> str:
    """Name the innermost layer whose outputs differ for equal inputs; layers that return first stand first."""
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
