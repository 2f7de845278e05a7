"""Arrays of NumPy, from files that hold exactly what their headers state, and no objects."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfoldkit.errors import user_error
from unfoldkit.safe_io.archives import read_archive, read_member
from unfoldkit.safe_io.files import first_line

_NPY = b"\x93NUMPY"


def parse_npy(data: bytes, file: str = "") -> NDArray[Any]:
    """Return the array of an NPY file with a header that states exactly the bytes that follow.

    Raises:
        UnfoldError: It is no NPY file, holds objects, or its size does not match its header.
    """
    stream = io.BytesIO(data)
    # NumPy takes archives and pickles for arrays too
    if data[: len(_NPY)] != _NPY:
        raise user_error("not an array: it does not begin as an NPY file", file=file)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        _check_layout(shape, dtype, len(data) - stream.tell())
        stream.seek(0)
        array: NDArray[Any] = np.load(stream, allow_pickle=False)
    # a header is Python text that NumPy parses with ast
    except (ValueError, TypeError, SyntaxError, OSError, EOFError, MemoryError, RecursionError, OverflowError) as error:
        raise user_error(f"not an array: {first_line(error)}", file=file) from error
    return array


def read_npz(data: bytes, file: str = "", names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """Return the arrays of an NPZ file by name: all, or those of ``names`` that it holds.

    Raises:
        UnfoldError: It is no such file, expands beyond the bound, or one of the arrays holds objects.
    """
    found: dict[str, NDArray[Any]] = {}
    with contextlib.closing(read_archive(data, file)) as archive:
        for member in archive.namelist():
            name = member.removesuffix(".npy")
            if names is None or name in names:
                found[name] = parse_npy(read_member(archive, member, file), file)
    return found


def load_tensors(data: bytes) -> dict[str, Any]:
    """Return the tensors of a safetensors file as tensors of PyTorch, by name.

    Raises:
        ValueError: It is no such file, or holds data of a type or size that PyTorch does not know.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Any] = load(data)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return tensors


def _check_layout(shape: tuple[int, ...], dtype: np.dtype[Any], size: int) -> None:
    count = 1
    for length in shape:
        if length < 0:
            raise ValueError("a negative length")
        count *= length
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if count * dtype.itemsize != size or (not dtype.itemsize and count):
        raise ValueError("its size does not match its header")
