"""Export of modules as ONNX for any number of rows, and a check before training that it will succeed.

``torch.export`` runs a module on tensors without values. What needs values there, such as a branch on a mean, would
fail when the trained members are exported; the layer in which it happens is named.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache, partial, wraps
from typing import Any, TextIO, TypeVar, cast

import torch
from torch import Tensor, nn

from unfold_supernet.elasticity.inputs import INPUT_NAMES, Inputs, count_named, take_two_rows
from unfold_supernet.family.onnx_session import open_session
from unfoldkit.api import user_error

F = TypeVar("F", bound=Callable[..., object])
OPSET = 18
LOGGERS = (
    "torch.onnx._internal.exporter._registration", "torch.fx.experimental.symbolic_shapes", "onnxscript", "onnx_ir",
)  # fmt: skip
"""Loggers that warn of operators of torchvision where it is missing, of what is not optimized, and of failed graphs."""
ROWS_HINT = "take the number of rows from x.shape[0], not from len(x), or keep the layer out of the network"
OPERATORS_HINT = "write it with other operators of torch, or keep the layer out of the network"
VALUES_HINT = "decide by torch.where instead of if, or keep the layer out of the network"
COMMON = frozenset((
    "conv1d", "conv2d", "conv3d", "batch_norm", "layer_norm", "linear", "matmul", "addmm", "bmm", "embedding",
    "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "gelu", "sigmoid", "tanh", "elu", "leaky_relu",
    "softmax", "add", "sub", "mul", "div", "neg", "mean", "sum", "amax", "pow", "sqrt", "rsqrt", "exp",
    "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "flatten",
    "view", "reshape", "permute", "transpose", "unsqueeze", "squeeze", "expand", "cat", "stack", "chunk", "split",
    "select", "slice", "clone", "contiguous", "to", "dropout", "sym_size", "detach", "_assert_tensor_metadata",
    "scaled_dot_product_attention", "unflatten", "unbind", "masked_fill", "zeros_like", "ones_like", "eq", "ne",
))  # fmt: skip
"""Operators that are not converted on trial before the training, as that takes seconds."""
CONVERTED = re.compile(r"translating node %(\w+) .*?target=torch\.ops\.([\w.]+)")
"""How the exporter names what it cannot convert: a node of the traced module and its operator."""
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


def call_alone(function: F) -> F:
    """Trace modules in one thread at a time, with gradients on: torch replaces functions of its own meanwhile."""

    @wraps(function)
    def call(*args: object, **kwargs: object) -> object:
        with get_lock(), torch.enable_grad():
            return function(*args, **kwargs)

    return cast("F", call)


@cache
def get_lock() -> AbstractContextManager[bool]:
    """Return the lock of what changes modules or torch for a while, for all threads."""
    return threading.RLock()


@call_alone
def export_onnx(module: Any, example: Inputs) -> bytes:
    """Export a module, or a traced one, as ONNX with inputs ``x`` and ``extra`` and output ``y``, for any row count."""
    rows = take_two_rows(example)
    with _quiet_loggers(), warnings.catch_warnings():
        # what it warns of does not keep a module from being exported
        warnings.simplefilter("ignore")
        try:
            return _convert(module, rows, rows)
        # it raises a class of its own for operators that it converts in some of their forms only
        except Exception:
            program: Any = module
            if isinstance(module, nn.Module):
                program = torch.export.export(module, rows, dynamic_shapes=_free_rows(module, rows), strict=False)
            try:
                return _convert(program.run_decompositions(), (), rows)
            # of both reasons, the one that names the operator of the user's code is raised
            except Exception:  # noqa: BLE001, S110
                pass
            raise


def _convert(module: Any, arguments: tuple[Tensor, ...], rows: tuple[Tensor, ...]) -> bytes:
    """Convert a module with ``arguments``, or a traced one, as ONNX."""
    with _keep_registry():
        program = torch.onnx.export(
            module, arguments, input_names=[*INPUT_NAMES[: len(rows)]], output_names=["y"], opset_version=OPSET,
            dynamo=True, verbose=False, dynamic_shapes=_free_rows(module, rows) if arguments else None,
        )  # fmt: skip
    model = program.model_proto
    _widen_vectors(model.graph)
    return bytes(model.SerializeToString())


@contextlib.contextmanager
def _keep_registry() -> Iterator[None]:
    """Let torch build its registry of operators once; it would parse the source of each operator for every export."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        original, is_known = vars(ONNXRegistry)["from_torchlib"], isinstance(ONNXRegistry().functions, dict)
    except (ImportError, KeyError, AttributeError):
        is_known = False
    # the class is private: where it has changed, exports take longer
    if not is_known:
        yield
        return
    ONNXRegistry.from_torchlib = staticmethod(partial(_copy_registry, original.__get__(None, ONNXRegistry)))
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = original


def _copy_registry(build: Callable[..., Any], *words: Any, **options: Any) -> Any:
    """Copy the kept registry: an export with operators of its own adds them to what it gets."""
    registry = copy.copy(_build_registry(build, *words, **options))
    registry.functions = {name: [*functions] for name, functions in registry.functions.items()}
    return registry


@cache
def _build_registry(build: Callable[..., Any], *words: Any, **options: Any) -> Any:
    return build(*words, **options)


def _widen_vectors(graph: Any) -> None:
    """Turn vectors that matrices are multiplied by into matrices of one column, in place.

    ONNX Runtime fuses a transposition with the product behind it, and computes another product for vectors.
    """
    from onnx import TensorProto, helper

    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    ranks |= {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul" and ranks.get(node.input[1]) == 1]
    if not products:
        return
    last, nodes = "last_axis", [*graph.node]
    graph.initializer.append(helper.make_tensor(last, TensorProto.INT64, [1], [-1]))
    for node in products:
        (vector, output), place = (node.input[1], node.output[0]), nodes.index(node)
        node.input[1], node.output[0] = f"{output}_vector", f"{output}_column"
        nodes[place : place + 1] = [
            helper.make_node("Unsqueeze", [vector, last], [node.input[1]]),
            node,
            helper.make_node("Squeeze", [node.output[0], last], [output]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


def measure_disagreement(module: nn.Module, content: bytes, inputs: tuple[Tensor, ...]) -> float:
    """Measure how far the outputs of an ONNX model are from those of its module, relative to the largest output.

    Args:
        module: The module, in inference mode.
        content: The ONNX model.
        inputs: Rows (n, *size), and a second input of a module with two.

    Returns:
        The median over the rows: a value near a threshold may fall on either side of it.
    """
    feed = {name: tensor.numpy() for name, tensor in zip(INPUT_NAMES, inputs, strict=False)}
    outputs = torch.from_numpy(open_session(content).run(None, feed)[0])
    with torch.no_grad():
        expected: Tensor = module(*inputs)
    scale: float = max(float(expected.abs().max()), torch.finfo(torch.float32).tiny)
    return float((outputs - expected).abs().flatten(1).amax(1).median()) / scale


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
    traced = _try_export(module, rows, entered)
    if not isinstance(traced, Exception):
        if _is_common(traced):
            return
        failure = _try_conversion(traced, rows)
        if failure is not None:
            where = _find_layer(traced, failure)
            message = f"{where} cannot be converted to ONNX: {_describe_conversion(failure)}"
            raise user_error(message, key="model.from", hint=OPERATORS_HINT) from failure
        return
    error = traced
    # the exporter to ONNX knows other ways, which take longer
    if not _is_data_dependent(error) and _try_conversion(module, rows) is None:
        return
    # a layer that returned has left the list: the last one is where it failed
    where = f"layer {entered[-1]}" if entered and entered[-1] else "the module"
    hint = VALUES_HINT if _is_data_dependent(error) else ROWS_HINT if _fixes_rows(error) else OPERATORS_HINT
    raise user_error(f"{where} cannot be exported: {_describe(error)}", key="model.from", hint=hint) from error


def _try_export(module: nn.Module, rows: tuple[Tensor, ...], entered: list[str]) -> Any:
    """Trace a module; return its program, or the error.

    Args:
        module: The module.
        rows: Its inputs.
        entered: Receives the paths of the layers that did not return.
    """
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
            return torch.export.export(module, rows, dynamic_shapes=_free_rows(module, rows), strict=False)
    # the tracer's own errors, and those of the user's code, share no base
    except Exception as error:  # noqa: BLE001
        return error
    finally:
        for hook in hooks:
            hook.remove()


def _free_rows(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """Say that all inputs have the same number of rows, which is any; those that ``*args`` takes stand in a tuple.

    Args:
        module: The module, or a traced one.
        inputs: Its inputs.
    """
    count = torch.export.Dim("n")
    free = tuple({0: count} for _ in inputs)
    named = count_named(module) if isinstance(module, nn.Module) else None
    return free if named is None or named >= len(inputs) else (*free[:named], free[named:])


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


def _is_common(program: Any) -> bool:
    """Check that a traced module holds operators only that are known to have a form in ONNX.

    Options are constants there, so they do not depend on the number of rows.
    """
    return all(
        node.target.name().partition(".")[0].removeprefix("aten::").removesuffix("_") in COMMON
        and not any(isinstance(argument, torch.fx.Node) and _is_count(argument) for argument in node.args)
        for node in program.graph.nodes
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)  # noqa: SLF001
    )


def _is_count(node: torch.fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt)


def _try_conversion(module: Any, rows: tuple[Tensor, ...]) -> Exception | None:
    """Convert a module, or a traced one, and run its ONNX model with more rows than the example; return the error."""
    more = tuple(torch.cat([tensor, tensor[:1]]) for tensor in rows)
    feed = {name: tensor.numpy() for name, tensor in zip(INPUT_NAMES, more, strict=False)}
    try:
        outputs = open_session(export_onnx(module, rows)).run(None, feed)[0]
    # errors of the exporter and of ONNX Runtime share no base
    except Exception as error:  # noqa: BLE001
        return error
    return None if len(outputs) == len(more[0]) else ValueError(f"{len(outputs)} outputs for {len(more[0])} rows")


def _describe_conversion(error: Exception) -> str:
    """Describe why a module has no form in ONNX by the innermost reason, which names the operator."""
    reason: BaseException = error
    while reason.__cause__ is not None:
        reason = reason.__cause__
    return f"{type(reason).__name__}: {_first_line(str(reason))}"


def _find_layer(program: Any, error: Exception) -> str:
    """Name the innermost layer with the operator that the exporter could not convert; the module for a part of one."""
    reason: BaseException | None = error
    named: tuple[str, ...] = ()
    while reason is not None and not named:
        found = CONVERTED.search(str(reason))
        named, reason = found.groups() if found else (), reason.__cause__
    for node in program.graph.nodes:
        stack = [*node.meta.get("nn_module_stack", {}).values()]
        if (node.name, str(node.target)) == named and stack and stack[-1][0]:
            return f"layer {stack[-1][0]}"
    return "the module"


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
