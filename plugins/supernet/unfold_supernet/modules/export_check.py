"""Whether a module can be exported for any number of rows, checked before it is trained.

``torch.export`` runs the module on tensors without values. What needs values there, such as a branch on a mean, would
fail when the trained members are exported; the layer in which it happens is named.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from unfoldkit.api import user_error

DATA_DEPENDENT = ("data-dependent", "data dependent", "DataDependent", "DynamicOutputShape")


def check_export(module: nn.Module, example: Tensor) -> None:
    """Check that a module can be exported for any number of rows.

    Args:
        module: The module, in inference mode; it is not changed.
        example: Inputs (n, *size).

    Raises:
        UnfoldError: It cannot; the message names the layer and the reason.
    """
    # two rows: a single one is taken for a constant axis
    rows = example if len(example) > 1 else torch.cat([example, example])
    entered = list[str]()
    hooks = [
        hook
        for path, layer in module.named_modules()
        for hook in (
            layer.register_forward_pre_hook(lambda *_args, path=path: entered.append(path)),
            layer.register_forward_hook(lambda *_args: _leave(entered)),
        )
    ]
    try:
        with warnings.catch_warnings():
            # what it warns of, such as packed weights of recurrent layers, does not keep a module from being exported
            warnings.simplefilter("ignore")
            torch.export.export(module, (rows,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=False)
    # the tracer's own errors, and those of the user's code, share no base
    except Exception as error:
        # a layer that returned has left the list: the last one is where it failed
        path = entered[-1] if entered else ""
        where = f"layer {path}" if path else "the module"
        hint = "decide by torch.where instead of if, or keep the layer out of the network"
        raise user_error(f"{where} cannot be exported: {_describe(error)}", key="model.from", hint=hint) from error
    finally:
        for hook in hooks:
            hook.remove()


def _leave(entered: list[str]) -> None:
    """Forget the layer that returned; nothing is returned, which would replace its outputs."""
    entered.pop()


def _describe(error: Exception) -> str:
    text: Any = str(error)
    if any(word in text or word in type(error).__name__ for word in DATA_DEPENDENT):
        return "its control flow or a shape depends on the values of the inputs"
    if "n" in text and ("Constraints violated" in text or "specialized" in text):
        return f"its code fixes the number of rows: {_first_line(text)}"
    return f"{type(error).__name__}: {_first_line(text)}"


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:200] if lines else ""
