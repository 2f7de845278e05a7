"""Reads files that others may have written: regular files only, bounded in size, and data that is never code.

Every failure is an ``UnfoldError`` with the name of the file (exit code 2).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from unfoldkit.errors import UnfoldError, user_error, with_default_file

MAX_JSON_DEPTH = 100
"""JSON nested deeper than this is refused: parsers and whoever walks the result recurse."""
MAX_TEXT_BYTES = 256 << 20
"""The largest file of JSON that is read."""
DAMAGED = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, EOFError, MemoryError, RuntimeError,
)  # fmt: skip
"""What decoding a file raises that holds other data than it should."""
_LARGEST_DIGITS = 309
"""Digits of the largest float."""
_MANY_DIGITS = re.compile(rb"\d{%d}" % _LARGEST_DIGITS)
AGAIN = "delete it from the run, or the run, and make it again"


@contextlib.contextmanager
def decoding(file: str, what: str = "") -> Iterator[None]:
    """Turn what decoding a stored file raises into an error with its name.

    A file with a rewritten manifest may hold anything: its parts can miss, or be of other types and shapes.

    Raises:
        UnfoldError: The body raised it, or what a damaged file makes it raise.
    """
    try:
        yield
    except UnfoldError as error:
        raise UnfoldError(*(with_default_file(item, file) for item in error.diagnostics), code=error.code) from error
    except DAMAGED as error:
        message = f"not {what}" if what else "the file is damaged"
        raise user_error(f"{message}: {_described(error)}", file=file, hint=AGAIN) from error


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading, and nothing else: a pipe or a device would block, or never end.

    Raises:
        UnfoldError: The path is no regular file, or cannot be opened.
    """
    try:
        # without O_NONBLOCK, opening a pipe waits until another process writes to it
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise user_error(f"cannot read: {error.strerror}", file=str(path)) from error
    except ValueError as error:
        raise user_error(f"cannot read: {error}", file=str(path)) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = os.strerror(errno.EISDIR) if stat.S_ISDIR(mode) else "not a regular file"
        raise user_error(f"cannot read: {kind}", file=str(path))
    return os.fdopen(descriptor, "rb")


def follow_links(path: str | Path) -> Path:
    """Return the absolute path that links lead to, which need not exist; circular links stay as they are.

    Before Python 3.13, ``Path.resolve`` raises ``RuntimeError`` for circular links.
    """
    return Path(os.path.realpath(path))


def require_regular(path: str | Path) -> None:
    """Refuse a path that a library is about to open itself, unless a regular file is there.

    Raises:
        UnfoldError: See :func:`open_regular`.
    """
    open_regular(path).close()


def read_bytes(path: str | Path, *, max_bytes: int | None = None) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        UnfoldError: It is no regular file, cannot be read, or is larger than ``max_bytes``.
    """
    with open_regular(path) as stream:
        try:
            data = stream.read() if max_bytes is None else stream.read(max_bytes + 1)
        except OSError as error:
            raise user_error(f"cannot read: {error.strerror}", file=str(path)) from error
    if max_bytes is not None and len(data) > max_bytes:
        raise user_error(f"larger than {max_bytes / (1 << 20):,.0f} MiB", file=str(path))
    return data


def parse_json(data: bytes | str, file: str = "") -> Any:
    """Return the value of a JSON text of bounded nesting.

    Raises:
        UnfoldError: It is not JSON, is nested deeper than ``MAX_JSON_DEPTH``, or holds an integer beyond any float.
    """
    try:
        # a call for each integer takes time
        value = json.loads(data, parse_int=_parse_integer if _has_many_digits(data) else None)
    except RecursionError:
        raise user_error(f"JSON nested deeper than {MAX_JSON_DEPTH}", file=file) from None
    except ValueError as error:
        raise user_error(f"not JSON: {error}", file=file) from error
    if is_deep(value):
        raise user_error(f"JSON nested deeper than {MAX_JSON_DEPTH}", file=file)
    return value


def _has_many_digits(data: bytes | str) -> bool:
    # most texts are lines of a file, and too short
    if len(data) < _LARGEST_DIGITS:
        return False
    return _MANY_DIGITS.search(data if isinstance(data, bytes) else data.encode(errors="replace")) is not None


def _parse_integer(text: str) -> int:
    number = int(text)
    if abs(number) > sys.float_info.max:
        raise ValueError(f"an integer has {len(text)} digits")
    return number


def parse_object(data: bytes | str, file: str = "") -> dict[str, Any]:
    """Return the object that a JSON text holds.

    Raises:
        UnfoldError: It is not JSON, is nested too deep, or is a list or a scalar.
    """
    value = parse_json(data, file)
    if not isinstance(value, dict):
        raise user_error("not a JSON object", file=file)
    return value


def parse_values(text: str) -> Iterator[Any]:
    """Yield the values of a document; several may follow one another, with or without white space between them.

    Raises:
        ValueError: The text is not JSON, or holds an integer of thousands of digits.
    """
    decoder, position, text = json.JSONDecoder(), 0, text.strip()
    while position < len(text):
        value, position = decoder.raw_decode(text, position)
        yield value
        while position < len(text) and text[position].isspace():
            position += 1


def is_deep(value: Any) -> bool:
    """Whether lists and mappings are nested deeper than ``MAX_JSON_DEPTH``."""
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


def _described(error: BaseException) -> str:
    return f"no {error}" if isinstance(error, KeyError) else first_line(error)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its name."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
