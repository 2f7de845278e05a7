"""The arrays behind a book: how they are made, and how they grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unfold_placement.core import kernel
from unfold_placement.core.state import Arena
from unfold_placement.core.types import MILLI, Ask, Node, Task
from unfoldkit.api import did_you_mean, fail

if TYPE_CHECKING:
    from unfold_placement.core.resources import Book

ASKS = 8
BY_TASK = {
    "need": 0, "ask": -1, "much": 0, "step": 0, "run": 0.0, "arrival": 0.0, "state": 0, "place": -1, "began": 0.0,
    "ends": 0.0, "fresh": 0, "queue": 0,
}  # fmt: skip
BY_NAME = {"column": -1, "wide": 0, "pool": 0}


def empty(nodes: Sequence[Node], kinds: Sequence[str]) -> Arena:
    """Return the arrays of a cluster without tasks and names."""
    count = len(nodes)
    types = node_types(nodes)
    zeros = np.zeros
    free = np.array([[node.capacity.get(kind, 0) for kind in kinds] for node in nodes], np.int64).reshape(count, -1)
    return Arena(
        need=zeros((0, len(kinds)), np.int64),
        ask=zeros((0, ASKS), np.int32),
        much=zeros((0, ASKS), np.int64),
        step=zeros((0, ASKS), np.int32),
        run=zeros((0, len(types))),
        arrival=zeros(0),
        order=zeros(0, np.int32),
        state=zeros(0, np.int32),
        place=zeros(0, np.int32),
        began=zeros(0),
        ends=zeros(0),
        fresh=zeros(0, np.uint8),
        free=free,
        tree=maxima(free),
        left=zeros((count, 4), np.int64),
        cap=zeros((count, 4), np.int64),
        dying=zeros((count, 4), np.uint8),
        kind=np.array([types.index(node.labels.get("type", "")) for node in nodes], np.int32),
        up=np.ones(count, np.uint8),
        dirty=zeros(count, np.uint8),
        touched=zeros(count, np.int32),
        column=np.full(8, -1, np.int32),
        wide=zeros(8, np.uint8),
        pool=zeros(8, np.int64),
        queue=zeros(0, np.int32),
        heap_time=zeros(64),
        heap_task=zeros(64, np.int32),
        log_time=zeros(64),
        log_kind=zeros(64, np.int32),
        log_task=zeros(64, np.int32),
        log_node=zeros(64, np.int32),
        mark=zeros(kernel.MARKS, np.int64),
        clock=zeros(1),
    )


def maxima(free: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (2 x leaves, resources) a tree of maxima over (nodes, resources) what is free."""
    leaves = 1 << max(len(free) - 1, 0).bit_length()
    tree = np.full((2 * leaves, free.shape[1]), -1, np.int64)
    tree[leaves : leaves + len(free)] = free
    while leaves > 1:
        leaves //= 2
        tree[leaves : 2 * leaves] = tree[2 * leaves : 4 * leaves].reshape(leaves, 2, free.shape[1]).max(1)
    return tree


def node_types(nodes: Sequence[Node]) -> list[str]:
    """Return the types of the nodes, in order of appearance."""
    return list(dict.fromkeys(node.labels.get("type", "") for node in nodes))


def with_tasks(book: Book, tasks: Sequence[Task], asks: Sequence[Sequence[tuple[Ask, int]]]) -> Arena:
    """Return the arrays with further tasks, which nobody has submitted yet.

    Raises:
        UnfoldError: a resource is unknown, a task is there already, or asks for too many names.
    """
    start, count = len(book.tasks), len(book.tasks) + len(tasks)
    for task, wanted in zip(tasks, asks, strict=True):
        _checked(book, task, wanted)
        for ask, _ in wanted:
            book.name_id(ask.name)
    arena = book.arena._replace(**{name: grown(getattr(book.arena, name), count, BY_TASK[name]) for name in BY_TASK})
    kinds = {kind: place for place, kind in enumerate(book.kinds)}
    types = node_types(book.nodes)
    for row, (task, wanted) in enumerate(zip(tasks, asks, strict=True), start):
        for kind, amount in task.demand.items():
            arena.need[row, kinds[kind]] = amount
        for place, (ask, phase) in enumerate(wanted):
            arena.ask[row, place], arena.much[row, place] = book.ids[ask.name], ask.amount * MILLI
            arena.step[row, place] = phase
        arena.run[row] = [task.run_on.get(kind, task.run) for kind in types]
        arena.arrival[row] = task.arrival
    return with_log(arena, 4 * count + 64)


def with_arrivals(arena: Arena, count: int) -> Arena:
    """Return the arrays with ``count`` tasks that arrive by themselves, each at its time."""
    return arena._replace(order=np.argsort(arena.arrival[:count], kind="stable").astype(np.int32))


def _checked(book: Book, task: Task, asks: Sequence[Any]) -> None:
    for kind in task.demand:
        if kind not in book.kinds:
            hint = did_you_mean(kind, book.kinds)
            raise fail(f"task {task.name} asks for {kind!r}, which no node has", key="workload", hint=hint)
    if task.name in book.index:
        raise fail(f"task {task.name} is there already", key="workload", hint="every task has a name of its own")
    if len(asks) > ASKS:
        raise fail(f"task {task.name} asks for {len(asks)} names, {ASKS} are the most", key="policy")


def with_names(arena: Arena, count: int) -> Arena:
    """Return the arrays with room for ``count`` names."""
    if count <= arena.column.size:
        return arena
    return arena._replace(**{name: grown(getattr(arena, name), 2 * count, BY_NAME[name]) for name in BY_NAME})


def with_log(arena: Arena, size: int) -> Arena:
    """Return the arrays with a log and a heap of at least ``size`` places."""
    if size <= arena.log_time.size:
        return arena
    names = ("heap_time", "heap_task", "log_time", "log_kind", "log_task", "log_node")
    return arena._replace(**{name: grown(getattr(arena, name), 2 * size, 0) for name in names})


def grown(array: NDArray[Any], size: int, filler: float) -> NDArray[Any]:
    """Return the array with at least ``size`` rows, the new ones filled."""
    if array.shape[0] >= size:
        return array
    bigger = np.full((max(size, 2 * array.shape[0]), *array.shape[1:]), filler, array.dtype)
    bigger[: array.shape[0]] = array
    return bigger


def new_column(book: Book, name: str) -> None:
    """Give a name a column: one that is free, or a new one."""
    if "" in book.columns:
        place = book.columns.index("")
        book.columns[place] = name
    else:
        place = len(book.columns)
        book.columns.append(name)
    a = book.arena
    if place >= a.left.shape[1]:
        wider = {key: np.pad(getattr(a, key), ((0, 0), (0, a.left.shape[1]))) for key in ("left", "cap", "dying")}
        book.arena = a = a._replace(**wider)
    a.column[book.ids[name]] = place


def free_column(book: Book, name: str) -> None:
    """Take the column from a name that is nowhere and that nobody holds."""
    a, number = book.arena, book.ids[name]
    column = a.column[number]
    if name not in book.entries and column >= 0 and not a.cap[:, column].any():
        book.columns[column] = ""
        a.column[number] = -1
        a.dying[:, column] = 0
        a.left[:, column] = 0


def reclaim(book: Book, task: Task) -> None:
    """Take back the columns of deleted names that a task held as the last one."""
    a = book.arena
    for number in a.ask[book.index[task.name]]:
        if number < 0:
            break
        if a.column[number] >= 0:
            name = book.columns[a.column[number]]
            if name and name not in book.entries:
                free_column(book, name)
