"""Reads files that others may have written: regular files only, bounded in size, and data that is never code.

Every failure is an ``UnfoldError`` with the name of the file (exit code 2).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from unfoldkit.errors import fail

MAX_JSON_DEPTH = 100
"""JSON nested deeper than this is refused: parsers and whoever walks the result recurse."""
MAX_ARCHIVE_BYTES = 1 << 30
"""What an archive may expand to, unless it is large itself."""
MAX_RATIO = 20
"""How many times its own size an archive larger than ``MAX_ARCHIVE_BYTES / MAX_RATIO`` may expand to."""
MAX_TEXT_BYTES = 256 << 20
"""The largest file of JSON that is read."""
_NPY = b"\x93NUMPY"
_BAD_ARCHIVE = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, RuntimeError, NotImplementedError)


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading, and nothing else: a pipe or a device would block, or never end.

    Raises:
        UnfoldError: the path is no regular file, or cannot be opened.
    """
    try:
        # without O_NONBLOCK, opening a pipe waits until another process writes to it
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise fail(f"cannot read: {error.strerror}", file=str(path)) from error
    except ValueError as error:
        raise fail(f"cannot read: {error}", file=str(path)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise fail("cannot read: not a regular file", file=str(path))
    return os.fdopen(descriptor, "rb")


def require_regular(path: str | Path) -> None:
    """Refuse a path that a library is about to open itself, unless a regular file is there.

    Raises:
        UnfoldError: see :func:`open_regular`.
    """
    open_regular(path).close()


def read_bytes(path: str | Path, *, max_bytes: int | None = None) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        UnfoldError: it is no regular file, cannot be read, or is larger than ``max_bytes``.
    """
    with open_regular(path) as stream:
        try:
            data = stream.read() if max_bytes is None else stream.read(max_bytes + 1)
        except OSError as error:
            raise fail(f"cannot read: {error.strerror}", file=str(path)) from error
    if max_bytes is not None and len(data) > max_bytes:
        raise fail(f"larger than {max_bytes / (1 << 20):,.0f} MiB", file=str(path))
    return data


def parse_json(data: bytes | str, file: str = "") -> Any:
    """Return the value of a JSON text whose nesting is bounded.

    Raises:
        UnfoldError: it is no JSON, or is nested deeper than ``MAX_JSON_DEPTH``.
    """
    try:
        value = json.loads(data)
    except RecursionError:
        raise fail(f"JSON nested deeper than {MAX_JSON_DEPTH}", file=file) from None
    except ValueError as error:
        raise fail(f"not JSON: {error}", file=file) from error
    if _is_deep(value):
        raise fail(f"JSON nested deeper than {MAX_JSON_DEPTH}", file=file)
    return value


def parse_object(data: bytes | str, file: str = "") -> dict[str, Any]:
    """Return the object that a JSON text holds.

    Raises:
        UnfoldError: it is no JSON, is nested too deep, or is a list or a scalar.
    """
    value = parse_json(data, file)
    if not isinstance(value, dict):
        raise fail("not a JSON object", file=file)
    return value


def read_archive(data: bytes, file: str = "") -> zipfile.ZipFile:
    """Return a ZIP archive whose members have different names and expand within the stated bound.

    Raises:
        UnfoldError: it is no archive, names a member twice, or expands beyond the bound.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = archive.infolist()
    except (*_BAD_ARCHIVE, ValueError) as error:
        raise fail(f"not an archive: {error}", file=file) from error
    if len({member.filename for member in members}) < len(members):
        raise fail("the archive names a member twice", file=file)
    limit = max(MAX_ARCHIVE_BYTES, MAX_RATIO * len(data))
    if sum(member.file_size for member in members) > limit:
        raise fail(f"the archive expands to more than {limit / (1 << 20):,.0f} MiB", file=file)
    return archive


def read_member(archive: zipfile.ZipFile, name: str, file: str = "") -> bytes:
    """Return the bytes of one member of an archive.

    Raises:
        UnfoldError: there is no such member, or it is damaged.
    """
    try:
        return archive.read(name)
    except KeyError as error:
        raise fail(f"the archive holds no {name!r}", file=file) from error
    except (*_BAD_ARCHIVE, ValueError) as error:
        raise fail(f"the archive is damaged: {error}", file=file) from error


def parse_npy(data: bytes, file: str = "") -> NDArray[Any]:
    """Return the array of an NPY file whose header states exactly the bytes that follow.

    Raises:
        UnfoldError: it is no NPY file, holds objects, or its size does not match its header.
    """
    stream = io.BytesIO(data)
    # NumPy takes archives and pickles for arrays too
    if data[: len(_NPY)] != _NPY:
        raise fail("not an array: it does not begin as an NPY file", file=file)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        _check_layout(shape, dtype, len(data) - stream.tell())
        stream.seek(0)
        array: NDArray[Any] = np.load(stream, allow_pickle=False)
    # a header is Python text that NumPy parses with ast
    except (ValueError, TypeError, SyntaxError, OSError, EOFError, MemoryError, RecursionError, OverflowError) as error:
        raise fail(f"not an array: {_first_line(error)}", file=file) from error
    return array


def read_npz(data: bytes, file: str = "") -> dict[str, NDArray[Any]]:
    """Return the arrays of an NPZ file by name.

    Raises:
        UnfoldError: it is no such file, expands beyond the bound, or holds objects.
    """
    archive = read_archive(data, file)
    with contextlib.closing(archive):
        return {
            name.removesuffix(".npy"): parse_npy(read_member(archive, name, file), file) for name in archive.namelist()
        }


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


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
