"""The network of a user: a function of the spec makes it, stored weights start it, and a digest identifies its code."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfold_supernet.modules.elastic_family import unwrap_module
from unfold_supernet.modules.problem import ModuleSource
from unfoldkit.api import fingerprint, user_error
from unfoldkit.safe_io.arrays import load_tensors
from unfoldkit.safe_io.files import read_bytes

ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
"""What functions print of themselves, other in each process."""
WRAPPERS = ("module.", "_orig_mod.")
"""What wrappers put before the names of weights: ``nn.DataParallel`` and ``torch.compile``."""
PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How the files of ``torch.save`` begin: archives, and pickles before version 1.6."""


def load_module(source: ModuleSource, classes: int, seed: int) -> nn.Module:
    """Call the user's function, and load the weights to start from.

    Raises:
        UnfoldError: There is no such function, it fails, it returns no module, or the weights do not fit.
    """
    name = f"{source.module}:{source.function}"
    sys.path.insert(0, str(source.folder))
    try:
        function: Any = importlib.import_module(source.module)
        for part in source.function.split("."):
            function = getattr(function, part)
        arguments = dict(source.arguments)
        if "num_classes" not in arguments and _accepts(function, "num_classes"):
            arguments["num_classes"] = classes
        torch.manual_seed(seed)
        module = function(**arguments)
    # the user's code may raise anything, and may try to end the program
    except (Exception, SystemExit) as error:
        message = f"{name} fails: {type(error).__name__}: {error}"
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        hint = f"install {missing}, or check the name" if missing else "check the name and model.arguments"
        raise user_error(message, key="model.from", hint=hint) from error
    finally:
        sys.path.remove(str(source.folder))
    if not isinstance(module, nn.Module):
        message = f"{name} returns an object of type {type(module).__name__}, not a torch module"
        raise user_error(message, key="model.from", hint="name a function that returns the network")
    module = unwrap_module(module)
    if source.weights is not None:
        _load_weights(module, source)
    return module


def digest_code(module: nn.Module, source: ModuleSource) -> str:
    """Compute the digest of the code that makes a module, and of its layers as they print.

    The code is that of the user's function and of the layers, and what else is imported from the user's folder: layers
    may call its functions.

    Args:
        module: The module.
        source: Where it comes from.
    """
    names = {source.module, *(type(layer).__module__ for layer in module.modules())}
    files = {file for name, file in _list_imported() if name in names or _is_written_in(source.folder, file)}
    contents = [Path(file).read_bytes() for file in files if Path(file).is_file()]
    # in an order that does not depend on where the files lie
    digests = sorted(hashlib.sha256(content).hexdigest() for content in contents)
    return fingerprint(ADDRESS.sub("", repr(module)), *digests)


def _list_imported() -> Iterator[tuple[str, str]]:
    """List the names and files of all imported modules; some define no file, or compute attributes when asked."""
    for name, module in [*sys.modules.items()]:
        file = getattr(module, "__dict__", {}).get("__file__")
        if isinstance(file, str):
            yield name, file


def _is_written_in(folder: Path, file: str) -> bool:
    """Check that a file lies in a folder, and is not installed there."""
    path = Path(file)
    is_installed = "site-packages" in path.parts or any(map(path.is_relative_to, (sys.prefix, sys.base_prefix)))
    return path.is_relative_to(folder) and not is_installed


def _accepts(function: Callable[..., Any], argument: str) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(each.name == argument or each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def _load_weights(module: nn.Module, source: ModuleSource) -> None:
    assert source.weights is not None  # noqa: S101 - the caller checks
    file, content = str(source.weights), read_bytes(source.weights)
    try:
        state = load_tensors(content)
    except ValueError as error:
        is_pickled = content.startswith(PICKLED)
        message = "a pickled file of torch.save, which is not loaded" if is_pickled else f"not safetensors: {error}"
        hint = "safetensors.torch.save_model(module, file)"
        raise user_error(message, file=file, key="model.weights", hint=hint) from error
    # what was saved of a wrapped network carries the wrapper's name
    expected = module.state_dict().keys()
    while state.keys() != expected:
        wrapper = next((name for name in WRAPPERS if state and all(key.startswith(name) for key in state)), None)
        if wrapper is None:
            break
        state = {key.removeprefix(wrapper): tensor for key, tensor in state.items()}
    state |= _list_tied(module, state)
    for key, tensor in module.state_dict().items():
        if key in state and tensor.is_floating_point() and not state[key].is_floating_point():
            message = f"{key} is {str(state[key].dtype).removeprefix('torch.')}, not a tensor of floating-point numbers"
            hint = "dequantize the weights, and save module.float().state_dict()"
            raise user_error(message, file=file, key="model.weights", hint=hint)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        # the first line names the module only
        reason = " ".join(str(error).split()[:40])
        message = f"the weights do not fit the module: {reason}"
        # such as the head of a network that was trained on other classes
        is_resized = "size mismatch" in reason and "Missing key" not in reason
        hint = "load what fits in your function, without model.weights" if is_resized else "save model.state_dict()"
        raise user_error(message, file=file, key="model.weights", hint=hint) from error


def _list_tied(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """List the tensors that a state has under another name only: ``save_model`` stores those that are shared once."""
    shared: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), []).append(name)
    return {
        name: state[stored]
        for names in shared.values()
        for stored in [name for name in names if name in state][:1]
        for name in names
        if name not in state
    }
