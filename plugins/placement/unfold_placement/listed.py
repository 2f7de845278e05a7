"""Lists of things as the commands of a cluster write them: JSON, read item by item."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from unfoldkit.api import fail
from unfoldkit.csvfile import UNREADABLE, open_text

Body = dict[str, Any]
INNER = ("items", "data", "result")
S = TypeVar("S")
T = TypeVar("T")


def items_of(path: Path, command: str) -> list[Body]:
    """Return what a file lists: under ``items`` (kubectl) or ``data`` and ``result`` (Ray), or as the list that it is.

    Raises:
        UnfoldError: it is no JSON; ``command`` is told as what writes it.
    """
    try:
        with open_text(path) as stream:
            found = json.load(stream)
    except (*UNREADABLE, ValueError) as error:
        raise fail(f"not JSON: {error}", file=str(path), hint=command) from error
    while isinstance(found, dict) and (key := _inner(found)):
        found = found[key]
    return [item for item in (found if isinstance(found, list) else [found]) if isinstance(item, dict)]


def _inner(found: Body) -> str:
    return next((key for key in INNER if isinstance(found.get(key), list | dict)), "")


def each_of(items: Sequence[S], path: Path, program: str, read: Callable[[S], T]) -> list[T]:
    """Return what is read of each item.

    Raises:
        UnfoldError: one is not what ``program`` writes; which is told.
    """
    made = []
    for at, item in enumerate(items):
        try:
            made.append(read(item))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise fail(f"item {at} is not what {program} writes: {error!r}", file=str(path)) from error
    return made
