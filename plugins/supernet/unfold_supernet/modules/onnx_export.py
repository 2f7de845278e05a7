"""Export of modules as ONNX for any number of rows, and a check before training that it will succeed.

``torch.export`` runs a module on tensors without values. What needs values there, such as a branch on a mean, would
fail when the trained members are exported; the layer in which it happens is named.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from unfold_supernet.family.onnx_session import open_session
from unfold_supernet.modules.inputs import INPUT_NAMES, Inputs, take_two_rows
from unfoldkit.api import user_error

OPSET = 18
LOGGERS = (
    "torch.onnx._internal.exporter._registration", "torch.fx.experimental.symbolic_shapes", "onnxscript", "onnx_ir",
)  # fmt: skip
"""Loggers that warn of operators of torchvision where it is missing, of what is not optimised, and of failed graphs."""
ROWS_HINT = "take the number of rows from x.shape[0], not from len(x), or keep the layer out of the network"
VALUES_HINT = "decide by torch.where instead of if, or keep the layer out of the network"
DATA_DEPENDENT = ("data-dependent", "data dependent", "DataDependent", "DynamicOutputShape")


class _ThreadMute(io.TextIOBase):
    """A stream that drops what the thread writes that made it; the progress of a command is another thread's."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream, self.muted = stream, threading.get_ident()

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        return len(text) if threading.get_ident() == self.muted else self.stream.write(text)

    def flush(self) -> None:
        """Write what is buffered."""
        self.stream.flush()


def export_onnx(module: nn.Module, example: Inputs) -> bytes:
    """Export a module as ONNX with input ``x``, a second one ``extra`` and output ``y``, for any number of rows."""
    rows = take_two_rows(example)
    with _quiet_loggers(), warnings.catch_warnings():
        # what it warns of does not keep a module from being exported
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, rows, input_names=[*INPUT_NAMES[: len(rows)]], output_names=["y"], opset_version=OPSET, dynamo=True,
            verbose=False, dynamic_shapes=_free_rows(rows),
        )  # fmt: skip
    return bytes(program.model_proto.SerializeToString())


def check_export(module: nn.Module, example: Inputs) -> None:
    """Check that a module can be exported for any number of rows.

    Args:
        module: The module, in inference mode; it is not changed.
        example: Inputs (n, *size).

    Raises:
        UnfoldError: It cannot; the message names the layer and the reason.
    """
    rows = take_two_rows(example)
    entered = list[str]()
    error = _try_export(module, rows, entered)
    # the exporter to ONNX knows other ways, which take longer
    if error is None or (not _is_data_dependent(error) and _succeeds(module, rows)):
        return
    # a layer that returned has left the list: the last one is where it failed
    where = f"layer {entered[-1]}" if entered and entered[-1] else "the module"
    hint = ROWS_HINT if _fixes_rows(error) else VALUES_HINT
    raise user_error(f"{where} cannot be exported: {_describe(error)}", key="model.from", hint=hint) from error


def _try_export(module: nn.Module, rows: tuple[Tensor, ...], entered: list[str]) -> Exception | None:
    """Export a module, and return the error; ``entered`` receives the paths of the layers that did not return."""
    hooks = [
        hook
        for path, layer in module.named_modules()
        for hook in (
            layer.register_forward_pre_hook(lambda *_args, path=path: entered.append(path)),
            layer.register_forward_hook(lambda *_args: _leave(entered)),
        )
    ]
    try:
        # torch prints the graph of what failed
        with _quiet_loggers(), contextlib.redirect_stderr(_ThreadMute(sys.stderr)), warnings.catch_warnings():
            # what it warns of, such as packed weights of recurrent layers, does not keep a module from being exported
            warnings.simplefilter("ignore")
            torch.export.export(module, rows, dynamic_shapes=_free_rows(rows), strict=False)
    # the tracer's own errors, and those of the user's code, share no base
    except Exception as error:  # noqa: BLE001
        return error
    finally:
        for hook in hooks:
            hook.remove()
    return None


def _free_rows(inputs: tuple[Tensor, ...]) -> tuple[dict[int, Any], ...]:
    """Say that all inputs have the same number of rows, which is any."""
    count = torch.export.Dim("n")
    return tuple({0: count} for _ in inputs)


@contextlib.contextmanager
def _quiet_loggers() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _leave(entered: list[str]) -> None:
    """Forget the layer that returned; nothing is returned, which would replace its outputs."""
    entered.pop()


def _is_data_dependent(error: Exception) -> bool:
    return any(word in f"{type(error).__name__} {error}" for word in DATA_DEPENDENT)


def _succeeds(module: nn.Module, rows: tuple[Tensor, ...]) -> bool:
    """Check that the ONNX model of a module accepts another number of rows than the one that it was traced with."""
    more = tuple(torch.cat([tensor, tensor[:1]]) for tensor in rows)
    try:
        feed = {name: tensor.numpy() for name, tensor in zip(INPUT_NAMES, more, strict=False)}
        outputs = open_session(export_onnx(module, rows)).run(None, feed)[0]
    # the reason of the first attempt is reported
    except Exception:  # noqa: BLE001
        return False
    return len(outputs) == len(more[0])


def _fixes_rows(error: Exception) -> bool:
    return "Constraints violated" in str(error) or "specialized" in str(error)


def _describe(error: Exception) -> str:
    text: Any = str(error)
    if _is_data_dependent(error):
        return "its control flow or a shape depends on the values of the inputs"
    if _fixes_rows(error):
        return f"its code fixes the number of rows: {_first_line(text)}"
    return f"{type(error).__name__}: {_first_line(text)}"


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:200] if lines else ""
