"""Lists of objects as cluster commands print them in JSON or YAML, converted to tasks."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from unfold_placement.core.types import MILLI, Node, Task
from unfoldkit.api import UnfoldError, user_error
from unfoldkit.io.tables import UNREADABLE, open_text
from unfoldkit.safe_io.files import MAX_JSON_DEPTH, is_deep
from unfoldkit.spec.yaml_reader import parse

Body = dict[str, Any]
"""A decoded JSON object."""
Warn = Callable[[str], object]
"""Receives a warning, such as the number of skipped rows."""
MAX_AMOUNT = 1 << 53
"""Largest amount in thousandths."""
WRAPPER_KEYS = ("items", "data", "result")
_NOTES = re.compile(r"(?:(?:Warning: |[IWE]\d{4} \d\d:\d\d:\d\d\.).*\n|\s*\n)+")
"""Lines that kubectl prints to standard error: warnings of the server, and its own log."""
_DOCUMENT = re.compile(r"^(?:---|\.\.\.)(?:[ \t].*)?\r?$", re.MULTILINE)
S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Span:
    """When an item was submitted, started and ended, and was last seen, in seconds; None where it has not yet."""

    submitted_s: float
    started_s: float | None
    ended_s: float | None
    seen_s: float | None = None

    @property
    def times_s(self) -> list[float]:
        """The times that are known."""
        times = self.submitted_s, self.started_s, self.ended_s, self.seen_s
        return [time for time in times if time is not None]

    def run_s(self, file_end_s: float) -> float:
        """Return the run time (s); what still runs ends with the last time of the file."""
        ended_s = file_end_s if self.ended_s is None else self.ended_s
        return max(ended_s - (self.submitted_s if self.started_s is None else self.started_s), 0.0)

    @property
    def is_reversed(self) -> bool:
        """Whether it ended before it started."""
        return self.started_s is not None and self.ended_s is not None and self.ended_s < self.started_s


@dataclass(frozen=True, slots=True)
class Timeline:
    """The times of a file: its earliest submission, its last time, and the factor that accelerates arrivals."""

    origin_s: float
    end_s: float
    speedup: float = 1.0

    def arrival_s(self, span: Span) -> float:
        """Return the arrival of an item in seconds from the earliest submission."""
        return (span.submitted_s - self.origin_s) / self.speedup


@dataclass(frozen=True, slots=True)
class ItemFormat:
    """How the items of a command become tasks.

    Attributes:
        program: The command or file that prints them, for errors.
        items: What they are called, in warnings.
        others: What items are called that are no tasks.
        read_span: Returns the times of an item.
        build_task: Builds the task of an item.
    """

    program: str
    items: str
    others: str
    read_span: Callable[[Body], Span]
    build_task: Callable[[Body, Span, Timeline], Task]


def read_items(path: Path, command: str) -> list[Body]:
    """Read the listed objects: under ``items`` (kubectl) or ``data`` and ``result`` (Ray), or as a plain list.

    Raises:
        UnfoldError: The file is neither JSON nor YAML; the hint names the ``command`` that writes it.
    """
    return [body for content in read_documents(path, command) for body in _unwrap(content)]


def read_documents(path: Path, command: str) -> Iterator[Any]:
    """Decode the documents of a file, JSON or YAML, one after another; kubectl's warnings at its head are skipped.

    Raises:
        UnfoldError: The file is neither JSON nor YAML; the hint names the ``command`` that writes it.
    """
    try:
        with open_text(path) as stream:
            text = stream.read()
    except (*UNREADABLE, ValueError) as error:
        raise user_error(f"cannot read: {error}", file=str(path), hint=command) from error
    if notes := _NOTES.match(text):
        # a shell's 2>&1 puts them first; positions stay those of the file
        text = "\n" * notes[0].count("\n") + text[notes.end() :]
    if text.lstrip()[:1] not in {"{", "["}:
        yield from _decode_yaml(text, path, command)
        return
    decoder, position = json.JSONDecoder(), 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        try:
            content, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise user_error(f"not JSON: {error}", file=str(path), hint=command) from error
        if is_deep(content):
            raise user_error(f"JSON nested deeper than {MAX_JSON_DEPTH}", file=str(path), hint=command)
        yield content


def _decode_yaml(text: str, path: Path, command: str) -> Iterator[Any]:
    starts = [0, *(match.end() for match in _DOCUMENT.finditer(text))]
    ends = [*(match.start() for match in _DOCUMENT.finditer(text)), len(text)]
    for start, end in zip(starts, ends, strict=True):
        if any(line.strip() and not line.lstrip().startswith("#") for line in text[start:end].splitlines()):
            try:
                # positions stay those of the file
                content = parse("\n" * text.count("\n", 0, start) + text[start:end], str(path)).data
            except UnfoldError as error:
                raise UnfoldError(*(replace(item, hint=item.hint or command) for item in error.diagnostics)) from error
            if not isinstance(content, dict | list):
                raise user_error(f"not JSON or YAML of objects: {content!r:.60}", file=str(path), hint=command)
            yield content


def parse_items(items: Sequence[S], path: Path, program: str, parse: Callable[[S], T]) -> list[T]:
    """Parse every item.

    Raises:
        UnfoldError: An item does not have the form that ``program`` prints; the message has its index.
    """
    parsed = []
    for index, item in enumerate(items):
        try:
            value = parse(item)
            _check_fields(value)
            parsed.append(value)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            message = f"item {index}{_item_name(item)} is not what {program} prints: {reason}"
            raise user_error(message, file=str(path)) from error
    return parsed


def _check_fields(value: object) -> None:
    """Check that names are texts and amounts are within bounds, which no form states.

    Raises:
        TypeError, ValueError: One is not.
    """
    texts: dict[str, object] = {}
    amounts: Mapping[str, int] = {}
    if isinstance(value, Node):
        texts, amounts = {"name": value.name, **value.labels}, value.capacity
    elif isinstance(value, Task):
        texts, amounts = {"job": value.job, "user": value.user, "role": value.role}, value.demand
    for key, text in texts.items():
        if not isinstance(text, str):
            raise TypeError(f"{key} is {str(text)[:60]!r}, not a text")
    for kind, amount in amounts.items():
        if not 0 <= amount <= MAX_AMOUNT:
            raise ValueError(f"{amount / MILLI:g} {kind} is out of range")


def _item_name(item: object) -> str:
    """Return the kind and name of an object of Kubernetes, in brackets; empty for anything else."""
    body = item[0] if isinstance(item, tuple) and item else item
    meta = body.get("metadata") if isinstance(body, dict) else None
    name = meta.get("name") if isinstance(meta, dict) else None
    return f" ({body.get('kind') or 'object'} {str(name)[:80]})" if isinstance(body, dict) and name else ""


def build_tasks(
    task_items: Sequence[Body],
    path: Path,
    form: ItemFormat,
    *,
    skipped: int = 0,
    max_tasks: int | None = None,
    speedup: float = 1.0,
    warn: Warn = str,
) -> list[Task]:
    """Build the tasks of the items that started.

    Args:
        task_items: Items that are tasks.
        path: The file.
        form: How items become tasks.
        skipped: Number of items that are no tasks.
        max_tasks: Use only so many of the started items.
        speedup: Factor that accelerates arrivals.
        warn: Receives how many items are left out.

    Returns:
        The tasks, each with the size of its job.

    Raises:
        UnfoldError: An item does not have the expected form.
    """
    spans = parse_items(task_items, path, form.program, form.read_span)
    started = [(item, span) for item, span in zip(task_items, spans, strict=True) if span.started_s is not None]
    running = sum(span.ended_s is None for _, span in started)
    _warn_left_out(skipped, len(task_items) - len(started), running, path, form, warn)
    if count := sum(span.is_reversed for _, span in started):
        warn(f"{path.name}: {count} {form.items} end before they start; they run for 0 s")
    if task_items and not started:
        raise user_error(f"none of its {len(task_items)} {form.items} has started", file=str(path))
    started = started[:max_tasks]
    times = [time for span in spans for time in span.times_s]
    origin_s = min((span.submitted_s for _, span in started), default=0.0)
    timeline = Timeline(origin_s, max(times, default=0.0), speedup)
    tasks = parse_items(started, path, form.program, lambda pair: form.build_task(pair[0], pair[1], timeline))
    sizes, seen = Counter(task.job for task in tasks), Counter[str]()
    named = []
    for task in tasks:
        seen[task.name] += 1
        # a pod of a StatefulSet that was created again has the name of the first
        name = task.name if seen[task.name] == 1 else f"{task.name}#{seen[task.name]}"
        named.append(replace(task, name=name, size=sizes[task.job]))
    return named


def _unwrap(content: Any) -> list[Body]:
    """Return the objects of a document; those of a typed list, such as a NodeList, need not repeat their kind."""
    if isinstance(content, dict):
        inner = next((content[key] for key in WRAPPER_KEYS if isinstance(content.get(key), list | dict)), None)
        if inner is not None:
            kind = str(content.get("kind") or "").removesuffix("List")
            return [{"kind": kind, **body} if kind else body for body in _unwrap(inner)]
    return [body for body in (content if isinstance(content, list) else [content]) if isinstance(body, dict)]


def _warn_left_out(skipped: int, unstarted: int, running: int, path: Path, form: ItemFormat, warn: Warn) -> None:
    if skipped or unstarted:
        warn(f"{path.name}: left out {skipped} {form.others} and {unstarted} that never started")
    if running:
        warn(f"{path.name}: {running} {form.items} still run; they are taken to end with the last time of the file")
