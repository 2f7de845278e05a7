"""The matcher in plain Python, as slow and as plain as can be: what the compiled kernel must agree with.

Rules. At each instant what ends gives back its demand and names first; then what arrives joins the queue; then the
queue is gone through in order of arrival, and each task starts on the first node, in the order of the nodes, that has
its whole demand and all its names. Nothing reserves: a task that does not fit is passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unfold_placement.core.types import ANYWHERE, MILLI, Ask, Node, Task

Names = Mapping[tuple[str, str], int]
"""Amounts of names by name and node, in whole units."""


def replay(
    nodes: Sequence[Node], tasks: Sequence[Task], asks: Sequence[Sequence[Ask]], names: Names
) -> dict[str, tuple[float, str]]:
    """Return start (s) and node of each task that ever starts, under names that stay as they are."""
    free = {node.name: dict(node.capacity) for node in nodes}
    left = {key: amount * MILLI for key, amount in names.items()}
    wanted = {task.name: list(found) for task, found in zip(tasks, asks, strict=True)}
    coming = sorted(tasks, key=lambda task: task.arrival)
    queue: list[Task] = []
    running: list[tuple[float, Task, Node]] = []
    found: dict[str, tuple[float, str]] = {}
    while coming or running:
        now = min([task.arrival for task in coming[:1]] + [end for end, _, _ in running])
        for item in [item for item in running if item[0] <= now]:
            running.remove(item)
            _change(free, left, item[1], wanted[item[1].name], item[2].name, 1)
        while coming and coming[0].arrival <= now:
            queue.append(coming.pop(0))
        for task in list(queue):
            node = next((n for n in nodes if _fits(free, left, task, wanted[task.name], n.name)), None)
            if node is not None:
                queue.remove(task)
                _change(free, left, task, wanted[task.name], node.name, -1)
                running.append((now + task.seconds(node), task, node))
                found[task.name] = now, node.name
    return found


def _place(name: str, node: str, left: Mapping[tuple[str, str], int]) -> tuple[str, str]:
    return (name, ANYWHERE) if (name, ANYWHERE) in left else (name, node)


def _fits(
    free: Mapping[str, Mapping[str, int]],
    left: Mapping[tuple[str, str], int],
    task: Task,
    asks: Sequence[Ask],
    node: str,
) -> bool:
    own = all(free[node].get(kind, 0) >= amount for kind, amount in task.demand.items())
    return own and all(left.get(_place(ask.name, node, left), 0) >= ask.amount * MILLI for ask in asks)


def _change(
    free: dict[str, dict[str, int]],
    left: dict[tuple[str, str], int],
    task: Task,
    asks: Sequence[Ask],
    node: str,
    sign: int,
) -> None:
    for kind, amount in task.demand.items():
        free[node][kind] = free[node].get(kind, 0) + sign * amount
    for ask in asks:
        left[_place(ask.name, node, left)] += sign * ask.amount * MILLI
