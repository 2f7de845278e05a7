"""Lists of things as the commands of a cluster write them: JSON, read item by item."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from unfold_placement.core.types import Task
from unfoldkit.api import fail
from unfoldkit.io.csv import UNREADABLE, open_text
from unfoldkit.safe_io.files import MAX_JSON_DEPTH, is_deep

Body = dict[str, Any]
Warn = Callable[[str], object]
Span = tuple[float, float | None, float | None]
"""When an item was submitted, began and ended, in s; nothing where it did not yet."""
INNER = ("items", "data", "result")
S = TypeVar("S")
T = TypeVar("T")


def read_items(path: Path, command: str) -> list[Body]:
    """Return what a file lists: under ``items`` (kubectl) or ``data`` and ``result`` (Ray), or as the list that it is.

    Raises:
        UnfoldError: it is no JSON; ``command`` is told as what writes it.
    """
    try:
        with open_text(path) as stream:
            found = json.load(stream)
    except (*UNREADABLE, ValueError, RecursionError) as error:
        raise fail(f"not JSON: {error}", file=str(path), hint=command) from error
    if is_deep(found):
        raise fail(f"JSON nested deeper than {MAX_JSON_DEPTH}", file=str(path), hint=command)
    while isinstance(found, dict) and (key := _inner(found)):
        found = found[key]
    return [item for item in (found if isinstance(found, list) else [found]) if isinstance(item, dict)]


def _inner(found: Body) -> str:
    return next((key for key in INNER if isinstance(found.get(key), list | dict)), "")


def parse_items(items: Sequence[S], path: Path, program: str, read: Callable[[S], T]) -> list[T]:
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


@dataclass(frozen=True, slots=True)
class ItemFormat:
    """How the items of a command are read as tasks, and what people call them.

    ``program`` writes them; they are ``items``, and those that are no tasks ``others``. ``task`` makes one of an item,
    its span, the earliest submission, and the last time of the file.
    """

    program: str
    items: str
    others: str
    span: Callable[[Body], Span]
    task: Callable[[Body, Span, float, float], Task]


def build_tasks(
    listed: Sequence[Body], meant: Sequence[Body], path: Path, form: ItemFormat, first: int | None, tell: Warn
) -> list[Task]:
    """Return the tasks of those that are ``meant``, of the ``first`` so many that began; ``tell`` is told of the rest.

    Each has the size of its job.

    Raises:
        UnfoldError: one is not what the program writes.
    """
    spans = parse_items(meant, path, form.program, form.span)
    last = max((time for span in spans for time in span if time is not None), default=0.0)
    ran = [(item, span) for item, span in zip(meant, spans, strict=True) if span[1] is not None]
    _tell_of(
        len(listed) - len(meant), len(meant) - len(ran), sum(end is None for _, (_, _, end) in ran), path, form, tell
    )
    ran = ran[:first]
    origin = min((span[0] for _, span in ran), default=0.0)
    tasks = parse_items(ran, path, form.program, lambda pair: form.task(pair[0], pair[1], origin, last))
    sizes = Counter(task.job for task in tasks)
    return [replace(task, size=sizes[task.job]) for task in tasks]


def _tell_of(others: int, never: int, going: int, path: Path, form: ItemFormat, tell: Warn) -> None:
    if others or never:
        tell(f"{path.name}: left out are {others} {form.others} and {never} that never started")
    if going:
        tell(f"{path.name}: {going} {form.items} still run; they are taken to end with the last time of the file")
