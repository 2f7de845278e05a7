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
        UnfoldError: they are none.
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
    at, stack = 1, [("{", -1)]
    while stack:
        kind, left = stack[-1]
        if left == 0 or (left < 0 and data[at : at + 1] == (b"}" if kind == "{" else b"]")):
            at += left < 0
            stack.pop()
            continue
        if left > 0:
            stack[-1] = (kind, left - 1)
        if kind == "{":
            at = _skip_text(data, at)
        marker, at = data[at : at + 1], at + 1
        if marker in (b"{", b"["):
            at = _open(data, at, marker.decode(), stack)
        elif marker in (b"S", b"H"):
            at = _skip_text(data, at)
        elif marker in _SIZES:
            at = _skip(data, at, _SIZES[marker])
        else:
            raise ValueError(f"an unknown marker at byte {at - 1}")


def _open(data: bytes, at: int, kind: str, stack: list[tuple[str, int]]) -> int:
    if data[at : at + 1] == b"$":
        size, at = _SIZES.get(data[at + 1 : at + 2]), at + 2
        if size is None or kind == "{" or data[at : at + 1] != b"#":
            raise ValueError(f"an unknown array at byte {at}")
        count, at = _count(data, at + 1)
        return _skip(data, at, size * count)
    left = -1
    if data[at : at + 1] == b"#":
        left, at = _count(data, at + 1)
    stack.append((kind, left))
    if len(stack) > MAX_JSON_DEPTH:
        raise ValueError(f"nested deeper than {MAX_JSON_DEPTH}")
    return at


def _count(data: bytes, at: int) -> tuple[int, int]:
    form = _COUNTS.get(data[at : at + 1])
    if form is None:
        raise ValueError(f"a length is missing at byte {at}")
    (count,) = struct.unpack_from(form, data, at + 1)
    if count < 0:
        raise ValueError(f"a negative length at byte {at}")
    return count, at + 1 + struct.calcsize(form)


def _skip_text(data: bytes, at: int) -> int:
    length, at = _count(data, at)
    return _skip(data, at, length)


def _skip(data: bytes, at: int, length: int) -> int:
    if at + length > len(data):
        raise ValueError("the file ends too early")
    return at + length
