"""Checks stored XGBoost models before the library reads them: its parsers recurse, and a deep file ends the process."""

from __future__ import annotations

import struct

from unfoldkit.errors import UnfoldError, user_error
from unfoldkit.safe_io.files import MAX_JSON_DEPTH, parse_object

_SIZES = {b"i": 1, b"U": 1, b"I": 2, b"l": 4, b"L": 8, b"d": 4, b"D": 8, b"C": 1, b"Z": 0, b"T": 0, b"F": 0, b"N": 0}
_COUNTS = {b"i": ">b", b"U": ">B", b"I": ">h", b"l": ">i", b"L": ">q"}


def check_booster(data: bytes, file: str = "") -> None:
    """Refuse bytes that are no well-formed JSON or UBJSON object nested at most ``MAX_JSON_DEPTH`` deep.

    Raises:
        UnfoldError: They are none.
    """
    if data[:1] != b"{":
        raise _damaged(file, "it is not an object")
    if data[1:].lstrip()[:1] in (b'"', b"}"):
        parse_object(data, file)
        return
    try:
        _walk(data)
    except (ValueError, struct.error) as error:
        raise _damaged(file, str(error)) from error


def _damaged(file: str, why: str) -> UnfoldError:
    return user_error(f"not a stored XGBoost model: {why}", file=file)


def _walk(data: bytes) -> None:
    """Read UBJSON (draft 12) without recursion; an open container is its kind and how many items are left of it."""
    offset, stack = 1, [("{", -1)]
    while stack:
        kind, remaining = stack[-1]
        if remaining == 0 or (remaining < 0 and data[offset : offset + 1] == (b"}" if kind == "{" else b"]")):
            offset += remaining < 0
            stack.pop()
            continue
        if remaining > 0:
            stack[-1] = (kind, remaining - 1)
        if kind == "{":
            offset = _skip_text(data, offset)
        marker, offset = data[offset : offset + 1], offset + 1
        if marker in (b"{", b"["):
            offset = _open(data, offset, marker.decode(), stack)
        elif marker in (b"S", b"H"):
            offset = _skip_text(data, offset)
        elif marker in _SIZES:
            offset = _skip(data, offset, _SIZES[marker])
        else:
            raise ValueError(f"an unknown marker at byte {offset - 1}")


def _open(data: bytes, offset: int, kind: str, stack: list[tuple[str, int]]) -> int:
    if data[offset : offset + 1] == b"$":
        size, offset = _SIZES.get(data[offset + 1 : offset + 2]), offset + 2
        if size is None or kind == "{" or data[offset : offset + 1] != b"#":
            raise ValueError(f"an unknown array at byte {offset}")
        count, offset = _count(data, offset + 1)
        return _skip(data, offset, size * count)
    remaining = -1
    if data[offset : offset + 1] == b"#":
        remaining, offset = _count(data, offset + 1)
    stack.append((kind, remaining))
    if len(stack) > MAX_JSON_DEPTH:
        raise ValueError(f"nested deeper than {MAX_JSON_DEPTH}")
    return offset


def _count(data: bytes, offset: int) -> tuple[int, int]:
    form = _COUNTS.get(data[offset : offset + 1])
    if form is None:
        raise ValueError(f"a length is missing at byte {offset}")
    (count,) = struct.unpack_from(form, data, offset + 1)
    if count < 0:
        raise ValueError(f"a negative length at byte {offset}")
    return count, offset + 1 + struct.calcsize(form)


def _skip_text(data: bytes, offset: int) -> int:
    length, offset = _count(data, offset)
    return _skip(data, offset, length)


def _skip(data: bytes, offset: int, length: int) -> int:
    if offset + length > len(data):
        raise ValueError("the file ends too early")
    return offset + length
