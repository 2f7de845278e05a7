"""Reference implementation of the matcher in plain Python: the compiled kernel must produce the same starts.

At each instant, ending tasks first release their demand and ephemeral resources. Then arriving tasks join the queue.
Then the queue is scanned in order of arrival. Each task starts on the first node, in node order, that has its complete
demand and all its requests. Nothing is reserved: a task that does not fit is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unfold_placement.core.devices import DeviceLedger, has_shares, open_ledgers
from unfold_placement.core.types import ANYWHERE, MILLI, Ask, Node, Task

ResourceAmounts = Mapping[tuple[str, str], int]
"""Amounts of ephemeral resources by name and node, in whole units."""


def replay_reference(
    nodes: Sequence[Node], tasks: Sequence[Task], requests: Sequence[Sequence[Ask]], resources: ResourceAmounts
) -> dict[str, tuple[float, str]]:
    """Return start (s) and node of each task that starts, while the ephemeral resources do not change."""
    free = {node.name: dict(node.capacity) for node in nodes}
    # without shares the devices of a node are an amount like any other
    ledgers = open_ledgers(nodes) if any(map(has_shares, tasks)) else {}
    available = {key: amount * MILLI for key, amount in resources.items()}
    asks = {task.name: list(task_asks) for task, task_asks in zip(tasks, requests, strict=True)}
    arriving = sorted(tasks, key=lambda task: task.arrival)
    queue: list[Task] = []
    running: list[tuple[float, Task, Node]] = []
    starts: dict[str, tuple[float, str]] = {}
    while arriving or running:
        now = min([task.arrival for task in arriving[:1]] + [end for end, _, _ in running])
        for run in [run for run in running if run[0] <= now]:
            running.remove(run)
            _change(free, available, run[1], asks[run[1].name], run[2].name, 1)
            if ledgers:
                ledgers[run[2].name].give_back(run[1])
        while arriving and arriving[0].arrival <= now:
            queue.append(arriving.pop(0))
        for task in list(queue):
            node = next(
                (
                    node
                    for node in nodes
                    if _fits(free, available, task, asks[task.name], node.name) and _has_devices(ledgers, task, node)
                ),
                None,
            )
            if node is not None:
                queue.remove(task)
                if ledgers:
                    ledgers[node.name].take(task)
                _change(free, available, task, asks[task.name], node.name, -1)
                running.append((now + task.run_seconds(node), task, node))
                starts[task.name] = now, node.name
    return starts


def _resource_key(name: str, node: str, available: Mapping[tuple[str, str], int]) -> tuple[str, str]:
    return (name, ANYWHERE) if (name, ANYWHERE) in available else (name, node)


def _fits(
    free: Mapping[str, Mapping[str, int]],
    available: Mapping[tuple[str, str], int],
    task: Task,
    asks: Sequence[Ask],
    node: str,
) -> bool:
    fits_demand = all(free[node].get(kind, 0) >= amount for kind, amount in task.demand.items())
    return fits_demand and all(
        available.get(_resource_key(ask.name, node, available), 0) >= ask.amount * MILLI for ask in asks
    )


def _has_devices(ledgers: Mapping[str, DeviceLedger], task: Task, node: Node) -> bool:
    return not ledgers or ledgers[node.name].find(task.demand) is not None


def _change(
    free: dict[str, dict[str, int]],
    available: dict[tuple[str, str], int],
    task: Task,
    asks: Sequence[Ask],
    node: str,
    sign: int,
) -> None:
    for kind, amount in task.demand.items():
        free[node][kind] = free[node].get(kind, 0) + sign * amount
    for ask in asks:
        available[_resource_key(ask.name, node, available)] += sign * ask.amount * MILLI
