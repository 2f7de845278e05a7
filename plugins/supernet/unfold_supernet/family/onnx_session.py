"""Sessions of ONNX Runtime on one thread, and the memory that they add to this process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from unfold_supernet._types import Float32Array
from unfoldkit.safe_io.onnx_files import list_data_files, require_data_within

MAX_COPIED_BYTES = (2 << 30) - 1
"""The largest message of protobuf; ONNX Runtime maps the external data of larger models."""


def open_session(model: Path | bytes, *, keeps_maps: bool = False) -> Any:
    """Open an ONNX model on one thread.

    Args:
        model: A file, or its content.
        keeps_maps: Whether the session keeps the memory of its feature maps. Ten members would hold those of ten of
            their largest batches, and one runs at a time; asking the system for it again takes no measurable time.

    Raises:
        ValueError: ONNX Runtime cannot load it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = keeps_maps
    # an error is raised, so nothing is lost by a silent log
    options.log_severity_level = 4
    if isinstance(model, bytes):
        # a file of its own folder is read by path, after the checks of its member
        require_data_within(model, "the ONNX model", None)
    try:
        source = _read_complete(model) if isinstance(model, Path) else model
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    # the runtime's own exceptions share no base
    except Exception as error:
        raise ValueError(" ".join(str(error).split())) from error
    # the wrapper in Python would hold the file beside the weights that were read from it
    session._model_bytes = None  # noqa: SLF001
    return session


def release_free_memory() -> None:
    """Return to the system what the allocator keeps of closed sessions (glibc; elsewhere it does nothing)."""
    if sys.platform == "linux":
        # other C libraries have no such function
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _read_complete(path: Path) -> bytes | str:
    """Read a model with its external data, so that what is written to these files later cannot change its outputs.

    ONNX Runtime would map the data: values written in place became weights, and shortening the file ended the process.

    Returns:
        The complete model; its path if it has no such data, or is too large for one message.
    """
    content = path.read_bytes()
    if not list_data_files(content, str(path)):
        return str(path)
    import onnx

    model = onnx.load_model_from_string(content)
    onnx.load_external_data_for_model(model, str(path.parent))
    return model.SerializeToString() if model.ByteSize() <= MAX_COPIED_BYTES else str(path)


def open_measured_session(content: bytes, x: Float32Array, extra: Float32Array) -> tuple[Any, int]:
    """Open an ONNX session, run it once, and return it with the memory that it added, at least the model's size.

    Raises:
        ValueError: ONNX Runtime cannot load it, or it does not take these inputs.
    """
    # the first session of a process brings the runtime, which is no memory of the subnet's
    first = open_session(content)
    before = read_resident_bytes()
    session = open_session(content)
    try:
        session.run(None, name_inputs(session, x, extra))
    # the runtime's own exceptions share no base
    except Exception as error:
        raise ValueError(" ".join(str(error).split())) from error
    del first
    return session, max(len(content), read_resident_bytes() - before)


def name_inputs(session: Any, x: Float32Array, extra: Float32Array) -> dict[str, Float32Array]:
    """Name the inputs of a session: ``x``, and ``extra`` where the model takes it."""
    return {item.name: extra if item.name == "extra" else np.asarray(x) for item in session.get_inputs()}


def read_resident_bytes() -> int:
    """Return the memory of this process that is resident; 0 where the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
